//! The walk of the vector kernels over one page: scores of all blocks, softmax, weighted V of all blocks.
//!
//! It knows where blocks lie and which rows see which positions; the register tiles are the kernels' own. A block of K
//! or V stays in the L1 cache while all rows of the tile pass over it, f16 as it is: converting costs the kernels
//! almost nothing. A position that a row does not see never enters its sums: register tiles stop at the last position
//! that all their rows see, and the few beyond it are added row by row.

use hob_compute::{BLOCK_POSITIONS, PAGE_POSITIONS};

pub(super) use super::avx2::Avx2;
pub(super) use super::avx512::Avx512;
use super::tile::{Partial, Tile, View};

/// A block of f16 values: `[rows, step]`.
#[derive(Copy, Clone)]
pub(super) struct Source {
    pub ptr: *const u16,
    pub step: usize,
    /// Bytes from any value to one that is needed soon and should be prefetched now; blocks are too short for the
    /// hardware to foresee the next one.
    pub ahead: Option<isize>,
}

impl Source {
    /// The values of a block, followed by `next`, a block of the same size.
    fn new(values: &[u16], step: usize, next: Option<&[u16]>) -> Source {
        let ptr = values.as_ptr();
        Source { ptr, step, ahead: next.map(|n| (n.as_ptr() as isize).wrapping_sub(ptr as isize)) }
    }

    /// Without the first `values`.
    fn skip(self, values: usize) -> Source {
        Source { ptr: self.ptr.wrapping_add(values), ..self }
    }
}

/// Scores of some rows at `tiles` runs of positions.
pub(super) struct ScoreArgs {
    /// K: `[dims, 64]`; tiles lie side by side.
    pub k: Source,
    pub tiles: usize,
    /// Queries: `[dims, rows]`.
    pub q: *const f32,
    pub dims: usize,
    pub scale: f32,
    /// Row `r` at `out + 256 * r`; tiles lie side by side.
    pub out: *mut f32,
}

/// V of some positions weighted by some rows, `tiles` runs of dimensions.
pub(super) struct WeighArgs {
    /// V: `[positions, step]`; tiles lie side by side.
    pub v: Source,
    pub tiles: usize,
    /// Weights of row `r` at `p + 256 * r`.
    pub p: *const f32,
    pub positions: usize,
    /// Row `r` at `acc + r * acc_step`; tiles lie side by side.
    pub acc: *mut f32,
    pub acc_step: usize,
}

/// Register tiles of one ISA. All methods are unsafe: they need the ISA and operands of the size they are told.
pub(super) trait Kernels {
    /// f32 values of a register.
    const LANES: usize;

    /// Vectors per row that `rows` rows leave registers for; a power of two of at most a block.
    fn vectors(rows: usize) -> usize;

    /// # Safety
    /// Needs the ISA; 1..=6 rows and at most `vectors(rows)` vectors of operands as in [`ScoreArgs`].
    unsafe fn scores(rows: usize, vectors: usize, args: &ScoreArgs);

    /// # Safety
    /// Needs the ISA; 1..=6 rows and at most `vectors(rows)` vectors of operands as in [`WeighArgs`].
    unsafe fn weigh(rows: usize, vectors: usize, args: &WeighArgs);

    /// Replaces scores by `exp(score - max)`; gives the maximum and the sum.
    ///
    /// # Safety
    /// Needs the ISA.
    unsafe fn softmax(scores: &mut [f32]) -> (f32, f32);
}

/// One page of a tile.
///
/// # Safety
/// Needs the ISA of `K` and a `head_dim` that is a multiple of its lanes.
pub(super) unsafe fn page<K: Kernels>(
    tile: &Tile,
    q: &[f32],
    view: &View,
    scores: &mut [f32],
    part: Partial,
) {
    let size = tile.rows * tile.head_dim;
    assert!(q.len() >= size && part.acc.len() >= size && scores.len() >= tile.rows * PAGE_POSITIONS);
    assert!(view.kv.len() >= 2 * PAGE_POSITIONS * tile.head_dim && tile.head_dim.is_multiple_of(K::LANES));
    let walk = Walk { tile, q, view, full: tile.seen(0, view.page) == PAGE_POSITIONS };
    // SAFETY: the ISA is the caller's word and the sizes were just checked.
    unsafe {
        walk.scores::<K>(scores);
        for t in 0..tile.rows {
            let row = &mut scores[t * PAGE_POSITIONS..][..walk.most(t, 1)];
            if !row.is_empty() {
                (part.max[t], part.sum[t]) = K::softmax(row);
            }
        }
        part.acc[..size].fill(0.0);
        walk.weigh::<K>(scores, part.acc);
    }
}

struct Walk<'a> {
    tile: &'a Tile,
    q: &'a [f32],
    view: &'a View<'a>,
    /// All rows see all positions.
    full: bool,
}

impl Walk<'_> {
    /// Positions seen by any of the rows `first..first + rows`, which ascend.
    fn most(&self, first: usize, rows: usize) -> usize {
        if self.full { PAGE_POSITIONS } else { self.tile.seen(first + rows - 1, self.view.page) }
    }

    /// Positions seen by all of those rows that see any.
    fn common(&self, first: usize, rows: usize) -> usize {
        if self.full {
            return PAGE_POSITIONS;
        }
        (first..first + rows).map(|t| self.tile.seen(t, self.view.page)).find(|&n| n > 0).unwrap_or(0)
    }

    fn k(&self, block: usize) -> &[u16] {
        let size = BLOCK_POSITIONS * self.tile.head_dim;
        &self.view.kv[2 * block * size..][..size]
    }

    fn v(&self, block: usize) -> &[u16] {
        let size = BLOCK_POSITIONS * self.tile.head_dim;
        &self.view.kv[(2 * block + 1) * size..][..size]
    }

    unsafe fn scores<K: Kernels>(&self, scores: &mut [f32]) {
        let dim = self.tile.head_dim;
        let most = self.most(0, self.tile.rows);
        let blocks = most.div_ceil(BLOCK_POSITIONS);
        for block in 0..blocks {
            let (k, start) = (self.k(block), block * BLOCK_POSITIONS);
            let next = if block + 1 < blocks { self.k(block + 1) } else { self.v(0) };
            for (t, n) in self.tile.chunks() {
                let vectors = K::vectors(n);
                let seen = self.most(t, n).saturating_sub(start).min(BLOCK_POSITIONS);
                let args = ScoreArgs {
                    // One chunk asks for the next block; it is there when the last one is done with this.
                    k: Source::new(k, BLOCK_POSITIONS, Some(next).filter(|_| t == 0)),
                    tiles: seen.div_ceil(vectors * K::LANES),
                    q: self.q[t * dim..].as_ptr(),
                    dims: dim,
                    scale: self.view.scale,
                    out: scores[t * PAGE_POSITIONS + start..].as_mut_ptr(),
                };
                // SAFETY: tiles divide a block, so K and the scores of n rows lie inside the slices.
                unsafe { K::scores(n, vectors, &args) };
            }
        }
    }

    unsafe fn weigh<K: Kernels>(&self, scores: &[f32], acc: &mut [f32]) {
        let dim = self.tile.head_dim;
        let blocks = self.most(0, self.tile.rows).div_ceil(BLOCK_POSITIONS);
        for block in 0..blocks {
            let next = if block + 1 < blocks { Some(self.v(block + 1)) } else { self.view.next };
            for (t, n) in self.tile.chunks() {
                let v = Source::new(self.v(block), dim, next.filter(|_| t == 0));
                for run in runs::<K>(K::vectors(n), dim) {
                    let chunk = Chunk { at: block * BLOCK_POSITIONS, first: t, rows: n };
                    // SAFETY: the run lies inside a row of V and of `acc`.
                    unsafe { self.weigh_chunk::<K>(chunk, run, v, scores, acc) };
                }
            }
        }
    }

    /// Adds the block's positions to some dimensions of a chunk of rows: together up to the last position that all of
    /// them see, then row by row.
    unsafe fn weigh_chunk<K: Kernels>(
        &self,
        chunk: Chunk,
        run: Run,
        v: Source,
        scores: &[f32],
        acc: &mut [f32],
    ) {
        let Chunk { at, first, rows } = chunk;
        let dim = self.tile.head_dim;
        let inside = |seen: usize| seen.saturating_sub(at).min(BLOCK_POSITIONS);
        let common = inside(self.common(first, rows));
        let args = |row: usize, from: usize, positions: usize, acc: &mut [f32]| WeighArgs {
            v: v.skip(from * dim + run.dim),
            tiles: run.tiles,
            p: scores[row * PAGE_POSITIONS + at + from..].as_ptr(),
            positions,
            acc: acc[row * dim + run.dim..].as_mut_ptr(),
            acc_step: dim,
        };
        if common > 0 {
            // SAFETY: the caller's operands, of `rows` rows.
            unsafe { K::weigh(rows, run.vectors, &args(first, 0, common, acc)) };
        }
        if inside(self.most(first, rows)) == common {
            return;
        }
        for row in first..first + rows {
            let seen = inside(self.tile.seen(row, self.view.page));
            if seen > common {
                // SAFETY: as above, one row.
                unsafe { K::weigh(1, run.vectors, &args(row, common, seen - common, acc)) };
            }
        }
    }
}

/// Rows `first..first + rows` and the block of positions from `at` on.
#[derive(Copy, Clone)]
struct Chunk {
    at: usize,
    first: usize,
    rows: usize,
}

/// Dimensions from `dim` on: `tiles` register tiles of `vectors` vectors.
#[derive(Copy, Clone)]
struct Run {
    dim: usize,
    vectors: usize,
    tiles: usize,
}

/// Cuts `dims` dimensions into register tiles: as many of `most` vectors as fit, then ever smaller ones.
fn runs<K: Kernels>(most: usize, dims: usize) -> impl Iterator<Item = Run> {
    let (mut dim, mut vectors) = (0, most);
    std::iter::from_fn(move || {
        while vectors > 1 && vectors * K::LANES > dims - dim {
            vectors /= 2;
        }
        let tiles = (dims - dim) / (vectors * K::LANES);
        let run = Run { dim, vectors, tiles };
        dim += tiles * vectors * K::LANES;
        (tiles > 0).then_some(run)
    })
}
