//! Unpacking a packed group gives exactly the integer blocks of its rows.

use hob_quant::{Format, IntBlock, Minima, int_block};
use hob_testkit::rng::Rng;

use super::*;
use crate::linear::shape::Header;

const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The stored code of column `k` of row `r`, read by the words of the layout.
fn stored(planes: Planes, block: &[u8], r: usize, k: usize) -> u8 {
    let (t, j) = (k / 4, k % 4);
    let byte = |chunk: usize| block[64 * chunk + 4 * r + j];
    let nibble = || byte(t % 4) >> (4 * (t / 4)) & 15;
    let pair = |first: usize| byte(first + t / 4) >> (2 * (t % 4)) & 3;
    match planes {
        Planes::Bytes => byte(t),
        Planes::Nibbles => nibble(),
        Planes::NibblesBit => nibble() | (byte(4) >> t & 1) << 4,
        Planes::NibblesPair => nibble() | pair(4) << 4,
        Planes::Triples if t < 6 => byte(t / 2) >> (3 * (t % 2)) & 7,
        Planes::Triples => (byte(0) >> 6 | byte(1) >> 6 << 2 | byte(2) >> 6 << 4) >> (3 * (t % 2)) & 7,
        Planes::Pair => pair(0),
    }
}

fn unpacked(format: Format, group: &[u8], r: usize, block: usize, bias: bool) -> IntBlock {
    let shape = Shape::of(format).unwrap();
    let sup = &group[block / shape.blocks() * shape.bytes()..][..shape.bytes()];
    let b = block % shape.blocks();
    let codes = &sup[shape.header.bytes() + b * shape.planes.bytes()..][..shape.planes.bytes()];
    let half = |array: usize| {
        let at = (array * 16 + r) * 2;
        half::f16::from_bits(u16::from_le_bytes([sup[at], sup[at + 1]])).to_f32()
    };
    let byte = |base: usize, array: usize| sup[base + array * 16 + r];
    let pair = |base: usize| [sup[base + b * 32 + 2 * r], sup[base + b * 32 + 2 * r + 1]];
    let signed = |v: [u8; 2]| v.map(|s| i16::from(s as i8));
    let (d, scales, minima) = match shape.header {
        Header::Scales => (half(b), [1; 2], Minima::None),
        Header::ScalesMinima => (half(b), [1; 2], Minima::Block(half(2 + b))),
        Header::Exponents => (2f64.powi(i32::from(byte(0, b)) - 128) as f32, [1; 2], Minima::None),
        Header::Signed => (half(0) * f32::from(byte(32, b) as i8), [1; 2], Minima::None),
        Header::Minima => {
            let m = half(1) * f32::from(byte(64, 8 + b));
            (half(0) * f32::from(byte(64, b)), [1; 2], Minima::Block(-m))
        }
        Header::Pairs => (half(0), signed(pair(32)), Minima::None),
        Header::PairsMinima => {
            let scales = pair(64).map(|s| i16::from(s >> 4));
            (half(0), pair(64).map(|s| i16::from(s & 15)), Minima::Halves { m: -half(1), scales })
        }
    };
    let code = |k: usize| {
        let stored = stored(shape.planes, codes, r, k);
        match format {
            Format::IQ4NL | Format::IQ4XS => LEVELS[usize::from(stored)],
            Format::MXFP4 => E2M1[usize::from(stored)],
            Format::Q8_0 if bias => (stored ^ 0x80) as i8,
            _ => stored as i8 - shape.offset,
        }
    };
    IntBlock { codes: std::array::from_fn(code), scales, d, minima }
}

#[test]
fn unpacked_groups_are_the_integer_blocks_of_their_rows() {
    let mut rng = Rng::new(16);
    for &format in Format::ALL {
        let Some(shape) = Shape::of(format) else { continue };
        for (rows, blocks) in [(1, 1), (16, 2), (3, 5), (15, 8), (16, 3)] {
            let blocks = blocks * format.block_len() / 32;
            let row_bytes = format.row_bytes(32 * blocks).unwrap();
            let bytes = rng.bytes(rows * row_bytes);
            for bias in [false, true] {
                let mut packed = vec![0; shape.group_bytes(32 * blocks)];
                assert!(group(format, &bytes, row_bytes, &mut packed, bias));
                let mut plain = vec![0; packed.len()];
                any(format, &bytes, row_bytes, &mut plain, bias);
                assert_eq!(plain, packed, "{format}: the portable loops differ");
                for (r, row) in bytes.chunks_exact(row_bytes).enumerate() {
                    for b in 0..blocks {
                        let want = int_block(format, row, b).unwrap();
                        let got = unpacked(format, &packed, r, b, bias);
                        // Debug text, because random bytes make NaN scales.
                        assert_eq!(format!("{got:?}"), format!("{want:?}"), "{format} row {r} block {b}");
                    }
                }
            }
        }
    }
}

#[test]
fn absent_rows_and_blocks_stay_zero() {
    for (format, at) in [(Format::Q4_0, 64 + 4), (Format::Q8_0, 64 + 4), (Format::Q4K, 320 + 4)] {
        let row = vec![0xff; format.block_bytes()];
        let shape = Shape::of(format).unwrap();
        let mut packed = vec![0; shape.bytes()];
        assert!(group(format, &row, row.len(), &mut packed, true));
        assert!(packed[at..at + 60].iter().all(|&b| b == 0), "{format}: other rows");
        if shape.blocks() == 2 {
            assert!(packed[shape.header.bytes() + shape.planes.bytes()..].iter().all(|&b| b == 0));
        }
    }
    assert!(!group(Format::F32, &[0; 4], 4, &mut [], false));
}
