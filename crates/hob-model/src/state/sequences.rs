//! The sequences that live: slots made at load, each with its length and its tables of pages.

use hob_compute::Page;

use super::PagePools;
use crate::{Layout, ModelError, Result, SeqId};

/// One slot.
struct Sequence {
    generation: u32,
    live: bool,
    /// Positions whose state is valid.
    len: usize,
    /// Per layer, the pages of positions 0..; may reach beyond `len`.
    tables: Vec<Vec<Page>>,
}

/// All slots of a model.
pub(crate) struct Sequences {
    slots: Vec<Sequence>,
}

impl Sequences {
    pub fn new(layout: &Layout, layers: usize) -> Self {
        let table = || Vec::with_capacity(layout.pages_per_sequence());
        let slot = |_| Sequence {
            generation: 0,
            live: false,
            len: 0,
            tables: (0..layers).map(|_| table()).collect(),
        };
        Sequences { slots: (0..layout.sequences).map(slot).collect() }
    }

    /// # Errors
    /// [`ModelError::SequencesTaken`].
    pub fn open(&mut self) -> Result<SeqId> {
        let sequences = self.slots.len();
        let Some(index) = self.slots.iter().position(|s| !s.live) else {
            return Err(ModelError::SequencesTaken { sequences });
        };
        let slot = &mut self.slots[index];
        slot.live = true;
        Ok(SeqId { index: index as u32, generation: slot.generation })
    }

    /// # Errors
    /// [`ModelError::UnknownSequence`].
    pub fn close(&mut self, id: SeqId, pools: &mut PagePools) -> Result<()> {
        self.truncate(id, 0, pools)?;
        let slot = self.get_mut(id)?;
        slot.live = false;
        slot.generation = slot.generation.wrapping_add(1);
        Ok(())
    }

    /// # Errors
    /// [`ModelError::UnknownSequence`].
    pub fn len(&self, id: SeqId) -> Result<usize> {
        self.slots.get(id.index as usize).filter(|s| s.is(id)).map(|s| s.len).ok_or_else(|| unknown(id))
    }

    /// Forgets positions from `len` on and returns pages that hold none.
    ///
    /// # Errors
    /// [`ModelError::UnknownSequence`]; [`ModelError::Batch`] for a length above the present one.
    pub fn truncate(&mut self, id: SeqId, len: usize, pools: &mut PagePools) -> Result<()> {
        let slot = self.get_mut(id)?;
        if len > slot.len {
            return Err(ModelError::batch(format!("a length of at most {}, to truncate to", slot.len), len));
        }
        slot.len = len;
        let keep = len.div_ceil(hob_compute::PAGE_POSITIONS);
        for (layer, table) in slot.tables.iter_mut().enumerate() {
            // Last taken, first returned: the low pages end on top of the free list.
            while table.len() > keep {
                if let Some(page) = table.pop() {
                    pools.give_back(layer, page);
                }
            }
        }
        Ok(())
    }

    /// Gives the sequence pages for `len` positions in every layer.
    ///
    /// # Errors
    /// [`ModelError::Layout`] when a pool is used up, which a layout of whole sequences rules out.
    pub fn reserve(&mut self, id: SeqId, len: usize, pools: &mut PagePools) -> Result<()> {
        let slot = self.get_mut(id)?;
        let need = len.div_ceil(hob_compute::PAGE_POSITIONS);
        for (layer, table) in slot.tables.iter_mut().enumerate() {
            while pools.has(layer) && table.len() < need {
                let Some(page) = pools.take(layer) else {
                    return Err(ModelError::layout(format!("a free page for layer {layer}"), "none"));
                };
                table.push(page);
            }
        }
        Ok(())
    }

    /// The pages of `layer`.
    pub fn pages(&self, id: SeqId, layer: usize) -> &[Page] {
        self.slots.get(id.index as usize).map_or(&[], |s| s.tables[layer].as_slice())
    }

    /// Declares positions below `len` valid.
    ///
    /// # Errors
    /// [`ModelError::UnknownSequence`].
    pub fn commit(&mut self, id: SeqId, len: usize) -> Result<()> {
        self.get_mut(id)?.len = len;
        Ok(())
    }

    fn get_mut(&mut self, id: SeqId) -> Result<&mut Sequence> {
        self.slots.get_mut(id.index as usize).filter(|s| s.is(id)).ok_or_else(|| unknown(id))
    }
}

impl Sequence {
    fn is(&self, id: SeqId) -> bool {
        self.live && self.generation == id.generation
    }
}

fn unknown(id: SeqId) -> ModelError {
    ModelError::UnknownSequence { sequence: format!("sequence {}.{}", id.index, id.generation) }
}
