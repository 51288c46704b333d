//! Which layers keep their pages together, and how many pages a layout gives them. It must not know devices.

use hob_compute::{PAGE_POSITIONS, PageSpec};

use crate::{Layout, ModelInfo};

/// Layers of one page shape and one window: their pages are taken and released together.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    /// Ascending.
    pub layers: Vec<usize>,
    /// Of every page but the first of a sequence.
    pub spec: PageSpec,
    pub window: Option<usize>,
}

/// Sheets of a group: those of positions 0..256, where these have a shape of their own, and all others.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sheets {
    pub first: usize,
    pub rest: usize,
}

impl Group {
    /// The shape of a sequence's first page, where it is not the usual one.
    pub fn first(&self) -> Option<PageSpec> {
        let packed = self.spec.k.is_packed() || self.spec.v.is_packed();
        packed.then_some(PageSpec { first: true, ..self.spec })
    }

    /// The shape of page `page` of a sequence.
    pub fn spec_of(&self, page: usize) -> PageSpec {
        self.first().filter(|_| page == 0).unwrap_or(self.spec)
    }

    /// The first page that a row at position `len` sees: a sequence of that length needs it and those behind it.
    pub fn first_page(&self, len: usize) -> usize {
        self.window.map_or(0, |w| len.saturating_add(1).saturating_sub(w) / PAGE_POSITIONS)
    }

    /// What the live sequences of `layout` may hold at once.
    pub fn live(&self, layout: &Layout) -> Sheets {
        let all = layout.pages_per_sequence();
        // The window of a chunk's first row, the chunk, and a page that either end of the two may cut.
        let most = |w: usize| w.saturating_add(layout.chunk_rows) / PAGE_POSITIONS + 2;
        let own = |pages: usize| self.window.map_or(pages, |w| pages.min(most(w)));
        let times = |n: usize| n.saturating_mul(layout.sequences);
        match self.first() {
            Some(_) => Sheets { first: times(1), rest: times(own(all - 1)) },
            None => Sheets { first: 0, rest: times(own(all)) },
        }
    }

    /// What cached prefixes may hold beside them. Where a window bounds what an end needs, some ends keep all of it;
    /// beginnings are few, because most conversations share theirs.
    pub fn cached(&self, layout: &Layout) -> Sheets {
        let pages = layout.cached_tokens.div_ceil(PAGE_POSITIONS);
        let ends = pages / 8 + 2;
        let rest = match self.window {
            Some(w) => pages.min(ends.saturating_mul(w / PAGE_POSITIONS + 2)),
            None => pages,
        };
        let first = if self.first().is_some() { pages.min(pages / 8 + 4) } else { 0 };
        Sheets { first, rest }
    }

    /// Bytes of so many sheets.
    pub fn bytes(&self, sheets: Sheets) -> u64 {
        let of = |spec: PageSpec, n: usize| {
            (spec.page_bytes() as u64).saturating_mul(n as u64).saturating_mul(self.layers.len() as u64)
        };
        of(self.spec_of(0), sheets.first).saturating_add(of(self.spec, sheets.rest))
    }

    /// As figures name what the group keeps: `q8/q4`.
    pub fn formats(&self) -> String {
        let PageSpec { k, v, latent, .. } = self.spec;
        match latent {
            Some(_) => format!("{k}, latent"),
            None if k == v => k.to_string(),
            None => format!("{k}/{v}"),
        }
    }

    /// Whether any sequence of `layout` can outgrow the group's window.
    pub fn slides(&self, layout: &Layout) -> bool {
        let Sheets { first, rest } = self.live(layout);
        self.window.is_some() && first + rest < layout.pages_per_sequence().saturating_mul(layout.sequences)
    }
}

/// The groups of a model, in order of their first layers.
pub(crate) fn groups(info: &ModelInfo, layout: &Layout) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (i, layer) in info.config.layers.iter().enumerate() {
        let Some(spec) = info.page_spec(i, &layout.kv) else { continue };
        match groups.iter_mut().find(|g| g.spec == spec && g.window == layer.window) {
            Some(group) => group.layers.push(i),
            None => groups.push(Group { layers: vec![i], spec, window: layer.window }),
        }
    }
    groups
}

/// Bytes that snapshots of recurrent state may take: a quarter of what the cached pages take, and enough for a few ends
/// of every sequence; none without a cache.
pub(crate) fn snapshot_budget(info: &ModelInfo, layout: &Layout) -> u64 {
    let one = info.snapshot_bytes(layout.ctx_tokens) as u64;
    if layout.cached_tokens == 0 || one == 0 {
        return 0;
    }
    let share = (layout.cached_tokens as u64).saturating_mul(info.kv_bytes_per_token(&layout.kv)) / 4;
    let few = one.saturating_mul((layout.sequences as u64).saturating_mul(2).saturating_add(4));
    (share / one * one).max(few)
}

/// Bytes of the image of one position (`at` within its page) of one layer: f32 on an exact device.
pub(crate) fn image_bytes(spec: &PageSpec, at: usize, exact: bool) -> usize {
    if exact { spec.position_values() * 4 } else { spec.position_bytes(at) }
}
