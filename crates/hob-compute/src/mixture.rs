//! Argument structs of the verbs behind mixtures of experts.
//!
//! They know shapes and rules; how experts are walked is the device's.

use crate::{Activation, Buf, Weight};

/// How a router's logits become probabilities.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Gating {
    /// Over all experts: qwen3moe, DeepSeek V2.
    Softmax,
    /// Each on its own: DeepSeek V3, glm4moe, lfm2moe.
    Sigmoid,
    /// Selection by logit, then softmax over the selected ones: gpt-oss.
    SoftmaxSelected,
    /// `sqrt(ln(1 + exp(z)))`: DeepSeek V4.
    SqrtSoftplus,
}

/// What ranks a group of experts.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum GroupScore {
    /// Its best expert: DeepSeek V2.
    Best,
    /// The sum of its two best: DeepSeek V3.
    BestTwo,
}

/// Only experts of the best groups may be selected.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Groups of equal size; divides the number of experts.
    pub count: usize,
    /// Groups that stay.
    pub top: usize,
    pub score: GroupScore,
}

/// The rule of a router.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct Routing {
    /// Experts per row.
    pub top_k: usize,
    pub gating: Gating,
    /// `Some(eps)`: weights are divided by `sum + eps` of the selected ones.
    pub normalize: Option<f32>,
    /// Multiplies the weights in the end.
    pub scale: f32,
    pub groups: Option<Groups>,
}

/// Chooses experts for every row. `out[r]` is `top_k` expert ids (ascending, exact small floats), then their weights.
///
/// Selection is by probability plus `bias`, the weights are without it; equal ranks go to the lowest id. A logit that
/// is NaN ranks last and, if selected all the same, has a NaN weight.
#[derive(Copy, Clone, Debug)]
pub struct Route {
    /// `[>= rows, experts]`
    pub logits: Buf,
    pub rows: usize,
    pub rule: Routing,
    /// `[1, experts]`
    pub bias: Option<Weight>,
    /// `[1, experts]`: what an expert's weight is multiplied by in the end (gemma4).
    pub scales: Option<Weight>,
    /// `[>= rows, top_k]`: ids of the experts of every row, in any order, where they are not selected by their ranks (the
    /// hash-routed layers of DeepSeek V4).
    pub chosen: Option<Buf>,
    /// `[>= rows, 2 * top_k]`
    pub out: Buf,
}

/// `out[r] (+)= sum of w * down_e(activation(gate_e x[r]) * up_e x[r])` over the experts e of row r, ascending; every
/// product with its expert's bias, if there are any. Experts without a gate are `down_e activation(up_e x[r])`.
///
/// Numerics: every product is that of `linear`, and a bias is added to it as there; the terms of a row are added to `out` (or to 0) one after the other,
/// `out = out + w * y`, so that neither batch nor threads change a bit.
#[derive(Copy, Clone, Debug)]
pub struct Experts {
    /// `[>= rows, dim]`
    pub x: Buf,
    pub rows: usize,
    /// What [`Route`] wrote, `[>= rows, 2 * top_k]`.
    pub routes: Buf,
    pub top_k: usize,
    /// Like `up`.
    pub gate: Option<Weight>,
    /// [`crate::WeightKind::Experts`], `[count * ff, dim]`.
    pub up: Weight,
    /// `[count * dim, ff]`
    pub down: Weight,
    /// Of gate, up and down, vectors of `count * ff`, `count * ff` and `count * dim`: one expert's behind the other's.
    /// Experts without a gate have none.
    pub biases: Option<[Weight; 3]>,
    pub activation: Activation,
    /// `[>= rows * top_k, ff]`, contents unspecified afterwards.
    pub hidden: Buf,
    /// `[>= rows, dim]`; none of the other buffers.
    pub out: Buf,
    /// Whether `out` is added to (the residual stream) or overwritten.
    pub add: bool,
}
