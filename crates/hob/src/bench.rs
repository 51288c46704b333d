//! `hob bench`: flags to a bench, its lines as they come.

use anyhow::Result;
use hob_lab::bench::{self, BenchConfig, HEADER, Report, Row, Subject, Watch};
use hob_lab::synth::Synth;
use hob_model::{FileTensors, ModelInfo, TensorSource};
use hob_plan::{History, Machine, Plan, TuningTable, Wish};
use indicatif::ProgressBar;

use crate::args::BenchArgs;
use crate::exit::{self, UsageError};
use crate::house::House;
use crate::term;

pub fn bench(house: &House, args: &BenchArgs) -> Result<i32> {
    if args.synth.as_deref() == Some("help") {
        term::print(&crate::lab::shapes())?;
        return Ok(exit::OK);
    }
    let machine = house.machine();
    if args.tune {
        return tune(house, machine, args.json);
    }
    match &args.synth {
        Some(text) => {
            let synth =
                Synth::parse(text).and_then(Synth::runnable).map_err(|e| UsageError(e.to_string()))?;
            let info = synth.info()?;
            measure(&machine, args, synth.name(), synth.description(), &synth, info)
        }
        None => {
            let opened = house.open(&args.model, true)?;
            let info = ModelInfo::read(&opened.file)?;
            measure(&machine, args, opened.name, String::new(), &FileTensors(opened.file), info)
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

fn measure(
    machine: &Machine,
    args: &BenchArgs,
    name: String,
    description: String,
    source: &dyn TensorSource,
    info: ModelInfo,
) -> Result<i32> {
    let mut config = BenchConfig {
        threads: args.threads.clone(),
        prompt: args.prompt,
        tokens: args.tokens,
        rows: args.rows.clone(),
        repeat: args.repeat,
        depths: args.depth.clone(),
        ctx_tokens: 0,
        fill_seconds: args.fill_seconds,
    };
    // What fits and what the model was trained for bound the context, as in every other plan.
    let plan_for = |ctx_tokens| {
        let wish = Wish { ctx_tokens, ..Wish::default() };
        let subject = hob_plan::Subject { name: &name, id: "", sizes: &info };
        Plan::make(machine, &subject, &wish, &History::default())
    };
    let free = plan_for(None);
    let most = free.context.trained_tokens.min(free.context.fits_tokens.max(1));
    config.ctx_tokens = args.ctx.unwrap_or_else(|| config.wanted_ctx().min(most));
    plan_for(Some(config.ctx_tokens)).accept()?;
    if config.threads.is_empty() {
        config.threads = vec![free.threads];
    }
    let subject = Subject { name, description, source, info };
    if !args.json {
        term::print(&format!("{}\n{machine}\n", Report::new(&subject).title()))?;
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
