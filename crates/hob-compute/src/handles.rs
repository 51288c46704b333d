//! Handles: small copyable names of device memory. Bytes belong to the device.

use hob_quant::{Format, KvFormat};

macro_rules! handle {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
        pub struct $name {
            pub device: u16,
            pub index: u32,
            /// Counts reuses of `index`, so that a stale handle is an error and never somebody else's bytes.
            pub generation: u32,
        }
    };
}

handle!(
    /// A buffer of f32 rows.
    Buf
);
handle!(
    /// A loaded weight.
    Weight
);
handle!(
    /// A pool of preallocated KV pages of one shape.
    Pool
);

/// One page of a pool: 256 positions of one layer, all KV heads, K and V.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Page {
    pub pool: Pool,
    pub index: u32,
}

impl Page {
    /// Stands in a page table for a page that its layer no longer needs; no pool has it.
    pub const RELEASED: Page =
        Page { pool: Pool { device: u16::MAX, index: u32::MAX, generation: u32::MAX }, index: u32::MAX };
}

/// A submitted piece of work.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What a weight is used for; decides its layout on the device.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum WeightKind {
    /// `[rows, cols]`, multiplied by `linear`.
    Matrix,
    /// `[rows, cols]`, rows gathered by `embed`.
    Table,
    /// `[1, cols]`, expanded to f32 (norm weights, biases).
    Vector,
    /// `[count * rows of one expert, cols]`: matrices of one shape, of which `experts` multiplies the selected ones.
    Experts { count: usize },
    /// `[count * rows of one head, cols]`: matrices of one shape, each of which `heads` multiplies with a part of its own.
    Heads { count: usize },
}

/// Shape, format and use of a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightSpec {
    /// Tensor name, for messages.
    pub name: String,
    pub kind: WeightKind,
    pub format: Format,
    /// Output features (1 for a vector).
    pub rows: usize,
    /// Input features; a multiple of the format's block.
    pub cols: usize,
}

impl WeightSpec {
    /// Bytes of the weight as stored in the file, row-major.
    pub fn file_bytes(&self) -> Option<u64> {
        (self.format.row_bytes(self.cols)? as u64).checked_mul(self.rows as u64)
    }
}

/// Where a weight's bytes come from: a file's tensor, or a generator.
pub trait ByteSource: Send + Sync {
    fn len(&self) -> u64;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Fills `buf` from `offset` bytes into the tensor.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()>;
    /// The bytes themselves when they are mapped; row gathers read them in place.
    fn mapped(&self) -> Option<&[u8]> {
        None
    }
}

/// Bytes in memory.
impl ByteSource for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = start.checked_add(buf.len()).and_then(|end| self.get(start..end));
        part.map(|part| buf.copy_from_slice(part)).ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
    }
}

/// The shape and formats of one layer's KV pages; their layout is written in `page.rs`.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct PageSpec {
    pub kv_heads: usize,
    pub head_dim: usize,
    pub k: KvFormat,
    pub v: KvFormat,
    /// Pages for positions 0..256 of a sequence, whose first block of 64 positions (attention sinks) is f16 whatever
    /// `k` and `v` say. Meaningless, and false, where both are f16 anyway.
    pub first: bool,
    /// `Some(n)`: V is the first `n` dimensions of K and stored with it, once (DeepSeek's latent); `v` is `k` then.
    pub latent: Option<usize>,
}

impl PageSpec {
    /// Pages of f16.
    pub fn f16(kv_heads: usize, head_dim: usize) -> PageSpec {
        PageSpec { kv_heads, head_dim, k: KvFormat::F16, v: KvFormat::F16, first: false, latent: None }
    }
}
