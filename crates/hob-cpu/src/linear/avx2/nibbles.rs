//! The integer part of decoding for the nibble formats, written out in assembly: 16 weight rows by one or two activation
//! rows. Left to itself the compiler keeps every broadcast value for both halves and spills them all, and the store
//! port then limits the kernel.

use std::arch::asm;
use std::arch::x86_64::*;

/// One step of 4 bytes of codes per row, low and high nibbles, against the dwords `$low` and `$high` of a row.
macro_rules! step {
    ($x:literal, $low:literal, $a:literal, $b:literal) => {
        concat!(
            "vpbroadcastd {v}, dword ptr [{x} + ",
            $x,
            " + ",
            $low,
            "]\n",
            "vpmaddubsw {t}, {l0}, {v}\n",
            "vpmaddubsw {u}, {l1}, {v}\n",
            "vpaddw {",
            $a,
            "}, {",
            $a,
            "}, {t}\n",
            "vpaddw {",
            $b,
            "}, {",
            $b,
            "}, {u}\n",
        )
    };
}

/// Loads one chunk of 64 bytes and separates its low nibbles.
macro_rules! low {
    ($at:literal) => {
        concat!(
            "vmovdqu {h0}, ymmword ptr [{c} + ",
            $at,
            "]\n",
            "vmovdqu {h1}, ymmword ptr [{c} + ",
            $at,
            " + 32]\n",
            "vpand {l0}, {h0}, {m}\n",
            "vpand {l1}, {h1}, {m}\n",
        )
    };
}

/// Turns the chunk at hand to its high nibbles.
macro_rules! high {
    () => {
        concat!(
            "vpsrlw {h0}, {h0}, 4\n",
            "vpsrlw {h1}, {h1}, 4\n",
            "vpand {l0}, {h0}, {m}\n",
            "vpand {l1}, {h1}, {m}\n",
        )
    };
}

macro_rules! chunk1 {
    ($at:literal, $low:literal, $high:literal) => {
        concat!(low!($at), step!(0, $low, "a0", "a1"), high!(), step!(0, $high, "a0", "a1"))
    };
}

macro_rules! chunk2 {
    ($at:literal, $low:literal, $high:literal) => {
        concat!(
            low!($at),
            step!(0, $low, "a0", "a1"),
            step!(32, $low, "a2", "a3"),
            high!(),
            step!(0, $high, "a0", "a1"),
            step!(32, $high, "a2", "a3"),
        )
    };
}

/// 16-bit sums of one block for one activation row: `[half of 8 weight rows]`.
///
/// # Safety
/// Needs AVX2; 256 bytes at `codes` and 32 at `x`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn one(codes: *const u8, x: *const u8) -> [__m256i; 2] {
    let (mut a0, mut a1) = (_mm256_setzero_si256(), _mm256_setzero_si256());
    // SAFETY: reads the bytes the caller vouches for, writes registers only.
    unsafe {
        asm!(
            chunk1!(0, 0, 16),
            chunk1!(64, 4, 20),
            chunk1!(128, 8, 24),
            chunk1!(192, 12, 28),
            c = in(reg) codes,
            x = in(reg) x,
            m = in(ymm_reg) _mm256_set1_epi8(15),
            h0 = out(ymm_reg) _,
            h1 = out(ymm_reg) _,
            l0 = out(ymm_reg) _,
            l1 = out(ymm_reg) _,
            v = out(ymm_reg) _,
            t = out(ymm_reg) _,
            u = out(ymm_reg) _,
            a0 = inout(ymm_reg) a0,
            a1 = inout(ymm_reg) a1,
            options(nostack, readonly, preserves_flags),
        );
    }
    [a0, a1]
}

/// As [`one`] for two activation rows, 32 bytes apart: `[activation row][half]`.
///
/// # Safety
/// Needs AVX2; 256 bytes at `codes` and 64 at `x`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn two(codes: *const u8, x: *const u8) -> [[__m256i; 2]; 2] {
    let zero = _mm256_setzero_si256();
    let (mut a0, mut a1, mut a2, mut a3) = (zero, zero, zero, zero);
    // SAFETY: reads the bytes the caller vouches for, writes registers only.
    unsafe {
        asm!(
            chunk2!(0, 0, 16),
            chunk2!(64, 4, 20),
            chunk2!(128, 8, 24),
            chunk2!(192, 12, 28),
            c = in(reg) codes,
            x = in(reg) x,
            m = in(ymm_reg) _mm256_set1_epi8(15),
            h0 = out(ymm_reg) _,
            h1 = out(ymm_reg) _,
            l0 = out(ymm_reg) _,
            l1 = out(ymm_reg) _,
            v = out(ymm_reg) _,
            t = out(ymm_reg) _,
            u = out(ymm_reg) _,
            a0 = inout(ymm_reg) a0,
            a1 = inout(ymm_reg) a1,
            a2 = inout(ymm_reg) a2,
            a3 = inout(ymm_reg) a3,
            options(nostack, readonly, preserves_flags),
        );
    }
    [[a0, a1], [a2, a3]]
}
