//! `hob bench`: flags to a bench, its lines as they come.

use std::path::Path;

use anyhow::Result;
use hob_engine::TraceSummary;
use hob_lab::bench::{self, BenchConfig, HEADER, KvFormats, OnGpu, Report, Row, Subject, Watch};
use hob_lab::synth::Synth;
use hob_model::{FileTensors, KvLayout, KvPair, ModelInfo, Placement};
use hob_plan::units::{show_bytes, show_figures};
use hob_plan::{GpuPlan, GpuWish, History, KvRule, KvWish, Machine, Plan, TuningTable, Wish};
use indicatif::ProgressBar;

use crate::args::{BenchArgs, GpuArgs, GpuMore};
use crate::exit::{self, UsageError};
use crate::house::{House, show_timeline};
use crate::term;

pub fn bench(house: &House, args: &BenchArgs) -> Result<i32> {
    if args.synth.as_deref() == Some("help") {
        term::print(&crate::lab::shapes())?;
        return Ok(exit::OK);
    }
    let machine = match args.gpu {
        // Figures stand beside what was probed in the same run.
        Some(gpu) if gpu != GpuWish::Off => {
            house.machine_with(&GpuArgs { gpu, more: args.more.clone() }, true)
        }
        _ => house.machine(),
    };
    if args.tune {
        return tune(house, machine, args.json);
    }
    match &args.synth {
        Some(text) => {
            let cut = |synth: Synth| match args.layers {
                Some(layers) => synth.with_layers(layers),
                None => Ok(synth),
            };
            let synth = Synth::parse(text).and_then(Synth::runnable).and_then(cut);
            let synth = synth.map_err(|e| UsageError(e.to_string()))?;
            let info = synth.info()?;
            let kv = formats(args, || {
                let what = "auto goes by a prompt, and made-up weights read none; name formats such as q8,q4";
                Err(UsageError(format!("--kv auto --synth {text}: {what}")).into())
            })?;
            let (name, description) = (synth.name(), synth.description());
            measure(house, &machine, (args, kv), Subject { name, description, source: &synth, info })
        }
        None => {
            let opened = house.open(&args.model, true)?;
            let info = ModelInfo::read(&opened.file)?;
            let kv =
                formats(args, || Ok(KvRule::default().choose(&crate::lab::noise(house, &opened)?).layout))?;
            let (name, source) = (opened.name, FileTensors(opened.file));
            measure(
                house,
                &machine,
                (args, kv),
                Subject { name, description: String::new(), source: &source, info },
            )
        }
    }
}

/// Measures the tuning table and keeps it with the machine.
fn tune(house: &House, machine: Machine, json: bool) -> Result<i32> {
    let bar = term::spinner("");
    let found =
        TuningTable::measure(machine.cpu.threads, &mut |knob| bar.set_message(format!("trying {knob}")));
    bar.finish_and_clear();
    let table = found.map_err(anyhow::Error::msg)?;
    let machine = machine.tuned(house.home(), table.clone()).map_err(anyhow::Error::msg)?;
    if json {
        term::print(&format!("{:#}\n", serde_json::json!({ "machine": machine, "tuning": table })))?;
    } else {
        term::print(&format!("{machine}\n{}", table.table()))?;
    }
    Ok(exit::OK)
}

/// What `--kv` stands for; `auto` says what that is.
fn formats(args: &BenchArgs, auto: impl Fn() -> Result<KvLayout>) -> Result<Vec<KvFormats>> {
    let format = |&wish: &KvWish| {
        let layout = match wish {
            KvWish::Auto => auto()?,
            KvWish::Pair(pair) => KvLayout::uniform(pair),
        };
        Ok(KvFormats { name: wish.to_string(), layout })
    };
    if args.kv.is_empty() { Ok(vec![KvFormats::f16()]) } else { args.kv.iter().map(format).collect() }
}

fn measure(
    house: &House,
    machine: &Machine,
    (args, kv): (&BenchArgs, Vec<KvFormats>),
    subject: Subject<'_>,
) -> Result<i32> {
    let mut config = BenchConfig {
        threads: args.threads.clone(),
        prompt: args.prompt,
        tokens: args.tokens,
        rows: args.rows.clone(),
        repeat: args.repeat,
        depths: args.depth.clone(),
        ctx_tokens: 0,
        kv,
        fill_seconds: args.fill_seconds,
        profile: args.profile.profile.clone(),
        gpu: None,
    };
    // What fits and what the model was trained for bound the context, as in every other plan.
    let wishes = if args.kv.is_empty() { vec![KvWish::Pair(KvPair::default())] } else { args.kv.clone() };
    let plan_for = |ctx_tokens, kv, placed: Option<Placement>| {
        let GpuMore { experts_on, adapter, vram } = &args.more;
        let (experts_on, vram, adapter_named) = (*experts_on, *vram, adapter.is_some());
        let gpu = args.gpu.unwrap_or(GpuWish::Off);
        let wish = Wish { ctx_tokens, kv, gpu, experts_on, vram, adapter_named, placed, ..Wish::default() };
        let subject = hob_plan::Subject { name: &subject.name, id: "", sizes: &subject.info, noise: None };
        Plan::make(machine, &subject, &wish, &History::default())
    };
    let free: Vec<Plan> = wishes.iter().map(|&kv| plan_for(None, kv, None)).collect();
    let most = |p: &Plan| p.context.trained_tokens.min(p.context.fits_tokens.max(1));
    // Formats stand side by side: what the largest leaves room for counts for all.
    let most = free.iter().map(most).min().unwrap_or(1);
    config.ctx_tokens = args.ctx.unwrap_or_else(|| config.wanted_ctx().min(most));
    let mut placed = None;
    for &kv in &wishes {
        let plan = plan_for(Some(config.ctx_tokens), kv, placed.clone());
        plan.accept()?;
        // Formats are measured on weights that do not move.
        placed.get_or_insert(plan.layout.placement.clone());
        config.gpu = config.gpu.take().or_else(|| on_gpu(house, machine, &plan));
    }
    if args.gpu.is_some_and(|gpu| gpu != GpuWish::Off) && config.gpu.is_none() {
        let why = free.first().map(|p| p.reasons.join("; ")).unwrap_or_default();
        let why = machine.gpus.none.clone().unwrap_or(why);
        return Err(anyhow::anyhow!("nothing goes on a GPU here: {why}"));
    }
    if config.threads.is_empty() || config.gpu.as_ref().is_some_and(|g| g.plan.whole()) {
        config.threads = free.first().map(|p| p.threads).into_iter().collect();
    }
    if !args.json {
        let gpu = config.gpu.as_ref().map_or(String::new(), header);
        term::print(&format!("{}\n{machine}\n{gpu}", Report::new(&subject).title()))?;
    }
    let mut lines = Lines { bar: term::spinner(""), json: args.json, headed: false };
    let report = bench::run(&config, &subject, &mut lines);
    lines.bar.finish_and_clear();
    let report = report?;
    if args.json {
        let all = serde_json::json!({ "machine": machine, "bench": report });
        term::print(&format!("{all:#}\n"))?;
        return Ok(exit::OK);
    }
    if !report.left_out.is_empty() {
        let depths: Vec<String> = report.left_out.iter().map(usize::to_string).collect();
        let ctx = config.ctx_tokens;
        term::note(&format!("left out: depth {} does not fit a context of {ctx} tokens", depths.join(", ")));
    }
    Ok(exit::OK)
}

/// The part of a plan that is for a GPU.
fn on_gpu(house: &House, machine: &Machine, plan: &Plan) -> Option<OnGpu> {
    let gpu = plan.gpu.as_ref()?;
    let (placement, chunk_rows) = (plan.layout.placement.clone(), plan.chunk_rows);
    let (config, plan) = (house.gpu_config(gpu.index), gpu.clone());
    Some(OnGpu { config, plan, placement, chunk_rows, machine: machine.clone() })
}

/// The GPU, its ceilings, and what it gets.
fn header(gpu: &OnGpu) -> String {
    let rates = match &gpu.plan.rates {
        Some(r) => format!(
            "reads {} GB/s, {} TFLOP/s, round trip {} us, dispatch {} us, up {} GB/s, down {} GB/s",
            show_figures(r.read_gb_per_s),
            show_figures(r.tflops),
            show_figures(r.round_trip_micros),
            show_figures(r.dispatch_micros),
            show_figures(r.upload_gb_per_s),
            show_figures(r.download_gb_per_s)
        ),
        None => "not measured".to_string(),
    };
    let GpuPlan { adapter, tier, total_bytes, .. } = &gpu.plan;
    format!("{adapter}, {tier}: {rates}\n{}: {} on it\n", gpu.plan.parts(), show_bytes(*total_bytes))
}

/// Prints rows as they come, over the spinner.
struct Lines {
    bar: ProgressBar,
    json: bool,
    headed: bool,
}

impl Watch for Lines {
    fn phase(&mut self, what: &str) {
        self.bar.set_message(what.to_string());
    }

    fn profile(&mut self, path: &Path, result: std::io::Result<TraceSummary>) {
        self.bar.suspend(|| show_timeline(path, result, false));
    }

    fn row(&mut self, row: &Row) {
        if self.json {
            return;
        }
        let header = if self.headed { String::new() } else { format!("{HEADER}\n") };
        self.headed = true;
        let line = format!("{header}{row}\n");
        // A closed pipe is not worth ending a measurement for; the report is written to the same pipe and tells.
        self.bar.suspend(|| {
            let _ = term::print(&line);
        });
    }
}
