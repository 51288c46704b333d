//! Decode: 1 to 4 activation rows against one interleaved group of 16 weight rows, streamed once.

use std::arch::x86_64::*;

use super::{Q4_0, Q4_1, Q8_0};
use crate::linear::act::{Tile, block_bytes};
use hob_compute::act::BLOCK;

/// Products of one group with one tile: `y[r * stride + lane]` for the tile's rows r and 16 lanes.
///
/// One or two activation rows take all 16 weight rows at once; three or four take 8 at a time, so that every sum stays
/// in a register; the second half then finds the group in the L1 cache.
///
/// # Safety
/// Needs AVX2, FMA and F16C. The group holds whole superblocks of format `F`, the tile as many blocks; `y` has room for
/// `tile.n` rows.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn group<const F: u8>(stream: Stream, tile: Tile, y: &mut [f32], stride: usize) {
    debug_assert!(y.len() >= (tile.n - 1) * stride + 16);
    let x = tile.bytes;
    // SAFETY: the caller's contract is the kernels' contract.
    unsafe {
        match tile.n {
            1 => kernel::<F, 1, 2>(stream, 0, x, y, stride),
            2 => kernel::<F, 2, 2>(stream, 0, x, y, stride),
            3 => (0..2).for_each(|h| kernel::<F, 3, 1>(stream, h, x, y, stride)),
            _ => (0..2).for_each(|h| kernel::<F, 4, 1>(stream, h, x, y, stride)),
        }
    }
}

/// One group, and where this thread's reading goes on after it.
#[derive(Clone, Copy)]
pub struct Stream<'a> {
    pub group: &'a [u8],
    /// Only ever prefetched, so any address will do.
    pub next: *const u8,
}

/// How far ahead of the sums the stream is prefetched, in bytes. On Zen 3 the hardware prefetcher alone left this
/// kernel at about three quarters of a plain read; 2 KiB ahead it reached the plain read.
const AHEAD: usize = 2048;

/// Bytes of one superblock.
pub const fn super_bytes<const F: u8>() -> usize {
    match F {
        Q4_0 => 16 * 36,
        Q4_1 => 16 * 40,
        _ => 16 * 68,
    }
}

/// Offset of the codes in a superblock.
pub const fn codes_at<const F: u8>() -> usize {
    if F == Q4_1 { 128 } else { 64 }
}

/// `H` halves of 8 weight rows from half `first`, by `N` activation rows.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn kernel<const F: u8, const N: usize, const H: usize>(
    stream: Stream,
    first: usize,
    act: &[u8],
    y: &mut [f32],
    stride: usize,
) {
    let mut acc = [[_mm256_setzero_ps(); H]; N];
    let mut x = act.as_ptr();
    let mut left = stream.group.len();
    for sup in stream.group.chunks_exact(super_bytes::<F>()) {
        if first == 0 {
            let from = if left > AHEAD { sup.as_ptr() } else { stream.next.wrapping_sub(left) };
            for line in (0..super_bytes::<F>()).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD + line).cast());
            }
        }
        left -= super_bytes::<F>();
        for block in 0..2 {
            let codes = block * if F == Q8_0 { 512 } else { 256 } + codes_at::<F>() + first * 32;
            // SAFETY: a superblock holds two blocks of scales, minima and codes at these offsets, and the activation
            // has one block of N rows for each.
            unsafe {
                let dots = dots::<F, N, H>(sup.as_ptr().add(codes), x);
                let tail: *const f32 = x.add(N * BLOCK).cast();
                for h in 0..H {
                    let at = block * 32 + (first + h) * 16;
                    let d = _mm256_cvtph_ps(_mm_loadu_si128(sup.as_ptr().add(at).cast()));
                    for n in 0..N {
                        let mut i = dots[n][h];
                        if F == Q4_0 {
                            let sum = tail.add(N + n).cast::<i32>().read_unaligned();
                            i = _mm256_sub_epi32(i, _mm256_set1_epi32(8 * sum));
                        }
                        let scale = _mm256_mul_ps(d, _mm256_set1_ps(tail.add(n).read_unaligned()));
                        acc[n][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(i), scale, acc[n][h]);
                        if F == Q4_1 {
                            let m = _mm256_cvtph_ps(_mm_loadu_si128(sup.as_ptr().add(64 + at).cast()));
                            let s = _mm256_set1_ps(tail.add(2 * N + n).read_unaligned());
                            acc[n][h] = _mm256_fmadd_ps(m, s, acc[n][h]);
                        }
                    }
                }
                x = x.add(block_bytes(N));
            }
        }
    }
    for (n, acc) in acc.iter().enumerate() {
        for (h, acc) in acc.iter().enumerate() {
            // SAFETY: the caller left room for 16 floats in each of the N rows.
            unsafe { _mm256_storeu_ps(y.as_mut_ptr().add(n * stride + (first + h) * 8), *acc) };
        }
    }
}

/// Exact integer dots of one block: `H` x 8 weight rows by N activation rows, as i32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dots<const F: u8, const N: usize, const H: usize>(
    codes: *const u8,
    x: *const u8,
) -> [[__m256i; H]; N] {
    let ones = _mm256_set1_epi16(1);
    let mut sum = [[_mm256_setzero_si256(); H]; N];
    // SAFETY: the block has 8 (Q8_0) or 4 chunks of 64 bytes, each activation row 8 dwords.
    unsafe {
        let broadcast =
            |n: usize, c: usize| _mm256_set1_epi32(x.add(n * BLOCK + 4 * c).cast::<i32>().read_unaligned());
        if F == Q8_0 {
            for c in 0..8 {
                for h in 0..H {
                    let w = _mm256_loadu_si256(codes.add(64 * c + 32 * h).cast());
                    let magnitude = _mm256_abs_epi8(w);
                    for n in 0..N {
                        // |w| * (x with w's sign): pairs are at most 128 * 127 * 2 and fit 16 bits.
                        let p = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(broadcast(n, c), w));
                        sum[n][h] = _mm256_add_epi32(sum[n][h], _mm256_madd_epi16(p, ones));
                    }
                }
            }
            return sum;
        }
        if (N, H) == (1, 2) {
            let s = super::nibbles::one(codes, x);
            for h in 0..H {
                sum[0][h] = _mm256_madd_epi16(s[h], ones);
            }
            return sum;
        }
        if (N, H) == (2, 2) {
            let s = super::nibbles::two(codes, x);
            for n in 0..N {
                for h in 0..H {
                    sum[n][h] = _mm256_madd_epi16(s[n][h], ones);
                }
            }
            return sum;
        }
        let mask = _mm256_set1_epi8(15);
        for c in 0..4 {
            for h in 0..H {
                let w = _mm256_loadu_si256(codes.add(64 * c + 32 * h).cast());
                let low = _mm256_and_si256(w, mask);
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(w), mask);
                for n in 0..N {
                    // Eight sums of pairs of at most 15 * 127 * 2 stay below 2^15.
                    let p = _mm256_maddubs_epi16(low, broadcast(n, c));
                    let q = _mm256_maddubs_epi16(high, broadcast(n, c + 4));
                    sum[n][h] = _mm256_add_epi16(sum[n][h], _mm256_add_epi16(p, q));
                }
            }
        }
        // Indexed, because an iterator over the nested array sends the sums through memory.
        for n in 0..N {
            for h in 0..H {
                sum[n][h] = _mm256_madd_epi16(sum[n][h], ones);
            }
        }
        sum
    }
}
