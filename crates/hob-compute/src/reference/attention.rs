//! Attention of the oracle, one query head at a time.
//!
//! The unit is the absolute page of 256 positions. Within a page: the score of a position is one fma chain over
//! ascending `head_dim` that starts at +0, then scaled and capped by [`Scoring`], which counts in powers of 2;
//! `p = exp2(score - page maximum)`; the sum of `p` is taken in 16 lanes over ascending positions, the first visible
//! one in lane 0; `acc[d]` is one fma chain over ascending positions that starts at +0. Only visible positions take
//! part, and pages without any are not read. Pages are folded in ascending order with [`Partial::fold`], then the sink
//! with [`Partial::sink`].

use std::f32::consts::LOG2_E;
use std::ops::Range;

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
    /// `[head_dim]` V weighted by `exp2(score - max)`.
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
    pub spec: PageSpec,
    pub kv_head: usize,
    pub scoring: Scoring,
    pub window: Option<usize>,
    /// The head's sink logit.
    pub sink: Option<f32>,
}

impl<'a> Query<'a> {
    /// Query head `head` of checked arguments.
    pub fn new(args: &Attend, head: usize, q: &'a [f32], sink: Option<f32>) -> Query<'a> {
        Query {
            q,
            spec: PageSpec { kv_heads: args.kv_heads, head_dim: args.head_dim },
            kv_head: head / (args.heads / args.kv_heads),
            scoring: Scoring::new(args.scale, args.softcap),
            window: args.window,
            sink,
        }
    }

    /// Attention of the row at `position`. `page` gives the values of a page by its index in the sequence (f16 values
    /// widened, or f32 in exact mode) and is asked for no page without visible positions.
    ///
    /// # Errors
    /// Those of `page`.
    pub fn attend<'p>(
        &self,
        position: usize,
        page: impl Fn(usize) -> Result<&'p [f32]>,
        out: &mut [f32],
    ) -> Result<()> {
        let seen = seen(position, self.window);
        let mut state: Option<Partial> = None;
        for index in seen.start / PAGE_POSITIONS..seen.end.div_ceil(PAGE_POSITIONS) {
            let start = index * PAGE_POSITIONS;
            let here = seen.start.saturating_sub(start)..(seen.end - start).min(PAGE_POSITIONS);
            let next = self.page(page(index)?, here);
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
        Ok(())
    }

    /// The part of one page; `visible` is a range of its positions that is not empty.
    fn page(&self, page: &[f32], visible: Range<usize>) -> Partial {
        let mut scores = [0f32; PAGE_POSITIONS];
        let scores = &mut scores[..visible.len()];
        for (at, score) in visible.clone().zip(scores.iter_mut()) {
            let first = self.spec.k_at(self.kv_head, at, 0);
            let k = page[first..].iter().step_by(BLOCK_POSITIONS);
            let dot = self.q.iter().zip(k).fold(0f32, |acc, (x, &k)| x.mul_add(k, acc));
            *score = self.scoring.score(dot);
        }
        let max = math::max(scores);
        for score in scores.iter_mut() {
            *score = math::exp2(*score - max);
        }
        let mut acc = vec![0f32; self.spec.head_dim];
        for (at, &p) in visible.zip(scores.iter()) {
            let v = &page[self.spec.v_at(self.kv_head, at)..][..self.spec.head_dim];
            for (a, v) in acc.iter_mut().zip(v) {
                *a = p.mul_add(*v, *a);
            }
        }
        Partial { max, sum: math::sum16(scores), acc }
    }
}
