//! IQ4_NL and IQ4_XS: 4-bit indices into a fixed table of sixteen int8 levels. It must not know other formats.

use super::{QK, each_block, f16_at, u16_at};
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
