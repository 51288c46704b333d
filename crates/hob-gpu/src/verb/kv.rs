//! Pages: appending, copying, images of positions. It must not know attention.

mod encode;

use std::ops::Range;

use hob_compute::*;

use crate::Gpu;
use crate::pages::{Bound, Kind, Layout, Tables, image, spec_of};
use crate::stream::{Access, BufferId, Call, KernelKey, Source};
use crate::template::Template;

pub(crate) use encode::{encoders, encoders_of_one};

const APPEND: &str = include_str!("../wgsl/append_kv.wgsl");
const COPY: &str = include_str!("../wgsl/copy_page.wgsl");
/// Lanes of a workgroup that stores eight positions of a KV head.
const LANES: usize = 128;
/// Widest head whose eight positions, and their codes, are in workgroup memory at once; of wider ones four are.
const MOST_OF_EIGHT: usize = 512;

impl Gpu {
    pub(crate) fn run_append_kv(&mut self, args: &AppendKv) -> Result<()> {
        const VERB: &str = "append_kv";
        let (k, v) = (self.shape(VERB, args.k)?, self.shape(VERB, args.v)?);
        check::append_kv(args, k, v, |page| spec_of(self, VERB, page))?;
        let first = |seq: &SeqRows| seq.position / PAGE_POSITIONS;
        let Some(bound) = self.bound(VERB, args.seqs, first)? else { return Ok(()) };
        let rows = [self.acts.get(VERB, args.k)?.rows, self.acts.get(VERB, args.v)?.rows];
        let eights = eights(args.seqs);
        let mut words = eights.clone();
        let tables = Tables::new(args.seqs.iter().filter(|seq| seq.rows > 0), first);
        words.extend(&tables.words);
        for bound in self.with_stand_ins(&bound)? {
            self.append(&bound, rows, &words, eights.len() / 2)?;
        }
        Ok(())
    }

    /// Stores the K and V rows of `count` eights of positions.
    fn append(&mut self, bound: &Bound, rows: [BufferId; 2], words: &[u32], count: usize) -> Result<()> {
        let layout = bound.layout;
        let [shape, formats] = layout.key();
        let key = KernelKey { name: "append_kv", params: [shape, formats, 0, 0, 0, 0, 0, 0] };
        let kernel = self.stream.kernel(key, || append_source(&layout))?;
        let at = if self.stream.rehearsing { 0 } else { self.stream.arguments(words)? };
        let arguments = self.stream.argument_buffer();
        let [rest, first] = [bound.rest, bound.first].map(|pool| pool.unwrap_or(arguments));
        let mut bindings = vec![rest, arguments, rows[0], rows[1]];
        bindings.extend(layout.first.then_some(first));
        let bytes = 8 * (2 * layout.kv_heads * layout.head_dim) as u64 * 6 * count as u64;
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &[at, at + 2 * count as u32],
            groups: [count as u32, layout.kv_heads as u32, 1],
            verb: "append_kv",
            bytes,
        })
    }

    pub(crate) fn run_copy_page(&mut self, from: Page, to: Page, positions: usize) -> Result<()> {
        const VERB: &str = "copy_page";
        let (source, target) = (spec_of(self, VERB, from)?, spec_of(self, VERB, to)?);
        check::copy_page(positions, source, target)?;
        if from == to || positions == 0 {
            return Ok(());
        }
        let (a, b) = (self.pools.get(VERB, from.pool)?, self.pools.get(VERB, to.pool)?);
        let (layout, same) = (Layout::new(&source, a.exact), from.pool == to.pool);
        let (a, b) = (a.buffer, b.buffer);
        let [shape, formats] = layout.key();
        let key = KernelKey { name: VERB, params: [shape, formats, same.into(), 0, 0, 0, 0, 0] };
        let kernel = self.stream.kernel(key, || copy_source(&layout, same))?;
        let both = [b, a];
        // Page 0 where there are pools of first pages, page 1 (any other) else.
        let index = u32::from(!source.first);
        self.stream.dispatch(&Call {
            kernel,
            bindings: if same { &both[..1] } else { &both },
            immediates: &[from.index, to.index, index, positions as u32],
            groups: [layout.kv_heads as u32, 4, 1],
            verb: VERB,
            bytes: 2 * source.image_bytes(0..positions) as u64,
        })
    }

    pub(crate) fn run_read_positions(
        &mut self,
        page: Page,
        range: Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        const VERB: &str = "read_positions";
        check::positions(VERB, &range)?;
        spec_of(self, VERB, page)?;
        let pages = self.pools.get(VERB, page.pool)?;
        let (spec, exact, buffer, bytes) = (pages.spec, pages.exact, pages.buffer, pages.page_bytes());
        let mut held = vec![0u8; bytes];
        self.stream.read(buffer, (bytes * page.index as usize) as u64, &mut held)?;
        image::read(&spec, exact, range, &held, out);
        Ok(())
    }

    pub(crate) fn run_write_positions(
        &mut self,
        page: Page,
        range: Range<usize>,
        bytes: &[u8],
    ) -> Result<()> {
        const VERB: &str = "write_positions";
        check::positions(VERB, &range)?;
        spec_of(self, VERB, page)?;
        let pages = self.pools.get(VERB, page.pool)?;
        let (spec, exact, buffer, size) = (pages.spec, pages.exact, pages.buffer, pages.page_bytes());
        check::image(VERB, pages.image_bytes(range.clone()), bytes.len())?;
        check::scales(VERB, &spec, range.clone(), bytes, exact)?;
        let at = (size * page.index as usize) as u64;
        let mut held = vec![0u8; size];
        if range != (0..PAGE_POSITIONS) {
            self.stream.read(buffer, at, &mut held)?;
        }
        image::write(&spec, exact, range, bytes, &mut held);
        self.stream.write(buffer, at, &held)
    }

    /// While rehearsing, `bound` and the same with a stand-in for either pool, so that bind groups of short and of
    /// windowed sequences are ready too; else `bound` with stand-ins for what it lacks.
    pub(crate) fn with_stand_ins(&mut self, bound: &Bound) -> Result<Vec<Bound>> {
        let [a, b] = match self.stand_ins {
            Some(pair) => pair,
            None => {
                [self.stream.buffer("stand-in for pages", 4)?, self.stream.buffer("stand-in for pages", 4)?]
            }
        };
        self.stand_ins = Some([a, b]);
        let full = Bound { rest: bound.rest.or(Some(a)), first: bound.first.or(Some(b)), ..*bound };
        if !self.stream.rehearsing || !bound.layout.first {
            return Ok(vec![full]);
        }
        Ok(vec![full, Bound { rest: Some(a), ..full }, Bound { first: Some(b), ..full }])
    }
}

/// The aligned eights of positions that the rows of every sequence with rows lie in: pairs of the sequence's index among
/// these, and the number of the eight.
fn eights(seqs: &[SeqRows]) -> Vec<u32> {
    let with_rows = seqs.iter().filter(|seq| seq.rows > 0).enumerate();
    with_rows
        .flat_map(|(index, seq)| {
            let eights = seq.position / 8..(seq.position + seq.rows).div_ceil(8);
            eights.flat_map(move |eight| [index as u32, eight as u32])
        })
        .collect()
}

fn append_source(layout: &Layout) -> Source {
    let rows = if layout.head_dim > MOST_OF_EIGHT { 4 } else { 8 };
    let wgsl = Template::new()
        .flag("FIRST", layout.first)
        .flag("K_ROTATED", layout.k_rotated)
        .flag("V_ROTATED", layout.v_rotated)
        .flag("VALUES", layout.latent.is_none())
        .value("LANES", LANES)
        .value("ROWS", rows)
        .piece("pages", layout.piece())
        .piece("encode", encoders(layout, rows, LANES))
        .render(APPEND);
    let mut bindings = vec![Access::Write, Access::Read, Access::Read, Access::Read];
    bindings.extend(layout.first.then_some(Access::Write));
    Source { wgsl, bindings }
}

fn copy_source(layout: &Layout, same: bool) -> Source {
    let mut kinds = String::new();
    let mut calls = String::new();
    for kind in layout.kinds() {
        let [k, v] = layout.formats(kind);
        let (k, v) = (k.part_words(layout.head_dim), layout.v_words(v));
        let template = layout.of_kind(kind).flag("MAIN", false).flag("KIND_OF", true).flag("SAME", same);
        kinds += &template.value("K_WORDS", k).value("V_WORDS", v).render(COPY);
        calls += &format!("if (a.kind == {n}u) {{ copy_{n}(a, b, count, lane); }}\n", n = kind as u32);
    }
    let wgsl = layout
        .of_kind(Kind::Rest)
        .flag("MAIN", true)
        .flag("KIND_OF", false)
        .flag("SAME", same)
        .piece("pages", layout.piece())
        .piece("kinds", kinds)
        .piece("calls", calls)
        .render(COPY);
    let mut bindings = vec![Access::Write];
    bindings.extend((!same).then_some(Access::Read));
    Source { wgsl, bindings }
}
