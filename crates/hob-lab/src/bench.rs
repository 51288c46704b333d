//! Prefill and decode speed at context frontiers, each sample beside the read bandwidth of the same second: virtual
//! machines change speed under us, so a rate alone says little. Owns the order of measurement; it must not know
//! kernels, and nothing here judges a figure.

mod report;
mod rig;

use std::path::{Path, PathBuf};

use hob_engine::{Trace, TraceSummary};
use hob_gpu::GpuConfig;
use hob_model::{KvLayout, Layout, ModelError, ModelInfo, Placement, TensorSource};
use hob_plan::{GpuPlan, Kept, Machine, expected_decode};

pub use report::{HEADER, Kv, Limit, Quantiles, Report, Row, Sample, Test};
use rig::Rig;

#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("{field}: expected {expected}, found {found}")]
    Config { field: &'static str, expected: &'static str, found: String },
    #[error(
        "no depth of {depths:?} fits a context of {ctx_tokens} tokens with {needed} to measure; raise --ctx or give a smaller --depth"
    )]
    NoDepth { depths: Vec<usize>, ctx_tokens: usize, needed: usize },
    #[error("writing the timeline to {path}: {source}")]
    Timeline { path: String, source: std::io::Error },
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Compute(#[from] hob_compute::ComputeError),
}

/// Steps of a sample that checks several rows at once.
const CHECK_STEPS: usize = 8;
/// Most rows of such a step.
const MOST_ROWS: usize = 64;

/// What to measure.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchConfig {
    /// One run for each.
    pub threads: Vec<usize>,
    /// Prompt tokens of a prefill sample; 0: none.
    pub prompt: usize,
    /// Steps of a decode sample; 0: none.
    pub tokens: usize,
    /// Rows of a step that checks several tokens of one sequence at once, as speculation does; one test for each.
    pub rows: Vec<usize>,
    /// Samples of each kind.
    pub repeat: usize,
    /// Positions to start at.
    pub depths: Vec<usize>,
    pub ctx_tokens: usize,
    /// Ways of keeping K and V, measured one after the other on the same weights.
    pub kv: Vec<KvFormats>,
    /// Longest time to fill the context with real tokens up to a depth; the rest is synthetic.
    pub fill_seconds: f64,
    /// Where a timeline of every verb goes, if one is wanted.
    pub profile: Option<PathBuf>,
    /// What a GPU gets; `None` measures the CPU alone.
    pub gpu: Option<OnGpu>,
}

/// A plan with a part for a GPU, and the machine as it was probed in this run.
#[derive(Clone, Debug, PartialEq)]
pub struct OnGpu {
    pub config: GpuConfig,
    pub plan: GpuPlan,
    pub placement: Placement,
    pub chunk_rows: usize,
    pub machine: Machine,
}

/// One way of keeping K and V, and the name that its rows carry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KvFormats {
    pub name: String,
    pub layout: KvLayout,
}

impl KvFormats {
    /// f16 everywhere.
    pub fn f16() -> Self {
        Self { name: "f16".to_string(), layout: KvLayout::default() }
    }
}

impl BenchConfig {
    /// Positions the largest depth needs: that is the context to plan for.
    pub fn wanted_ctx(&self) -> usize {
        self.depths.iter().max().copied().unwrap_or(0).saturating_add(self.room())
    }

    /// Positions a sample takes.
    fn room(&self) -> usize {
        let checked = self.rows.iter().map(|r| r.saturating_mul(CHECK_STEPS)).max().unwrap_or(0);
        self.prompt.max(self.tokens).max(checked)
    }

    /// Depths that fit, ascending.
    fn usable_depths(&self) -> Vec<usize> {
        let mut depths: Vec<usize> = self
            .depths
            .iter()
            .copied()
            .filter(|d| d.saturating_add(self.room()) <= self.ctx_tokens)
            .collect();
        depths.sort_unstable();
        depths.dedup();
        depths
    }

    fn check(&self) -> Result<(), BenchError> {
        let wrong = |field, expected, found: String| Err(BenchError::Config { field, expected, found });
        if self.threads.is_empty() || self.threads.contains(&0) {
            return wrong("threads", "counts of at least 1", format!("{:?}", self.threads));
        }
        if self.room() == 0 {
            return wrong("prompt and tokens", "at least one above 0", "0 and 0".into());
        }
        if self.rows.iter().any(|r| !(1..=MOST_ROWS).contains(r)) {
            return wrong("rows", "counts of 1 to 64", format!("{:?}", self.rows));
        }
        if self.repeat == 0 {
            return wrong("repeat", "at least 1", "0".into());
        }
        if self.kv.is_empty() {
            return wrong("kv", "at least one format", "none".into());
        }
        if self.fill_seconds.is_nan() || self.fill_seconds < 0.0 {
            return wrong("fill_seconds", "a number of at least 0", self.fill_seconds.to_string());
        }
        if self.usable_depths().is_empty() {
            let (depths, ctx_tokens, needed) = (self.depths.clone(), self.ctx_tokens, self.room());
            return Err(BenchError::NoDepth { depths, ctx_tokens, needed });
        }
        Ok(())
    }
}

/// The model to measure.
pub struct Subject<'a> {
    pub name: String,
    /// What it is, where the name does not say.
    pub description: String,
    pub source: &'a dyn TensorSource,
    pub info: ModelInfo,
}

/// Who wants to see results as they come.
pub trait Watch {
    /// Something long begins.
    fn phase(&mut self, what: &str);
    fn row(&mut self, row: &Row);
    /// The timeline in `path` is complete, or could not be completed.
    fn profile(&mut self, _path: &Path, _result: std::io::Result<TraceSummary>) {}
}

/// Measures everything `config` names. The model is loaded once per thread count.
///
/// # Errors
/// A config that names nothing to measure; what the model or device say.
pub fn run(config: &BenchConfig, subject: &Subject<'_>, watch: &mut dyn Watch) -> Result<Report, BenchError> {
    config.check()?;
    let mut report = Report::new(subject);
    report.gpu = config.gpu.as_ref().map(|g| g.plan.clone());
    report.left_out = config.depths.iter().copied().filter(|d| !config.usable_depths().contains(d)).collect();
    let mut trace = config.profile.as_deref().map(timeline).transpose()?;
    for &threads in &config.threads {
        watch.phase(&format!("loading {} for {threads} threads", subject.name));
        let logit_rows = config.rows.iter().copied().max().unwrap_or(1);
        // Not f16 first, which may not fit where the formats asked for do.
        let kv = config.kv.first().map(|kv| kv.layout.clone()).unwrap_or_default();
        let mut layout = Layout { threads, logit_rows, kv, ..Layout::new(config.ctx_tokens) };
        if let Some(gpu) = &config.gpu {
            (layout.placement, layout.chunk_rows) = (gpu.placement.clone(), gpu.chunk_rows);
        }
        let mut rig = Rig::load(subject, &layout, config.gpu.as_ref(), trace.take())?;
        report.isa = rig.isa().to_string();
        let measured = config.kv.iter().try_for_each(|kv| {
            rig.relayout(&kv.layout)?;
            measure(config, &kv.name, &mut rig, watch, &mut report)
        });
        trace = rig.unload()?;
        measured?;
    }
    if let (Some(trace), Some(path)) = (trace, &config.profile) {
        watch.profile(path, trace.finish());
    }
    Ok(report)
}

fn timeline(path: &Path) -> Result<Trace, BenchError> {
    Trace::create(path).map_err(|source| BenchError::Timeline { path: path.display().to_string(), source })
}

fn measure(
    config: &BenchConfig,
    kv_format: &str,
    rig: &mut Rig,
    watch: &mut dyn Watch,
    report: &mut Report,
) -> Result<(), BenchError> {
    for depth in config.usable_depths() {
        if depth > 0 {
            watch.phase(&format!("filling the context up to {depth} tokens"));
        }
        let kv = rig.fill(depth, config.fill_seconds)?;
        let tests = [
            (config.prompt > 0).then_some(Test::Prefill { tokens: config.prompt }),
            (config.tokens > 0).then_some(Test::Decode { tokens: config.tokens }),
        ];
        let checks = config.rows.iter().map(|&rows| Test::Check { rows, steps: CHECK_STEPS });
        for test in tests.into_iter().flatten().chain(checks) {
            watch.phase(&format!("{test} at {depth}, {kv_format}, {} threads", rig.threads()));
            // The first takes page faults and cold caches, and is not kept.
            rig.sample(test, depth)?;
            let samples =
                (0..config.repeat).map(|_| rig.sample(test, depth)).collect::<Result<Vec<_>, _>>()?;
            let format = (kv_format, rig.kv_bytes_per_token());
            let mut row = Row::new(rig.threads(), test, depth, kv, samples).with_format(format);
            row.gpu_layers = rig.gpu_layers();
            row.expected_tokens_per_s = expected(config, rig, test, depth);
            watch.row(&row);
            report.rows.push(row);
        }
    }
    Ok(())
}

/// What a plan foretells of a decode sample, from the bandwidths probed in this run.
fn expected(config: &BenchConfig, rig: &Rig, test: Test, depth: usize) -> Option<f64> {
    let (gpu, Test::Decode { tokens }) = (config.gpu.as_ref()?, test) else { return None };
    let model = rig.model();
    let kept = Kept { sizes: model.info(), layout: model.layout(), gpu: gpu.machine.gpus.gpu() };
    Some(expected_decode(&gpu.machine, kept, rig.threads(), depth + tokens / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> BenchConfig {
        BenchConfig {
            threads: vec![1],
            prompt: 512,
            tokens: 64,
            rows: vec![],
            repeat: 2,
            depths: vec![32_768, 0, 2048, 2048],
            ctx_tokens: 4096,
            kv: vec![KvFormats::f16()],
            fill_seconds: 1.0,
            profile: None,
            gpu: None,
        }
    }

    #[test]
    fn depths_beyond_the_context_are_left_out() {
        assert_eq!(config().usable_depths(), [0, 2048]);
        assert_eq!(config().wanted_ctx(), 32_768 + 512);
        assert_eq!(BenchConfig { ctx_tokens: 2560, ..config() }.usable_depths(), [0, 2048]);
        assert_eq!(BenchConfig { ctx_tokens: 2559, ..config() }.usable_depths(), [0]);
    }

    #[test]
    fn configs_that_measure_nothing_are_refused() {
        let error = |c: BenchConfig| c.check().expect_err("refused").to_string();
        assert!(config().check().is_ok());
        assert!(error(BenchConfig { threads: vec![], ..config() }).starts_with("threads"));
        assert!(error(BenchConfig { threads: vec![2, 0], ..config() }).starts_with("threads"));
        assert!(error(BenchConfig { prompt: 0, tokens: 0, ..config() }).starts_with("prompt and tokens"));
        assert!(error(BenchConfig { repeat: 0, ..config() }).starts_with("repeat"));
        assert!(error(BenchConfig { rows: vec![2, 0], ..config() }).starts_with("rows"));
        assert!(error(BenchConfig { rows: vec![65], ..config() }).starts_with("rows"));
        assert!(error(BenchConfig { kv: vec![], ..config() }).starts_with("kv"));
        assert!(error(BenchConfig { fill_seconds: f64::NAN, ..config() }).starts_with("fill_seconds"));
        let error = error(BenchConfig { ctx_tokens: 100, ..config() });
        assert!(error.contains("100") && error.contains("512") && error.contains("--ctx"), "{error}");
    }
}
