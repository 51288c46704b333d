//! IQ2_XXS, IQ2_XS and IQ2_S: eight weights at a time from a grid of magnitudes, signs stored beside, one 4-bit scale
//! per 32 or 16 weights. `w = d * (0.5 + scale) / 4 * magnitude`. It must not know other formats.

use super::{QK, each_block, f16_at, grids, u16_at, u32_at};
use crate::int::{INT_BLOCK, IntBlock, Minima};

/// Bytes 0..2 `d`, then per 32 weights 8 bytes: four grid indices, and a u32 of four 7-bit signs and a 4-bit scale.
pub(crate) fn decode_xxs(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 66], w: &mut [f32; QK]| {
        let d = f16_at(b, 0);
        for (s, w) in w.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let first = 2 + 8 * s;
            let packed = u32_at(b, first + 4);
            let scale = d * (0.5 + (packed >> 28) as f32) * 0.25;
            for (n, w) in w.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let point = &grids::IQ2_XXS[usize::from(b[first + n])];
                grids::signed_point(scale, point, grids::even_signs(packed >> (7 * n)), w);
            }
        }
    });
}

/// The scale of the 16 weights `s`: 4 bits, two a byte.
fn scale16(d: f32, packed: &[u8], s: usize) -> f32 {
    d * (0.5 + f32::from(packed[s / 2] >> (4 * (s % 2)) & 15)) * 0.25
}

/// Bytes 0..2 `d`, 2..66 u16 per eight weights (9-bit grid index, 7-bit signs), 66..74 scales.
pub(crate) fn decode_xs(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 74], w: &mut [f32; QK]| {
        let d = f16_at(b, 0);
        for (n, w) in w.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let packed = u16_at(b, 2 + 2 * n);
            let point = &grids::IQ2_XS[usize::from(packed & 511)];
            let signs = grids::even_signs(u32::from(packed >> 9));
            grids::signed_point(scale16(d, &b[66..], n / 2), point, signs, w);
        }
    });
}

/// Bytes 0..2 `d`, 2..34 low index bytes, 34..66 signs (all eight), 66..74 index bits 8 and 9 (four pairs a byte),
/// 74..82 scales.
pub(crate) fn decode_s(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 82], w: &mut [f32; QK]| {
        let d = f16_at(b, 0);
        for (n, w) in w.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let high = b[66 + n / 4] >> (2 * (n % 4)) & 3;
            let point = &grids::IQ2_S[usize::from(b[2 + n]) | usize::from(high) << 8];
            grids::signed_point(scale16(d, &b[74..], n / 2), point, b[34 + n], w);
        }
    });
}

/// Writes the eight codes of a grid point: its magnitudes with their signs.
fn codes(magnitudes: &[u8; 8], signs: u8, to: &mut [i8]) {
    for (j, (code, &magnitude)) in to.iter_mut().zip(magnitudes).enumerate() {
        let magnitude = magnitude as i8; // at most 43
        *code = if signs >> j & 1 == 1 { -magnitude } else { magnitude };
    }
}

pub(crate) fn int_xxs(b: &[u8], block: usize) -> IntBlock {
    let first = 2 + 8 * block;
    let packed = u32_at(b, first + 4);
    let mut to = [0; INT_BLOCK];
    for (n, to) in to.chunks_exact_mut(8).enumerate() {
        codes(&grids::IQ2_XXS[usize::from(b[first + n])], grids::even_signs(packed >> (7 * n)), to);
    }
    // d * (0.5 + scale) / 4: exact.
    IntBlock::plain(f16_at(b, 0) * (0.5 + (packed >> 28) as f32) * 0.25, to)
}

/// The block with `1 + 2 * scale` as sub-scales and `d / 8`; scale `s` of a block is 4 bits, two a byte.
fn with_scales(d: f32, codes: [i8; INT_BLOCK], packed: u8) -> IntBlock {
    let scales = [packed & 15, packed >> 4].map(|s| i16::from(1 + 2 * s));
    IntBlock { codes, scales, d: d * 0.125, minima: Minima::None }
}

pub(crate) fn int_xs(b: &[u8], block: usize) -> IntBlock {
    let mut to = [0; INT_BLOCK];
    for (n, to) in to.chunks_exact_mut(8).enumerate() {
        let packed = u16_at(b, 2 + 8 * block + 2 * n);
        codes(&grids::IQ2_XS[usize::from(packed & 511)], grids::even_signs(u32::from(packed >> 9)), to);
    }
    with_scales(f16_at(b, 0), to, b[66 + block])
}

pub(crate) fn int_s(b: &[u8], block: usize) -> IntBlock {
    let mut to = [0; INT_BLOCK];
    for (n, to) in to.chunks_exact_mut(8).enumerate() {
        let high = b[66 + block] >> (2 * n) & 3;
        let point = usize::from(b[2 + 4 * block + n]) | usize::from(high) << 8;
        codes(&grids::IQ2_S[point], b[34 + 4 * block + n], to);
    }
    with_scales(f16_at(b, 0), to, b[74 + block])
}
