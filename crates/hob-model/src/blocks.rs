//! Pieces that architectures share: each declares its weights and buffers when it is made, and runs on a step.
//!
//! They know verbs and shapes; they must not know files, pages or the order of layers.

mod beside;
mod branch;
mod decoder;
mod delta_net;
mod dense;
mod ends;
mod gqa;
mod hybrid;
mod layer_input;
mod moe;
mod short_conv;
mod step;
mod swiglu;

pub(crate) use beside::{Beside, BesideNames};
pub(crate) use branch::{Branch, BranchNorms};
pub(crate) use decoder::{Decoder, Layer};
pub(crate) use dense::DenseStyle;
pub(crate) use ends::{FINAL_NORM, Stream};
pub(crate) use gqa::{Gqa, GqaNames, GqaStyle, QkNorm};
pub(crate) use hybrid::HybridStyle;
pub(crate) use layer_input::{InputNames, LayerInput, LayerInputs};
pub(crate) use moe::MoeNames;
pub(crate) use step::Step;
pub(crate) use swiglu::{FfnNames, FfnShape, Swiglu};
