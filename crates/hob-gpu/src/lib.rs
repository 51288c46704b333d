//! The verbs on GPUs, through wgpu: Vulkan, Metal and DX12 with one set of WGSL templates.
//!
//! `context` opens an adapter, `stream` records and submits, `verb/` has one file per verb family with its templates in
//! `wgsl/`, `format/` packs weights. It must not know what a model is. `unsafe` only where wgpu asks for a promise.
#![deny(unsafe_code)]

mod act;
mod cache;
mod context;
mod device;
mod format;
mod memory;
mod pages;
mod probe;
mod stream;
mod template;
mod tier;
#[cfg(test)]
mod translate;
mod verb;
mod weights;

pub use context::{AdapterFacts, Context, adapters, test_adapter};
pub use device::{Gpu, GpuConfig};
pub use probe::GpuRates;
pub use stream::Counters;
pub use tier::Tier;
// For measurements and tests only: see `Gpu::tune_attention` and `Gpu::want_few_cut`.
#[doc(hidden)]
pub use verb::attend::AttentionRule;
#[doc(hidden)]
pub use verb::linear::few::FewCut;
