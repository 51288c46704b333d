//! Decode: 1 to 4 activation rows against one interleaved group of 16 weight rows, streamed once.

use std::arch::x86_64::*;

use super::{bias, scales};
use crate::linear::act::{Tile, block_bytes};
use crate::linear::avx2::few::{codes_at, super_bytes};
use crate::linear::avx2::{Q4_1, Q8_0};
use hob_compute::act::BLOCK;

/// Products of one group with one tile: `y[r * stride + lane]` for the tile's rows r.
///
/// # Safety
/// Needs the AVX-512 class. `group` holds whole superblocks of format `F` for 16 lanes, the tile as many blocks;
/// `y` has room for `tile.n` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c")]
pub unsafe fn group<const F: u8>(group: &[u8], tile: Tile, y: &mut [f32], stride: usize) {
    debug_assert!(y.len() >= (tile.n - 1) * stride + 16);
    // SAFETY: the caller's contract is the kernels' contract.
    unsafe {
        match tile.n {
            1 => kernel::<F, 1>(group, tile.bytes, y, stride),
            2 => kernel::<F, 2>(group, tile.bytes, y, stride),
            3 => kernel::<F, 3>(group, tile.bytes, y, stride),
            _ => kernel::<F, 4>(group, tile.bytes, y, stride),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c")]
unsafe fn kernel<const F: u8, const N: usize>(group: &[u8], act: &[u8], y: &mut [f32], stride: usize) {
    let mask = _mm512_set1_epi8(15);
    let mut acc = [_mm512_setzero_ps(); N];
    let mut x = act.as_ptr();
    for sup in group.chunks_exact(super_bytes::<F>()) {
        for half in 0..2 {
            // SAFETY: a superblock holds two halves of scales, minima and codes at these offsets, and the activation
            // has one block of N rows for each half.
            unsafe {
                let codes = sup.as_ptr().add(codes_at::<F>() + half * if F == Q8_0 { 512 } else { 256 });
                let tail: *const f32 = x.add(N * BLOCK).cast();
                let broadcast = |n: usize, c: usize| {
                    _mm512_set1_epi32(x.add(n * BLOCK + 4 * c).cast::<i32>().read_unaligned())
                };
                let mut dot = [_mm512_setzero_si512(); N];
                if bias::<F>() != 0 {
                    for (n, dot) in dot.iter_mut().enumerate() {
                        let sum = tail.add(N + n).cast::<i32>().read_unaligned();
                        *dot = _mm512_set1_epi32(-bias::<F>() * sum);
                    }
                }
                if F == Q8_0 {
                    for c in 0..8 {
                        let w = _mm512_loadu_si512(codes.add(64 * c).cast());
                        for n in 0..N {
                            dot[n] = _mm512_dpbusd_epi32(dot[n], w, broadcast(n, c));
                        }
                    }
                } else {
                    for c in 0..4 {
                        let w = _mm512_loadu_si512(codes.add(64 * c).cast());
                        let low = _mm512_and_si512(w, mask);
                        let high = _mm512_and_si512(_mm512_srli_epi16::<4>(w), mask);
                        for n in 0..N {
                            dot[n] = _mm512_dpbusd_epi32(dot[n], low, broadcast(n, c));
                            dot[n] = _mm512_dpbusd_epi32(dot[n], high, broadcast(n, c + 4));
                        }
                    }
                }
                let d = scales(sup.as_ptr().add(half * 32));
                for n in 0..N {
                    let scale = _mm512_mul_ps(d, _mm512_set1_ps(tail.add(n).read_unaligned()));
                    acc[n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[n]), scale, acc[n]);
                    if F == Q4_1 {
                        let m = scales(sup.as_ptr().add(64 + half * 32));
                        let s = _mm512_set1_ps(tail.add(2 * N + n).read_unaligned());
                        acc[n] = _mm512_fmadd_ps(m, s, acc[n]);
                    }
                }
                x = x.add(block_bytes(N));
            }
        }
    }
    for (n, acc) in acc.iter().enumerate() {
        // SAFETY: the caller left room for 16 floats in each of the N rows.
        unsafe { _mm512_storeu_ps(y.as_mut_ptr().add(n * stride), *acc) };
    }
}
