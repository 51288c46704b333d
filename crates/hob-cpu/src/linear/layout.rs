//! How weights lie in memory, and the loading that puts them there.

use hob_compute::act::uses_int8;
use hob_compute::{ByteSource, ComputeError, WeightSpec};
use hob_quant::Format;

use super::LoadCtx;
use super::act::SendPtr;
use crate::arena::Span;
use crate::isa::Isa;

/// Values of k in one superblock: two blocks of 32.
pub const SUPER_K: usize = 64;
/// Rows interleaved: one AVX-512 register of dwords, or two AVX2 registers that share every activation broadcast.
pub const LANES: usize = 16;

/// The layout of a matrix.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Blocks as in the file, row after row; integer dots in portable loops.
    Native,
    /// [`LANES`] rows interleaved. A group is a sequence of superblocks of 64 k: scales of both blocks (f16, one per
    /// row each), for Q4_1 minima likewise, then the codes, 4 k of every row per 16 dwords.
    Interleaved,
    /// Rows as in the file, multiplied in f32 after decoding.
    Float,
}

/// A loaded weight matrix `[rows, cols]`.
pub struct Matrix {
    bytes: Span,
    rows: usize,
    cols: usize,
    format: Format,
    kind: Kind,
    row_bytes: usize,
}

impl Matrix {
    /// Reads a matrix through `source` and packs it for the instruction set.
    ///
    /// # Errors
    /// A read that fails, a size that does not match the shape, or no memory.
    pub fn load(spec: &WeightSpec, source: &dyn ByteSource, ctx: &LoadCtx) -> Result<Matrix, ComputeError> {
        let wrong = |problem: String| ComputeError::Weight { name: spec.name.clone(), problem };
        let row_bytes =
            spec.format.row_bytes(spec.cols).filter(|&b| b > 0 && spec.rows > 0).ok_or_else(|| {
                wrong(format!("{} columns do not make whole blocks of {}", spec.cols, spec.format.name()))
            })?;
        let expected = spec.file_bytes().ok_or_else(|| wrong("its size overflows".into()))?;
        if source.len() != expected {
            return Err(wrong(format!("expected {expected} bytes for its shape, found {}", source.len())));
        }
        if !spec.format.can_decode() {
            return Err(wrong(format!("hob cannot compute with {}", spec.format.name())));
        }
        let kind = match (uses_int8(spec.format) && !ctx.exact, ctx.isa) {
            (false, _) => Kind::Float,
            (true, Isa::Scalar) => Kind::Native,
            (true, Isa::Avx2 | Isa::Avx512) => Kind::Interleaved,
        };
        let size = match kind {
            Kind::Interleaved => {
                spec.rows.div_ceil(LANES) * spec.cols.div_ceil(SUPER_K) * super_bytes(spec.format)
            }
            _ => row_bytes * spec.rows,
        };
        let mut bytes = ctx.arena.take(size)?;
        let job = Filling { spec, source, kind, row_bytes, isa: ctx.isa };
        job.run(ctx, &mut bytes)?;
        Ok(Matrix { bytes, rows: spec.rows, cols: spec.cols, format: spec.format, kind, row_bytes })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// The bytes of one row as in the file; not for interleaved matrices.
    pub(super) fn row(&self, row: usize) -> &[u8] {
        debug_assert!(self.kind != Kind::Interleaved);
        &self.bytes[row * self.row_bytes..(row + 1) * self.row_bytes]
    }

    /// Bytes of one group.
    fn group_bytes(&self) -> usize {
        self.cols.div_ceil(SUPER_K) * super_bytes(self.format)
    }

    /// Where the group of `row` begins, to be prefetched; past the end, or for other layouts, any address.
    pub(super) fn group_at(&self, row: usize) -> *const u8 {
        self.bytes.as_ptr().wrapping_add(row / LANES * self.group_bytes())
    }

    /// The superblocks of one group of interleaved rows.
    pub(super) fn group(&self, group: usize) -> &[u8] {
        if self.kind != Kind::Interleaved {
            return &[];
        }
        let bytes = self.group_bytes();
        &self.bytes[group * bytes..(group + 1) * bytes]
    }
}

/// Bytes of one superblock.
pub const fn super_bytes(format: Format) -> usize {
    match format {
        Format::Q4_0 => LANES * (4 + 32),
        Format::Q4_1 => LANES * (8 + 32),
        _ => LANES * (4 + 64),
    }
}

/// Reads a file's rows in bands and writes them in the layout, bands divided between threads.
struct Filling<'a> {
    spec: &'a WeightSpec,
    source: &'a dyn ByteSource,
    kind: Kind,
    row_bytes: usize,
    isa: Isa,
}

impl Filling<'_> {
    /// Bytes of file read at once by one thread: large enough for the disk, small enough for the L2 cache.
    const BAND: usize = 256 << 10;

    fn run(&self, ctx: &LoadCtx, out: &mut [u8]) -> Result<(), ComputeError> {
        let band = (Self::BAND / self.row_bytes).max(1).next_multiple_of(LANES);
        let bands = self.spec.rows.div_ceil(band);
        let failed = std::sync::Mutex::new(None);
        let base = SendPtr(out.as_mut_ptr());
        let len = out.len();
        let threads = ctx.pool.threads();
        let work = |bands: std::ops::Range<usize>| {
            let mut buf = Vec::new();
            for b in bands {
                let rows = b * band..((b + 1) * band).min(self.spec.rows);
                let range = self.out_range(&rows, len);
                // SAFETY: bands cover disjoint ranges of `out`, which is borrowed for the whole run.
                let part =
                    unsafe { std::slice::from_raw_parts_mut(base.get().add(range.start), range.len()) };
                if let Err(e) = self.band(rows, part, &mut buf) {
                    *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(e);
                    return;
                }
            }
        };
        if bands == 1 {
            work(0..1);
        } else {
            ctx.pool.run(&|t| work(bands * t / threads..bands * (t + 1) / threads));
        }
        match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(source) => Err(ComputeError::Read { name: self.spec.name.clone(), source }),
            None => Ok(()),
        }
    }

    fn out_range(&self, rows: &std::ops::Range<usize>, len: usize) -> std::ops::Range<usize> {
        match self.kind {
            Kind::Interleaved => {
                let group = self.spec.cols.div_ceil(SUPER_K) * super_bytes(self.spec.format);
                rows.start / LANES * group..(rows.end.div_ceil(LANES) * group).min(len)
            }
            _ => rows.start * self.row_bytes..rows.end * self.row_bytes,
        }
    }

    fn band(&self, rows: std::ops::Range<usize>, out: &mut [u8], buf: &mut Vec<u8>) -> std::io::Result<()> {
        let offset = (rows.start * self.row_bytes) as u64;
        if self.kind != Kind::Interleaved {
            return self.source.read_at(offset, out);
        }
        buf.resize(rows.len() * self.row_bytes, 0);
        self.source.read_at(offset, buf)?;
        let blocks = self.spec.cols / 32;
        let group_bytes = self.spec.cols.div_ceil(SUPER_K) * super_bytes(self.spec.format);
        for (g, group) in out.chunks_exact_mut(group_bytes).enumerate() {
            let here = &buf[(g * LANES * self.row_bytes).min(buf.len())..];
            let here = &here[..here.len().min(LANES * self.row_bytes)];
            interleave(self.spec.format, blocks, here, group);
            if self.isa == Isa::Avx512 && self.spec.format == Format::Q8_0 {
                bias_codes(group);
            }
        }
        Ok(())
    }
}

/// Interleaves up to [`LANES`] rows of blocks into one group; absent rows stay zero.
fn interleave(format: Format, blocks: usize, rows: &[u8], group: &mut [u8]) {
    let block_bytes = format.block_bytes();
    let row_bytes = blocks * block_bytes;
    let step = super_bytes(format);
    let header = block_bytes - if format == Format::Q8_0 { 32 } else { 16 };
    let dwords = if format == Format::Q8_0 { 8 } else { 4 };
    let codes_at = LANES * header * 2;
    for (r, row) in rows.chunks_exact(row_bytes).enumerate() {
        for (b, block) in row.chunks_exact(block_bytes).enumerate() {
            let sup = &mut group[b / 2 * step..(b / 2 + 1) * step];
            let half = b % 2;
            // Scales of both blocks, then (Q4_1) minima of both.
            for (i, value) in block[..header].chunks_exact(2).enumerate() {
                let at = ((i * 2 + half) * LANES + r) * 2;
                sup[at..at + 2].copy_from_slice(value);
            }
            let codes = &mut sup[codes_at + half * dwords * LANES * 4..][..dwords * LANES * 4];
            for (c, code) in block[header..].chunks_exact(4).enumerate() {
                codes[(c * LANES + r) * 4..][..4].copy_from_slice(code);
            }
        }
    }
}

/// VNNI multiplies unsigned by signed: Q8_0 codes are stored as code + 128.
fn bias_codes(group: &mut [u8]) {
    for sup in group.chunks_exact_mut(super_bytes(Format::Q8_0)) {
        for code in &mut sup[LANES * 4..] {
            *code ^= 0x80;
        }
    }
}
