//! Pieces that architectures share: each declares its weights and buffers when it is made, and runs on a step.
//!
//! They know verbs and shapes; they must not know files, pages or the order of layers.

mod dense;
mod ends;
mod gqa;
mod step;
mod swiglu;

pub(crate) use dense::DenseLayer;
pub(crate) use ends::{Embedding, Head, Stream};
pub(crate) use gqa::kv_states;
pub(crate) use step::{RopeTable, Step};
