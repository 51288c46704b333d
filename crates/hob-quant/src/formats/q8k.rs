//! Q8_K: 256 int8 weights with one f32 scale; ggml's activation format beside the k-quants.
//! Bytes 0..4 `d` (f32), 4..260 weights, 260..292 sixteen i16 sums of 16 weights (a kernel's helper, unused here).
//! `w = d * q`. It must not know other formats.

use super::{QK, each_block, signed};

pub(crate) fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 292], w: &mut [f32; QK]| {
        let d = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        for (w, &q) in w.iter_mut().zip(&b[4..260]) {
            *w = d * f32::from(signed(q));
        }
    });
}
