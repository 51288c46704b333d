//! What each type would lose on each matrix, from samples of its rows, and the noise that undoes a type's roundings.
//! It must not know how choices are made of it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use hob_files::{FileError, ModelFile, TensorInfo};
use hob_quant::{Format, INT_BLOCK, decode_row, int_block, quantize_row};

use super::{QuantizeError, Watch, bytes_as, roles};
use crate::synth::{Slot, mix};

/// Types that a budget may choose, for rows of whole superblocks and of whole blocks of 32.
const WIDE: [Format; 7] =
    [Format::Q2K, Format::Q3K, Format::IQ4XS, Format::Q4K, Format::Q5K, Format::Q6K, Format::Q8_0];
const NARROW: [Format; 5] = [Format::MXFP4, Format::IQ4NL, Format::Q5_0, Format::Q5_1, Format::Q8_0];
/// Weights of a matrix that are looked at: so many tell a type's error to about a percent.
const SAMPLE: usize = 1 << 16;

/// One type on one matrix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub format: Format,
    pub bytes: u64,
    /// Squared error relative to the weights' own squares.
    pub error: f64,
}

/// All types on one matrix.
type Found = Result<Vec<Measured>, QuantizeError>;

/// Measures every matrix; an empty list for a tensor that stays as it is.
pub(super) fn all(
    file: &ModelFile,
    slots: &[Slot],
    pinned: &(dyn Fn(&Slot) -> Option<Format> + Sync),
    threads: usize,
    watch: &mut Watch<'_>,
) -> Result<Vec<Vec<Measured>>, QuantizeError> {
    let next = AtomicUsize::new(0);
    let found: Vec<Mutex<Option<Found>>> = slots.iter().map(|_| Mutex::new(None)).collect();
    let total = slots.len();
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let (Some(slot), false) = (slots.get(i), watch.cancel.load(Ordering::Relaxed)) else { return };
            let result = one(file, slot, &file.tensors()[i], pinned(slot));
            *found[i].lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(result);
        }
    };
    let progress = &mut *watch.progress;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        while workers.iter().any(|w| !w.is_finished()) {
            progress(next.load(Ordering::Relaxed).min(total) as u64, total as u64);
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    });
    let unlocked =
        found.into_iter().map(|cell| cell.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner));
    unlocked.map(|result| result.unwrap_or(Err(QuantizeError::Cancelled))).collect()
}

fn one(
    file: &ModelFile,
    slot: &Slot,
    tensor: &TensorInfo,
    pinned: Option<Format>,
) -> Result<Vec<Measured>, QuantizeError> {
    if !roles::is_quantized(slot.role) {
        return Ok(Vec::new());
    }
    let cols = tensor.shape.last().copied().unwrap_or(1);
    let x = sample(file, tensor, cols)?;
    let choices: Vec<Format> = match pinned {
        Some(format) => vec![roles::fitting(format, slot).0],
        None if cols.is_multiple_of(256) => WIDE.to_vec(),
        None if cols.is_multiple_of(32) => NARROW.to_vec(),
        None => vec![Format::F16],
    };
    // What it is now costs nothing but its bytes.
    let mut found = Vec::new();
    if pinned.is_none() {
        found.push(Measured { format: tensor.format, bytes: bytes_as(tensor, tensor.format), error: 0.0 });
    }
    for format in choices.into_iter().filter(|f| pinned.is_some() || *f != tensor.format) {
        let error = if format == tensor.format { 0.0 } else { loss(format, &x, cols, tensor)? };
        found.push(Measured { format, bytes: bytes_as(tensor, format), error });
    }
    Ok(found)
}

/// The weights of rows spread evenly over a tensor.
fn sample(file: &ModelFile, tensor: &TensorInfo, cols: usize) -> Result<Vec<f32>, QuantizeError> {
    let format = tensor.format;
    let mut raw = vec![0; format.row_bytes(cols).unwrap_or(0)];
    let rows = rows(tensor, cols);
    let count = (SAMPLE / cols).clamp(1, rows);
    let mut x = vec![0.0; count * cols];
    for (i, x) in x.chunks_exact_mut(cols).enumerate() {
        let row = i * rows / count;
        file.read_at(tensor, (row * raw.len()) as u64, &mut raw)
            .map_err(|source| FileError::Io { action: "read tensor data", source })?;
        decode_row(format, &raw, x).map_err(|source| weights(tensor, row, source))?;
    }
    Ok(x)
}

fn rows(tensor: &TensorInfo, cols: usize) -> usize {
    tensor.shape.iter().product::<usize>() / cols
}

fn weights(tensor: &TensorInfo, row: usize, source: hob_quant::QuantError) -> QuantizeError {
    QuantizeError::Weights { tensor: tensor.name.clone(), row: row as u64, source }
}

/// What `format` loses on a sample.
fn loss(format: Format, x: &[f32], cols: usize, tensor: &TensorInfo) -> Result<f64, QuantizeError> {
    let (rows, count) = (rows(tensor, cols), x.len() / cols);
    let mut bytes = vec![0; format.row_bytes(cols).unwrap_or(0)];
    let mut back = vec![0.0; cols];
    let mut squares = Squares::default();
    for (i, x) in x.chunks_exact(cols).enumerate() {
        let row = i * rows / count;
        quantize_row(format, x, None, &mut bytes).map_err(|source| weights(tensor, row, source))?;
        decode_row(format, &bytes, &mut back).map_err(|source| weights(tensor, row, source))?;
        squares.add(x, &back);
    }
    Ok(squares.relative())
}

/// Sums of squares of weights and of what they lost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Squares {
    pub lost: f64,
    pub own: f64,
}

impl Squares {
    pub(super) fn add(&mut self, x: &[f32], back: &[f32]) {
        for (x, back) in x.iter().zip(back) {
            let (x, back) = (f64::from(*x), f64::from(*back));
            self.lost += (x - back) * (x - back);
            self.own += x * x;
        }
    }

    pub(super) fn join(&mut self, other: Squares) {
        self.lost += other.lost;
        self.own += other.own;
    }

    /// Zero where there was nothing to lose.
    pub(super) fn relative(&self) -> f64 {
        if self.own > 0.0 { self.lost / self.own } else { 0.0 }
    }
}

/// Whether the levels of a block of `format` are a whole step apart.
pub(super) fn is_even(format: Format) -> bool {
    use Format::{Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    matches!(format, Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Q2K | Q3K | Q4K | Q5K | Q6K)
}

/// Moves each weight of a decoded row by up to half a step of its block, evenly distributed; `first` is the number of the
/// row's first weight in its tensor, whose name is part of the stream's seed.
pub(super) fn dither(format: Format, raw: &[u8], x: &mut [f32], seed: u64, first: u64) {
    for (b, x) in x.chunks_mut(INT_BLOCK).enumerate() {
        let Some(block) = int_block(format, raw, b) else { return };
        for (k, x) in x.iter_mut().enumerate() {
            let step = (block.d * f32::from(block.scales[k / 16])).abs();
            let bits = mix(seed ^ mix(first + (b * INT_BLOCK + k) as u64));
            let even = (bits >> 40) as f32 / (1 << 24) as f32 - 0.5;
            *x += step * even;
        }
    }
}
