//! The crate's one error type. It must not know who called.

use crate::Format;

/// What can go wrong when a row is decoded or encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantError {
    /// The packed bytes are not a whole number of blocks.
    #[error(
        "{format}: expected a multiple of {block_bytes} bytes (one block), found {found}; the row is cut short or has another format"
    )]
    PartialBlock { format: Format, block_bytes: usize, found: usize },
    /// The number of weights is not a whole number of blocks.
    #[error(
        "{format}: expected a multiple of {block_len} weights (one block), found {found}; choose a format whose block divides the row"
    )]
    PartialRow { format: Format, block_len: usize, found: usize },
    /// The output slice does not fit the input.
    #[error(
        "{format}: expected an output of {expected} {unit} for this input, found {found}; size it with Format::row_bytes and Format::block_len"
    )]
    OutputLength { format: Format, expected: usize, found: usize, unit: &'static str },
    /// This format has no encoder; see [`Format::can_encode`].
    #[error("{format}: no encoder; encode to one of the formats for which Format::can_encode is true")]
    NoEncoder { format: Format },
    /// A block holds a NaN, an infinity, or weights too large for the format's f16 scale.
    #[error(
        "{format}: weights {first}..{end} cannot be encoded: expected finite values whose scale fits f16; check the source tensor for NaN, infinity or outliers"
    )]
    NotRepresentable { format: Format, first: usize, end: usize },
}
