//! Hyper-connections: the oracle's own row operations, compiled for wide registers, rows shared out over the pool.

use hob_compute::HyperMix;
use hob_compute::reference::hyper::{expand_row, mix_row, mix_weights};

use super::{Parts, each_rows};
use crate::isa::Isa;
use crate::pool::Pool;

/// What the weights of a row are made from, and how.
#[derive(Copy, Clone)]
pub struct Rule<'a> {
    /// `[rows, base.len()]`
    pub logits: &'a [f32],
    pub base: &'a [f32],
    pub scale: &'a [f32],
    pub streams: usize,
    pub eps: f32,
    pub iterations: usize,
}

/// Mixes rows of streams `x` into rows of `dim`; `weights` are post and comb of every row, where they are wanted.
pub fn mix(
    pool: &Pool,
    isa: Isa,
    rule: Rule,
    x: &[f32],
    weights: Option<&mut [f32]>,
    (out, dim): (&mut [f32], usize),
) {
    let (rows, n) = (out.len() / dim, rule.streams);
    let (wide, each) = (rule.base.len(), n * (1 + n));
    let (weights, out) = (weights.map(Parts::new), Parts::new(out));
    // The weights cost some thousand operations.
    each_rows(pool, rows, n * dim + 4096, &|range| {
        for r in range {
            let mut pre = [0f32; HyperMix::MAX_STREAMS];
            let logits = &rule.logits[r * wide..(r + 1) * wide];
            // SAFETY: ranges of rows are disjoint.
            let own = weights.map(|w| unsafe { w.part(r * each..(r + 1) * each) });
            let how = (rule.eps, rule.iterations);
            mix_weights((logits, rule.base, rule.scale), how, &mut pre[..n], own);
            // SAFETY: as above.
            let out = unsafe { out.part(r * dim..(r + 1) * dim) };
            mixed(isa, &x[r * n * dim..(r + 1) * n * dim], &pre[..n], out);
        }
    });
}

fn mixed(isa: Isa, x: &[f32], pre: &[f32], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: the ISA class was detected.
        return unsafe { mixed_avx2(x, pre, out) };
    }
    let _ = isa;
    mix_row(x, pre, out);
}

/// # Safety
/// Needs AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn mixed_avx2(x: &[f32], pre: &[f32], out: &mut [f32]) {
    mix_row(x, pre, out);
}

/// Spreads rows `y` of `dim` over the streams of `x`, by weights or as copies.
pub fn expand(
    pool: &Pool,
    isa: Isa,
    (y, dim): (&[f32], usize),
    streams: usize,
    weights: Option<&[f32]>,
    x: &mut [f32],
) {
    let (width, each) = (streams * dim, streams * (1 + streams));
    let x = Parts::new(x);
    each_rows(pool, y.len() / dim, width, &|range| {
        for r in range {
            let weights = weights.map(|w| &w[r * each..(r + 1) * each]);
            // SAFETY: ranges of rows are disjoint.
            let x = unsafe { x.part(r * width..(r + 1) * width) };
            expanded(isa, &y[r * dim..(r + 1) * dim], weights, x);
        }
    });
}

fn expanded(isa: Isa, y: &[f32], weights: Option<&[f32]>, x: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: the ISA class was detected.
        return unsafe { expanded_avx2(y, weights, x) };
    }
    let _ = isa;
    expand_row(y, weights, x);
}

/// # Safety
/// Needs AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn expanded_avx2(y: &[f32], weights: Option<&[f32]>, x: &mut [f32]) {
    expand_row(y, weights, x);
}
