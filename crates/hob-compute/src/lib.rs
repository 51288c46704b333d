//! The verbs: what every device can do for a model, and nothing more.
//!
//! This crate owns the trait [`Compute`], the handles that name device memory, the argument struct of every verb,
//! the numerics every backend must reproduce ([`math`], [`act`]) and the scalar oracle ([`reference::Reference`]).
//! It must not know what a model is, nor any instruction set.
#![forbid(unsafe_code)]

pub mod act;
pub mod check;
mod error;
mod handles;
pub mod math;
mod mixture;
mod page;
pub mod reference;
pub mod slots;
pub mod tickets;
mod verbs;

pub use error::{ComputeError, Result};
pub use handles::{Buf, ByteSource, Page, PageSpec, Pool, Ticket, Weight, WeightKind, WeightSpec};
pub use mixture::{Experts, Gating, GroupScore, Groups, Route, Routing, ShortConv, SlotRows};
pub use verbs::*;

/// Positions of KV in one page.
pub const PAGE_POSITIONS: usize = 256;
/// Positions in one compute block of a page: K with positions in lanes, V with head_dim in lanes.
pub const BLOCK_POSITIONS: usize = 64;

/// Raise it whenever a change makes any device write other bits of K, V or recurrent state for the same tokens, or read
/// the same pages to other logits: another order of summation, another rounding, another encoding or page layout. State
/// that was stored under another revision then counts as absent. Faster kernels of equal bits leave it alone.
pub const NUMERICS_REVISION: u32 = 1;

/// Facts about a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Device kind, for example `cpu`.
    pub kind: &'static str,
    /// Instruction set class in use, for example `avx2`; part of the numerics id of stored state.
    pub isa: &'static str,
    /// Threads the device computes with.
    pub threads: usize,
    /// Whether activations stay in f32 (goldens run so).
    pub exact: bool,
}

/// One device. Verbs record work; on the CPU recording executes at once.
///
/// All activations are `f32` rows in device buffers, `[rows, width]`. A backend that computes on int8 derives that form
/// of a buffer itself and keeps it until the buffer is written again. Every verb checks handles and shapes and returns
/// [`ComputeError`] instead of touching memory it does not own.
pub trait Compute: Send {
    fn info(&self) -> &DeviceInfo;

    /// Allocates a zeroed buffer of `rows * width` floats.
    fn alloc(&mut self, rows: usize, width: usize) -> Result<Buf>;
    fn free(&mut self, buf: Buf) -> Result<()>;
    /// Copies host floats to the start of row `row` of `dst`.
    fn upload(&mut self, dst: Buf, row: usize, data: &[f32]) -> Result<()>;
    /// Copies `out.len()` floats from the start of row `row` of `src`.
    fn download(&mut self, src: Buf, row: usize, out: &mut [f32]) -> Result<()>;

    /// Reads a weight into device memory in the layout the device computes from.
    fn load(&mut self, spec: &WeightSpec, source: std::sync::Arc<dyn ByteSource>) -> Result<Weight>;
    fn unload(&mut self, weight: Weight) -> Result<()>;

    /// Preallocates `count` pages of one layer shape (address space; memory is touched when written).
    fn alloc_pages(&mut self, spec: &PageSpec, count: usize) -> Result<Pool>;
    fn free_pages(&mut self, pool: Pool) -> Result<()>;
    /// Copies the first `positions` positions of page `from` into page `to` (a fork inside a page).
    fn copy_page(&mut self, from: Page, to: Page, positions: usize) -> Result<()>;
    /// Bytes that [`Compute::read_positions`] gives for positions `range` (within 0..256) of a page of `pool`.
    fn position_bytes(&self, pool: Pool, range: std::ops::Range<usize>) -> Result<usize>;
    /// Appends positions `range` of `page` to `out`, bit for bit and independent of the page's layout: for every
    /// position, for every KV head, K then V as `hob_quant` encodes a vector (f32 values on an exact device).
    fn read_positions(&self, page: Page, range: std::ops::Range<usize>, out: &mut Vec<u8>) -> Result<()>;
    /// The inverse: `bytes` are what [`Compute::read_positions`] gave for a page of the same spec.
    fn write_positions(&mut self, page: Page, range: std::ops::Range<usize>, bytes: &[u8]) -> Result<()>;

    fn embed(&mut self, args: &Embed) -> Result<()>;
    fn norm(&mut self, args: &Norm) -> Result<()>;
    fn linear(&mut self, args: &Linear) -> Result<()>;
    fn rope(&mut self, args: &Rope) -> Result<()>;
    fn append_kv(&mut self, args: &AppendKv) -> Result<()>;
    fn attend(&mut self, args: &Attend) -> Result<()>;
    fn map(&mut self, args: &Map) -> Result<()>;
    fn pick(&mut self, args: &Pick) -> Result<()>;
    fn route(&mut self, args: &Route) -> Result<()>;
    fn experts(&mut self, args: &Experts) -> Result<()>;
    fn short_conv(&mut self, args: &ShortConv) -> Result<()>;

    /// Ends recording; the ticket is redeemed by [`Compute::picked`].
    fn submit(&mut self) -> Result<Ticket>;
    /// Waits for `ticket` and reads the results of every `pick` recorded before it, in order of recording.
    fn picked(&mut self, ticket: Ticket, out: &mut Picked) -> Result<()>;

    /// Bytes of device memory now held: weights, buffers, pages (reserved, not touched).
    fn held_bytes(&self) -> HeldBytes;
}
