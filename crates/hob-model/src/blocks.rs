//! Pieces that architectures share: each declares its weights and buffers when it is made, and runs on a step.
//!
//! They know verbs and shapes; they must not know files, pages or the order of layers.

mod beside;
mod branch;
mod compressed;
mod compressor;
mod decoder;
mod delta_net;
mod dense;
mod ends;
mod gqa;
mod hybrid;
mod hyper;
mod latent;
mod layer_input;
mod moe;
mod short_conv;
mod ssm;
mod step;
mod swiglu;

pub(crate) use beside::{Beside, BesideNames};
pub(crate) use branch::{Branch, BranchNorms};
pub(crate) use compressed::{Compressed, RING_SLACK};
pub(crate) use decoder::{Decoder, Layer};
pub(crate) use dense::DenseStyle;
pub(crate) use ends::{Embedding, FINAL_NORM, Head, Norm, Stream};
pub(crate) use gqa::{Gqa, GqaNames, GqaStyle, QkNorm, kv_states};
pub(crate) use hybrid::HybridStyle;
pub(crate) use hyper::{Expand, HyperConnection, HyperNames};
pub(crate) use layer_input::{InputNames, LayerInput, LayerInputs};
pub(crate) use moe::{Moe, MoeNames};
pub(crate) use step::Step;
pub(crate) use swiglu::{FfnNames, FfnShape, Swiglu};
