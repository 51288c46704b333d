//! Q6_K: 256 weights of 6 bits; 16 sub-blocks of 16, each with an int8 scale.
//! Bytes 0..128 low nibbles, 128..192 high bit pairs, 192..208 scales, 208..210 `d`. Each half of 128 weights is four
//! runs of 32: runs 0 and 2 are the low and high nibbles of the half's first 32 low bytes, 1 and 3 of its second; run r
//! takes bit pair r of the half's 32 high bytes. `w = d * scale * (q - 32)`. It must not know other formats.

use super::search::{Grid, Steps, each_block_searched, inverse_of};
use super::{BadBlock, QK, each_block, f16_at, signed, superblock};
use crate::int::{IntBlock, Minima};

pub(crate) fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 210], w: &mut [f32; QK]| {
        let d = f16_at(b, 208);
        for (s, w) in w.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let (half, run, part) = (s / 8, s / 2 % 4, s % 2);
            let scale = d * f32::from(signed(b[192 + s]));
            let low = &b[64 * half + 32 * (run % 2) + 16 * part..][..16];
            let high = &b[128 + 32 * half + 16 * part..][..16];
            for ((w, low), high) in w.iter_mut().zip(low).zip(high) {
                let q = low >> (4 * (run / 2)) & 15 | (high >> (2 * run) & 3) << 4;
                *w = scale * (i32::from(q) - 32) as f32;
            }
        }
    });
}

pub(crate) fn int(b: &[u8], block: usize) -> IntBlock {
    let (half, run) = (block / 4, block % 4);
    let low = &b[64 * half + 32 * (run % 2)..][..32];
    let high = &b[128 + 32 * half..][..32];
    let code = |i: usize| low[i] >> (4 * (run / 2)) & 15 | (high[i] >> (2 * run) & 3) << 4;
    IntBlock {
        codes: std::array::from_fn(|i| code(i) as i8 - 32),
        scales: [0, 1].map(|part| i16::from(signed(b[192 + 2 * block + part]))),
        d: f16_at(b, 208),
        minima: Minima::None,
    }
}

pub(crate) fn quantize(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<(), BadBlock> {
    const STEPS: Steps = Steps { low: -32.0, high: 31.0 };
    each_block_searched(x, importance, out, |x: &[f32; QK], w, b: &mut [u8; 210]| {
        let Some(found) = superblock::signed::<_, QK, 16, 16>(&STEPS, x, w, (-128, 127)) else {
            return false;
        };
        for (s, x) in x.as_chunks::<16>().0.iter().enumerate() {
            let (half, run, part) = (s / 8, s / 2 % 4, s % 2);
            b[192 + s] = (found.scales[s] as i8).to_le_bytes()[0];
            let inverse = inverse_of(found.scale(s));
            for (i, v) in x.iter().enumerate() {
                let q = (STEPS.level(v * inverse) + 32.0) as u8;
                b[64 * half + 32 * (run % 2) + 16 * part + i] |= (q & 15) << (4 * (run / 2));
                b[128 + 32 * half + 16 * part + i] |= (q >> 4) << (2 * run);
            }
        }
        found.d.put(b, 208);
        true
    })
}
