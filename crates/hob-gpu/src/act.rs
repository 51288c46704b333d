//! Buffers of activations and the forms that matrices are multiplied with. It must not know how anything is computed.
//!
//! The f32 rows are the truth. A form is derived from them when a `linear` asks for it, or written at once by the verb
//! that writes the rows, once the buffer has the form: rehearsal makes it have the forms that its readers ask for.
//!
//! A norm that was folded into the product before it leaves rows (and their int8 form) that lack the row's factor: see
//! [`Unscaled`]. Who reads or writes rows asks [`Acts::get`], which refuses such rows; only who brings the factor asks
//! [`Acts::any`].

use hob_compute::check::Shape;
use hob_compute::slots::Slots;
use hob_compute::{Buf, ComputeError, Result, Weight};

use crate::stream::{BufferId, Stream};

/// Most batch rows that count as few (decode, small batches, drafts): products on int8, one column per row. More are a
/// prefill.
pub(crate) const FEW_ROWS: usize = 16;

/// Most rows whose norm is folded into the product before it: of eight, the factors cost their readers as much on an H100 as
/// the norm does by itself.
pub(crate) const FOLDED_ROWS: usize = 4;

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

/// Rows `0..rows` of a norm's output, and their int8 form, are `x * weight`: each row still wants the factor
/// `1 / sqrt(mean(x^2) + eps)`. The sums of squares of its blocks of 32 stand in [`Act::squares`].
#[derive(Copy, Clone, Debug, PartialEq)]
pub(crate) struct Unscaled {
    pub rows: usize,
    pub eps: f32,
    /// Of the norm.
    pub weight: Weight,
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
    /// What rows lack, if they do; the forms count as out of date then.
    pub unscaled: Option<Unscaled>,
    /// `[FOLDED_ROWS, groups]` sums of squares, of the rows that were unscaled last.
    squares: Option<BufferId>,
}

impl Act {
    pub fn new(stream: &mut Stream, shape: Shape) -> Result<Act> {
        let rows = stream.buffer("activations", 4 * (shape.rows * shape.width) as u64)?;
        let (int8, half, unscaled, squares) = (None, None, None, None);
        Ok(Act { shape, rows, int8, half, int8_rows: 0, half_rows: 0, unscaled, squares })
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

    /// The buffer of sums of squares, made when first asked for.
    pub fn squares(&mut self, stream: &mut Stream) -> Result<BufferId> {
        if let Some(squares) = self.squares {
            return Ok(squares);
        }
        let squares = stream.buffer("sums of squares", self.square_bytes())?;
        self.squares = Some(squares);
        Ok(squares)
    }

    fn square_bytes(&self) -> u64 {
        (4 * self.shape.rows.min(FOLDED_ROWS) * self.groups()) as u64
    }

    /// The rows were written: no form is up to date. A verb that writes a form too says so afterwards.
    pub fn written(&mut self) {
        (self.int8_rows, self.half_rows) = (0, 0);
    }

    pub fn release(self, stream: &mut Stream) {
        let int8 = self.int8.map(|f| [f.codes, f.meta]);
        let all = [Some(self.rows), self.half, self.squares]
            .into_iter()
            .flatten()
            .chain(int8.into_iter().flatten());
        all.for_each(|id| stream.release(id));
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        let Shape { rows, width } = self.shape;
        let int8 = self.int8.map_or(0, |_| 40 * rows * self.groups());
        let half = self.half.map_or(0, |_| 2 * rows.next_multiple_of(128) * width.next_multiple_of(32));
        (4 * rows * width + int8 + half) as u64 + self.squares.map_or(0, |_| self.square_bytes())
    }
}

/// The buffers of a device by their handles.
pub(crate) struct Acts {
    slots: Slots<Buf, Act>,
    /// All that lack a factor are among these.
    unscaled: Vec<Buf>,
}

impl Acts {
    pub fn new(device: u16) -> Acts {
        Acts { slots: Slots::new(device), unscaled: Vec::new() }
    }

    pub fn insert(&mut self, act: Act) -> Buf {
        self.slots.insert(act)
    }

    /// # Errors
    /// A stale or foreign handle, like all that take one.
    pub fn remove(&mut self, verb: &'static str, buf: Buf) -> Result<Act> {
        self.slots.remove(verb, buf)
    }

    /// # Errors
    /// A stale handle, or rows that lack their factor: the verb should have begun with `Gpu::enter`.
    pub fn get(&self, verb: &'static str, buf: Buf) -> Result<&Act> {
        let act = self.slots.get(verb, buf)?;
        act.unscaled.map_or(Ok(act), |unscaled| Err(lacking(verb, unscaled)))
    }

    /// # Errors
    /// As [`Acts::get`].
    pub fn get_mut(&mut self, verb: &'static str, buf: Buf) -> Result<&mut Act> {
        let act = self.slots.get_mut(verb, buf)?;
        match act.unscaled {
            Some(unscaled) => Err(lacking(verb, unscaled)),
            None => Ok(act),
        }
    }

    /// A buffer whose rows may lack their factor.
    ///
    /// # Errors
    /// A stale handle.
    pub fn any(&self, verb: &'static str, buf: Buf) -> Result<&Act> {
        self.slots.get(verb, buf)
    }

    /// # Errors
    /// A stale handle.
    pub fn any_mut(&mut self, verb: &'static str, buf: Buf) -> Result<&mut Act> {
        self.slots.get_mut(verb, buf)
    }

    /// Notes what rows lack.
    ///
    /// # Errors
    /// A stale handle.
    pub fn lack(&mut self, verb: &'static str, buf: Buf, unscaled: Unscaled) -> Result<()> {
        self.slots.get_mut(verb, buf)?.unscaled = Some(unscaled);
        if !self.unscaled.contains(&buf) {
            self.unscaled.push(buf);
        }
        Ok(())
    }

    /// What rows of a buffer lack, if they do; nothing where there is no such buffer.
    pub fn lacks(&self, buf: Buf) -> Option<Unscaled> {
        self.slots.get("", buf).ok().and_then(|act| act.unscaled)
    }

    /// The buffers whose rows lack their factor.
    pub fn unscaled(&mut self) -> Vec<Buf> {
        let mut all = std::mem::take(&mut self.unscaled);
        all.retain(|&buf| self.lacks(buf).is_some());
        all
    }

    pub fn iter(&self) -> impl Iterator<Item = &Act> {
        self.slots.iter()
    }
}

fn lacking(verb: &'static str, unscaled: Unscaled) -> ComputeError {
    let found = format!("{} rows that lack their norm's factor (a mistake in hob)", unscaled.rows);
    ComputeError::shape(verb, "finished rows", found)
}
