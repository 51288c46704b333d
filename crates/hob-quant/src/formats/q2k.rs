//! Q2_K: 256 weights of 2 bits; 16 sub-blocks of 16, each with a 4-bit scale and a 4-bit minimum.
//! Bytes 0..16 scales (low nibble) and minima (high nibble), 16..80 weights, 80..82 `d`, 82..84 `dmin`.
//! `w = d * scale * q - dmin * min`. It must not know other formats.

use super::search::{Affine, each_block_searched};
use super::superblock::with_minima;
use super::{BadBlock, QK, each_block, f16_at};
use crate::int::{IntBlock, Minima};

pub(crate) fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 84], w: &mut [f32; QK]| {
        let (d, dmin) = (f16_at(b, 80), f16_at(b, 82));
        // Sub-block s lies in bit pair (s / 2) % 4 of the 16 bytes at 32 * (s / 8) + 16 * (s % 2).
        for (s, w) in w.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = d * f32::from(b[s] & 15);
            let min = dmin * f32::from(b[s] >> 4);
            let shift = 2 * (s / 2 % 4);
            let first = 16 + 32 * (s / 8) + 16 * (s % 2);
            for (w, q) in w.iter_mut().zip(&b[first..first + 16]) {
                *w = scale * f32::from(q >> shift & 3) - min;
            }
        }
    });
}

pub(crate) fn int(b: &[u8], block: usize) -> IntBlock {
    let low = &b[16 + 32 * (block / 4)..][..32];
    let both = [b[2 * block], b[2 * block + 1]];
    IntBlock {
        codes: std::array::from_fn(|i| (low[i] >> (2 * (block % 4)) & 3) as i8),
        scales: both.map(|b| i16::from(b & 15)),
        d: f16_at(b, 80),
        minima: Minima::Halves { m: -f16_at(b, 82), scales: both.map(|b| i16::from(b >> 4)) },
    }
}

pub(crate) fn quantize(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<(), BadBlock> {
    const TOP: f32 = 3.0;
    each_block_searched(x, importance, out, |x: &[f32; QK], w, b: &mut [u8; 84]| {
        let Some(found) = with_minima::<QK, 16, 16>(x, w, TOP, 15) else { return false };
        for (s, x) in x.as_chunks::<16>().0.iter().enumerate() {
            b[s] = found.scales[s] | found.mins[s] << 4;
            let pair: Affine = found.pair(s);
            let first = 16 + 32 * (s / 8) + 16 * (s % 2);
            for (q, &v) in b[first..first + 16].iter_mut().zip(x) {
                *q |= (pair.code(v, TOP) as u8) << (2 * (s / 2 % 4));
            }
        }
        found.d.put(b, 80);
        found.dmin.put(b, 82);
        true
    })
}
