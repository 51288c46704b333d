//! IQ1_S and IQ1_M: eight weights at a time from a ternary grid of 2048 points, shifted by plus or minus an eighth.
//! `w = d * (2 * scale + 1) * (point + delta)`. It must not know other formats.

use super::{QK, each_block, f16_at, f16_to_f32, grids, u16_at};

const DELTA: f32 = 0.125;

/// Writes the eight weights of one grid point.
fn shifted_point(scale: f32, index: usize, minus: bool, w: &mut [f32; 8]) {
    let delta = if minus { -DELTA } else { DELTA };
    for (w, &level) in w.iter_mut().zip(&grids::IQ1[index]) {
        *w = scale * (f32::from(level) + delta);
    }
}

/// Bytes 0..2 `d`, 2..34 low index bytes, 34..50 per 32 weights a u16: four 3-bit high index parts, a 3-bit scale, the
/// sign of delta.
pub(crate) fn decode_s(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 50], w: &mut [f32; QK]| {
        let d = f16_at(b, 0);
        for (n, w) in w.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let packed = u16_at(b, 34 + 2 * (n / 4));
            let scale = d * f32::from(2 * (packed >> 12 & 7) + 1);
            let high = packed >> (3 * (n % 4)) & 7;
            shifted_point(scale, usize::from(b[2 + n]) | usize::from(high) << 8, packed & 0x8000 != 0, w);
        }
    });
}

/// Bytes 0..32 low index bytes, 32..48 per eight weights a nibble (3-bit high index part, the sign of delta), 48..56
/// four u16: each holds four 3-bit scales of 16 weights, and in its top four bits a quarter of the f16 `d`.
pub(crate) fn decode_m(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 56], w: &mut [f32; QK]| {
        let scales: [u16; 4] = std::array::from_fn(|i| u16_at(b, 48 + 2 * i));
        let d =
            f16_to_f32(scales[0] >> 12 | scales[1] >> 12 << 4 | scales[2] >> 12 << 8 | scales[3] >> 12 << 12);
        for (n, w) in w.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let sub = n / 2;
            let scale = d * f32::from(2 * (scales[sub / 4] >> (3 * (sub % 4)) & 7) + 1);
            let high = b[32 + n / 2] >> (4 * (n % 2));
            shifted_point(scale, usize::from(b[n]) | usize::from(high & 7) << 8, high & 8 != 0, w);
        }
    });
}
