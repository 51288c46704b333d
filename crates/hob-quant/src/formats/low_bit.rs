//! Q1_0 (128 weights, one sign bit each) and Q2_0 (64 weights, two bits each) of ggml: an f16 scale, then the bits,
//! least significant first. Newer than most tools; other programs have used the same names for other block lengths.
//! It must not know the ternary superblock formats (`ternary.rs`).

use super::{each_block, f16_at};

/// Bytes 0..2 `d`, 2..18 bits; `w = d` where the bit is set, else `-d`.
pub(crate) fn decode_q1_0(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 18], w: &mut [f32; 128]| {
        let d = f16_at(b, 0);
        for (w, bits) in w.as_chunks_mut::<8>().0.iter_mut().zip(&b[2..]) {
            for (j, w) in w.iter_mut().enumerate() {
                *w = if bits >> j & 1 == 1 { d } else { -d };
            }
        }
    });
}

/// Bytes 0..2 `d`, 2..18 pairs of bits; `w = d * (q - 1)`.
pub(crate) fn decode_q2_0(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 18], w: &mut [f32; 64]| {
        let d = f16_at(b, 0);
        for (w, bits) in w.as_chunks_mut::<4>().0.iter_mut().zip(&b[2..]) {
            for (j, w) in w.iter_mut().enumerate() {
                *w = d * (i32::from(bits >> (2 * j) & 3) - 1) as f32;
            }
        }
    });
}
