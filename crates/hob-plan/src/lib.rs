//! `Machine` (measured) and `Wish` (typed) make a `Plan`: a filled `Layout`, memory by line, a speed forecast, and the
//! reasons. Runs teach it: [`history`] replaces estimates by what this machine reached.
//!
//! It must not know how kernels work, nor do arithmetic of sizes: `hob_model::ModelInfo` is the one estimator, and the
//! engine allocates from the same `Layout`.
#![forbid(unsafe_code)]

mod budget;
mod error;
mod facts;
mod forecast;
pub mod history;
mod limits;
mod machine;
mod plan;
mod show;
#[cfg(test)]
mod testing;
mod tuning;
pub mod units;
mod wish;

pub use budget::Budget;
pub use error::PlanError;
pub use facts::{Bound, CpuFacts, MemoryFacts, SysRoot, peak_bytes};
pub use forecast::{Basis, DECODE_SHARE, Forecast, LAYER_SECONDS, Observed, PROMPT_TOKENS, Quantiles};
pub use history::History;
pub use limits::{LimitSource, MemoryLimit};
pub use machine::{CACHE_FILE, Machine, Measured, Probe, Prober, ReadRate};
pub use plan::{Context, MemoryLine, Plan, Sizes, Subject};
pub use tuning::{Trial, TuningTable};
pub use wish::Wish;
