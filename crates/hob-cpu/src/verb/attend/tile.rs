//! A tile of query rows that share a KV head: its memory, its masks, and the choice of kernels.

use std::ops::Range;

use hob_compute::reference::attention::{Scoring, seen, sink_score};
use hob_compute::{BLOCK_POSITIONS, PAGE_POSITIONS, PageSpec, math};

use super::packed::{self, Queries, QueryRows};
use super::portable;
#[cfg(target_arch = "x86_64")]
use super::vector::{self, Cuts};
use crate::isa::Isa;
use crate::verb::kv;

/// Which kernels compute a tile.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Portable,
    Avx2,
    Avx512,
}

impl Form {
    /// For V of so many dimensions.
    pub fn choose(isa: Isa, value_dim: usize) -> Form {
        match isa {
            Isa::Avx512 if value_dim.is_multiple_of(16) => Form::Avx512,
            Isa::Avx2 | Isa::AvxVnni | Isa::Avx512 if value_dim.is_multiple_of(8) => Form::Avx2,
            _ => Form::Portable,
        }
    }
}

/// Plain loops cut nothing.
#[cfg(not(target_arch = "x86_64"))]
pub(super) struct Cuts;

/// Most rows of a register tile.
const ROWS: usize = 6;

/// Query rows ordered by batch row, then head. Row `t` belongs to batch row `t / group` of the tile.
#[derive(Copy, Clone, Debug)]
pub(super) struct Tile {
    pub rows: usize,
    /// Query heads per KV head.
    pub group: usize,
    /// Position of the first batch row; each following one is at the next.
    pub position: usize,
    /// Positions that a row sees, its own included; `None` is all.
    pub window: Option<usize>,
    pub head_dim: usize,
    pub value_dim: usize,
}

/// Where the parts of a KV head lie in a page, worked out once: every block asks for them several times.
pub(super) struct Lay {
    /// The page's own spec.
    pub spec: PageSpec,
    /// Bytes of a KV head.
    pub bytes: usize,
    /// K and V of every block.
    parts: [[Range<usize>; 2]; PAGE_POSITIONS / BLOCK_POSITIONS],
}

impl Lay {
    pub fn new(spec: PageSpec) -> Lay {
        Lay { spec, bytes: spec.head_bytes(), parts: std::array::from_fn(|block| spec.parts(0, block)) }
    }
}

/// One KV head of one page.
pub(super) struct View<'a> {
    pub kv: &'a [u8],
    /// The same of the page that will be read next, or nothing.
    pub next: &'a [u8],
    pub lay: &'a Lay,
    /// Index of the page in its sequence.
    pub page: usize,
    pub scoring: Scoring,
    pub packed: &'static packed::Kernels,
}

impl<'a> View<'a> {
    /// K part of a block.
    pub fn k(&self, block: usize) -> &'a [u8] {
        &self.kv[self.lay.parts[block][0].clone()]
    }

    /// V part of a block; empty where V is a part of K.
    pub fn v(&self, block: usize) -> &'a [u8] {
        &self.kv[self.lay.parts[block][1].clone()]
    }

    /// The same, made in `turned` where the page has none.
    pub fn values<'v>(&self, isa: Isa, block: usize, turned: &'v mut [u8]) -> &'v [u8]
    where
        'a: 'v,
    {
        let spec = &self.lay.spec;
        let Some(dims) = spec.latent else { return self.v(block) };
        let format = spec.k_format(block);
        let part = &mut turned[..BLOCK_POSITIONS * format.vector_bytes(dims)];
        kv::turn(isa, format, self.k(block), (spec.head_dim, dims), part);
        part
    }

    /// What is read after the V part of the last block: K of the next page, as far as it is like this one.
    pub fn after(&self) -> &'a [u8] {
        &self.next[..self.next.len().min(self.lay.parts[1][0].len())]
    }
}

/// The queries of a tile, in the forms that K's formats want.
#[derive(Copy, Clone)]
pub(super) struct Asked<'a> {
    /// Packed for the float kernels, [`Tile::pack`].
    pub floats: &'a [f32],
    /// Empty where K is not packed.
    pub packed: &'a Queries<'a>,
    pub cuts: &'a Cuts,
}

/// What the walk of a page works in.
pub(super) struct Room<'a> {
    /// `[rows, 256]`
    pub scores: &'a mut [f32],
    /// A block of V, where pages have it within K.
    pub turned: &'a mut [u8],
}

/// A thread's memory, cut for a tile.
pub(super) struct Memory<'a> {
    /// Packed queries.
    pub q: &'a mut [f32],
    /// The same quantized.
    pub queries: Queries<'a>,
    pub room: Room<'a>,
    /// Result of one page: maxima, sums, weighted V.
    pub part: &'a mut [f32],
    /// Result of the pages so far.
    pub state: &'a mut [f32],
}

impl<'a> Memory<'a> {
    pub fn floats(rows: usize, spec: &PageSpec) -> usize {
        let head_dim = spec.head_dim;
        rows * (head_dim + PAGE_POSITIONS)
            + Self::turned_floats(spec.latent)
            + Queries::floats(rows, head_dim)
            + 2 * Self::part_floats(rows, head_dim)
    }

    /// Of a block of f16 values, which no format exceeds.
    fn turned_floats(latent: Option<usize>) -> usize {
        latent.map_or(0, |dims| BLOCK_POSITIONS * dims.next_multiple_of(2) / 2)
    }

    /// Room for a partial result, maxima, sums, then `[rows, value_dim]`, or for as many queries.
    pub fn part_floats(rows: usize, head_dim: usize) -> usize {
        rows * (head_dim + 2)
    }

    pub fn split(memory: &'a mut [f32], tile: &Tile, latent: Option<usize>) -> Memory<'a> {
        let part = Self::part_floats(tile.rows, tile.head_dim);
        // First, where the memory is aligned as kernels want a part of a page to be.
        let (turned, memory) = memory.split_at_mut(Self::turned_floats(latent));
        // SAFETY: bytes have no alignment, and any bits are values of both.
        let turned = unsafe { turned.align_to_mut::<u8>().1 };
        let (scores, rest) = memory.split_at_mut(tile.rows * PAGE_POSITIONS);
        let (q, rest) = rest.split_at_mut(tile.rows * tile.head_dim);
        let (queries, rest) = rest.split_at_mut(Queries::floats(tile.rows, tile.head_dim));
        let (part, rest) = rest.split_at_mut(part);
        let state = &mut rest[..part.len()];
        let (queries, room) = (Queries::new(queries, tile.rows, tile.head_dim), Room { scores, turned });
        Memory { q, queries, room, part, state }
    }
}

/// A partial result cut into maxima, sums and weighted V.
pub(super) struct Partial<'a> {
    pub max: &'a mut [f32],
    pub sum: &'a mut [f32],
    /// `[rows, value_dim]`
    pub acc: &'a mut [f32],
}

impl Tile {
    /// Positions of page `page` that query row `t` sees, within 0..256; ascends with `t` at both ends, and is empty at
    /// 0 before and at 256 behind those that see any.
    pub fn seen(&self, t: usize, page: usize) -> Range<usize> {
        let seen = seen(self.position + t / self.group, self.window);
        let inside = |at: usize| at.saturating_sub(page * PAGE_POSITIONS).min(PAGE_POSITIONS);
        inside(seen.start)..inside(seen.end)
    }

    /// The first page that query row `t` sees.
    fn first_page(&self, t: usize) -> usize {
        seen(self.position + t / self.group, self.window).start / PAGE_POSITIONS
    }

    /// Pages that any row sees.
    pub fn pages(&self) -> Range<usize> {
        let last = self.position + (self.rows - 1) / self.group;
        self.first_page(0)..last / PAGE_POSITIONS + 1
    }

    /// Rows of a chunk.
    pub fn chunk_rows(&self) -> usize {
        even(self.rows, ROWS)
    }

    /// How kernels of a form cut K and V.
    pub fn cuts(&self, form: Form) -> Cuts {
        #[cfg(target_arch = "x86_64")]
        if form == Form::Avx512 {
            return Cuts::new::<vector::Avx512>(self);
        }
        #[cfg(target_arch = "x86_64")]
        return Cuts::new::<vector::Avx2>(self);
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = form;
            Cuts
        }
    }

    /// The rows in chunks `(first, rows)`: as few as registers allow, of equal size but for the last.
    pub fn chunks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        chunks(self.rows, self.chunk_rows())
    }

    /// Rows of a chunk of the packed kernels.
    pub fn packed_rows(&self, kernels: &packed::Kernels) -> usize {
        even(self.rows, kernels.rows)
    }

    /// Brings the queries into the forms that K of `spec` wants. Uses `state` for a while.
    pub fn ask<'q>(
        &self,
        isa: Isa,
        kernels: &packed::Kernels,
        spec: &PageSpec,
        row: impl Fn(usize) -> &'q [f32],
        memory: &mut Memory,
    ) {
        if !spec.k.is_packed() {
            return self.pack(row, memory.q);
        }
        let dim = self.head_dim;
        for (t, plain) in memory.state[..self.rows * dim].chunks_exact_mut(dim).enumerate() {
            plain.copy_from_slice(row(t));
            if spec.k.is_rotated() {
                kv::hadamard(isa, plain);
            }
        }
        let plain = &memory.state[..self.rows * dim];
        if self.first_page(0) == 0 {
            self.pack(|t| &plain[t * dim..][..dim], memory.q);
        }
        let step = self.packed_rows(kernels);
        let from = QueryRows { q: plain, rows: self.rows, head_dim: dim, step, format: spec.k };
        // SAFETY: the kernels were chosen for an ISA that this CPU has.
        unsafe { (kernels.quantize)(&mut memory.queries, from) };
    }

    /// Packs queries so that the float kernels read them in order: for every chunk `[head_dim, rows of the chunk]`.
    pub fn pack<'q>(&self, row: impl Fn(usize) -> &'q [f32], to: &mut [f32]) {
        for (first, rows) in self.chunks() {
            let to = &mut to[first * self.head_dim..];
            for t in 0..rows {
                for (to, &q) in to[t..].iter_mut().step_by(rows).zip(row(first + t)) {
                    *to = q;
                }
            }
        }
    }

    pub fn partial<'p>(&self, memory: &'p mut [f32]) -> Partial<'p> {
        let (max, rest) = memory.split_at_mut(self.rows);
        let (sum, acc) = rest.split_at_mut(self.rows);
        Partial { max, sum, acc }
    }

    /// Computes one page into `part`. Rows that see nothing of it are left undefined.
    pub fn page(&self, form: Form, q: Asked, view: &View, room: &mut Room, part: &mut [f32]) {
        let part = self.partial(part);
        #[cfg(target_arch = "x86_64")]
        {
            // SAFETY: the form was chosen for the detected ISA and a fitting head_dim.
            unsafe {
                match form {
                    Form::Avx2 => return vector::page::<vector::Avx2>(self, q, view, room, part),
                    Form::Avx512 => return vector::page::<vector::Avx512>(self, q, view, room, part),
                    Form::Portable => {}
                }
            }
        }
        let _ = form;
        portable::page(self, q, view, room, part);
    }

    /// Adds page `page`, computed in `part`, to `state`; a row's first page becomes its state.
    pub fn fold(&self, form: Form, page: usize, state: &mut [f32], part: &mut [f32]) {
        let (state, part) = (self.partial(state), self.partial(part));
        for t in 0..self.rows {
            if self.seen(t, page).is_empty() {
                continue;
            }
            let span = t * self.value_dim..(t + 1) * self.value_dim;
            let (sum, acc) = (&mut state.sum[t..t + 1], &mut state.acc[span.clone()]);
            if page == self.first_page(t) {
                (state.max[t], sum[0]) = (part.max[t], part.sum[t]);
                acc.copy_from_slice(&part.acc[span]);
                continue;
            }
            let m = state.max[t].max(part.max[t]);
            let (a, b) = (exp2(form, state.max[t] - m), exp2(form, part.max[t] - m));
            state.max[t] = m;
            blend(form, sum, a, &part.sum[t..t + 1], b);
            blend(form, acc, a, &part.acc[span], b);
        }
    }

    /// Scores of a block whose K part is packed, for all rows.
    pub fn score_packed(&self, q: &Queries, view: &View, (block, next): (usize, &[u8]), scores: &mut [f32]) {
        let format = view.lay.spec.k_format(block);
        let (dim, step) = (self.head_dim, self.packed_rows(view.packed));
        for (first, rows) in chunks(self.rows, step) {
            if !self.any_sees(first, rows, view.page, block) {
                continue;
            }
            let (words, scales, sums) = q.chunk(format, dim, first, rows);
            let mut args = packed::ScoreArgs {
                k: view.k(block),
                head_dim: dim,
                rows,
                words,
                scales,
                sums,
                factor: view.scoring.factor,
                out: &mut scores[first * PAGE_POSITIONS + block * BLOCK_POSITIONS..],
                ahead: self.share(next, first, rows),
            };
            // SAFETY: the kernels were chosen for an ISA that this CPU has.
            unsafe { view.packed.scores(format, &mut args) };
        }
    }

    /// Adds a block whose V part is packed, for all rows; their weights become 0 where they see nothing of it.
    pub fn weigh_packed(
        &self,
        view: &View,
        (block, v, next): (usize, &[u8], &[u8]),
        scores: &mut [f32],
        acc: &mut [f32],
    ) {
        let (start, format) = (block * BLOCK_POSITIONS, view.lay.spec.v_format(block));
        for (first, rows) in chunks(self.rows, self.packed_rows(view.packed)) {
            if !self.any_sees(first, rows, view.page, block) {
                continue;
            }
            // Not even asked for a page that all rows see: few rows wait for this.
            let partly = if self.all_see(view.page) { 0..0 } else { first..first + rows };
            for t in partly {
                let seen = self.seen(t, view.page);
                let p = &mut scores[t * PAGE_POSITIONS + start..][..BLOCK_POSITIONS];
                p[..seen.start.saturating_sub(start).min(BLOCK_POSITIONS)].fill(0.0);
                p[seen.end.saturating_sub(start).min(BLOCK_POSITIONS)..].fill(0.0);
            }
            let mut args = packed::WeighArgs {
                v,
                head_dim: self.value_dim,
                rows,
                p: &scores[first * PAGE_POSITIONS + start..],
                acc: &mut acc[first * self.value_dim..][..rows * self.value_dim],
                ahead: self.share(next, first, rows),
            };
            // SAFETY: the kernels were chosen for an ISA that this CPU has.
            unsafe { view.packed.weigh(format, &mut args) };
        }
    }

    /// Whether all rows see all of a page, unless a window makes that less obvious.
    fn all_see(&self, page: usize) -> bool {
        self.window.is_none() && self.position >= (page + 1) * PAGE_POSITIONS - 1
    }

    /// Whether any of some rows sees any position of a block.
    fn any_sees(&self, first: usize, rows: usize, page: usize, block: usize) -> bool {
        if self.all_see(page) {
            return true;
        }
        let start = block * BLOCK_POSITIONS;
        let most = self.seen(first, page).start..self.seen(first + rows - 1, page).end;
        most.start < start + BLOCK_POSITIONS && most.end > start
    }

    /// The part of `next` that some rows ask for ahead.
    fn share<'n>(&self, next: &'n [u8], first: usize, rows: usize) -> &'n [u8] {
        if rows == self.rows {
            return next;
        }
        &next[next.len() * first / self.rows..next.len() * (first + rows) / self.rows]
    }

    /// `out = acc / sum` of query row `t`, after its head's sink joined.
    pub fn finish(&self, form: Form, state: &[f32], t: usize, sink: Option<f32>, out: &mut [f32]) {
        let (max, mut sum) = (state[t], state[self.rows + t]);
        let acc = &state[2 * self.rows + t * self.value_dim..][..self.value_dim];
        let Some(logit) = sink else {
            return out.iter_mut().zip(acc).for_each(|(o, a)| *o = a / sum);
        };
        let score = sink_score(logit);
        let m = max.max(score);
        let a = exp2(form, max - m);
        blend(form, std::slice::from_mut(&mut sum), a, &[1.0], exp2(form, score - m));
        out.iter_mut().zip(acc).for_each(|(o, x)| *o = x * a / sum);
    }
}

/// Rows of a chunk when `rows` rows are cut into as few as `most` allows, of equal size but for the last.
fn even(rows: usize, most: usize) -> usize {
    if rows <= most { rows } else { rows.div_ceil(rows.div_ceil(most)) }
}

/// `rows` rows in chunks `(first, rows)` of `step`; the last may be smaller. No division: kernels wait for this.
pub(super) fn chunks(rows: usize, step: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let n = step.min(rows - first);
        first += n;
        (n > 0).then_some((first - n, n))
    })
}

/// `math::exp2`, which is exactly 1 at 0: what one of every two pages asks for.
fn exp2(form: Form, x: f32) -> f32 {
    if x == 0.0 {
        return 1.0;
    }
    #[cfg(target_arch = "x86_64")]
    if form != Form::Portable {
        use std::arch::x86_64::{_mm256_cvtss_f32, _mm256_set1_ps};
        // SAFETY: a vector form implies AVX2 and FMA.
        return unsafe { _mm256_cvtss_f32(crate::verb::lanes::exp2_8(_mm256_set1_ps(x))) };
    }
    let _ = form;
    math::exp2(x)
}

/// `x = fma(x, a, y * b)`
fn blend(form: Form, x: &mut [f32], a: f32, y: &[f32], b: f32) {
    #[cfg(target_arch = "x86_64")]
    if form != Form::Portable {
        // SAFETY: a vector form implies AVX2 and FMA.
        return unsafe { blend_fma(x, a, y, b) };
    }
    let _ = form;
    x.iter_mut().zip(y).for_each(|(x, y)| *x = x.mul_add(a, y * b));
}

/// # Safety
/// Needs AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn blend_fma(x: &mut [f32], a: f32, y: &[f32], b: f32) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x = x.mul_add(a, y * b));
}
