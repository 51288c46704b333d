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
    /// This format has no such encoder; see [`Format::can_encode`] and [`Format::can_quantize`].
    #[error(
        "{format}: no encoder of this kind; Format::can_encode and Format::can_quantize tell which have one"
    )]
    NoEncoder { format: Format },
    /// The importance does not belong to the weights.
    #[error("{format}: expected the importance of {expected} columns, one for each weight, found {found}")]
    ImportanceLength { format: Format, expected: usize, found: usize },
    /// An importance is negative or not finite.
    #[error(
        "{format}: the importance of weight {at} is {found}; expected a mean square: finite and not negative"
    )]
    Importance { format: Format, at: usize, found: String },
    /// A block holds a NaN, an infinity, or weights too large for the format's f16 scale.
    #[error(
        "{format}: weights {first}..{end} cannot be encoded: expected finite values within the format's range; check the source tensor for NaN, infinity or outliers"
    )]
    NotRepresentable { format: Format, first: usize, end: usize },
}
