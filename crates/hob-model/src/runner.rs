//! The runner: binds an architecture to a device and walks embed, layer(i), head over a batch.
//!
//! It owns the layer loop, the handles of everything a model holds, and the checks of a batch. It must not know any
//! architecture, nor what the logits are used for. After the first step of a kind, a step allocates nothing.

mod load;
mod memory;
mod rehearse;

pub use memory::{Image, MemoryUse};

use std::sync::Arc;

use hob_compute::{AppendKv, Buf, Commit, Compute, SeqRows, SlotRows, Token};
use hob_files::ModelFile;

use crate::arch::Architecture;
use crate::blocks::Step;
use crate::identity::identity;
use crate::source::FileTensors;
use crate::state::{PagePools, Prefixes, Sequence, Sequences, StateBuf, snapshot_budget};
use crate::{Batch, Layout, ModelError, ModelInfo, Result, SeqId, TensorSource};
use load::{Held, Room};

/// Consecutive rows of a batch that belong to one sequence.
#[derive(Copy, Clone, Debug)]
struct Span {
    sequence: SeqId,
    row: usize,
    rows: usize,
    position: usize,
    /// Whether its rows may be taken back.
    draft: bool,
}

/// A loaded model: weights, pages and buffers on one device, and the sequences that live in it.
///
/// It keeps handles only; pass the same device to every call, and [`Model::unload`] in the end.
pub struct Model {
    info: ModelInfo,
    layout: Layout,
    arch: Box<dyn Architecture>,
    /// `TensorSource::model_id`
    id: String,
    held: Held,
    room: Room,
    sequences: Sequences,
    /// Buffers of recurrent state, some rows per sequence.
    states: Vec<StateBuf>,
    /// Whether pages hold f32.
    exact: bool,
    // The rows of the step that runs, refilled by each.
    tokens: Vec<Token>,
    positions: Vec<u32>,
    logit_rows: Vec<usize>,
    spans: Vec<Span>,
    seq_rows: Vec<SeqRows<'static>>,
    slot_rows: Vec<SlotRows>,
}

impl Model {
    /// Loads a file. `progress` gets bytes done and in total after each tensor.
    ///
    /// # Errors
    /// What [`ModelInfo::read`] and [`Model::load_from`] refuse.
    pub fn load(
        file: Arc<ModelFile>,
        dev: &mut dyn Compute,
        layout: &Layout,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Model> {
        let info = ModelInfo::read(&file)?;
        Self::load_from(&FileTensors(file), info, dev, layout, progress)
    }

    /// Loads the tensors of `info` from `source`. Whatever was loaded before an error is released again.
    ///
    /// # Errors
    /// [`ModelError::Layout`] for a layout without rows, [`ModelError::MissingTensor`], and what the device says, with
    /// the tensor's name.
    pub fn load_from(
        source: &dyn TensorSource,
        info: ModelInfo,
        dev: &mut dyn Compute,
        layout: &Layout,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Model> {
        layout.check()?;
        let (arch, _) = crate::info::build(&info.config, info.naming())?;
        // Pages and buffers first: whether they fit is known before gigabytes are read.
        let pools = PagePools::new(&info, layout, dev)?;
        let held = match Held::load(source, &info, dev, &layout.placement, progress) {
            Ok(held) => held,
            Err(e) => return pools.release(dev).and(Err(e)),
        };
        let room = match held.room(&info, dev, layout) {
            Ok(room) => room,
            Err(e) => return pools.release(dev).and(held.release(dev)).and(Err(e)),
        };
        let id = source.model_id();
        let identity = identity(&id, &info, layout, dev.info(), &room.frequencies);
        let prefixes = Prefixes::new(identity, snapshot_budget(&info, layout));
        let sequences = Sequences::new(layout, info.config.layers.len(), pools, prefixes, 0);
        let mut model = Model {
            layout: layout.clone(),
            states: room.states(&info, layout),
            exact: dev.info().exact,
            sequences,
            tokens: Vec::with_capacity(layout.chunk_rows),
            positions: Vec::with_capacity(layout.chunk_rows),
            logit_rows: Vec::with_capacity(layout.logit_rows),
            spans: Vec::with_capacity(layout.sequences),
            seq_rows: Vec::with_capacity(layout.sequences),
            slot_rows: Vec::with_capacity(layout.sequences),
            id,
            info,
            arch,
            held,
            room,
        };
        match model.rehearse(dev) {
            Ok(()) => Ok(model),
            Err(e) => model.unload(dev).and(Err(e)),
        }
    }

    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Starts an empty sequence.
    ///
    /// # Errors
    /// [`ModelError::SequencesTaken`] when the layout's sequences are all in use.
    pub fn new_sequence(&mut self) -> Result<SeqId> {
        self.sequences.open()
    }

    /// Ends a sequence. Its pages go back to their pools; what was sealed or kept stays until the room is needed.
    ///
    /// # Errors
    /// [`ModelError::UnknownSequence`].
    pub fn free_sequence(&mut self, id: SeqId) -> Result<()> {
        self.sequences.close(id)
    }

    /// Tokens the sequence holds; the position of its next row.
    ///
    /// # Errors
    /// [`ModelError::UnknownSequence`].
    pub fn seq_len(&self, id: SeqId) -> Result<usize> {
        self.sequences.get(id).map(|s| s.len)
    }

    /// Whether [`Model::truncate`] to `positions` would succeed: recurrent state goes back within the rows of the last
    /// step that were drafts ([`crate::Row::draft`]) and no further, rings as far as they [reach](ModelInfo::rolls_back),
    /// and layers with a window do not keep what has left it. [`Model::resume`] may still find such a prefix.
    ///
    /// # Errors
    /// [`ModelError::UnknownSequence`].
    pub fn can_truncate(&self, id: SeqId, positions: usize) -> Result<bool> {
        let slot = self.sequences.slot(id)?;
        let &Sequence { len, state_len, held, reached, .. } = self.sequences.at(slot);
        if self.info.recurrent() && positions != 0 && positions < len {
            let in_rings =
                self.info.rolls_back().is_none_or(|back| reached <= positions.saturating_add(back));
            let in_held = !self.info.holds() || positions >= len - held;
            if state_len != len || !in_rings || !in_held {
                return Ok(false);
            }
        }
        Ok(positions <= len && self.sequences.sees_all(slot, positions))
    }

    /// Forgets all but the first `positions` tokens: drafts that were not accepted leave no trace in what follows.
    ///
    /// # Errors
    /// [`ModelError::UnknownSequence`]; [`ModelError::Batch`] when the sequence holds fewer; [`ModelError::Rollback`]
    /// where [`Model::can_truncate`] says no.
    pub fn truncate(&mut self, id: SeqId, positions: usize) -> Result<()> {
        let held = self.seq_len(id)?;
        if positions < held && !self.can_truncate(id, positions)? {
            return Err(ModelError::Rollback { held, wanted: positions });
        }
        self.sequences.truncate(id, positions)?;
        let slot = self.sequences.slot(id)?;
        if self.info.recurrent() && positions > 0 && positions < held {
            self.sequences.at_mut(slot).state_len = positions;
        }
        Ok(())
    }

    /// The buffer of logits, `[layout.logit_rows, vocab]`: rows that wanted them, in the order of the last batch.
    pub fn logits(&self) -> Buf {
        self.room.bufs[self.arch.logits().0]
    }

    /// Computes a batch and lengthens its sequences. Gives the number of rows with logits.
    ///
    /// # Errors
    /// [`ModelError::Batch`] for rows that do not continue their sequences or exceed the layout,
    /// [`ModelError::ContextOverflow`], [`ModelError::UnknownSequence`], and what the device says. After an error the
    /// sequences are as long as before; with recurrent state, those of a batch that failed on the device are empty.
    pub fn step(&mut self, dev: &mut dyn Compute, batch: &Batch) -> Result<usize> {
        self.admit(batch)?;
        for i in 0..self.spans.len() {
            let Span { sequence, rows, position, .. } = self.spans[i];
            let slot = self.sequences.slot(sequence)?;
            self.sequences.reserve(dev, slot, position + rows)?;
        }
        self.slot_rows.clear();
        let (sequences, holds) = (&self.sequences, self.info.holds());
        self.slot_rows.extend(self.spans.iter().map(|s| {
            let slot = s.sequence.index as usize;
            let commit = if s.draft && holds { Commit::Hold } else { Commit::Now };
            let accepted = sequences.at(slot).held;
            SlotRows { row: s.row, rows: s.rows, position: s.position, slot, accepted, commit }
        }));
        if let Err(e) = self.run(dev) {
            self.drop_states()?;
            return Err(e);
        }
        for &Span { sequence, row, rows, position, draft } in &self.spans {
            let slot = self.sequences.slot(sequence)?;
            let tokens = self.tokens[row..row + rows].iter().map(|&token| match token {
                Token::Host(id) => Some(id),
                Token::Device(_) => None,
            });
            self.sequences.commit(slot, position + rows, tokens);
            let sequence = self.sequences.at_mut(slot);
            sequence.state_len = position + rows;
            sequence.held = if draft && holds { rows } else { 0 };
        }
        Ok(self.logit_rows.len())
    }

    /// Lengthens a sequence by `rows` positions whose K and V are given instead of computed, the same in every layer of
    /// one width: a bench measures deep contexts so without prefilling them. Recurrent layers keep what they remembered;
    /// no other sequence ever shares such positions. `kv` holds K and V by `kv_heads * head_dim`, `[>= rows, width]`.
    ///
    /// # Errors
    /// [`ModelError::UnknownSequence`], [`ModelError::ContextOverflow`], [`ModelError::Layout`] for a layer of a width that
    /// `kv` lacks, and what the device says. After an error the sequence may be longer by some of the rows.
    pub fn extend_synthetic(
        &mut self,
        dev: &mut dyn Compute,
        id: SeqId,
        rows: usize,
        kv: &[(usize, [Buf; 2])],
    ) -> Result<()> {
        let slot = self.sequences.slot(id)?;
        let start = self.sequences.at(slot).len;
        let (needed, ctx_tokens) = (start.saturating_add(rows), self.layout.ctx_tokens);
        if needed > ctx_tokens {
            return Err(ModelError::ContextOverflow { needed, ctx_tokens });
        }
        self.catch_up(dev, slot)?;
        let sequence = self.sequences.at_mut(slot);
        sequence.genuine = sequence.genuine.min(start);
        // In chunks: windows have room for no more.
        for row in (0..rows).step_by(self.layout.chunk_rows) {
            let (position, rows) = (start + row, self.layout.chunk_rows.min(rows - row));
            self.sequences.reserve(dev, slot, position + rows)?;
            for layer in 0..self.info.config.layers.len() {
                let pages = self.sequences.pages(id, layer);
                if !pages.is_empty() {
                    let width = self.info.config.layers[layer].kv_width();
                    let Some(&(_, [k, v])) = kv.iter().find(|(of, _)| *of == width) else {
                        return Err(ModelError::layout(format!("K and V of width {width}"), "none"));
                    };
                    dev.append_kv(&AppendKv { k, v, seqs: &[SeqRows { row, rows, position, pages }] })?;
                }
            }
            self.sequences.commit(slot, position + rows, std::iter::empty());
            self.sequences.at_mut(slot).state_len = position + rows;
        }
        Ok(())
    }

    /// After a failed step: recurrent state may have moved on in some layers and not in others.
    fn drop_states(&mut self) -> Result<()> {
        if !self.info.recurrent() {
            return Ok(());
        }
        self.spans.iter().try_for_each(|s| self.sequences.truncate(s.sequence, 0))
    }

    /// Returns everything to the device.
    ///
    /// # Errors
    /// What the device says.
    pub fn unload(self, dev: &mut dyn Compute) -> Result<()> {
        let (weights, room) = (self.held.release(dev), self.room.release(dev));
        self.sequences.pools.release(dev).and(room).and(weights)
    }

    /// Checks a batch and splits it into spans.
    fn admit(&mut self, batch: &Batch) -> Result<()> {
        self.tokens.clear();
        self.positions.clear();
        self.logit_rows.clear();
        self.spans.clear();
        let most = self.layout.chunk_rows;
        if batch.rows.is_empty() || batch.rows.len() > most {
            return Err(ModelError::batch(format!("1 to {most} rows (chunk_rows)"), batch.rows.len()));
        }
        let wanted = batch.rows.iter().filter(|r| r.logits).count();
        if wanted > self.layout.logit_rows {
            let most = self.layout.logit_rows;
            return Err(ModelError::batch(format!("at most {most} rows with logits (logit_rows)"), wanted));
        }
        for (at, row) in batch.rows.iter().enumerate() {
            let position = row.position as usize;
            let span = match self.spans.last_mut() {
                Some(span) if span.sequence == row.sequence => span,
                _ => self.open_span(row.sequence, at)?,
            };
            let next = span.position + span.rows;
            if position != next {
                let expected = format!("position {next} in row {at}, where its sequence continues");
                return Err(ModelError::batch(expected, format!("position {position}")));
            }
            span.rows += 1;
            span.draft |= row.draft;
            self.tokens.push(row.token);
            self.positions.push(row.position);
            if row.logits {
                self.logit_rows.push(at);
            }
        }
        let held = if self.info.holds() { self.layout.held_rows } else { usize::MAX };
        let most = self.info.rolls_back().map_or(held, |back| held.min(back));
        if let Some(span) = self.spans.iter().find(|s| s.draft && s.rows > most) {
            let why = if most == held { "held_rows" } else { "what its rings keep" };
            let expected = format!("at most {most} rows of a sequence with drafts among them ({why})");
            return Err(ModelError::batch(expected, span.rows));
        }
        let ctx_tokens = self.layout.ctx_tokens;
        match self.spans.iter().map(|s| s.position + s.rows).find(|&needed| needed > ctx_tokens) {
            Some(needed) => Err(ModelError::ContextOverflow { needed, ctx_tokens }),
            None => Ok(()),
        }
    }

    fn open_span(&mut self, sequence: SeqId, row: usize) -> Result<&mut Span> {
        let at = self.sequences.get(sequence)?;
        let (position, state_len) = (at.len, at.state_len);
        if self.info.recurrent() && state_len != position {
            let expected = format!("the recurrent state at {position} tokens (see Model::restore)");
            return Err(ModelError::image(expected, format!("that at {state_len}")));
        }
        if self.spans.iter().any(|s| s.sequence == sequence) {
            let expected = "the rows of one sequence side by side";
            return Err(ModelError::batch(
                expected,
                format!("row {row} of a sequence that another interrupted"),
            ));
        }
        self.spans.push(Span { sequence, row, rows: 0, position, draft: false });
        Ok(self.spans.last_mut().expect("a span was just pushed"))
    }

    fn run(&mut self, dev: &mut dyn Compute) -> Result<()> {
        let layers = self.info.config.layers.len();
        self.with_step(dev, None, |arch, step| arch.embed(step))?;
        for i in 0..layers {
            self.with_step(dev, Some(i), |arch, step| arch.layer(i, step))?;
        }
        self.with_step(dev, None, |arch, step| arch.head(step))
    }

    /// Runs one piece of the architecture; `layer` says whose pages it sees.
    fn with_step(
        &mut self,
        dev: &mut dyn Compute,
        layer: Option<usize>,
        piece: impl FnOnce(&dyn Architecture, &mut Step) -> Result<()>,
    ) -> Result<()> {
        // The vector of borrowed page tables is emptied and stored under the longest lifetime between uses, so that
        // its allocation survives; an empty vector borrows nothing.
        let mut seqs: Vec<SeqRows> = std::mem::take(&mut self.seq_rows);
        if let Some(layer) = layer.map(|layer| self.info.config.kv_layer(layer)) {
            seqs.extend(self.spans.iter().map(|s| SeqRows {
                row: s.row,
                rows: s.rows,
                position: s.position,
                pages: self.sequences.pages(s.sequence, layer),
            }));
        }
        let mut step = Step {
            dev,
            weights: &self.held.weights,
            bufs: &self.room.bufs,
            memories: &self.room.memories,
            ropes: &self.room.ropes,
            tokens: &self.tokens,
            positions: &self.positions,
            seqs: &seqs,
            slots: &self.slot_rows,
            logit_rows: &self.logit_rows,
            ctx_tokens: self.layout.ctx_tokens,
        };
        let result = piece(self.arch.as_ref(), &mut step);
        self.seq_rows = recycle(seqs);
        result
    }
}

/// Empties a vector and lengthens the lifetime of its (no longer existing) elements. Collecting from an emptied vector
/// of the same layout reuses its allocation.
fn recycle(mut seqs: Vec<SeqRows<'_>>) -> Vec<SeqRows<'static>> {
    seqs.clear();
    seqs.into_iter().map(|s| SeqRows { row: s.row, rows: s.rows, position: s.position, pages: &[] }).collect()
}
