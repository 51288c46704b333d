//! IQ4_NL and IQ4_XS: 4-bit indices into a fixed table of sixteen int8 levels. It must not know other formats.

use super::{QK, each_block, f16_at, u16_at};

/// The levels, denser around zero.
const LEVELS: [f32; 16] =
    [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];

/// 16 bytes of indices to 32 weights: low nibbles are weights 0..16, high ones 16..32.
fn look_up(scale: f32, packed: &[u8], w: &mut [f32; 32]) {
    for (i, both) in packed.iter().take(16).enumerate() {
        w[i] = scale * LEVELS[usize::from(both & 15)];
        w[i + 16] = scale * LEVELS[usize::from(both >> 4)];
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
        let (d, high) = (f16_at(b, 0), u16_at(b, 2));
        for (s, w) in w.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let low = b[4 + s / 2] >> (4 * (s % 2)) & 15;
            let scale = i32::from(low) + i32::from(high >> (2 * s) & 3) * 16 - 32;
            look_up(d * scale as f32, &b[8 + 16 * s..][..16], w);
        }
    });
}
