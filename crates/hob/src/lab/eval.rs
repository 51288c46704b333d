//! `hob lab ppl` and `hob lab kl`: a text and one or two models to figures, under the plan's memory.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use hob_engine::{Runtime, RuntimeConfig};
use hob_lab::eval::{self, EvalConfig, Watch};
use hob_lab::kl::{self, Pair, Placement};
use hob_lab::ppl;
use hob_model::ModelInfo;
use hob_plan::{Machine, Plan, PlanError, Wish};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::args::{EvalArgs, KlArgs, PplArgs};
use crate::exit::{self, UsageError};
use crate::house::{House, Opened};
use crate::term::{self, LateBar, Unit};

/// Longest text read: hours of evaluation.
const MOST_TEXT_BYTES: u64 = 256 << 20;

pub fn ppl(house: &House, args: &PplArgs) -> Result<i32> {
    let eval = &args.eval;
    let text = read_text(&eval.text)?;
    let opened = house.open(&args.model, true)?;
    let machine = house.machine();
    let needs = Needs::of(house, &machine, &opened, eval)?;
    needs.accept()?;
    let runtime = runtime(&needs.plan, eval)?;
    let graceful = house.interrupt.graceful();
    let mut progress = Progress::new(graceful.flag());
    let config = config(eval, &needs.plan);
    let report = ppl::run(&config, &opened.file, &text, &mut **runtime.device(), &mut progress);
    progress.clear();
    let report = report?;
    if eval.json {
        let all = json!({ "machine": machine, "exact": eval.exact, "perplexity": report });
        term::print(&format!("{all:#}\n"))?;
    } else {
        term::print(&report.to_string())?;
    }
    Ok(if report.chunks < report.chunks_planned { exit::INTERRUPTED } else { exit::OK })
}

pub fn kl(house: &House, args: &KlArgs) -> Result<i32> {
    let eval = &args.eval;
    let text = read_text(&eval.text)?;
    let (a, b) = (house.open(&args.a, true)?, house.open(&args.b, true)?);
    let machine = house.machine();
    let needs = (Needs::of(house, &machine, &a, eval)?, Needs::of(house, &machine, &b, eval)?);
    needs.0.accept()?;
    needs.1.accept()?;
    // A's rows of one window are kept beside both models.
    let kept = needs.0.vocab as u64 * eval.ctx as u64 * 4;
    let both = needs.0.bytes.saturating_add(needs.1.bytes).saturating_add(kept);
    let together = needs.0.plan.budget.holds(both) && !args.apart;
    if !together {
        let size = hob_plan::units::show_bytes(both);
        let why = if args.apart { "asked for" } else { "both at once would take too much memory" };
        term::note(&format!("one model after the other ({why}; together {size}), logits in between on disk"));
    }
    let placement = if together { Placement::Together } else { Placement::Apart };
    let runtime = runtime(&needs.0.plan, eval)?;
    let graceful = house.interrupt.graceful();
    let mut progress = Progress::new(graceful.flag());
    let pair = Pair { a: Arc::clone(&a.file), b: Arc::clone(&b.file) };
    let config = config(eval, &needs.0.plan);
    let report = kl::run(&config, &pair, &text, placement, &mut **runtime.device(), &mut progress);
    progress.clear();
    let report = report?;
    if eval.json {
        let all = json!({ "machine": machine, "exact": eval.exact, "divergence": report });
        term::print(&format!("{all:#}\n"))?;
    } else {
        term::print(&report.to_string())?;
    }
    Ok(if report.chunks < report.chunks_planned { exit::INTERRUPTED } else { exit::OK })
}

/// A model's plan, and what evaluating takes on top of it.
struct Needs {
    plan: Plan,
    /// With rows of logits.
    bytes: u64,
    vocab: usize,
}

impl Needs {
    fn of(house: &House, machine: &Machine, opened: &Opened, eval: &EvalArgs) -> Result<Self> {
        let info = ModelInfo::read(&opened.file)?;
        let wish = Wish {
            // A config that scores nothing is refused by its own error, not by the plan's.
            ctx_tokens: Some(eval.ctx.max(1)),
            threads: eval.threads,
            ram: eval.ram,
            ..Wish::default()
        };
        let plan = house.plan(machine, opened, &wish)?;
        let bytes = info.footprint(&eval::layout(&info, eval.ctx.max(1), plan.threads)).total;
        Ok(Self { plan, bytes, vocab: info.config.vocab })
    }

    fn accept(&self) -> Result<(), PlanError> {
        self.plan.accept()?;
        let budget = &self.plan.budget;
        match budget.bytes.filter(|_| !budget.holds(self.bytes)) {
            None => Ok(()),
            Some(limit_bytes) => Err(PlanError::ModelDoesNotFit {
                needs_bytes: self.bytes,
                ctx_tokens: self.plan.context.tokens,
                limit_bytes,
                source_of_limit: budget.source.clone(),
            }),
        }
    }
}

fn runtime(plan: &Plan, eval: &EvalArgs) -> Result<Arc<Runtime>> {
    Ok(Runtime::new(&RuntimeConfig {
        threads: Some(plan.threads),
        exact: eval.exact,
        ..RuntimeConfig::default()
    })?)
}

fn config(eval: &EvalArgs, plan: &Plan) -> EvalConfig {
    EvalConfig { ctx: eval.ctx, chunks: eval.chunks, stride: eval.stride, threads: plan.threads }
}

pub(super) fn read_text(path: &Path) -> Result<String> {
    let name = path.display().to_string();
    let reading = || format!("reading the text from {name}");
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        io::stdin().lock().take(MOST_TEXT_BYTES + 1).read_to_end(&mut bytes).with_context(reading)?;
    } else {
        let file = File::open(path).with_context(reading)?;
        file.take(MOST_TEXT_BYTES + 1).read_to_end(&mut bytes).with_context(reading)?;
    }
    if bytes.len() as u64 > MOST_TEXT_BYTES {
        let most = hob_plan::units::show_bytes(MOST_TEXT_BYTES);
        return Err(UsageError(format!("the text in {name} is longer than {most}: cut it")).into());
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        UsageError(format!("the text in {name} is not UTF-8 (byte {at}); convert it first")).into()
    })
}

/// A bar for each stage, and the interrupt flag.
pub(super) struct Progress {
    flag: Arc<AtomicBool>,
    loading: LateBar,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub fn new(flag: Arc<AtomicBool>) -> Self {
        Self { flag, loading: LateBar::new("loading", Unit::Bytes), bar: None }
    }

    pub fn clear(&mut self) {
        self.loading.clear();
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Watch for Progress {
    fn loading(&mut self, _model: &str, done: u64, total: u64) {
        self.loading.set(done, total);
        if done >= total {
            self.loading.clear();
        }
    }

    fn window(&mut self, done: usize, total: usize, running: &str) {
        let bar = self.bar.get_or_insert_with(|| {
            let bar = term::bar("", Unit::Tokens);
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} windows {eta}  {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        bar.set_message(running.to_string());
    }

    fn stop(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }
}
