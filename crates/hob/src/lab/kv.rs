//! `hob lab kv` and `hob lab needle`: one model, a long text, and several ways of keeping K and V, under the plan's memory.

use std::sync::Arc;

use anyhow::Result;
use hob_engine::{CALIBRATION_TOKENS, Runtime, RuntimeConfig};
use hob_lab::eval::{self, EvalConfig};
use hob_lab::kv::{self, KvConfig};
use hob_lab::needle::{self, NeedleConfig, Task};
use hob_model::{Layout, ModelInfo};
use hob_plan::{KvNoise, KvRule, Machine, Plan, PlanError, Wish};
use serde_json::json;

use super::eval::{Progress, read_text};
use crate::args::{KvArgs, KvSubjectArgs, NeedleArgs};
use crate::exit;
use crate::house::{House, Opened};
use crate::term::{self, LateBar, Unit};

pub fn kv(house: &House, args: &KvArgs) -> Result<i32> {
    let text = read_text(&args.subject.text)?;
    let subject = Subject::open(house, &args.subject, args.ctx)?;
    let rule = KvRule::default();
    let rule = match args.least_weights {
        Some(millions) => KvRule { least_parameters: millions.saturating_mul(1_000_000), ..rule },
        None => rule,
    };
    let threads = subject.plan.threads;
    let eval = EvalConfig { ctx: args.ctx, chunks: args.chunks, stride: None, threads };
    let config = KvConfig { eval, scored: args.score, formats: args.kv.clone(), rule };
    let layout = eval::layout(&subject.info, args.ctx.max(1), threads);
    subject.accept(&layout, config.kept_bytes(subject.info.config.vocab))?;
    let known = subject.known(house);
    let new = known.is_none();
    let runtime = subject.runtime(args.exact)?;
    let graceful = house.interrupt.graceful();
    let mut progress = Progress::new(graceful.flag());
    let file = &subject.opened.file;
    let report = kv::run(&config, file, &text, known, &mut **runtime.device(), &mut progress);
    progress.clear();
    let report = report?;
    // A short window measures with fewer tokens than other runs would: that is not worth keeping.
    if new && report.noise.tokens == CALIBRATION_TOKENS.min(subject.info.config.ctx_train) {
        report.noise.save(house.home())?;
    }
    if args.subject.json {
        let all = json!({ "machine": subject.machine, "exact": args.exact, "kv": report });
        term::print(&format!("{all:#}\n"))?;
    } else {
        let table = if args.verbose { format!("\n{}", report.noise_table()) } else { String::new() };
        term::print(&format!("{report}{table}"))?;
    }
    Ok(if report.chunks < report.chunks_planned { exit::INTERRUPTED } else { exit::OK })
}

pub fn needle(house: &House, args: &NeedleArgs) -> Result<i32> {
    let text = read_text(&args.subject.text)?;
    let ctx = args.ctx.iter().copied().max().unwrap_or(0);
    let subject = Subject::open(house, &args.subject, ctx)?;
    let config = NeedleConfig {
        ctxs: args.ctx.clone(),
        depths: args.depths.clone(),
        repeat: args.repeat,
        seed: args.seed,
        task: if args.question { Task::Question } else { Task::Copy },
        formats: args.kv.clone(),
        rule: KvRule::default(),
        threads: subject.plan.threads,
    };
    subject.accept(&config.layout(), 0)?;
    let known = subject.known(house);
    let runtime = subject.runtime(false)?;
    let graceful = house.interrupt.graceful();
    let mut progress = Progress::new(graceful.flag());
    let file = &subject.opened.file;
    let report = needle::run(&config, file, &text, known, &mut **runtime.device(), &mut progress);
    progress.clear();
    let report = report?;
    if args.subject.json {
        let all = json!({ "machine": subject.machine, "needle": report });
        term::print(&format!("{all:#}\n"))?;
    } else {
        term::print(&report.to_string())?;
    }
    Ok(if report.trials < report.trials_planned { exit::INTERRUPTED } else { exit::OK })
}

/// The measured noise of a model: what an earlier run kept, or measured now and kept.
pub fn noise(house: &House, opened: &Opened) -> Result<KvNoise> {
    let id = opened.file.model_id();
    if let Some(known) = KvNoise::load(house.home(), &id) {
        return Ok(known);
    }
    let runtime = Runtime::new(&RuntimeConfig { threads: None, exact: false, ..RuntimeConfig::default() })?;
    let mut bar = LateBar::new("loading", Unit::Bytes);
    let found = hob_engine::calibrate(&runtime, &opened.file, &mut |done, total| bar.set(done, total));
    bar.clear();
    let found = found?;
    let info = ModelInfo::read(&opened.file)?;
    let noise = KvNoise::new(id, &info, found.tokens, found.seconds, found.layers);
    noise.save(house.home())?;
    Ok(noise)
}

/// The model and what was planned for it.
struct Subject {
    opened: Opened,
    info: ModelInfo,
    machine: Machine,
    plan: Plan,
}

impl Subject {
    fn open(house: &House, args: &KvSubjectArgs, ctx: usize) -> Result<Self> {
        let opened = house.open(&args.model, true)?;
        let machine = house.machine();
        let info = ModelInfo::read(&opened.file)?;
        let wish = Wish {
            // A context that holds nothing is refused by the tool's own error, not by the plan's.
            ctx_tokens: Some(ctx.max(1)),
            threads: args.threads,
            ram: args.ram,
            ..Wish::default()
        };
        let plan = house.plan(&machine, &opened, &wish)?;
        Ok(Self { opened, info, machine, plan })
    }

    /// The f16 layout is the largest of all that are tried.
    fn accept(&self, layout: &Layout, beside: u64) -> Result<(), PlanError> {
        self.plan.accept()?;
        let needs_bytes = self.info.footprint(layout).total.saturating_add(beside);
        let budget = &self.plan.budget;
        match budget.bytes.filter(|_| !budget.holds(needs_bytes)) {
            None => Ok(()),
            Some(limit_bytes) => Err(PlanError::ModelDoesNotFit {
                needs_bytes,
                ctx_tokens: self.plan.context.tokens,
                limit_bytes,
                source_of_limit: budget.source.clone(),
            }),
        }
    }

    fn known(&self, house: &House) -> Option<KvNoise> {
        KvNoise::load(house.home(), &self.opened.file.model_id())
    }

    fn runtime(&self, exact: bool) -> Result<Arc<Runtime>> {
        Ok(Runtime::new(&RuntimeConfig {
            threads: Some(self.plan.threads),
            exact,
            ..RuntimeConfig::default()
        })?)
    }
}
