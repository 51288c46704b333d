//! How weights lie in memory, and the loading that puts them there.

use hob_compute::act::uses_int8;
use hob_compute::{ByteSource, ComputeError, WeightSpec};
use hob_quant::Format;

use super::act::SendPtr;
use super::shape::{LANES, Shape};
use super::{LoadCtx, pack};
use crate::arena::Span;
use crate::isa::Isa;

/// The layout of a matrix.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Blocks as in the file, row after row; integer dots in portable loops.
    Native,
    /// [`LANES`] rows interleaved, see [`Shape`].
    Interleaved,
    /// Blocks as in the file, decoded to int8 by 16 rows where they are multiplied: formats without a packed form.
    #[cfg(target_arch = "x86_64")]
    Tile,
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
    /// Bytes of one group of interleaved rows; 0 in other layouts.
    group_bytes: usize,
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
        let kind = match (uses_int8(spec.format) && !ctx.exact, ctx.isa, Shape::of(spec.format)) {
            (false, _, _) => Kind::Float,
            (true, Isa::Scalar, _) => Kind::Native,
            (true, _, Some(_)) => Kind::Interleaved,
            #[cfg(target_arch = "x86_64")]
            (true, _, None) if super::avx2::tile::decodes(spec.format) => Kind::Tile,
            (true, _, None) => Kind::Native,
        };
        let group_bytes = match kind {
            Kind::Interleaved => Shape::of(spec.format).map_or(0, |s| s.group_bytes(spec.cols)),
            _ => 0,
        };
        let size = match kind {
            Kind::Interleaved => group_bytes * spec.rows.div_ceil(LANES),
            _ => row_bytes * spec.rows,
        };
        let mut bytes = ctx.arena.take(size)?;
        let job = Filling { spec, source, group_bytes, row_bytes, bias: biased(spec.format, ctx.isa) };
        job.run(ctx, &mut bytes)?;
        Ok(Matrix {
            bytes,
            rows: spec.rows,
            cols: spec.cols,
            format: spec.format,
            kind,
            row_bytes,
            group_bytes,
        })
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

    /// Where the reading of `row` begins, to be prefetched; past the end, any address.
    pub(super) fn group_at(&self, row: usize) -> *const u8 {
        let at = match self.kind {
            Kind::Interleaved => row / LANES * self.group_bytes,
            _ => row * self.row_bytes,
        };
        self.bytes.as_ptr().wrapping_add(at)
    }

    /// The superblocks of one group of interleaved rows.
    pub(super) fn group(&self, group: usize) -> &[u8] {
        &self.bytes[group * self.group_bytes..(group + 1) * self.group_bytes]
    }
}

/// VNNI multiplies unsigned by signed: Q8_0 codes are then stored as code + 128.
fn biased(format: Format, isa: Isa) -> bool {
    isa >= Isa::AvxVnni && format == Format::Q8_0
}

/// Reads a file's rows in bands and writes them in the layout, bands divided between threads.
struct Filling<'a> {
    spec: &'a WeightSpec,
    source: &'a dyn ByteSource,
    /// 0 where rows stay as in the file.
    group_bytes: usize,
    row_bytes: usize,
    bias: bool,
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
        match self.group_bytes {
            0 => rows.start * self.row_bytes..rows.end * self.row_bytes,
            group => rows.start / LANES * group..(rows.end.div_ceil(LANES) * group).min(len),
        }
    }

    fn band(&self, rows: std::ops::Range<usize>, out: &mut [u8], buf: &mut Vec<u8>) -> std::io::Result<()> {
        let offset = (rows.start * self.row_bytes) as u64;
        if self.group_bytes == 0 {
            return self.source.read_at(offset, out);
        }
        buf.resize(rows.len() * self.row_bytes, 0);
        self.source.read_at(offset, buf)?;
        for (rows, group) in buf.chunks(LANES * self.row_bytes).zip(out.chunks_exact_mut(self.group_bytes)) {
            pack::group(self.spec.format, rows, self.row_bytes, group, self.bias);
        }
        Ok(())
    }
}
