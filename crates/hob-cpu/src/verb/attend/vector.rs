//! The walk of the vector kernels over one page: scores of all blocks, softmax, weighted V of all blocks.
//!
//! It knows where blocks lie and which rows see which positions; the register tiles are the kernels' own. Blocks of f16
//! and bf16 stay in the L1 cache as they are while all rows of the tile pass over them, since widening costs the kernels
//! almost nothing; packed ones go to [`super::packed`], and each part of a block to the kernels of its format. A position that a row does not see never enters its sums: register
//! tiles take the positions that all their rows see, and the few before and behind them are added row by row.

use std::ops::Range;

use hob_compute::{BLOCK_POSITIONS, PAGE_POSITIONS};
use hob_quant::KvFormat;

pub(super) use super::avx2::Avx2;
pub(super) use super::avx512::Avx512;
use super::tile::{Asked, Partial, Room, Tile, View, chunks};
use crate::isa::Isa;

/// Up to this many rows memory, not arithmetic, sets the pace.
const FEW: usize = 16;
/// Bytes of pages that wait in the L2 cache for their turn: there is no room for more, and smaller ones are better asked
/// for part by part, into the L1 cache.
const STREAM: Range<usize> = 36 << 10..192 << 10;

/// A block of f16 values, or of bf16: `[rows, step]`.
#[derive(Copy, Clone)]
pub(super) struct Source {
    pub ptr: *const u16,
    pub step: usize,
    pub bf16: bool,
    pub ahead: Option<Ahead>,
}

/// What to ask for ahead: every round of a kernel, one row of one tile, prefetches at `at` and moves it by `step` bytes.
#[derive(Copy, Clone)]
pub(super) struct Ahead {
    pub at: *const i8,
    pub step: usize,
}

impl Ahead {
    /// Asks for nothing that matters.
    pub const NONE: Ahead = Ahead { at: std::ptr::null(), step: 0 };
}

/// Spreads the prefetch of the next block evenly over all rounds of the kernels on this one: blocks are too short for
/// the hardware to foresee the next one, and a core has too few miss buffers to ask for all of it in one burst.
struct Fetch(Option<Ahead>);

impl Fetch {
    /// For a block that takes `rounds` rounds.
    fn new(next: &[u8], rounds: usize) -> Fetch {
        let ahead = Ahead { at: next.as_ptr().cast(), step: next.len().div_ceil(rounds) };
        Fetch((!next.is_empty()).then_some(ahead))
    }

    /// The part of the next `rounds` rounds.
    fn take(&mut self, rounds: usize) -> Option<Ahead> {
        let now = self.0;
        if let Some(ahead) = &mut self.0 {
            ahead.at = ahead.at.wrapping_add(rounds * ahead.step);
        }
        now
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
    /// What a product is multiplied by before it is stored.
    pub factor: f32,
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

    /// Most vectors of a register tile of `rows` rows; a power of two of at most a block.
    fn vectors(rows: usize) -> usize;

    /// # Safety
    /// Needs the ISA; 1..=6 rows, a power of two of at most `vectors(rows)` vectors, and operands as in [`ScoreArgs`].
    unsafe fn scores(rows: usize, vectors: usize, args: &ScoreArgs);

    /// # Safety
    /// Needs the ISA; 1..=6 rows, a power of two of at most `vectors(rows)` vectors, and operands as in [`WeighArgs`].
    unsafe fn weigh(rows: usize, vectors: usize, args: &WeighArgs);

    /// Replaces every score by `tanh(score) * cap`.
    ///
    /// # Safety
    /// Needs the ISA.
    unsafe fn cap(scores: &mut [f32], cap: f32);

    /// Replaces scores by `exp2(score - max)`; gives the maximum and the sum.
    ///
    /// # Safety
    /// Needs the ISA.
    unsafe fn softmax(scores: &mut [f32]) -> (f32, f32);
}

/// One page of a tile.
///
/// # Safety
/// Needs the ISA of `K` and a `value_dim` that is a multiple of its lanes.
pub(super) unsafe fn page<K: Kernels>(tile: &Tile, q: Asked, view: &View, room: &mut Room, part: Partial) {
    let Room { scores, turned } = room;
    let size = tile.rows * tile.value_dim;
    assert!(q.floats.len() >= tile.rows * tile.head_dim && part.acc.len() >= size);
    assert!(scores.len() >= tile.rows * PAGE_POSITIONS && view.lay.spec.value_dim() == tile.value_dim);
    assert!(view.kv.len() >= view.lay.bytes && view.lay.spec.head_dim == tile.head_dim);
    assert!(tile.value_dim.is_multiple_of(K::LANES));
    let (first, last) = (tile.seen(0, view.page), tile.seen(tile.rows - 1, view.page));
    let full = first.end == PAGE_POSITIONS && last.start == 0;
    let span = first.start..last.end;
    let mut walk = Walk { tile, q, view, full, span, cuts: q.cuts, stream: None };
    if STREAM.contains(&view.next.len()) && tile.rows <= FEW {
        walk.stream = Some(view.next.len().div_ceil(2 * walk.blocks().len()));
    }
    // SAFETY: the ISA is the caller's word and the sizes were just checked.
    unsafe {
        walk.scores::<K>(scores);
        for t in 0..tile.rows {
            let row = &mut scores[t * PAGE_POSITIONS..][walk.seen(t)];
            if row.is_empty() {
                continue;
            }
            if let Some(cap) = view.scoring.cap {
                K::cap(row, cap);
            }
            (part.max[t], part.sum[t]) = K::softmax(row);
        }
        part.acc[..size].fill(0.0);
        walk.weigh::<K>(scores, turned, part.acc);
    }
}

struct Walk<'a> {
    tile: &'a Tile,
    q: Asked<'a>,
    view: &'a View<'a>,
    /// All rows see all positions.
    full: bool,
    /// Positions that any row sees.
    span: Range<usize>,
    cuts: &'a Cuts,
    /// Bytes of the next page to ask for ahead during a part of this one, where it is read as one stream.
    stream: Option<usize>,
}

impl<'a> Walk<'a> {
    /// Positions that row `t` sees.
    fn seen(&self, t: usize) -> Range<usize> {
        if self.full { 0..PAGE_POSITIONS } else { self.tile.seen(t, self.view.page) }
    }

    /// Positions between the first and the last that any of the rows `first..first + rows` sees.
    fn most(&self, first: usize, rows: usize) -> Range<usize> {
        if self.full { 0..PAGE_POSITIONS } else { self.seen(first).start..self.seen(first + rows - 1).end }
    }

    /// Positions seen by all of those rows that see any.
    fn common(&self, first: usize, rows: usize) -> Range<usize> {
        if self.full {
            return 0..PAGE_POSITIONS;
        }
        let mut seen = (first..first + rows).map(|t| self.seen(t)).filter(|s| !s.is_empty());
        let Some(one) = seen.next() else { return 0..0 };
        seen.next_back().map_or(one.start, |last| last.start)..one.end
    }

    /// Blocks that hold any visible position.
    fn blocks(&self) -> Range<usize> {
        self.span.start / BLOCK_POSITIONS..self.span.end.div_ceil(BLOCK_POSITIONS)
    }

    /// What to ask for ahead during part `step` of this page, its K parts and then its V parts; `next` is the part behind
    /// it. With few rows memory is what everything waits for, and reads best as one stream: the next page from its first
    /// byte to its last, meanwhile kept in the L2 cache.
    fn ahead(&self, step: usize, next: &'a [u8]) -> &'a [u8] {
        let Some(bytes) = self.stream else { return next };
        let page = self.view.next;
        &page[(bytes * step).min(page.len())..(bytes * (step + 1)).min(page.len())]
    }

    /// The rows in chunks.
    fn chunks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        chunks(self.tile.rows, self.cuts.rows)
    }

    unsafe fn scores<K: Kernels>(&self, scores: &mut [f32]) {
        let dim = self.tile.head_dim;
        let blocks = self.blocks();
        for block in blocks.clone() {
            let (k, start) = (self.view.k(block), block * BLOCK_POSITIONS);
            let next =
                if block + 1 < blocks.end { self.view.k(block + 1) } else { self.view.v(blocks.start) };
            let next = self.ahead(block - blocks.start, next);
            let format = self.view.lay.spec.k_format(block);
            if format.is_packed() {
                self.tile.score_packed(self.q.packed, self.view, (block, next), scores);
                continue;
            }
            let mut fetch = Fetch::new(next, self.cuts.rounds[0]);
            for (t, n) in self.chunks() {
                let most = inside(self.most(t, n), start);
                for &run in self.cuts.k(n).runs() {
                    let run = if self.full { run } else { run.within::<K>(&most) };
                    let args = ScoreArgs {
                        k: Source {
                            ptr: k[2 * run.at..].as_ptr().cast(),
                            step: BLOCK_POSITIONS,
                            bf16: format == KvFormat::Bf16,
                            ahead: fetch.take(run.tiles * dim),
                        },
                        tiles: run.tiles,
                        q: self.q.floats[t * dim..].as_ptr(),
                        dims: dim,
                        factor: self.view.scoring.factor,
                        out: scores[t * PAGE_POSITIONS + start + run.at..].as_mut_ptr(),
                    };
                    // SAFETY: the run lies inside a block, so K and the scores of n rows lie inside the slices.
                    unsafe { K::scores(n, run.vectors, &args) };
                }
            }
        }
    }

    unsafe fn weigh<K: Kernels>(&self, scores: &mut [f32], turned: &mut [u8], acc: &mut [f32]) {
        let blocks = self.blocks();
        for block in blocks.clone() {
            let next = if block + 1 < blocks.end { self.view.v(block + 1) } else { self.view.after() };
            let next = self.ahead(blocks.len() + block - blocks.start, next);
            let format = self.view.lay.spec.v_format(block);
            let v = self.view.values(Isa::Avx2, block, turned);
            if format.is_packed() {
                self.tile.weigh_packed(self.view, (block, v, next), scores, acc);
                continue;
            }
            let mut fetch = Fetch::new(next, self.cuts.rounds[1]);
            let bf16 = format == KvFormat::Bf16;
            for (t, n) in self.chunks() {
                let v = Values { values: v, bf16, fetch: &mut fetch };
                let chunk = Chunk { at: block * BLOCK_POSITIONS, first: t, rows: n };
                // SAFETY: the caller's word.
                unsafe { self.weigh_chunk::<K>(chunk, v, scores, acc) };
            }
        }
    }

    /// Adds the block's positions to a chunk of rows: those that all of them see together, the others row by row.
    unsafe fn weigh_chunk<K: Kernels>(&self, chunk: Chunk, v: Values, scores: &[f32], acc: &mut [f32]) {
        let Chunk { at, first, rows } = chunk;
        let common = inside(self.common(first, rows), at);
        let most = inside(self.most(first, rows), at);
        let Values { values: v, bf16, fetch } = v;
        let mut none = Fetch(None);
        let mut alone = |side: &dyn Fn(Range<usize>) -> Range<usize>, acc: &mut [f32]| {
            for first in first..first + rows {
                let chunk = Chunk { at, first, rows: 1 };
                let positions = side(inside(self.seen(first), at));
                let v = Values { values: v, bf16, fetch: &mut none };
                // SAFETY: the caller's word.
                unsafe { self.weigh_rows::<K>(chunk, positions, v, scores, acc) };
            }
        };
        if common.is_empty() {
            return alone(&|seen| seen, acc);
        }
        if most.start < common.start {
            alone(&|seen| seen.start..seen.end.min(common.start), acc);
        }
        // SAFETY: the caller's word.
        unsafe {
            self.weigh_rows::<K>(chunk, common.clone(), Values { values: v, bf16, fetch }, scores, acc)
        };
        if most.end > common.end {
            alone(&|seen| seen.start.max(common.end)..seen.end, acc);
        }
    }

    /// Adds some positions of the chunk's block to all of its rows.
    unsafe fn weigh_rows<K: Kernels>(
        &self,
        chunk: Chunk,
        positions: Range<usize>,
        v: Values,
        scores: &[f32],
        acc: &mut [f32],
    ) {
        if positions.is_empty() {
            return;
        }
        let Chunk { at, first, rows } = chunk;
        let dim = self.tile.value_dim;
        let single;
        let cut = if rows == self.cuts.rows || (rows > 1 && first + rows == self.tile.rows) {
            self.cuts.v(rows)
        } else {
            single = cut::<K>(rows, dim);
            &single
        };
        for run in cut.runs() {
            let args = WeighArgs {
                v: Source {
                    ptr: v.values[2 * (positions.start * dim + run.at)..].as_ptr().cast(),
                    step: dim,
                    bf16: v.bf16,
                    ahead: v.fetch.take(run.tiles * positions.len()),
                },
                tiles: run.tiles,
                p: scores[first * PAGE_POSITIONS + at + positions.start..].as_ptr(),
                positions: positions.len(),
                acc: acc[first * dim + run.at..].as_mut_ptr(),
                acc_step: dim,
            };
            // SAFETY: the run lies inside a row of V and of `acc`, the positions inside the block.
            unsafe { K::weigh(rows, run.vectors, &args) };
        }
    }
}

/// V of a block, and what to ask for meanwhile.
struct Values<'a> {
    values: &'a [u8],
    bf16: bool,
    fetch: &'a mut Fetch,
}

/// What `range` has of the block at `at`, counted from there.
fn inside(range: Range<usize>, at: usize) -> Range<usize> {
    let to = |x: usize| x.saturating_sub(at).min(BLOCK_POSITIONS);
    to(range.start)..to(range.end)
}

/// Rows `first..first + rows` and the block of positions from `at` on.
#[derive(Copy, Clone)]
struct Chunk {
    at: usize,
    first: usize,
    rows: usize,
}

/// Values from `at` on: `tiles` register tiles of `vectors` vectors.
#[derive(Copy, Clone, Debug, Default, PartialEq)]
struct Run {
    at: usize,
    vectors: usize,
    tiles: usize,
}

impl Run {
    /// Only the tiles that have any value of `range`.
    fn within<K: Kernels>(self, range: &Range<usize>) -> Run {
        let width = self.vectors * K::LANES;
        let first = (range.start.saturating_sub(self.at) / width).min(self.tiles);
        let end = range.end.saturating_sub(self.at).div_ceil(width).min(self.tiles);
        Run { at: self.at + first * width, tiles: end.saturating_sub(first), ..self }
    }
}

/// A row of values cut into register tiles: one run of each width.
struct Cut {
    runs: [Run; 4],
    len: usize,
}

impl Cut {
    fn runs(&self) -> &[Run] {
        &self.runs[..self.len]
    }
}

/// How the float kernels cut the rows of a tile's K and V. Known before any page is walked: whatever stands between two
/// kernels is time in which nothing is multiplied.
pub(super) struct Cuts {
    /// Rows of a chunk.
    rows: usize,
    /// A row of K, cut for a chunk and for the last chunk, which may be smaller.
    k: [Cut; 2],
    /// The same of a row of V.
    v: [Cut; 2],
    /// Rounds of the kernels on a K part, and on a V part.
    rounds: [usize; 2],
}

impl Cuts {
    pub fn new<K: Kernels>(tile: &Tile) -> Cuts {
        let rows = tile.chunk_rows();
        let rest = tile.rows - tile.chunks().last().map_or(0, |(first, _)| first);
        let both = |values: usize| [cut::<K>(rows, values), cut::<K>(rest, values)];
        let mut cuts = Cuts { rows, k: both(BLOCK_POSITIONS), v: both(tile.value_dim), rounds: [0; 2] };
        let tiles = |cut: &Cut| cut.runs().iter().map(|r| r.tiles).sum::<usize>();
        let k: usize = tile.chunks().map(|(_, n)| tiles(cuts.k(n))).sum();
        let v: usize = tile.chunks().map(|(_, n)| tiles(cuts.v(n))).sum();
        cuts.rounds = [k * tile.head_dim, v * BLOCK_POSITIONS];
        cuts
    }

    /// A row of K for a chunk of `rows` rows.
    fn k(&self, rows: usize) -> &Cut {
        &self.k[usize::from(rows != self.rows)]
    }

    /// A row of V for a chunk of `rows` rows.
    fn v(&self, rows: usize) -> &Cut {
        &self.v[usize::from(rows != self.rows)]
    }
}

/// Cuts `values` values, whole vectors, into register tiles of `rows` rows, widest first.
fn cut<K: Kernels>(rows: usize, values: usize) -> Cut {
    let mut cut = Cut { runs: [Run::default(); 4], len: 0 };
    let (mut at, mut vectors) = (0, K::vectors(rows));
    while vectors > 0 && at < values {
        let tiles = ((values - at) / K::LANES) >> vectors.ilog2();
        if tiles > 0 {
            cut.runs[cut.len] = Run { at, vectors, tiles };
            cut.len += 1;
            at += tiles * vectors * K::LANES;
        }
        vectors /= 2;
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers<K: Kernels>() {
        for rows in 1..=6 {
            for values in (0..80).map(|n| n * K::LANES) {
                let cut = cut::<K>(rows, values);
                let mut at = 0;
                for run in cut.runs() {
                    assert_eq!(run.at, at);
                    assert!(run.tiles > 0 && run.vectors <= K::vectors(rows));
                    at += run.tiles * run.vectors * K::LANES;
                }
                assert_eq!(at, values, "{rows} rows");
            }
        }
    }

    #[test]
    fn cuts_cover_every_value_once() {
        covers::<Avx2>();
        covers::<Avx512>();
    }

    #[test]
    fn a_run_within_a_range_keeps_the_tiles_that_touch_it() {
        let run = Run { at: 16, vectors: 2, tiles: 3 };
        for (range, first, tiles) in
            [(0..16, 0, 0), (0..17, 0, 1), (31..33, 0, 2), (32..64, 1, 2), (63..64, 2, 1), (64..64, 3, 0)]
        {
            let found = run.within::<Avx2>(&range);
            assert_eq!(found, Run { at: 16 + 16 * first, tiles, ..run }, "{range:?}");
        }
    }
}
