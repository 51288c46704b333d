//! Q5_K: 256 weights of 5 bits; 8 sub-blocks of 32, each with a 6-bit scale and a 6-bit minimum (packed as in Q4_K).
//! Bytes 0..2 `d`, 2..4 `dmin`, 4..16 scales and minima, 16..48 fifth bits (sub-block s in bit s), 48..176 nibbles as
//! in Q4_K. `w = d * scale * q - dmin * min`.

use super::search::each_block_searched;
use super::superblock::with_minima;
use super::{BadBlock, QK, each_block, f16_at, q4k};
use crate::IntBlock;

pub(crate) fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 176], w: &mut [f32; QK]| {
        let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
        let scales = q4k::scales_and_mins(&b[4..16]);
        for (s, w) in w.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = (d * f32::from(scales[s].0), dmin * f32::from(scales[s].1));
            let shift = 4 * (s % 2);
            let low = &b[48 + 32 * (s / 2)..][..32];
            for ((w, low), high) in w.iter_mut().zip(low).zip(&b[16..48]) {
                *w = scale * f32::from(low >> shift & 15 | (high >> s & 1) << 4) - min;
            }
        }
    });
}

pub(crate) fn int(b: &[u8], s: usize) -> IntBlock {
    let low = &b[48 + 32 * (s / 2)..][..32];
    let code = |i: usize| low[i] >> (4 * (s % 2)) & 15 | (b[16 + i] >> s & 1) << 4;
    q4k::int_scaled(b, s, std::array::from_fn(|i| code(i) as i8))
}

pub(crate) fn quantize(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<(), BadBlock> {
    const TOP: f32 = 31.0;
    each_block_searched(x, importance, out, |x: &[f32; QK], w, b: &mut [u8; 176]| {
        let Some(found) = with_minima::<QK, 32, 8>(x, w, TOP, 63) else { return false };
        q4k::put_scales(b, &found);
        for (s, x) in x.as_chunks::<32>().0.iter().enumerate() {
            let pair = found.pair(s);
            for (i, &v) in x.iter().enumerate() {
                let q = pair.code(v, TOP) as u8;
                b[16 + i] |= (q >> 4) << s;
                b[48 + 32 * (s / 2) + i] |= (q & 15) << (4 * (s % 2));
            }
        }
        true
    })
}
