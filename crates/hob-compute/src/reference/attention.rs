//! Attention of the oracle, one query head at a time.
//!
//! The unit is the absolute page of 256 positions. Within a page: the score of a position is one fma chain over
//! ascending `head_dim` that starts at +0, then times `scale`; `p = exp(score - page maximum)`; the sum of `p` is
//! taken in 16 lanes over ascending positions; `acc[d]` is one fma chain over ascending positions that starts at +0.
//! Only visible positions take part. Pages are folded in ascending order with [`Partial::fold`].

use crate::math;
use crate::{BLOCK_POSITIONS, PAGE_POSITIONS, PageSpec};

/// What one query head keeps of some pages.
#[derive(Clone, Debug, PartialEq)]
pub struct Partial {
    /// Largest score.
    pub max: f32,
    /// Sum of `exp(score - max)`.
    pub sum: f32,
    /// `[head_dim]` V weighted by `exp(score - max)`.
    pub acc: Vec<f32>,
}

impl Partial {
    /// The part of one page. `visible` is 1..=256, `page` the whole page (f16 values widened, or f32 in exact mode).
    pub fn of_page(
        q: &[f32],
        spec: &PageSpec,
        kv_head: usize,
        page: &[f32],
        visible: usize,
        scale: f32,
    ) -> Partial {
        let mut scores = [0f32; PAGE_POSITIONS];
        let scores = &mut scores[..visible.min(PAGE_POSITIONS)];
        for (at, score) in scores.iter_mut().enumerate() {
            let first = spec.k_at(kv_head, at, 0);
            let chain = q
                .iter()
                .enumerate()
                .fold(0f32, |acc, (d, &x)| x.mul_add(page[first + d * BLOCK_POSITIONS], acc));
            *score = chain * scale;
        }
        let max = math::max(scores);
        for score in scores.iter_mut() {
            *score = math::exp(*score - max);
        }
        let mut acc = vec![0f32; spec.head_dim];
        for (at, &p) in scores.iter().enumerate() {
            let v = &page[spec.v_at(kv_head, at)..][..spec.head_dim];
            for (a, v) in acc.iter_mut().zip(v) {
                *a = p.mul_add(*v, *a);
            }
        }
        Partial { max, sum: math::sum16(scores), acc }
    }

    /// Adds the next page: with `m` the larger maximum, `a = exp(max - m)` and `b = exp(next.max - m)`, every
    /// value `x` becomes `fma(x, a, next_x * b)`.
    pub fn fold(&mut self, next: &Partial) {
        let m = self.max.max(next.max);
        let (a, b) = (math::exp(self.max - m), math::exp(next.max - m));
        self.max = m;
        self.sum = self.sum.mul_add(a, next.sum * b);
        for (x, &n) in self.acc.iter_mut().zip(&next.acc) {
            *x = x.mul_add(a, n * b);
        }
    }

    /// `out = acc / sum`
    pub fn finish(&self, out: &mut [f32]) {
        for (o, &a) in out.iter_mut().zip(&self.acc) {
            *o = a / self.sum;
        }
    }
}
