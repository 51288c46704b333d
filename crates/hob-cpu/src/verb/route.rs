//! Routing: a softmax or sigmoid over some hundred logits, and the few best of them.

use std::cell::RefCell;

use hob_compute::Routing;
use hob_compute::reference::mixture::{RouteScratch, route_row};

use super::{Parts, each_rows};
use crate::isa::Isa;
use crate::pool::Pool;

thread_local! {
    static SCRATCH: RefCell<RouteScratch> = RefCell::new(RouteScratch::default());
}

/// Routes rows of `width` logits into rows of `2 * top_k`.
pub fn route(
    pool: &Pool,
    isa: Isa,
    rule: &Routing,
    (logits, width): (&[f32], usize),
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let per = 2 * rule.top_k;
    let out = Parts::new(out);
    // A logit costs an exp and a look per selected expert, many times an elementwise float.
    each_rows(pool, logits.len() / width, width * 8, &|range| {
        SCRATCH.with_borrow_mut(|scratch| {
            for r in range {
                // SAFETY: ranges of rows are disjoint.
                let out = unsafe { out.part(r * per..(r + 1) * per) };
                route_row(rule, &logits[r * width..(r + 1) * width], bias, |x| exps(isa, x), scratch, out);
            }
        });
    });
}

/// Replaces every value by its exp.
fn exps(isa: Isa, x: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        let (whole, rest) = x.as_chunks_mut::<8>();
        // SAFETY: the ISA class was detected; every chunk is 8 floats.
        unsafe { avx2(whole) };
        return rest.iter_mut().for_each(|x| *x = hob_compute::math::exp(*x));
    }
    let _ = isa;
    x.iter_mut().for_each(|x| *x = hob_compute::math::exp(*x));
}

/// # Safety
/// Needs AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2(chunks: &mut [[f32; 8]]) {
    use std::arch::x86_64::{_mm256_loadu_ps, _mm256_storeu_ps};
    for x in chunks {
        // SAFETY: 8 floats are read and written; AVX2 by this function's contract.
        unsafe { _mm256_storeu_ps(x.as_mut_ptr(), super::lanes::exp8(_mm256_loadu_ps(x.as_ptr()))) };
    }
}
