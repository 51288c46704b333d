//! The argument struct of every verb. Shapes stand beside each field; `rows` is always the number of batch rows.

use crate::{Buf, Draw, PAGE_POSITIONS, Page, Weight, math};

/// A token of a batch row: known to the host, or the one that a `pick` chose on the device.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Token {
    Host(u32),
    /// What the last `pick` chose for this row of it.
    Device(u32),
}

/// `out[r] = table[tokens[r]] * scale`.
pub struct Embed<'a> {
    pub table: Weight,
    pub tokens: &'a [Token],
    /// `[tokens.len(), table.cols]`
    pub out: Buf,
    pub scale: f32,
}

/// RMS norm of groups of `weight.cols` floats: `out = x / sqrt(mean(x^2) + eps) * weight`.
/// A whole row is one group for a layer norm; `row width / head_dim` groups for a per-head norm.
pub struct Norm {
    /// `[rows, groups * weight.cols]`
    pub x: Buf,
    pub rows: usize,
    pub groups: usize,
    pub weight: Weight,
    pub eps: f32,
    /// Same shape as `x`; may be `x` itself.
    pub out: Buf,
}

/// One weight of a `linear` and where its product goes.
#[derive(Copy, Clone, Debug)]
pub struct Product {
    /// `[out_width, in_width]`
    pub weight: Weight,
    /// `[1, out_width]` vector.
    pub bias: Option<Weight>,
    /// `[rows, out_width]`; never the input.
    pub out: Buf,
}

/// What happens to the products of a `linear` before they are stored.
#[derive(Copy, Clone, Debug, PartialEq)]
pub enum Combine {
    /// `out = y + bias`
    Store,
    /// `out += y + bias` (the residual stream)
    Add,
    /// Two products, gate and up: `out[0] = activation(gate) * up`, as [`Activation::gated`] has it; `out[1]` is not
    /// written.
    Gated(Activation),
}

/// What becomes of a gate and the value that it lets through.
#[derive(Copy, Clone, Debug, PartialEq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`
    Silu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// `max(x, 0)^2` (So et al. 2021, "Primer").
    ReluSquared,
    /// gpt-oss: `g / (1 + exp(-alpha g)) * (u + 1)` with the gate `g` at most `limit` and `u` within `-limit..=limit`;
    /// DeepSeek V4: the same without the 1, `plus_one` says which.
    ClampedSwiglu { alpha: f32, limit: f32, plus_one: bool },
}

impl Activation {
    /// `activation(gate) * up`.
    pub fn gated(self, gate: f32, up: f32) -> f32 {
        match self {
            Activation::Silu => up * math::silu(gate),
            Activation::GeluTanh => up * math::gelu_tanh(gate),
            Activation::ReluSquared => up * math::relu_squared(gate),
            Activation::ClampedSwiglu { alpha, limit, plus_one } => {
                let plus = if plus_one { 1.0 } else { 0.0 };
                math::clamped_swiglu(gate, up, (alpha, limit), plus)
            }
        }
    }

    /// `activation(x)`, where nothing is let through; gpt-oss's is its gate alone.
    pub fn alone(self, x: f32) -> f32 {
        match self {
            Activation::Silu => math::silu(x),
            Activation::GeluTanh => math::gelu_tanh(x),
            Activation::ReluSquared => math::relu_squared(x),
            Activation::ClampedSwiglu { alpha, limit, .. } => {
                math::clamped_swiglu(x, 0.0, (alpha, limit), 1.0)
            }
        }
    }
}

/// One input, several weights of mixed formats: q+k+v, or gate+up, or one matrix.
pub struct Linear<'a> {
    /// `[>= first_row + rows, in_width]`
    pub x: Buf,
    /// First input row; output rows start at 0.
    pub first_row: usize,
    pub rows: usize,
    pub products: &'a [Product],
    pub combine: Combine,
}

/// A product of its own for every head: `out[r][h] = W_h x[r][h]`, each as `linear` multiplies.
pub struct Heads {
    /// `[>= rows, heads * in_width]`
    pub x: Buf,
    pub rows: usize,
    /// [`crate::WeightKind::Heads`], `[heads * out_width, in_width]`.
    pub weight: Weight,
    /// `[>= rows, heads * out_width]`; never the input.
    pub out: Buf,
}

/// Which dimensions a rotation pairs.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// `(2i, 2i+1)`
    Interleaved,
    /// `(i, i + rotary/2)`
    Half,
}

/// Rotates `2 * freqs.cols` dimensions of every head in place, from dimension `first` on.
/// Angle of pair `i` at position `p` is `p * freqs[i]`; sine and cosine are multiplied by `magnitude`.
pub struct Rope<'a> {
    /// `[rows, heads * head_dim]`
    pub x: Buf,
    pub heads: usize,
    pub head_dim: usize,
    /// The first dimension that rotates: 0 in most models.
    pub first: usize,
    /// Whether the rotation is undone: by the negative angle.
    pub back: bool,
    /// Position of each row.
    pub positions: &'a [u32],
    /// `[1, rotary/2]` angular frequencies, uploaded by the model.
    pub freqs: Buf,
    pub pairs: RopePairs,
    pub magnitude: f32,
}

/// Consecutive rows of a batch that belong to one sequence, with that sequence's pages of one layer.
#[derive(Copy, Clone, Debug)]
pub struct SeqRows<'a> {
    /// First batch row.
    pub row: usize,
    pub rows: usize,
    /// Position of the first row; the following rows are at the following positions.
    pub position: usize,
    /// Pages of positions 0.., enough for `position + rows`. A verb looks only at those it needs: `append_kv` at the
    /// pages it writes, `attend` at those from [`SeqRows::first_page`] on. The others may be [`Page::RELEASED`], or
    /// anything.
    pub pages: &'a [Page],
}

impl SeqRows<'_> {
    /// The first position that any of the rows sees.
    pub fn first_seen(&self, window: Option<usize>) -> usize {
        window.map_or(0, |w| self.position.saturating_add(1).saturating_sub(w))
    }

    /// Index of the first page that `attend` reads: those before it may have been released.
    pub fn first_page(&self, window: Option<usize>) -> usize {
        self.first_seen(window) / PAGE_POSITIONS
    }
}

/// Writes K and V rows to their positions, in the formats of the pages: see [`hob_quant::KvFormat`]. Pages of one call
/// have the same formats; page 0 of a sequence comes from a pool of its own where [`crate::PageSpec::has_first`].
pub struct AppendKv<'a> {
    /// `[rows, kv_heads * head_dim]`
    pub k: Buf,
    /// `[rows, kv_heads * head_dim]`; `k` itself where pages store V within K ([`crate::PageSpec::latent`]).
    pub v: Buf,
    pub seqs: &'a [SeqRows<'a>],
}

/// Causal attention of every row over its own sequence's positions `0..=position`, or the last `window` of them.
///
/// Numerics: the score of a position is `q . k` as its format multiplies, scaled and capped; each absolute page gives a
/// partial (maximum, sum, weighted V) from the positions that the row sees, ascending; partials are folded in page order
/// from the first page that holds a visible position, and a sink joins last.
/// See [`crate::reference::attention`] for the exact operations in every format.
pub struct Attend<'a> {
    /// `[rows, heads * head_dim]`
    pub q: Buf,
    /// `[rows, heads * value_dim]`, where V has as many dimensions as K unless it is a part of it
    /// ([`crate::PageSpec::value_dim`]).
    pub out: Buf,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
    /// Positions a row sees, its own included: `p - window + 1 ..= p`, at least 1. `None` is all of them.
    pub window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)` after the scale; finite and positive.
    pub softcap: Option<f32>,
    /// `[1, heads]` vector of logits that join the softmax's sum without a value (gpt-oss); neither scaled nor capped.
    pub sinks: Option<Weight>,
    pub seqs: &'a [SeqRows<'a>],
}

/// The norm of every head of q or k, before it is rotated; in place.
#[derive(Copy, Clone, Debug)]
pub struct HeadNorm {
    pub weight: Weight,
    /// Heads, each with its own norm; 1 is a norm over the whole row.
    pub groups: usize,
    pub eps: f32,
}

/// A rotation as [`Rope`] has it.
#[derive(Copy, Clone, Debug)]
pub struct Rotation {
    pub freqs: Buf,
    pub pairs: RopePairs,
    pub magnitude: f32,
}

/// What a layer's attention does with the q, k and v of a batch. A backend may do it all at once; the meaning is that of
/// the verbs one after the other: see [`crate::Compute::attend_new`].
pub struct AttendNew<'a> {
    /// Of the q that norm and rotation leave. Its `seqs` name all batch rows, whose k and v are appended first.
    pub attend: Attend<'a>,
    /// `[rows, kv_heads * head_dim]`
    pub k: Buf,
    /// `[rows, kv_heads * head_dim]`, or `k`: see [`AppendKv::v`].
    pub v: Buf,
    /// Of q and of k.
    pub norms: Option<[HeadNorm; 2]>,
    pub rotation: Option<Rotation>,
    /// Position of each row.
    pub positions: &'a [u32],
}

/// What stands between the products of a latent attention (DeepSeek-V2) and its pages: the latent's norm, the rotations of
/// queries and key, and the joins. A backend may do it all at once; the meaning is that of the verbs one after the other:
/// see [`crate::Compute::latent_rows`].
pub struct LatentRows<'a> {
    /// `[rows, heads * rank]`: of queries, what meets the latent.
    pub wide: Buf,
    /// `[rows, heads * rotary]`: of queries, what is rotated.
    pub rotated: Buf,
    /// `[rows, rank]`
    pub latent: Buf,
    /// `[rows, rotary]`: the key that all heads share.
    pub key: Buf,
    pub heads: usize,
    /// Dimensions of `key`.
    pub rotary: usize,
    /// Of the latent; one group.
    pub norm: HeadNorm,
    /// Of all `rotary` dimensions.
    pub rotation: Option<Rotation>,
    /// Position of each row.
    pub positions: &'a [u32],
    /// `[rows, heads * (rank + rotary)]`
    pub q: Buf,
    /// `[rows, rank + rotary]`
    pub k: Buf,
}

/// Elementwise work on whole rows.
#[derive(Copy, Clone, Debug)]
pub enum Map {
    /// `out = a + b`
    Add { a: Buf, b: Buf, out: Buf, rows: usize },
    /// `out = a * factor`
    Scale { a: Buf, factor: f32, out: Buf, rows: usize },
    /// `out = tanh(a / cap) * cap`, with `math::tanh`; `cap` is finite and positive.
    Softcap { a: Buf, cap: f32, out: Buf, rows: usize },
    /// `out (+)= a * sigmoid(gate)`. The gate is another buffer, whose width divides that of `a`: each of its values is for
    /// as many neighbours (a row's, a head's, or one). `out` may be `a`, unless it is added to.
    SigmoidGate { a: Buf, gate: Buf, out: Buf, add: bool, rows: usize },
    /// `out = activation(a) * b[..., first..first + width]`, as [`Activation::gated`] has it, where `width` is that of `a`
    /// and `out`, which may be one; `b` is another.
    Gate { a: Buf, b: Buf, first: usize, activation: Activation, out: Buf, rows: usize },
    /// `out = activation(a)`, as [`Activation::alone`] has it; `out` may be `a`.
    Activate { a: Buf, activation: Activation, out: Buf, rows: usize },
    /// `out[g] = a[g] ++ b[g]` for each of `groups` equal parts of every row; three buffers.
    Join { a: Buf, b: Buf, groups: usize, out: Buf, rows: usize },
    /// Copies one row: `out[to] = a[from]`.
    CopyRow { a: Buf, from: usize, out: Buf, to: usize },
}

/// For each of `rows` rows of logits: the `k` largest (ties: lowest id first), the log-sum-exp of the whole row, and the
/// token that follows.
pub struct Pick<'a> {
    /// `[>= rows, vocab]`
    pub logits: Buf,
    pub rows: usize,
    /// 1 is argmax; at most [`Pick::MAX_K`].
    pub k: usize,
    /// How the token of each row is chosen among its `k` largest, `[rows]`; empty takes the largest of every row.
    pub draws: &'a [Draw],
}

impl Pick<'_> {
    pub const MAX_K: usize = 256;
}

/// Results of `pick`: row-major `[rows, k]`. Reused between steps so that a step allocates nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Picked {
    pub k: usize,
    pub tokens: Vec<u32>,
    pub logits: Vec<f32>,
    /// `[rows]`
    pub log_sum_exp: Vec<f32>,
    /// `[rows]`: what was drawn; [`Token::Device`] names these.
    pub chosen: Vec<u32>,
}

/// What a device holds, in bytes.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldBytes {
    pub weights: u64,
    pub buffers: u64,
    pub pages: u64,
}
