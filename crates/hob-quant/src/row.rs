//! The two doors: decode or encode one row of whole blocks, lengths checked once. It must not know any layout.

use crate::formats::BadBlock;
use crate::{Format, QuantError};

/// Decodes any whole number of blocks to f32.
///
/// `bytes` holds `n` blocks of [`Format::block_bytes`]; `out` must hold exactly `n * block_len` weights.
///
/// # Errors
/// [`QuantError::PartialBlock`] or [`QuantError::OutputLength`]; `out` is then untouched.
pub fn decode_row(format: Format, bytes: &[u8], out: &mut [f32]) -> Result<(), QuantError> {
    let block_bytes = format.block_bytes();
    if !bytes.len().is_multiple_of(block_bytes) {
        return Err(QuantError::PartialBlock { format, block_bytes, found: bytes.len() });
    }
    // No overflow: block_len / block_bytes is at most 128 / 18, and a slice holds at most isize::MAX bytes.
    let expected = (bytes.len() / block_bytes).saturating_mul(format.block_len());
    if out.len() != expected {
        return Err(QuantError::OutputLength { format, expected, found: out.len(), unit: "weights" });
    }
    (format.spec().decode)(bytes, out);
    Ok(())
}

/// Encodes any whole number of blocks from f32 by the published reference rule of the format.
///
/// `x` holds `n` blocks of [`Format::block_len`] weights; `out` must hold exactly `n * block_bytes` bytes.
///
/// # Errors
/// [`QuantError::NoEncoder`], [`QuantError::PartialRow`] or [`QuantError::OutputLength`], with `out` untouched; and
/// [`QuantError::NotRepresentable`], with `out` written up to that block. F32, F16 and BF16 take every value.
pub fn encode_row(format: Format, x: &[f32], out: &mut [u8]) -> Result<(), QuantError> {
    let encode = format.spec().encode.ok_or(QuantError::NoEncoder { format })?;
    let block_len = format.block_len();
    let Some(expected) = format.row_bytes(x.len()) else {
        return Err(QuantError::PartialRow { format, block_len, found: x.len() });
    };
    if out.len() != expected {
        return Err(QuantError::OutputLength { format, expected, found: out.len(), unit: "bytes" });
    }
    encode(x, out).map_err(|BadBlock(block)| QuantError::NotRepresentable {
        format,
        first: block * block_len,
        end: (block + 1) * block_len,
    })
}
