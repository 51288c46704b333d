//! Block formats of weights: ids, names, layout, decoding to f32 and encoding from f32. This crate is the
//! *specification* by which every kernel is judged, so its loops are plain and follow the published format.
//! It must not know threads, SIMD, files or models.
//!
//! One format is one file below `formats/` (small relatives share one) and one line in `registry.rs`.
#![forbid(unsafe_code)]

mod error;
mod formats;
mod int;
mod kv;
mod packed;
mod registry;
mod row;

pub use error::QuantError;
pub use formats::grids;
pub use int::{INT_BLOCK, IntBlock, Minima, int_block};
pub use kv::{
    KV_GROUP, KvFormat, KvGroup, Q4_PROPOSALS, asym4_group, decode_kv, encode_kv, hadamard, kv_groups,
    q4_group, q8_group, scales_are_sound,
};
pub use packed::packed_bytes;
pub use registry::Format;
pub use row::{decode_row, encode_row, quantize_row};
