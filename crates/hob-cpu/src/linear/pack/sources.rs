//! How each file format yields its codes and scale bytes; layouts as documented in `hob-quant`'s files. It must not know
//! planes.

use hob_quant::Format;

use super::Source;
use crate::linear::shape::LANES;

const LOW_NIBBLES: u32 = 0x0f0f_0f0f;
const PAIRS: u32 = 0x0303_0303;
const BITS: u32 = 0x0101_0101;

/// The `N` bytes from `at` on: one check of bounds for all of them.
#[inline(always)]
fn bytes<const N: usize>(b: &[u8], at: usize) -> &[u8; N] {
    b[at..].first_chunk().expect("blocks are as long as their format says")
}

/// The little-endian dword at byte `at`.
#[inline(always)]
fn dword(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes(b, at))
}

/// The eight dwords from `at` on.
#[inline(always)]
fn dwords(b: &[u8], at: usize) -> [u32; 8] {
    let b = bytes::<32>(b, at).as_chunks::<4>().0;
    std::array::from_fn(|t| u32::from_le_bytes(b[t]))
}

/// `a | b << shift`, dword by dword.
#[inline(always)]
fn merged(a: [u32; 8], b: [u32; 8], shift: u32) -> [u32; 8] {
    std::array::from_fn(|t| a[t] | b[t] << shift)
}

/// The fields under `mask` after a shift to the right.
#[inline(always)]
fn fields(v: [u32; 8], shift: usize, mask: u32) -> [u32; 8] {
    v.map(|v| v >> shift & mask)
}

/// 16 bytes of nibbles: low ones are codes 0..16, high ones 16..32.
#[inline(always)]
fn nibbles(b: &[u8], at: usize) -> [u32; 8] {
    let b = bytes::<16>(b, at).as_chunks::<4>().0;
    std::array::from_fn(|t| u32::from_le_bytes(b[t % 4]) >> (4 * (t / 4)) & LOW_NIBBLES)
}

/// [`nibbles`] and the fifth bits, bit i of a dword for code i.
#[inline(always)]
fn five_bits(b: &[u8], at: usize, bits: u32) -> [u32; 8] {
    let mut codes = nibbles(b, at);
    for (t, code) in codes.iter_mut().enumerate() {
        // The product puts bit j of a nibble to bit 0 of byte j; its four terms do not overlap.
        *code |= ((bits >> (4 * t) & 15).wrapping_mul(0x0020_4081) & BITS) << 4;
    }
    codes
}

/// Copies the `N` bytes at `from` to entry `r` of array number `array`, arrays being of 16 entries of `N` bytes from
/// `base` on.
#[inline(always)]
fn entry<const N: usize>(head: &mut [u8], base: usize, array: usize, r: usize, from: [u8; N]) {
    let at = base + (array * LANES + r % LANES) * N;
    head[at..at + N].copy_from_slice(&from);
}

macro_rules! source {
    ($name:ident, $format:ident, $codes:expr, $header:expr) => {
        pub(super) struct $name;
        impl Source for $name {
            const FORMAT: Format = Format::$format;
            #[inline(always)]
            fn codes(b: &[u8], s: usize) -> [u32; 8] {
                let codes: fn(&[u8], usize) -> [u32; 8] = $codes;
                codes(b, s)
            }
            #[inline(always)]
            fn header(b: &[u8], half: usize, r: usize, head: &mut [u8]) {
                let header: fn(&[u8], usize, usize, &mut [u8]) = $header;
                header(b, half, r, head);
            }
        }
    };
}

/// An f16 scale at byte 0.
#[inline(always)]
fn scale(b: &[u8], half: usize, r: usize, head: &mut [u8]) {
    entry(head, 0, half, r, [b[0], b[1]]);
}

/// An f16 scale and an f16 minimum.
#[inline(always)]
fn scale_and_minimum(b: &[u8], half: usize, r: usize, head: &mut [u8]) {
    entry(head, 0, half, r, [b[0], b[1]]);
    entry(head, 0, 2 + half, r, [b[2], b[3]]);
}

source!(Q4_0, Q4_0, |b, _| nibbles(b, 2), scale);
source!(Q4_1, Q4_1, |b, _| nibbles(b, 4), scale_and_minimum);
source!(Q5_0, Q5_0, |b, _| five_bits(b, 6, dword(b, 2)), scale);
source!(Q5_1, Q5_1, |b, _| five_bits(b, 8, dword(b, 4)), scale_and_minimum);
source!(Q8_0, Q8_0, |b, _| dwords(b, 2), scale);
source!(Iq4Nl, IQ4NL, |b, _| nibbles(b, 2), scale);
source!(Mxfp4, MXFP4, |b, _| nibbles(b, 1), |b, half, r, head| entry(head, 0, half, r, [b[0]]));

/// 6-bit scales and minima of Q4_K and Q5_K, unpacked to bytes.
#[inline(always)]
fn scales_and_minima(b: &[u8], _: usize, r: usize, head: &mut [u8]) {
    entry(head, 0, 0, r, [b[0], b[1]]);
    entry(head, 0, 1, r, [b[2], b[3]]);
    let (low, mid, high) = (dword(b, 4), dword(b, 8), dword(b, 12));
    let top = |v: u32| v >> 2 & 0x3030_3030;
    let scales = [low & 0x3f3f_3f3f, high & LOW_NIBBLES | top(low)];
    let minima = [mid & 0x3f3f_3f3f, high >> 4 & LOW_NIBBLES | top(mid)];
    for s in 0..8 {
        entry(head, 4 * LANES, s, r, [scales[s / 4].to_le_bytes()[s % 4]]);
        entry(head, 12 * LANES, s, r, [minima[s / 4].to_le_bytes()[s % 4]]);
    }
}

source!(Q4K, Q4K, |b, s| fields(dwords(b, 16 + 32 * (s / 2)), 4 * (s % 2), LOW_NIBBLES), scales_and_minima);
source!(
    Q5K,
    Q5K,
    |b, s| {
        let low = fields(dwords(b, 48 + 32 * (s / 2)), 4 * (s % 2), LOW_NIBBLES);
        merged(low, fields(dwords(b, 16), s, BITS), 4)
    },
    scales_and_minima
);
source!(
    Q6K,
    Q6K,
    |b, s| {
        let low = fields(dwords(b, 64 * (s / 4) + 32 * (s % 2)), 4 * (s / 2 % 2), LOW_NIBBLES);
        merged(low, fields(dwords(b, 128 + 32 * (s / 4)), 2 * (s % 4), PAIRS), 4)
    },
    |b, _, r, head| {
        entry(head, 0, 0, r, [b[208], b[209]]);
        let scales = bytes::<16>(b, 192).as_chunks::<2>().0;
        (0..8).for_each(|s| entry(head, 2 * LANES, s, r, scales[s]));
    }
);
source!(
    Q3K,
    Q3K,
    |b, s| {
        let low = fields(dwords(b, 32 + 32 * (s / 4)), 2 * (s % 4), PAIRS);
        merged(low, fields(dwords(b, 0), s, BITS), 2)
    },
    |b, _, r, head| {
        entry(head, 0, 0, r, [b[108], b[109]]);
        // Sixteen 6-bit scales: four low nibbles of each of four dwords, their top bits in the third packed dword.
        let (first, second, top) = (dword(b, 96), dword(b, 100), dword(b, 104));
        for (i, low) in [first, second, first >> 4, second >> 4].into_iter().enumerate() {
            let scales = low & LOW_NIBBLES | (top >> (2 * i) & PAIRS) << 4;
            let scales = scales.to_le_bytes().map(|s| s.wrapping_sub(32));
            entry(head, 2 * LANES, 2 * i, r, [scales[0], scales[1]]);
            entry(head, 2 * LANES, 2 * i + 1, r, [scales[2], scales[3]]);
        }
    }
);
source!(Q2K, Q2K, |b, s| fields(dwords(b, 16 + 32 * (s / 4)), 2 * (s % 4), PAIRS), |b, _, r, head| {
    entry(head, 0, 0, r, [b[80], b[81]]);
    entry(head, 0, 1, r, [b[82], b[83]]);
    let scales = bytes::<16>(b, 0).as_chunks::<2>().0;
    (0..8).for_each(|s| entry(head, 4 * LANES, s, r, scales[s]));
});
source!(Iq4Xs, IQ4XS, |b, s| nibbles(b, 8 + 16 * s), |b, _, r, head| {
    entry(head, 0, 0, r, [b[0], b[1]]);
    let high = u16::from_le_bytes([b[2], b[3]]);
    for s in 0..8 {
        let scale = b[4 + s / 2] >> (4 * (s % 2)) & 15 | ((high >> (2 * s) & 3) as u8) << 4;
        entry(head, 2 * LANES, s, r, [scale.wrapping_sub(32)]);
    }
});
