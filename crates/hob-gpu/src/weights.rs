//! Weights on the device: matrices, tables and experts packed for the kernels, vectors as f32. It must not know verbs.

use std::sync::Arc;

use hob_compute::check::Shape;
use hob_compute::{ByteSource, ComputeError, Result, WeightKind, WeightSpec};
use hob_quant::Format;

use crate::format;
use crate::stream::{BufferId, Stream};

/// Bytes of packed rows that are on their way at once.
const PIECE_BYTES: usize = 32 << 20;

/// Consecutive rows of a weight in one buffer: no binding shows more than a buffer's limit.
pub(crate) struct Part {
    pub buffer: BufferId,
    pub first_row: usize,
    pub rows: usize,
}

/// A loaded weight.
pub(crate) struct Loaded {
    pub spec: WeightSpec,
    /// What the buffers hold: a format with an `unpack` piece of [`format`]; F32 of a vector.
    pub format: Format,
    /// Matrices, tables, experts: packed rows. No part cuts an expert. A vector: one part of f32.
    pub parts: Vec<Part>,
    pub bytes: u64,
    /// Of a norm's weight: its output was seen to have readers that want finished rows.
    pub read_plain: bool,
}

impl Loaded {
    /// Reads a weight through `source` onto the device.
    ///
    /// # Errors
    /// A spec that does not fit its source, what the source says, or no room.
    pub fn load(stream: &mut Stream, spec: &WeightSpec, source: Arc<dyn ByteSource>) -> Result<Loaded> {
        let row_bytes = hob_compute::check::load(spec, source.len())?;
        let format = match spec.kind {
            WeightKind::Vector => Format::F32,
            _ => format::device_format(spec.format),
        };
        let (parts, bytes, read_plain) = (Vec::new(), 0, false);
        let mut loaded = Loaded { spec: spec.clone(), format, parts, bytes, read_plain };
        let read = match spec.kind {
            WeightKind::Vector => loaded.vector(stream, row_bytes, &*source),
            _ => loaded.packed(stream, row_bytes, &*source),
        };
        match read {
            Ok(()) => Ok(loaded),
            Err(e) => {
                loaded.release(stream);
                Err(e)
            }
        }
    }

    /// Rows and columns.
    pub fn shape(&self) -> Shape {
        Shape { rows: self.spec.rows, width: self.spec.cols }
    }

    fn broken(&self, problem: String) -> ComputeError {
        ComputeError::Weight { name: self.spec.name.clone(), problem }
    }

    fn read(&self, source: &dyn ByteSource, offset: u64, out: &mut [u8]) -> Result<()> {
        let name = || self.spec.name.clone();
        source.read_at(offset, out).map_err(|source| ComputeError::Read { name: name(), source })
    }

    fn vector(&mut self, stream: &mut Stream, row_bytes: usize, source: &dyn ByteSource) -> Result<()> {
        let mut bytes = vec![0u8; row_bytes];
        self.read(source, 0, &mut bytes)?;
        let mut values = vec![0f32; self.spec.cols];
        hob_quant::decode_row(self.spec.format, &bytes, &mut values)
            .map_err(|e| self.broken(e.to_string()))?;
        self.part(stream, 0, 1, 4 * self.spec.cols)?;
        stream.write(self.parts[0].buffer, 0, bytemuck::cast_slice(&values))
    }

    /// A buffer for `rows` rows of `bytes` bytes.
    fn part(&mut self, stream: &mut Stream, first_row: usize, rows: usize, bytes: usize) -> Result<()> {
        let buffer = stream.buffer(&self.spec.name, (rows * bytes) as u64)?;
        self.parts.push(Part { buffer, first_row, rows });
        self.bytes += (rows * bytes) as u64;
        Ok(())
    }

    /// Rows that must stay together: those of an expert or a head, or of a block of an output's int8 form.
    fn unit(&self) -> usize {
        match self.spec.kind {
            WeightKind::Experts { count } | WeightKind::Heads { count } => self.spec.rows / count,
            _ => 32.min(self.spec.rows),
        }
    }

    fn packed(&mut self, stream: &mut Stream, row_bytes: usize, source: &dyn ByteSource) -> Result<()> {
        let packed = format::row_bytes(self.format, self.spec.cols);
        let facts = &stream.context.facts;
        let limit = facts.binding_bytes.min(facts.buffer_bytes) as usize;
        let unit = self.unit();
        let most = limit / packed / unit * unit;
        if most == 0 {
            let needs = unit * packed;
            return Err(
                self.broken(format!("{unit} rows need {needs} bytes in one piece, the most here is {limit}"))
            );
        }
        let piece = (PIECE_BYTES / packed.max(row_bytes)).clamp(1, self.spec.rows);
        let (mut from, mut to) = (vec![0u8; piece * row_bytes], vec![0u8; piece * packed]);
        for first in (0..self.spec.rows).step_by(most) {
            let rows = most.min(self.spec.rows - first);
            self.part(stream, first, rows, packed)?;
            let buffer = self.parts[self.parts.len() - 1].buffer;
            for at in (0..rows).step_by(piece) {
                let count = piece.min(rows - at);
                let (from, to) = (&mut from[..count * row_bytes], &mut to[..count * packed]);
                self.read(source, ((first + at) * row_bytes) as u64, from)?;
                format::pack_rows(self.spec.format, self.spec.cols, from, to)
                    .map_err(|e| self.broken(e.to_string()))?;
                stream.write(buffer, (at * packed) as u64, to)?;
            }
        }
        Ok(())
    }

    pub fn release(self, stream: &mut Stream) {
        self.parts.iter().for_each(|part| stream.release(part.buffer));
    }
}
