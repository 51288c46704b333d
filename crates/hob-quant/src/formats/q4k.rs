//! Q4_K: 256 weights of 4 bits; 8 sub-blocks of 32, each with a 6-bit scale and a 6-bit minimum.
//! Bytes 0..2 `d`, 2..4 `dmin`, 4..16 scales and minima, 16..144 nibbles: 32 bytes hold two sub-blocks, low nibbles
//! first. `w = d * scale * q - dmin * min`. Q5_K shares the packing of the scales.

use super::search::each_block_searched;
use super::superblock::{WithMinima, with_minima};
use super::{BadBlock, QK, each_block, f16_at};
use crate::int::{IntBlock, Minima};

/// The 8 (scale, minimum) pairs of Q4_K and Q5_K. Of 12 bytes, the low six bits of bytes 0..4 are scales 0..4 and of
/// bytes 4..8 minima 0..4; bytes 8..12 hold the low nibbles of scales and minima 4..8, whose bits 4 and 5 are the top
/// bits of bytes 0..8.
pub(super) fn scales_and_mins(packed: &[u8]) -> [(u8, u8); 8] {
    std::array::from_fn(|s| {
        if s < 4 {
            (packed[s] & 63, packed[s + 4] & 63)
        } else {
            let both = packed[s + 4];
            (both & 15 | packed[s - 4] >> 6 << 4, both >> 4 | packed[s] >> 6 << 4)
        }
    })
}

pub(crate) fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 144], w: &mut [f32; QK]| {
        let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
        let scales = scales_and_mins(&b[4..16]);
        for (s, w) in w.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = (d * f32::from(scales[s].0), dmin * f32::from(scales[s].1));
            let shift = 4 * (s % 2);
            for (w, q) in w.iter_mut().zip(&b[16 + 32 * (s / 2)..][..32]) {
                *w = scale * f32::from(q >> shift & 15) - min;
            }
        }
    });
}

/// Scale and minimum of sub-block `s`, and a block of `codes` under them; both products are exact in f32.
pub(super) fn int_scaled(b: &[u8], s: usize, codes: [i8; 32]) -> IntBlock {
    let (scale, min) = scales_and_mins(&b[4..16])[s];
    let minima = Minima::Block(-(f16_at(b, 2) * f32::from(min)));
    IntBlock { minima, ..IntBlock::plain(f16_at(b, 0) * f32::from(scale), codes) }
}

pub(crate) fn int(b: &[u8], s: usize) -> IntBlock {
    let packed = &b[16 + 32 * (s / 2)..][..32];
    int_scaled(b, s, std::array::from_fn(|i| (packed[i] >> (4 * (s % 2)) & 15) as i8))
}

/// Writes factors, scales and minima; the inverse of [`scales_and_mins`] on zero bytes.
pub(super) fn put_scales(b: &mut [u8], found: &WithMinima<8>) {
    found.d.put(b, 0);
    found.dmin.put(b, 2);
    let packed = &mut b[4..16];
    for (s, (scale, min)) in found.scales.into_iter().zip(found.mins).enumerate() {
        if s < 4 {
            packed[s] |= scale;
            packed[s + 4] |= min;
        } else {
            packed[s + 4] = scale & 15 | min << 4;
            packed[s - 4] |= scale >> 4 << 6;
            packed[s] |= min >> 4 << 6;
        }
    }
}

pub(crate) fn quantize(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<(), BadBlock> {
    const TOP: f32 = 15.0;
    each_block_searched(x, importance, out, |x: &[f32; QK], w, b: &mut [u8; 144]| {
        let Some(found) = with_minima::<QK, 32, 8>(x, w, TOP, 63) else { return false };
        put_scales(b, &found);
        for (s, x) in x.as_chunks::<32>().0.iter().enumerate() {
            let pair = found.pair(s);
            for (q, &v) in b[16 + 32 * (s / 2)..][..32].iter_mut().zip(x) {
                *q |= (pair.code(v, TOP) as u8) << (4 * (s % 2));
            }
        }
        true
    })
}
