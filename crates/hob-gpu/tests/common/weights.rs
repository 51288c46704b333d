//! Weights of every format for tests.

use std::sync::Arc;

use hob_compute::{Compute, Weight, WeightKind, WeightSpec};
use hob_quant::{Format, encode_row};

use super::common::values;

/// Formats that stay packed on a GPU; the others are decoded to f16 and multiply f32 activations, so that the oracle for
/// them is the exact one.
#[allow(dead_code, reason = "some tests choose formats of their own")]
pub const PACKED: [Format; 16] = [
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
    Format::F16,
    Format::BF16,
    Format::F32,
];

/// Where a format without an encoder keeps its f16 numbers.
fn scales_at(format: Format) -> &'static [usize] {
    match format {
        Format::Q4K | Format::Q5K => &[0, 2],
        Format::Q2K => &[80, 82],
        Format::Q3K => &[108],
        Format::Q6K => &[208],
        Format::TQ1_0 => &[52],
        Format::TQ2_0 => &[64],
        _ => &[0],
    }
}

/// Rows of a format: encoded values, or random codes under sound scales.
pub fn rows(format: Format, seed: u64, count: usize, cols: usize) -> Vec<u8> {
    let x = values(seed, count * cols);
    let mut bytes = vec![0u8; count * format.row_bytes(cols).unwrap()];
    if format.can_encode() {
        encode_row(format, &x, &mut bytes).unwrap();
        return bytes;
    }
    let random = values(seed + 1, bytes.len() + 1);
    for (i, block) in bytes.chunks_mut(format.block_bytes()).enumerate() {
        for (k, b) in block.iter_mut().enumerate() {
            *b = (random[(i * 199 + k) % random.len()].to_bits() >> 9) as u8;
        }
        for &at in scales_at(format) {
            // 0.0005 to 0.002
            let scale = half::f16::from_f32(0.001 * (1.25 + x[i % x.len()].clamp(-0.75, 0.75)));
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
        if format == Format::MXFP4 {
            block[0] = 120 + (i % 7) as u8;
        }
    }
    bytes
}

pub fn load(dev: &mut dyn Compute, format: Format, seed: u64, count: usize, cols: usize) -> Weight {
    let spec = WeightSpec { name: "w".into(), kind: WeightKind::Matrix, format, rows: count, cols };
    dev.load(&spec, Arc::new(rows(format, seed, count, cols))).unwrap()
}

pub fn vector(dev: &mut dyn Compute, seed: u64, cols: usize) -> Weight {
    let bytes: Vec<u8> = values(seed, cols).iter().flat_map(|v| v.to_le_bytes()).collect();
    let (kind, format) = (WeightKind::Vector, Format::F32);
    let spec = WeightSpec { name: "b".into(), kind, format, rows: 1, cols };
    dev.load(&spec, Arc::new(bytes)).unwrap()
}
