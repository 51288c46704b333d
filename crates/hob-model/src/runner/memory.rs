//! What a model remembers beyond the step that runs: prefixes shared between sequences, ends to come back to, and images
//! of all of it. It must not know where images are kept, nor who asks.

use std::ops::Range;

use hob_compute::{CatchUp, Compute, PAGE_POSITIONS, Page, SlotRows};

use super::Model;
use crate::blocks::RING_SLACK;
use crate::identity::identity;
use crate::state::{
    LayerMemory, PagePools, Prefixes, Sequence, Sequences, StateBuf, image_bytes, snapshot_budget,
};
use crate::{Layout, ModelError, Result, SeqId};

impl Model {
    /// How many leading tokens of `tokens` (at most `most`) [`Model::resume`] would make `id` hold; `None`, or a sequence
    /// that does not live, asks for one that holds nothing yet.
    pub fn resumable(&self, id: Option<SeqId>, tokens: &[u32], most: usize) -> usize {
        let slot = id.and_then(|id| self.sequences.slot(id).ok());
        self.sequences.find(slot, tokens, most, self.info.recurrent()).len
    }

    /// Makes the sequence hold the longest prefix of `tokens`, of at most `most`, that is in memory: what it holds
    /// itself, or a chain of pages that other sequences or earlier turns left behind. Whole pages are shared, a part of
    /// one is copied. A recurrent model goes on where it is, or where [`Model::keep`] was called. Gives the new length.
    ///
    /// # Errors
    /// [`ModelError::UnknownSequence`] and what the device says; the sequence is empty after the latter.
    pub fn resume(&mut self, dev: &mut dyn Compute, id: SeqId, tokens: &[u32], most: usize) -> Result<usize> {
        let slot = self.sequences.slot(id)?;
        let target = self.sequences.find(Some(slot), tokens, most, self.info.recurrent());
        self.sequences.go_to(dev, slot, &target, (tokens, &self.states))?;
        Ok(target.len)
    }

    /// Makes the sequence's full pages immutable and known by their tokens, so that [`Model::resume`] finds them.
    /// `tokens` are the sequence's, as far as they are known; pages with others wait, and nothing from the first unknown
    /// one on is taken as final: [`Model::truncate`] can go back there. Cheap to call after every step.
    ///
    /// # Errors
    /// [`ModelError::UnknownSequence`]; [`ModelError::Batch`] when `tokens` are not what was computed.
    pub fn seal(&mut self, _dev: &mut dyn Compute, id: SeqId, tokens: &[u32]) -> Result<()> {
        let slot = self.sequences.slot(id)?;
        self.sequences.seal(slot, tokens)
    }

    /// As [`Model::seal`], and keeps the present end, inside a page or not, with the recurrent state there: a later
    /// [`Model::resume`] of these tokens finds exactly this length. No page is copied: the sequence goes on behind it.
    ///
    /// # Errors
    /// As [`Model::seal`], when `tokens` are fewer than the sequence holds, and what the device says.
    pub fn keep(&mut self, dev: &mut dyn Compute, id: SeqId, tokens: &[u32]) -> Result<()> {
        self.keep_end(dev, id, tokens, true)
    }

    /// As [`Model::keep`], on the way through a long text: the state here goes before that at any end does.
    ///
    /// # Errors
    /// As [`Model::keep`].
    pub fn keep_passing(&mut self, dev: &mut dyn Compute, id: SeqId, tokens: &[u32]) -> Result<()> {
        self.keep_end(dev, id, tokens, false)
    }

    fn keep_end(&mut self, dev: &mut dyn Compute, id: SeqId, tokens: &[u32], end: bool) -> Result<()> {
        let slot = self.sequences.slot(id)?;
        let Some((node, at)) = self.sequences.keep(slot, tokens)? else { return Ok(()) };
        let sequence = self.sequences.at(slot);
        let known = sequence.state_len == sequence.len;
        if !self.info.recurrent() || !known || !self.sequences.prefixes.keeps_snapshots() {
            return Ok(());
        }
        let values = self.state_values(dev, slot)?;
        self.sequences.prefixes.attach(node, at, end, values.into_boxed_slice());
        Ok(())
    }

    /// The bytes of positions `range` of a sequence: layer by layer, each position by position, as
    /// [`Compute::read_positions`] gives them. [`Model::image_bytes`] of them.
    ///
    /// # Errors
    /// [`ModelError::UnknownSequence`]; [`ModelError::Image`] when the sequence does not hold all of them any more; what
    /// the device says.
    pub fn export(&self, dev: &mut dyn Compute, id: SeqId, range: Range<usize>) -> Result<Vec<u8>> {
        let held = self.seq_len(id)?;
        if range.start > range.end || range.end > held {
            return Err(ModelError::image(format!("positions within 0..{held}"), format!("{range:?}")));
        }
        let mut image = Vec::with_capacity(self.image_bytes(range.clone()));
        for layer in 0..self.info.config.layers.len() {
            let pages = self.sequences.pages(id, layer);
            if pages.is_empty() {
                continue;
            }
            for (page, part) in by_page(range.clone()) {
                if pages[page] == Page::RELEASED {
                    let expected = format!("positions that layer {layer} still holds");
                    let found =
                        format!("{range:?}, of which {} left its window", page * PAGE_POSITIONS + part.start);
                    return Err(ModelError::image(expected, found));
                }
                dev.read_positions(pages[page], part, &mut image)?;
            }
        }
        Ok(image)
    }

    /// Length of the image of positions `range`.
    pub fn image_bytes(&self, range: Range<usize>) -> usize {
        let layers = 0..self.info.config.layers.len();
        layers.map(|layer| self.layer_bytes(layer, range.clone())).sum()
    }

    /// The inverse of [`Model::export`]: lengthens a sequence of `image.range.start` positions by the first `image.take`
    /// positions of the image. A recurrent model can go on only after [`Model::restore`].
    ///
    /// # Errors
    /// [`ModelError::UnknownSequence`]; [`ModelError::Image`] for a range that does not continue the sequence or leaves
    /// its page, an image of another length, or too few tokens; [`ModelError::ContextOverflow`]; what the device says.
    /// The sequence is as long as before then.
    pub fn import(&mut self, dev: &mut dyn Compute, id: SeqId, image: &Image) -> Result<()> {
        let slot = self.sequences.slot(id)?;
        let end = self.admit_image(slot, image)?;
        self.sequences.reserve(dev, slot, end)?;
        let (range, from) = (image.range.clone(), image.range.start);
        let (page, at) = (from / PAGE_POSITIONS, from % PAGE_POSITIONS);
        let mut rest = image.bytes;
        for layer in 0..self.info.config.layers.len() {
            let (bytes, behind) = rest.split_at(self.layer_bytes(layer, range.clone()));
            rest = behind;
            if let Some(&page) = self.sequences.pages(id, layer).get(page) {
                let taken = &bytes[..self.layer_bytes(layer, from..end)];
                dev.write_positions(page, at..at + image.take, taken)?;
            }
        }
        self.sequences.commit(slot, end, image.tokens[from..end].iter().map(|&t| Some(t)));
        Ok(())
    }

    /// Checks an image for a sequence. Gives the length the sequence is to have.
    fn admit_image(&self, slot: usize, image: &Image) -> Result<usize> {
        let Image { range, take, tokens, bytes } = image;
        let (len, ctx_tokens) = (self.sequences.at(slot).len, self.layout.ctx_tokens);
        let page_end = (len / PAGE_POSITIONS + 1) * PAGE_POSITIONS;
        if range.start != len || range.end <= len || range.end > page_end {
            let expected = format!("positions from {len} on, up to {page_end} at most");
            return Err(ModelError::image(expected, format!("{range:?}")));
        }
        if *take == 0 || *take > range.len() {
            return Err(ModelError::image(format!("1 to {} positions to take", range.len()), take));
        }
        let wanted = self.image_bytes(range.clone());
        if bytes.len() != wanted {
            let expected = format!("{wanted} bytes for positions {range:?}");
            return Err(ModelError::image(expected, format!("{} bytes", bytes.len())));
        }
        let needed = len + take;
        if needed > ctx_tokens {
            return Err(ModelError::ContextOverflow { needed, ctx_tokens });
        }
        if tokens.len() < needed {
            return Err(ModelError::image(format!("the first {needed} tokens of the chain"), tokens.len()));
        }
        Ok(needed)
    }

    /// Bytes of one layer in the image of positions `range`.
    fn layer_bytes(&self, layer: usize, range: Range<usize>) -> usize {
        let Some(group) = self.sequences.pools.groups().find(|g| g.layers.contains(&layer)) else { return 0 };
        let parts = by_page(range).map(|(page, part)| {
            let spec = group.spec_of(page);
            part.map(|at| image_bytes(&spec, at, self.exact)).sum::<usize>()
        });
        parts.sum()
    }

    /// The recurrent state at the sequence's present length: f32, little-endian, bit for bit;
    /// [`crate::ModelInfo::snapshot_bytes`] of them.
    ///
    /// # Errors
    /// [`ModelError::UnknownSequence`]; [`ModelError::Image`] when positions were imported and their state was not
    /// restored; what the device says.
    pub fn snapshot(&mut self, dev: &mut dyn Compute, id: SeqId) -> Result<Vec<u8>> {
        let slot = self.sequences.slot(id)?;
        let (len, state_len) = (self.sequences.at(slot).len, self.sequences.at(slot).state_len);
        if self.info.recurrent() && len != state_len {
            return Err(ModelError::image(
                format!("the state at {len} tokens"),
                format!("that at {state_len}"),
            ));
        }
        let values = self.state_values(dev, slot)?;
        Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// The inverse of [`Model::snapshot`], for a sequence of `len` tokens.
    ///
    /// # Errors
    /// [`ModelError::UnknownSequence`]; [`ModelError::Image`] for another length of sequence or bytes; what the device
    /// says.
    pub fn restore(&mut self, dev: &mut dyn Compute, id: SeqId, len: usize, bytes: &[u8]) -> Result<()> {
        let slot = self.sequences.slot(id)?;
        let held = self.sequences.at(slot).len;
        if held != len {
            return Err(ModelError::image(format!("the state at {held} tokens"), format!("that at {len}")));
        }
        let wanted = self.info.snapshot_bytes(len);
        if bytes.len() != wanted {
            let found = format!("{} bytes", bytes.len());
            return Err(ModelError::image(format!("{wanted} bytes of recurrent state"), found));
        }
        let floats = bytes.as_chunks::<4>().0;
        let values: Vec<f32> = floats.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let mut rest = values.as_slice();
        for state in &self.states {
            rest = state.upload(dev, slot, len, rest)?;
        }
        let sequence = self.sequences.at_mut(slot);
        (sequence.state_len, sequence.held, sequence.reached) = (len, 0, len + RING_SLACK);
        Ok(())
    }

    /// Moves the state of a sequence past the rows that are held: they can no longer be taken back.
    ///
    /// # Errors
    /// What the device says; the sequence is empty then.
    pub(super) fn catch_up(&mut self, dev: &mut dyn Compute, slot: usize) -> Result<()> {
        let &Sequence { state_len, held, .. } = self.sequences.at(slot);
        if held == 0 {
            return Ok(());
        }
        let seqs = &[SlotRows { accepted: held, ..SlotRows::new(0, 0, state_len, slot) }];
        let mut memories = self.room.memories.iter();
        let moved = memories.try_for_each(|&LayerMemory { memory, recurrence }| {
            dev.catch_up(&CatchUp { recurrence, memory, seqs })
        });
        if let Err(e) = moved {
            // Some layers have moved on and others not.
            self.sequences.cut(slot, 0);
            return Err(e.into());
        }
        self.sequences.at_mut(slot).held = 0;
        Ok(())
    }

    /// What the recurrent layers remember of a sequence, layer by layer.
    fn state_values(&mut self, dev: &mut dyn Compute, slot: usize) -> Result<Vec<f32>> {
        self.catch_up(dev, slot)?;
        let len = self.sequences.at(slot).len;
        let mut values = vec![0f32; self.info.snapshot_bytes(len) / 4];
        let mut rest = values.as_mut_slice();
        // Nothing was written yet; what the row held before is of no meaning.
        if len > 0 {
            for StateBuf { buf, rows, shape } in &self.states {
                let (own, behind) = rest.split_at_mut(shape.floats(len));
                if !own.is_empty() {
                    dev.download(*buf, slot * rows, own)?;
                }
                rest = behind;
            }
        }
        Ok(values)
    }

    /// Names everything that the bits of pages and state depend on: model, formats of every layer, rotary tables, page
    /// layout, device kind, instruction set class, exactness, [`hob_compute::NUMERICS_REVISION`]. Images of one identity
    /// mean the same everywhere.
    pub fn identity(&self) -> [u8; 32] {
        self.sequences.prefixes.identity()
    }

    /// Gives the model another layout, without reading its weights again. What it remembered is forgotten.
    ///
    /// # Errors
    /// [`ModelError::Layout`] for a layout without rows or while sequences live, and what the device says. The model is
    /// as before then, unless a device that rehearses found no room for what a step needs.
    pub fn relayout(&mut self, dev: &mut dyn Compute, layout: &Layout) -> Result<()> {
        layout.check()?;
        if layout.placement != self.layout.placement {
            let expected = "the placement that the weights were loaded with";
            return Err(ModelError::layout(expected, "another; load the model again"));
        }
        if self.sequences.any() {
            return Err(ModelError::layout("no sequences while the layout changes; free them first", "some"));
        }
        let info = &self.info;
        // The new before the old goes, so that a refusal leaves the model as it was. Pages take memory when written.
        let pools = PagePools::new(info, layout, dev)?;
        let room = match self.held.room(info, dev, layout) {
            Ok(room) => room,
            Err(e) => return pools.release(dev).and(Err(e)),
        };
        let identity = identity(&self.id, info, layout, dev.info(), &room.frequencies);
        let prefixes = Prefixes::new(identity, snapshot_budget(info, layout));
        let generation = self.sequences.next_generation();
        let sequences = Sequences::new(layout, info.config.layers.len(), pools, prefixes, generation);
        self.states = room.states(info, layout);
        self.layout = layout.clone();
        let old = std::mem::replace(&mut self.sequences, sequences);
        let old_room = std::mem::replace(&mut self.room, room);
        let released = old.pools.release(dev);
        old_room.release(dev).and(released)?;
        self.rehearse(dev)
    }

    /// What is in memory now.
    pub fn memory(&self) -> MemoryUse {
        let Sequences { prefixes, pools, .. } = &self.sequences;
        let mut memory = MemoryUse { snapshot_bytes: prefixes.snapshot_bytes(), ..MemoryUse::default() };
        let layers: Vec<usize> = pools.groups().map(|g| g.layers.len()).collect();
        for (_, node) in prefixes.all() {
            memory.nodes += 1;
            memory.tokens += node.tokens.len();
            memory.snapshots += node.snapshots.len();
            for (held, layers) in node.held.iter().zip(&layers).filter(|(h, _)| h.sheet.is_some()) {
                let pages = if held.live > 0 { &mut memory.live_pages } else { &mut memory.cached_pages };
                *pages += layers;
            }
        }
        for (group, layers) in layers.iter().enumerate() {
            // Those of its nodes were counted there.
            let own = |s: &Sequence| s.groups[group].sheets.iter().skip(s.nodes.len()).flatten().count();
            memory.live_pages += layers * self.sequences.alive().map(own).sum::<usize>();
            memory.free_pages += layers * pools.free(group).iter().sum::<usize>();
        }
        memory
    }
}

/// The pages that positions `range` lie on, and which positions of each.
fn by_page(range: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
    let pages = range.start / PAGE_POSITIONS..range.end.div_ceil(PAGE_POSITIONS);
    pages.map(move |page| {
        let start = page * PAGE_POSITIONS;
        (page, range.start.saturating_sub(start)..(range.end - start).min(PAGE_POSITIONS))
    })
}

/// What a model remembers, counted. See [`Model::memory`].
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Pages that nobody has, over all layers.
    pub free_pages: usize,
    /// Pages that live sequences see.
    pub live_pages: usize,
    /// Pages that only the cache has.
    pub cached_pages: usize,
    /// Pieces of chains, of up to 256 tokens, that can be shared.
    pub nodes: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Snapshots of recurrent state, and their bytes.
    pub snapshots: usize,
    pub snapshot_bytes: u64,
}

/// An image of some positions of a chain, for [`Model::import`].
#[derive(Clone, Debug)]
pub struct Image<'a> {
    /// All tokens of the chain up to `range.start + take`, or more.
    pub tokens: &'a [u32],
    /// Positions that `bytes` cover: within one page.
    pub range: Range<usize>,
    /// How many of them to take, from the first.
    pub take: usize,
    /// What [`Model::export`] gave for `range`.
    pub bytes: &'a [u8],
}
