//! From a token's text to its id, without a second copy of the texts: a table of ids that compares with the
//! vocabulary's own buffer. Hashing is keyed per table, so that no file can choose colliding texts.

use std::hash::{BuildHasher, RandomState};

use crate::vocab::Vocab;

const EMPTY: u32 = u32::MAX;

/// Ids by text; open addressing, at most half full.
#[derive(Debug)]
pub(crate) struct TextIndex {
    slots: Box<[u32]>,
    hasher: RandomState,
    longest: usize,
}

impl TextIndex {
    /// Indexes the ids that `keep` wants, except those of empty text. `Err` holds two ids of the same text.
    pub(crate) fn new(vocab: &Vocab, keep: impl Fn(u32) -> bool) -> Result<TextIndex, (u32, u32)> {
        let slots = vec![EMPTY; (vocab.len() * 2).next_power_of_two()].into_boxed_slice();
        let mut index = TextIndex { slots, hasher: RandomState::new(), longest: 0 };
        for id in (0..vocab.len() as u32).filter(|&id| keep(id)) {
            let text = vocab.text_bytes(id);
            if text.is_empty() {
                continue;
            }
            let slot = index.slot(vocab, text);
            if index.slots[slot] != EMPTY {
                return Err((index.slots[slot], id));
            }
            index.slots[slot] = id;
            index.longest = index.longest.max(text.len());
        }
        Ok(index)
    }

    /// Where `text` is, or would be.
    fn slot(&self, vocab: &Vocab, text: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one(text) as usize & mask;
        while self.slots[slot] != EMPTY && vocab.text_bytes(self.slots[slot]) != text {
            slot = (slot + 1) & mask;
        }
        slot
    }

    /// The id of exactly this text.
    pub(crate) fn get(&self, vocab: &Vocab, text: &[u8]) -> Option<u32> {
        if text.len() > self.longest {
            return None;
        }
        Some(self.slots[self.slot(vocab, text)]).filter(|&id| id != EMPTY)
    }
}
