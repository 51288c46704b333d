//! The k largest logits and the log-sum-exp of a row, and the token drawn from them.
//!
//! One pass takes the maximum of every 256 logits, one sums exponentials. The k-th largest of those maxima is a bound
//! that at least k logits reach, so only the few groups above it are searched.

use hob_compute::reference::rows::{LSE_CHUNK, logit, pick_order};
use hob_compute::{Draw, Pick, Picked, draw, math};

use super::{ALONE, Parts, each_unit};
use crate::isa::Isa;
use crate::pool::Pool;

/// Logits per maximum.
const GROUP: usize = 256;
/// Candidates are cut back to k when they reach this number.
const CANDIDATES: usize = 4 * Pick::MAX_K;

/// Working memory, kept between calls.
#[derive(Default)]
pub struct Scratch {
    /// `[rows, groups]`
    maxima: Vec<f32>,
    /// `[rows, chunks]`
    sums: Vec<f32>,
    /// `[rows]`
    tops: Vec<f32>,
    /// The maxima again, to be partially sorted.
    order: Vec<f32>,
    candidates: Vec<(f32, u32)>,
    drawing: draw::Scratch,
}

/// Appends the results of `logits.len() / vocab` rows to `out` and the tokens chosen to `last`.
pub fn pick(
    pool: &Pool,
    isa: Isa,
    logits: &[f32],
    (vocab, k, draws): (usize, usize, &[Draw]),
    scratch: &mut Scratch,
    results: (&mut Picked, &mut Vec<u32>),
) {
    let (out, last) = results;
    let rows = logits.len() / vocab;
    let chunks = vocab.div_ceil(LSE_CHUNK);
    let groups = vocab.div_ceil(GROUP);
    scratch.maxima.resize(rows * groups, 0.0);
    scratch.sums.resize(rows * chunks, 0.0);
    let maxima = Parts::new(&mut scratch.maxima);
    let (units, alone) = (rows * chunks, rows * vocab < ALONE);
    let share = |work: &(dyn Fn(usize, usize) + Sync)| {
        let each = |_: usize, u: usize| work(u / chunks, u % chunks);
        if alone { (0..units).for_each(|u| each(0, u)) } else { each_unit(pool, units, &each) }
    };
    let of = |r: usize, c: usize| &logits[r * vocab..][c * LSE_CHUNK..((c + 1) * LSE_CHUNK).min(vocab)];
    share(&|r, c| {
        let x = of(r, c);
        let first = r * groups + c * (LSE_CHUNK / GROUP);
        // SAFETY: a chunk's groups are its own.
        let maxima = unsafe { maxima.part(first..first + x.len().div_ceil(GROUP)) };
        maxima.iter_mut().zip(x.chunks(GROUP)).for_each(|(m, x)| *m = largest(isa, x));
    });
    let maxima = &scratch.maxima;
    scratch.tops.clear();
    scratch.tops.extend(maxima.chunks_exact(groups).map(math::max));
    let tops = &scratch.tops;
    let sums = Parts::new(&mut scratch.sums);
    share(&|r, c| {
        let m = tops[r];
        let sum = if m.is_finite() { exp_sum(isa, of(r, c), m) } else { 0.0 };
        // SAFETY: one sum per chunk.
        unsafe { sums.part(r * chunks + c..r * chunks + c + 1)[0] = sum };
    });
    for r in 0..rows {
        let m = tops[r];
        let sum: f32 = scratch.sums[r * chunks..(r + 1) * chunks].iter().fold(0.0, |a, s| a + s);
        out.log_sum_exp.push(if m.is_finite() { m + sum.ln() } else { m });
        let row = Row {
            logits: &logits[r * vocab..(r + 1) * vocab],
            maxima: &maxima[r * groups..(r + 1) * groups],
        };
        row.top_k(k, &mut scratch.order, &mut scratch.candidates);
        out.tokens.extend(scratch.candidates.iter().map(|c| c.1));
        out.logits.extend(scratch.candidates.iter().map(|c| c.0));
        let from = out.tokens.len() - k;
        let draw = draws.get(r).unwrap_or(&Draw::GREEDY);
        let chosen = draw::from_top(&out.tokens[from..], &out.logits[from..], draw, &mut scratch.drawing);
        last.push(chosen);
        out.chosen.push(chosen);
    }
}

struct Row<'a> {
    logits: &'a [f32],
    maxima: &'a [f32],
}

impl Row<'_> {
    /// Leaves the k first of the row in `found`, in order.
    fn top_k(&self, k: usize, order: &mut Vec<f32>, found: &mut Vec<(f32, u32)>) {
        found.clear();
        found.reserve(CANDIDATES);
        let mut bound = f32::NEG_INFINITY;
        if self.maxima.len() >= k {
            order.clear();
            order.extend_from_slice(self.maxima);
            bound = *order.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1;
        }
        for (g, group) in self.logits.chunks(GROUP).enumerate() {
            if self.maxima[g] < bound {
                continue;
            }
            for (i, &x) in group.iter().enumerate() {
                let x = logit(x);
                if x < bound {
                    continue;
                }
                if found.len() == CANDIDATES {
                    found.select_nth_unstable_by(k - 1, |&a, &b| pick_order(a, b));
                    found.truncate(k);
                    bound = bound.max(found[k - 1].0);
                    if x < bound {
                        continue;
                    }
                }
                found.push((x, (g * GROUP + i) as u32));
            }
        }
        found.sort_unstable_by(|&a, &b| pick_order(a, b));
        found.truncate(k);
    }
}

/// The largest logit of a group, NaN counting as `-inf`.
fn largest(isa: Isa, x: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: the ISA class was detected.
        return unsafe { avx2::largest(x) };
    }
    let _ = isa;
    x.iter().fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m })
}

/// `sum16` of `exp(x - m)` over one chunk.
fn exp_sum(isa: Isa, x: &[f32], m: f32) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        if isa >= Isa::Avx512 {
            // SAFETY: the ISA class was detected.
            return unsafe { avx512::exp_sum(x, m) };
        }
        if isa >= Isa::Avx2 {
            // SAFETY: the ISA class was detected.
            return unsafe { avx2::exp_sum(x, m) };
        }
    }
    let _ = isa;
    let mut lanes = [0f32; 16];
    for part in x.chunks(16) {
        lanes.iter_mut().zip(part).for_each(|(l, &v)| *l += math::exp(logit(v) - m));
    }
    math::tree16(&lanes)
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use crate::verb::lanes;

    /// # Safety
    /// Needs AVX2.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn largest(x: &[f32]) -> f32 {
        let low = _mm256_set1_ps(f32::NEG_INFINITY);
        let mut m = [low; 4];
        let whole = x.len() / 32 * 32;
        for i in (0..whole).step_by(32) {
            for (j, m) in m.iter_mut().enumerate() {
                // The second operand wins against NaN in the first.
                // SAFETY: i + 8 j + 8 <= whole.
                *m = unsafe { _mm256_max_ps(_mm256_loadu_ps(x.as_ptr().add(i + 8 * j)), *m) };
            }
        }
        let m = _mm256_max_ps(_mm256_max_ps(m[0], m[1]), _mm256_max_ps(m[2], m[3]));
        // SAFETY: AVX2 by this function's contract.
        let m = unsafe { lanes::max8(m) };
        x[whole..].iter().fold(m, |m, &v| if v > m { v } else { m })
    }

    /// # Safety
    /// Needs AVX2 and FMA.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn exp_sum(x: &[f32], m: f32) -> f32 {
        let max = _mm256_set1_ps(m);
        let part = |v: __m256| {
            // A NaN logit counts as -inf, whose exponential is 0.
            let number = _mm256_cmp_ps::<_CMP_ORD_Q>(v, v);
            // SAFETY: AVX2 by this function's contract.
            _mm256_and_ps(number, unsafe { lanes::exp8(_mm256_sub_ps(v, max)) })
        };
        let (mut low, mut high) = (_mm256_setzero_ps(), _mm256_setzero_ps());
        let whole = x.len() / 16 * 16;
        for i in (0..whole).step_by(16) {
            // SAFETY: i + 16 <= len.
            unsafe {
                low = _mm256_add_ps(low, part(_mm256_loadu_ps(x.as_ptr().add(i))));
                high = _mm256_add_ps(high, part(_mm256_loadu_ps(x.as_ptr().add(i + 8))));
            }
        }
        if whole < x.len() {
            let mut last = [f32::NEG_INFINITY; 16];
            last[..x.len() - whole].copy_from_slice(&x[whole..]);
            // SAFETY: 16 floats. Absent lanes add exp(-inf) = 0, which changes no sum.
            unsafe {
                low = _mm256_add_ps(low, part(_mm256_loadu_ps(last.as_ptr())));
                high = _mm256_add_ps(high, part(_mm256_loadu_ps(last.as_ptr().add(8))));
            }
        }
        // SAFETY: AVX2 by this function's contract.
        unsafe { lanes::tree16(low, high) }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use crate::verb::lanes;

    /// # Safety
    /// Needs AVX-512 F, DQ and VL.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub unsafe fn exp_sum(x: &[f32], m: f32) -> f32 {
        let max = _mm512_set1_ps(m);
        let mut sum = _mm512_setzero_ps();
        for i in (0..x.len()).step_by(16) {
            let n = (x.len() - i).min(16);
            let mask = ((1u32 << n) - 1) as __mmask16;
            // SAFETY: only the first n lanes are read; the exponential needs AVX-512.
            unsafe {
                let v = _mm512_maskz_loadu_ps(mask, x.as_ptr().add(i));
                let number = _mm512_mask_cmp_ps_mask::<_CMP_ORD_Q>(mask, v, v);
                let e = lanes::exp16(_mm512_sub_ps(v, max));
                sum = _mm512_mask_add_ps(sum, number, sum, e);
            }
        }
        // SAFETY: AVX-512 by this function's contract.
        unsafe { lanes::tree16_zmm(sum) }
    }
}
