//! Argument structs of the verbs behind compressed attention (DeepSeek V4): blocks of positions become entries, an indexer
//! selects among them, and a row attends to a window of positions and to the entries.
//!
//! They know shapes, rules and which rows of a state buffer belong to whom; where state lies is the device's.
//!
//! Two kinds of state, both addressed by position, so that going back a few positions needs no copy: *rings* keep the rows
//! of the last positions, `[slots, ring * width]` with position p in row `p % ring`; *entries* are appended, `[slots *
//! capacity, dim]` with entry w of a sequence in row `slot * capacity + w`.

use crate::{Buf, Rotation, SlotRows, Weight};

/// How positions become entries.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct CompressShape {
    /// Positions of a block, and so of an entry.
    pub ratio: usize,
    /// Whether an entry is made of two blocks: of the first half of the projections of the block before, and of the second
    /// half of its own. There is no block before the first.
    pub overlapped: bool,
    /// Of an entry.
    pub dim: usize,
}

impl CompressShape {
    /// Largest dimension of an entry: a workgroup of a GPU holds one.
    pub const MAX_DIM: usize = 2048;

    /// Floats of a row of the projections, of K and of the gate each.
    pub fn width(&self) -> usize {
        if self.overlapped { 2 * self.dim } else { self.dim }
    }

    /// Positions that an entry is made of.
    pub fn span(&self) -> usize {
        if self.overlapped { 2 * self.ratio } else { self.ratio }
    }

    /// Entries of a sequence whose positions `0..len` are known: full blocks.
    pub fn entries(&self, len: usize) -> usize {
        len / self.ratio
    }
}

/// Appends an entry for every block that the rows complete: per channel `sum over its positions j of softmax_j(gate + bias)
/// * kv`, normed, and its last dimensions rotated by the block's first position. Then the rows join the ring.
///
/// Numerics: see [`crate::reference::compressed`].
pub struct Compress<'a> {
    pub shape: CompressShape,
    /// `[rows, shape.width()]`
    pub kv: Buf,
    /// `[rows, shape.width()]`
    pub gate: Buf,
    /// Vector of `ratio * shape.width()`: what is added to the gate, by place in the block.
    pub bias: Weight,
    /// Vector of `dim`: the weight of the entries' norm.
    pub norm: Weight,
    pub eps: f32,
    /// Of the last dimensions of an entry.
    pub rotation: Rotation,
    /// The ring: `[slots, ring * 2 * shape.width()]`, a row of kv and one of the gate; at least `shape.span()` positions.
    pub recent: Buf,
    /// `[slots * capacity, dim]`
    pub entries: Buf,
    pub seqs: &'a [SlotRows],
}

/// For every row the `top_k` entries of the highest score that it sees, in ascending order, then -1 where it sees fewer:
/// `score = scale * sum over h of weights[h] * max(0, q[h] . entry)`. Equal scores go to the lowest entry; NaN ranks
/// last. A row at position p sees the entries of full blocks within `0..=p`.
pub struct Select<'a> {
    /// `[rows, heads * dim]`
    pub q: Buf,
    /// `[rows, heads]`
    pub weights: Buf,
    pub heads: usize,
    pub scale: f32,
    /// `[slots * capacity, dim]`
    pub entries: Buf,
    /// Entries that a sequence has room for.
    pub capacity: usize,
    /// Positions of an entry.
    pub ratio: usize,
    pub seqs: &'a [SlotRows],
    /// `[rows, top_k]`
    pub out: Buf,
}

/// The entries that rows attend to.
#[derive(Copy, Clone, Debug)]
pub struct Entries {
    /// `[slots * capacity, head_dim]`
    pub entries: Buf,
    /// Positions of an entry.
    pub ratio: usize,
    /// What [`Select`] gave; all that a row sees where there is none.
    pub chosen: Option<Buf>,
}

/// Attention of every row to the last `window` positions of its sequence, its own included, and to entries; all heads
/// share one head of K, which is V as well. Then the rows join the ring.
///
/// Numerics: scores in ascending positions, then entries; one softmax with the sink; see
/// [`crate::reference::compressed`].
pub struct AttendEntries<'a> {
    /// `[rows, heads * head_dim]`
    pub q: Buf,
    /// `[rows, head_dim]`
    pub kv: Buf,
    pub heads: usize,
    pub head_dim: usize,
    pub scale: f32,
    /// At least 1.
    pub window: usize,
    /// Vector of `heads`: a logit of every head that takes its share of the softmax and gives no value.
    pub sinks: Weight,
    /// The ring of kv: `[slots, ring * head_dim]`, at least `window` positions.
    pub recent: Buf,
    pub entries: Option<Entries>,
    pub seqs: &'a [SlotRows],
    /// `[rows, heads * head_dim]`
    pub out: Buf,
}
