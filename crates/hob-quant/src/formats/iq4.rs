//! IQ4_NL and IQ4_XS: 4-bit indices into a fixed table of sixteen int8 levels. It must not know other formats.

use super::search::{Grid, each_block_searched, fit_scale, inverse_of, nearest};
use super::superblock::{Half, signed};
use super::{BadBlock, QK, each_block, f16_at, u16_at};
use crate::int::{IntBlock, nibbles};

/// The levels, denser around zero.
pub(crate) const LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// [`LEVELS`] as floats.
const LEVELS_F32: [f32; 16] =
    [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];

/// 16 bytes of indices to 32 weights: low nibbles are weights 0..16, high ones 16..32.
fn look_up(scale: f32, packed: &[u8], w: &mut [f32; 32]) {
    for (i, both) in packed.iter().take(16).enumerate() {
        w[i] = scale * LEVELS_F32[usize::from(both & 15)];
        w[i + 16] = scale * LEVELS_F32[usize::from(both >> 4)];
    }
}

/// Bytes 0..2 `d`, 2..18 indices; `w = d * level`.
pub(crate) fn decode_nl(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 18], w: &mut [f32; 32]| look_up(f16_at(b, 0), &b[2..], w));
}

/// Bytes 0..2 `d`, 2..4 high bit pairs and 4..8 low nibbles of eight 6-bit scales, 8..136 indices (16 bytes per 32
/// weights); `w = d * (scale - 32) * level`.
pub(crate) fn decode_xs(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 136], w: &mut [f32; QK]| {
        let d = f16_at(b, 0);
        for (s, w) in w.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            look_up(d * f32::from(scale_xs(b, s)), &b[8 + 16 * s..][..16], w);
        }
    });
}

/// Scale of sub-block `s` minus 32.
fn scale_xs(b: &[u8], s: usize) -> i16 {
    let low = b[4 + s / 2] >> (4 * (s % 2)) & 15;
    let high = u16_at(b, 2) >> (2 * s) & 3;
    i16::from(low) + (high * 16) as i16 - 32
}

pub(crate) fn int_nl(b: &[u8], _: usize) -> IntBlock {
    IntBlock::plain(f16_at(b, 0), nibbles(&b[2..18], |q| LEVELS[usize::from(q)]))
}

pub(crate) fn int_xs(b: &[u8], s: usize) -> IntBlock {
    let codes = nibbles(&b[8 + 16 * s..][..16], |q| LEVELS[usize::from(q)]);
    IntBlock::plain(f16_at(b, 0) * f32::from(scale_xs(b, s)), codes)
}

/// The index of the level nearest to each whole number from the lowest level on.
const NEAREST: [u8; 241] = {
    let mut table = [0; 241];
    let mut v = -127;
    while v <= 113 {
        let (mut best, mut i) = (0, 1);
        while i < LEVELS.len() {
            if (LEVELS[i] as i32 - v).abs() < (LEVELS[best] as i32 - v).abs() {
                best = i;
            }
            i += 1;
        }
        table[(v + 127) as usize] = best as u8;
        v += 1;
    }
    table
};

/// The index of the level nearest to `v`.
fn index(v: f32) -> u8 {
    NEAREST[nearest(v.clamp(-127.0, 113.0) + 127.0) as usize]
}

struct Levels;

impl Grid for Levels {
    fn level(&self, v: f32) -> f32 {
        LEVELS_F32[usize::from(index(v))]
    }

    fn ends(&self) -> [f32; 2] {
        [LEVELS_F32[0], LEVELS_F32[15]]
    }

    fn step(&self) -> f32 {
        4.0
    }
}

/// The inverse of [`look_up`] on zero bytes.
fn put_indices(packed: &mut [u8], x: &[f32; 32], scale: f32) {
    let inverse = inverse_of(scale);
    for (i, both) in packed.iter_mut().enumerate() {
        *both = index(x[i] * inverse) | index(x[i + 16] * inverse) << 4;
    }
}

pub(crate) fn quantize_nl(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<(), BadBlock> {
    each_block_searched(x, importance, out, |x: &[f32; 32], w, b: &mut [u8; 18]| {
        let Some(d) = Half::of(fit_scale(&Levels, x, w)) else { return false };
        d.put(b, 0);
        put_indices(&mut b[2..], x, d.value);
        true
    })
}

pub(crate) fn quantize_xs(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<(), BadBlock> {
    each_block_searched(x, importance, out, |x: &[f32; QK], w, b: &mut [u8; 136]| {
        let Some(found) = signed::<_, QK, 32, 8>(&Levels, x, w, (-32, 31)) else { return false };
        found.d.put(b, 0);
        for (s, x) in x.as_chunks::<32>().0.iter().enumerate() {
            let scale = (found.scales[s] + 32) as u8;
            b[2 + s / 4] |= (scale >> 4) << (2 * (s % 4));
            b[4 + s / 2] |= (scale & 15) << (4 * (s % 2));
            put_indices(&mut b[8 + 16 * s..][..16], x, found.scale(s));
        }
        true
    })
}
