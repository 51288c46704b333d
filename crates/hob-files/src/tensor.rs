//! What is known of a tensor before its bytes are read, and the size equation that every tensor must satisfy.
//! It must not know file formats or what a tensor is for.

use hob_quant::Format;

use crate::Result;
use crate::error::{FileError, shown, shown_shape};

/// One tensor of a [`crate::ModelFile`]; every field has been checked against the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name in the file; unique, printable, not empty.
    pub name: String,
    /// How the weights are stored.
    pub format: Format,
    /// Outermost dimension first (`[rows, cols]`); GGUF's dimensions are reversed. Empty for a scalar.
    pub shape: Vec<usize>,
    /// Which of the model's files holds it, in the order of [`crate::ModelFile::shard_paths`].
    pub shard: usize,
    /// First byte, counted from the start of the shard.
    pub offset: u64,
    /// Size in bytes: elements / block_len * block_bytes.
    pub bytes: u64,
}

/// A safetensors tensor whose dtype is known to the format but has no [`Format`] (bools, unsigned integers, 8-bit and
/// smaller floats). Its extent is checked like any other; it can be named in an error but not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpaqueTensor {
    pub name: String,
    /// The safetensors dtype, e.g. `"F8_E4M3"`.
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub shard: usize,
    pub offset: u64,
    pub bytes: u64,
}

/// Elements of a shape; zero dimensions and products over 63 bits are errors. A scalar has one element.
pub(crate) fn element_count(name: &str, shape: &[u64]) -> Result<u64> {
    if let Some(dim) = shape.iter().position(|&d| d == 0) {
        return Err(FileError::ZeroDimension { tensor: shown(name), dim, shape: shown_shape(shape) });
    }
    shape
        .iter()
        .try_fold(1u64, |product, &d| product.checked_mul(d))
        .filter(|&n| i64::try_from(n).is_ok() && usize::try_from(n).is_ok())
        .ok_or_else(|| overflow(name, shape))
}

/// Bytes of a tensor of `format`; `shape` is outermost first, so rows run along the last dimension.
pub(crate) fn byte_size(name: &str, format: Format, shape: &[u64]) -> Result<u64> {
    let elements = element_count(name, shape)?;
    let cols = shape.last().copied().unwrap_or(1);
    let block_len = format.block_len();
    if !cols.is_multiple_of(block_len as u64) {
        return Err(FileError::PartialBlock { tensor: shown(name), format, cols, block_len });
    }
    (elements / block_len as u64)
        .checked_mul(format.block_bytes() as u64)
        .filter(|&n| i64::try_from(n).is_ok() && usize::try_from(n).is_ok())
        .ok_or_else(|| overflow(name, shape))
}

/// Narrows a checked shape: each dimension divides an element count that fits `usize`.
pub(crate) fn narrow(shape: Vec<u64>) -> Vec<usize> {
    shape.into_iter().map(|d| d as usize).collect()
}

/// Refuses empty names, control characters (NUL, newlines, escape sequences) and names over `limit` bytes.
pub(crate) fn check_name(what: &'static str, name: &str, limit: u64, field: &'static str) -> Result<()> {
    if name.is_empty() {
        return Err(FileError::EmptyName { what: format!("a {what}'s name") });
    }
    let found = name.len() as u64;
    if found > limit {
        return Err(FileError::Limit {
            what: format!("the length of {what} {}", shown(name)),
            found,
            limit,
            field,
        });
    }
    if name.chars().any(char::is_control) {
        return Err(FileError::BadName { what, name: shown(name) });
    }
    Ok(())
}

fn overflow(name: &str, shape: &[u64]) -> FileError {
    FileError::SizeOverflow { tensor: shown(name), shape: shown_shape(shape) }
}
