//! Decode: one or two activation rows against one interleaved group of 16 weight rows, streamed once.
//!
//! [`formats`] says what each format is, [`codes`] turns planes to bytes, [`steps`] multiplies them (in assembly),
//! and this file walks the superblocks and applies scales. It must not know matrices or threads.

mod codes;
mod formats;
mod steps;

use std::arch::x86_64::*;

use hob_compute::act::BLOCK;
use hob_quant::Format;

use crate::linear::act::{Tile, block_bytes};
use crate::linear::shape::Header;
use formats::{Class, Coded};

/// One group, and where this thread's reading goes on after it.
#[derive(Clone, Copy)]
pub struct Stream<'a> {
    pub group: &'a [u8],
    /// Only ever prefetched, so any address will do.
    pub next: *const u8,
}

/// Activation rows that one pass over a group can serve.
pub const ROWS: usize = 2;

/// Products of one group with one tile of one or two rows: `y[r * stride + lane]` for the tile's rows r and 16 lanes.
/// `ahead` is how far before the sums the stream is prefetched, in bytes; 0 leaves that to the hardware.
///
/// # Safety
/// Needs AVX2, FMA and F16C. The group holds whole superblocks of `format`, which has a packed form; the tile has at
/// most [`ROWS`] rows of as many blocks; `y` has room for `tile.n` rows.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn group(format: Format, stream: Stream, ahead: usize, tile: Tile, y: &mut [f32], stride: usize) {
    debug_assert!(tile.n <= ROWS && y.len() >= (tile.n - 1) * stride + 16);
    macro_rules! by_format {
        ($($name:ident)*) => {
            match format {
                // SAFETY: the caller's contract is the kernels' contract.
                $(Format::$name => unsafe { rows::<formats::$name>(stream, ahead, tile, y, stride) })*
                _ => debug_assert!(false, "{format} is not packed"),
            }
        };
    }
    by_format!(Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 IQ4NL MXFP4 Q2K Q3K Q4K Q5K Q6K IQ4XS);
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rows<F: Coded>(stream: Stream, ahead: usize, tile: Tile, y: &mut [f32], stride: usize) {
    // SAFETY: as `group`.
    unsafe {
        if tile.n == 1 {
            let [acc] = kernel::<F, 1>(stream, ahead, tile.bytes);
            store(acc, y.as_mut_ptr());
        } else {
            let [first, second] = kernel::<F, 2>(stream, ahead, tile.bytes);
            store(first, y.as_mut_ptr());
            store(second, y.as_mut_ptr().add(stride));
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn store(acc: Two<__m256>, y: *mut f32) {
    // SAFETY: the caller has 16 floats at `y`.
    unsafe {
        _mm256_storeu_ps(y, acc[0]);
        _mm256_storeu_ps(y.add(8), acc[1]);
    }
}

/// The same thing for weight rows 0..8 and 8..16.
type Two<T> = [T; 2];

/// Where a block of a superblock lies, and its block of the activation.
#[derive(Clone, Copy)]
struct At {
    sup: *const u8,
    /// Index in the superblock.
    block: usize,
    x: *const u8,
}

/// 16 weight rows by `N` activation rows.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn kernel<F: Coded, const N: usize>(stream: Stream, ahead: usize, act: &[u8]) -> [Two<__m256>; N] {
    let shape = F::SHAPE;
    let share = shape.bytes() / shape.blocks();
    let mut acc = [[_mm256_setzero_ps(); 2]; N];
    let mut x = act.as_ptr();
    let mut left = stream.group.len();
    for sup in stream.group.chunks_exact(shape.bytes()) {
        let from = if left > ahead { sup.as_ptr() } else { stream.next.wrapping_sub(left) };
        left -= shape.bytes();
        // SAFETY: a superblock holds what its shape says, and the activation has one block of N rows for each of its
        // blocks.
        unsafe {
            let fixed = fixed::<F>(sup.as_ptr());
            for block in 0..shape.blocks() {
                if ahead > 0 {
                    for line in (0..share).step_by(64) {
                        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(ahead + block * share + line).cast());
                    }
                }
                let at = At { sup: sup.as_ptr(), block, x };
                match shape.header {
                    Header::Pairs | Header::PairsMinima => scaled::<F, N>(at, fixed, &mut acc),
                    _ => plain::<F, N>(at, fixed, &mut acc),
                }
                x = x.add(block_bytes(N));
            }
        }
    }
    acc
}

/// Factors of a whole superblock: d, and dmin.
type Fixed = Two<Two<__m256>>;

/// The factors that stand once in the superblocks of K formats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn fixed<F: Coded>(sup: *const u8) -> Fixed {
    let zero = [_mm256_setzero_ps(); 2];
    // SAFETY: these headers begin with one or two arrays of 16 halves.
    unsafe {
        match F::SHAPE.header {
            Header::Scales | Header::ScalesMinima | Header::Exponents => [zero, zero],
            Header::Signed | Header::Pairs => [halves(sup), zero],
            Header::Minima | Header::PairsMinima => [halves(sup), halves(sup.add(32))],
        }
    }
}

/// 16 half-precision numbers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn halves(p: *const u8) -> Two<__m256> {
    // SAFETY: the caller vouches for 32 bytes.
    unsafe {
        [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(16).cast()))]
    }
}

/// The dword `i` of the activation block's tail, broadcast: scales, then pairs of sums, then scaled sums.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tail<const N: usize>(x: *const u8, i: usize) -> __m256i {
    // SAFETY: the caller's block has N * 3 dwords after its codes.
    unsafe { _mm256_set1_epi32(x.add(N * BLOCK + 4 * i).cast::<i32>().read_unaligned()) }
}

/// One block of a format with one scale (and minimum) per 32 columns.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn plain<F: Coded, const N: usize>(at: At, fixed: Fixed, acc: &mut [Two<__m256>; N]) {
    let ones = _mm256_set1_epi16(1);
    // SAFETY: the caller vouches for the block.
    unsafe {
        let mut dots = codes::dots::<F, N>(at, [[ones; 2]; 2]);
        if F::OFFSET != 0 {
            for n in 0..N {
                let sums = _mm256_madd_epi16(tail::<N>(at.x, N + n), _mm256_set1_epi16(F::OFFSET.into()));
                for r in 0..2 {
                    dots[n][r] = _mm256_sub_epi32(dots[n][r], sums);
                }
            }
        }
        for r in 0..2 {
            let (d, m) = factors::<F>(at, fixed, r);
            for n in 0..N {
                let scale = _mm256_mul_ps(d, _mm256_castsi256_ps(tail::<N>(at.x, n)));
                acc[n][r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[n][r]), scale, acc[n][r]);
                if matches!(F::SHAPE.header, Header::ScalesMinima | Header::Minima) {
                    let sum = _mm256_castsi256_ps(tail::<N>(at.x, 2 * N + n));
                    acc[n][r] = _mm256_fmadd_ps(m, sum, acc[n][r]);
                }
            }
        }
    }
}

/// d and m of 8 rows of a block.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn factors<F: Coded>(at: At, fixed: Fixed, r: usize) -> (__m256, __m256) {
    let zero = _mm256_setzero_ps();
    // SAFETY: the arrays of the header, see `Header`.
    unsafe {
        let half = |array: usize| _mm256_cvtph_ps(_mm_loadu_si128(at.sup.add(32 * array + 16 * r).cast()));
        // Eight bytes of an array of bytes that follow `base` bytes of halves.
        let bytes = |base: usize, array: usize| _mm_loadl_epi64(at.sup.add(base + 16 * array + 8 * r).cast());
        match F::SHAPE.header {
            Header::Scales => (half(at.block), zero),
            Header::ScalesMinima => (half(at.block), half(2 + at.block)),
            Header::Exponents => (exponents(_mm256_cvtepu8_epi32(bytes(0, at.block))), zero),
            Header::Signed => {
                let scale = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes(32, at.block)));
                (_mm256_mul_ps(fixed[0][r], scale), zero)
            }
            _ => {
                let scale = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes(64, at.block)));
                let min = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes(64, 8 + at.block)));
                let m = _mm256_mul_ps(_mm256_xor_ps(fixed[1][r], _mm256_set1_ps(-0.0)), min);
                (_mm256_mul_ps(fixed[0][r], scale), m)
            }
        }
    }
}

/// Half of e8m0 scales: 2^(code - 128), of which the first two are subnormal.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn exponents(code: __m256i) -> __m256 {
    // As a signed number the normal scale's bits n are -2^23 and 0 for the codes 0 and 1, where n / 4 + 2^22 is right;
    // from 2 on that is less than n.
    let n = _mm256_sub_epi32(_mm256_slli_epi32::<23>(code), _mm256_set1_epi32(1 << 23));
    let tiny = _mm256_add_epi32(_mm256_srai_epi32::<2>(n), _mm256_set1_epi32(1 << 22));
    _mm256_castsi256_ps(_mm256_max_epi32(n, tiny))
}

/// Sums of both halves, each times its scales.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn weighed<const N: usize>(sums: Two<[Two<__m256i>; N]>, scales: Two<Two<__m256i>>) -> [Two<__m256i>; N] {
    let mut dots = sums[0];
    for n in 0..N {
        for r in 0..2 {
            let first = _mm256_madd_epi16(sums[0][n][r], scales[0][r]);
            dots[n][r] = _mm256_add_epi32(first, _mm256_madd_epi16(sums[1][n][r], scales[1][r]));
        }
    }
    dots
}

/// `vpshufb`, which the compiler would make two shuffles of words if it knew the pattern.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn shuffled(v: __m256i, pattern: __m256i) -> __m256i {
    let out;
    // SAFETY: reads and writes registers only.
    unsafe {
        std::arch::asm!(
            "vpshufb {out}, {v}, {pattern}",
            v = in(ymm_reg) v,
            pattern = in(ymm_reg) pattern,
            out = lateout(ymm_reg) out,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    out
}

/// One block of a format with integer scales (and minima) per 16 columns.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scaled<F: Coded, const N: usize>(at: At, fixed: Fixed, acc: &mut [Two<__m256>; N]) {
    let minima = matches!(F::SHAPE.header, Header::PairsMinima);
    // Both words of a dword become its low, or its high one.
    let low = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13));
    let high = _mm256_add_epi8(low, _mm256_set1_epi8(2));
    // SAFETY: the caller vouches for the block; its pairs follow one or two arrays of halves.
    unsafe {
        let mut unscaled = [[[_mm256_setzero_si256(); 2]; N]; 2];
        if let Class::Triples = F::CLASS {
            // Before the scales are there: the registers do not hold both.
            unscaled = codes::halves::<F, N>(at);
        }
        let mut scales = [_mm256_setzero_si256(); 2];
        let mut mins = scales;
        for r in 0..2 {
            let base = if minima { 64 } else { 32 };
            let bytes = _mm_loadu_si128(at.sup.add(base + 32 * at.block + 16 * r).cast());
            if minima {
                let both = _mm256_cvtepu8_epi16(bytes);
                scales[r] = _mm256_and_si256(both, _mm256_set1_epi16(15));
                mins[r] = _mm256_srli_epi16::<4>(both);
            } else {
                scales[r] = _mm256_cvtepi8_epi16(bytes);
            }
        }
        let spread = [
            [shuffled(scales[0], low), shuffled(scales[1], low)],
            [shuffled(scales[0], high), shuffled(scales[1], high)],
        ];
        let dots = match F::CLASS {
            Class::Triples => weighed(unscaled, spread),
            _ => codes::dots::<F, N>(at, spread),
        };
        // The offset goes into the sums where 16 bits hold that: one multiplication for both registers.
        let small = i32::from(F::OFFSET) * 16 * 127 <= i32::from(i16::MAX);
        let offset = _mm256_set1_epi16(F::OFFSET.into());
        let mut offsets = scales;
        if !small {
            offsets = [_mm256_mullo_epi16(scales[0], offset), _mm256_mullo_epi16(scales[1], offset)];
        }
        for n in 0..N {
            let dx = _mm256_castsi256_ps(tail::<N>(at.x, n));
            let sums = tail::<N>(at.x, N + n);
            let raised = if small { _mm256_mullo_epi16(sums, offset) } else { sums };
            for r in 0..2 {
                let mut i = dots[n][r];
                if F::OFFSET != 0 {
                    i = _mm256_sub_epi32(i, _mm256_madd_epi16(raised, offsets[r]));
                }
                let scale = _mm256_mul_ps(fixed[0][r], dx);
                acc[n][r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(i), scale, acc[n][r]);
                if minima {
                    let j = _mm256_cvtepi32_ps(_mm256_madd_epi16(sums, mins[r]));
                    let m = _mm256_xor_ps(fixed[1][r], _mm256_set1_ps(-0.0));
                    acc[n][r] = _mm256_fmadd_ps(j, _mm256_mul_ps(m, dx), acc[n][r]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
