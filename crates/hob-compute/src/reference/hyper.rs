//! Hyper-connections, row by row: the order of every operation is fixed here.

use super::Reference;
use crate::check::compressed as check;
use crate::math;
use crate::{HyperExpand, HyperMix, Result, WeightKind};

/// How one row's streams are mixed: from its logits to `pre`, and to post and comb where `weights` are wanted.
pub fn mix_weights(
    (logits, base, scale): (&[f32], &[f32], &[f32]),
    (eps, iterations): (f32, usize),
    pre: &mut [f32],
    weights: Option<&mut [f32]>,
) {
    let n = pre.len();
    let at = |i: usize, s: usize| logits[i].mul_add(scale[s], base[i]);
    pre.iter_mut().enumerate().for_each(|(i, p)| *p = math::sigmoid(at(i, 0)) + eps);
    let Some(weights) = weights else { return };
    let (post, comb) = weights.split_at_mut(n);
    post.iter_mut().enumerate().for_each(|(i, p)| *p = 2.0 * math::sigmoid(at(n + i, 1)));
    for (j, row) in comb.chunks_exact_mut(n).enumerate() {
        row.iter_mut().enumerate().for_each(|(k, c)| *c = at(2 * n + j * n + k, 2));
        let most = math::max(row);
        row.iter_mut().for_each(|c| *c = math::exp(*c - most));
        let sum = row.iter().fold(0f32, |sum, c| sum + c);
        row.iter_mut().for_each(|c| *c = *c / sum + eps);
    }
    for iteration in 0..iterations {
        if iteration > 0 {
            for row in comb.chunks_exact_mut(n) {
                let sum = row.iter().fold(0f32, |sum, c| sum + c) + eps;
                row.iter_mut().for_each(|c| *c /= sum);
            }
        }
        for k in 0..n {
            let sum = (0..n).fold(0f32, |sum, j| sum + comb[j * n + k]) + eps;
            (0..n).for_each(|j| comb[j * n + k] /= sum);
        }
    }
}

/// `out = sum over i of pre[i] * x[i]`, the first a product, the others fma.
#[inline(always)]
pub fn mix_row(x: &[f32], pre: &[f32], out: &mut [f32]) {
    for (i, (x, &p)) in x.chunks_exact(out.len()).zip(pre).enumerate() {
        match i {
            0 => out.iter_mut().zip(x).for_each(|(o, x)| *o = p * x),
            _ => out.iter_mut().zip(x).for_each(|(o, x)| *o = p.mul_add(*x, *o)),
        }
    }
}

/// Spreads `y` over the streams `x` of one row, in place.
#[inline(always)]
pub fn expand_row(y: &[f32], weights: Option<&[f32]>, x: &mut [f32]) {
    let dim = y.len();
    let n = x.len() / dim;
    let Some(weights) = weights else {
        return x.chunks_exact_mut(dim).for_each(|x| x.copy_from_slice(y));
    };
    let (post, comb) = weights.split_at(n);
    // In strips that stay in registers or the nearest cache.
    const STRIP: usize = 64;
    let mut old = [[0f32; STRIP]; HyperMix::MAX_STREAMS];
    for start in (0..dim).step_by(STRIP) {
        let len = STRIP.min(dim - start);
        for (old, x) in old.iter_mut().zip(x.chunks_exact(dim)) {
            old[..len].copy_from_slice(&x[start..start + len]);
        }
        for (k, x) in x.chunks_exact_mut(dim).enumerate() {
            let x = &mut x[start..start + len];
            x.iter_mut().zip(&y[start..]).for_each(|(x, y)| *x = post[k] * y);
            for (j, old) in old.iter().enumerate().take(n) {
                let c = comb[j * n + k];
                x.iter_mut().zip(old).for_each(|(x, old)| *x = c.mul_add(*old, *x));
            }
        }
    }
}

impl Reference {
    pub(super) fn run_hyper_mix(&mut self, args: &HyperMix) -> Result<()> {
        const VERB: &str = "hyper_mix";
        let vector = |w| self.weight(VERB, w, WeightKind::Vector)?.row(0);
        let (base, scale) = (vector(args.base)?, vector(args.scale)?);
        let shapes = [self.shape(VERB, args.x)?, self.shape(VERB, args.logits)?, self.shape(VERB, args.out)?];
        let weights = args.weights.map(|w| self.shape(VERB, w)).transpose()?;
        let dim = check::hyper_mix(args, shapes, weights, [base.len(), scale.len()])?;
        let n = args.streams;
        for r in 0..args.rows {
            let logits = self.buffers.get(VERB, args.logits)?.row(r).to_vec();
            let (mut pre, mut both) = (vec![0f32; n], weights.map(|w| vec![0f32; w.width]));
            let how = (args.eps, args.iterations);
            mix_weights((&logits, &base, &scale), how, &mut pre, both.as_deref_mut());
            let mut out = vec![0f32; dim];
            mix_row(self.buffers.get(VERB, args.x)?.row(r), &pre, &mut out);
            self.buffers.get_mut(VERB, args.out)?.row_mut(r).copy_from_slice(&out);
            if let (Some(buf), Some(both)) = (args.weights, both) {
                self.buffers.get_mut(VERB, buf)?.row_mut(r).copy_from_slice(&both);
            }
        }
        Ok(())
    }

    pub(super) fn run_hyper_expand(&mut self, args: &HyperExpand) -> Result<()> {
        const VERB: &str = "hyper_expand";
        let weights = args.weights.map(|w| self.shape(VERB, w)).transpose()?;
        check::hyper_expand(args, self.shape(VERB, args.y)?, self.shape(VERB, args.x)?, weights)?;
        for r in 0..args.rows {
            let y = self.buffers.get(VERB, args.y)?.row(r).to_vec();
            let weights = match args.weights {
                Some(buf) => Some(self.buffers.get(VERB, buf)?.row(r).to_vec()),
                None => None,
            };
            expand_row(&y, weights.as_deref(), self.buffers.get_mut(VERB, args.x)?.row_mut(r));
        }
        Ok(())
    }
}
