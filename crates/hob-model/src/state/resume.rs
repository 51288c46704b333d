//! Resuming: the longest prefix of some tokens that is in memory, and how a sequence comes to hold it.

use hob_compute::{Buf, Compute, Memory, PAGE_POSITIONS, Recurrence};

use super::prefixes::{Chain, NodeId, common};
use super::{Sequence, Sequences};
use crate::Result;
use crate::blocks::RING_SLACK;
use crate::info::StateShape;

/// Where a sequence can go on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Target {
    pub len: usize,
    /// Where its pages come from.
    pages: Pages,
    /// The node that has the recurrent state at `len`, and where in it.
    snapshot: Option<(NodeId, usize)>,
}

#[derive(Clone, Debug, Default)]
enum Pages {
    /// The sequence has them.
    #[default]
    Own,
    /// Full nodes from the first token on, and where the length is inside a page the node whose rows begin it.
    Chain { full: Vec<NodeId>, tail: Option<NodeId> },
}

/// A recurrent state's buffer, so many rows of a sequence behind those of the one before.
#[derive(Copy, Clone, Debug)]
pub(crate) struct StateBuf {
    pub buf: Buf,
    pub rows: usize,
    pub shape: StateShape,
}

impl StateBuf {
    /// Puts what a sequence of `len` tokens remembers into its rows; gives the rest of `values`.
    ///
    /// # Errors
    /// What the device says.
    pub fn upload<'v>(
        &self,
        dev: &mut dyn Compute,
        slot: usize,
        len: usize,
        values: &'v [f32],
    ) -> Result<&'v [f32]> {
        let (own, rest) = values.split_at(self.shape.floats(len).min(values.len()));
        if !own.is_empty() {
            dev.upload(self.buf, slot * self.rows, own)?;
        }
        Ok(rest)
    }
}

/// What a layer remembers of all sequences, and by which rule it moves on.
#[derive(Copy, Clone, Debug)]
pub(crate) struct LayerMemory {
    pub memory: Memory,
    pub recurrence: Recurrence,
}

impl Sequences {
    /// The longest prefix of `tokens`, of at most `most`, that is in memory. A `recurrent` model can go on only where its
    /// state is known.
    pub fn find(&self, slot: Option<usize>, tokens: &[u32], most: usize, recurrent: bool) -> Target {
        let limit = most.min(tokens.len()).min(self.ctx_tokens);
        let tokens = &tokens[..limit];
        let chain = self.prefixes.find(tokens);
        let sources = Sources { sequences: self, chain };
        let own = slot.map(|slot| self.at(slot)).map_or(0, |s| sources.own(s, tokens, recurrent));
        let other = if recurrent { sources.at_a_snapshot() } else { sources.anywhere() };
        if own >= other.len { Target { len: own, ..Target::default() } } else { other }
    }

    /// Makes the sequence what `target` says for `tokens`. Recurrent state is uploaded to row `slot` of `states`.
    ///
    /// # Errors
    /// What the device says; the sequence is empty then.
    pub fn go_to(
        &mut self,
        dev: &mut dyn Compute,
        slot: usize,
        target: &Target,
        (tokens, states): (&[u32], &[StateBuf]),
    ) -> Result<()> {
        let went = self.take_up(dev, slot, target, states);
        let len = if went.is_ok() { target.len } else { 0 };
        if went.is_err() {
            self.cut(slot, 0);
        }
        let sequence = self.at_mut(slot);
        sequence.tokens.clear();
        sequence.tokens.extend_from_slice(&tokens[..len]);
        went
    }

    fn take_up(
        &mut self,
        dev: &mut dyn Compute,
        slot: usize,
        target: &Target,
        states: &[StateBuf],
    ) -> Result<()> {
        let len = target.len;
        self.prefixes.clock += 1;
        if let Some(snapshot) = target.snapshot {
            self.upload(dev, slot, snapshot, states)?;
        }
        match &target.pages {
            Pages::Own => {
                self.cut(slot, len);
                self.see_again(slot, len);
                let end = self.at(slot).nodes.last().copied();
                end.into_iter().for_each(|end| self.use_end(slot, len, end));
            }
            Pages::Chain { full, tail } => {
                self.take_chain(slot, full, *tail);
                self.see_again(slot, len);
                let end = tail.or(full.last().copied());
                end.into_iter().for_each(|end| self.use_end(slot, len, end));
                if let Some(tail) = *tail {
                    self.take_tail(dev, slot, tail, len % PAGE_POSITIONS)?;
                }
            }
        }
        let sequence = self.at_mut(slot);
        sequence.len = len;
        if target.snapshot.is_some() {
            // What rings keep further back may have been overwritten before the snapshot was taken.
            (sequence.state_len, sequence.held, sequence.reached) = (len, 0, len + RING_SLACK);
        }
        Ok(())
    }

    /// Puts the nodes of `chain` in place of what the sequence has, from the first page where they differ. `tail` is held
    /// too, so that it outlives what the sequence had.
    fn take_chain(&mut self, slot: usize, chain: &[NodeId], tail: Option<NodeId>) {
        let same = self.at(slot).nodes.iter().zip(chain).take_while(|(a, b)| a == b).count();
        // All are held before anything is let go of; their sheets follow.
        chain[same..].iter().for_each(|&node| self.prefixes.node_mut(node).live += 1);
        tail.into_iter().for_each(|node| self.pin(node));
        self.cut(slot, same * PAGE_POSITIONS);
        for (page, &node) in chain.iter().enumerate().skip(same) {
            self.at_mut(slot).nodes.push(node);
            (0..self.pools.count()).for_each(|group| self.put_sheet(slot, group, page, None));
        }
    }

    /// Begins the last page with the first `rows` rows of a pinned node: as its writer, if it ends there and nobody else
    /// is; with a copy otherwise.
    fn take_tail(&mut self, dev: &mut dyn Compute, slot: usize, tail: NodeId, rows: usize) -> Result<()> {
        let page = self.at(slot).nodes.len();
        let node = self.prefixes.node(tail);
        let adopted = !node.is_full() && node.tokens.len() == rows && node.live == 1;
        let sheets: Vec<u32> = match adopted {
            true => node.held.iter().filter_map(|h| h.sheet).collect(),
            false => self.copied(dev, tail, rows).inspect_err(|_| self.unpin(tail))?,
        };
        for (group, &sheet) in sheets.iter().enumerate() {
            self.put_sheet(slot, group, page, Some(sheet));
        }
        if adopted {
            self.at_mut(slot).nodes.push(tail);
        }
        Ok(())
    }

    /// Takes the sheets of the sequence's nodes that rows from `len` on see into its tables, and the others out.
    fn see_again(&mut self, slot: usize, len: usize) {
        for group in 0..self.pools.count() {
            let first = self.pools.group(group).first_page(len).min(self.at(slot).groups[group].sheets.len());
            for page in 0..first {
                self.drop_sheet(slot, group, page);
                self.put_sheet(slot, group, page, None);
            }
            for page in first..self.at(slot).nodes.len() {
                let node = self.at(slot).nodes[page];
                if self.at(slot).groups[group].sheets[page].is_some() {
                    continue;
                }
                let held = &mut self.prefixes.node_mut(node).held[group];
                held.live += u32::from(held.sheet.is_some());
                let sheet = held.sheet;
                self.put_sheet(slot, group, page, sheet);
            }
            self.at_mut(slot).groups[group].from = first;
        }
    }

    fn upload(
        &mut self,
        dev: &mut dyn Compute,
        slot: usize,
        (node, at): (NodeId, usize),
        states: &[StateBuf],
    ) -> Result<()> {
        self.prefixes.touch_snapshot(node, at);
        let found = self.prefixes.node(node).snapshots.iter().find(|s| s.at == at);
        let mut values = found.map_or(&[][..], |s| &s.values);
        let len = self.prefixes.node(node).page * PAGE_POSITIONS + at;
        for state in states {
            values = state.upload(dev, slot, len, values)?;
        }
        Ok(())
    }
}

/// What there is to choose from.
struct Sources<'a> {
    sequences: &'a Sequences,
    chain: Chain,
}

impl Sources<'_> {
    /// How far a sequence can go on with what it has itself.
    fn own(&self, sequence: &Sequence, tokens: &[u32], recurrent: bool) -> usize {
        let shared = common(&sequence.tokens, tokens);
        if recurrent {
            let there = sequence.state_len == sequence.len && shared >= sequence.len - sequence.held;
            return if there { shared } else { 0 };
        }
        self.seen(shared, |group, page| {
            let held = sequence.groups[group].sheets.get(page).is_some_and(|sheet| sheet.is_some());
            held || sequence.nodes.get(page).is_some_and(|&id| self.in_node(id, group))
        })
    }

    /// Of a model that remembers only K and V.
    fn anywhere(self) -> Target {
        let indexed = self.chain.nodes.len() * PAGE_POSITIONS;
        let complete = |id: NodeId| self.sequences.prefixes.node(id).is_complete();
        let tail = self.chain.tails.iter().filter(|t| complete(t.0)).max_by_key(|t| t.1).copied();
        let most = indexed + tail.map_or(0, |t| t.1);
        let len = self.in_chain(most, tail.map(|t| t.0));
        self.target(len, tail.map(|t| t.0), None)
    }

    /// Of a model with recurrent state: where a snapshot was taken.
    fn at_a_snapshot(self) -> Target {
        let mut best = (0, None, None);
        let inner = self.chain.nodes.iter().enumerate().map(|(page, &id)| (page, id, PAGE_POSITIONS));
        let last = self.chain.nodes.len();
        let outer = self.chain.tails.iter().map(|&(id, shared)| (last, id, shared));
        for (page, id, shared) in inner.chain(outer) {
            let tail = (page == last).then_some(id);
            for snapshot in &self.sequences.prefixes.node(id).snapshots {
                let len = page * PAGE_POSITIONS + snapshot.at;
                if snapshot.at <= shared && len > best.0 && self.in_chain(len, tail) == len {
                    best = (len, tail, Some((id, snapshot.at)));
                }
            }
        }
        let (len, tail, snapshot) = best;
        self.target(len, tail, snapshot)
    }

    /// The longest length of at most `len` of which the chain and `tail` behind it have all that rows see.
    fn in_chain(&self, len: usize, tail: Option<NodeId>) -> usize {
        self.seen(len, |group, page| match self.chain.nodes.get(page) {
            Some(&id) => self.in_node(id, group),
            None => tail.is_some_and(|id| self.in_node(id, group)),
        })
    }

    /// The longest length of at most `len` at which no page of a window is missing.
    fn seen(&self, len: usize, has: impl Fn(usize, usize) -> bool) -> usize {
        let mut len = len;
        while len > 0 {
            let groups = self.sequences.pools.groups().enumerate().filter(|(_, g)| g.window.is_some());
            let holes = groups.filter_map(|(group, g)| {
                let mut pages = g.first_page(len)..len.div_ceil(PAGE_POSITIONS);
                pages.rfind(|&page| !has(group, page))
            });
            match holes.max() {
                Some(hole) => len = hole * PAGE_POSITIONS,
                None => break,
            }
        }
        len
    }

    fn in_node(&self, id: NodeId, group: usize) -> bool {
        self.sequences.prefixes.node(id).held[group].sheet.is_some()
    }

    fn target(self, len: usize, tail: Option<NodeId>, snapshot: Option<(NodeId, usize)>) -> Target {
        let mut full = self.chain.nodes;
        let page = len / PAGE_POSITIONS;
        let inside = !len.is_multiple_of(PAGE_POSITIONS);
        let tail = full.get(page).copied().or(tail).filter(|_| inside);
        full.truncate(page);
        Target { len, pages: Pages::Chain { full, tail }, snapshot }
    }
}
