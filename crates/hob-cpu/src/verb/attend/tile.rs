//! A tile of query rows that share a KV head: its memory, its masks, and the choice of kernels.

use std::ops::Range;

use hob_compute::reference::attention::{Scoring, seen, sink_score};
use hob_compute::{PAGE_POSITIONS, math};

use super::portable;
use crate::isa::Isa;

/// Which kernels compute a tile.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Portable,
    Avx2,
    Avx512,
}

impl Form {
    pub fn choose(isa: Isa, head_dim: usize) -> Form {
        match isa {
            Isa::Avx512 if head_dim.is_multiple_of(16) => Form::Avx512,
            Isa::Avx2 | Isa::AvxVnni | Isa::Avx512 if head_dim.is_multiple_of(8) => Form::Avx2,
            _ => Form::Portable,
        }
    }
}

/// Most rows of a register tile.
const ROWS: usize = 6;

/// Query rows ordered by batch row, then head. Row `t` belongs to batch row `t / group` of the tile.
#[derive(Copy, Clone)]
pub(super) struct Tile {
    pub rows: usize,
    /// Query heads per KV head.
    pub group: usize,
    /// Position of the first batch row; each following one is at the next.
    pub position: usize,
    /// Positions that a row sees, its own included; `None` is all.
    pub window: Option<usize>,
    pub head_dim: usize,
}

/// One KV head of one page.
pub(super) struct View<'a> {
    pub kv: &'a [u16],
    /// The same of the page that will be read next, if any; only vector kernels ask for it ahead.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub next: Option<&'a [u16]>,
    /// Index of the page in its sequence.
    pub page: usize,
    pub scoring: Scoring,
}

/// A thread's memory, cut for a tile.
pub(super) struct Memory<'a> {
    /// Packed queries.
    pub q: &'a mut [f32],
    /// `[rows, 256]`
    pub scores: &'a mut [f32],
    /// Result of one page: maxima, sums, weighted V.
    pub part: &'a mut [f32],
    /// Result of the pages so far.
    pub state: &'a mut [f32],
}

impl<'a> Memory<'a> {
    pub fn floats(rows: usize, head_dim: usize) -> usize {
        rows * (head_dim + PAGE_POSITIONS) + 2 * Self::part_floats(rows, head_dim)
    }

    /// A partial result: maxima, sums, then `[rows, head_dim]`.
    pub fn part_floats(rows: usize, head_dim: usize) -> usize {
        rows * (head_dim + 2)
    }

    pub fn split(memory: &'a mut [f32], tile: &Tile) -> Memory<'a> {
        let part = Self::part_floats(tile.rows, tile.head_dim);
        let (scores, rest) = memory.split_at_mut(tile.rows * PAGE_POSITIONS);
        let (q, rest) = rest.split_at_mut(tile.rows * tile.head_dim);
        let (part, rest) = rest.split_at_mut(part);
        let state = &mut rest[..part.len()];
        Memory { q, scores, part, state }
    }
}

/// A partial result cut into maxima, sums and weighted V.
pub(super) struct Partial<'a> {
    pub max: &'a mut [f32],
    pub sum: &'a mut [f32],
    /// `[rows, head_dim]`
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
        self.rows.div_ceil(self.rows.div_ceil(ROWS))
    }

    /// The rows in chunks `(first, rows)`: as few as registers allow, of equal size but for the last.
    pub fn chunks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        chunks(self.rows, self.chunk_rows())
    }

    /// Packs queries so that the kernels read them in order: for every chunk `[head_dim, rows of the chunk]`.
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
    pub fn page(&self, form: Form, q: &[f32], view: &View, scores: &mut [f32], part: &mut [f32]) {
        let part = self.partial(part);
        #[cfg(target_arch = "x86_64")]
        {
            use super::vector;
            // SAFETY: the form was chosen for the detected ISA and a fitting head_dim.
            unsafe {
                match form {
                    Form::Avx2 => return vector::page::<vector::Avx2>(self, q, view, scores, part),
                    Form::Avx512 => return vector::page::<vector::Avx512>(self, q, view, scores, part),
                    Form::Portable => {}
                }
            }
        }
        let _ = form;
        portable::page(self, q, view, scores, part);
    }

    /// Adds page `page`, computed in `part`, to `state`; a row's first page becomes its state.
    pub fn fold(&self, form: Form, page: usize, state: &mut [f32], part: &mut [f32]) {
        let (state, part) = (self.partial(state), self.partial(part));
        for t in 0..self.rows {
            if self.seen(t, page).is_empty() {
                continue;
            }
            let span = t * self.head_dim..(t + 1) * self.head_dim;
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

    /// `out = acc / sum` of query row `t`, after its head's sink joined.
    pub fn finish(&self, form: Form, state: &[f32], t: usize, sink: Option<f32>, out: &mut [f32]) {
        let (max, mut sum) = (state[t], state[self.rows + t]);
        let acc = &state[2 * self.rows + t * self.head_dim..][..self.head_dim];
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
