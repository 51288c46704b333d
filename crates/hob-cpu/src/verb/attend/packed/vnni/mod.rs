//! Packed kernels on `vpdpbusd` and `vpdpwssd`: products of bytes or words that add up in 32 bits, one instruction each.
//!
//! Owns the register tiles of scores and of weighted V, written once over a register width: [`wide`] has 512 bits (AVX-512
//! VNNI), [`narrow`] 256 (AVX-VNNI). It must not know pages, masks or threads. Operands: [`super`].
#![allow(clippy::needless_range_loop, reason = "indices number registers of several arrays at once")]

#[macro_use]
mod kernels;
#[cfg(test)]
mod tests;

use std::arch::asm;
use std::arch::x86_64::{
    _MM_HINT_T0, _mm_and_ps, _mm_cmpgt_ps, _mm_cmplt_ps, _mm_div_ps, _mm_prefetch, _mm_set1_ps,
    _mm_setzero_ps, _mm_storeu_ps,
};
use std::mem::MaybeUninit;

use hob_compute::{BLOCK_POSITIONS, PAGE_POSITIONS};
use hob_quant::KV_GROUP;

use super::queries::{Queries, QueryRows};
use super::{Kernels, ScoreArgs, WeighArgs};

/// Bytes of a cache line.
const LINE: usize = 64;
/// Bytes of the scales of a group, one f16 per position.
const SCALE_BYTES: usize = 2 * BLOCK_POSITIONS;
/// Bytes of the codes of a group.
const Q4_GROUP: usize = BLOCK_POSITIONS * KV_GROUP / 2;
const Q8_GROUP: usize = BLOCK_POSITIONS * KV_GROUP;
/// Most rows of a chunk of both widths.
const MOST: usize = 8;

/// Integer weights of some rows at the positions of a block, and what their sums are multiplied by. A tile fills its rows
/// for every group, and reads no others.
#[repr(C, align(64))]
struct Weights {
    codes: [u8; MOST * 2 * BLOCK_POSITIONS],
    scales: [f32; MOST],
    /// `p` times scales of V.
    products: [f32; MOST * BLOCK_POSITIONS],
}

/// What will be read next, fetched in as many equal steps as a kernel takes.
#[derive(Copy, Clone)]
struct Ahead {
    at: *const u8,
    step: usize,
    /// From a step's first line to its other one: 0 where one is enough. A branch would cost registers.
    more: usize,
}

impl Ahead {
    /// `bytes` in `steps` steps; without any, what is being read anyway.
    fn over(bytes: &[u8], steps: usize, now: &[u8]) -> Ahead {
        let at = if bytes.is_empty() { now.as_ptr() } else { bytes.as_ptr() };
        let step = bytes.len().div_ceil(steps.max(1));
        Ahead { at, step, more: if step > LINE { LINE } else { 0 } }
    }

    /// Takes `N` steps of at most two lines.
    #[inline(always)]
    fn fetch<const N: usize>(&mut self) {
        for _ in 0..N {
            // SAFETY: a prefetch may have any address, and every x86-64 has it.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(self.at.cast());
                _mm_prefetch::<_MM_HINT_T0>(self.at.wrapping_add(self.more).cast());
            }
            self.at = self.at.wrapping_add(self.step);
        }
    }
}

/// Operations of one width: on values, and unsafe ones on memory that the caller vouches for.
macro_rules! ops {
    (
        $feature:literal
        values: $(fn $name:ident($($arg:ident: $t:ty),*) -> $out:ty $body:block)*
        memory: $(fn $at:ident($($to:ident: $u:ty),*) -> $found:ty $access:block)*
    ) => {
        $(
            #[inline]
            #[target_feature(enable = $feature)]
            fn $name($($arg: $t),*) -> $out $body
        )*
        $(
            #[inline]
            #[target_feature(enable = $feature)]
            unsafe fn $at($($to: $u),*) -> $found {
                // SAFETY: the caller's word.
                unsafe { $access }
            }
        )*
    };
}

#[cfg(test)]
pub mod emulated;

/// `acc` plus two products of words per lane. From the intrinsic a compiler makes a product and a sum again to shorten the
/// longest chain: two instructions where many chains wait for one.
macro_rules! dpwssd {
    ($template:literal, $class:ident, $acc:expr, $a:expr, $b:expr) => {{
        let mut acc = $acc;
        // SAFETY: registers only; the instruction set is that of the function around it.
        unsafe {
            asm!(
                $template,
                acc = inout($class) acc,
                a = in($class) $a,
                b = in($class) $b,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        acc
    }};
}

/// Vectors of register tiles by rows: as many as registers hold beside packed bytes, codes and a broadcast word.
const WIDE_K4: [usize; 9] = [0, 4, 4, 2, 2, 2, 2, 2, 2];
const WIDE_K8: [usize; 9] = [0, 4, 4, 4, 2, 2, 2, 2, 2];
/// At most a group, whose dimensions share weights.
const WIDE_V: [usize; 9] = [0, 2, 2, 2, 2, 2, 2, 2, 2];
const NARROW_K4: [usize; 7] = [0, 4, 2, 2, 2, 2, 1];
const NARROW_K8: [usize; 7] = [0, 4, 4, 2, 2, 2, 2];
const NARROW_V: [usize; 7] = [0, 4, 2, 2, 2, 1, 1];

/// 512 bits: 16 positions or dimensions per register, 32 registers.
pub mod wide {
    use super::*;
    use std::arch::x86_64::*;
    use std::arch::x86_64::{
        __m512 as F, __m512i as I, _mm512_and_si512 as and, _mm512_cvtepi32_ps as to_f,
        _mm512_dpbusd_epi32 as dp, _mm512_fmadd_ps as fma, _mm512_max_ps as max, _mm512_mul_ps as mul,
        _mm512_packs_epi32 as shorts, _mm512_set1_epi8 as set_b, _mm512_set1_epi32 as set_i,
        _mm512_set1_ps as set_f, _mm512_setzero_ps as zero_f, _mm512_setzero_si512 as zero_i,
    };

    /// Values of 32 bits per register.
    const LANES: usize = 16;

    ops! {
        "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c"
        values:
        fn dpw(acc: I, a: I, b: I) -> I { dpwssd!("vpdpwssd {acc}, {a}, {b}", zmm_reg, acc, a, b) }
        fn srl4(x: I) -> I { _mm512_srli_epi32::<4>(x) }
        fn to_i(x: F) -> I { _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
        fn nibbles() -> I { _mm512_broadcast_i32x4(_mm_setr_epi8(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7)) }
        fn low_nibbles(table: I, x: I) -> I { _mm512_permutexvar_epi8(x, table) }
        fn bytes(w: [I; 4]) -> I {
            _mm512_packus_epi16(_mm512_packus_epi32(w[0], w[1]), _mm512_packus_epi32(w[2], w[3]))
        }
        fn maxima(a: F, b: F, c: F, d: F) -> __m128 {
            let ab = max(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let cd = max(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
            let (low, high) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
            let m = max(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
            let m = _mm256_max_ps(_mm512_castps512_ps256(m), _mm512_extractf32x8_ps::<1>(m));
            _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps::<1>(m))
        }
        memory:
        fn load(p: *const u8) -> I { _mm512_loadu_si512(p.cast()) }
        fn store(p: *mut u8, x: I) -> () { _mm512_storeu_si512(p.cast(), x) }
        fn load_f(p: *const f32) -> F { _mm512_loadu_ps(p) }
        fn store_f(p: *mut f32, x: F) -> () { _mm512_storeu_ps(p, x) }
        fn f16s(p: *const u8) -> F { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
        fn widen(p: *const u8) -> I { _mm512_cvtepi8_epi16(_mm256_loadu_si256(p.cast())) }
        fn word(p: *const u8) -> I { set_i(p.cast::<i32>().read_unaligned()) }
    }

    kernels!(
        "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c",
        k4: WIDE_K4, k8: WIDE_K8, v: WIDE_V, rows: 1 2 3 4 5 6 7 8
    );
}

/// 256 bits: 8 positions or dimensions per register, 16 registers.
pub mod narrow {
    use super::*;
    use std::arch::x86_64::*;
    use std::arch::x86_64::{
        __m256 as F, __m256i as I, _mm256_and_si256 as and, _mm256_cvtepi32_ps as to_f,
        _mm256_cvtps_epi32 as to_i, _mm256_dpbusd_avx_epi32 as dp, _mm256_fmadd_ps as fma,
        _mm256_max_ps as max, _mm256_mul_ps as mul, _mm256_packs_epi32 as shorts, _mm256_set1_epi8 as set_b,
        _mm256_set1_epi32 as set_i, _mm256_set1_ps as set_f, _mm256_setzero_ps as zero_f,
        _mm256_setzero_si256 as zero_i,
    };

    /// Values of 32 bits per register.
    const LANES: usize = 8;

    ops! {
        "avxvnni,avx2,fma,f16c"
        values:
        fn dpw(acc: I, a: I, b: I) -> I { dpwssd!("{{vex}} vpdpwssd {acc}, {a}, {b}", ymm_reg, acc, a, b) }
        fn srl4(x: I) -> I { _mm256_srli_epi32::<4>(x) }
        fn nibbles() -> [I; 2] { [set_b(15), set_b(8)] }
        fn low_nibbles(by: [I; 2], x: I) -> I { _mm256_sub_epi8(and(x, by[0]), by[1]) }
        fn bytes(w: [I; 4]) -> I {
            _mm256_packus_epi16(_mm256_packus_epi32(w[0], w[1]), _mm256_packus_epi32(w[2], w[3]))
        }
        fn maxima(a: F, b: F, c: F, d: F) -> __m128 {
            let ab = max(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let cd = max(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
            let (low, high) = (_mm256_unpacklo_pd(ab, cd), _mm256_unpackhi_pd(ab, cd));
            let m = max(_mm256_castpd_ps(low), _mm256_castpd_ps(high));
            _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps::<1>(m))
        }
        memory:
        fn load(p: *const u8) -> I { _mm256_loadu_si256(p.cast()) }
        fn store(p: *mut u8, x: I) -> () { _mm256_storeu_si256(p.cast(), x) }
        fn load_f(p: *const f32) -> F { _mm256_loadu_ps(p) }
        fn store_f(p: *mut f32, x: F) -> () { _mm256_storeu_ps(p, x) }
        fn f16s(p: *const u8) -> F { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
        fn widen(p: *const u8) -> I { _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast())) }
        fn word(p: *const u8) -> I { set_i(p.cast::<i32>().read_unaligned()) }
    }

    kernels!("avxvnni,avx2,fma,f16c", k4: NARROW_K4, k8: NARROW_K8, v: NARROW_V, rows: 1 2 3 4 5 6);
}
