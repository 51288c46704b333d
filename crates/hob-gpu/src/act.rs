//! Buffers of activations and the forms that matrices are multiplied with. It must not know weights.
//!
//! The f32 rows are the truth. A form is derived from them when a `linear` asks for it, or written at once by the verb
//! that writes the rows, once the buffer has the form: rehearsal makes it have the forms that its readers ask for.

use hob_compute::Result;
use hob_compute::check::Shape;

use crate::stream::{BufferId, Stream};

/// Most batch rows that count as few (decode, small batches, drafts): products on int8, one column per row. More are a
/// prefill.
pub(crate) const FEW_ROWS: usize = 16;

/// The int8 form of rows of `groups = ceil(width / 32)` blocks.
///
/// `codes` of a row: two pieces of 16 codes per block, `[2][groups]` vectors of 4 words, so that neighbouring lanes, each
/// with its own block, read neighbouring vectors. `meta` of a row: `[groups]` pairs of words: the scale (f32 bits), then
/// the sums of codes 0..16 and 16..32 (i16, low and high half).
#[derive(Copy, Clone, Debug)]
pub(crate) struct Int8 {
    pub codes: BufferId,
    pub meta: BufferId,
}

/// A buffer of activations.
pub(crate) struct Act {
    pub shape: Shape,
    pub rows: BufferId,
    pub int8: Option<Int8>,
    pub half: Option<BufferId>,
    /// Rows, from 0 on, of which each form is up to date.
    pub int8_rows: usize,
    pub half_rows: usize,
}

impl Act {
    pub fn new(stream: &mut Stream, shape: Shape) -> Result<Act> {
        let rows = stream.buffer("activations", 4 * (shape.rows * shape.width) as u64)?;
        Ok(Act { shape, rows, int8: None, half: None, int8_rows: 0, half_rows: 0 })
    }

    /// Blocks of 32 in a row.
    pub fn groups(&self) -> usize {
        self.shape.width.div_ceil(32)
    }

    /// The int8 form's buffers, made when first asked for.
    pub fn int8(&mut self, stream: &mut Stream) -> Result<Int8> {
        if let Some(form) = self.int8 {
            return Ok(form);
        }
        let blocks = (self.shape.rows * self.groups()) as u64;
        let codes = stream.buffer("int8 activations", 32 * blocks)?;
        let form = Int8 { codes, meta: stream.buffer("scales of activations", 8 * blocks)? };
        self.int8 = Some(form);
        Ok(form)
    }

    /// The f16 form's buffer, made when first asked for. Rows are padded to a multiple of 128 and the width to one of 32.
    pub fn half(&mut self, stream: &mut Stream) -> Result<BufferId> {
        if let Some(form) = self.half {
            return Ok(form);
        }
        let values = self.shape.rows.next_multiple_of(128) * self.shape.width.next_multiple_of(32);
        let form = stream.buffer("f16 activations", 2 * values as u64)?;
        self.half = Some(form);
        Ok(form)
    }

    /// The rows were written: no form is up to date. A verb that writes a form too says so afterwards.
    pub fn written(&mut self) {
        (self.int8_rows, self.half_rows) = (0, 0);
    }

    pub fn release(self, stream: &mut Stream) {
        let int8 = self.int8.map(|f| [f.codes, f.meta]);
        let all = [Some(self.rows), self.half].into_iter().flatten().chain(int8.into_iter().flatten());
        all.for_each(|id| stream.release(id));
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        let Shape { rows, width } = self.shape;
        let int8 = self.int8.map_or(0, |_| 40 * rows * self.groups());
        let half = self.half.map_or(0, |_| 2 * rows.next_multiple_of(128) * width.next_multiple_of(32));
        (4 * rows * width + int8 + half) as u64
    }
}
