//! The sequences that live: slots made at load, each with its length, its tokens and its tables of pages.
//!
//! It owns how pages come to a sequence and leave it again. A page whose number is below that of the sequence's nodes
//! belongs to its node and is read only, but for the rows behind the node's own.

use hob_compute::{Compute, PAGE_POSITIONS, Page};

use super::prefixes::{Freed, NodeId};
use super::{PagePools, Prefixes};
use crate::{Layout, ModelError, Result, SeqId};

/// One slot.
pub(crate) struct Sequence {
    generation: u32,
    alive: bool,
    /// Positions whose K and V are valid.
    pub len: usize,
    /// Positions that the recurrent state has seen; `len`, unless K and V were imported.
    pub state_len: usize,
    /// The most positions that were written since the first: rings have lost what is further behind than they are long.
    pub reached: usize,
    /// The last of them, as far as they are still held: the sequence can go back there.
    pub held: usize,
    /// The first tokens, as far as they are known: not beyond `len`, and not beyond tokens that only the device knew.
    pub tokens: Vec<u32>,
    /// Positions from here on are made up and never shared.
    pub genuine: usize,
    /// The nodes of the first pages. All are full but perhaps the last.
    pub nodes: Vec<NodeId>,
    /// By group.
    pub groups: Vec<Table>,
    /// Per layer, the pages of positions 0..; may reach beyond `len`.
    pages: Vec<Vec<Page>>,
}

/// The sheets of a sequence in one group.
pub(crate) struct Table {
    /// By page; `None` behind the window.
    pub sheets: Vec<Option<u32>>,
    /// The first page that is held.
    pub from: usize,
}

/// All slots of a model, with the pages and nodes that they draw on.
pub(crate) struct Sequences {
    slots: Vec<Sequence>,
    pub pools: PagePools,
    pub prefixes: Prefixes,
    pub ctx_tokens: usize,
    /// Sheets that a change of the index set free, until they are back in their pools.
    freed: Vec<Freed>,
}

impl Sequences {
    /// `generation` is above that of any sequence that ever lived in the model.
    pub fn new(
        layout: &Layout,
        layers: usize,
        pools: PagePools,
        prefixes: Prefixes,
        generation: u32,
    ) -> Self {
        let pages = layout.pages_per_sequence();
        let table = |_| Table { sheets: Vec::with_capacity(pages), from: 0 };
        let slot = |_| Sequence {
            generation,
            alive: false,
            len: 0,
            state_len: 0,
            reached: 0,
            held: 0,
            tokens: Vec::with_capacity(layout.ctx_tokens),
            genuine: usize::MAX,
            nodes: Vec::with_capacity(pages),
            groups: (0..pools.count()).map(table).collect(),
            pages: (0..layers).map(|_| Vec::with_capacity(pages)).collect(),
        };
        let slots = (0..layout.sequences).map(slot).collect();
        Sequences { slots, pools, prefixes, ctx_tokens: layout.ctx_tokens, freed: Vec::new() }
    }

    /// # Errors
    /// [`ModelError::SequencesTaken`].
    pub fn open(&mut self) -> Result<SeqId> {
        let sequences = self.slots.len();
        let Some(index) = self.slots.iter().position(|s| !s.alive) else {
            return Err(ModelError::SequencesTaken { sequences });
        };
        let slot = &mut self.slots[index];
        slot.alive = true;
        Ok(SeqId { index: index as u32, generation: slot.generation })
    }

    /// # Errors
    /// [`ModelError::UnknownSequence`].
    pub fn close(&mut self, id: SeqId) -> Result<()> {
        let at = self.slot(id)?;
        self.cut(at, 0);
        let slot = &mut self.slots[at];
        slot.alive = false;
        slot.generation = slot.generation.wrapping_add(1);
        Ok(())
    }

    /// Whether any sequence lives.
    pub fn any(&self) -> bool {
        self.slots.iter().any(|s| s.alive)
    }

    /// One that no sequence ever had.
    pub fn next_generation(&self) -> u32 {
        self.slots.iter().map(|s| s.generation).max().unwrap_or(0).wrapping_add(1)
    }

    /// # Errors
    /// [`ModelError::UnknownSequence`].
    pub fn get(&self, id: SeqId) -> Result<&Sequence> {
        self.slot(id).map(|at| &self.slots[at])
    }

    /// Sequences that live.
    pub fn alive(&self) -> impl Iterator<Item = &Sequence> {
        self.slots.iter().filter(|s| s.alive)
    }

    /// The slot of a sequence.
    ///
    /// # Errors
    /// [`ModelError::UnknownSequence`].
    pub fn slot(&self, id: SeqId) -> Result<usize> {
        let at = id.index as usize;
        let known = self.slots.get(at).is_some_and(|s| s.alive && s.generation == id.generation);
        if known { Ok(at) } else { Err(unknown(id)) }
    }

    pub fn at(&self, slot: usize) -> &Sequence {
        &self.slots[slot]
    }

    pub fn at_mut(&mut self, slot: usize) -> &mut Sequence {
        &mut self.slots[slot]
    }

    /// Forgets positions from `len` on.
    ///
    /// # Errors
    /// [`ModelError::UnknownSequence`]; [`ModelError::Batch`] for a length above the present one.
    pub fn truncate(&mut self, id: SeqId, len: usize) -> Result<()> {
        let at = self.slot(id)?;
        let held = self.slots[at].len;
        if len > held {
            return Err(ModelError::batch(format!("a length of at most {held}, to truncate to"), len));
        }
        self.cut(at, len);
        Ok(())
    }

    /// Forgets positions from `len` on and lets go of pages that hold none.
    pub fn cut(&mut self, slot: usize, len: usize) {
        let keep = len.div_ceil(PAGE_POSITIONS);
        for group in 0..self.pools.count() {
            // Last taken, first returned: the low pages end on top of the free list.
            while self.slots[slot].groups[group].sheets.len() > keep {
                let page = self.slots[slot].groups[group].sheets.len() - 1;
                self.drop_sheet(slot, group, page);
                let Sequence { groups, pages, .. } = &mut self.slots[slot];
                let table = &mut groups[group];
                table.sheets.pop();
                table.from = table.from.min(table.sheets.len());
                self.pools.group(group).layers.iter().for_each(|&layer| pages[layer].truncate(page));
            }
        }
        while self.slots[slot].nodes.len() > keep {
            let last = self.slots[slot].nodes.pop();
            last.into_iter().for_each(|node| self.prefixes.let_go(node, &mut self.freed));
        }
        self.collect();
        let slot = &mut self.slots[slot];
        slot.len = len;
        slot.tokens.truncate(len);
        let back = slot.state_len.saturating_sub(len);
        // State of 0 positions is always right, and never that of more.
        let kept = if back <= slot.held { (slot.state_len - back, slot.held - back) } else { (0, 0) };
        (slot.state_len, slot.held) = if len == 0 { (0, 0) } else { kept };
        slot.reached = if len == 0 { 0 } else { slot.reached };
        slot.genuine = if len <= slot.genuine { usize::MAX } else { slot.genuine };
    }

    /// Gives the sequence pages that it may write from its end up to `len`, and lets go of those behind every window.
    ///
    /// # Errors
    /// What the device says of a copied page; [`ModelError::Layout`] when a pool is used up, which a layout of whole
    /// sequences rules out.
    pub fn reserve(&mut self, dev: &mut dyn Compute, slot: usize, len: usize) -> Result<()> {
        self.slide(slot, self.slots[slot].len);
        let (page, rows) = (self.slots[slot].len / PAGE_POSITIONS, self.slots[slot].len % PAGE_POSITIONS);
        if let Some(&node) = self.slots[slot].nodes.get(page)
            && self.prefixes.node(node).tokens.len() > rows
        {
            self.leave_node(dev, slot, rows)?;
        }
        let need = len.div_ceil(PAGE_POSITIONS);
        for group in 0..self.pools.count() {
            while self.slots[slot].groups[group].sheets.len() < need {
                let page = self.slots[slot].groups[group].sheets.len();
                let sheet = self.take_sheet(group, page)?;
                self.put_sheet(slot, group, page, Some(sheet));
            }
        }
        Ok(())
    }

    /// Lets go of the pages that no row from position `len` on will see.
    pub fn slide(&mut self, slot: usize, len: usize) {
        for group in 0..self.pools.count() {
            let seen = self.pools.group(group).first_page(len);
            let Table { from, ref sheets } = self.slots[slot].groups[group];
            for page in from..seen.min(sheets.len()) {
                self.drop_sheet(slot, group, page);
                self.put_sheet(slot, group, page, None);
            }
            let table = &mut self.slots[slot].groups[group];
            table.from = table.from.max(seen.min(table.sheets.len()));
        }
    }

    /// Makes the last page, of which the sequence has `rows`, its own, so that it may be written.
    fn leave_node(&mut self, dev: &mut dyn Compute, slot: usize, rows: usize) -> Result<()> {
        let page = self.slots[slot].nodes.len() - 1;
        let node = self.slots[slot].nodes[page];
        let sheets = self.copied(dev, node, rows)?;
        for (group, &sheet) in sheets.iter().enumerate() {
            self.put_sheet(slot, group, page, Some(sheet));
        }
        self.slots[slot].nodes.pop();
        Ok(())
    }

    /// Sheets with the first `rows` rows of a node that the caller holds in full, and holds no longer afterwards. They
    /// are copies; but the node's own when the pools are used up and nobody else has it.
    ///
    /// # Errors
    /// As [`Sequences::reserve`]; the node is still held then.
    pub fn copied(&mut self, dev: &mut dyn Compute, node: NodeId, rows: usize) -> Result<Vec<u32>> {
        let page = self.prefixes.node(node).page;
        let mut sheets = Vec::with_capacity(self.pools.count());
        let mut failure = None;
        for group in 0..self.pools.count() {
            let copy = self.take_sheet(group, page).and_then(|sheet| {
                sheets.push(sheet);
                let from = self.prefixes.node(node).held[group].sheet;
                from.map_or(Ok(()), |from| self.pools.copy(dev, group, page, [from, sheet], rows))
            });
            if let Err(e) = copy {
                failure = Some(e);
                break;
            }
        }
        let Some(failure) = failure else {
            self.unpin(node);
            return Ok(sheets);
        };
        for (group, sheet) in sheets.into_iter().enumerate() {
            self.pools.give_back(group, page, sheet);
        }
        let own = matches!(failure, ModelError::Layout { .. }) && self.prefixes.is_sole(node);
        if !own {
            return Err(failure);
        }
        let node = self.prefixes.take_out(node);
        Ok(node.held.iter().filter_map(|h| h.sheet).collect())
    }

    /// Holds a node with all its sheets, so that nothing evicts it.
    pub fn pin(&mut self, node: NodeId) {
        let node = self.prefixes.node_mut(node);
        node.live += 1;
        node.held.iter_mut().filter(|h| h.sheet.is_some()).for_each(|h| h.live += 1);
    }

    pub fn unpin(&mut self, node: NodeId) {
        let held = self.prefixes.node_mut(node).held.iter_mut();
        held.filter(|h| h.sheet.is_some()).for_each(|h| h.live -= 1);
        self.prefixes.let_go(node, &mut self.freed);
        self.collect();
    }

    /// A free sheet for page `page`; whatever is kept of least value goes if there is none.
    fn take_sheet(&mut self, group: usize, page: usize) -> Result<u32> {
        let beginnings = self.pools.is_first(group, 0);
        let beginning = self.pools.is_first(group, page);
        let wanted = |page: usize| !beginnings || (page == 0) == beginning;
        loop {
            if let Some(sheet) = self.pools.take(group, page) {
                return Ok(sheet);
            }
            let evicted = if self.pools.group(group).window.is_some() {
                self.prefixes.evict_sheet(group, wanted, &mut self.freed)
            } else {
                self.prefixes.evict(beginning, wanted, &mut self.freed)
            };
            self.collect();
            if !evicted {
                return Err(ModelError::layout(format!("a free sheet of group {group}"), "none"));
            }
        }
    }

    /// Lets go of a sheet that the tables still name: back to its pool, unless a node has it.
    pub fn drop_sheet(&mut self, slot: usize, group: usize, page: usize) {
        let slot = &self.slots[slot];
        let Some(sheet) = slot.groups[group].sheets[page] else { return };
        match slot.nodes.get(page) {
            Some(&node) => self.prefixes.node_mut(node).held[group].live -= 1,
            None => self.pools.give_back(group, page, sheet),
        }
    }

    /// Writes a sheet into the tables of its group.
    pub fn put_sheet(&mut self, slot: usize, group: usize, page: usize, sheet: Option<u32>) {
        let Sequence { groups, pages, .. } = &mut self.slots[slot];
        set(&mut groups[group].sheets, page, sheet);
        let layers = self.pools.group(group).layers.iter();
        match sheet {
            Some(sheet) => {
                let given = self.pools.pages(group, page, sheet);
                layers.zip(given).for_each(|(&layer, given)| set(&mut pages[layer], page, given));
            }
            None => layers.for_each(|&layer| set(&mut pages[layer], page, Page::RELEASED)),
        }
    }

    /// Returns what the index set free to the pools.
    pub fn collect(&mut self) {
        for (group, page, sheet) in self.freed.drain(..) {
            self.pools.give_back(group, page, sheet);
        }
    }

    /// The index, and where it puts sheets that [`Sequences::collect`] is to return.
    pub fn index(&mut self) -> (&mut Prefixes, &mut Vec<Freed>) {
        (&mut self.prefixes, &mut self.freed)
    }

    /// The pages of `layer`.
    pub fn pages(&self, id: SeqId, layer: usize) -> &[Page] {
        self.slots.get(id.index as usize).map_or(&[], |s| s.pages[layer].as_slice())
    }

    /// Whether what rows from `len` on see of windowed layers is all still held.
    pub fn sees_all(&self, slot: usize, len: usize) -> bool {
        let slot = &self.slots[slot];
        let groups = self.pools.groups().zip(&slot.groups);
        let pages = len.div_ceil(PAGE_POSITIONS);
        groups.into_iter().all(|(group, table)| {
            let first = group.first_page(len);
            first >= pages || first >= table.from
        })
    }

    /// Declares positions below `len` valid; `tokens` continue those known, if they follow without a gap.
    pub fn commit(&mut self, slot: usize, len: usize, tokens: impl Iterator<Item = Option<u32>>) {
        let slot = &mut self.slots[slot];
        if slot.tokens.len() == slot.len {
            slot.tokens.extend(tokens.map_while(|token| token).take(len - slot.len));
        }
        slot.len = len;
        slot.reached = slot.reached.max(len);
    }
}

/// Replaces an element or appends it.
fn set<T>(list: &mut Vec<T>, at: usize, value: T) {
    match list.get_mut(at) {
        Some(place) => *place = value,
        None => list.push(value),
    }
}

fn unknown(id: SeqId) -> ModelError {
    ModelError::UnknownSequence { sequence: format!("sequence {}.{}", id.index, id.generation) }
}
