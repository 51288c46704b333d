//! Q3_K: 256 weights of 3 bits; 16 sub-blocks of 16, each with a signed 6-bit scale.
//! Bytes 0..32 high bits (a *clear* bit subtracts 4), 32..96 low bit pairs, 96..108 scales, 108..110 `d`.
//! `w = d * (scale - 32) * q`. It must not know other formats.

use super::search::{Grid, Steps, each_block_searched, inverse_of};
use super::superblock::signed;
use super::{BadBlock, QK, each_block, f16_at};
use crate::int::{IntBlock, Minima};

/// The 16 scales minus 32: low nibbles stand in bytes 0..8 (scale s in byte s % 8, half s / 8), bit pairs 4 and 5 in
/// bytes 8..12 (scale s in byte s % 4, pair s / 4).
fn scales(packed: &[u8]) -> [i16; 16] {
    std::array::from_fn(|s| {
        let low = packed[s % 8] >> (4 * (s / 8)) & 15;
        let high = packed[8 + s % 4] >> (2 * (s / 4)) & 3;
        i16::from(low | high << 4) - 32
    })
}

pub(crate) fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 110], w: &mut [f32; QK]| {
        let d = f16_at(b, 108);
        let scales = scales(&b[96..108]);
        for (s, w) in w.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = d * f32::from(scales[s]);
            let shift = 2 * (s / 2 % 4);
            let high = &b[16 * (s % 2)..][..16];
            let low = &b[32 + 32 * (s / 8) + 16 * (s % 2)..][..16];
            for ((w, low), high) in w.iter_mut().zip(low).zip(high) {
                let clear = !(high >> (s / 2)) & 1;
                *w = scale * (i32::from(low >> shift & 3) - 4 * i32::from(clear)) as f32;
            }
        }
    });
}

pub(crate) fn int(b: &[u8], block: usize) -> IntBlock {
    let low = &b[32 + 32 * (block / 4)..][..32];
    let code = |i: usize| low[i] >> (2 * (block % 4)) & 3 | (b[i] >> block & 1) << 2;
    let scales = scales(&b[96..108]);
    IntBlock {
        codes: std::array::from_fn(|i| code(i) as i8 - 4),
        scales: [scales[2 * block], scales[2 * block + 1]],
        d: f16_at(b, 108),
        minima: Minima::None,
    }
}

pub(crate) fn quantize(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<(), BadBlock> {
    const STEPS: Steps = Steps { low: -4.0, high: 3.0 };
    each_block_searched(x, importance, out, |x: &[f32; QK], w, b: &mut [u8; 110]| {
        let Some(found) = signed::<_, QK, 16, 16>(&STEPS, x, w, (-32, 31)) else { return false };
        for (s, x) in x.as_chunks::<16>().0.iter().enumerate() {
            let scale = (found.scales[s] + 32) as u8;
            b[96 + s % 8] |= (scale & 15) << (4 * (s / 8));
            b[104 + s % 4] |= (scale >> 4) << (2 * (s / 4));
            let inverse = inverse_of(found.scale(s));
            for (i, v) in x.iter().enumerate() {
                let q = (STEPS.level(v * inverse) + 4.0) as u8;
                b[16 * (s % 2) + i] |= (q >> 2) << (s / 2);
                b[32 + 32 * (s / 8) + 16 * (s % 2) + i] |= (q & 3) << (2 * (s / 2 % 4));
            }
        }
        found.d.put(b, 108);
        true
    })
}
