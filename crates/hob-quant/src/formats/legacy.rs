//! The 32-weight formats Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q8_1 of ggml (`ggml-common.h`, `ggml-quants.c`).
//! Each block starts with an f16 scale `d` (and for `_1` an f16 minimum `m`); low nibbles hold weights 0..16, high
//! nibbles 16..32; the fifth bits stand in one little-endian u32, bit i for weight i. It must not know superblocks.
//!
//! `encode_*` follow the published reference quantizer: `d` is kept in f32 while rounding and stored as f16, so they are
//! bit-exact with it for finite weights. A block whose scale overflows f16 is refused instead of stored as infinity.
//! `quantize_*` search.

use half::f16;

use super::search::{Affine, Grid, Steps, each_block_searched, fit_affine, fit_scale, inverse_of};
use super::superblock::Half;
use super::{BadBlock, each_block, each_block_out, f16_at, signed, u32_at};
use crate::int::{IntBlock, Minima, nibbles};

/// Bytes 0..2 `d`, 2..18 nibbles; `w = d * (q - 8)`.
pub(crate) fn decode_q4_0(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 18], w: &mut [f32; 32]| {
        let d = f16_at(b, 0);
        for i in 0..16 {
            w[i] = d * (i32::from(b[2 + i] & 15) - 8) as f32;
            w[i + 16] = d * (i32::from(b[2 + i] >> 4) - 8) as f32;
        }
    });
}

/// Bytes 0..2 `d`, 2..4 `m`, 4..20 nibbles; `w = d * q + m`.
pub(crate) fn decode_q4_1(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 20], w: &mut [f32; 32]| {
        let (d, m) = (f16_at(b, 0), f16_at(b, 2));
        for i in 0..16 {
            w[i] = d * f32::from(b[4 + i] & 15) + m;
            w[i + 16] = d * f32::from(b[4 + i] >> 4) + m;
        }
    });
}

/// Joins nibbles (16 bytes) and fifth bits into 32 values 0..32.
fn five_bits(nibbles: &[u8; 16], high: u32) -> [u8; 32] {
    let mut q = [0; 32];
    for i in 0..16 {
        q[i] = (nibbles[i] & 15) | (((high >> i) & 1) as u8) << 4;
        q[i + 16] = (nibbles[i] >> 4) | (((high >> (i + 16)) & 1) as u8) << 4;
    }
    q
}

/// The 16 bytes of `block` from `at`.
fn nibbles_at(block: &[u8], at: usize) -> &[u8; 16] {
    block[at..].first_chunk().expect("blocks end with 16 bytes of nibbles")
}

/// Bytes 0..2 `d`, 2..6 fifth bits, 6..22 nibbles; `w = d * (q - 16)`.
pub(crate) fn decode_q5_0(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 22], w: &mut [f32; 32]| {
        let d = f16_at(b, 0);
        for (w, q) in w.iter_mut().zip(five_bits(nibbles_at(b, 6), u32_at(b, 2))) {
            *w = d * (i32::from(q) - 16) as f32;
        }
    });
}

/// Bytes 0..2 `d`, 2..4 `m`, 4..8 fifth bits, 8..24 nibbles; `w = d * q + m`.
pub(crate) fn decode_q5_1(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 24], w: &mut [f32; 32]| {
        let (d, m) = (f16_at(b, 0), f16_at(b, 2));
        for (w, q) in w.iter_mut().zip(five_bits(nibbles_at(b, 8), u32_at(b, 4))) {
            *w = d * f32::from(q) + m;
        }
    });
}

pub(crate) fn int_q4_0(b: &[u8], _: usize) -> IntBlock {
    IntBlock::plain(f16_at(b, 0), nibbles(&b[2..18], |q| q as i8 - 8))
}

pub(crate) fn int_q4_1(b: &[u8], _: usize) -> IntBlock {
    let plain = IntBlock::plain(f16_at(b, 0), nibbles(&b[4..20], |q| q as i8));
    IntBlock { minima: Minima::Block(f16_at(b, 2)), ..plain }
}

pub(crate) fn int_q5_0(b: &[u8], _: usize) -> IntBlock {
    let codes = five_bits(nibbles_at(b, 6), u32_at(b, 2)).map(|q| q as i8 - 16);
    IntBlock::plain(f16_at(b, 0), codes)
}

pub(crate) fn int_q5_1(b: &[u8], _: usize) -> IntBlock {
    let codes = five_bits(nibbles_at(b, 8), u32_at(b, 4)).map(|q| q as i8);
    IntBlock { minima: Minima::Block(f16_at(b, 2)), ..IntBlock::plain(f16_at(b, 0), codes) }
}

pub(crate) fn int_q8_0(b: &[u8], _: usize) -> IntBlock {
    IntBlock::plain(f16_at(b, 0), std::array::from_fn(|i| signed(b[2 + i])))
}

/// Bytes 0..2 `d`, 2..34 int8; `w = q * d`.
pub(crate) fn decode_q8_0(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 34], w: &mut [f32; 32]| {
        let d = f16_at(b, 0);
        for (w, &q) in w.iter_mut().zip(&b[2..]) {
            *w = f32::from(signed(q)) * d;
        }
    });
}

/// Bytes 0..2 `d`, 2..4 the f16 sum `d * sum(q)` (a kernel's helper, unused here), 4..36 int8; `w = q * d`.
/// An activation format: 36 bytes in ggml's struct, although its Python tables still list an older 40-byte form.
pub(crate) fn decode_q8_1(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |b: &[u8; 36], w: &mut [f32; 32]| {
        let d = f16_at(b, 0);
        for (w, &q) in w.iter_mut().zip(&b[4..]) {
            *w = f32::from(signed(q)) * d;
        }
    });
}

/// `1 / d`, or 0 where that is not a number the weights could be scaled by (`d` zero or next to it).
fn inverse(d: f32) -> f32 {
    let inverse = 1.0 / d;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// Stores `value` as f16 at byte `at`; `false` if it overflows.
fn put_f16(block: &mut [u8], at: usize, value: f32) -> bool {
    let half = f16::from_f32(value);
    block[at..at + 2].copy_from_slice(&half.to_le_bytes());
    half.is_finite()
}

/// The first weight of largest magnitude, with its sign.
fn signed_max(x: &[f32; 32]) -> f32 {
    x.iter().fold(x[0], |max, &v| if v.abs() > max.abs() { v } else { max })
}

/// The smallest and the largest weight.
fn min_max(x: &[f32; 32]) -> (f32, f32) {
    x.iter().fold((x[0], x[0]), |(lo, hi), &v| (if v < lo { v } else { lo }, if v > hi { v } else { hi }))
}

/// Writes the low four bits of 32 values as nibbles.
fn put_nibbles(out: &mut [u8], q: &[u8; 32]) {
    for i in 0..16 {
        out[i] = (q[i] & 15) | (q[i + 16] & 15) << 4;
    }
}

/// Bit 4 of 32 values as one u32.
fn fifth_bits(q: &[u8; 32]) -> u32 {
    q.iter().enumerate().fold(0, |bits, (i, &q)| bits | u32::from(q >> 4 & 1) << i)
}

/// Symmetric rule with an offset of `half` levels: the weight of largest magnitude gets level 0.
fn symmetric(x: &[f32; 32], half: f32) -> (f32, [u8; 32]) {
    let d = signed_max(x) / -half;
    let scale = inverse(d);
    // `as u8` truncates toward zero, which rounds because of the added half level.
    (d, x.map(|v| ((v * scale + (half + 0.5)) as u8).min(2 * half as u8 - 1)))
}

/// Asymmetric rule with `levels` steps between the smallest and the largest weight.
fn asymmetric(x: &[f32; 32], levels: f32) -> (f32, f32, [u8; 32]) {
    let (min, max) = min_max(x);
    let d = (max - min) / levels;
    let scale = inverse(d);
    (d, min, x.map(|v| (((v - min) * scale + 0.5) as u8).min(levels as u8)))
}

pub(crate) fn encode_q4_0(x: &[f32], out: &mut [u8]) -> Result<(), BadBlock> {
    each_block_out(x, out, |x: &[f32; 32], b: &mut [u8; 18]| {
        let (d, q) = symmetric(x, 8.0);
        put_nibbles(&mut b[2..], &q);
        put_f16(b, 0, d)
    })
}

pub(crate) fn encode_q4_1(x: &[f32], out: &mut [u8]) -> Result<(), BadBlock> {
    each_block_out(x, out, |x: &[f32; 32], b: &mut [u8; 20]| {
        let (d, m, q) = asymmetric(x, 15.0);
        put_nibbles(&mut b[4..], &q);
        put_f16(b, 0, d) && put_f16(b, 2, m)
    })
}

pub(crate) fn encode_q5_0(x: &[f32], out: &mut [u8]) -> Result<(), BadBlock> {
    each_block_out(x, out, |x: &[f32; 32], b: &mut [u8; 22]| {
        let (d, q) = symmetric(x, 16.0);
        b[2..6].copy_from_slice(&fifth_bits(&q).to_le_bytes());
        put_nibbles(&mut b[6..], &q);
        put_f16(b, 0, d)
    })
}

pub(crate) fn encode_q5_1(x: &[f32], out: &mut [u8]) -> Result<(), BadBlock> {
    each_block_out(x, out, |x: &[f32; 32], b: &mut [u8; 24]| {
        let (d, m, q) = asymmetric(x, 31.0);
        b[4..8].copy_from_slice(&fifth_bits(&q).to_le_bytes());
        put_nibbles(&mut b[8..], &q);
        put_f16(b, 0, d) && put_f16(b, 2, m)
    })
}

/// Rounds a value of small magnitude to the nearest integer, halves away from zero. `f32::round` does the same through
/// a library call, which keeps loops from vectorizing.
fn round_away(v: f32) -> i32 {
    let whole = v as i32;
    let rest = v - whole as f32;
    whole + i32::from(rest >= 0.5) - i32::from(rest <= -0.5)
}

/// `d = max |w| / 127`, levels rounded half away from zero.
pub(crate) fn encode_q8_0(x: &[f32], out: &mut [u8]) -> Result<(), BadBlock> {
    each_block_out(x, out, |x: &[f32; 32], b: &mut [u8; 34]| {
        let d = signed_max(x).abs() / 127.0;
        let scale = inverse(d);
        for (o, v) in b[2..].iter_mut().zip(x) {
            *o = (round_away(v * scale) as i8).to_le_bytes()[0];
        }
        put_f16(b, 0, d)
    })
}

/// The searched scale of a symmetric block, and its codes.
fn searched(x: &[f32; 32], w: &[f32; 32], half: f32) -> Option<(Half, [u8; 32])> {
    let steps = Steps { low: -half, high: half - 1.0 };
    let d = Half::of(fit_scale(&steps, x, w))?;
    let inverse = inverse_of(d.value);
    Some((d, x.map(|v| (steps.level(v * inverse) + half) as u8)))
}

/// Searched scale and minimum of a block, and its codes.
fn searched_pair(x: &[f32; 32], w: &[f32; 32], top: f32) -> Option<([Half; 2], [u8; 32])> {
    let pair = fit_affine(x, w, top, false);
    let (d, m) = (Half::of(pair.scale)?, Half::of(pair.min)?);
    let stored = Affine { scale: d.value, min: m.value };
    Some(([d, m], x.map(|v| stored.code(v, top) as u8)))
}

pub(crate) fn quantize_q4_0(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<(), BadBlock> {
    each_block_searched(x, importance, out, |x: &[f32; 32], w, b: &mut [u8; 18]| {
        let Some((d, q)) = searched(x, w, 8.0) else { return false };
        put_nibbles(&mut b[2..], &q);
        d.put(b, 0);
        true
    })
}

pub(crate) fn quantize_q4_1(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<(), BadBlock> {
    each_block_searched(x, importance, out, |x: &[f32; 32], w, b: &mut [u8; 20]| {
        let Some(([d, m], q)) = searched_pair(x, w, 15.0) else { return false };
        put_nibbles(&mut b[4..], &q);
        d.put(b, 0);
        m.put(b, 2);
        true
    })
}

pub(crate) fn quantize_q5_0(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<(), BadBlock> {
    each_block_searched(x, importance, out, |x: &[f32; 32], w, b: &mut [u8; 22]| {
        let Some((d, q)) = searched(x, w, 16.0) else { return false };
        b[2..6].copy_from_slice(&fifth_bits(&q).to_le_bytes());
        put_nibbles(&mut b[6..], &q);
        d.put(b, 0);
        true
    })
}

pub(crate) fn quantize_q5_1(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<(), BadBlock> {
    each_block_searched(x, importance, out, |x: &[f32; 32], w, b: &mut [u8; 24]| {
        let Some(([d, m], q)) = searched_pair(x, w, 31.0) else { return false };
        b[4..8].copy_from_slice(&fifth_bits(&q).to_le_bytes());
        put_nibbles(&mut b[8..], &q);
        d.put(b, 0);
        m.put(b, 2);
        true
    })
}

/// The published scale, but codes that fit what is stored of it. 255 levels leave a search nothing to gain that the next
/// smaller format does not lose a hundred times over.
pub(crate) fn quantize_q8_0(x: &[f32], _: Option<&[f32]>, out: &mut [u8]) -> Result<(), BadBlock> {
    const STEPS: Steps = Steps { low: -127.0, high: 127.0 };
    each_block_searched(x, None, out, |x: &[f32; 32], _, b: &mut [u8; 34]| {
        let Some(d) = Half::of(signed_max(x).abs() / 127.0) else { return false };
        let inverse = inverse_of(d.value);
        for (o, v) in b[2..].iter_mut().zip(x) {
            *o = (STEPS.level(v * inverse) as i8).to_le_bytes()[0];
        }
        d.put(b, 0);
        true
    })
}

#[cfg(test)]
mod tests {
    use super::round_away;

    #[test]
    fn round_away_is_round_at_halves_and_their_neighbors() {
        for i in -130..=130 {
            for v in [i as f32 - 0.5, i as f32, i as f32 + 0.25] {
                for v in [v.next_down(), v, v.next_up()] {
                    assert_eq!(round_away(v), v.round() as i32, "{v:?}");
                }
            }
        }
    }
}
