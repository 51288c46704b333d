//! Bytes by line: the result of the one estimator of memory, made by `ModelInfo::footprint`.

/// One line of a memory bill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub name: String,
    pub bytes: u64,
}

/// What a model will hold under a layout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// The bill; adds up to `total`.
    pub lines: Vec<Line>,
    /// Weights in device memory, in bytes.
    pub weights: u64,
    /// KV pages, in bytes.
    pub kv: u64,
    /// What layers remember of the sequences in fixed size, and snapshots of it, in bytes.
    pub state: u64,
    /// Activation buffers, in bytes.
    pub scratch: u64,
    /// `weights + kv + state + scratch`.
    pub total: u64,
    /// Bytes of tables whose rows are gathered from the mapped file: page cache that the system may drop, in no line.
    pub mapped: u64,
}
