//! What an architecture needs to run: the tensors it reads and the buffers it writes, declared once.
//!
//! The same list is checked against the file, loaded, and summed up by the estimator, so the three cannot disagree.
//! It must not know devices.

use hob_compute::{Recurrence, WeightKind};

use crate::stacked::{ExpertNames, Half, Part, Stacked, forms};

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

    /// A tensor of layer `i` whose name has no `weight` or `bias` added.
    pub(crate) fn in_full(self, i: usize, name: Name) -> String {
        match self {
            Naming::Gguf => format!("blk.{i}.{}", name.gguf),
            Naming::HuggingFace => format!("model.layers.{i}.{}", name.hf),
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
    /// The matrices of mixtures.
    Experts,
    /// Embedding table and head.
    Ends,
    /// What tells every layer of the token itself.
    Inputs,
    /// Norm weights and biases.
    Vectors,
}

impl Group {
    pub const ALL: [Group; 6] =
        [Group::Attention, Group::Ffn, Group::Experts, Group::Inputs, Group::Ends, Group::Vectors];

    /// The line of the memory bill.
    pub fn title(self) -> &'static str {
        match self {
            Group::Attention => "weights: attention",
            Group::Ffn => "weights: feed-forward",
            Group::Experts => "weights: experts",
            Group::Ends => "weights: embedding and head",
            Group::Inputs => "weights: inputs of layers",
            Group::Vectors => "weights: norms and biases",
        }
    }
}

/// The part of a model that a tensor belongs to.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Section {
    Embedding,
    Layer(usize),
    Head,
}

/// A tensor the architecture reads, or consecutive rows of one. A tied head reads the embedding's tensor a second time,
/// as another kind; a fused matrix is read by one slot for each of its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Name of the tensor.
    pub name: String,
    pub kind: WeightKind,
    pub group: Group,
    pub section: Section,
    /// 1 for a vector.
    pub rows: usize,
    pub cols: usize,
    /// Shape of the whole tensor in the file, outermost dimension first.
    pub shape: Vec<usize>,
    /// Where the slot starts in the tensor: a row of a matrix (all outer dimensions counted as rows), an element of a
    /// vector.
    pub first: usize,
    /// How the file stores the values of a vector.
    pub values: Values,
    /// Where the rows stand, if not side by side in one tensor: experts, and rows that a file interleaves with others.
    pub stacked: Option<Stacked>,
}

/// How a file stores the values of a vector.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Values {
    /// As they are.
    Plain,
    /// Less one, as zero-centred norms.
    LessOne,
    /// As the logarithm of their negative: rates of decay.
    LogOfNegative,
    /// Every so many of the tensor's, from [`Slot::first`] on.
    Every(usize),
    /// Not at all: they are ones, of a norm without weights.
    Ones,
    /// As integers, of 0 and below this number.
    Ids { below: usize },
}

impl Slot {
    /// Whether the slot is all of its tensor.
    pub fn is_whole(&self) -> bool {
        self.shape.iter().product::<usize>() == self.rows * self.cols
    }
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
    /// `Layout::chunk_rows` times the experts of a row.
    Routed { top_k: usize },
    /// `Layout::sequences`: what a layer remembers of each, wherever its pages do not.
    Sequences,
    /// As many for each of `Layout::sequences` as there are whole blocks of `ratio` in `Layout::ctx_tokens`, at least one;
    /// one token reads `read` of those there are, or all.
    Entries { ratio: usize, read: Option<usize> },
}

impl Rows {
    /// Whether it is memory of sequences.
    pub fn remembers(self) -> bool {
        matches!(self, Rows::Sequences | Rows::Entries { .. })
    }
}

/// Entries that a sequence of `ctx_tokens` has room for.
pub(crate) fn entry_room(ctx_tokens: usize, ratio: usize) -> usize {
    (ctx_tokens / ratio).max(1)
}

/// Index of a declared state.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct StateId(pub usize);

/// What a layer remembers of each sequence in fixed size, wherever its pages do not.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub recurrence: Recurrence,
    pub layer: usize,
}

impl Remembered {
    /// Bytes that one decode step moves: it is read and written.
    pub fn step_bytes(&self) -> u64 {
        2 * 4 * self.recurrence.state() as u64
    }
}

/// A declared buffer, `[rows, width]` floats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scratch {
    pub role: &'static str,
    pub rows: Rows,
    pub width: usize,
    /// The layer whose memory it is; `None` for what layers share.
    pub layer: Option<usize>,
}

/// Collects declarations while an architecture is built.
#[derive(Clone, Debug)]
pub(crate) struct Needs {
    pub naming: Naming,
    pub slots: Vec<Slot>,
    pub scratch: Vec<Scratch>,
    pub remembered: Vec<Remembered>,
    zero_centred: bool,
    section: Section,
}

impl Needs {
    pub fn new(naming: Naming) -> Self {
        let section = Section::Embedding;
        let (slots, scratch, remembered) = (Vec::new(), Vec::new(), Vec::new());
        Needs { naming, slots, scratch, remembered, zero_centred: false, section }
    }

    /// What is declared from here on belongs to `section`.
    pub fn begin(&mut self, section: Section) {
        self.section = section;
    }

    /// From here on norms are zero-centred: Hugging Face checkpoints store their weights less one. GGUF converters add
    /// it.
    pub fn zero_centred_norms(&mut self) {
        self.zero_centred = self.naming == Naming::HuggingFace;
    }

    fn slot(&mut self, name: String, kind: WeightKind, group: Group, [rows, cols]: [usize; 2]) -> WeightId {
        let shape = if kind == WeightKind::Vector { vec![cols] } else { vec![rows, cols] };
        let section = self.section;
        self.push(Slot {
            name,
            kind,
            group,
            section,
            rows,
            cols,
            shape,
            first: 0,
            values: Values::Plain,
            stacked: None,
        })
    }

    fn push(&mut self, slot: Slot) -> WeightId {
        self.slots.push(slot);
        WeightId(self.slots.len() - 1)
    }

    /// A `[rows, cols]` matrix multiplied by `linear`.
    pub fn matrix(&mut self, name: String, group: Group, shape: [usize; 2]) -> WeightId {
        self.slot(name, WeightKind::Matrix, group, shape)
    }

    /// Rows `first..first + rows` of a tensor of `shape`, as a `[rows, cols]` matrix multiplied by `linear`. All
    /// dimensions of `shape` but the last count as rows: expert `e` of `[experts, rows, cols]` starts at `e * rows`.
    pub fn matrix_part(
        &mut self,
        name: String,
        group: Group,
        shape: &[usize],
        first: usize,
        [rows, cols]: [usize; 2],
    ) -> WeightId {
        let (kind, shape, section) = (WeightKind::Matrix, shape.to_vec(), self.section);
        self.push(Slot {
            name,
            kind,
            group,
            section,
            rows,
            cols,
            shape,
            first,
            values: Values::Plain,
            stacked: None,
        })
    }

    /// A `[rows, cols]` table whose rows are gathered.
    pub fn table(&mut self, name: String, group: Group, shape: [usize; 2]) -> WeightId {
        self.slot(name, WeightKind::Table, group, shape)
    }

    /// The weight of a norm that has none: `[cols]` ones.
    pub fn ones(&mut self, cols: usize) -> WeightId {
        let id = self.vector("(ones)".to_string(), cols);
        self.slots[id.0].values = Values::Ones;
        id
    }

    /// A `[rows, cols]` table of whole numbers below `below`, as floats.
    pub fn ids(&mut self, name: String, shape: [usize; 2], below: usize) -> WeightId {
        let id = self.table(name, Group::Experts, shape);
        self.slots[id.0].values = Values::Ids { below };
        id
    }

    /// A `[cols]` vector.
    pub fn vector(&mut self, name: String, cols: usize) -> WeightId {
        self.slot(name, WeightKind::Vector, Group::Vectors, [1, cols])
    }

    /// `[cols]` of a vector of `of` values, from `first` on.
    pub fn vector_part(&mut self, name: String, of: usize, first: usize, cols: usize) -> WeightId {
        let (kind, group) = (WeightKind::Vector, Group::Vectors);
        self.push(Slot {
            name,
            kind,
            group,
            section: self.section,
            rows: 1,
            cols,
            shape: vec![of],
            first,
            values: Values::Plain,
            stacked: None,
        })
    }

    /// The `[cols]` weight of a norm.
    pub fn norm(&mut self, name: String, cols: usize) -> WeightId {
        let id = self.vector(name, cols);
        if self.zero_centred {
            self.slots[id.0].values = Values::LessOne;
        }
        id
    }

    /// Every `step`-th of the values of a tensor of `shape`, from `first` on.
    pub fn strided(&mut self, name: String, shape: Vec<usize>, first: usize, step: usize) -> WeightId {
        let id = self.vector(name, shape.iter().product::<usize>() / step);
        let slot = &mut self.slots[id.0];
        (slot.shape, slot.first) = (shape, first);
        if step > 1 {
            slot.values = Values::Every(step);
        }
        id
    }

    /// Negative rates of decay, a vector that the file has in some shape.
    pub fn rates(&mut self, name: String, shape: Vec<usize>, values: Values) -> WeightId {
        let id = self.flat(name, shape.iter().product(), shape);
        self.slots[id.0].values = values;
        id
    }

    /// A matrix of `cols` columns whose rows are gathered from runs of a tensor's: the first of `forms` whose tensor
    /// the file has. All forms have as many rows.
    pub fn gathered(&mut self, group: Group, cols: usize, forms: Vec<Vec<Part>>) -> WeightId {
        let form = forms.first().map_or(&[][..], Vec::as_slice);
        let first = form.first();
        self.push(Slot {
            name: first.map(|p| p.name.clone()).unwrap_or_default(),
            kind: WeightKind::Matrix,
            group,
            section: self.section,
            rows: form.iter().map(|p| p.rows).sum(),
            cols,
            shape: first.map(|p| p.shape.clone()).unwrap_or_default(),
            first: first.map_or(0, |p| p.first),
            values: Values::Plain,
            stacked: Some(Stacked { used: 0, forms }),
        })
    }

    /// A matrix of `[rows, cols]` for each of `count` heads, gathered as by [`Needs::gathered`].
    pub fn heads(&mut self, count: usize, cols: usize, forms: Vec<Vec<Part>>) -> WeightId {
        let id = self.gathered(Group::Attention, cols, forms);
        self.slots[id.0].kind = WeightKind::Heads { count };
        id
    }

    /// A vector of `len` values that the file has in more dimensions.
    pub fn flat(&mut self, name: String, len: usize, shape: Vec<usize>) -> WeightId {
        let id = self.vector(name, len);
        self.slots[id.0].shape = shape;
        id
    }

    /// One of the matrices of layer `i`'s experts, `[count, rows, cols]`, of which a token reads `used`.
    pub fn experts(
        &mut self,
        i: usize,
        names: ExpertNames,
        half: Half,
        shape: [usize; 3],
        used: usize,
    ) -> WeightId {
        let [count, rows, cols] = shape;
        let forms = forms(self.naming, i, names, half, shape);
        let name = match self.naming {
            Naming::Gguf => format!("blk.{i}.{}.weight", names.gguf),
            Naming::HuggingFace => format!("model.layers.{i}.{}.weight", names.hf_each.replace("{}", "*")),
        };
        self.push(Slot {
            name,
            kind: WeightKind::Experts { count },
            group: Group::Experts,
            section: self.section,
            rows: count * rows,
            cols,
            shape: shape.to_vec(),
            first: 0,
            values: Values::Plain,
            stacked: Some(Stacked { used, forms }),
        })
    }

    /// The bias of one of the matrices of layer `i`'s experts, `[count, width]`. In safetensors gate and up take turns.
    pub fn expert_bias(
        &mut self,
        i: usize,
        names: ExpertNames,
        half: Half,
        [count, width]: [usize; 2],
    ) -> WeightId {
        match self.naming {
            Naming::Gguf => {
                let name = format!("blk.{i}.{}.bias", names.gguf);
                self.strided(name, vec![count, width], 0, 1)
            }
            Naming::HuggingFace => {
                let name = format!("model.layers.{i}.{}_bias", names.hf_stacked);
                self.strided(name, vec![count, half.of * width], half.index, half.of)
            }
        }
    }

    /// What a layer remembers of each sequence, and room for records of rows that may be taken back. State of positions
    /// before 0 counts as zero, so it is never cleared.
    pub fn state(&mut self, recurrence: Recurrence) -> StateId {
        let layer = self.layer().unwrap_or(0);
        self.remembered.push(Remembered { recurrence, layer });
        StateId(self.remembered.len() - 1)
    }

    /// A layer's own buffer of the last positions of each sequence, one row per sequence, addressed by position. Positions
    /// before 0 are not read, so it is never cleared.
    pub fn ring(&mut self, role: &'static str, width: usize) -> BufId {
        self.remember(role, Rows::Sequences, width)
    }

    /// A layer's own buffer of an entry for every `ratio` positions of a sequence, of which one token reads `read`, or all.
    pub fn entries(&mut self, role: &'static str, ratio: usize, width: usize, read: Option<usize>) -> BufId {
        self.remember(role, Rows::Entries { ratio, read }, width)
    }

    fn remember(&mut self, role: &'static str, rows: Rows, width: usize) -> BufId {
        let layer = self.layer();
        self.scratch.push(Scratch { role, rows, width, layer });
        BufId(self.scratch.len() - 1)
    }

    fn layer(&self) -> Option<usize> {
        match self.section {
            Section::Layer(layer) => Some(layer),
            Section::Embedding | Section::Head => None,
        }
    }

    /// The buffer of this role and width: layers of one shape share it.
    pub fn scratch(&mut self, role: &'static str, rows: Rows, width: usize) -> BufId {
        let wanted = Scratch { role, rows, width, layer: None };
        let at = self.scratch.iter().position(|s| *s == wanted).unwrap_or_else(|| {
            self.scratch.push(wanted);
            self.scratch.len() - 1
        });
        BufId(at)
    }
}
