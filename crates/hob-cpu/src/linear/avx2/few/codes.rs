//! Integer dots of one block: planes become bytes step by step, and bytes become sums. It must not know scales, apart
//! from the words that weigh the halves of a block.

use std::arch::x86_64::*;

use super::formats::{Class, Coded};
use super::{At, Two, steps};
use crate::linear::shape::Planes;
use hob_compute::act::BLOCK;

/// Exact dots of `N` activation rows with one block, offset included: half h counted `scales[h]` times (a pair of equal
/// words per weight row; ones where the format has one scale per 32).
///
/// # Safety
/// Needs AVX2; the superblock holds the block, and `at.x` N rows of 32 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn dots<F: Coded, const N: usize>(at: At, scales: Two<Two<__m256i>>) -> [Two<__m256i>; N] {
    let mut dots = [[_mm256_setzero_si256(); 2]; N];
    let x = at.x;
    // SAFETY: the caller vouches for both sides.
    unsafe {
        let mut codes = at.sup.add(F::SHAPE.header.bytes() + at.block * F::SHAPE.planes.bytes());
        macro_rules! run {
            ($half:literal: $first:literal $($next:literal)*) => {{
                let mut sums = steps::first::<N, $first>(decode::<F, $first>(codes), x);
                $(steps::next::<N, $next>(&mut sums, decode::<F, $next>(codes), x);)*
                for n in 0..N {
                    for r in 0..2 {
                        let weighed = _mm256_madd_epi16(sums[n][r], scales[$half][r]);
                        dots[n][r] = _mm256_add_epi32(dots[n][r], weighed);
                    }
                }
            }};
        }
        macro_rules! each {
            ($step:ident, $($t:literal)*) => {
                {$(
                    let w = decode::<F, $t>(codes);
                    $step!($t, w);
                )*}
            };
        }
        macro_rules! signed {
            ($t:literal, $w:ident) => {{
                let magnitude = [_mm256_abs_epi8($w[0]), _mm256_abs_epi8($w[1])];
                steps::signed::<N, $t>(&mut dots, $w, magnitude, x)
            }};
        }
        macro_rules! levels {
            ($t:literal, $w:ident) => {
                steps::levels::<N, $t>(&mut dots, $w, x)
            };
        }
        match F::CLASS {
            Class::Unsigned(8) => run!(0: 0 4 1 5 2 6 3 7),
            Class::Unsigned(4) => {
                run!(0: 0 1 2 3);
                codes = reloaded(codes);
                run!(1: 4 5 6 7);
            }
            Class::Unsigned(_) => {
                run!(0: 0 1);
                run!(0: 2 3);
                codes = reloaded(codes);
                run!(1: 4 5);
                run!(1: 6 7);
            }
            Class::Triples => unreachable!("codes of 3 bits are taken apart by `halves`"),
            Class::Signed => each!(signed, 0 1 2 3 4 5 6 7),
            Class::Levels => each!(levels, 0 4 1 5 2 6 3 7),
        }
    }
    dots
}

/// Sums of the halves of a block in 16 bits, offset included, for codes of 3 bits.
///
/// # Safety
/// As [`dots`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn halves<F: Coded, const N: usize>(at: At) -> Two<[Two<__m256i>; N]> {
    // SAFETY: the caller vouches for both sides.
    unsafe {
        let codes = at.sup.add(F::SHAPE.header.bytes() + at.block * F::SHAPE.planes.bytes());
        let (a, b, c) = (chunk(codes, 0), chunk(codes, 1), chunk(codes, 2));
        [triples::<N>([a, b], at.x), triples::<N>([c, tops(a, b, c)], at.x.add(BLOCK / 2))]
    }
}

/// Sums of half a block in 16 bits: bytes with two codes of 3 bits each, for steps 0 and 1, and 2 and 3. The upper codes
/// are multiplied where they stand; only their sum, at most 28448, is shifted.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn triples<const N: usize>(bytes: Two<Two<__m256i>>, x: *const u8) -> [Two<__m256i>; N] {
    // SAFETY: the caller has half a block of N rows at `x`.
    unsafe {
        let mut low = steps::first::<N, 0>(both(bytes[0], 7), x);
        steps::next::<N, 2>(&mut low, both(bytes[1], 7), x);
        let mut high = steps::first::<N, 1>(both(bytes[0], 56), x);
        steps::next::<N, 3>(&mut high, both(bytes[1], 56), x);
        for n in 0..N {
            for r in 0..2 {
                low[n][r] = _mm256_add_epi16(low[n][r], _mm256_srai_epi16::<3>(high[n][r]));
            }
        }
        low
    }
}

/// The upper two bits of three chunks, as the codes of steps 6 and 7.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn tops(a: Two<__m256i>, b: Two<__m256i>, c: Two<__m256i>) -> Two<__m256i> {
    let mut out = a;
    for r in 0..2 {
        let low = _mm256_or_si256(masked::<6>(a[r], 3), masked::<4>(b[r], 12));
        out[r] = _mm256_or_si256(low, masked::<2>(c[r], 48));
    }
    out
}

/// Chunk `index` of 64 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn chunk(codes: *const u8, index: usize) -> Two<__m256i> {
    // SAFETY: the caller vouches for the chunk.
    unsafe {
        let at = codes.add(64 * index);
        [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(32).cast())]
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn both(v: Two<__m256i>, mask: i8) -> Two<__m256i> {
    [masked::<0>(v[0], mask), masked::<0>(v[1], mask)]
}

/// The same address, which the compiler does not know: loads through it are not shared with earlier ones. Sixteen
/// registers do not hold a block's planes over both halves; loading them twice costs less than spilling them.
#[inline]
fn reloaded(mut p: *const u8) -> *const u8 {
    // SAFETY: no instruction.
    unsafe { std::arch::asm!("/* {0} */", inout(reg) p, options(readonly, nostack, preserves_flags)) };
    p
}

/// The bytes of step `T`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn decode<F: Coded, const T: usize>(codes: *const u8) -> Two<__m256i> {
    let mut out = [_mm256_setzero_si256(); 2];
    for (r, out) in out.iter_mut().enumerate() {
        // SAFETY: the planes of one block lie at `codes`.
        *out = unsafe {
            let at = |offset: usize| _mm256_loadu_si256(codes.add(offset + 32 * r).cast());
            let nibble = || match T / 4 {
                0 => masked::<0>(at(64 * T), 15),
                _ => masked::<4>(at(64 * (T % 4)), 15),
            };
            match F::SHAPE.planes {
                Planes::Bytes => at(64 * T),
                Planes::Nibbles => look_up::<F>(nibble()),
                Planes::NibblesBit => _mm256_or_si256(nibble(), bit_to_4::<T>(at(256))),
                Planes::NibblesPair => _mm256_or_si256(nibble(), pair_to_4::<T>(at(256 + 64 * (T / 4)))),
                Planes::Triples => unreachable!("codes of 3 bits are taken apart by `halves`"),
                Planes::Pair => pair::<T>(at(64 * (T / 4))),
            }
        };
    }
    out
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn look_up<F: Coded>(nibbles: __m256i) -> __m256i {
    match F::TABLE {
        Some(t) => {
            let table = _mm_setr_epi8(
                t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10], t[11], t[12], t[13],
                t[14], t[15],
            );
            _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), nibbles)
        }
        None => nibbles,
    }
}

/// The bits of `mask` after a shift to the right.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn masked<const SHIFT: i32>(v: __m256i, mask: i8) -> __m256i {
    let v = if SHIFT == 0 { v } else { _mm256_srli_epi16::<SHIFT>(v) };
    _mm256_and_si256(v, _mm256_set1_epi8(mask))
}

/// The bits of `mask` after a shift to the left.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn raised<const SHIFT: i32>(v: __m256i, mask: i8) -> __m256i {
    _mm256_and_si256(_mm256_slli_epi16::<SHIFT>(v), _mm256_set1_epi8(mask))
}

/// Bit `T` of every byte, as bit 4.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn bit_to_4<const T: usize>(v: __m256i) -> __m256i {
    match T {
        0 => raised::<4>(v, 16),
        1 => raised::<3>(v, 16),
        2 => raised::<2>(v, 16),
        3 => raised::<1>(v, 16),
        4 => masked::<0>(v, 16),
        5 => masked::<1>(v, 16),
        6 => masked::<2>(v, 16),
        _ => masked::<3>(v, 16),
    }
}

/// The bit pair of step `T` of every byte, as bits 0 and 1.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn pair<const T: usize>(v: __m256i) -> __m256i {
    match T % 4 {
        0 => masked::<0>(v, 3),
        1 => masked::<2>(v, 3),
        2 => masked::<4>(v, 3),
        _ => masked::<6>(v, 3),
    }
}

/// The bit pair of step `T` of every byte, as bits 4 and 5.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn pair_to_4<const T: usize>(v: __m256i) -> __m256i {
    match T % 4 {
        0 => raised::<4>(v, 48),
        1 => raised::<2>(v, 48),
        2 => masked::<0>(v, 48),
        _ => masked::<2>(v, 48),
    }
}
