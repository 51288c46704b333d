//! TQ1_0 and TQ2_0: 256 weights from {-1, 0, 1} with one f16 scale, `w = d * (q - 1)`. It must not know other formats.

use super::{QK, each_block, f16_at};
use crate::int::IntBlock;

/// The five digits of a TQ1_0 byte, most significant first: byte / 256 is a fraction in base 3.
const POWERS: [u8; 5] = [1, 3, 9, 27, 81];

/// Digit `n` (0..5) of a byte that stores up to five base-3 digits.
fn digit(byte: u8, n: usize) -> i32 {
    let rest = byte.wrapping_mul(POWERS[n]);
    i32::from((u16::from(rest) * 3) >> 8) - 1
}

/// Bytes 0..32 five digits each (weights 0..160, digit-major), 32..48 five digits each (160..240), 48..52 four digits
/// each (240..256), 52..54 `d`.
pub(crate) fn decode_tq1_0(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 54], w: &mut [f32; QK]| {
        let d = f16_at(b, 52);
        let (first, rest) = w.split_at_mut(160);
        let (second, third) = rest.split_at_mut(80);
        for (run, packed) in [(first, &b[..32]), (second, &b[32..48]), (third, &b[48..52])] {
            for (n, run) in run.chunks_exact_mut(packed.len()).enumerate() {
                for (w, &byte) in run.iter_mut().zip(packed) {
                    *w = d * digit(byte, n) as f32;
                }
            }
        }
    });
}

/// Bytes 0..64 bit pairs (each 32 bytes hold 128 weights, pair-major), 64..66 `d`.
pub(crate) fn decode_tq2_0(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 66], w: &mut [f32; QK]| {
        let d = f16_at(b, 64);
        for (run, w) in w.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (w, q) in w.iter_mut().zip(&b[32 * (run / 4)..][..32]) {
                *w = d * (i32::from(q >> (2 * (run % 4)) & 3) - 1) as f32;
            }
        }
    });
}

pub(crate) fn int_tq1_0(b: &[u8], block: usize) -> IntBlock {
    let code = |i: usize| {
        let (byte, n) = match 32 * block + i {
            k @ ..160 => (k % 32, k / 32),
            k @ ..240 => (32 + k % 16, (k - 160) / 16),
            k => (48 + k % 4, (k - 240) / 4),
        };
        digit(b[byte], n) as i8
    };
    IntBlock::plain(f16_at(b, 52), std::array::from_fn(code))
}

pub(crate) fn int_tq2_0(b: &[u8], block: usize) -> IntBlock {
    let code = |i: usize| (b[32 * (block / 4) + i] >> (2 * (block % 4)) & 3) as i8 - 1;
    IntBlock::plain(f16_at(b, 64), std::array::from_fn(code))
}
