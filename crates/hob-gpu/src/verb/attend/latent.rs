//! Attention to pages whose V is the first dimensions of K (DeepSeek's latent): tiles of sixteen columns, (row, query head)
//! pairs of a KV head, which all read the same K and V. Where tiles are few each sequence is cut into splits as well, whose
//! results are merged as those of other attention. What a workgroup does stands in `wgsl/attend/latent.wgsl`.

use hob_compute::reference::attention::Scoring;
use hob_compute::{Attend, Result, SeqRows};

use super::VERB;
use super::decode::MOST_SPLITS;
use super::decode::kernel::Merge;
use crate::Gpu;
use crate::pages::{Bound, Kind, Layout, Tables};
use crate::stream::{Access, Bounds, BufferId, Call, KernelKey, Source};
use crate::template::Template;

const TEXT: &str = include_str!("../../wgsl/attend/latent.wgsl");
const KIND: &str = include_str!("../../wgsl/attend/latent_kind.wgsl");
const TURN: &str = include_str!("../../wgsl/attend/turn_rows.wgsl");
/// Columns of a tile.
const COLUMNS: usize = 16;
const LANES: usize = 128;
/// So many tiles keep a large GPU busy by themselves.
const MANY_TILES: usize = 128;
/// Splits of all tiles together, about, where they do not.
const WORKGROUPS: usize = 512;

/// q as pages are rotated, kept between calls.
#[derive(Default)]
pub(crate) struct Turned(Option<(BufferId, u64)>);

/// What the kernel's text depends on.
#[derive(Copy, Clone)]
struct Variant {
    layout: Layout,
    /// Query heads of a KV head.
    group: usize,
    /// Dimensions of V.
    dims: usize,
    cap: bool,
    sinks: bool,
    /// Whether no splits are left to merge.
    whole: bool,
}

/// The sequences of a call, cut.
struct Plan {
    /// Of [`Tables`].
    tables: Vec<u32>,
    /// Sequence, tile, first block, and the block behind the last.
    items: Vec<u32>,
    /// Row, its first item, splits, and row within the sequence.
    rows: Vec<u32>,
}

impl Gpu {
    /// Attention of the checked `args`, whose pages lie in `bound`; V has `dims` dimensions.
    pub(super) fn run_latent(&mut self, args: &Attend, bound: &Bound, dims: usize) -> Result<()> {
        let group = args.heads / args.kv_heads;
        let seqs: Vec<SeqRows> = args.seqs.iter().filter(|seq| seq.rows > 0).copied().collect();
        let tiles: usize = seqs.iter().map(|seq| (seq.rows * group).div_ceil(COLUMNS)).sum();
        let many = tiles * args.kv_heads >= MANY_TILES;
        let q = self.turned_q(args, bound)?;
        // How many tiles there are goes by the batch, which is rehearsed; splits may come to any number of rows.
        for whole in [true, false] {
            if whole != many && !self.stream.rehearsing {
                continue;
            }
            let variant = Variant {
                layout: bound.layout,
                group,
                dims,
                cap: args.softcap.is_some(),
                sinks: args.sinks.is_some(),
                whole,
            };
            let each = if whole { None } else { Some(split_blocks(args, &seqs, group)) };
            let plan = Plan::new(args, &seqs, group, each);
            let out = self.acts.get(VERB, args.out)?.rows;
            let splits = match whole {
                true => None,
                // As many as any call can have that is split.
                false => Some(self.splits((WORKGROUPS + 2 * MANY_TILES) * COLUMNS, dims)?),
            };
            for bound in self.with_stand_ins(bound)? {
                self.dispatch_latent(args, (&bound, &plan), &variant, (q, splits, out))?;
            }
            if let Some(splits) = splits {
                self.merge_latent(args, &variant, &plan.rows, splits)?;
            }
        }
        Ok(())
    }

    /// q, rotated as K is.
    fn turned_q(&mut self, args: &Attend, bound: &Bound) -> Result<BufferId> {
        let act = self.acts.get(VERB, args.q)?;
        let (q, shape) = (act.rows, act.shape);
        if !bound.layout.k_rotated {
            return Ok(q);
        }
        let bytes = 4 * (shape.rows * shape.width) as u64;
        let out = match self.turned.0 {
            Some((buffer, room)) if room >= bytes => buffer,
            old => {
                if let Some((buffer, _)) = old {
                    self.stream.flush()?;
                    self.stream.release(buffer);
                }
                let buffer = self.stream.buffer("rotated queries", bytes)?;
                self.turned = Turned(Some((buffer, bytes)));
                buffer
            }
        };
        let (dim, span) = (args.head_dim, bound.layout.span());
        let key = KernelKey { name: "turn queries", params: [dim as u32, 0, 0, 0, 0, 0, 0, 0] };
        let kernel = self.stream.kernel(key, || Source {
            wgsl: Template::new()
                .value("HEAD_DIM", dim)
                .value("SPAN", span)
                .value("SPAN_FACTOR", span_factor(span))
                .render(TURN),
            bindings: vec![Access::Write, Access::Read],
        })?;
        let rows = args.seqs.iter().map(|seq| seq.row + seq.rows).max().unwrap_or(0);
        self.stream.dispatch(&Call {
            kernel,
            bindings: &[out, q],
            immediates: &[args.heads as u32],
            groups: [args.heads as u32, rows as u32, 1],
            verb: VERB,
            bytes: 8 * (rows * shape.width) as u64,
        })?;
        Ok(out)
    }

    fn dispatch_latent(
        &mut self,
        args: &Attend,
        (bound, plan): (&Bound, &Plan),
        variant: &Variant,
        (q, splits, out): (BufferId, Option<[BufferId; 2]>, BufferId),
    ) -> Result<()> {
        let kernel = self.stream.kernel_with(variant.key(), Bounds::Trusted, || variant.source())?;
        let words: Vec<u32> = plan.tables.iter().chain(&plan.items).copied().collect();
        let at = self.stream.arguments(&words)?;
        let arguments = self.stream.argument_buffer();
        let [rest, first] = [bound.rest, bound.first].map(|pool| pool.unwrap_or(arguments));
        let mut bindings = splits.map_or(vec![out], Vec::from);
        bindings.extend([arguments, q, rest, rest]);
        if variant.layout.first {
            bindings.extend([first, first]);
        }
        if let Some(sinks) = args.sinks.filter(|_| variant.reads_sinks()) {
            bindings.push(self.weights.get(VERB, sinks)?.parts[0].buffer);
        }
        let scoring = Scoring::new(args.scale, args.softcap);
        let blocks: u32 = plan.items.as_chunks::<4>().0.iter().map(|item| item[3] - item[2]).sum();
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &[
                at,
                at + plan.tables.len() as u32,
                args.window.map_or(0, |w| w.min(u32::MAX as usize) as u32),
                scoring.factor.to_bits(),
                scoring.cap.unwrap_or(0.0).to_bits(),
                args.heads as u32,
            ],
            groups: [plan.items.len() as u32 / 4, args.kv_heads as u32, 1],
            verb: VERB,
            bytes: u64::from(blocks) * bound.layout.page_bytes() as u64 / 4,
        })
    }

    fn merge_latent(
        &mut self,
        args: &Attend,
        variant: &Variant,
        words: &[u32],
        splits: [BufferId; 2],
    ) -> Result<()> {
        let rows = self.acts.get(VERB, args.out)?.rows;
        let facts = &self.stream.context.facts;
        let merge = Merge {
            head_dim: variant.dims,
            rotated: variant.layout.v_rotated,
            span: variant.layout.span(),
            sinks: variant.sinks,
            int8: false,
            splits: MOST_SPLITS,
            subgroups: facts.tier.subgroups.then_some(facts.least_subgroup),
        };
        let kernel = self.stream.kernel_with(merge.key(), Bounds::Trusted, || merge.source())?;
        let at = self.stream.arguments(words)?;
        let mut bindings = vec![rows, splits[0], splits[1], self.stream.argument_buffer()];
        if let Some(sinks) = args.sinks {
            bindings.push(self.weights.get(VERB, sinks)?.parts[0].buffer);
        }
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &[at, args.kv_heads as u32, args.heads as u32, COLUMNS as u32],
            groups: [args.heads as u32, words.len() as u32 / 4, 1],
            verb: VERB,
            bytes: (words.len() / 4 * args.heads * 8 * variant.dims) as u64,
        })
    }
}

/// Blocks of a split: about [`WORKGROUPS`] of them in all.
fn split_blocks(args: &Attend, seqs: &[SeqRows], group: usize) -> usize {
    let blocks = |seq: &SeqRows| (seq.position + seq.rows).div_ceil(64) - seq.first_page(args.window) * 4;
    let total: usize = seqs.iter().map(|seq| (seq.rows * group).div_ceil(COLUMNS) * blocks(seq)).sum();
    let longest = seqs.iter().map(blocks).max().unwrap_or(0);
    (total * args.kv_heads).div_ceil(WORKGROUPS).max(longest.div_ceil(MOST_SPLITS)).max(1)
}

impl Plan {
    /// Splits of `each` blocks, or whole tiles.
    fn new(args: &Attend, seqs: &[SeqRows], group: usize, each: Option<usize>) -> Plan {
        let tables = Tables::new(seqs.iter(), |seq| seq.first_page(args.window)).words;
        let (mut items, mut rows) = (Vec::new(), Vec::new());
        for (index, seq) in seqs.iter().enumerate() {
            let first = items.len() / 4;
            let start = seq.first_page(args.window) * 4;
            let all = (seq.position + seq.rows).div_ceil(64) - start;
            let (each, columns) = (each.unwrap_or(all), seq.rows * group);
            let splits = all.div_ceil(each);
            for tile in 0..columns.div_ceil(COLUMNS) {
                // Blocks behind the last position that any row of the tile sees are nothing to it.
                let last = (columns.min((tile + 1) * COLUMNS) - 1) / group;
                let end = (seq.position + last) / 64 + 1;
                for split in 0..splits {
                    let from = (start + split * each).min(end);
                    let to = (from + each).min(end);
                    items.extend([index, tile, from, to].map(|n| n as u32));
                }
            }
            for row in 0..seq.rows {
                rows.extend([seq.row + row, first, splits, row].map(|n| n as u32));
            }
        }
        Plan { tables, items, rows }
    }
}

impl Variant {
    /// Where splits are merged, sinks join then.
    fn reads_sinks(&self) -> bool {
        self.sinks && self.whole
    }

    fn key(&self) -> KernelKey {
        let [shape, formats] = self.layout.key();
        let flags = [self.cap, self.reads_sinks(), self.whole].map(u32::from);
        let params = [shape, formats, self.group as u32, flags[0], flags[1], flags[2], 0, 0];
        KernelKey { name: "attend latent", params }
    }

    fn source(&self) -> Source {
        let layout = &self.layout;
        let results = if self.whole { 1 } else { 2 };
        let (first, span) = (usize::from(layout.first), layout.span());
        let [mut kinds, mut k_calls, mut v_calls, mut touch_calls] = [const { String::new() }; 4];
        // The usual kind last: it is what is left when no other returned.
        for kind in layout.kinds().collect::<Vec<_>>().into_iter().rev() {
            let fours = layout.formats(kind)[0].part_words(layout.head_dim) / 4;
            kinds += &layout.of_kind(kind).flag("TOUCHES", !self.whole).value("K_FOURS", fours).render(KIND);
            let n = kind as u32;
            let test = if kind == Kind::Rest { String::new() } else { format!("if (block.kind == {n}u) ") };
            k_calls += &format!("{test}{{ return fetch_k_{n}(block.k, run, pair); }}\n");
            v_calls += &format!("{test}{{ return fetch_v_{n}(block.k, dim, octet); }}\n");
            touch_calls += &format!("{test}{{ return touch_{n}(block.k, lane); }}\n");
        }
        let wgsl = Template::new()
            .flag("WHOLE", self.whole)
            .flag("FIRST", layout.first)
            .flag("SINKS", self.reads_sinks())
            .flag("TURNS", self.whole && layout.v_rotated)
            .flag("CAP", self.cap)
            .value("AT_ARGUMENTS", results)
            .value("AT_Q", results + 1)
            .value("AT_PAGES", results + 2)
            .value("AT_FOURS", results + 3)
            .value("AT_FIRST", results + 4)
            .value("AT_FIRST_FOURS", results + 5)
            .value("AT_SINKS", results + 4 + 2 * first)
            .value("GROUP", self.group)
            .value("VALUES", self.dims)
            .value("DIMS", self.dims.div_ceil(LANES))
            .value("SPAN", span)
            .value("SPAN_FACTOR", span_factor(span))
            .piece("pages", layout.piece())
            .piece("kinds", kinds)
            .piece("k_calls", k_calls)
            .piece("v_calls", v_calls)
            .piece("touch_calls", touch_calls)
            .render(TEXT);
        let mut bindings = vec![Access::Write; results];
        bindings.extend(vec![Access::Read; 4 + 2 * first + usize::from(self.reads_sinks())]);
        Source { wgsl, bindings }
    }
}

fn span_factor(span: usize) -> String {
    format!("{:?}", (1.0 / (span as f64).sqrt()) as f32)
}
