//! MXFP4 and NVFP4: 4-bit floats (E2M1) under a shared scale. The table holds doubled values so that it is integral;
//! both scales are halved in return. It must not know other formats.
//!
//! MXFP4 follows the OCP Microscaling Formats specification 1.0; NVFP4 is ggml's packing of four 16-weight groups.

use super::each_block;
use crate::int::{IntBlock, nibbles};

/// Twice the sixteen E2M1 values. Code 8 (minus zero) is plain zero, as in ggml.
const DOUBLED_E2M1: [f32; 16] = [0., 1., 2., 3., 4., 6., 8., 12., 0., -1., -2., -3., -4., -6., -8., -12.];

/// Half of an E8M0 scale, 2^(code - 128); codes 0 and 1 are f32 subnormals.
fn half_e8m0(code: u8) -> f32 {
    let code = u32::from(code);
    f32::from_bits(if code < 2 { 0x0020_0000 << code } else { (code - 1) << 23 })
}

/// Half of an unsigned E4M3 scale (bias 7, subnormals below 2^-6); the code 0x7F is zero, as in ggml. The top bit is
/// ignored.
fn half_ue4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (code >> 3 & 15, f32::from(code & 7));
    if code == 0x7F {
        0.0
    } else if exponent == 0 {
        mantissa * (1.0 / 1024.0)
    } else {
        // 2^(exponent - 7) / 2
        (1.0 + mantissa / 8.0) * f32::from_bits((u32::from(exponent) + 127 - 8) << 23)
    }
}

/// Byte 0 the E8M0 scale, 1..17 nibbles: low ones are weights 0..16, high ones 16..32.
pub(crate) fn decode_mxfp4(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 17], w: &mut [f32; 32]| {
        let d = half_e8m0(b[0]);
        for i in 0..16 {
            w[i] = d * DOUBLED_E2M1[usize::from(b[1 + i] & 15)];
            w[i + 16] = d * DOUBLED_E2M1[usize::from(b[1 + i] >> 4)];
        }
    });
}

/// Bytes 0..4 the E4M3 scales of four groups of 16, 4..36 nibbles: 8 bytes a group, low ones first.
pub(crate) fn decode_nvfp4(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 36], w: &mut [f32; 64]| {
        for (group, w) in w.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let d = half_ue4m3(b[group]);
            for i in 0..8 {
                let both = b[4 + 8 * group + i];
                w[i] = d * DOUBLED_E2M1[usize::from(both & 15)];
                w[i + 8] = d * DOUBLED_E2M1[usize::from(both >> 4)];
            }
        }
    });
}

pub(crate) fn int_mxfp4(b: &[u8], _: usize) -> IntBlock {
    IntBlock::plain(half_e8m0(b[0]), nibbles(&b[1..17], |q| DOUBLED_E2M1[usize::from(q)] as i8))
}
