//! What lies where: the sizes a plan chooses before a model is loaded. It must not know a model.

use hob_compute::{PAGE_POSITIONS, SlotRows};
use hob_quant::KvFormat;

use crate::{ModelError, Placement, Result};

/// Formats of K and V of one layer.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KvPair {
    pub k: KvFormat,
    pub v: KvFormat,
}

impl KvPair {
    /// Both sides in one format.
    pub fn both(format: KvFormat) -> KvPair {
        KvPair { k: format, v: format }
    }
}

/// Formats wished for, by layer: none is f16 everywhere, one counts for all layers, else one per layer of the model.
/// What a layer gets is [`crate::ModelInfo::kv_pair`]'s to say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KvLayout(pub Vec<KvPair>);

impl KvLayout {
    /// The same for every layer.
    pub fn uniform(pair: KvPair) -> KvLayout {
        KvLayout(vec![pair])
    }

    /// What is wished for layer `layer`.
    pub fn wished(&self, layer: usize) -> KvPair {
        match self.0.as_slice() {
            [] => KvPair::default(),
            [all] => *all,
            layers => layers.get(layer).copied().unwrap_or_default(),
        }
    }
}

/// Sizes that a load reserves. [`crate::ModelInfo::footprint`] turns them into bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Tokens one sequence may grow to.
    pub ctx_tokens: usize,
    /// Sequences that may live at once.
    pub sequences: usize,
    /// Most rows of one step; longer prompts take several steps.
    pub chunk_rows: usize,
    /// Most rows of one step that get logits.
    pub logit_rows: usize,
    /// Most rows of one sequence in a step that a recurrent model can take back: drafts, and rows recorded before their
    /// token was known. Each costs a record per layer and sequence; other models take back any.
    pub held_rows: usize,
    /// How K and V are kept.
    pub kv: KvLayout,
    /// Positions of other conversations' prefixes kept in memory beside the live sequences.
    pub cached_tokens: usize,
    /// Threads of the device. No size depends on it; it stands here because the forecast reads it.
    pub threads: usize,
    /// Which device has what.
    pub placement: Placement,
}

impl Layout {
    /// Rows of a prefill step when nothing else was chosen: enough to amortize unpacking a weight tile, small enough
    /// that scratch stays at some ten MiB.
    pub const CHUNK_ROWS: usize = 512;

    /// One sequence of `ctx_tokens`, one row of logits, one thread.
    pub fn new(ctx_tokens: usize) -> Self {
        Layout {
            ctx_tokens,
            sequences: 1,
            chunk_rows: Self::CHUNK_ROWS,
            logit_rows: 1,
            held_rows: 0,
            kv: KvLayout::default(),
            cached_tokens: 0,
            threads: 1,
            placement: Placement::default(),
        }
    }

    /// KV pages of one sequence in one layer.
    pub fn pages_per_sequence(&self) -> usize {
        self.ctx_tokens.div_ceil(PAGE_POSITIONS)
    }

    /// # Errors
    /// [`ModelError::Layout`] when a size is zero, or positions do not fit 32 bits.
    pub(crate) fn check(&self) -> Result<()> {
        let sizes = [
            ("ctx_tokens", self.ctx_tokens),
            ("sequences", self.sequences),
            ("chunk_rows", self.chunk_rows),
            ("logit_rows", self.logit_rows),
            // None is a size here.
            ("cached_tokens + 1", self.cached_tokens.saturating_add(1)),
        ];
        for (name, size) in sizes {
            if size == 0 || u32::try_from(size).is_err() {
                return Err(ModelError::layout(format!("{name} between 1 and {}", u32::MAX), size));
            }
        }
        if self.held_rows > SlotRows::MAX_HELD {
            let expected = format!("held_rows of at most {}", SlotRows::MAX_HELD);
            return Err(ModelError::layout(expected, self.held_rows));
        }
        Ok(())
    }
}
