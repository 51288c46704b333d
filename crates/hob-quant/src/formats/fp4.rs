//! MXFP4 and NVFP4: 4-bit floats (E2M1) under a shared scale. The table holds doubled values so that it is integral;
//! both scales are halved in return. It must not know other formats.
//!
//! MXFP4 follows the OCP Microscaling Formats specification 1.0; NVFP4 is ggml's packing of four 16-weight groups.

use super::search::{Grid, each_block_searched, inverse_of, scale_error};
use super::{BadBlock, each_block};
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

/// The code of the doubled value nearest to `v`; of two as near the one closer to zero, never minus zero.
fn code(v: f32) -> u8 {
    const BETWEEN: [f32; 7] = [0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0];
    let size = v.abs();
    let code = BETWEEN.iter().map(|&bound| u8::from(size > bound)).sum::<u8>();
    code | u8::from(v < 0.0 && code > 0) << 3
}

struct Doubled;

impl Grid for Doubled {
    fn level(&self, v: f32) -> f32 {
        DOUBLED_E2M1[usize::from(code(v))]
    }

    fn ends(&self) -> [f32; 2] {
        [-12.0, 12.0]
    }

    fn step(&self) -> f32 {
        1.0
    }
}

/// The power of two that the specification takes for the largest weight, or a neighbor that leaves less error.
pub(crate) fn quantize_mxfp4(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<(), BadBlock> {
    each_block_searched(x, importance, out, |x: &[f32; 32], w, b: &mut [u8; 17]| {
        let largest = x.iter().fold(0f32, |most, v| most.max(v.abs()));
        // Exponent of the largest weight less that of the largest value, 6; blocks near zero have been left out.
        let spec = (largest.to_bits() >> 23) as i32 - 2;
        let tries = (spec - 1).clamp(0, 254)..=(spec + 1).clamp(0, 254);
        let error = |e: i32| scale_error(&Doubled, x, w, half_e8m0(e as u8));
        let best = tries
            .map(|e| (error(e), e))
            .fold((f32::INFINITY, 0), |best, next| if next.0 < best.0 { next } else { best });
        b[0] = best.1 as u8;
        let inverse = inverse_of(half_e8m0(b[0]));
        for i in 0..16 {
            b[1 + i] = code(x[i] * inverse) | code(x[i + 16] * inverse) << 4;
        }
        true
    })
}
