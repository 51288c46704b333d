//! Elementwise verbs. One operation per element, so every form gives the same bits; memory is the limit.

use hob_compute::{Activation, math};

use super::{Parts, each_rows};
use crate::isa::Isa;
use crate::pool::Pool;

/// `out = a + b`; an operand that is `None` is `out` itself. All slices have one length.
pub fn add(pool: &Pool, a: Option<&[f32]>, b: Option<&[f32]>, out: &mut [f32]) {
    let parts = Parts::new(out);
    each_rows(pool, parts.len(), 1, &|range| {
        // SAFETY: ranges are disjoint.
        let out = unsafe { parts.part(range.clone()) };
        let (a, b) = (a.map(|a| &a[range.clone()]), b.map(|b| &b[range]));
        match (a, b) {
            (Some(a), Some(b)) => out.iter_mut().zip(a.iter().zip(b)).for_each(|(o, (a, b))| *o = a + b),
            // Addition commutes bit for bit, except in which NaN it keeps.
            (Some(x), None) | (None, Some(x)) => out.iter_mut().zip(x).for_each(|(o, x)| *o += x),
            (None, None) => out.iter_mut().for_each(|o| *o += *o),
        }
    });
}

/// `out = a * factor`; `a` that is `None` is `out` itself.
pub fn scale(pool: &Pool, a: Option<&[f32]>, factor: f32, out: &mut [f32]) {
    let parts = Parts::new(out);
    each_rows(pool, parts.len(), 1, &|range| {
        // SAFETY: ranges are disjoint.
        let out = unsafe { parts.part(range.clone()) };
        match a {
            Some(a) => out.iter_mut().zip(&a[range]).for_each(|(o, a)| *o = a * factor),
            None => out.iter_mut().for_each(|o| *o *= factor),
        }
    });
}

/// `out = tanh(a / cap) * cap`; `a` that is `None` is `out` itself.
pub fn softcap(pool: &Pool, isa: Isa, a: Option<&[f32]>, cap: f32, out: &mut [f32]) {
    let parts = Parts::new(out);
    // A tangent costs as much as a dozen other operations: count it so when sharing elements out.
    each_rows(pool, parts.len(), 12, &|range| {
        // SAFETY: ranges are disjoint.
        let out = unsafe { parts.part(range.clone()) };
        if let Some(a) = a {
            out.copy_from_slice(&a[range]);
        }
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx2 {
            // SAFETY: the ISA class was detected.
            return unsafe { softcap_avx2(out, cap) };
        }
        let _ = isa;
        softcap_portable(out, cap);
    });
}

/// `out = activation(a)`; `a` that is `None` is `out` itself.
pub fn activate(pool: &Pool, a: Option<&[f32]>, activation: Activation, out: &mut [f32]) {
    let parts = Parts::new(out);
    each_rows(pool, parts.len(), 12, &|range| {
        // SAFETY: ranges are disjoint.
        let out = unsafe { parts.part(range.clone()) };
        if let Some(a) = a {
            out.copy_from_slice(&a[range]);
        }
        match activation {
            Activation::ReluSquared => out.iter_mut().for_each(|x| *x = math::relu_squared(*x)),
            _ => out.iter_mut().for_each(|x| *x = activation.alone(*x)),
        }
    });
}

/// The operands of [`gate`]: `b` has rows of `wide` floats, of which `first..first + width` count.
#[derive(Copy, Clone)]
pub struct Gates<'a> {
    /// `None` is `out` itself.
    pub a: Option<&'a [f32]>,
    pub b: &'a [f32],
    pub wide: usize,
    pub first: usize,
    pub width: usize,
    pub activation: Activation,
}

/// `out = activation(a) * b`, `[rows, width]`.
pub fn gate(pool: &Pool, gates: Gates, out: &mut [f32]) {
    let Gates { a, b, wide, first, width, activation } = gates;
    let rows = out.len() / width;
    let parts = Parts::new(out);
    // An activation costs as much as a dozen other operations.
    each_rows(pool, rows, 12 * width, &|range| {
        for r in range {
            let at = r * width..(r + 1) * width;
            // SAFETY: ranges of rows are disjoint.
            let out = unsafe { parts.part(at.clone()) };
            if let Some(a) = a {
                out.copy_from_slice(&a[at]);
            }
            let b = &b[r * wide + first..][..width];
            out.iter_mut().zip(b).for_each(|(o, &u)| *o = activation.gated(*o, u));
        }
    });
}

/// `out[g] = a[g] ++ b[g]` of `parts` equal parts of all rows together.
pub fn join(pool: &Pool, [a, b]: [&[f32]; 2], parts: usize, out: &mut [f32]) {
    let (first, second, width) = (a.len() / parts, b.len() / parts, out.len() / parts);
    let to = Parts::new(out);
    each_rows(pool, parts, width, &|range| {
        for g in range {
            // SAFETY: ranges of parts are disjoint.
            let out = unsafe { to.part(g * width..(g + 1) * width) };
            out[..first].copy_from_slice(&a[g * first..][..first]);
            out[first..].copy_from_slice(&b[g * second..][..second]);
        }
    });
}

#[inline]
fn softcap_portable(x: &mut [f32], cap: f32) {
    x.iter_mut().for_each(|x| *x = math::tanh(*x / cap) * cap);
}

/// The portable loop, vectorized: every operation of `math::tanh` has a vector form of the same bits.
///
/// # Safety
/// Needs AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn softcap_avx2(x: &mut [f32], cap: f32) {
    softcap_portable(x, cap);
}
