//! IQ3_XXS and IQ3_S: four weights at a time from a grid of magnitudes, signs stored beside, one 4-bit scale per 32
//! weights. It must not know other formats.

use super::{QK, each_block, f16_at, grids, u32_at};
use crate::int::{INT_BLOCK, IntBlock};

/// Bytes 0..2 `d`, 2..66 grid indices, 66..98 per 32 weights a u32 of four 7-bit signs and a 4-bit scale;
/// `w = d * (0.5 + scale) / 2 * magnitude`.
pub(crate) fn decode_xxs(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 98], w: &mut [f32; QK]| {
        let d = f16_at(b, 0);
        for (n, w) in w.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let packed = u32_at(b, 66 + 4 * (n / 4));
            let scale = d * (0.5 + (packed >> 28) as f32) * 0.5;
            let signs = grids::even_signs(packed >> (7 * (n % 4)));
            for (half, w) in w.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let point = &grids::IQ3_XXS[usize::from(b[2 + 2 * n + half])];
                grids::signed_point(scale, point, signs >> (4 * half), w);
            }
        }
    });
}

/// Bytes 0..2 `d`, 2..66 low index bytes, 66..74 index bit 8 (eight a byte), 74..106 signs (all eight), 106..110
/// scales (two a byte); `w = d * (1 + 2 * scale) * magnitude`.
pub(crate) fn decode_s(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 110], w: &mut [f32; QK]| {
        let d = f16_at(b, 0);
        for (n, w) in w.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let high = b[66 + n / 8] >> (n % 8) & 1;
            let point = &grids::IQ3_S[usize::from(b[2 + n]) | usize::from(high) << 8];
            let scale = d * f32::from(1 + 2 * (b[106 + n / 16] >> (4 * (n / 8 % 2)) & 15));
            grids::signed_point(scale, point, b[74 + n / 2] >> (4 * (n % 2)), w);
        }
    });
}

/// Writes the four codes of a grid point: its magnitudes with their signs.
fn codes(magnitudes: &[u8; 4], signs: u8, to: &mut [i8]) {
    for (j, (code, &magnitude)) in to.iter_mut().zip(magnitudes).enumerate() {
        let magnitude = magnitude as i8; // at most 62
        *code = if signs >> j & 1 == 1 { -magnitude } else { magnitude };
    }
}

pub(crate) fn int_xxs(b: &[u8], block: usize) -> IntBlock {
    let packed = u32_at(b, 66 + 4 * block);
    let mut to = [0; INT_BLOCK];
    for (n, to) in to.chunks_exact_mut(4).enumerate() {
        let signs = grids::even_signs(packed >> (7 * (n / 2))) >> (4 * (n % 2));
        codes(&grids::IQ3_XXS[usize::from(b[2 + 8 * block + n])], signs, to);
    }
    // Exact.
    IntBlock::plain(f16_at(b, 0) * (0.5 + (packed >> 28) as f32) * 0.5, to)
}

pub(crate) fn int_s(b: &[u8], block: usize) -> IntBlock {
    let mut to = [0; INT_BLOCK];
    for (n, to) in to.chunks_exact_mut(4).enumerate() {
        let high = b[66 + block] >> n & 1;
        let point = usize::from(b[2 + 8 * block + n]) | usize::from(high) << 8;
        codes(&grids::IQ3_S[point], b[74 + 4 * block + n / 2] >> (4 * (n % 2)), to);
    }
    let scale = b[106 + block / 2] >> (4 * (block % 2)) & 15;
    // Exact.
    IntBlock::plain(f16_at(b, 0) * f32::from(1 + 2 * scale), to)
}
