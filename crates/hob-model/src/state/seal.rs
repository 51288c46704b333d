//! Sealing: full pages of a sequence become nodes that others share; an end that is kept becomes one that a later turn
//! finds.

use hob_compute::PAGE_POSITIONS;

use super::Sequences;
use super::prefixes::{NodeId, ROOT};
use crate::{ModelError, Result};

impl Sequences {
    /// Makes nodes of the full pages. `tokens` are the sequence's, as far as they are known: the last ones may be on the
    /// device still, and pages with such tokens wait.
    ///
    /// # Errors
    /// [`ModelError::Batch`] for tokens that are not what was computed.
    pub fn seal(&mut self, slot: usize, tokens: &[u32]) -> Result<()> {
        let known = self.at(slot).len.min(tokens.len());
        let end = known.min(self.at(slot).genuine);
        let first = self.full_nodes(slot);
        if (first + 1) * PAGE_POSITIONS <= end {
            self.learn(slot, tokens)?;
        }
        for page in first..end / PAGE_POSITIONS {
            self.seal_page(slot, page);
        }
        self.slide(slot, known);
        Ok(())
    }

    /// Makes a node of the end of the sequence, wherever it is, and says which, and how many of its tokens come before the
    /// end. `None` where there is nothing to keep.
    ///
    /// # Errors
    /// As [`Sequences::seal`], and for tokens that are too few.
    pub fn keep(&mut self, slot: usize, tokens: &[u32]) -> Result<Option<(NodeId, usize)>> {
        let len = self.at(slot).len;
        if tokens.len() < len {
            return Err(ModelError::batch(format!("the {len} tokens of the sequence"), tokens.len()));
        }
        self.learn(slot, tokens)?;
        self.seal(slot, tokens)?;
        let len = self.at(slot).len;
        if len == 0 || len > self.at(slot).genuine {
            return Ok(None);
        }
        self.prefixes.clock += 1;
        let (page, rows) = (len / PAGE_POSITIONS, len % PAGE_POSITIONS);
        let (node, at) = match rows {
            0 => (self.at(slot).nodes[page - 1], PAGE_POSITIONS),
            _ => (self.end_node(slot, page, rows), rows),
        };
        let (prefixes, freed) = self.index();
        prefixes.absorb(node, freed);
        self.collect();
        self.use_end(slot, len, node);
        Ok(Some((node, at)))
    }

    /// The node of an end `rows` rows into page `page`.
    fn end_node(&mut self, slot: usize, page: usize, rows: usize) -> NodeId {
        let start = page * PAGE_POSITIONS;
        let parent = self.parent_of(slot, page);
        if let Some(&node) = self.at(slot).nodes.get(page) {
            let tokens = self.at(slot).tokens[start..].to_vec();
            // A sequence that went back within the node has fewer.
            if self.prefixes.node(node).tokens.len() < rows {
                self.prefixes.extend(node, &tokens);
            }
            return node;
        }
        let tokens = self.at(slot).tokens[start..].to_vec();
        if let Some(node) = self.prefixes.covering(parent, &tokens) {
            return node;
        }
        let sheets = self.sheets_of(slot, page);
        let node = self.prefixes.add(parent, page, &tokens, &sheets);
        self.at_mut(slot).nodes.push(node);
        node
    }

    /// Counts a use of the chain up to an end, and of what its windows see.
    pub fn use_end(&mut self, slot: usize, len: usize, end: NodeId) {
        let first: Vec<usize> = self.pools.groups().map(|g| g.first_page(len)).collect();
        let mut chain = self.at(slot).nodes.clone();
        if !chain.contains(&end) {
            chain.push(end);
        }
        let clock = self.prefixes.clock;
        for id in chain {
            self.prefixes.touch(id);
            let node = self.prefixes.node_mut(id);
            let page = node.page;
            let seen = node.held.iter_mut().zip(&first).filter(|(_, first)| page >= **first);
            seen.for_each(|(held, _)| held.stamp = clock);
        }
    }

    /// Full nodes at the beginning of the sequence.
    fn full_nodes(&self, slot: usize) -> usize {
        let nodes = &self.at(slot).nodes;
        let inside = nodes.last().is_some_and(|&last| !self.prefixes.node(last).is_full());
        nodes.len() - usize::from(inside)
    }

    fn parent_of(&self, slot: usize, page: usize) -> NodeId {
        page.checked_sub(1).map_or(ROOT, |before| self.at(slot).nodes[before])
    }

    fn sheets_of(&self, slot: usize, page: usize) -> Vec<Option<u32>> {
        self.at(slot).groups.iter().map(|table| table.sheets[page]).collect()
    }

    /// Takes in tokens that only the device knew.
    fn learn(&mut self, slot: usize, tokens: &[u32]) -> Result<()> {
        let slot = self.at_mut(slot);
        let known = slot.tokens.len();
        if let Some(at) = (0..known.min(tokens.len())).find(|&at| slot.tokens[at] != tokens[at]) {
            let expected = format!("token {} at position {at}, as it was computed", slot.tokens[at]);
            return Err(ModelError::batch(expected, tokens[at]));
        }
        let end = slot.len.min(slot.genuine).min(tokens.len()).max(known);
        slot.tokens.extend_from_slice(tokens.get(known..end).unwrap_or_default());
        Ok(())
    }

    /// Makes a node of page `page`, or shares the one that there is.
    fn seal_page(&mut self, slot: usize, page: usize) {
        let parent = self.parent_of(slot, page);
        let start = page * PAGE_POSITIONS;
        let tokens = self.at(slot).tokens[start..start + PAGE_POSITIONS].to_vec();
        let node = match self.prefixes.child(parent, &tokens) {
            Some(equal) => {
                self.share(slot, page, equal);
                equal
            }
            None => match self.at(slot).nodes.get(page) {
                Some(&end) => {
                    self.prefixes.extend(end, &tokens);
                    end
                }
                None => {
                    let sheets = self.sheets_of(slot, page);
                    let node = self.prefixes.add(parent, page, &tokens, &sheets);
                    self.at_mut(slot).nodes.push(node);
                    node
                }
            },
        };
        let (prefixes, freed) = self.index();
        prefixes.absorb(node, freed);
        self.collect();
    }

    /// Puts the sheets of `equal` in place of the sequence's own, or the sequence's own where `equal` has none.
    fn share(&mut self, slot: usize, page: usize, equal: NodeId) {
        let end = self.at(slot).nodes.get(page).copied();
        for group in 0..self.pools.count() {
            let Some(own) = self.at(slot).groups[group].sheets[page] else { continue };
            let kept = self.prefixes.node(equal).held[group].sheet;
            if let Some(end) = end {
                let held = &mut self.prefixes.node_mut(end).held[group];
                held.live -= 1;
                if kept.is_none() {
                    held.sheet = None;
                }
            } else if kept.is_some() {
                self.pools.give_back(group, page, own);
            }
            let held = &mut self.prefixes.node_mut(equal).held[group];
            let sheet = *held.sheet.get_or_insert(own);
            held.live += 1;
            self.put_sheet(slot, group, page, Some(sheet));
        }
        self.prefixes.node_mut(equal).live += 1;
        if let Some(end) = end {
            self.at_mut(slot).nodes[page] = equal;
            let (prefixes, freed) = self.index();
            prefixes.let_go(end, freed);
            self.collect();
        } else {
            self.at_mut(slot).nodes.push(equal);
        }
    }
}
