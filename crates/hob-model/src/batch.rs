//! What one forward pass is asked to compute: rows of {sequence, position, token}. It must not know pages.

use hob_compute::Token;

/// Names a sequence of one model. A freed id stays invalid when its slot is given to somebody else.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct SeqId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// One token at one position of one sequence.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub sequence: SeqId,
    /// 0 for the first token of the sequence; rows continue where the sequence ends.
    pub position: u32,
    pub token: Token,
    /// Whether this row's logits are wanted.
    pub logits: bool,
    /// Whether `Model::truncate` may take the row back before its sequence runs again. Where one row may, all rows of the
    /// sequence in this batch may: at most `Layout::held_rows` of a recurrent model.
    pub draft: bool,
}

/// The rows of one step. Rows of one sequence are consecutive, in ascending positions from `Model::seq_len`.
/// At most `Layout::chunk_rows` rows, of which at most `Layout::logit_rows` want logits. Keep and refill the vector: a
/// step then allocates nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub rows: Vec<Row>,
}
