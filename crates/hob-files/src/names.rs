//! An index from names to positions in a vector, without a second copy of the names. It hashes with a per-process
//! random key, so a file cannot choose names that collide. It must not know what the names name.

use std::hash::{BuildHasher, RandomState};

const FREE: u32 = u32::MAX;

/// Open addressing over `u32` positions, at most half full.
#[derive(Debug)]
pub(crate) struct NameIndex {
    slots: Vec<u32>,
    hasher: RandomState,
}

impl NameIndex {
    /// Indexes `count` names; `Err(position)` is the first name that already appeared.
    pub(crate) fn build<'a>(
        count: usize,
        name: impl Fn(usize) -> &'a str,
    ) -> std::result::Result<NameIndex, usize> {
        let size = (count * 2).next_power_of_two().max(4);
        let mut index = NameIndex { slots: vec![FREE; size], hasher: RandomState::new() };
        for position in 0..count {
            match index.find(name(position), &name) {
                Ok(_) => return Err(position),
                Err(slot) => index.slots[slot] = position as u32,
            }
        }
        Ok(index)
    }

    /// The position of `wanted`, if it is there; `name` must give the names the index was built from.
    pub(crate) fn get<'a>(&self, wanted: &str, name: impl Fn(usize) -> &'a str) -> Option<usize> {
        self.find(wanted, &name).ok()
    }

    /// `Ok(position)` of an equal name, or `Err(slot)` where it would go.
    fn find<'a>(&self, wanted: &str, name: &impl Fn(usize) -> &'a str) -> std::result::Result<usize, usize> {
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one(wanted) as usize & mask;
        loop {
            match self.slots[slot] {
                FREE => return Err(slot),
                position if name(position as usize) == wanted => return Ok(position as usize),
                _ => slot = (slot + 1) & mask,
            }
        }
    }
}

impl Default for NameIndex {
    fn default() -> Self {
        NameIndex { slots: vec![FREE; 4], hasher: RandomState::new() }
    }
}
