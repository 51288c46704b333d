//! What the examples of this crate share: weights to measure with, and lists on the command line. It must not know what is
//! measured.

// Every example is a crate of its own, and takes what it needs.
#![allow(dead_code)]

use std::sync::Arc;

use hob_compute::{ByteSource, Compute, ComputeError, Result, Weight, WeightKind, WeightSpec};
use hob_gpu::Gpu;
use hob_quant::Format;

/// The adapter that `HOB_TEST_ADAPTER` names, or the first.
pub fn adapter() -> usize {
    std::env::var("HOB_TEST_ADAPTER").ok().and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// Any codes under scales that are small numbers.
struct Random(u64);

impl ByteSource for Random {
    fn len(&self) -> u64 {
        self.0
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let mut state = (offset + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        for bytes in buf.chunks_mut(4) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Bits 14, 13 and 6, 5 clear: an f16 here is below 2^-7.
            let word = (state >> 32) as u32 & 0x9F9F_9F9F;
            bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
        }
        Ok(())
    }
}

/// One number, in f32.
struct Same(f32, u64);

impl ByteSource for Same {
    fn len(&self) -> u64 {
        self.1
    }

    fn read_at(&self, _offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        buf.as_chunks_mut::<4>().0.iter_mut().for_each(|b| *b = self.0.to_le_bytes());
        Ok(())
    }
}

/// A weight of random codes, and its bytes.
///
/// # Errors
/// Rows that are not whole blocks, or what the device says.
pub fn noise(
    gpu: &mut Gpu,
    kind: WeightKind,
    format: Format,
    rows: usize,
    cols: usize,
) -> Result<(Weight, u64)> {
    let spec = WeightSpec { name: "w".into(), kind, format, rows, cols };
    let whole = || ComputeError::shape("load", "whole blocks", cols);
    let bytes = spec.file_bytes().ok_or_else(whole)?;
    Ok((gpu.load(&spec, Arc::new(Random(bytes)))?, bytes))
}

/// A matrix of random codes.
///
/// # Errors
/// See [`noise`].
pub fn matrix(gpu: &mut Gpu, format: Format, rows: usize, cols: usize) -> Result<Weight> {
    noise(gpu, WeightKind::Matrix, format, rows, cols).map(|(weight, _)| weight)
}

/// A vector of one value.
///
/// # Errors
/// What the device says.
pub fn vector(gpu: &mut Gpu, value: f32, cols: usize) -> Result<Weight> {
    let (kind, format) = (WeightKind::Vector, Format::F32);
    let spec = WeightSpec { name: "vector".into(), kind, format, rows: 1, cols };
    gpu.load(&spec, Arc::new(Same(value, 4 * cols as u64)))
}
