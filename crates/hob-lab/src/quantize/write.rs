//! The work: reads rows, decodes, encodes on all threads, writes in order, and keeps the figures. Memory is a few tens of
//! MiB whatever the model's size. It must not know why a tensor gets its type.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use hob_files::gguf_write::Body;
use hob_files::store::{self, AtomicFile};
use hob_files::{FileError, TensorInfo};
use hob_quant::{Format, decode_row, quantize_row};
use serde::Serialize;

use super::measure::{Squares, dither};
use super::{Job, QuantizeError, Step, Watch};
use crate::synth::mix;

/// Weights that are read, encoded and written at once.
const BATCH: usize = 4 << 20;
/// Weights that a thread takes at a time: small enough that one on a busy core does not keep the others waiting.
const SHARE: usize = 64 << 10;
/// Bytes copied at once where nothing changes.
const PIECE: usize = 4 << 20;
/// Space left free for the rest of the system.
const MARGIN: u64 = 64 << 20;

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Types by name, the largest first.
    pub types: Vec<Kind>,
    pub weights: u64,
    /// Of all tensors.
    pub bytes: u64,
    pub file_bytes: u64,
    pub source_bytes: u64,
    pub bits_per_weight: f64,
    /// Squared error of what was encoded, relative to its squares.
    pub error: f64,
    pub seconds: f64,
}

/// Tensors of one type.
#[derive(Clone, Debug, Serialize)]
pub struct Kind {
    pub format: String,
    pub tensors: u64,
    /// Of these, tensors that were copied.
    pub copied: u64,
    pub weights: u64,
    pub bytes: u64,
    pub bits_per_weight: f64,
    /// Squared error relative to the weights' squares; none where nothing was encoded.
    pub error: Option<f64>,
}

impl Job<'_> {
    /// Writes the file; an earlier one of that name stays until the new one is whole.
    ///
    /// # Errors
    /// Weights that are no numbers or beyond a type's range, by tensor and row; a full disk; what reading and writing say;
    /// [`QuantizeError::Cancelled`]. Nothing is left behind.
    pub fn write(&self, path: &Path, watch: &mut Watch<'_>) -> Result<Report, QuantizeError> {
        let start = Instant::now();
        let real = |path: &Path| std::fs::canonicalize(path).ok();
        if real(path).is_some_and(|out| self.file.shard_paths().any(|shard| real(shard) == Some(out.clone())))
        {
            return Err(QuantizeError::Itself { path: path.to_path_buf() });
        }
        let file_bytes = self.file_bytes()?;
        store::ensure_space(path, file_bytes + MARGIN)?;
        let mut body = self.writer.begin(AtomicFile::create(path)?)?;
        let mut kinds: BTreeMap<&'static str, (Kind, Squares)> = BTreeMap::new();
        let (mut done, mut all) = (0, Squares::default());
        let total = self.steps.iter().map(|s| s.tensor.bytes).sum();
        for step in &self.steps {
            let mut moved = |bytes: u64| {
                done += bytes;
                (watch.progress)(done, total);
            };
            let lost = match step.changes() {
                true => self.convert(step, &mut body, watch.cancel, &mut moved)?,
                false => self.copy(step, &mut body, watch.cancel, &mut moved)?,
            };
            body.end_tensor()?;
            if self.file.crowds_memory() {
                self.file.drop_tensor_cache(&step.tensor);
            }
            let (kind, squares) =
                kinds.entry(step.to.name()).or_insert_with(|| (Kind::of(step.to), Squares::default()));
            kind.add(step);
            squares.join(lost);
            all.join(lost);
        }
        body.finish()?.commit()?;
        let (bytes, weights) = super::totals(&self.steps);
        let mut types: Vec<Kind> = kinds.into_values().map(|(kind, lost)| kind.finished(lost)).collect();
        types.sort_by_key(|kind| std::cmp::Reverse(kind.bytes));
        Ok(Report {
            types,
            weights,
            bytes,
            file_bytes,
            source_bytes: self.file.total_bytes(),
            bits_per_weight: bytes as f64 * 8.0 / weights as f64,
            error: all.relative(),
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    fn copy(
        &self,
        step: &Step,
        body: &mut Body<'_, AtomicFile>,
        cancel: &AtomicBool,
        moved: &mut dyn FnMut(u64),
    ) -> Result<Squares, QuantizeError> {
        let bytes = step.tensor.bytes;
        let mut piece = vec![0; bytes.min(PIECE as u64) as usize];
        let mut offset = 0;
        while offset < bytes {
            if cancel.load(Ordering::Relaxed) {
                return Err(QuantizeError::Cancelled);
            }
            let piece = &mut piece[..(bytes - offset).min(PIECE as u64) as usize];
            self.file.read_at(&step.tensor, offset, piece).map_err(reading)?;
            body.write_all(piece).map_err(writing)?;
            offset += piece.len() as u64;
            moved(piece.len() as u64);
        }
        Ok(Squares::default())
    }

    fn convert(
        &self,
        step: &Step,
        body: &mut Body<'_, AtomicFile>,
        cancel: &AtomicBool,
        moved: &mut dyn FnMut(u64),
    ) -> Result<Squares, QuantizeError> {
        let cols = step.cols();
        let rows = step.weights() as usize / cols;
        let widths = (step.tensor.format.row_bytes(cols), step.to.row_bytes(cols));
        // Checked with the tensor tables of both files.
        let (Some(from), Some(to)) = widths else { return Err(QuantizeError::Cancelled) };
        let most = (BATCH / cols).clamp(1, rows);
        let (mut raw, mut out) = (vec![0; most * from], vec![0; most * to]);
        let mut lost = Squares::default();
        let mut row = 0;
        while row < rows {
            if cancel.load(Ordering::Relaxed) {
                return Err(QuantizeError::Cancelled);
            }
            let count = most.min(rows - row);
            let (raw, out) = (&mut raw[..count * from], &mut out[..count * to]);
            self.file.read_at(&step.tensor, (row * from) as u64, raw).map_err(reading)?;
            let batch = Batch { step, cols, first: row, widths: (from, to), dither: self.dither };
            lost.join(batch.encode(raw, out, self.threads)?);
            body.write_all(out).map_err(writing)?;
            row += count;
            moved(raw.len() as u64);
        }
        Ok(lost)
    }
}

fn reading(source: std::io::Error) -> QuantizeError {
    FileError::Io { action: "read tensor data", source }.into()
}

/// A full disk has been explained already, with its numbers.
fn writing(source: std::io::Error) -> QuantizeError {
    match source.downcast::<FileError>() {
        Ok(explained) => explained.into(),
        Err(source) => FileError::Io { action: "write tensor data", source }.into(),
    }
}

/// Some rows of one tensor.
struct Batch<'a> {
    step: &'a Step,
    cols: usize,
    /// Number of the first row.
    first: usize,
    /// Bytes of a row before and after.
    widths: (usize, usize),
    dither: Option<u64>,
}

impl Batch<'_> {
    fn encode(&self, raw: &[u8], out: &mut [u8], threads: usize) -> Result<Squares, QuantizeError> {
        let rows = (SHARE / self.cols).max(1);
        let shares = raw.chunks(rows * self.widths.0).zip(out.chunks_mut(rows * self.widths.1)).enumerate();
        let shares = Mutex::new(shares);
        let take = || shares.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
        let work = || -> Result<Vec<(usize, Squares)>, QuantizeError> {
            let mut lost = Vec::new();
            while let Some((i, (raw, out))) = take() {
                lost.push((i, self.encode_share(i * rows, raw, out)?));
            }
            Ok(lost)
        };
        let found: Vec<Result<Vec<(usize, Squares)>, QuantizeError>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let own = work();
            let joined = workers.into_iter().map(|w| w.join().unwrap_or(Err(QuantizeError::Cancelled)));
            std::iter::once(own).chain(joined).collect()
        });
        let mut lost: Vec<(usize, Squares)> = found.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
        // In the order of rows, so that the figures do not depend on threads.
        lost.sort_by_key(|(i, _)| *i);
        Ok(lost.into_iter().fold(Squares::default(), |mut all, (_, lost)| {
            all.join(lost);
            all
        }))
    }

    fn encode_share(&self, first: usize, raw: &[u8], out: &mut [u8]) -> Result<Squares, QuantizeError> {
        let TensorInfo { name, format: from, .. } = &self.step.tensor;
        let to: Format = self.step.to;
        let (mut x, mut back) = (vec![0f32; self.cols], vec![0f32; self.cols]);
        let mut lost = Squares::default();
        let rows = raw.chunks_exact(self.widths.0).zip(out.chunks_exact_mut(self.widths.1));
        for (i, (raw, out)) in rows.enumerate() {
            let row = self.first + first + i;
            let here = |source| QuantizeError::Weights { tensor: name.clone(), row: row as u64, source };
            decode_row(*from, raw, &mut x).map_err(here)?;
            if let Some(seed) = self.dither {
                dither(*from, raw, &mut x, seed ^ name_seed(name), (row * self.cols) as u64);
            }
            quantize_row(to, &x, None, out).map_err(here)?;
            decode_row(to, out, &mut back).map_err(here)?;
            lost.add(&x, &back);
        }
        Ok(lost)
    }
}

fn name_seed(name: &str) -> u64 {
    mix(name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    }))
}

impl Kind {
    fn of(format: Format) -> Self {
        let (format, bits_per_weight) = (format.name().to_string(), format.bits_per_weight());
        Self { format, tensors: 0, copied: 0, weights: 0, bytes: 0, bits_per_weight, error: None }
    }

    fn add(&mut self, step: &Step) {
        self.tensors += 1;
        self.copied += u64::from(!step.changes());
        self.weights += step.weights();
        self.bytes += step.bytes();
    }

    fn finished(self, lost: Squares) -> Self {
        let error = (self.copied < self.tensors).then(|| lost.relative());
        Self { error, ..self }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<8} {:>7} {:>15} {:>15} {:>7} {:>10}",
            "type", "tensors", "weights", "bytes", "bpw", "error"
        )?;
        for kind in &self.types {
            let error = kind.error.map_or_else(|| "as it was".to_string(), |e| format!("{e:.3e}"));
            let Kind { format, tensors, weights, bytes, bits_per_weight, .. } = kind;
            writeln!(
                f,
                "{format:<8} {tensors:>7} {weights:>15} {bytes:>15} {bits_per_weight:>7.4} {error:>10}"
            )?;
        }
        let tensors: u64 = self.types.iter().map(|kind| kind.tensors).sum();
        let Self { weights, bytes, bits_per_weight, error, .. } = self;
        writeln!(
            f,
            "{:<8} {tensors:>7} {weights:>15} {bytes:>15} {bits_per_weight:>7.4} {error:>10.3e}",
            "all"
        )
    }
}
