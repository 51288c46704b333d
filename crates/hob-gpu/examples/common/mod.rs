//! What the examples of this crate share: weights to measure with, and lists on the command line. It must not know what is
//! measured.

// Every example is a crate of its own, and takes what it needs.
#![allow(dead_code)]

use std::sync::{Arc, OnceLock};

use hob_compute::{ByteSource, Compute, ComputeError, Result, Weight, WeightKind, WeightSpec};
use hob_gpu::Gpu;
use hob_quant::Format;

/// The adapter that `HOB_TEST_ADAPTER` names, or the first.
pub fn adapter() -> usize {
    std::env::var("HOB_TEST_ADAPTER").ok().and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// Words of [`Random`]; a prime, so that rows begin anywhere in the pattern.
const PATTERN_WORDS: usize = 1_048_573;

/// Any codes under scales that are small numbers.
struct Random(u64);

impl ByteSource for Random {
    fn len(&self) -> u64 {
        self.0
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        // A pattern, again and again: making as many bytes as a large model has takes a minute.
        static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
        let pattern = PATTERN.get_or_init(|| {
            let mut state = 0x9E37_79B9_7F4A_7C15u64;
            let word = |_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                // Bits 14, 13 and 6, 5 clear: an f16 here is below 2^-7.
                ((state >> 32) as u32 & 0x9F9F_9F9F).to_le_bytes()
            };
            (0..PATTERN_WORDS).flat_map(word).collect()
        });
        let mut at = offset as usize % pattern.len();
        let mut rest = buf;
        while !rest.is_empty() {
            let count = rest.len().min(pattern.len() - at);
            let (here, later) = rest.split_at_mut(count);
            here.copy_from_slice(&pattern[at..at + count]);
            (rest, at) = (later, 0);
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
