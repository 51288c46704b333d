//! Block formats of weights: ids, names, layout, decoding to f32 and encoding from f32. This crate is the
//! *specification* by which every kernel is judged, so its loops are plain and follow the published format.
//! It must not know threads, SIMD, files or models.
//!
//! One format is one file below `formats/` (small relatives share one) and one line in `registry.rs`.
#![forbid(unsafe_code)]

mod error;
mod formats;
mod int;
mod packed;
mod registry;
mod row;

pub use error::QuantError;
pub use formats::grids;
pub use int::{INT_BLOCK, IntBlock, Minima, int_block};
pub use packed::packed_bytes;
pub use registry::Format;
pub use row::{decode_row, encode_row};
