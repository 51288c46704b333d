//! What sequences remember: their length, and a table of pages per layer drawn from pools made at load.
//!
//! It owns which page belongs to whom; the bytes belong to the device. It must not know weights or verbs.

mod pages;
mod sequences;

pub(crate) use pages::PagePools;
pub(crate) use sequences::Sequences;
