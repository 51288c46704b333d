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

impl Footprint {
    /// Adds what another device holds; lines of one name become one.
    pub(crate) fn add(&mut self, other: Footprint) {
        for line in other.lines {
            match self.lines.iter_mut().find(|l| l.name == line.name) {
                Some(mine) => mine.bytes = mine.bytes.saturating_add(line.bytes),
                None => self.lines.push(line),
            }
        }
        self.weights = self.weights.saturating_add(other.weights);
        self.kv = self.kv.saturating_add(other.kv);
        self.state = self.state.saturating_add(other.state);
        self.scratch = self.scratch.saturating_add(other.scratch);
        self.total = self.total.saturating_add(other.total);
        self.mapped = self.mapped.saturating_add(other.mapped);
    }
}
