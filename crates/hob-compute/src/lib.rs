//! The verbs: what every device can do for a model, and nothing more.
//!
//! This crate owns the trait [`Compute`], the handles that name device memory, the argument struct of every verb,
//! the numerics every backend must reproduce ([`math`], [`act`]) and the scalar oracle ([`reference::Reference`]).
//! It must not know what a model is, nor any instruction set.
#![forbid(unsafe_code)]

pub mod act;
pub mod check;
mod compressed;
pub mod draw;
mod error;
mod handles;
mod hyper;
pub mod math;
mod mixture;
mod page;
pub mod placed;
mod recurrent;
pub mod reference;
pub mod slots;
mod span;
pub mod tickets;
mod timed;
mod verbs;

pub use compressed::{AttendEntries, Compress, CompressShape, Entries, Select};
pub use draw::Draw;
pub use error::{ComputeError, Result};
pub use handles::{Buf, ByteSource, Page, PageSpec, Pool, Ticket, Weight, WeightKind, WeightSpec};
pub use hyper::{HyperExpand, HyperMix};
pub use mixture::{Experts, Gating, GroupScore, Groups, Route, Routing};
pub use placed::Placed;
pub use recurrent::{
    CatchUp, Commit, ConvForm, DeltaNet, DeltaShape, KeyHeads, Memory, Products, Recurrence, ShortConv,
    SlotRows, SsmScan, SsmShape,
};
pub use span::{Span, now_nanos};
pub use timed::profiled;
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
    /// What a numerics id must name beside `kind` and `isa`: of a GPU, its name and driver. Empty for a CPU.
    pub adapter: String,
    /// Whether work goes on behind the caller's back: verbs only record, [`Compute::submit`] starts, and
    /// [`Compute::picked`] waits for its ticket and for nothing submitted after it. Callers then record a step ahead.
    pub asynchronous: bool,
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

    /// Several downloads at once: of each part `(src, row, floats)` the floats from the start of a row on, one part after
    /// the other into `out`. A device behind a bus answers all in one round trip.
    fn download_all(&mut self, parts: &[(Buf, usize, usize)], out: &mut [f32]) -> Result<()> {
        let mut rest = out;
        for &(src, row, floats) in parts {
            let Some((part, behind)) = rest.split_at_mut_checked(floats) else {
                return Err(ComputeError::shape("download", "room for every part", "less"));
            };
            self.download(src, row, part)?;
            rest = behind;
        }
        Ok(())
    }

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
    fn read_positions(&mut self, page: Page, range: std::ops::Range<usize>, out: &mut Vec<u8>) -> Result<()>;
    /// The inverse: `bytes` are what [`Compute::read_positions`] gave for a page of the same spec.
    fn write_positions(&mut self, page: Page, range: std::ops::Range<usize>, bytes: &[u8]) -> Result<()>;

    fn embed(&mut self, args: &Embed) -> Result<()>;
    fn norm(&mut self, args: &Norm) -> Result<()>;
    fn linear(&mut self, args: &Linear) -> Result<()>;
    fn heads(&mut self, args: &Heads) -> Result<()>;
    fn rope(&mut self, args: &Rope) -> Result<()>;
    fn append_kv(&mut self, args: &AppendKv) -> Result<()>;
    fn attend(&mut self, args: &Attend) -> Result<()>;
    fn map(&mut self, args: &Map) -> Result<()>;
    fn pick(&mut self, args: &Pick) -> Result<()>;
    fn route(&mut self, args: &Route) -> Result<()>;
    fn experts(&mut self, args: &Experts) -> Result<()>;
    fn short_conv(&mut self, args: &ShortConv) -> Result<()>;
    fn delta_net(&mut self, args: &DeltaNet) -> Result<()>;
    fn catch_up(&mut self, args: &CatchUp) -> Result<()>;
    fn ssm_scan(&mut self, args: &SsmScan) -> Result<()>;
    fn hyper_mix(&mut self, args: &HyperMix) -> Result<()>;
    fn hyper_expand(&mut self, args: &HyperExpand) -> Result<()>;
    fn compress(&mut self, args: &Compress) -> Result<()>;
    fn select(&mut self, args: &Select) -> Result<()>;
    fn attend_entries(&mut self, args: &AttendEntries) -> Result<()>;

    /// Attention of rows that are not yet remembered: norms, rotation, [`Compute::append_kv`] and [`Compute::attend`] in
    /// one. What `q` and `k` hold afterwards is unspecified.
    fn attend_new(&mut self, args: &AttendNew) -> Result<()> {
        let (rows, q, k) = (args.positions.len(), args.attend.q, args.k);
        if let Some(norms) = args.norms {
            for (x, HeadNorm { weight, groups, eps }) in [q, k].into_iter().zip(norms) {
                self.norm(&Norm { x, rows, groups, weight, eps, out: x })?;
            }
        }
        if let Some(Rotation { freqs, pairs, magnitude }) = args.rotation {
            let (head_dim, positions) = (args.attend.head_dim, args.positions);
            for (x, heads) in [(q, args.attend.heads), (k, args.attend.kv_heads)] {
                self.rope(&Rope {
                    x,
                    first: 0,
                    back: false,
                    heads,
                    head_dim,
                    positions,
                    freqs,
                    pairs,
                    magnitude,
                })?;
            }
        }
        self.append_kv(&AppendKv { k, v: args.v, seqs: args.attend.seqs })?;
        self.attend(&args.attend)
    }

    /// The latent is normed, `rotated` and `key` are rotated, `q = wide ++ rotated` by heads and `k = latent ++ key`, in one.
    /// What the inputs hold afterwards is unspecified.
    fn latent_rows(&mut self, args: &LatentRows) -> Result<()> {
        let &LatentRows { wide, rotated, latent, key, heads, q, k, positions, .. } = args;
        let (rows, HeadNorm { weight, groups, eps }) = (positions.len(), args.norm);
        self.norm(&Norm { x: latent, rows, groups, weight, eps, out: latent })?;
        if let Some(Rotation { freqs, pairs, magnitude }) = args.rotation {
            let head_dim = args.rotary;
            for (x, heads) in [(rotated, heads), (key, 1)] {
                self.rope(&Rope {
                    x,
                    heads,
                    head_dim,
                    first: 0,
                    back: false,
                    positions,
                    freqs,
                    pairs,
                    magnitude,
                })?;
            }
        }
        self.map(&Map::Join { a: wide, b: rotated, groups: heads, out: q, rows })?;
        self.map(&Map::Join { a: latent, b: key, groups: 1, out: k, rows })
    }

    /// Ends recording; the ticket is redeemed by [`Compute::picked`].
    fn submit(&mut self) -> Result<Ticket>;
    /// Waits for `ticket`, but for nothing submitted after it, and reads the results of every `pick` recorded between the
    /// submit before and it, in order of recording; none is fine.
    fn picked(&mut self, ticket: Ticket, out: &mut Picked) -> Result<()>;

    /// Where several devices stand behind this one: what is allocated or loaded from now on belongs to device `index` of
    /// them. A device that is alone has nothing to choose.
    fn place(&mut self, _index: usize) {}

    /// While on, verbs check their arguments and make ready what they would run (kernels, forms of buffers), and run
    /// nothing. Gives false where nothing needs to be made ready; such a device ignores the call.
    fn rehearse(&mut self, _on: bool) -> bool {
        false
    }

    /// While on, the device keeps a [`Span`] of every verb that it runs. Gives false where it cannot, and ignores the call.
    fn profile(&mut self, _on: bool) -> bool {
        false
    }

    /// Appends the spans of what has finished since the last call, in any order.
    fn take_spans(&mut self, _out: &mut Vec<Span>) {}

    /// Dispatches handed to the device since it was opened; 0 where verbs execute at once.
    fn dispatches(&self) -> u64 {
        0
    }

    /// Bytes of device memory now held: weights, buffers, pages (reserved, not touched).
    fn held_bytes(&self) -> HeldBytes;
}
