//! Register tiles of 8 lanes, for 16 registers.
#![allow(
    clippy::needless_range_loop,
    reason = "iterators over arrays keep accumulators in memory; indices do not"
)]

use std::arch::x86_64::*;

use hob_compute::PAGE_POSITIONS;

use super::vector::{Kernels, ScoreArgs, WeighArgs};
use crate::verb::lanes;

pub(in crate::verb::attend) struct Avx2;

/// Calls `$f::<FETCH, rows, vectors>`.
macro_rules! tiles {
    ($f:ident, $fetch:expr, $rows:expr, $vectors:expr, $args:expr) => {
        match ($fetch, $rows, $vectors) {
            (true, 1, 8) => $f::<true, 1, 8>($args),
            (true, 1, 4) => $f::<true, 1, 4>($args),
            (true, 1, 2) => $f::<true, 1, 2>($args),
            (true, 1, 1) => $f::<true, 1, 1>($args),
            (true, 2, 4) => $f::<true, 2, 4>($args),
            (true, 2, 2) => $f::<true, 2, 2>($args),
            (true, 2, 1) => $f::<true, 2, 1>($args),
            (true, 3, 2) => $f::<true, 3, 2>($args),
            (true, 3, 1) => $f::<true, 3, 1>($args),
            (true, 4, 2) => $f::<true, 4, 2>($args),
            (true, 4, 1) => $f::<true, 4, 1>($args),
            (true, 5, 2) => $f::<true, 5, 2>($args),
            (true, 5, 1) => $f::<true, 5, 1>($args),
            (true, 6, 2) => $f::<true, 6, 2>($args),
            (true, 6, 1) => $f::<true, 6, 1>($args),
            (false, 1, 8) => $f::<false, 1, 8>($args),
            (false, 1, 4) => $f::<false, 1, 4>($args),
            (false, 1, 2) => $f::<false, 1, 2>($args),
            (false, 1, 1) => $f::<false, 1, 1>($args),
            (false, 2, 4) => $f::<false, 2, 4>($args),
            (false, 2, 2) => $f::<false, 2, 2>($args),
            (false, 2, 1) => $f::<false, 2, 1>($args),
            (false, 3, 2) => $f::<false, 3, 2>($args),
            (false, 3, 1) => $f::<false, 3, 1>($args),
            (false, 4, 2) => $f::<false, 4, 2>($args),
            (false, 4, 1) => $f::<false, 4, 1>($args),
            (false, 5, 2) => $f::<false, 5, 2>($args),
            (false, 5, 1) => $f::<false, 5, 1>($args),
            (false, 6, 2) => $f::<false, 6, 2>($args),
            (false, 6, 1) => $f::<false, 6, 1>($args),
            (_, rows, vectors) => unreachable!("no tile of {rows} rows and {vectors} vectors"),
        }
    };
}

impl Kernels for Avx2 {
    const LANES: usize = 8;

    fn vectors(rows: usize) -> usize {
        // Measured: 3 rows of 4 vectors need one register too many and take twice as long.
        match rows {
            1 => 8,
            2 => 4,
            _ => 2,
        }
    }

    unsafe fn scores(rows: usize, vectors: usize, args: &ScoreArgs) {
        // SAFETY: the caller's word.
        unsafe { tiles!(scores, args.k.ahead.is_some(), rows, vectors, args) }
    }

    unsafe fn weigh(rows: usize, vectors: usize, args: &WeighArgs) {
        // SAFETY: the caller's word.
        unsafe { tiles!(weigh, args.v.ahead.is_some(), rows, vectors, args) }
    }

    unsafe fn softmax(scores: &mut [f32]) -> (f32, f32) {
        // SAFETY: the caller's word.
        unsafe { softmax(scores) }
    }
}

/// `P` vectors of f16 values, widened.
///
/// # Safety
/// Needs AVX2, FMA, F16C; `8 * P` values at `ptr`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load<const P: usize>(ptr: *const u16) -> [__m256; P] {
    let mut v = [_mm256_setzero_ps(); P];
    for j in 0..P {
        // SAFETY: the caller vouches for P vectors.
        v[j] = unsafe {
            let ptr = ptr.add(8 * j);
            _mm256_cvtph_ps(_mm_loadu_si128(ptr.cast()))
        };
    }
    v
}

/// Asks for the lines of `P` vectors of f16 values, `ahead` bytes behind `ptr`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fetch<const P: usize>(ptr: *const u16, ahead: isize) {
    let ptr = ptr.cast::<i8>().wrapping_offset(ahead);
    for line in 0..(2 * 8 * P).div_ceil(64) {
        _mm_prefetch::<_MM_HINT_T0>(ptr.wrapping_add(64 * line));
    }
}

/// `R` rows times `8 * P` positions: one fma chain per score over ascending dimensions.
///
/// # Safety
/// Needs AVX2, FMA, F16C; operands as in [`ScoreArgs`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scores<const FETCH: bool, const R: usize, const P: usize>(args: &ScoreArgs) {
    // SAFETY: `dims` rows of K and Q, and R rows of output, for every tile.
    unsafe {
        let scale = _mm256_set1_ps(args.scale);
        for tile in 0..args.tiles {
            let mut acc = [[_mm256_setzero_ps(); P]; R];
            for d in 0..args.dims {
                let at = args.k.ptr.add(tile * 8 * P + d * args.k.step);
                if FETCH {
                    fetch::<P>(at, args.k.ahead.unwrap_or(0));
                }
                let k = load::<P>(at);
                for r in 0..R {
                    let x = _mm256_broadcast_ss(&*args.q.add(d * R + r));
                    for j in 0..P {
                        acc[r][j] = _mm256_fmadd_ps(x, k[j], acc[r][j]);
                    }
                }
            }
            let out = args.out.add(tile * 8 * P);
            for r in 0..R {
                for j in 0..P {
                    _mm256_storeu_ps(out.add(r * PAGE_POSITIONS + 8 * j), _mm256_mul_ps(acc[r][j], scale));
                }
            }
        }
    }
}

/// `R` rows times `8 * P` dimensions: one fma chain per output over ascending positions.
///
/// # Safety
/// Needs AVX2, FMA, F16C; operands as in [`WeighArgs`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn weigh<const FETCH: bool, const R: usize, const P: usize>(args: &WeighArgs) {
    // SAFETY: `positions` rows of V and weights, and R rows of `acc`, for every tile.
    unsafe {
        for tile in 0..args.tiles {
            let to = args.acc.add(tile * 8 * P);
            let mut acc = [[_mm256_setzero_ps(); P]; R];
            for r in 0..R {
                for j in 0..P {
                    acc[r][j] = _mm256_loadu_ps(to.add(r * args.acc_step + 8 * j));
                }
            }
            for i in 0..args.positions {
                let at = args.v.ptr.add(tile * 8 * P + i * args.v.step);
                if FETCH {
                    fetch::<P>(at, args.v.ahead.unwrap_or(0));
                }
                let v = load::<P>(at);
                for r in 0..R {
                    let p = _mm256_broadcast_ss(&*args.p.add(r * PAGE_POSITIONS + i));
                    for j in 0..P {
                        acc[r][j] = _mm256_fmadd_ps(p, v[j], acc[r][j]);
                    }
                }
            }
            for r in 0..R {
                for j in 0..P {
                    _mm256_storeu_ps(to.add(r * args.acc_step + 8 * j), acc[r][j]);
                }
            }
        }
    }
}

/// # Safety
/// Needs AVX2 and FMA.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn softmax(scores: &mut [f32]) -> (f32, f32) {
    let (n, p) = (scores.len(), scores.as_mut_ptr());
    let infinity = _mm256_set1_ps(f32::NEG_INFINITY);
    // SAFETY: whole vectors lie inside the slice; the last, partial one is masked.
    unsafe {
        let at = |i: usize| {
            let mask = lanes::first8(n.saturating_sub(i));
            let v = _mm256_maskload_ps(p.add(i.min(n)), mask);
            _mm256_blendv_ps(infinity, v, _mm256_castsi256_ps(mask))
        };
        let whole = n / 16 * 16;
        let mut m = [infinity; 2];
        for i in (0..whole).step_by(16) {
            m[0] = _mm256_max_ps(_mm256_loadu_ps(p.add(i)), m[0]);
            m[1] = _mm256_max_ps(_mm256_loadu_ps(p.add(i + 8)), m[1]);
        }
        if whole < n {
            m[0] = _mm256_max_ps(at(whole), m[0]);
            m[1] = _mm256_max_ps(at(whole + 8), m[1]);
        }
        let max = lanes::max8(_mm256_max_ps(m[0], m[1]));
        let shift = _mm256_set1_ps(max);
        let mut sum = [_mm256_setzero_ps(); 2];
        for i in (0..whole).step_by(16) {
            for (j, sum) in sum.iter_mut().enumerate() {
                let e = lanes::exp8(_mm256_sub_ps(_mm256_loadu_ps(p.add(i + 8 * j)), shift));
                _mm256_storeu_ps(p.add(i + 8 * j), e);
                *sum = _mm256_add_ps(*sum, e);
            }
        }
        if whole < n {
            for (j, sum) in sum.iter_mut().enumerate() {
                let i = whole + 8 * j;
                let mask = lanes::first8(n.saturating_sub(i));
                // Absent lanes hold -inf, whose exponential is 0 and changes no sum.
                let e = lanes::exp8(_mm256_sub_ps(at(i), shift));
                _mm256_maskstore_ps(p.add(i.min(n)), mask, e);
                *sum = _mm256_add_ps(*sum, e);
            }
        }
        (max, lanes::tree16(sum[0], sum[1]))
    }
}
