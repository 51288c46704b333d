//! IQ1_S and IQ1_M: eight weights at a time from a ternary grid of 2048 points, shifted by plus or minus an eighth.
//! `w = d * (2 * scale + 1) * (point + delta)`. It must not know other formats.

use super::{QK, each_block, f16_at, f16_to_f32, grids, u16_at};
use crate::int::{INT_BLOCK, IntBlock, Minima};

const DELTA: f32 = 0.125;

/// Writes the eight weights of one grid point.
fn shifted_point(scale: f32, index: usize, minus: bool, w: &mut [f32; 8]) {
    let delta = if minus { -DELTA } else { DELTA };
    for (w, &level) in w.iter_mut().zip(&grids::IQ1[index]) {
        *w = scale * (f32::from(level) + delta);
    }
}

/// Bytes 0..2 `d`, 2..34 low index bytes, 34..50 per 32 weights a u16: four 3-bit high index parts, a 3-bit scale, the
/// sign of delta.
pub(crate) fn decode_s(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 50], w: &mut [f32; QK]| {
        let d = f16_at(b, 0);
        for (n, w) in w.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let packed = u16_at(b, 34 + 2 * (n / 4));
            let scale = d * f32::from(2 * (packed >> 12 & 7) + 1);
            let high = packed >> (3 * (n % 4)) & 7;
            shifted_point(scale, usize::from(b[2 + n]) | usize::from(high) << 8, packed & 0x8000 != 0, w);
        }
    });
}

/// Bytes 0..32 low index bytes, 32..48 per eight weights a nibble (3-bit high index part, the sign of delta), 48..56
/// four u16: each holds four 3-bit scales of 16 weights, and in its top four bits a quarter of the f16 `d`.
pub(crate) fn decode_m(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 56], w: &mut [f32; QK]| {
        let (d, scales) = scales_m(b);
        for (n, w) in w.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let sub = n / 2;
            let scale = d * f32::from(2 * (scales[sub / 4] >> (3 * (sub % 4)) & 7) + 1);
            let high = b[32 + n / 2] >> (4 * (n % 2));
            shifted_point(scale, usize::from(b[n]) | usize::from(high & 7) << 8, high & 8 != 0, w);
        }
    });
}

/// `d` and the four u16 of scales of an IQ1_M block.
fn scales_m(b: &[u8]) -> (f32, [u16; 4]) {
    let s: [u16; 4] = std::array::from_fn(|i| u16_at(b, 48 + 2 * i));
    (f16_to_f32(s[0] >> 12 | s[1] >> 12 << 4 | s[2] >> 12 << 8 | s[3] >> 12 << 12), s)
}

/// Writes the eight codes of a grid point: eighths, so that the shift is one.
fn codes(index: usize, minus: bool, to: &mut [i8]) {
    for (code, level) in to.iter_mut().zip(grids::IQ1[index]) {
        *code = 8 * level + if minus { -1 } else { 1 };
    }
}

pub(crate) fn int_s(b: &[u8], block: usize) -> IntBlock {
    let packed = u16_at(b, 34 + 2 * block);
    let mut to = [0; INT_BLOCK];
    for (n, to) in to.chunks_exact_mut(8).enumerate() {
        let high = packed >> (3 * n) & 7;
        codes(usize::from(b[2 + 4 * block + n]) | usize::from(high) << 8, packed & 0x8000 != 0, to);
    }
    // Exact.
    IntBlock::plain(f16_at(b, 0) * f32::from(2 * (packed >> 12 & 7) + 1) * DELTA, to)
}

pub(crate) fn int_m(b: &[u8], block: usize) -> IntBlock {
    let (d, scales) = scales_m(b);
    let mut to = [0; INT_BLOCK];
    for (n, to) in to.chunks_exact_mut(8).enumerate() {
        let high = b[32 + 2 * block + n / 2] >> (4 * (n % 2));
        codes(usize::from(b[4 * block + n]) | usize::from(high & 7) << 8, high & 8 != 0, to);
    }
    let scale = |half: usize| (2 * (scales[block / 2] >> (6 * (block % 2) + 3 * half) & 7) + 1) as i16;
    IntBlock { codes: to, scales: [scale(0), scale(1)], d: d * DELTA, minima: Minima::None }
}
