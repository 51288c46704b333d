//! What sequences remember: their lengths and page tables, the prefixes they share, and the ends they can come back to.
//!
//! It owns which page belongs to whom; the bytes belong to the device. It must not know weights or verbs.
//!
//! Words: a *group* is the layers whose pages come and go together; a *sheet* is one page of each of them; a *node* is up
//! to 256 tokens of a chain with a sheet of every group. The rows of a sheet below its node's length never change.

mod pages;
mod plan;
mod prefixes;
mod resume;
mod seal;
mod sequences;

pub(crate) use pages::PagePools;
pub(crate) use plan::{Group, groups, image_bytes, snapshot_budget};
pub(crate) use prefixes::Prefixes;
pub(crate) use resume::{LayerMemory, StateBuf};
pub(crate) use sequences::{Sequence, Sequences};
