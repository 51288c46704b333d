//! Exponentials and what is made of them, in place: the bits of `hob_compute::math` at the width of the machine.

use hob_compute::math;

use super::{Parts, each_rows};
use crate::isa::Isa;
use crate::pool::Pool;

/// Values worked on at once, on the stack.
const STRIP: usize = 64;

/// Replaces every value by its exp.
pub(crate) fn exps(isa: Isa, x: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        let (whole, rest) = x.as_chunks_mut::<8>();
        // SAFETY: the ISA class was detected; every chunk is 8 floats.
        unsafe { avx2(whole) };
        return rest.iter_mut().for_each(|x| *x = math::exp(*x));
    }
    let _ = isa;
    x.iter_mut().for_each(|x| *x = math::exp(*x));
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

/// Replaces every value by `math::sigmoid` of it.
pub(crate) fn sigmoids(isa: Isa, x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = -*x);
    exps(isa, x);
    x.iter_mut().for_each(|e| *e = 1.0 / (1.0 + *e));
}

/// Calls `each(value, 1 + exp(-value of from))` for every pair of values.
fn with_divisors(isa: Isa, x: &mut [f32], from: Option<&[f32]>, each: impl Fn(&mut f32, f32, f32)) {
    let mut divisors = [0f32; STRIP];
    for (n, x) in x.chunks_mut(STRIP).enumerate() {
        let divisors = &mut divisors[..x.len()];
        let from = from.map(|from| &from[n * STRIP..][..x.len()]);
        divisors.iter_mut().zip(from.unwrap_or(x)).for_each(|(d, x)| *d = -x);
        exps(isa, divisors);
        match from {
            Some(from) => x.iter_mut().zip(from).zip(&*divisors).for_each(|((x, g), d)| each(x, *g, 1.0 + d)),
            None => x.iter_mut().zip(&*divisors).for_each(|(x, d)| each(x, *x, 1.0 + d)),
        }
    }
}

/// Replaces every value by `math::silu` of it.
pub(crate) fn silus(isa: Isa, x: &mut [f32]) {
    with_divisors(isa, x, None, |x, g, d| *x = g / d);
}

/// Multiplies every value by `math::silu` of its gate.
pub(crate) fn times_silu(isa: Isa, x: &mut [f32], gates: &[f32]) {
    with_divisors(isa, x, Some(gates), |x, g, d| *x *= g / d);
}

/// What gates rows: a value for each of theirs, or one for as many neighbours.
#[derive(Copy, Clone)]
pub struct Gates<'a> {
    pub values: &'a [f32],
    /// That of the rows, or a divisor of it.
    pub width: usize,
}

/// The gates of values `first..` of a row, of which every `each` neighbours share one.
fn few_sigmoids(gates: &[f32], each: usize, first: usize, out: &mut [f32]) {
    let mut at = 0;
    while at < out.len() {
        let gate = (first + at) / each;
        let end = out.len().min((gate + 1) * each - first);
        out[at..end].fill(math::sigmoid(gates[gate]));
        at = end;
    }
}

/// `out = a * sigmoid(gate)`, or added to `out`, in rows of `width`; `a` that is `None` is `out` itself, which is then not
/// added to.
pub fn sigmoid_gate(
    pool: &Pool,
    isa: Isa,
    a: Option<&[f32]>,
    gates: Gates,
    (out, width): (&mut [f32], usize),
    add: bool,
) {
    let rows = out.len() / width.max(1);
    let parts = Parts::new(out);
    // An exponential costs as much as a dozen other operations.
    each_rows(pool, rows, width * 8, &|range| {
        for r in range {
            // SAFETY: ranges of rows are disjoint.
            let out = unsafe { parts.part(r * width..(r + 1) * width) };
            let a = a.map(|a| &a[r * width..(r + 1) * width]);
            let mut strip = [0f32; STRIP];
            for (n, out) in out.chunks_mut(STRIP).enumerate() {
                let a = a.map(|a| &a[n * STRIP..][..out.len()]);
                let strip = &mut strip[..out.len()];
                if gates.width == width {
                    strip.copy_from_slice(&gates.values[r * width + n * STRIP..][..out.len()]);
                    sigmoids(isa, strip);
                } else {
                    few_sigmoids(&gates.values[r * gates.width..], width / gates.width, n * STRIP, strip);
                }
                match a {
                    Some(a) if add => {
                        out.iter_mut().zip(a.iter().zip(&*strip)).for_each(|(o, (a, g))| *o += a * g)
                    }
                    Some(a) => out.iter_mut().zip(a.iter().zip(&*strip)).for_each(|(o, (a, g))| *o = a * g),
                    None => out.iter_mut().zip(&*strip).for_each(|(o, g)| *o *= g),
                }
            }
        }
    });
}
