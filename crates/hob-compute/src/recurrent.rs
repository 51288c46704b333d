//! Argument structs of the verbs that remember a sequence in fixed size: short convolutions, the gated delta rule and
//! selective state spaces.
//!
//! They know shapes, rules and which row of a state buffer belongs to whom; where state lies is the device's.
//!
//! Rows may be held: the state stays before them, what each would do to it is recorded, and the next call takes up as many
//! records as count ([`SlotRows::accepted`]) with the operations that a plain row does, so that a draft that was not
//! accepted leaves no trace in any bit. State is read once and written once in a call, held rows or not.

use crate::{Buf, Weight};

/// What becomes of a sequence's state when its rows have been run.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Commit {
    /// It moves past them.
    #[default]
    Now,
    /// It stays before them until the next call says how many of them count. Held rows are computed row by row.
    Hold,
}

/// Consecutive rows of a batch that belong to one sequence, with the row of the state buffers that is the sequence's.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct SlotRows {
    /// First batch row.
    pub row: usize,
    pub rows: usize,
    /// Position of the first row. State of positions before 0 counts as zero, whatever the slot holds: a slot that
    /// starts at position 0 needs no clearing.
    pub position: usize,
    /// Row of the state buffer.
    pub slot: usize,
    /// How many rows that the call before held count: those at the positions before `position`. The rest never were.
    pub accepted: usize,
    pub commit: Commit,
}

impl SlotRows {
    /// Most rows that a call holds.
    pub const MAX_HELD: usize = 16;

    /// Rows that are final, behind others that are.
    pub fn new(row: usize, rows: usize, position: usize, slot: usize) -> SlotRows {
        SlotRows { row, rows, position, slot, accepted: 0, commit: Commit::Now }
    }

    /// Positions that the state in the slot has seen before the call.
    pub fn base(&self) -> usize {
        self.position.saturating_sub(self.accepted)
    }

    pub fn holds(&self) -> bool {
        self.commit == Commit::Hold
    }
}

/// What a layer remembers: the state, and records of held rows.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// `[slots, `[`Recurrence::state`]`]`
    pub state: Buf,
    /// `[slots, held rows * `[`Recurrence::record`]`]`; `None` where nothing is ever held. What a record holds is the
    /// device's.
    pub records: Option<Buf>,
}

impl Memory {
    /// Of a layer that never holds rows.
    pub fn plain(state: Buf) -> Memory {
        Memory { state, records: None }
    }

    /// Its buffers.
    pub fn bufs(&self) -> impl Iterator<Item = Buf> + Clone + use<> {
        [Some(self.state), self.records].into_iter().flatten()
    }
}

/// A rule by which state moves on, with the sizes of what it keeps of a sequence.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Recurrence {
    /// The last `taps - 1` rows of `channels` values; a record is the next one.
    Conv { channels: usize, taps: usize },
    /// A record has for each value head how much stays, and the two vectors whose product is added.
    Delta(DeltaShape),
    /// A record has for each head how much stays, and the two vectors whose product is added.
    Ssm(SsmShape),
}

/// A state that fades and gets a product of two vectors added in every row, `S <- a S + k u^T`: heads, and the lengths of k
/// and u. Records of a head lie side by side, `[held rows, a | k | u]`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Products {
    pub heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
}

impl Products {
    /// Floats of a head's state.
    pub fn head(&self) -> usize {
        self.key_dim * self.value_dim
    }

    /// Floats of a head's record of a row.
    pub fn record(&self) -> usize {
        1 + self.key_dim + self.value_dim
    }
}

impl Recurrence {
    /// Floats of a sequence's state.
    pub fn state(&self) -> usize {
        match self {
            Recurrence::Conv { channels, taps } => taps.saturating_sub(1).saturating_mul(*channels),
            Recurrence::Delta(shape) => shape.state(),
            Recurrence::Ssm(shape) => shape.state(),
        }
    }

    /// Floats of the record of one row.
    pub fn record(&self) -> usize {
        match self {
            Recurrence::Conv { channels, .. } => *channels,
            Recurrence::Delta(shape) => shape.value_heads * shape.products().record(),
            Recurrence::Ssm(shape) => shape.heads * shape.products().record(),
        }
    }
}

/// Moves states past held rows that count, outside of a pass: before a state is read or copied.
pub struct CatchUp<'a> {
    pub recurrence: Recurrence,
    pub memory: Memory,
    /// Without rows; [`SlotRows::accepted`] says how far.
    pub seqs: &'a [SlotRows],
}

/// What is convolved, and what becomes of the sum.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum ConvForm {
    /// LFM2: rows are `[B | C | u]`, `channels` floats each; `v = B * u`, `out = C * sum`.
    Gated,
    /// Gated DeltaNet, Mamba-2: rows are v; `out = silu(sum)`.
    Silu,
}

/// A short causal convolution, depthwise: `sum[t] = sum over j of taps[j] * v[t - K + 1 + j]`, and a bias if there is one.
///
/// Numerics: the sum is `taps[0] * v`, then one fma per further tap in ascending j, then the bias is added.
pub struct ShortConv<'a> {
    pub form: ConvForm,
    /// `[rows, 3 * channels]` where gated, else `[rows, channels]`.
    pub x: Buf,
    /// Vector of `channels * K`, the taps of a channel side by side; K at least 2.
    pub taps: Weight,
    /// Vector of `channels`.
    pub bias: Option<Weight>,
    /// State: the last K - 1 rows of v, oldest first. Read and rewritten.
    pub memory: Memory,
    pub seqs: &'a [SlotRows],
    /// `[rows, channels]`
    pub out: Buf,
}

/// Which key head a value head works with, where there are fewer key heads.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum KeyHeads {
    /// Neighbours share one: `value head * key heads / value heads`, as Hugging Face checkpoints have it.
    Grouped,
    /// Value heads go round: `value head mod key heads`, as GGUF converters reorder the Qwen3.5 family.
    Tiled,
}

/// Heads of a gated delta rule.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct DeltaShape {
    pub key_heads: usize,
    /// A multiple of `key_heads`.
    pub value_heads: usize,
    /// Of a head of q and k; a multiple of [`DeltaShape::LANES`], at most [`DeltaShape::MAX_DIM`].
    pub key_dim: usize,
    /// Of a head of v; as `key_dim`.
    pub value_dim: usize,
    pub sharing: KeyHeads,
}

impl DeltaShape {
    /// What head dimensions are multiples of.
    pub const LANES: usize = 16;
    /// Largest head dimension.
    pub const MAX_DIM: usize = 256;

    /// Floats of a row of q, k and v.
    pub fn channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }

    /// Floats of a sequence's state.
    pub fn state(&self) -> usize {
        self.value_heads * self.key_dim * self.value_dim
    }

    pub fn products(&self) -> Products {
        Products { heads: self.value_heads, key_dim: self.key_dim, value_dim: self.value_dim }
    }

    /// Floats of a row of v, and of the output.
    pub fn width(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// The key head of a value head.
    pub fn key_head(&self, value_head: usize) -> usize {
        match self.sharing {
            KeyHeads::Grouped => value_head / (self.value_heads / self.key_heads).max(1),
            KeyHeads::Tiled => value_head % self.key_heads,
        }
    }
}

/// The gated delta rule (Yang et al. 2024, "Gated Delta Networks") with its gates and output norm. Per value head, with
/// q and k of its key head made unit vectors (`x / sqrt(x . x + 1e-6)`), q scaled by `1 / sqrt(key_dim)`:
///
/// ```text
/// S <- a S;  u = b (v - S^T k);  S <- S + k u^T;  o = S^T q
/// a = exp(rate * softplus(decay + bias)),  b = sigmoid(beta)
/// out = rms_norm(o) * norm * silu(z)
/// ```
///
/// Numerics: see [`crate::reference::delta`]. Rows are cut at absolute multiples of [`DeltaNet::CHUNK`]; a piece of at
/// least [`DeltaNet::CHUNKED`] rows is computed in the chunked form, a shorter one row by row. So a prompt gives the same
/// bits in any batches that are cut at such multiples, and nearly the same in others.
pub struct DeltaNet<'a> {
    pub shape: DeltaShape,
    /// `[rows, channels]`: q of all key heads, then their k, then v of all value heads, after the short convolution.
    pub qkv: Buf,
    /// `[rows, width]`: the output's gate.
    pub z: Buf,
    /// `[rows, value_heads]`: how strongly a row is written.
    pub beta: Buf,
    /// `[rows, value_heads]`: how strongly the state fades. `[rows, value_heads * key_dim]` where every channel of the key
    /// fades by itself: see [`crate::reference::kda`].
    pub decay: Buf,
    /// Vector of `value_heads`, at most 0: `-exp(A_log)` of the papers.
    pub rate: Weight,
    /// Vector as wide as `decay`: `dt_bias` of the papers.
    pub bias: Weight,
    /// Vector of `value_dim`: the weight of the output's norm.
    pub norm: Weight,
    pub eps: f32,
    /// State: S of every head, `[value_heads, key_dim, value_dim]`. Read and rewritten.
    pub memory: Memory,
    pub seqs: &'a [SlotRows],
    /// `[rows, width]`
    pub out: Buf,
}

impl DeltaNet<'_> {
    /// Rows of a chunk.
    pub const CHUNK: usize = 64;
    /// Rows from which a piece of a chunk is computed as one. Below, row by row is as fast, and a few drafted rows are
    /// then what they would be one at a time.
    pub const CHUNKED: usize = 16;
}

/// Heads of a selective state space.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct SsmShape {
    pub heads: usize,
    /// Of a head of x, and of the output; a multiple of [`SsmShape::LANES`], at most [`SsmShape::MAX_DIM`].
    pub head_dim: usize,
    /// Of B and C, which a head's state has for every channel; as `head_dim`.
    pub state_dim: usize,
    /// Groups of neighbouring heads, each with a B, a C and a norm of its own; divides `heads`.
    pub groups: usize,
}

impl SsmShape {
    /// What dimensions are multiples of.
    pub const LANES: usize = 16;
    /// Largest dimension.
    pub const MAX_DIM: usize = 256;

    /// Floats of a row of x, and of the output.
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Floats of a row of x, B and C.
    pub fn channels(&self) -> usize {
        self.width() + 2 * self.groups * self.state_dim
    }

    /// Floats of a sequence's state.
    pub fn state(&self) -> usize {
        self.heads * self.head_dim * self.state_dim
    }

    /// B is the key, the row's step times x what is added.
    pub fn products(&self) -> Products {
        Products { heads: self.heads, key_dim: self.state_dim, value_dim: self.head_dim }
    }

    /// Heads of a group.
    pub fn group_heads(&self) -> usize {
        self.heads / self.groups.max(1)
    }
}

/// A selective state space with scalar decay (Dao and Gu 2024, "Transformers are SSMs": Mamba-2) with its gates and output
/// norm. Per head, with B and C of its group and S in `[state_dim, head_dim]`:
///
/// ```text
/// d = clamp(softplus(dt + bias), limit);  a = exp(rate * d)
/// S <- a S + B (d x)^T;  y = S^T C + skip * x
/// out = rms_norm per group(y * silu(z)) * norm
/// ```
///
/// Numerics: see [`crate::reference::ssm`]. Rows are cut as those of [`DeltaNet`], into pieces that are computed at once or
/// row by row by the same rule.
pub struct SsmScan<'a> {
    pub shape: SsmShape,
    /// `[rows, channels]`: x of all heads, then B of all groups, then C, after the short convolution.
    pub xbc: Buf,
    /// `[rows, width]`: the output's gate.
    pub z: Buf,
    /// `[rows, heads]`: how far a row moves the state.
    pub dt: Buf,
    /// Vector of `heads`, at most 0: `-exp(A_log)` of the papers.
    pub rate: Weight,
    /// Vector of `heads`: `dt_bias` of the papers.
    pub bias: Weight,
    /// Vector of `heads`: D of the papers.
    pub skip: Weight,
    /// Vector of `width`: the weight of the output's norm.
    pub norm: Weight,
    pub eps: f32,
    /// Least and largest step, at least 0; the second may be infinite.
    pub limit: [f32; 2],
    /// State: S of every head, `[heads, state_dim, head_dim]`. Read and rewritten.
    pub memory: Memory,
    pub seqs: &'a [SlotRows],
    /// `[rows, width]`
    pub out: Buf,
}
