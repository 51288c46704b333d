//! Prefill: 16 weight rows unpacked once for a stretch of K, then used for every tile of activation rows.

use std::arch::x86_64::*;

use super::few::{codes_at, super_bytes};
use super::{Q4_0, Q4_1, Q8_0};
use crate::linear::act::{Packed, block_bytes};
use hob_compute::act::BLOCK;

/// Weight rows per unit: one interleaved group.
pub const HEIGHT: usize = 16;
/// Blocks of 32 unpacked at a time: 16 KiB of codes, which leaves half of a 32 KiB L1 cache to activations.
const STRETCH: usize = 32;

/// Unpacked weights of one stretch.
#[repr(C, align(64))]
pub struct Scratch {
    /// `[block][8 chunks of 4 k][16 rows][4 bytes]`
    codes: [u8; STRETCH * 512],
    /// `[block][16]`
    d: [f32; STRETCH * HEIGHT],
    /// `[block][16]`
    m: [f32; STRETCH * HEIGHT],
}

impl Scratch {
    pub fn new() -> Box<Scratch> {
        Box::new(Scratch {
            codes: [0; STRETCH * 512],
            d: [0.0; STRETCH * HEIGHT],
            m: [0.0; STRETCH * HEIGHT],
        })
    }
}

/// Products of one group with all activation rows: `y[r * HEIGHT + i]`.
///
/// # Safety
/// Needs AVX2, FMA and F16C. The group holds as many superblocks of format `F` as the activation has pairs of blocks;
/// `y` has `acts.rows * HEIGHT` floats.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn unit<const F: u8>(group: &[u8], acts: Packed, scratch: &mut Scratch, y: &mut [f32]) {
    debug_assert!(y.len() >= acts.rows * HEIGHT);
    let mut start = 0;
    while start < acts.blocks {
        let blocks = (acts.blocks - start).min(STRETCH);
        // SAFETY: superblocks start..start + blocks exist in the group; tiles hold all blocks.
        unsafe {
            unpack::<F>(group, start, blocks, scratch);
            for tile in acts.tiles() {
                let x = tile.bytes.as_ptr().add(start * block_bytes(tile.n));
                let out = y.as_mut_ptr().add(tile.row * HEIGHT);
                let first = start == 0;
                match tile.n {
                    4 if F != Q8_0 => four::<F>(scratch, blocks, x, out, first),
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

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack<const F: u8>(group: &[u8], start: usize, blocks: usize, to: &mut Scratch) {
    let mask = _mm256_set1_epi8(15);
    for b in 0..blocks {
        let half = (start + b) % 2;
        // SAFETY: block indices stay below STRETCH, and the group's superblocks reach start + blocks.
        unsafe {
            let codes = to.codes.as_mut_ptr().add(b * 512);
            let sup = group.as_ptr().add((start + b) / 2 * super_bytes::<F>());
            for g in 0..2 {
                let at = half * 32 + g * 16;
                let d = _mm256_cvtph_ps(_mm_loadu_si128(sup.add(at).cast()));
                _mm256_storeu_ps(to.d.as_mut_ptr().add(b * HEIGHT + g * 8), d);
                if F == Q4_1 {
                    let m = _mm256_cvtph_ps(_mm_loadu_si128(sup.add(64 + at).cast()));
                    _mm256_storeu_ps(to.m.as_mut_ptr().add(b * HEIGHT + g * 8), m);
                }
            }
            let from = sup.add(codes_at::<F>() + half * if F == Q8_0 { 512 } else { 256 });
            if F == Q8_0 {
                std::ptr::copy_nonoverlapping(from, codes, 512);
                continue;
            }
            for c in 0..8 {
                let w = _mm256_loadu_si256(from.add(32 * c).cast());
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(w), mask);
                _mm256_storeu_si256(codes.add(c * 32).cast(), _mm256_and_si256(w, mask));
                _mm256_storeu_si256(codes.add(256 + c * 32).cast(), high);
            }
        }
    }
}

/// One tile of N activation rows by 16 weight rows, continuing the accumulators in `y` unless `first`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn kernel<const F: u8, const N: usize>(
    w: &Scratch,
    blocks: usize,
    act: *const u8,
    y: *mut f32,
    first: bool,
) {
    let ones = _mm256_set1_epi16(1);
    let mut acc = [[_mm256_setzero_ps(); 2]; N];
    // SAFETY: the caller vouches for `blocks` blocks on both sides and N rows of 16 floats at `y`.
    unsafe {
        if !first {
            for (n, acc) in acc.iter_mut().enumerate() {
                *acc = [_mm256_loadu_ps(y.add(n * HEIGHT)), _mm256_loadu_ps(y.add(n * HEIGHT + 8))];
            }
        }
        for b in 0..blocks {
            let codes = w.codes.as_ptr().add(b * 512);
            let x = act.add(b * block_bytes(N));
            let mut dot = [[_mm256_setzero_si256(); 2]; N];
            for c in 0..8 {
                let w0 = _mm256_load_si256(codes.add(c * 64).cast());
                let w1 = _mm256_load_si256(codes.add(c * 64 + 32).cast());
                for n in 0..N {
                    let v = _mm256_set1_epi32(x.add(n * BLOCK + 4 * c).cast::<i32>().read_unaligned());
                    if F == Q8_0 {
                        let p = _mm256_maddubs_epi16(_mm256_abs_epi8(w0), _mm256_sign_epi8(v, w0));
                        let q = _mm256_maddubs_epi16(_mm256_abs_epi8(w1), _mm256_sign_epi8(v, w1));
                        dot[n][0] = _mm256_add_epi32(dot[n][0], _mm256_madd_epi16(p, ones));
                        dot[n][1] = _mm256_add_epi32(dot[n][1], _mm256_madd_epi16(q, ones));
                    } else {
                        dot[n][0] = _mm256_add_epi16(dot[n][0], _mm256_maddubs_epi16(w0, v));
                        dot[n][1] = _mm256_add_epi16(dot[n][1], _mm256_maddubs_epi16(w1, v));
                    }
                }
            }
            let tail: *const f32 = x.add(N * BLOCK).cast();
            for g in 0..2 {
                let d = _mm256_load_ps(w.d.as_ptr().add(b * HEIGHT + g * 8));
                for n in 0..N {
                    let mut i = dot[n][g];
                    if F != Q8_0 {
                        i = _mm256_madd_epi16(i, ones);
                    }
                    if F == Q4_0 {
                        let sum = tail.add(N + n).cast::<i32>().read_unaligned();
                        i = _mm256_sub_epi32(i, _mm256_set1_epi32(8 * sum));
                    }
                    let scale = _mm256_mul_ps(d, _mm256_set1_ps(tail.add(n).read_unaligned()));
                    acc[n][g] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(i), scale, acc[n][g]);
                    if F == Q4_1 {
                        let m = _mm256_load_ps(w.m.as_ptr().add(b * HEIGHT + g * 8));
                        let s = _mm256_set1_ps(tail.add(2 * N + n).read_unaligned());
                        acc[n][g] = _mm256_fmadd_ps(m, s, acc[n][g]);
                    }
                }
            }
        }
        for (n, acc) in acc.iter().enumerate() {
            _mm256_storeu_ps(y.add(n * HEIGHT), acc[0]);
            _mm256_storeu_ps(y.add(n * HEIGHT + 8), acc[1]);
        }
    }
}

/// [`kernel`] for four activation rows of the nibble formats. The integer part is written out in assembly: the compiler
/// reassociates the sums, keeps all 32 broadcast values alive and spills them, which halves the speed.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn four<const F: u8>(w: &Scratch, blocks: usize, act: *const u8, y: *mut f32, first: bool) {
    let ones = _mm256_set1_epi16(1);
    // SAFETY: as in `kernel`, with N = 4. The accumulators stay in `y` between blocks, in the L1 cache.
    unsafe {
        if first {
            for i in 0..8 {
                _mm256_storeu_ps(y.add(i * 8), _mm256_setzero_ps());
            }
        }
        for b in 0..blocks {
            let x = act.add(b * block_bytes(4));
            let dot = block_dots(w.codes.as_ptr().add(b * 512), x);
            let tail: *const f32 = x.add(4 * BLOCK).cast();
            for n in 0..4 {
                let dx = _mm256_set1_ps(tail.add(n).read_unaligned());
                for g in 0..2 {
                    let mut i = _mm256_madd_epi16(dot[n * 2 + g], ones);
                    if F == Q4_0 {
                        let sum = tail.add(4 + n).cast::<i32>().read_unaligned();
                        i = _mm256_sub_epi32(i, _mm256_set1_epi32(8 * sum));
                    }
                    let out = y.add(n * HEIGHT + g * 8);
                    let scale = _mm256_mul_ps(_mm256_load_ps(w.d.as_ptr().add(b * HEIGHT + g * 8)), dx);
                    let mut acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(i), scale, _mm256_loadu_ps(out));
                    if F == Q4_1 {
                        let m = _mm256_load_ps(w.m.as_ptr().add(b * HEIGHT + g * 8));
                        let s = _mm256_set1_ps(tail.add(8 + n).read_unaligned());
                        acc = _mm256_fmadd_ps(m, s, acc);
                    }
                    _mm256_storeu_ps(out, acc);
                }
            }
        }
    }
}

/// 16-bit sums of one block: `[activation row][group]`, from 8 chunks of 4 k.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn block_dots(codes: *const u8, x: *const u8) -> [__m256i; 8] {
    let (a0, a1, a2, a3): (__m256i, __m256i, __m256i, __m256i);
    let (a4, a5, a6, a7): (__m256i, __m256i, __m256i, __m256i);
    macro_rules! row {
        (first, $x:literal, $a:literal, $b:literal) => {
            concat!(
                "vpbroadcastd {v}, dword ptr [{x} + ",
                $x,
                "]\n",
                "vpmaddubsw {",
                $a,
                "}, {w0}, {v}\n",
                "vpmaddubsw {",
                $b,
                "}, {w1}, {v}\n",
            )
        };
        (next, $x:literal, $a:literal, $b:literal) => {
            concat!(
                "vpbroadcastd {v}, dword ptr [{x} + ",
                $x,
                "]\n",
                "vpmaddubsw {t}, {w0}, {v}\n",
                "vpaddw {",
                $a,
                "}, {",
                $a,
                "}, {t}\n",
                "vpmaddubsw {u}, {w1}, {v}\n",
                "vpaddw {",
                $b,
                "}, {",
                $b,
                "}, {u}\n",
            )
        };
    }
    macro_rules! chunk {
        ($kind:ident, $w:literal, $x0:literal, $x1:literal, $x2:literal, $x3:literal) => {
            concat!(
                "vmovdqa {w0}, ymmword ptr [{c} + ",
                $w,
                "]\n",
                "vmovdqa {w1}, ymmword ptr [{c} + ",
                $w,
                " + 32]\n",
                row!($kind, $x0, "a0", "a1"),
                row!($kind, $x1, "a2", "a3"),
                row!($kind, $x2, "a4", "a5"),
                row!($kind, $x3, "a6", "a7"),
            )
        };
    }
    // SAFETY: reads 512 aligned bytes at `codes` and 128 at `x`; writes registers only.
    unsafe {
        std::arch::asm!(
            chunk!(first, 0, 0, 32, 64, 96),
            chunk!(next, 64, 4, 36, 68, 100),
            chunk!(next, 128, 8, 40, 72, 104),
            chunk!(next, 192, 12, 44, 76, 108),
            chunk!(next, 256, 16, 48, 80, 112),
            chunk!(next, 320, 20, 52, 84, 116),
            chunk!(next, 384, 24, 56, 88, 120),
            chunk!(next, 448, 28, 60, 92, 124),
            c = in(reg) codes,
            x = in(reg) x,
            w0 = out(ymm_reg) _,
            w1 = out(ymm_reg) _,
            v = out(ymm_reg) _,
            t = out(ymm_reg) _,
            u = out(ymm_reg) _,
            a0 = out(ymm_reg) a0,
            a1 = out(ymm_reg) a1,
            a2 = out(ymm_reg) a2,
            a3 = out(ymm_reg) a3,
            a4 = out(ymm_reg) a4,
            a5 = out(ymm_reg) a5,
            a6 = out(ymm_reg) a6,
            a7 = out(ymm_reg) a7,
            options(nostack, readonly, preserves_flags),
        );
    }
    [a0, a1, a2, a3, a4, a5, a6, a7]
}
