//! The rehearsal: after loading, the forward pass over batches of every shape class, with nothing computed, so that a
//! device makes its kernels, bind groups and buffers before the first token. It must not know what a device makes.

use hob_compute::{CatchUp, Compute, PAGE_POSITIONS, Page, Pick, SeqRows, SlotRows, Token};

use super::Model;
use crate::blocks::Step;
use crate::state::LayerMemory;
use crate::{ModelError, Result};

/// A batch to rehearse: `sequences` sequences of `rows` rows each, all at one position.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct Shape {
    sequences: usize,
    rows: usize,
    position: usize,
    /// Rows with logits: the last of them.
    logits: usize,
    /// Whether tokens are what a `pick` chose.
    chosen: bool,
}

impl Model {
    /// Rehearses every shape of batch that the layout allows, where the device wants it. Sequences are not disturbed.
    ///
    /// # Errors
    /// What the device says: kernels that do not compile, no memory for what a step needs.
    pub(super) fn rehearse(&mut self, dev: &mut dyn Compute) -> Result<()> {
        if !dev.rehearse(true) {
            return Ok(());
        }
        let rehearsed = self.page_tables(dev).and_then(|tables| {
            // Twice: a verb may write more for its readers once it has seen what they read.
            (0..2).try_for_each(|_| self.rehearse_all(dev, &tables))
        });
        dev.rehearse(false);
        rehearsed
    }

    /// A page table of full length per layer. Nothing is written, so that two pages serve for all.
    fn page_tables(&mut self, dev: &mut dyn Compute) -> Result<Vec<Vec<Page>>> {
        let sequence = self.sequences.open()?;
        let slot = self.sequences.slot(sequence)?;
        let two = self.layout.ctx_tokens.min(2 * PAGE_POSITIONS);
        // The pools of narrow windows may have less than two for a sequence that is at its beginning.
        let reserved = match self.sequences.reserve(dev, slot, two) {
            Err(ModelError::Layout { .. }) => self.sequences.reserve(dev, slot, two.min(PAGE_POSITIONS)),
            other => other,
        };
        let count = self.layout.pages_per_sequence();
        let table = |layer| {
            let pages = self.sequences.pages(sequence, layer);
            let at = |i: usize| pages.get(i).or(pages.last()).copied();
            (0..count).map_while(at).collect()
        };
        let config = &self.info.config;
        let tables = (0..config.layers.len()).map(|layer| table(config.kv_layer(layer))).collect();
        self.sequences.close(sequence)?;
        reserved.map(|()| tables)
    }

    fn rehearse_all(&self, dev: &mut dyn Compute, tables: &[Vec<Page>]) -> Result<()> {
        let logits = self.logits();
        for rows in classes(self.layout.logit_rows) {
            // Greedy sampling takes one candidate, every other up to the most there are.
            for k in [1, Pick::MAX_K.min(self.info.config.vocab)] {
                dev.pick(&Pick { logits, rows, k, draws: &[] })?;
                dev.submit()?;
            }
        }
        let shapes = self.shapes();
        shapes.iter().try_for_each(|shape| self.rehearse_one(dev, tables, shape))?;
        // What may be held reaches the same kernels; states move outside of a pass by their own.
        let seqs = &[SlotRows { accepted: 1, ..SlotRows::new(0, 0, 1, 0) }];
        for &LayerMemory { memory, recurrence } in &self.room.memories {
            if memory.records.is_some() {
                dev.catch_up(&CatchUp { recurrence, memory, seqs })?;
            }
        }
        Ok(())
    }

    fn shapes(&self) -> Vec<Shape> {
        let layout = &self.layout;
        let mut shapes = Vec::new();
        for rows in classes(layout.chunk_rows.min(layout.ctx_tokens)) {
            let mut positions = vec![0, PAGE_POSITIONS, layout.ctx_tokens - rows];
            positions.retain(|position| position + rows <= layout.ctx_tokens);
            positions.dedup();
            for position in positions {
                let shape = Shape { sequences: 1, rows, position, logits: 0, chosen: false };
                shapes.push(shape);
                let most = rows.min(layout.logit_rows);
                let mut logits: Vec<usize> = classes(most).collect();
                logits.retain(|&logits| position == 0 || logits == 1 || logits == most);
                shapes.extend(logits.into_iter().map(|logits| Shape { logits, ..shape }));
                if rows <= layout.sequences {
                    let logits = rows.min(layout.logit_rows);
                    shapes.push(Shape { sequences: rows, rows: 1, logits, ..shape });
                    shapes.push(Shape { sequences: rows, rows: 1, logits, chosen: true, ..shape });
                }
            }
        }
        shapes
    }

    fn rehearse_one(&self, dev: &mut dyn Compute, tables: &[Vec<Page>], shape: &Shape) -> Result<()> {
        let &Shape { sequences, rows, position, logits, chosen } = shape;
        let all = sequences * rows;
        // The last rehearsed pick may have had fewer rows than the batch has.
        let token = if chosen { Token::Device(0) } else { Token::Host(0) };
        let tokens = vec![token; all];
        let positions: Vec<u32> = (0..all).map(|row| (position + row % rows) as u32).collect();
        let logit_rows: Vec<usize> = (all - logits..all).collect();
        let slots = (0..sequences).map(|slot| SlotRows::new(slot * rows, rows, position, slot));
        let slots: Vec<SlotRows> = slots.collect();
        let layers = tables.len();
        for piece in 0..layers + 2 {
            let seqs: Vec<SeqRows> = match piece.checked_sub(1).and_then(|layer| tables.get(layer)) {
                Some(pages) => {
                    let seq = |at| SeqRows { row: at * rows, rows, position, pages };
                    (0..sequences).map(seq).collect()
                }
                None => Vec::new(),
            };
            let mut step = Step {
                dev,
                weights: &self.held.weights,
                bufs: &self.room.bufs,
                memories: &self.room.memories,
                ropes: &self.room.ropes,
                tokens: &tokens,
                positions: &positions,
                seqs: &seqs,
                slots: &slots,
                logit_rows: &logit_rows,
                ctx_tokens: self.layout.ctx_tokens,
            };
            match piece {
                0 => self.arch.embed(&mut step)?,
                _ if piece <= layers => self.arch.layer(piece - 1, &mut step)?,
                _ => self.arch.head(&mut step)?,
            }
        }
        Ok(())
    }
}

/// The numbers of rows to rehearse where up to `most` come: one of every class that kernels may be made for.
fn classes(most: usize) -> impl Iterator<Item = usize> {
    let powers = std::iter::successors(Some(1), |rows: &usize| rows.checked_mul(2));
    powers.take_while(move |&rows| rows < most).chain([most])
}

#[cfg(test)]
mod tests {
    use super::classes;

    #[test]
    fn classes_are_the_powers_of_two_and_the_most() {
        assert_eq!(classes(1).collect::<Vec<_>>(), [1]);
        assert_eq!(classes(2).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(classes(100).collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 64, 100]);
    }
}
