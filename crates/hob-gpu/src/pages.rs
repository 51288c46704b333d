//! Pools of KV pages on the device, in the layout of `hob_compute::page`, and how kernels find their way in them. It must
//! not know attention.
//!
//! # What a kernel gets
//! [`Layout::piece`] is WGSL that finds the blocks of a page and decodes them. It wants `pages: array<u32>` and, where
//! [`Layout::first`], `first_pages: array<u32>` to be bound: the pages of a call lie in one pool, but page 0 of a sequence
//! may lie in a second. [`Tables`] are the sequences and their pages as words of the arguments arena.

pub(crate) mod image;

use std::ops::Range;

use hob_compute::{Compute, ComputeError, PAGE_POSITIONS, Page, PageSpec, Pool, Result, SeqRows, check};
use hob_quant::{KV_GROUP, KvFormat};

use crate::Gpu;
use crate::stream::{BufferId, Stream};
use crate::template::Template;

const PIECE: &str = include_str!("wgsl/pages.wgsl");

/// A pool of pages in one buffer.
pub(crate) struct Pages {
    pub spec: PageSpec,
    pub count: usize,
    /// Whether pages hold f32.
    pub exact: bool,
    pub buffer: BufferId,
}

impl Pages {
    pub fn new(stream: &mut Stream, spec: &PageSpec, count: usize, exact: bool) -> Result<Pages> {
        let values = check::alloc_pages(spec, count)?;
        if !spec.head_dim.is_multiple_of(8) {
            let found = format!("head_dim {}", spec.head_dim);
            return Err(ComputeError::shape("alloc_pages", "head_dim in eights on a GPU", found));
        }
        let bytes = if exact { 4 * values } else { spec.page_bytes() * count } as u64;
        let facts = &stream.context.facts;
        let most = facts.binding_bytes.min(facts.buffer_bytes);
        if bytes > most {
            let fit = most / (bytes / count as u64);
            return Err(ComputeError::shape(
                "alloc_pages",
                format!(
                    "a pool of at most {most} bytes ({fit} pages) here: fewer positions, or a smaller KV format"
                ),
                format!("{count} pages, {bytes} bytes"),
            ));
        }
        let buffer = stream.buffer("KV pages", bytes)?;
        Ok(Pages { spec: *spec, count, exact, buffer })
    }

    /// Bytes of one page.
    pub fn page_bytes(&self) -> usize {
        if self.exact { 4 * self.spec.page_values().unwrap_or(0) } else { self.spec.page_bytes() }
    }

    pub fn bytes(&self) -> u64 {
        (self.page_bytes() * self.count) as u64
    }

    /// Bytes of an image of some positions.
    pub fn image_bytes(&self, range: Range<usize>) -> usize {
        match self.exact {
            true => 4 * self.spec.position_values() * range.len(),
            false => self.spec.image_bytes(range),
        }
    }

    pub fn release(self, stream: &mut Stream) {
        stream.release(self.buffer);
    }
}

/// How the values of a part are stored on a device.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stored {
    F32,
    F16,
    Bf16,
    Q8,
    Q4,
    Asym4,
}

impl Stored {
    pub fn of(format: KvFormat, exact: bool) -> Stored {
        match format {
            _ if exact => Stored::F32,
            KvFormat::F16 => Stored::F16,
            KvFormat::Bf16 => Stored::Bf16,
            KvFormat::Q8 => Stored::Q8,
            KvFormat::Q4 => Stored::Q4,
            KvFormat::Asym4 => Stored::Asym4,
        }
    }

    /// Whether values are integers in groups with scales.
    pub fn is_packed(self) -> bool {
        matches!(self, Stored::Q8 | Stored::Q4 | Stored::Asym4)
    }

    /// Words of a part: 64 vectors.
    pub fn part_words(self, head_dim: usize) -> usize {
        let groups = head_dim / KV_GROUP;
        match self {
            Stored::F32 => 64 * head_dim,
            Stored::F16 | Stored::Bf16 => 32 * head_dim,
            Stored::Q8 => 16 * 34 * groups,
            Stored::Q4 => 16 * 18 * groups,
            Stored::Asym4 => 16 * 20 * groups,
        }
    }

    /// Words in front of the codes of a part: scales, and minima.
    pub fn scale_words(self, head_dim: usize) -> usize {
        let groups = head_dim / KV_GROUP;
        match self {
            Stored::Q8 | Stored::Q4 => 32 * groups,
            Stored::Asym4 => 64 * groups,
            _ => 0,
        }
    }

    /// Pieces of 16 bytes that the codes of some vectors take, or of some dimensions of all of them: `rows` x `cols` values.
    pub fn pieces(self, rows: usize, cols: usize) -> usize {
        let values = match self {
            Stored::F32 => 4,
            Stored::F16 | Stored::Bf16 => 8,
            Stored::Q8 => 16,
            Stored::Q4 | Stored::Asym4 => 32,
        };
        rows * cols / values
    }

    /// The template's flags of one side.
    fn flags(self, template: Template, names: [&'static str; 6]) -> Template {
        let on = [
            self == Stored::F32,
            self == Stored::F16,
            self == Stored::Bf16,
            self == Stored::Q8,
            matches!(self, Stored::Q4 | Stored::Asym4),
            self == Stored::Asym4,
        ];
        names.into_iter().zip(on).fold(template, |t, (name, on)| t.flag(name, on))
    }
}

/// Which of the bound buffers holds a block, and how.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `pages`, in the formats of the layer.
    Rest,
    /// `first_pages`, in the formats of the layer.
    First,
    /// `first_pages`, f16: the first 64 positions of a sequence.
    Sink,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Rest, Kind::First, Kind::Sink];

    /// Name of the bound buffer.
    pub fn pages(self) -> &'static str {
        if self == Kind::Rest { "pages" } else { "first_pages" }
    }
}

/// Everything about a layer's pages that changes the text of kernels.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Layout {
    pub kv_heads: usize,
    pub head_dim: usize,
    pub k: Stored,
    pub v: Stored,
    pub k_rotated: bool,
    pub v_rotated: bool,
    /// Whether page 0 comes from a pool of its own.
    pub first: bool,
    /// Dimensions of V, where it is the first ones of K and has no part of its own.
    pub latent: Option<usize>,
}

impl Layout {
    pub fn new(spec: &PageSpec, exact: bool) -> Layout {
        Layout {
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            k: Stored::of(spec.k, exact),
            v: Stored::of(spec.v, exact),
            k_rotated: spec.k.is_rotated() && !exact,
            v_rotated: spec.v.is_rotated() && !exact,
            first: spec.has_first(),
            latent: spec.latent,
        }
    }

    /// Words of a V part.
    pub fn v_words(&self, stored: Stored) -> usize {
        if self.latent.is_some() { 0 } else { stored.part_words(self.head_dim) }
    }

    /// Dimensions that a rotation mixes.
    pub fn span(&self) -> usize {
        1 << self.head_dim.trailing_zeros()
    }

    /// Bytes of a page that is not the first.
    pub fn page_bytes(&self) -> usize {
        4 * 4 * self.kv_heads * (self.k.part_words(self.head_dim) + self.v_words(self.v))
    }

    /// Words for a kernel's key.
    pub fn key(&self) -> [u32; 2] {
        let flags = [self.k_rotated, self.v_rotated, self.first];
        let flags = flags.iter().fold(0, |bits, &on| 2 * bits + u32::from(on));
        let formats = self.k as u32 * 8 + self.v as u32;
        let latent = self.latent.unwrap_or(0) as u32;
        [self.kv_heads as u32 * 65536 + self.head_dim as u32, latent * 65536 + formats * 8 + flags]
    }

    /// Whether the first 64 positions of a sequence are f16 whatever the format.
    pub fn sink(&self) -> bool {
        self.first && (self.k.is_packed() || self.v.is_packed())
    }

    /// Formats of K and V in blocks of a kind.
    pub fn formats(&self, kind: Kind) -> [Stored; 2] {
        if kind == Kind::Sink { [Stored::F16; 2] } else { [self.k, self.v] }
    }

    /// Kinds of blocks that there are.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> {
        let (first, sink) = (self.first, self.sink());
        Kind::ALL.into_iter().filter(move |kind| match kind {
            Kind::Rest => true,
            Kind::First => first,
            Kind::Sink => sink,
        })
    }

    /// Flags and values of a piece for blocks of one kind: `$PAGES$` (the buffer's name), `$KIND$` (0, 1, 2),
    /// `K_F32 K_F16 K_BF16 K_Q8 K_NIBBLES K_ASYM` and the same of V, `$K_CODES$` and `$V_CODES$` (words in front of the
    /// codes), `$HEAD_DIM$`, `$GROUPS$`.
    pub fn of_kind(&self, kind: Kind) -> Template {
        let [k, v] = self.formats(kind);
        let template = k.flags(Template::new(), ["K_F32", "K_F16", "K_BF16", "K_Q8", "K_NIBBLES", "K_ASYM"]);
        v.flags(template, ["V_F32", "V_F16", "V_BF16", "V_Q8", "V_NIBBLES", "V_ASYM"])
            .flag("K_PACKED", k.is_packed())
            .flag("V_PACKED", v.is_packed())
            .value("PAGES", kind.pages())
            .value("KIND", kind as u32)
            .value("HEAD_DIM", self.head_dim)
            .value("GROUPS", self.head_dim / KV_GROUP)
            .value("K_CODES", k.scale_words(self.head_dim))
            .value("V_CODES", v.scale_words(self.head_dim))
    }

    /// `block_of`, which finds a block: see `wgsl/pages.wgsl`.
    pub fn piece(&self) -> String {
        let f16 = Stored::F16.part_words(self.head_dim);
        let [k, v] = [self.k.part_words(self.head_dim), self.v_words(self.v)];
        let first = if self.sink() { f16 + self.v_words(Stored::F16) } else { k + v };
        Template::new()
            .flag("FIRST", self.first)
            .flag("SINK", self.sink())
            .value("KV_HEADS", self.kv_heads)
            .value("HEAD_DIM", self.head_dim)
            .value("K_WORDS", k)
            .value("BLOCK_WORDS", k + v)
            .value("SINK_K_WORDS", f16)
            .value("FIRST_BLOCK_WORDS", first)
            .render(PIECE)
    }
}

/// The pools that a call's pages lie in.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Bound {
    pub layout: Layout,
    /// Pool of all pages but those numbered 0; `None` if the call has none of them.
    pub rest: Option<BufferId>,
    /// Pool of pages numbered 0, where [`Layout::first`]; `None` likewise.
    pub first: Option<BufferId>,
}

impl Gpu {
    /// The pools of the pages from number `first` of every sequence on; `None` if no sequence has rows.
    ///
    /// # Errors
    /// Pages of one call in several pools. What the checks of `hob_compute` refuse is not looked for again.
    pub(crate) fn bound(
        &self,
        verb: &'static str,
        seqs: &[SeqRows],
        first: impl Fn(&SeqRows) -> usize,
    ) -> Result<Option<Bound>> {
        let (mut spec, mut pools) = (None, [None::<Pool>; 2]);
        for seq in seqs.iter().filter(|seq| seq.rows > 0) {
            let used = first(seq)..(seq.position + seq.rows).div_ceil(PAGE_POSITIONS);
            for (index, page) in used.clone().zip(&seq.pages[used]) {
                let found = spec_of(self, verb, *page)?;
                spec.get_or_insert(PageSpec { first: false, ..found });
                let slot = &mut pools[usize::from(index == 0 && found.first)];
                if slot.is_some_and(|pool| pool != page.pool) {
                    return Err(ComputeError::shape(
                        verb,
                        "the pages of a layer in one pool (and those numbered 0 in one of their own)",
                        "pages of two pools",
                    ));
                }
                *slot = Some(page.pool);
            }
        }
        let Some(spec) = spec else { return Ok(None) };
        let buffer = |pool: Option<Pool>| pool.map(|p| Ok(self.pools.get(verb, p)?.buffer)).transpose();
        let layout = Layout::new(&spec, self.info().exact);
        Ok(Some(Bound { layout, rest: buffer(pools[0])?, first: buffer(pools[1])? }))
    }
}

/// The spec of a page's pool.
///
/// # Errors
/// A page of no pool, or beyond its end.
pub(crate) fn spec_of(gpu: &Gpu, verb: &'static str, page: Page) -> Result<PageSpec> {
    let pages = gpu.pools.get(verb, page.pool)?;
    if page.index as usize >= pages.count {
        let wanted = format!("a page below {}", pages.count);
        return Err(ComputeError::shape(verb, wanted, page.index));
    }
    Ok(pages.spec)
}

/// Sequences and their page tables as words, for the arguments arena.
///
/// A sequence has [`Tables::WORDS`] words: first row, rows, position of the first row, and where its page table is, counted
/// from the start of these words. Entry `i` of the table is the index, within its pool, of page `i` of the sequence;
/// entries of pages that nobody looks at are left out, and the start counted back by as many (modulo 2^32).
#[derive(Clone, Debug, Default)]
pub(crate) struct Tables {
    pub words: Vec<u32>,
}

impl Tables {
    /// Words of a sequence in front of the tables.
    pub const WORDS: usize = 4;

    /// `seqs`, with their pages from number `first` on.
    pub fn new<'s>(
        seqs: impl Iterator<Item = &'s SeqRows<'s>> + Clone,
        first: impl Fn(&SeqRows) -> usize,
    ) -> Tables {
        let mut tables = Tables::default();
        let mut at = Tables::WORDS * seqs.clone().count();
        for seq in seqs.clone() {
            let used = Tables::used(seq, &first);
            let start = (at as u32).wrapping_sub(used.start as u32);
            tables.words.extend([seq.row as u32, seq.rows as u32, seq.position as u32, start]);
            at += used.len();
        }
        for seq in seqs {
            tables.words.extend(seq.pages[Tables::used(seq, &first)].iter().map(|page| page.index));
        }
        tables
    }

    fn used(seq: &SeqRows, first: impl Fn(&SeqRows) -> usize) -> Range<usize> {
        let end = (seq.position + seq.rows).div_ceil(PAGE_POSITIONS);
        first(seq).min(end)..end
    }
}
