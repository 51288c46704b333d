//! Attention of the oracle, one query head at a time: the rules that every kernel repeats.
//!
//! # Pages
//! The unit is the absolute page of 256 positions. Within a page a position has a score, `dot` of its K scaled and capped
//! by [`Scoring`], which counts in powers of 2; `p = exp2(score - page maximum)`; the sum of `p` is taken in 16 lanes over
//! ascending positions, the first visible one in lane 0; `acc[dim]`, V weighted by `p`, is one chain of fma that starts at
//! +0 and continues over ascending blocks of 64 positions. Only visible positions take part, and pages without any are
//! not read. Pages are folded in ascending order with [`Partial::fold`], then the sink with [`Partial::sink`], and `acc`
//! is divided by the sum.
//!
//! K and V of a block are each in a format of their own ([`PageSpec::k_format`], [`PageSpec::v_format`]). Where K's side is
//! rotated, `q` goes through [`hadamard`] before all else; where V's side is, the result does after all else.
//!
//! # `dot`, by the format of K
//! - f16, bf16: one fma chain over ascending dimensions of `q` and the widened value, from +0.
//! - q8, q4: `q` is made of integers by groups of 32 dimensions ([`QueryGroup`]): `a` is the largest magnitude,
//!   `codes = round_ties_even(q * (n / a))` and `scale = a / n`, where `n` is 32767 for q8 and 127 for q4; codes are 0 where `a` or
//!   `n / a` is not finite. From +0 over ascending groups, `dot = fma(sum of products as f32, scale * d, dot)` with `d` the
//!   scale of K. The sum of 32 products is exact.
//! - asym4: as q4 with K's unsigned codes, and after each group `dot = fma(sum of q's codes as f32, scale * m, dot)` with
//!   `m` the minimum of K.
//!
//! # `acc`, by the format of V, per block
//! - f16, bf16: `acc = fma(p, value, acc)` over ascending visible positions.
//! - q8, q4, asym4: per group of 32 dimensions `x = p * d` for every visible position, `d` the scale of V there, and `m` the
//!   largest `x`. Weights are `w = round_ties_even(x * (n / m))`, where `n` is 32767 for q8 and 255 for the others, and
//!   `acc = fma(sum of w * code as f32, m / n, acc)`; the sum of 64 products is exact. Where `n / m` is not finite nothing is
//!   added.
//! - asym4 then adds to all dimensions of the group the sum of `p * minimum`, one fma chain over ascending visible
//!   positions from +0, unless it is 0.
//!
//! The relative error of a weighted sum is that of V's format and the weights' step: half of 1/255 of the largest weight in
//! the block, of which an average takes the square root of how many there are.
//!
//! Where V is a part of K ([`PageSpec::latent`]) all of this holds for the values of K's first dimensions; a rotated V is
//! turned back in the blocks that K was mixed in.
//!
//! An exact device keeps f32 and follows the rules of f16, without any rotation.

use std::f32::consts::LOG2_E;
use std::ops::Range;

use hob_quant::hadamard;

use super::parts::{Prepared, weigh};
use crate::math;
use crate::{Attend, BLOCK_POSITIONS, PAGE_POSITIONS, PageSpec, Result};

/// From `q . k` to a score, the exponent of 2 of a position's weight.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct Scoring {
    /// What `q . k` is multiplied by.
    pub factor: f32,
    /// What the hyperbolic tangent of that is multiplied by, if there is a softcap.
    pub cap: Option<f32>,
}

impl Scoring {
    /// Without a cap `q . k * (scale * log2 e)`, else `tanh(q . k * (scale / cap)) * (cap * log2 e)`.
    pub fn new(scale: f32, softcap: Option<f32>) -> Scoring {
        match softcap {
            None => Scoring { factor: scale * LOG2_E, cap: None },
            Some(cap) => Scoring { factor: scale / cap, cap: Some(cap * LOG2_E) },
        }
    }

    /// The score of `dot = q . k`.
    pub fn score(&self, dot: f32) -> f32 {
        let x = dot * self.factor;
        self.cap.map_or(x, |cap| math::tanh(x) * cap)
    }
}

/// A sink's logit as a score.
pub fn sink_score(logit: f32) -> f32 {
    logit * LOG2_E
}

/// The positions that the row at `position` sees.
pub fn seen(position: usize, window: Option<usize>) -> Range<usize> {
    window.map_or(0, |w| (position + 1).saturating_sub(w))..position + 1
}

/// What one query head keeps of some pages.
#[derive(Clone, Debug, PartialEq)]
pub struct Partial {
    /// Largest score.
    pub max: f32,
    /// Sum of `exp2(score - max)`.
    pub sum: f32,
    /// `[value_dim]` V weighted by `exp2(score - max)`.
    pub acc: Vec<f32>,
}

impl Partial {
    /// Adds the next page: with `m` the larger maximum, `a = exp2(max - m)` and `b = exp2(next.max - m)`, every
    /// value `x` becomes `fma(x, a, next_x * b)`.
    pub fn fold(&mut self, next: &Partial) {
        let m = self.max.max(next.max);
        let (a, b) = (math::exp2(self.max - m), math::exp2(next.max - m));
        self.max = m;
        self.sum = self.sum.mul_add(a, next.sum * b);
        for (x, &n) in self.acc.iter_mut().zip(&next.acc) {
            *x = x.mul_add(a, n * b);
        }
    }

    /// Adds a sink: with `m`, `a` and `b` as in [`Partial::fold`], the sum becomes `fma(sum, a, b)` and `acc` is
    /// multiplied by `a`.
    pub fn sink(&mut self, logit: f32) {
        let score = sink_score(logit);
        let m = self.max.max(score);
        let a = math::exp2(self.max - m);
        self.max = m;
        self.sum = self.sum.mul_add(a, math::exp2(score - m));
        self.acc.iter_mut().for_each(|x| *x *= a);
    }

    /// `out = acc / sum`
    pub fn finish(&self, out: &mut [f32]) {
        for (o, &a) in out.iter_mut().zip(&self.acc) {
            *o = a / self.sum;
        }
    }
}

/// One query head of one row, and what `attend` was told about it.
#[derive(Copy, Clone, Debug)]
pub struct Query<'a> {
    /// `[head_dim]`
    pub q: &'a [f32],
    /// Without [`PageSpec::first`].
    pub spec: PageSpec,
    pub kv_head: usize,
    pub scoring: Scoring,
    pub window: Option<usize>,
    /// The head's sink logit.
    pub sink: Option<f32>,
}

/// What a page holds.
#[derive(Copy, Clone, Debug)]
pub enum Held<'p> {
    /// f32 of an exact device, where [`PageSpec::k_at`] and [`PageSpec::v_at`] say.
    Exact(&'p [f32]),
    /// What [`crate::Compute::read_positions`] gives for the whole page.
    Image(&'p [u8]),
}

impl<'a> Query<'a> {
    /// Query head `head` of checked arguments; `spec` is that of the pages.
    pub fn new(args: &Attend, spec: PageSpec, head: usize, q: &'a [f32], sink: Option<f32>) -> Query<'a> {
        Query {
            q,
            spec,
            kv_head: head / (args.heads / args.kv_heads),
            scoring: Scoring::new(args.scale, args.softcap),
            window: args.window,
            sink,
        }
    }

    /// Attention of the row at `position`. `page` gives what a page holds by its index in the sequence and is asked for
    /// no page without visible positions.
    ///
    /// # Errors
    /// Those of `page`.
    pub fn attend<'p>(
        &self,
        position: usize,
        page: impl Fn(usize) -> Result<Held<'p>>,
        out: &mut [f32],
    ) -> Result<()> {
        let seen = seen(position, self.window);
        let query = Prepared::new(self.q, self.spec.k);
        let mut rotated = false;
        let mut state: Option<Partial> = None;
        for index in seen.start / PAGE_POSITIONS..seen.end.div_ceil(PAGE_POSITIONS) {
            let start = index * PAGE_POSITIONS;
            let here = seen.start.saturating_sub(start)..(seen.end - start).min(PAGE_POSITIONS);
            let next = match page(index)? {
                Held::Exact(values) => self.exact_page(values, here),
                Held::Image(image) => {
                    rotated = self.spec.v.is_rotated();
                    self.page(&query, Vectors { spec: self.spec.of_page(index), image }, here)
                }
            };
            match &mut state {
                Some(state) => state.fold(&next),
                None => state = Some(next),
            }
        }
        if let Some(mut state) = state {
            if let Some(logit) = self.sink {
                state.sink(logit);
            }
            state.finish(out);
        }
        if rotated {
            out.chunks_mut(self.spec.mixed_dims()).for_each(hadamard);
        }
        Ok(())
    }

    /// The part of one page; `visible` is a range of its positions that is not empty.
    fn page(&self, query: &Prepared, page: Vectors, visible: Range<usize>) -> Partial {
        let dot = |at: usize| {
            let format = page.spec.k_format(at / BLOCK_POSITIONS);
            query.dot(format, page.vectors(at, self.kv_head)[0])
        };
        let (scores, max, sum) = self.softmax(visible.clone(), dot);
        let mut acc = vec![0f32; self.spec.value_dim()];
        for block in visible.start / BLOCK_POSITIONS..visible.end.div_ceil(BLOCK_POSITIONS) {
            let start = block * BLOCK_POSITIONS;
            let here = visible.start.max(start)..visible.end.min(start + BLOCK_POSITIONS);
            let p = &scores[here.start - visible.start..here.end - visible.start];
            let v: Vec<&[u8]> = here.map(|at| page.vectors(at, self.kv_head)[1]).collect();
            weigh(page.spec.v_format(block), p, &v, &mut acc);
        }
        Partial { max, sum, acc }
    }

    /// The same of a page of an exact device.
    fn exact_page(&self, page: &[f32], visible: Range<usize>) -> Partial {
        let dot = |at: usize| {
            let k = page[self.spec.k_at(self.kv_head, at, 0)..].iter().step_by(BLOCK_POSITIONS);
            self.q.iter().zip(k).fold(0f32, |acc, (x, &k)| x.mul_add(k, acc))
        };
        let (scores, max, sum) = self.softmax(visible.clone(), dot);
        let mut acc = vec![0f32; self.spec.value_dim()];
        for (at, &p) in visible.zip(&scores) {
            let v = (0..acc.len()).map(|dim| page[self.spec.v_at(self.kv_head, at, dim)]);
            acc.iter_mut().zip(v).for_each(|(a, v)| *a = p.mul_add(v, *a));
        }
        Partial { max, sum, acc }
    }

    /// `p` of the visible positions of a page, their maximum and sum.
    fn softmax(&self, visible: Range<usize>, dot: impl Fn(usize) -> f32) -> (Vec<f32>, f32, f32) {
        let mut scores: Vec<f32> = visible.map(|at| self.scoring.score(dot(at))).collect();
        let max = math::max(&scores);
        scores.iter_mut().for_each(|s| *s = math::exp2(*s - max));
        let sum = math::sum16(&scores);
        (scores, max, sum)
    }
}

/// A page's vectors, taken from its image.
struct Vectors<'p> {
    spec: PageSpec,
    image: &'p [u8],
}

impl<'p> Vectors<'p> {
    /// K and V of a KV head at position `at`.
    fn vectors(&self, at: usize, kv_head: usize) -> [&'p [u8]; 2] {
        let here = &self.image[self.spec.image_at(at, kv_head)..];
        let (k, v) = (self.spec.k_format(at / BLOCK_POSITIONS), self.spec.v_format(at / BLOCK_POSITIONS));
        let (k, rest) = here.split_at(k.vector_bytes(self.spec.head_dim));
        // Of a V that is a part of K the encoding is the beginning of K's: values and groups stand in order.
        let v_from = if self.spec.latent.is_some() { k } else { rest };
        [k, &v_from[..v.vector_bytes(self.spec.value_dim())]]
    }
}
