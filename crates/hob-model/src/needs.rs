//! What an architecture needs to run: the tensors it reads and the buffers it writes, declared once.
//!
//! The same list is checked against the file, loaded, and summed up by the estimator, so the three cannot disagree.
//! It must not know devices.

use hob_compute::WeightKind;

/// How a source spells tensor names.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Naming {
    /// `blk.0.attn_q.weight`
    Gguf,
    /// `model.layers.0.self_attn.q_proj.weight`
    HuggingFace,
}

/// One tensor's name in both spellings: within a layer, or of the whole model. Both are written in full, so that
/// searching the source for a name finds it.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Name {
    pub gguf: &'static str,
    pub hf: &'static str,
}

impl Naming {
    /// A tensor of the whole model.
    pub(crate) fn top(self, name: Name) -> String {
        match self {
            Naming::Gguf => format!("{}.weight", name.gguf),
            Naming::HuggingFace => format!("{}.weight", name.hf),
        }
    }

    /// A tensor of layer `i`; `part` is `weight` or `bias`.
    pub(crate) fn layer(self, i: usize, name: Name, part: &str) -> String {
        match self {
            Naming::Gguf => format!("blk.{i}.{}.{part}", name.gguf),
            Naming::HuggingFace => format!("model.layers.{i}.{}.{part}", name.hf),
        }
    }
}

/// What a weight is for, as the memory bill groups it.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    Attention,
    Ffn,
    /// Embedding table and head.
    Ends,
    /// Norm weights and biases.
    Vectors,
}

impl Group {
    pub const ALL: [Group; 4] = [Group::Attention, Group::Ffn, Group::Ends, Group::Vectors];

    /// The line of the memory bill.
    pub fn title(self) -> &'static str {
        match self {
            Group::Attention => "weights: attention",
            Group::Ffn => "weights: feed-forward",
            Group::Ends => "weights: embedding and head",
            Group::Vectors => "weights: norms and biases",
        }
    }
}

/// A tensor the architecture reads. A tied head reads the embedding's tensor a second time, as another kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    pub name: String,
    pub kind: WeightKind,
    pub group: Group,
    /// 1 for a vector.
    pub rows: usize,
    pub cols: usize,
}

/// Index of a declared weight.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct WeightId(pub usize);

/// Index of a declared buffer.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct BufId(pub usize);

/// How many rows a buffer has.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    /// `Layout::chunk_rows`
    Chunk,
    /// `Layout::logit_rows`
    Logits,
}

/// A declared buffer, `[rows, width]` floats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scratch {
    pub role: &'static str,
    pub rows: Rows,
    pub width: usize,
}

/// Collects declarations while an architecture is built.
#[derive(Clone, Debug)]
pub(crate) struct Needs {
    pub naming: Naming,
    pub slots: Vec<Slot>,
    pub scratch: Vec<Scratch>,
}

impl Needs {
    pub fn new(naming: Naming) -> Self {
        Needs { naming, slots: Vec::new(), scratch: Vec::new() }
    }

    fn slot(&mut self, name: String, kind: WeightKind, group: Group, [rows, cols]: [usize; 2]) -> WeightId {
        self.slots.push(Slot { name, kind, group, rows, cols });
        WeightId(self.slots.len() - 1)
    }

    /// A `[rows, cols]` matrix multiplied by `linear`.
    pub fn matrix(&mut self, name: String, group: Group, shape: [usize; 2]) -> WeightId {
        self.slot(name, WeightKind::Matrix, group, shape)
    }

    /// A `[rows, cols]` table whose rows are gathered.
    pub fn table(&mut self, name: String, shape: [usize; 2]) -> WeightId {
        self.slot(name, WeightKind::Table, Group::Ends, shape)
    }

    /// A `[cols]` vector.
    pub fn vector(&mut self, name: String, cols: usize) -> WeightId {
        self.slot(name, WeightKind::Vector, Group::Vectors, [1, cols])
    }

    /// The buffer of this role and width: layers of one shape share it.
    pub fn scratch(&mut self, role: &'static str, rows: Rows, width: usize) -> BufId {
        let wanted = Scratch { role, rows, width };
        let at = self.scratch.iter().position(|s| *s == wanted).unwrap_or_else(|| {
            self.scratch.push(wanted);
            self.scratch.len() - 1
        });
        BufId(at)
    }
}
