//! Argument structs of the verbs behind hyper-connections: a residual stream of several streams, mixed into one row before
//! every sublayer and spread over all of them after it (Xie et al. 2026, "mHC: Manifold-Constrained Hyper-Connections").
//!
//! They know shapes and rules; which sublayer stands between them is the model's.

use crate::{Buf, Weight};

/// Makes one row of the streams of every row: `out = sum over i of pre[i] * x[i]`, and says how they are to be mixed
/// after the sublayer. With `n` streams and the logits l of a row, `a[i] = scale * l[i] + base[i]`:
///
/// ```text
/// pre[i]  = sigmoid(a[i]) + eps                        i of 0..n, by scale 0
/// post[i] = 2 sigmoid(a[n + i])                        by scale 1
/// comb    = softmax of the rows of a[2n..] + eps       by scale 2, then columns divided by their sum + eps, and
///           `iterations - 1` times rows, then columns
/// ```
///
/// Numerics: see [`crate::reference::hyper`].
pub struct HyperMix {
    /// `[>= rows, streams * dim]`
    pub x: Buf,
    pub rows: usize,
    /// At most [`HyperMix::MAX_STREAMS`].
    pub streams: usize,
    /// `[>= rows, streams * (2 + streams)]`, or `[>= rows, streams]` where there are no `weights`.
    pub logits: Buf,
    /// A vector as wide as the logits.
    pub base: Weight,
    /// Vector of 3; of 1 where there are no `weights`.
    pub scale: Weight,
    pub eps: f32,
    /// Divisions of the columns, at least 1.
    pub iterations: usize,
    /// `[>= rows, dim]`
    pub out: Buf,
    /// `[>= rows, streams * (1 + streams)]`: post, then comb row by row. None at the end of a model.
    pub weights: Option<Buf>,
}

impl HyperMix {
    /// Most streams.
    pub const MAX_STREAMS: usize = 8;
}

/// Spreads a row over the streams: `x[k] = post[k] * y + sum over j of comb[j][k] * x[j]`, the sum in ascending j by fma.
/// Without weights every stream becomes y: the beginning of a model.
pub struct HyperExpand {
    /// `[>= rows, dim]`
    pub y: Buf,
    pub rows: usize,
    pub streams: usize,
    /// What [`HyperMix`] gave.
    pub weights: Option<Buf>,
    /// `[>= rows, streams * dim]`, in place.
    pub x: Buf,
}
