//! Groups made from the layout's definition, read back one code at a time, against the products' specification.

use half::f16;
use hob_compute::act::{ActBlock, add_block, quantize_row};
use hob_quant::{Format, IntBlock, Minima};
use hob_testkit::guard::{Edge, GuardedBuf};
use hob_testkit::rng::Rng;

use super::*;
use crate::linear::act::TILE;

const FORMATS: [Format; 13] = [
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q8_0,
    Format::Q2K,
    Format::Q3K,
    Format::Q4K,
    Format::Q5K,
    Format::Q6K,
    Format::IQ4NL,
    Format::IQ4XS,
    Format::MXFP4,
];

/// A group of random codes and sub-scales, or of one byte all through, with small factors.
fn group(rng: &mut Rng, format: Format, blocks: usize, full: Option<u8>) -> Vec<u8> {
    let form = shape(format);
    let mut bytes = rng.bytes(blocks.div_ceil(form.blocks()) * form.bytes());
    if let Some(byte) = full {
        bytes.fill(byte);
    }
    let halves = match format {
        Format::MXFP4 => 0,
        Format::Q4_1 | Format::Q5_1 => 64,
        Format::Q4K | Format::Q5K | Format::Q2K => 32,
        Format::Q6K | Format::Q3K | Format::IQ4XS => 16,
        _ => 32,
    };
    for sup in bytes.chunks_exact_mut(form.bytes()) {
        for h in sup[..2 * halves].as_chunks_mut::<2>().0 {
            *h = f16::from_f32(rng.range_f32(-0.1, 0.1)).to_le_bytes();
        }
        if format == Format::MXFP4 {
            sup[..32].iter_mut().for_each(|e| *e = 120 + *e % 8);
            sup[0] = 0;
            sup[1] = 1;
        }
    }
    bytes
}

/// Block `b` of row `r` of a group, straight from the description of the layout.
fn int_block(format: Format, group: &[u8], r: usize, b: usize) -> IntBlock {
    let form = shape(format);
    let (sup, i) = (&group[b / form.blocks() * form.bytes()..][..form.bytes()], b % form.blocks());
    let f16_at = |at: usize| f16::from_le_bytes([sup[at], sup[at + 1]]).to_f32();
    let planes = &sup[form.header.bytes() + i * form.planes.bytes()..][..form.planes.bytes()];
    let nibble = |k: usize| planes[k % 16 / 4 * 64 + 4 * r + k % 4] >> (k / 16 * 4) & 15;
    let bit = |at: usize, k: usize| planes[at + 4 * r + k % 4] >> (k / 4) & 1;
    let two = |at: usize, k: usize| planes[at + 64 * (k / 16) + 4 * r + k % 4] >> (2 * (k % 16 / 4)) & 3;
    let triple = |k: usize| {
        let byte = |chunk: usize| planes[64 * chunk + 4 * r + k % 4];
        let bits = match k / 8 {
            3 => byte(0) >> 6 | byte(1) >> 6 << 2 | byte(2) >> 6 << 4,
            chunk => byte(chunk),
        };
        bits >> (3 * (k / 4 % 2)) & 7
    };
    let codes = std::array::from_fn(|k| match format {
        Format::Q4_0 => nibble(k) as i8 - 8,
        Format::Q4_1 | Format::Q4K => nibble(k) as i8,
        Format::IQ4NL | Format::IQ4XS => IQ4[usize::from(nibble(k))],
        Format::MXFP4 => E2M1[usize::from(nibble(k))] - 12,
        Format::Q5_0 => (nibble(k) | bit(256, k) << 4) as i8 - 16,
        Format::Q5_1 | Format::Q5K => (nibble(k) | bit(256, k) << 4) as i8,
        Format::Q6K => (nibble(k) | two(256, k) << 4) as i8 - 32,
        Format::Q3K => triple(k) as i8 - 4,
        Format::Q2K => two(0, k) as i8,
        _ => planes[k / 4 * 64 + 4 * r + k % 4] as i8,
    });
    let plain = IntBlock { codes, scales: [1; 2], d: f16_at(32 * i + 2 * r), minima: Minima::None };
    let d = f16_at(2 * r);
    match format {
        Format::Q4_1 | Format::Q5_1 => {
            IntBlock { minima: Minima::Block(f16_at(64 + 32 * i + 2 * r)), ..plain }
        }
        Format::MXFP4 => IntBlock { d: (f64::from(sup[16 * i + r]) - 128.0).exp2() as f32, ..plain },
        Format::Q4K | Format::Q5K => {
            let m = f16_at(32 + 2 * r) * f32::from(sup[64 + 128 + 16 * i + r]);
            IntBlock { d: d * f32::from(sup[64 + 16 * i + r]), minima: Minima::Block(-m), ..plain }
        }
        Format::IQ4XS => IntBlock { d: d * f32::from(sup[32 + 16 * i + r] as i8), ..plain },
        Format::Q6K | Format::Q3K => {
            let s = [0, 1].map(|h| i16::from(sup[32 + 32 * i + 2 * r + h] as i8));
            IntBlock { d, scales: s, ..plain }
        }
        Format::Q2K => {
            let s = [0, 1].map(|h| i16::from(sup[64 + 32 * i + 2 * r + h]));
            let minima = Minima::Halves { m: -f16_at(32 + 2 * r), scales: s.map(|s| s >> 4) };
            IntBlock { d, scales: s.map(|s| s & 15), minima, ..plain }
        }
        _ => plain,
    }
}

/// Activation rows as the kernels read them.
fn pack(rows: &[Vec<ActBlock>], blocks: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for tile in rows.chunks(TILE) {
        for b in 0..blocks {
            tile.iter().for_each(|r| out.extend(r[b].q.map(|q| q as u8)));
            tile.iter().for_each(|r| out.extend(r[b].d.to_le_bytes()));
            tile.iter().for_each(|r| out.extend(r[b].sums.map(i16::to_le_bytes).as_flattened()));
            tile.iter().for_each(|r| out.extend((r[b].d * r[b].sum() as f32).to_le_bytes()));
        }
    }
    out
}

/// Rows of activations: normal, or codes of +-127 all through.
fn activations(rng: &mut Rng, rows: usize, blocks: usize, full: bool) -> Vec<Vec<ActBlock>> {
    (0..rows)
        .map(|r| {
            let sign = if r % 2 == 0 { 1.0 } else { -1.0 };
            let x = rng.normal_vec(blocks * 32, 1.0);
            quantize_row(&if full { vec![sign; blocks * 32] } else { x })
        })
        .collect()
}

fn check(format: Format, blocks: usize, rows: usize, full: Option<u8>) {
    let label = format!("{format} blocks={blocks} rows={rows} full={full:?}");
    let mut rng = Rng::for_label(9, &label);
    let bytes = group(&mut rng, format, blocks, full);
    let x = activations(&mut rng, rows, blocks, full.is_some());
    let packed = pack(&x, blocks);
    // Reads or writes past either end of what a kernel is given are faults.
    for edge in [Edge::Start, Edge::End] {
        let weights = GuardedBuf::from_bytes(&bytes, edge);
        let tiles = GuardedBuf::from_bytes(&packed, edge);
        let mut y = GuardedBuf::new(rows * HEIGHT * 4, edge);
        let acts = Packed { bytes: tiles.as_bytes(), rows, blocks };
        // SAFETY: the callers checked for AVX2; lengths are those of the shapes.
        unsafe {
            let next = weights.as_bytes().as_ptr();
            unit(format, weights.as_bytes(), next, acts, &mut Scratch::new(), y.as_mut_f32());
        }
        for (r, x) in x.iter().enumerate() {
            for i in 0..HEIGHT {
                let want = x
                    .iter()
                    .enumerate()
                    .fold(0.0, |acc, (b, x)| add_block(&int_block(format, &bytes, i, b), x, acc));
                let got = y.as_f32()[r * HEIGHT + i];
                assert_eq!(got.to_bits(), want.to_bits(), "{label} row {r} output {i}: {got}, not {want}");
            }
        }
    }
}

#[test]
fn units_equal_the_specification_bit_for_bit() {
    if !crate::isa::Isa::Avx2.available() {
        return;
    }
    for format in FORMATS {
        let per = shape(format).blocks();
        for supers in [1, 2, 3, 9] {
            for rows in (1..=9).chain([12, 13, 15, 16, 33]) {
                check(format, supers * per, rows, None);
            }
        }
    }
}

/// Largest codes, sub-scales and activations, all of one sign: no sum may leave its 16 bits.
#[test]
fn full_codes_do_not_overflow() {
    if !crate::isa::Isa::Avx2.available() {
        return;
    }
    for format in FORMATS {
        for rows in [1, 2, 3, 4, 5, 13] {
            for byte in [0xff, 0x80, 0x7f] {
                check(format, 8, rows, Some(byte));
            }
        }
    }
}

/// Codes somebody else decoded, with negative and large sub-scales.
#[test]
fn decoded_codes_equal_the_specification() {
    if !crate::isa::Isa::Avx2.available() {
        return;
    }
    for (blocks, rows) in [(1, 1), (3, 2), (16, 3), (17, 4), (40, 5), (8, 33)] {
        decoded(blocks, rows);
    }
}

fn decoded(blocks: usize, rows: usize) {
    let mut rng = Rng::for_label(10, &format!("{blocks} {rows}"));
    let weights: Vec<[IntBlock; HEIGHT]> = (0..blocks)
        .map(|_| {
            std::array::from_fn(|_| IntBlock {
                codes: std::array::from_fn(|_| rng.below(128) as i8 - 64),
                scales: std::array::from_fn(|_| rng.below(511) as i16 - 255),
                d: rng.range_f32(-0.1, 0.1),
                minima: Minima::None,
            })
        })
        .collect();
    let x = activations(&mut rng, rows, blocks, false);
    let packed = GuardedBuf::from_bytes(&pack(&x, blocks), Edge::End);
    let acts = Packed { bytes: packed.as_bytes(), rows, blocks };
    let mut y = vec![f32::NAN; rows * HEIGHT];
    let mut scratch = Scratch::new();
    for start in (0..blocks).step_by(STRETCH) {
        let count = (blocks - start).min(STRETCH);
        for (to, from) in scratch.blocks.iter_mut().zip(&weights[start..start + count]) {
            for (r, w) in from.iter().enumerate() {
                for (k, c) in w.codes.iter().enumerate() {
                    to.codes[k / 4 * 64 + 4 * r + k % 4] = (c + 64) as u8;
                }
                to.d[r] = w.d;
                to.s = std::array::from_fn(|h| std::array::from_fn(|r| [from[r].scales[h]; 2]));
            }
        }
        // SAFETY: AVX2 is there; the lengths are those of the shapes.
        unsafe { tile_u7(&mut scratch, start, count, acts, &mut y) };
    }
    for (r, x) in x.iter().enumerate() {
        for i in 0..HEIGHT {
            let want = weights.iter().zip(x).fold(0.0, |acc, (w, x)| add_block(&w[i], x, acc));
            let got = y[r * HEIGHT + i];
            assert_eq!(got.to_bits(), want.to_bits(), "{blocks} {rows}: row {r} output {i}");
        }
    }
}
