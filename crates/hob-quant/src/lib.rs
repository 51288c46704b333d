//! Block formats of weights: ids, names, layout, decoding to f32 and encoding from f32. This crate is the
//! *specification* by which every kernel is judged, so its loops are plain and follow the published format.
//! It must not know threads, SIMD, files or models.
//!
//! One format is one file below `formats/` (small relatives share one) and one line in `registry.rs`.
#![forbid(unsafe_code)]

mod error;
mod formats;
mod registry;
mod row;

pub use error::QuantError;
pub use registry::Format;
pub use row::{decode_row, encode_row};
