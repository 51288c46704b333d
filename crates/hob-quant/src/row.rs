//! The doors: decode, encode or quantize one row of whole blocks, lengths checked once. It must not know any layout.

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
    check_lengths(format, x, out)?;
    encode(x, out).map_err(not_representable(format))
}

/// Quantizes any whole number of blocks: of the scales a block can have those whose codes leave the least weighted
/// squared error. Slower than [`encode_row`] (about a hundred passes over the weights) and closer; the same weights give
/// the same bytes on every machine.
///
/// `importance` has one value per weight, the mean square of the activations that meet its column. Without it a weight
/// counts by its own square and the block's mean square.
///
/// # Errors
/// As [`encode_row`], but F32, F16 and BF16 refuse what is not finite or becomes so; and what is wrong with `importance`.
pub fn quantize_row(
    format: Format,
    x: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<(), QuantError> {
    let quantize = format.spec().quantize.ok_or(QuantError::NoEncoder { format })?;
    check_lengths(format, x, out)?;
    if let Some(all) = importance {
        if all.len() != x.len() {
            return Err(QuantError::ImportanceLength { format, expected: x.len(), found: all.len() });
        }
        // The bound keeps sums of them finite.
        if let Some(at) = all.iter().position(|v| !(0.0..=1e30).contains(v)) {
            return Err(QuantError::Importance { format, at, found: all[at].to_string() });
        }
    }
    quantize(x, importance, out).map_err(not_representable(format))
}

fn check_lengths(format: Format, x: &[f32], out: &[u8]) -> Result<(), QuantError> {
    let block_len = format.block_len();
    let Some(expected) = format.row_bytes(x.len()) else {
        return Err(QuantError::PartialRow { format, block_len, found: x.len() });
    };
    if out.len() != expected {
        return Err(QuantError::OutputLength { format, expected, found: out.len(), unit: "bytes" });
    }
    Ok(())
}

fn not_representable(format: Format) -> impl Fn(BadBlock) -> QuantError {
    let len = format.block_len();
    move |BadBlock(block)| QuantError::NotRepresentable { format, first: block * len, end: (block + 1) * len }
}
