//! Register tiles of 16 lanes, for 32 registers.
#![allow(
    clippy::needless_range_loop,
    reason = "iterators over arrays keep accumulators in memory; indices do not"
)]

use std::arch::x86_64::*;

use hob_compute::PAGE_POSITIONS;

use super::vector::{Ahead, Kernels, ScoreArgs, WeighArgs};
use crate::verb::lanes;

pub(in crate::verb::attend) struct Avx512;

/// Calls `$f::<BF16, FETCH, rows, vectors>`.
macro_rules! tiles {
    ($f:ident, $bf16:literal, $fetch:expr, $rows:expr, $vectors:expr, $args:expr) => {
        match ($fetch, $rows, $vectors) {
            (true, 1, 4) => $f::<$bf16, true, 1, 4>($args),
            (true, 1, 2) => $f::<$bf16, true, 1, 2>($args),
            (true, 1, 1) => $f::<$bf16, true, 1, 1>($args),
            (true, 2, 4) => $f::<$bf16, true, 2, 4>($args),
            (true, 2, 2) => $f::<$bf16, true, 2, 2>($args),
            (true, 2, 1) => $f::<$bf16, true, 2, 1>($args),
            (true, 3, 4) => $f::<$bf16, true, 3, 4>($args),
            (true, 3, 2) => $f::<$bf16, true, 3, 2>($args),
            (true, 3, 1) => $f::<$bf16, true, 3, 1>($args),
            (true, 4, 4) => $f::<$bf16, true, 4, 4>($args),
            (true, 4, 2) => $f::<$bf16, true, 4, 2>($args),
            (true, 4, 1) => $f::<$bf16, true, 4, 1>($args),
            (true, 5, 4) => $f::<$bf16, true, 5, 4>($args),
            (true, 5, 2) => $f::<$bf16, true, 5, 2>($args),
            (true, 5, 1) => $f::<$bf16, true, 5, 1>($args),
            (true, 6, 4) => $f::<$bf16, true, 6, 4>($args),
            (true, 6, 2) => $f::<$bf16, true, 6, 2>($args),
            (true, 6, 1) => $f::<$bf16, true, 6, 1>($args),
            (false, 1, 4) => $f::<$bf16, false, 1, 4>($args),
            (false, 1, 2) => $f::<$bf16, false, 1, 2>($args),
            (false, 1, 1) => $f::<$bf16, false, 1, 1>($args),
            (false, 2, 4) => $f::<$bf16, false, 2, 4>($args),
            (false, 2, 2) => $f::<$bf16, false, 2, 2>($args),
            (false, 2, 1) => $f::<$bf16, false, 2, 1>($args),
            (false, 3, 4) => $f::<$bf16, false, 3, 4>($args),
            (false, 3, 2) => $f::<$bf16, false, 3, 2>($args),
            (false, 3, 1) => $f::<$bf16, false, 3, 1>($args),
            (false, 4, 4) => $f::<$bf16, false, 4, 4>($args),
            (false, 4, 2) => $f::<$bf16, false, 4, 2>($args),
            (false, 4, 1) => $f::<$bf16, false, 4, 1>($args),
            (false, 5, 4) => $f::<$bf16, false, 5, 4>($args),
            (false, 5, 2) => $f::<$bf16, false, 5, 2>($args),
            (false, 5, 1) => $f::<$bf16, false, 5, 1>($args),
            (false, 6, 4) => $f::<$bf16, false, 6, 4>($args),
            (false, 6, 2) => $f::<$bf16, false, 6, 2>($args),
            (false, 6, 1) => $f::<$bf16, false, 6, 1>($args),
            (_, rows, vectors) => unreachable!("no tile of {rows} rows and {vectors} vectors"),
        }
    };
}

impl Kernels for Avx512 {
    const LANES: usize = 16;

    fn vectors(_rows: usize) -> usize {
        // 6 rows take 24 accumulators and 4 operands of 32 registers.
        4
    }

    unsafe fn scores(rows: usize, vectors: usize, args: &ScoreArgs) {
        // SAFETY: the caller's word.
        unsafe {
            if args.k.bf16 {
                tiles!(scores, true, args.k.ahead.is_some(), rows, vectors, args)
            } else {
                tiles!(scores, false, args.k.ahead.is_some(), rows, vectors, args)
            }
        }
    }

    unsafe fn weigh(rows: usize, vectors: usize, args: &WeighArgs) {
        // SAFETY: the caller's word.
        unsafe {
            if args.v.bf16 {
                tiles!(weigh, true, args.v.ahead.is_some(), rows, vectors, args)
            } else {
                tiles!(weigh, false, args.v.ahead.is_some(), rows, vectors, args)
            }
        }
    }

    unsafe fn cap(scores: &mut [f32], cap: f32) {
        // SAFETY: the caller's word.
        unsafe { self::cap(scores, cap) }
    }

    unsafe fn softmax(scores: &mut [f32]) -> (f32, f32) {
        // SAFETY: the caller's word.
        unsafe { softmax(scores) }
    }
}

/// `P` vectors of f16 or bf16 values, widened.
///
/// # Safety
/// Needs AVX-512; `16 * P` values at `ptr`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn load<const BF16: bool, const P: usize>(ptr: *const u16) -> [__m512; P] {
    let mut v = [_mm512_setzero_ps(); P];
    for j in 0..P {
        // SAFETY: the caller vouches for P vectors.
        v[j] = unsafe {
            let ptr = ptr.add(16 * j);
            let x = _mm256_loadu_si256(ptr.cast());
            if BF16 {
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x)))
            } else {
                _mm512_cvtph_ps(x)
            }
        };
    }
    v
}

/// Asks for what a round of `P` vectors has to: at most two lines as rounds are counted.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn fetch<const P: usize>(ahead: &mut Ahead) {
    _mm_prefetch::<_MM_HINT_T0>(ahead.at);
    if P * 32 > 64 {
        _mm_prefetch::<_MM_HINT_T0>(ahead.at.wrapping_add(64));
    }
    ahead.at = ahead.at.wrapping_add(ahead.step);
}

/// `R` rows times `16 * P` positions: one fma chain per score over ascending dimensions.
///
/// # Safety
/// Needs AVX-512; operands as in [`ScoreArgs`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn scores<const BF16: bool, const FETCH: bool, const R: usize, const P: usize>(args: &ScoreArgs) {
    // SAFETY: `dims` rows of K and Q, and R rows of output, for every tile.
    unsafe {
        let mut ahead = args.k.ahead.unwrap_or(Ahead::NONE);
        let factor = _mm512_set1_ps(args.factor);
        for tile in 0..args.tiles {
            let mut acc = [[_mm512_setzero_ps(); P]; R];
            for d in 0..args.dims {
                let at = args.k.ptr.add(tile * 16 * P + d * args.k.step);
                if FETCH {
                    fetch::<P>(&mut ahead);
                }
                let k = load::<BF16, P>(at);
                for r in 0..R {
                    let x = _mm512_set1_ps(*args.q.add(d * R + r));
                    for j in 0..P {
                        acc[r][j] = _mm512_fmadd_ps(x, k[j], acc[r][j]);
                    }
                }
            }
            let out = args.out.add(tile * 16 * P);
            for r in 0..R {
                for j in 0..P {
                    _mm512_storeu_ps(out.add(r * PAGE_POSITIONS + 16 * j), _mm512_mul_ps(acc[r][j], factor));
                }
            }
        }
    }
}

/// `R` rows times `16 * P` dimensions: one fma chain per output over ascending positions.
///
/// # Safety
/// Needs AVX-512; operands as in [`WeighArgs`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn weigh<const BF16: bool, const FETCH: bool, const R: usize, const P: usize>(args: &WeighArgs) {
    // SAFETY: `positions` rows of V and weights, and R rows of `acc`, for every tile.
    unsafe {
        let mut ahead = args.v.ahead.unwrap_or(Ahead::NONE);
        for tile in 0..args.tiles {
            let to = args.acc.add(tile * 16 * P);
            let mut acc = [[_mm512_setzero_ps(); P]; R];
            for r in 0..R {
                for j in 0..P {
                    acc[r][j] = _mm512_loadu_ps(to.add(r * args.acc_step + 16 * j));
                }
            }
            for i in 0..args.positions {
                let at = args.v.ptr.add(tile * 16 * P + i * args.v.step);
                if FETCH {
                    fetch::<P>(&mut ahead);
                }
                let v = load::<BF16, P>(at);
                for r in 0..R {
                    let p = _mm512_set1_ps(*args.p.add(r * PAGE_POSITIONS + i));
                    for j in 0..P {
                        acc[r][j] = _mm512_fmadd_ps(p, v[j], acc[r][j]);
                    }
                }
            }
            for r in 0..R {
                for j in 0..P {
                    _mm512_storeu_ps(to.add(r * args.acc_step + 16 * j), acc[r][j]);
                }
            }
        }
    }
}

/// Lanes of the vector at `i` of `n` values.
fn mask(n: usize, i: usize) -> __mmask16 {
    ((1u32 << (n - i).min(16)) - 1) as __mmask16
}

/// # Safety
/// Needs AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn cap(scores: &mut [f32], cap: f32) {
    let (n, p, cap) = (scores.len(), scores.as_mut_ptr(), _mm512_set1_ps(cap));
    for i in (0..n).step_by(16) {
        // SAFETY: masks keep all accesses inside the slice.
        unsafe {
            let x = _mm512_maskz_loadu_ps(mask(n, i), p.add(i));
            _mm512_mask_storeu_ps(p.add(i), mask(n, i), _mm512_mul_ps(lanes::tanh16(x), cap));
        }
    }
}

/// # Safety
/// Needs AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn softmax(scores: &mut [f32]) -> (f32, f32) {
    let (n, p) = (scores.len(), scores.as_mut_ptr());
    let infinity = _mm512_set1_ps(f32::NEG_INFINITY);
    // SAFETY: masks keep all accesses inside the slice.
    unsafe {
        let mut m = infinity;
        for i in (0..n).step_by(16) {
            m = _mm512_max_ps(_mm512_mask_loadu_ps(infinity, mask(n, i), p.add(i)), m);
        }
        let max = _mm512_reduce_max_ps(m);
        let shift = _mm512_set1_ps(max);
        let mut sum = _mm512_setzero_ps();
        for i in (0..n).step_by(16) {
            let x = _mm512_maskz_loadu_ps(mask(n, i), p.add(i));
            let e = lanes::exp2_16(_mm512_sub_ps(x, shift));
            _mm512_mask_storeu_ps(p.add(i), mask(n, i), e);
            sum = _mm512_mask_add_ps(sum, mask(n, i), sum, e);
        }
        (max, lanes::tree16_zmm(sum))
    }
}
