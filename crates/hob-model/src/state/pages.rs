//! Sheets of pages in the device's pools: a sheet is one page of every layer of a group, at the same index of each layer's
//! own pool, so that the pages of a layer lie together and layers may live on different devices. Nothing grows after
//! `new`, so that taking and returning a sheet allocates nothing. It must not know what is in them.

use hob_compute::{Compute, Page, Pool};

use super::plan::{Group, Sheets, groups};
use crate::{Layout, ModelInfo, Result};

/// One kind of sheets of a group, with those that are free.
struct Shelf {
    /// Of each layer of the group, in their order; none where the layout needs no sheet of this kind.
    pools: Vec<Pool>,
    /// The next sheet to hand out is the last.
    free: Vec<u32>,
}

/// The pools of one group.
struct Shelves {
    group: Group,
    /// For pages 0 of sequences, where they have a shape of their own.
    first: Option<Shelf>,
    rest: Shelf,
}

/// All pools of a model.
pub(crate) struct PagePools {
    groups: Vec<Shelves>,
}

impl PagePools {
    /// Reserves the pages of every sequence, of the cache, and of every layer. What was reserved is released when a
    /// later pool fails.
    ///
    /// # Errors
    /// What the device says.
    pub fn new(info: &ModelInfo, layout: &Layout, dev: &mut dyn Compute) -> Result<Self> {
        let mut pools = PagePools { groups: Vec::new() };
        for group in groups(info, layout) {
            let empty = || Shelf { pools: Vec::new(), free: Vec::new() };
            let first = group.first().map(|_| empty());
            pools.groups.push(Shelves { group, first, rest: empty() });
        }
        match pools.fill(layout, dev) {
            Ok(()) => Ok(pools),
            Err(e) => {
                pools.release(dev)?;
                Err(e)
            }
        }
    }

    fn fill(&mut self, layout: &Layout, dev: &mut dyn Compute) -> Result<()> {
        for Shelves { group, first, rest } in &mut self.groups {
            let (live, cached) = (group.live(layout), group.cached(layout));
            let sheets =
                Sheets { first: live.first + cached.first, rest: live.rest.saturating_add(cached.rest) };
            let mut fill = |shelf: &mut Shelf, page, count: usize| -> Result<()> {
                if count > 0 {
                    for &layer in &group.layers {
                        dev.place(layout.placement.layer(layer));
                        shelf.pools.push(dev.alloc_pages(&group.spec_of(page), count)?);
                    }
                    // Low sheets first: they are the ones whose memory was touched before.
                    shelf.free = (0..count as u32).rev().collect();
                }
                Ok(())
            };
            if let Some(first) = first {
                fill(first, 0, sheets.first)?;
            }
            fill(rest, 1, sheets.rest)?;
        }
        Ok(())
    }

    /// The groups, by the numbers that other calls take.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = &Group> {
        self.groups.iter().map(|s| &s.group)
    }

    pub fn count(&self) -> usize {
        self.groups.len()
    }

    pub fn group(&self, group: usize) -> &Group {
        &self.groups[group].group
    }

    /// Whether page `page` of a sequence comes from the pool of first pages.
    pub fn is_first(&self, group: usize, page: usize) -> bool {
        page == 0 && self.groups[group].first.is_some()
    }

    /// A sheet for page `page` of a sequence; `None` when its pool is used up.
    pub fn take(&mut self, group: usize, page: usize) -> Option<u32> {
        self.shelf(group, page).free.pop()
    }

    pub fn give_back(&mut self, group: usize, page: usize, sheet: u32) {
        self.shelf(group, page).free.push(sheet);
    }

    /// The pages of a sheet: one per layer of the group, in the order of its layers.
    pub fn pages(&self, group: usize, page: usize, sheet: u32) -> impl Iterator<Item = Page> {
        let shelves = &self.groups[group];
        let shelf = shelves.first.as_ref().filter(|_| page == 0).unwrap_or(&shelves.rest);
        shelf.pools.iter().map(move |&pool| Page { pool, index: sheet })
    }

    /// Copies the first `rows` positions of a sheet, in every layer.
    ///
    /// # Errors
    /// What the device says.
    pub fn copy(
        &self,
        dev: &mut dyn Compute,
        group: usize,
        page: usize,
        sheets: [u32; 2],
        rows: usize,
    ) -> Result<()> {
        let [from, to] = sheets.map(|sheet| self.pages(group, page, sheet));
        for (from, to) in from.zip(to) {
            dev.copy_page(from, to, rows)?;
        }
        Ok(())
    }

    /// Free sheets of a group: `[first, rest]`.
    pub fn free(&self, group: usize) -> [usize; 2] {
        let shelves = &self.groups[group];
        [shelves.first.as_ref().map_or(0, |s| s.free.len()), shelves.rest.free.len()]
    }

    fn shelf(&mut self, group: usize, page: usize) -> &mut Shelf {
        let shelves = &mut self.groups[group];
        shelves.first.as_mut().filter(|_| page == 0).unwrap_or(&mut shelves.rest)
    }

    /// # Errors
    /// The first thing the device says; the rest is released all the same.
    pub fn release(self, dev: &mut dyn Compute) -> Result<()> {
        let shelves = self.groups.into_iter().flat_map(|s| s.first.into_iter().chain([s.rest]));
        let results: Vec<_> = shelves.flat_map(|s| s.pools).map(|pool| dev.free_pages(pool)).collect();
        Ok(results.into_iter().collect::<std::result::Result<(), _>>()?)
    }
}
