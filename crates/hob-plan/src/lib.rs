//! `Machine` (measured) and `Wish` (typed) make a `Plan`: a filled `Layout`, memory by line, a speed forecast, and the
//! reasons. Runs teach it: [`history`] replaces estimates by what this machine reached.
//!
//! It must not know how kernels work, nor do arithmetic of sizes: `hob_model::ModelInfo` is the one estimator, and the
//! engine allocates from the same `Layout`.
#![forbid(unsafe_code)]

mod budget;
mod context;
mod disk;
mod error;
mod facts;
mod forecast;
mod gpus;
pub mod history;
pub mod kv;
mod kv_plan;
mod limits;
mod machine;
mod placing;
mod plan;
mod show;
#[cfg(test)]
mod testing;
mod tuning;
pub mod units;
mod wish;

pub use budget::Budget;
pub use context::{Context, FormatAt, FormatLimit};
pub use disk::{CACHE_DIR, DiskPlan, DiskWish};
pub use error::PlanError;
pub use facts::{Bound, CpuFacts, MemoryFacts, SysRoot, peak_bytes};
pub use forecast::{
    Basis, DECODE_SHARE, Forecast, LAYER_SECONDS, Observed, PROMPT_TOKENS, Quantiles, expected_decode,
};
pub use gpus::{Adapter, GPU_CACHE_FILE, GpuFacts, GpuProber, GpuRates, Gpus, RealGpus};
pub use history::History;
pub use kv::{KvChoice, KvNoise, KvRule, LayerChoice};
pub use kv_plan::{KvBasis, KvGroup, KvMeasured, KvPlan};
pub use limits::{LimitSource, MemoryLimit};
pub use machine::{CACHE_FILE, Machine, Measured, Probe, Prober, ReadRate};
pub use placing::GpuPlan;
pub use plan::{Kept, MemoryLine, Plan, Sizes, Subject};
pub use tuning::{Trial, TuningTable};
pub use wish::{ExpertsOn, GpuWish, KvWish, Wish, show_pair};
