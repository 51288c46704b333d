//! Register tiles of 8 lanes, for 16 registers.
#![allow(
    clippy::needless_range_loop,
    reason = "iterators over arrays keep accumulators in memory; indices do not"
)]

use std::arch::asm;
use std::arch::x86_64::*;

use hob_compute::PAGE_POSITIONS;

use super::vector::{Ahead, Kernels, ScoreArgs, WeighArgs};
use crate::verb::lanes;

pub(in crate::verb::attend) struct Avx2;

/// Calls `$f::<BF16, FETCH, rows, vectors>`.
macro_rules! tiles {
    ($f:ident, $bf16:literal, $fetch:expr, $rows:expr, $vectors:expr, $args:expr) => {
        match ($fetch, $rows, $vectors) {
            (true, 1, 8) => $f::<$bf16, true, 1, 8>($args),
            (true, 1, 4) => $f::<$bf16, true, 1, 4>($args),
            (true, 1, 2) => $f::<$bf16, true, 1, 2>($args),
            (true, 1, 1) => $f::<$bf16, true, 1, 1>($args),
            (true, 2, 4) => $f::<$bf16, true, 2, 4>($args),
            (true, 2, 2) => $f::<$bf16, true, 2, 2>($args),
            (true, 2, 1) => $f::<$bf16, true, 2, 1>($args),
            (true, 3, 4) => $f::<$bf16, true, 3, 4>($args),
            (true, 3, 2) => $f::<$bf16, true, 3, 2>($args),
            (true, 3, 1) => $f::<$bf16, true, 3, 1>($args),
            (true, 4, 2) => $f::<$bf16, true, 4, 2>($args),
            (true, 4, 1) => $f::<$bf16, true, 4, 1>($args),
            (true, 5, 2) => $f::<$bf16, true, 5, 2>($args),
            (true, 5, 1) => $f::<$bf16, true, 5, 1>($args),
            (true, 6, 2) => $f::<$bf16, true, 6, 2>($args),
            (true, 6, 1) => $f::<$bf16, true, 6, 1>($args),
            (false, 1, 8) => $f::<$bf16, false, 1, 8>($args),
            (false, 1, 4) => $f::<$bf16, false, 1, 4>($args),
            (false, 1, 2) => $f::<$bf16, false, 1, 2>($args),
            (false, 1, 1) => $f::<$bf16, false, 1, 1>($args),
            (false, 2, 4) => $f::<$bf16, false, 2, 4>($args),
            (false, 2, 2) => $f::<$bf16, false, 2, 2>($args),
            (false, 2, 1) => $f::<$bf16, false, 2, 1>($args),
            (false, 3, 4) => $f::<$bf16, false, 3, 4>($args),
            (false, 3, 2) => $f::<$bf16, false, 3, 2>($args),
            (false, 3, 1) => $f::<$bf16, false, 3, 1>($args),
            (false, 4, 2) => $f::<$bf16, false, 4, 2>($args),
            (false, 4, 1) => $f::<$bf16, false, 4, 1>($args),
            (false, 5, 2) => $f::<$bf16, false, 5, 2>($args),
            (false, 5, 1) => $f::<$bf16, false, 5, 1>($args),
            (false, 6, 2) => $f::<$bf16, false, 6, 2>($args),
            (false, 6, 1) => $f::<$bf16, false, 6, 1>($args),
            (_, rows, vectors) => unreachable!("no tile of {rows} rows and {vectors} vectors"),
        }
    };
}

impl Kernels for Avx2 {
    const LANES: usize = 8;

    fn vectors(rows: usize) -> usize {
        // At least 8 chains hide the latency of an fma; 12 and the operands are all that 16 registers hold.
        match rows {
            1 => 8,
            2 | 3 => 4,
            _ => 2,
        }
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
/// Needs AVX2, FMA, F16C; `8 * P` values at `ptr`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load<const BF16: bool, const P: usize>(ptr: *const u16) -> [__m256; P] {
    let mut v = [_mm256_setzero_ps(); P];
    for j in 0..P {
        // SAFETY: the caller vouches for P vectors.
        v[j] = unsafe {
            let ptr = ptr.add(8 * j);
            let x = _mm_loadu_si128(ptr.cast());
            if BF16 {
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x)))
            } else {
                _mm256_cvtph_ps(x)
            }
        };
    }
    v
}

/// Asks for what a round of `P` vectors has to: at most two lines as rounds are counted.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fetch<const P: usize>(ahead: &mut Ahead) {
    _mm_prefetch::<_MM_HINT_T0>(ahead.at);
    if P * 16 > 64 {
        _mm_prefetch::<_MM_HINT_T0>(ahead.at.wrapping_add(64));
    }
    ahead.at = ahead.at.wrapping_add(ahead.step);
}

/// Two rounds of 3 rows and 4 vectors: 12 accumulators, 3 broadcast values and one operand are exactly the 16
/// registers, which the compiler, reordering the loads, does not find (half the speed). Row `r` of the first round
/// is `ROW * r` bytes behind `x`, the second round `NEXT` bytes behind the first, its vectors `step` values.
///
/// # Safety
/// Needs AVX2, FMA, F16C; 4 vectors at `v` and at `v + step`, and the values at `x`. `R` is 3 and `P` is 4.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pair<const ROW: usize, const NEXT: usize, const R: usize, const P: usize>(
    acc: &mut [[__m256; P]; R],
    v: *const u16,
    step: usize,
    x: *const f32,
) {
    let [a, b, c] = &mut acc[..] else { return };
    // SAFETY: reads what the caller vouches for, writes registers only.
    unsafe {
        asm!(
            "vbroadcastss {x0}, dword ptr [{x}]",
            "vbroadcastss {x1}, dword ptr [{x} + {row}]",
            "vbroadcastss {x2}, dword ptr [{x} + 2 * {row}]",
            "vcvtph2ps {k}, xmmword ptr [{v}]",
            "vfmadd231ps {a0}, {x0}, {k}",
            "vfmadd231ps {b0}, {x1}, {k}",
            "vfmadd231ps {c0}, {x2}, {k}",
            "vcvtph2ps {k}, xmmword ptr [{v} + 16]",
            "vfmadd231ps {a1}, {x0}, {k}",
            "vfmadd231ps {b1}, {x1}, {k}",
            "vfmadd231ps {c1}, {x2}, {k}",
            "vcvtph2ps {k}, xmmword ptr [{v} + 32]",
            "vfmadd231ps {a2}, {x0}, {k}",
            "vfmadd231ps {b2}, {x1}, {k}",
            "vfmadd231ps {c2}, {x2}, {k}",
            "vcvtph2ps {k}, xmmword ptr [{v} + 48]",
            "vfmadd231ps {a3}, {x0}, {k}",
            "vfmadd231ps {b3}, {x1}, {k}",
            "vfmadd231ps {c3}, {x2}, {k}",
            "vbroadcastss {x0}, dword ptr [{x} + {next}]",
            "vbroadcastss {x1}, dword ptr [{x} + {next} + {row}]",
            "vbroadcastss {x2}, dword ptr [{x} + {next} + 2 * {row}]",
            "vcvtph2ps {k}, xmmword ptr [{v} + {step}]",
            "vfmadd231ps {a0}, {x0}, {k}",
            "vfmadd231ps {b0}, {x1}, {k}",
            "vfmadd231ps {c0}, {x2}, {k}",
            "vcvtph2ps {k}, xmmword ptr [{v} + {step} + 16]",
            "vfmadd231ps {a1}, {x0}, {k}",
            "vfmadd231ps {b1}, {x1}, {k}",
            "vfmadd231ps {c1}, {x2}, {k}",
            "vcvtph2ps {k}, xmmword ptr [{v} + {step} + 32]",
            "vfmadd231ps {a2}, {x0}, {k}",
            "vfmadd231ps {b2}, {x1}, {k}",
            "vfmadd231ps {c2}, {x2}, {k}",
            "vcvtph2ps {k}, xmmword ptr [{v} + {step} + 48]",
            "vfmadd231ps {a3}, {x0}, {k}",
            "vfmadd231ps {b3}, {x1}, {k}",
            "vfmadd231ps {c3}, {x2}, {k}",
            v = in(reg) v,
            x = in(reg) x,
            step = in(reg) 2 * step,
            row = const ROW,
            next = const NEXT,
            x0 = out(ymm_reg) _,
            x1 = out(ymm_reg) _,
            x2 = out(ymm_reg) _,
            k = out(ymm_reg) _,
            a0 = inout(ymm_reg) a[0],
            a1 = inout(ymm_reg) a[1],
            a2 = inout(ymm_reg) a[2],
            a3 = inout(ymm_reg) a[3],
            b0 = inout(ymm_reg) b[0],
            b1 = inout(ymm_reg) b[1],
            b2 = inout(ymm_reg) b[2],
            b3 = inout(ymm_reg) b[3],
            c0 = inout(ymm_reg) c[0],
            c1 = inout(ymm_reg) c[1],
            c2 = inout(ymm_reg) c[2],
            c3 = inout(ymm_reg) c[3],
            options(pure, readonly, nostack, preserves_flags),
        );
    }
}

/// `R` rows times `8 * P` positions: one fma chain per score over ascending dimensions.
///
/// # Safety
/// Needs AVX2, FMA, F16C; operands as in [`ScoreArgs`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scores<const BF16: bool, const FETCH: bool, const R: usize, const P: usize>(args: &ScoreArgs) {
    // SAFETY: `dims` rows of K and Q, and R rows of output, for every tile.
    unsafe {
        let mut ahead = args.k.ahead.unwrap_or(Ahead::NONE);
        let factor = _mm256_set1_ps(args.factor);
        for tile in 0..args.tiles {
            let mut acc = [[_mm256_setzero_ps(); P]; R];
            let mut d = 0;
            while !BF16 && R == 3 && P == 4 && d + 2 <= args.dims {
                let k = args.k.ptr.add(tile * 8 * P + d * args.k.step);
                if FETCH {
                    fetch::<P>(&mut ahead);
                    fetch::<P>(&mut ahead);
                }
                pair::<4, 12, R, P>(&mut acc, k, args.k.step, args.q.add(d * R));
                d += 2;
            }
            for d in d..args.dims {
                let at = args.k.ptr.add(tile * 8 * P + d * args.k.step);
                if FETCH {
                    fetch::<P>(&mut ahead);
                }
                let k = load::<BF16, P>(at);
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
                    _mm256_storeu_ps(out.add(r * PAGE_POSITIONS + 8 * j), _mm256_mul_ps(acc[r][j], factor));
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
unsafe fn weigh<const BF16: bool, const FETCH: bool, const R: usize, const P: usize>(args: &WeighArgs) {
    // SAFETY: `positions` rows of V and weights, and R rows of `acc`, for every tile.
    unsafe {
        let mut ahead = args.v.ahead.unwrap_or(Ahead::NONE);
        for tile in 0..args.tiles {
            let to = args.acc.add(tile * 8 * P);
            let mut acc = [[_mm256_setzero_ps(); P]; R];
            for r in 0..R {
                for j in 0..P {
                    acc[r][j] = _mm256_loadu_ps(to.add(r * args.acc_step + 8 * j));
                }
            }
            let mut i = 0;
            while !BF16 && R == 3 && P == 4 && i + 2 <= args.positions {
                let v = args.v.ptr.add(tile * 8 * P + i * args.v.step);
                if FETCH {
                    fetch::<P>(&mut ahead);
                    fetch::<P>(&mut ahead);
                }
                pair::<{ 4 * PAGE_POSITIONS }, 4, R, P>(&mut acc, v, args.v.step, args.p.add(i));
                i += 2;
            }
            for i in i..args.positions {
                let at = args.v.ptr.add(tile * 8 * P + i * args.v.step);
                if FETCH {
                    fetch::<P>(&mut ahead);
                }
                let v = load::<BF16, P>(at);
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
unsafe fn cap(scores: &mut [f32], cap: f32) {
    let cap = _mm256_set1_ps(cap);
    let mut vectors = scores.chunks_exact_mut(8);
    // SAFETY: whole vectors of the slice; the last, partial one is masked.
    unsafe {
        for x in &mut vectors {
            let p = x.as_mut_ptr();
            _mm256_storeu_ps(p, _mm256_mul_ps(lanes::tanh8(_mm256_loadu_ps(p)), cap));
        }
        let rest = vectors.into_remainder();
        let (mask, p) = (lanes::first8(rest.len()), rest.as_mut_ptr());
        let x = _mm256_maskload_ps(p, mask);
        _mm256_maskstore_ps(p, mask, _mm256_mul_ps(lanes::tanh8(x), cap));
    }
}

/// # Safety
/// Needs AVX2 and FMA.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn softmax(scores: &mut [f32]) -> (f32, f32) {
    let (n, p) = (scores.len(), scores.as_mut_ptr());
    let whole = n / 16 * 16;
    // SAFETY: whole vectors lie inside the slice; the last two, partial or absent, are masked.
    unsafe {
        let masks = [lanes::first8(n - whole), lanes::first8((n - whole).saturating_sub(8))];
        let infinity = _mm256_set1_ps(f32::NEG_INFINITY);
        let tail = |j: usize| p.wrapping_add(whole + 8 * j);
        let mut m = [infinity; 2];
        for i in (0..whole).step_by(16) {
            m[0] = _mm256_max_ps(_mm256_loadu_ps(p.add(i)), m[0]);
            m[1] = _mm256_max_ps(_mm256_loadu_ps(p.add(i + 8)), m[1]);
        }
        if whole < n {
            for j in 0..2 {
                let x = _mm256_maskload_ps(tail(j), masks[j]);
                m[j] = _mm256_max_ps(_mm256_blendv_ps(infinity, x, _mm256_castsi256_ps(masks[j])), m[j]);
            }
        }
        let max = lanes::max8(_mm256_max_ps(m[0], m[1]));
        let shift = _mm256_set1_ps(max);
        let mut sum = [_mm256_setzero_ps(); 2];
        for i in (0..whole).step_by(16) {
            for j in 0..2 {
                let at = p.add(i + 8 * j);
                let e = lanes::exp2_8(_mm256_sub_ps(_mm256_loadu_ps(at), shift));
                _mm256_storeu_ps(at, e);
                sum[j] = _mm256_add_ps(sum[j], e);
            }
        }
        if whole < n {
            for j in 0..2 {
                let x = _mm256_maskload_ps(tail(j), masks[j]);
                let e = lanes::exp2_8(_mm256_sub_ps(x, shift));
                _mm256_maskstore_ps(tail(j), masks[j], e);
                // Adding 0 in an absent lane changes no sum: none is -0.
                sum[j] = _mm256_add_ps(sum[j], _mm256_and_ps(e, _mm256_castsi256_ps(masks[j])));
            }
        }
        (max, lanes::tree16(sum[0], sum[1]))
    }
}
