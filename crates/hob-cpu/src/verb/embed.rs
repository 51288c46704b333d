//! Row gathers: decodes the rows of a table that stays in its file.

use std::cell::RefCell;

use hob_compute::{ByteSource, ComputeError, Result};
use hob_quant::Format;

use super::{Parts, each_rows};
use crate::pool::Pool;

/// Rows of `cols` weights at `row_bytes` each.
#[derive(Copy, Clone)]
pub struct Table<'a> {
    /// For messages.
    pub name: &'a str,
    pub source: &'a dyn ByteSource,
    pub format: Format,
    pub cols: usize,
    pub row_bytes: usize,
}

thread_local! {
    /// Bytes of one row of a source that is not mapped.
    static ROW: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// `out[i] = table[ids[i]] * scale`, `out` being `[ids.len(), cols]`. The ids lie inside the table.
///
/// # Errors
/// A row that cannot be read or decoded.
pub fn embed(pool: &Pool, table: Table, ids: &[u32], scale: f32, out: &mut [f32]) -> Result<()> {
    let failed = std::sync::Mutex::new(None);
    let parts = Parts::new(out);
    each_rows(pool, ids.len(), table.cols, &|range| {
        for r in range {
            // SAFETY: rows are disjoint.
            let out = unsafe { parts.part(r * table.cols..(r + 1) * table.cols) };
            if let Err(e) = table.row(ids[r], out) {
                *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(e);
                return;
            }
            if scale != 1.0 {
                out.iter_mut().for_each(|v| *v *= scale);
            }
        }
    });
    failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}

impl Table<'_> {
    fn row(&self, id: u32, out: &mut [f32]) -> Result<()> {
        let start = id as usize * self.row_bytes;
        if let Some(row) = self.source.mapped().and_then(|b| b.get(start..start + self.row_bytes)) {
            return self.decode(row, out);
        }
        ROW.with_borrow_mut(|row| {
            row.resize(self.row_bytes, 0);
            self.source
                .read_at(start as u64, row)
                .map_err(|source| ComputeError::Read { name: self.name.to_owned(), source })?;
            self.decode(row, out)
        })
    }

    fn decode(&self, row: &[u8], out: &mut [f32]) -> Result<()> {
        hob_quant::decode_row(self.format, row, out)
            .map_err(|e| ComputeError::Weight { name: self.name.to_owned(), problem: e.to_string() })
    }
}
