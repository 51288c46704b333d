//! Encoders of one group of 32 values; the rules stand at [`crate::KvFormat`]. Written over arrays without branches per
//! value, and inlined everywhere, so that a caller with vector registers gets vector code. It must not know bytes.
#![allow(clippy::needless_range_loop, reason = "several arrays in step: indices keep them in registers")]

use half::f16;

use super::KV_GROUP;

/// Added and taken away again, it rounds values of less than 2^22 to integers, ties to even.
const ROUND: f32 = 12_582_912.0;

/// `round(x)`, which must be small.
#[inline(always)]
fn round(x: f32) -> i32 {
    (x + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32
}

/// Bits of a scale or a minimum, kept within f16.
#[inline(always)]
fn half_bits(x: f32) -> u16 {
    f16::from_f32(x.clamp(-65504.0, 65504.0)).to_bits()
}

/// Largest magnitude, or `None` if there is a NaN or an infinity: in bits these are larger than any number.
#[inline(always)]
fn magnitude(x: &[f32; KV_GROUP]) -> Option<f32> {
    let mut lanes = [0u32; 8];
    for eight in x.as_chunks::<8>().0 {
        for (m, v) in lanes.iter_mut().zip(eight) {
            *m = (*m).max(v.to_bits() & 0x7FFF_FFFF);
        }
    }
    let most = lanes.into_iter().fold(0, u32::max);
    (most < f32::INFINITY.to_bits()).then_some(f32::from_bits(most))
}

/// Scale (f16 bits) and codes of a group of q8.
#[inline(always)]
pub fn q8_group(x: &[f32; KV_GROUP]) -> (u16, [i8; KV_GROUP]) {
    let d = magnitude(x).map_or(0, |m| half_bits(m / 127.0));
    if d == 0 {
        return (0, [0; KV_GROUP]);
    }
    let inverse = 1.0 / f16::from_bits(d).to_f32();
    let mut codes = [0i8; KV_GROUP];
    for (code, &v) in codes.iter_mut().zip(x) {
        *code = round((v * inverse).clamp(-127.0, 127.0)) as i8;
    }
    (d, codes)
}

/// What the largest magnitude becomes in each proposal for a group of q4.
pub const Q4_PROPOSALS: [f32; 4] = [8.5, 8.0, 7.5, 7.0];

/// Scale (f16 bits) and codes of a group of q4, whose values were rotated before.
#[inline(always)]
pub fn q4_group(x: &[f32; KV_GROUP]) -> (u16, [i8; KV_GROUP]) {
    let m = magnitude(x).unwrap_or(0.0);
    let (mut best, mut scale, mut factor) = (0f32, 0f32, 0f32);
    for proposal in Q4_PROPOSALS {
        let inverse = proposal / m;
        if inverse == f32::INFINITY {
            return (0, [0; KV_GROUP]);
        }
        let (s, q) = sums(x, inverse);
        let gain = s * s / q;
        if gain > best {
            (best, scale, factor) = (gain, s / q, inverse);
        }
    }
    let d = half_bits(scale);
    let mut codes = [0i8; KV_GROUP];
    for (code, &v) in codes.iter_mut().zip(x) {
        *code = round((v * factor).clamp(-8.0, 7.0)) as i8;
    }
    (d, codes)
}

/// `sum(x * code)` in 8 lanes, and `sum(code * code)`, which is exact; the codes are those of `factor`.
#[inline(always)]
fn sums(x: &[f32; KV_GROUP], factor: f32) -> (f32, f32) {
    let (mut s, mut q) = ([0f32; 8], [0f32; 8]);
    for eight in x.as_chunks::<8>().0 {
        for i in 0..8 {
            let code = ((eight[i] * factor).clamp(-8.0, 7.0) + ROUND) - ROUND;
            s[i] = eight[i].mul_add(code, s[i]);
            q[i] += code * code;
        }
    }
    (tree8(s), tree8(q))
}

#[inline(always)]
fn tree8(mut lanes: [f32; 8]) -> f32 {
    for half in [4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

/// Scale and minimum (f16 bits), and codes of a group of asym4.
#[inline(always)]
pub fn asym4_group(x: &[f32; KV_GROUP]) -> (u16, u16, [u8; KV_GROUP]) {
    if magnitude(x).is_none() {
        return (0, 0, [0; KV_GROUP]);
    }
    let (mut low, mut high) = ([f32::INFINITY; 8], [f32::NEG_INFINITY; 8]);
    for eight in x.as_chunks::<8>().0 {
        for i in 0..8 {
            low[i] = low[i].min(eight[i]);
            high[i] = high[i].max(eight[i]);
        }
    }
    let low = low.into_iter().fold(f32::INFINITY, f32::min);
    let high = high.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let (d, m) = (half_bits((high - low) / 15.0), half_bits(low));
    let mut codes = [0u8; KV_GROUP];
    if d != 0 {
        let (inverse, m) = (1.0 / f16::from_bits(d).to_f32(), f16::from_bits(m).to_f32());
        for (code, &v) in codes.iter_mut().zip(x) {
            *code = round(((v - m) * inverse).clamp(0.0, 15.0)) as u8;
        }
    }
    (d, m, codes)
}
