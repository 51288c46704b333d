//! RMS norm of groups of floats.

use hob_compute::reference::rows;

use super::{Parts, each_rows};
use crate::isa::Isa;
use crate::pool::Pool;

/// What a norm multiplies by.
#[derive(Copy, Clone)]
pub struct Scale<'a> {
    /// One group long.
    pub weight: &'a [f32],
    pub eps: f32,
}

/// Norms `out.len() / weight.len()` contiguous groups of `x`, or of `out` itself when `x` is `None`.
/// `width` is a row's floats, whole groups; `x` is as long as `out`.
pub fn norm(pool: &Pool, isa: Isa, x: Option<&[f32]>, out: &mut [f32], width: usize, by: Scale) {
    let Scale { weight, eps } = by;
    let rows = out.len() / width.max(1);
    let out = Parts::new(out);
    each_rows(pool, rows, width, &|range| {
        let span = range.start * width..range.end * width;
        // SAFETY: ranges of rows are disjoint.
        let out = unsafe { out.part(span.clone()) };
        if let Some(x) = x {
            out.copy_from_slice(&x[span]);
        }
        out.chunks_exact_mut(weight.len()).for_each(|group| group_in_place(isa, group, weight, eps));
    });
}

/// Norms one group in place.
pub fn group_in_place(isa: Isa, x: &mut [f32], weight: &[f32], eps: f32) {
    debug_assert_eq!(x.len(), weight.len());
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: the ISA class was detected, and the lengths are equal.
        return unsafe { avx2::group(x, weight, eps) };
    }
    let _ = isa;
    let r = rows::inverse_rms(x, eps);
    for (v, w) in x.iter_mut().zip(weight) {
        *v = (*v * r) * w;
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use crate::verb::lanes;
    use hob_compute::math;

    /// # Safety
    /// Needs AVX2 and FMA; `weight` is as long as `x`.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn group(x: &mut [f32], weight: &[f32], eps: f32) {
        let n = x.len().min(weight.len());
        let whole = n / 16 * 16;
        let (mut low, mut high) = (_mm256_setzero_ps(), _mm256_setzero_ps());
        for i in (0..whole).step_by(16) {
            // SAFETY: i + 16 <= n.
            unsafe {
                let (a, b) = (_mm256_loadu_ps(x.as_ptr().add(i)), _mm256_loadu_ps(x.as_ptr().add(i + 8)));
                low = _mm256_fmadd_ps(a, a, low);
                high = _mm256_fmadd_ps(b, b, high);
            }
        }
        let squares = if whole == n {
            // SAFETY: AVX2 by this function's contract.
            unsafe { lanes::tree16(low, high) }
        } else {
            let mut lane = [0f32; 16];
            // SAFETY: 16 floats.
            unsafe {
                _mm256_storeu_ps(lane.as_mut_ptr(), low);
                _mm256_storeu_ps(lane.as_mut_ptr().add(8), high);
            }
            lane.iter_mut().zip(&x[whole..n]).for_each(|(l, v)| *l = v.mul_add(*v, *l));
            math::tree16(&lane)
        };
        let r = 1.0 / (squares / n as f32 + eps).sqrt();
        let rv = _mm256_set1_ps(r);
        for i in (0..n / 8 * 8).step_by(8) {
            // SAFETY: i + 8 <= n.
            unsafe {
                let v = _mm256_mul_ps(_mm256_loadu_ps(x.as_ptr().add(i)), rv);
                _mm256_storeu_ps(
                    x.as_mut_ptr().add(i),
                    _mm256_mul_ps(v, _mm256_loadu_ps(weight.as_ptr().add(i))),
                );
            }
        }
        for i in n / 8 * 8..n {
            x[i] = (x[i] * r) * weight[i];
        }
    }
}
