//! How float products walk over K and rows on vector machines, whatever the register tiles of their instruction set.
//!
//! Sums of a band of weight rows by a group of activation rows stay in memory as 16 lanes each, K is walked in chunks, and
//! a register tile ([`Tiles`]) adds one chunk at a time: decode and prefill share the loop. A few activation rows read and
//! convert the weights where they lie; many have them converted and packed once. It must not know instructions.

use hob_compute::math;
use hob_quant::Format;

use super::{Rows, decode};
use crate::isa::Isa;
use crate::linear::layout::Matrix;
use crate::linear::{avx2, avx512};

/// Up to this many activation rows weights are read where they lie; above, a band is converted to f32 and packed first.
/// F32 gains from packing sooner: its rows are long, and chunks one below the other meet in few sets of the L1 cache.
const fn direct(format: Format) -> usize {
    match format {
        Format::F16 | Format::BF16 => 24,
        Format::F32 => 8,
        _ => 0,
    }
}

/// Activation rows whose sums are alive at once: where weights lie, and of packed weights (16 rows: 6 KiB of lanes).
const GROUP: [usize; 2] = [12, 6];

/// Values of k per chunk of packed weights: 2 KiB a row. Shorter ones would load and store sums more often.
const CHUNK: usize = 512;

/// Weight rows decoded at a time where nothing else is known.
const BAND: usize = 8;

/// Per-thread working memory.
#[derive(Default)]
pub struct Scratch {
    /// Converted weights.
    weights: Vec<Lanes>,
    /// Sums, `[weight row][activation row]`.
    sums: Vec<Lanes>,
    /// One decoded row.
    row: Vec<f32>,
}

/// The 16 virtual lanes of one sum.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Lanes([f32; 16]);

/// At least `len` lanes, grown once.
fn room(of: &mut Vec<Lanes>, len: usize) -> &mut [Lanes] {
    if of.len() < len {
        of.resize(len, Lanes([0.0; 16]));
    }
    of
}

fn floats(lanes: &mut [Lanes]) -> &mut [f32] {
    // SAFETY: `Lanes` is 16 floats without padding.
    unsafe { std::slice::from_raw_parts_mut(lanes.as_mut_ptr().cast(), lanes.len() * 16) }
}

/// Weight rows of a unit.
#[derive(Clone, Copy)]
pub struct Band<'a> {
    pub matrix: &'a Matrix,
    pub first: usize,
    pub height: usize,
}

/// One chunk of a register tile: some weight rows by some activation rows.
#[derive(Clone, Copy)]
pub struct Part {
    /// The chunk of the first weight row.
    pub w: Chunk,
    /// The chunk of the first activation row, and floats from row to row.
    pub x: *const f32,
    pub x_stride: usize,
    /// Values of k, a multiple of 16.
    pub len: usize,
    /// Sums, and lanes from weight row to weight row; activation rows are adjacent.
    pub sums: *mut Lanes,
    pub sums_stride: usize,
    /// Where reading goes on after this chunk, with the same strides. Only ever prefetched: any address will do.
    pub next: *const u8,
}

/// A chunk of weights: where it begins, and bytes from row to row, from 16 lanes to the next 16 and from lanes 0..8 to
/// lanes 8..16.
#[derive(Clone, Copy)]
pub struct Chunk {
    pub at: *const u8,
    pub row: usize,
    pub step: usize,
    pub half: usize,
}

/// A register tile: adds one [`Part`] to its sums.
pub type Tile = unsafe fn(&Part);

/// The register tiles of one instruction set for one kind of weights.
#[derive(Clone, Copy)]
pub struct Tiles {
    /// Largest tile. Rows are at most [`ROWS`].
    pub rows: usize,
    pub acts: usize,
    /// `[(weight rows - 1) * acts + activation rows - 1]`
    pub tiles: &'static [Tile],
    /// Reads one weight.
    pub scalar: unsafe fn(*const u8) -> f32,
    /// Bytes of a weight.
    pub width: usize,
}

/// Weight rows packed together.
const ROWS: usize = 4;

/// Weights converted to f32, for the tiles of one instruction set.
///
/// `[chunk of k][group of 4 rows]`, each `[step of 16 lanes][row][16]`; with `halves` apart `[half][step][row][8]`: four
/// rows then lie in all banks of the cache, while rows one below the other would meet in the same.
#[derive(Clone, Copy)]
pub struct Packed {
    pub at: *mut f32,
    groups: usize,
    halves: bool,
}

impl Packed {
    /// Floats of `rows` rows of `cols`.
    fn len(rows: usize, cols: usize) -> usize {
        rows.next_multiple_of(ROWS) * cols.next_multiple_of(CHUNK)
    }

    /// Floats before value k of a row; eight lanes are adjacent.
    #[inline(always)]
    pub fn offset(&self, row: usize, k: usize) -> usize {
        let chunk = (k / CHUNK * self.groups + row / ROWS) * (ROWS * CHUNK);
        let (step, half, lane) = (k % CHUNK / 16, k / 8 % 2, k % 8);
        let [row_step, step_step, half_step] = self.strides();
        chunk + row % ROWS * row_step + step * step_step + half * half_step + lane
    }

    /// Floats from row to row, step to step, half to half.
    fn strides(&self) -> [usize; 3] {
        if self.halves { [8, 8 * ROWS, ROWS * CHUNK / 2] } else { [16, 16 * ROWS, 8] }
    }
}

/// Weights a walk reads.
#[derive(Clone, Copy)]
enum Weights {
    /// Rows as in the file, and how many bytes each has.
    File(*const u8, usize),
    Packed(Packed),
}

/// `y[r * stride + i]` for all rows of the band; needs a vector class.
pub fn unit(isa: Isa, band: Band, x: Rows, y: (&mut [f32], usize), scratch: &mut Scratch) {
    let Band { matrix, first, height } = band;
    let (cols, format) = (matrix.cols(), matrix.format());
    if x.rows <= direct(format) {
        let tiles = avx2::float::direct(format, x.rows);
        // A tile's pieces of rows are at most 4 KiB; with several activation rows their chunks must stay in the L1 cache
        // beside them.
        let chunk = if x.rows <= 2 { 2048 } else { 1024 } / tiles.width;
        let rows = if x.rows <= 2 { tiles.rows } else { BAND };
        let w = Weights::File(matrix.row(first).as_ptr(), cols * tiles.width);
        let group = x.rows.min(GROUP[0]);
        let walk = Walk { w, tiles, chunk, cols, height, x, band: rows, group };
        // SAFETY: the ISA class was detected; the matrix holds `height` rows of `cols` values of this width.
        return unsafe { walk.run(y, room(&mut scratch.sums, rows * group)) };
    }
    let tiles = if isa == Isa::Avx512 { avx512::float::CONVERTED } else { avx2::float::CONVERTED };
    let step = if x.rows > BAND { height } else { BAND };
    let sums = room(&mut scratch.sums, step * GROUP[1]);
    for start in (0..height).step_by(step) {
        let count = (height - start).min(step);
        let to = floats(room(&mut scratch.weights, Packed::len(count, cols) / 16)).as_mut_ptr();
        let to = Packed { at: to, groups: count.div_ceil(ROWS), halves: isa != Isa::Avx512 };
        for i in 0..count {
            convert(matrix, first + start + i, &mut scratch.row, &to, i);
        }
        let w = Weights::Packed(to);
        let walk = Walk { w, tiles, chunk: CHUNK, cols, height: count, x, band: count, group: GROUP[1] };
        // SAFETY: the ISA class was detected; `to` holds `count` rows.
        unsafe { walk.run((&mut y.0[start..], y.1), sums) };
    }
}

/// Writes row `row` of the matrix as row `i` of `to`.
fn convert(matrix: &Matrix, row: usize, whole: &mut Vec<f32>, to: &Packed, i: usize) {
    let format = matrix.format();
    if matches!(format, Format::F16 | Format::BF16 | Format::F32) {
        // SAFETY: AVX2 was detected; `to` was made for more than i rows of this many values.
        return unsafe { avx2::float::convert(format, matrix.row(row), to, i) };
    }
    let cols = matrix.cols();
    whole.resize(cols.max(whole.len()), 0.0);
    decode(matrix, row, &mut whole[..cols]);
    // SAFETY: `whole` is initialized floats; otherwise as above.
    unsafe {
        avx2::float::convert(Format::F32, std::slice::from_raw_parts(whole.as_ptr().cast(), cols * 4), to, i)
    };
}

/// All products of some weight rows with some activation rows.
struct Walk<'a> {
    w: Weights,
    tiles: Tiles,
    /// Values of k per chunk, a multiple of 16.
    chunk: usize,
    cols: usize,
    height: usize,
    x: Rows<'a>,
    /// Weight rows and activation rows whose sums are alive at once.
    band: usize,
    group: usize,
}

impl Walk<'_> {
    /// `y[r * stride + i]` for all rows; `sums` has room for a band times a group.
    ///
    /// # Safety
    /// The tiles' ISA must be there, `w` hold `height` rows and the activation rows `cols` values.
    unsafe fn run(&self, y: (&mut [f32], usize), sums: &mut [Lanes]) {
        let (y, stride) = y;
        let whole = self.cols / 16 * 16;
        for x0 in (0..self.x.rows).step_by(self.group) {
            let n = (self.x.rows - x0).min(self.group);
            for r0 in (0..self.height).step_by(self.band) {
                let rows = (self.height - r0).min(self.band);
                let sums = &mut sums[..rows * n];
                sums.fill(Lanes([0.0; 16]));
                for k in (0..whole).step_by(self.chunk) {
                    let len = (whole - k).min(self.chunk);
                    // SAFETY: the caller's contract; rows, activation rows and k lie inside.
                    unsafe { self.chunk((r0, rows), (x0, n), (k, len), sums) };
                }
                // SAFETY: as above.
                unsafe { self.finish((r0, rows), (x0, n), sums, (&mut *y, stride)) };
            }
        }
    }

    /// One chunk of k for a band and a group.
    unsafe fn chunk(
        &self,
        rows: (usize, usize),
        acts: (usize, usize),
        k: (usize, usize),
        sums: &mut [Lanes],
    ) {
        let ((r0, rows), (x0, acts), (k, len), t) = (rows, acts, k, &self.tiles);
        // Equal shares rather than a small rest: 4 = 2 + 2.
        let shares = acts.div_ceil(t.acts);
        for share in 0..shares {
            let n = acts * share / shares;
            let wide = acts * (share + 1) / shares - n;
            for r in (0..rows).step_by(t.rows) {
                let high = (rows - r).min(t.rows);
                // The next tile of this chunk, the next chunk of this band, or the next band.
                let next = if r + t.rows < rows {
                    self.at(r0 + r + t.rows, k)
                } else if k + len < self.cols {
                    self.at(r0, k + len)
                } else {
                    self.at(r0 + rows, 0)
                };
                let part = Part {
                    w: self.at(r0 + r, k),
                    x: self.x.x[(x0 + n) * self.x.stride + k..].as_ptr(),
                    x_stride: self.x.stride,
                    len,
                    sums: sums[r * acts + n..].as_mut_ptr(),
                    sums_stride: acts,
                    next: next.at,
                };
                // SAFETY: the caller's contract; the tile has `high` rows and `wide` activation rows.
                unsafe { t.tiles[(high - 1) * t.acts + wide - 1](&part) };
            }
        }
    }

    /// The weights of a row from value k, the start of a half of lanes.
    fn at(&self, row: usize, k: usize) -> Chunk {
        let width = self.tiles.width;
        match self.w {
            Weights::File(at, bytes) => Chunk {
                at: at.wrapping_add(row * bytes + k * width),
                row: bytes,
                step: 16 * width,
                half: 8 * width,
            },
            Weights::Packed(p) => {
                let [row_step, step, half] = p.strides().map(|s| s * 4);
                Chunk { at: p.at.wrapping_add(p.offset(row, k)).cast(), row: row_step, step, half }
            }
        }
    }

    /// Adds the last `cols % 16` values and folds the lanes.
    unsafe fn finish(
        &self,
        rows: (usize, usize),
        acts: (usize, usize),
        sums: &mut [Lanes],
        y: (&mut [f32], usize),
    ) {
        let ((r0, rows), (x0, acts), (y, stride)) = (rows, acts, y);
        for k in self.cols / 16 * 16..self.cols {
            for r in 0..rows {
                let at = self.at(r0 + r, k / 8 * 8).at.wrapping_add(k % 8 * self.tiles.width);
                // SAFETY: value k of row r0 + r lies in the weights.
                let w = unsafe { (self.tiles.scalar)(at) };
                for n in 0..acts {
                    let lane = &mut sums[r * acts + n].0[k % 16];
                    *lane = w.mul_add(self.x.x[(x0 + n) * self.x.stride + k], *lane);
                }
            }
        }
        for n in 0..acts {
            let out = &mut y[(x0 + n) * stride + r0..][..rows];
            let mut r = 0;
            while r + 8 <= rows {
                // SAFETY: AVX2 is part of every vector class; eight sums `acts` apart follow, and 8 floats of `out`.
                unsafe {
                    let from = sums[r * acts + n..].as_ptr();
                    avx2::float::fold8(from.cast(), acts * 16, out[r..].as_mut_ptr());
                }
                r += 8;
            }
            for r in r..rows {
                out[r] = math::tree16(&sums[r * acts + n].0);
            }
        }
    }
}
