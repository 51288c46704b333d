//! Prefill: 32 weight rows unpacked once for a stretch of K, then used for every tile of activation rows.

use std::arch::x86_64::*;

use super::{bias, scales};
use crate::linear::act::{Packed, block_bytes};
use crate::linear::avx2::few::{codes_at, super_bytes};
use crate::linear::avx2::{Q4_1, Q8_0};
use hob_compute::act::BLOCK;

/// Weight rows per unit: two interleaved groups.
pub const HEIGHT: usize = 32;
/// Blocks of 32 unpacked at a time: 64 KiB of codes, in the L2 cache.
const STRETCH: usize = 64;
/// Bytes of one unpacked block: 8 chunks of 4 k for two groups.
const BLOCK_CODES: usize = 1024;

/// Unpacked weights of one stretch.
#[repr(C, align(64))]
pub struct Scratch {
    /// `[block][8 chunks of 4 k][2 groups][64 bytes]`
    codes: [u8; STRETCH * BLOCK_CODES],
    /// `[block][32]`
    d: [f32; STRETCH * HEIGHT],
    /// `[block][32]`
    m: [f32; STRETCH * HEIGHT],
}

impl Scratch {
    pub fn new() -> Box<Scratch> {
        // Built on the heap: 96 KiB is too much for small thread stacks in debug builds.
        let zero = vec![Scratch {
            codes: [0; STRETCH * BLOCK_CODES],
            d: [0.0; STRETCH * HEIGHT],
            m: [0.0; STRETCH * HEIGHT],
        }];
        let mut boxed: Box<[Scratch]> = zero.into_boxed_slice();
        let raw: *mut Scratch = boxed.as_mut_ptr();
        std::mem::forget(boxed);
        // SAFETY: a boxed slice of one element has the layout of a box of that element.
        unsafe { Box::from_raw(raw) }
    }
}

/// Products of two groups with all activation rows: `y[r * HEIGHT + i]`.
///
/// # Safety
/// Needs the AVX-512 class. Each group holds as many superblocks of format `F` as the activation has pairs of blocks;
/// an empty second group stands for absent rows. `y` has `acts.rows * HEIGHT` floats.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c")]
pub unsafe fn unit<const F: u8>(groups: [&[u8]; 2], acts: Packed, scratch: &mut Scratch, y: &mut [f32]) {
    debug_assert!(y.len() >= acts.rows * HEIGHT);
    let mut start = 0;
    while start < acts.blocks {
        let blocks = (acts.blocks - start).min(STRETCH);
        // SAFETY: superblocks start..start + blocks exist in every non-empty group; tiles hold all blocks.
        unsafe {
            for (g, group) in groups.iter().enumerate() {
                unpack::<F>(group, g, start, blocks, scratch);
            }
            for tile in acts.tiles() {
                let x = tile.bytes.as_ptr().add(start * block_bytes(tile.n));
                let out = y.as_mut_ptr().add(tile.row * HEIGHT);
                let first = start == 0;
                match tile.n {
                    1 => kernel::<F, 1>(scratch, blocks, x, out, first),
                    2 => kernel::<F, 2>(scratch, blocks, x, out, first),
                    3 => kernel::<F, 3>(scratch, blocks, x, out, first),
                    _ => kernel::<F, 4>(scratch, blocks, x, out, first),
                }
            }
        }
        start += blocks;
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c")]
unsafe fn unpack<const F: u8>(group: &[u8], g: usize, start: usize, blocks: usize, to: &mut Scratch) {
    let mask = _mm512_set1_epi8(15);
    for b in 0..blocks {
        // SAFETY: block indices stay below STRETCH, and superblocks of non-empty groups reach start + blocks.
        unsafe {
            let codes = to.codes.as_mut_ptr().add(b * BLOCK_CODES + g * 64);
            let d = to.d.as_mut_ptr().add(b * HEIGHT + g * 16);
            let m = to.m.as_mut_ptr().add(b * HEIGHT + g * 16);
            if group.is_empty() {
                for c in 0..8 {
                    _mm512_storeu_si512(codes.add(c * 128).cast(), _mm512_setzero_si512());
                }
                _mm512_storeu_ps(d, _mm512_setzero_ps());
                _mm512_storeu_ps(m, _mm512_setzero_ps());
                continue;
            }
            let half = (start + b) % 2;
            let sup = group.as_ptr().add((start + b) / 2 * super_bytes::<F>());
            _mm512_storeu_ps(d, scales(sup.add(half * 32)));
            if F == Q4_1 {
                _mm512_storeu_ps(m, scales(sup.add(64 + half * 32)));
            }
            let from = sup.add(codes_at::<F>() + half * if F == Q8_0 { 512 } else { 256 });
            if F == Q8_0 {
                for c in 0..8 {
                    let w = _mm512_loadu_si512(from.add(64 * c).cast());
                    _mm512_storeu_si512(codes.add(c * 128).cast(), w);
                }
                continue;
            }
            for c in 0..4 {
                let w = _mm512_loadu_si512(from.add(64 * c).cast());
                let high = _mm512_and_si512(_mm512_srli_epi16::<4>(w), mask);
                _mm512_storeu_si512(codes.add(c * 128).cast(), _mm512_and_si512(w, mask));
                _mm512_storeu_si512(codes.add((c + 4) * 128).cast(), high);
            }
        }
    }
}

/// One tile of N activation rows by 32 weight rows, continuing the accumulators in `y` unless `first`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c")]
unsafe fn kernel<const F: u8, const N: usize>(
    w: &Scratch,
    blocks: usize,
    act: *const u8,
    y: *mut f32,
    first: bool,
) {
    let mut acc = [[_mm512_setzero_ps(); 2]; N];
    // SAFETY: the caller vouches for `blocks` blocks on both sides and N rows of 32 floats at `y`.
    unsafe {
        if !first {
            for (n, acc) in acc.iter_mut().enumerate() {
                *acc = [_mm512_loadu_ps(y.add(n * HEIGHT)), _mm512_loadu_ps(y.add(n * HEIGHT + 16))];
            }
        }
        for b in 0..blocks {
            let codes = w.codes.as_ptr().add(b * BLOCK_CODES);
            let x = act.add(b * block_bytes(N));
            let tail: *const f32 = x.add(N * BLOCK).cast();
            let mut dot = [[_mm512_setzero_si512(); 2]; N];
            if bias::<F>() != 0 {
                for (n, dot) in dot.iter_mut().enumerate() {
                    let sum = tail.add(N + n).cast::<i32>().read_unaligned();
                    *dot = [_mm512_set1_epi32(-bias::<F>() * sum); 2];
                }
            }
            for c in 0..8 {
                let w0 = _mm512_load_si512(codes.add(c * 128).cast());
                let w1 = _mm512_load_si512(codes.add(c * 128 + 64).cast());
                for n in 0..N {
                    let v = _mm512_set1_epi32(x.add(n * BLOCK + 4 * c).cast::<i32>().read_unaligned());
                    dot[n][0] = _mm512_dpbusd_epi32(dot[n][0], w0, v);
                    dot[n][1] = _mm512_dpbusd_epi32(dot[n][1], w1, v);
                }
            }
            for g in 0..2 {
                let d = _mm512_load_ps(w.d.as_ptr().add(b * HEIGHT + g * 16));
                for n in 0..N {
                    let scale = _mm512_mul_ps(d, _mm512_set1_ps(tail.add(n).read_unaligned()));
                    acc[n][g] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[n][g]), scale, acc[n][g]);
                    if F == Q4_1 {
                        let m = _mm512_load_ps(w.m.as_ptr().add(b * HEIGHT + g * 16));
                        let s = _mm512_set1_ps(tail.add(2 * N + n).read_unaligned());
                        acc[n][g] = _mm512_fmadd_ps(m, s, acc[n][g]);
                    }
                }
            }
        }
        for (n, acc) in acc.iter().enumerate() {
            _mm512_storeu_ps(y.add(n * HEIGHT), acc[0]);
            _mm512_storeu_ps(y.add(n * HEIGHT + 16), acc[1]);
        }
    }
}
