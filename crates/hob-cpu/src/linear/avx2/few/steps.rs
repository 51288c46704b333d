//! One step, 4 columns of 16 weight rows by `N` activation rows, written out in assembly. Left to itself the compiler
//! reassociates the integer sums, keeps every broadcast value for both halves alive and spills them all, and the store
//! port then limits the kernel; between these statements it can only place the decoding. It must not know formats.

use std::arch::asm;
use std::arch::x86_64::*;

use hob_compute::act::BLOCK;

use super::Two;

/// `sums[n] = w * x[n]` in 16 bits for step `T`: the first of a run.
///
/// # Safety
/// Needs AVX2; `N` rows of 32 bytes at `x`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn first<const N: usize, const T: usize>(w: Two<__m256i>, x: *const u8) -> [Two<__m256i>; N] {
    let mut sums = [[_mm256_setzero_si256(); 2]; N];
    for n in 0..N {
        let (a, b): (__m256i, __m256i);
        // SAFETY: reads four bytes of row n, writes registers only.
        unsafe {
            asm!(
                "vpbroadcastd {v}, dword ptr [{x} + {at}]",
                "vpmaddubsw {a}, {w0}, {v}",
                "vpmaddubsw {b}, {w1}, {v}",
                x = in(reg) x.add(n * BLOCK),
                at = const 4 * T,
                w0 = in(ymm_reg) w[0],
                w1 = in(ymm_reg) w[1],
                v = out(ymm_reg) _,
                a = out(ymm_reg) a,
                b = lateout(ymm_reg) b,
                options(nostack, readonly, preserves_flags),
            );
        }
        sums[n] = [a, b];
    }
    sums
}

/// `sums[n] += w * x[n]` in 16 bits for step `T`.
///
/// # Safety
/// As [`first`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn next<const N: usize, const T: usize>(
    sums: &mut [Two<__m256i>; N],
    w: Two<__m256i>,
    x: *const u8,
) {
    for n in 0..N {
        // SAFETY: as in `first`.
        unsafe {
            asm!(
                "vpbroadcastd {v}, dword ptr [{x} + {at}]",
                "vpmaddubsw {t}, {w0}, {v}",
                "vpmaddubsw {v}, {w1}, {v}",
                "vpaddw {a}, {a}, {t}",
                "vpaddw {b}, {b}, {v}",
                x = in(reg) x.add(n * BLOCK),
                at = const 4 * T,
                w0 = in(ymm_reg) w[0],
                w1 = in(ymm_reg) w[1],
                v = out(ymm_reg) _,
                t = out(ymm_reg) _,
                a = inout(ymm_reg) sums[n][0],
                b = inout(ymm_reg) sums[n][1],
                options(nostack, readonly, preserves_flags),
            );
        }
    }
}

/// `dots[n] += w * x[n]` in 32 bits for step `T` and signed weights, of which `magnitude` is the absolute value.
///
/// # Safety
/// As [`first`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn signed<const N: usize, const T: usize>(
    dots: &mut [Two<__m256i>; N],
    w: Two<__m256i>,
    magnitude: Two<__m256i>,
    x: *const u8,
) {
    for n in 0..N {
        // SAFETY: as in `first`.
        unsafe {
            asm!(
                "vpbroadcastd {v}, dword ptr [{x} + {at}]",
                "vpsignb {t}, {v}, {w0}",
                "vpsignb {v}, {v}, {w1}",
                "vpmaddubsw {t}, {m0}, {t}",
                "vpmaddubsw {v}, {m1}, {v}",
                "vpmaddwd {t}, {t}, {ones}",
                "vpmaddwd {v}, {v}, {ones}",
                "vpaddd {a}, {a}, {t}",
                "vpaddd {b}, {b}, {v}",
                x = in(reg) x.add(n * BLOCK),
                at = const 4 * T,
                w0 = in(ymm_reg) w[0],
                w1 = in(ymm_reg) w[1],
                m0 = in(ymm_reg) magnitude[0],
                m1 = in(ymm_reg) magnitude[1],
                ones = in(ymm_reg) _mm256_set1_epi16(1),
                v = out(ymm_reg) _,
                t = out(ymm_reg) _,
                a = inout(ymm_reg) dots[n][0],
                b = inout(ymm_reg) dots[n][1],
                options(nostack, readonly, preserves_flags),
            );
        }
    }
}

/// [`signed`] for weights above -128: one magnitude, the activation's, serves both registers.
///
/// # Safety
/// As [`first`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn levels<const N: usize, const T: usize>(
    dots: &mut [Two<__m256i>; N],
    w: Two<__m256i>,
    x: *const u8,
) {
    for n in 0..N {
        // SAFETY: as in `first`.
        unsafe {
            asm!(
                "vpbroadcastd {v}, dword ptr [{x} + {at}]",
                "vpsignb {t}, {w0}, {v}",
                "vpsignb {u}, {w1}, {v}",
                "vpabsb {v}, {v}",
                "vpmaddubsw {t}, {v}, {t}",
                "vpmaddubsw {u}, {v}, {u}",
                "vpmaddwd {t}, {t}, {ones}",
                "vpmaddwd {u}, {u}, {ones}",
                "vpaddd {a}, {a}, {t}",
                "vpaddd {b}, {b}, {u}",
                x = in(reg) x.add(n * BLOCK),
                at = const 4 * T,
                w0 = in(ymm_reg) w[0],
                w1 = in(ymm_reg) w[1],
                ones = in(ymm_reg) _mm256_set1_epi16(1),
                v = out(ymm_reg) _,
                t = out(ymm_reg) _,
                u = out(ymm_reg) _,
                a = inout(ymm_reg) dots[n][0],
                b = inout(ymm_reg) dots[n][1],
                options(nostack, readonly, preserves_flags),
            );
        }
    }
}
