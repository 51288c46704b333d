//! Pieces that architectures share: each declares its weights and buffers when it is made, and runs on a step.
//!
//! They know verbs and shapes; they must not know files, pages or the order of layers.

mod branch;
mod decoder;
mod dense;
mod ends;
mod gqa;
mod hybrid;
mod moe;
mod short_conv;
mod step;
mod swiglu;

pub(crate) use branch::BranchNorms;
pub(crate) use dense::DenseStyle;
pub(crate) use ends::FINAL_NORM;
pub(crate) use gqa::{GqaNames, GqaStyle, QkNorm};
pub(crate) use hybrid::HybridStyle;
pub(crate) use moe::MoeNames;
pub(crate) use step::Step;
pub(crate) use swiglu::FfnNames;
