//! Attention of few rows: each sequence's context is cut into splits, which workgroups read at the same time, and a second
//! dispatch merges what they leave (flash decoding); a context within a page is what one dispatch finishes. It must not
//! know how either computes: see `kernel` and `short`.

pub(super) mod kernel;
mod short;

use std::ops::Range;

use hob_compute::reference::attention::Scoring;
use hob_compute::{Attend, BLOCK_POSITIONS, ComputeError, PAGE_POSITIONS, Result, SeqRows};

use super::VERB;
use crate::Gpu;
use crate::act::Int8;
use crate::pages::{Bound, Layout};
use crate::stream::{Bounds, BufferId, Call, Kernel, Stream};
use kernel::{Fused, Merge, Variant};
use short::Short;

/// Blocks of a page.
const PAGE_BLOCKS: usize = PAGE_POSITIONS / BLOCK_POSITIONS;

/// Most splits of a sequence.
pub(super) const MOST_SPLITS: usize = 1024;
/// Words of an item in front of its pages.
const ITEM_WORDS: usize = 5;
/// Words of a row of a short context.
const ROW_WORDS: usize = 4;

/// How attention of few rows is cut. The figures are those of an H100; elsewhere they cost little, since a device with
/// fewer cores has several of these workgroups on each. Hidden: see [`Gpu::tune_attention`].
#[derive(Copy, Clone, Debug)]
pub struct AttentionRule {
    /// Lanes of a workgroup where sequences are split, and blocks of 64 positions that it has at a time.
    pub lanes: usize,
    /// Small workgroups of one block begin sooner than large ones.
    pub blocks: usize,
    /// The same where K or V are packed: a round quantizes its weights, and more positions share what that costs.
    pub packed_blocks: usize,
    /// Workgroups that a dispatch should have at least where contexts are long enough: several for each core of a large
    /// GPU.
    pub workgroups: usize,
    /// Lanes of a row's query head where the context is short: a whole layer of the 8B at position 200 takes 73.2 us with
    /// 512, 75.3 with 256, 80.7 with 128; at position 16 all are within 1 us.
    pub short_lanes: usize,
    /// Most blocks of a short context, up to those of a page; 0 splits every context.
    pub most_short: usize,
}

impl Default for AttentionRule {
    fn default() -> Self {
        AttentionRule::USUAL
    }
}

impl AttentionRule {
    /// What is taken unless somebody tunes.
    pub const USUAL: AttentionRule = AttentionRule {
        lanes: 128,
        blocks: 1,
        packed_blocks: 2,
        workgroups: 1024,
        short_lanes: 512,
        most_short: PAGE_BLOCKS,
    };

    fn blocks_of(&self, layout: &Layout) -> usize {
        if layout.k.is_packed() || layout.v.is_packed() { self.packed_blocks } else { self.blocks }
    }
}

/// Rows that are not yet remembered, for the dispatch that norms, rotates, appends and attends.
pub(super) struct New {
    pub k: BufferId,
    pub v: BufferId,
    /// Weights and epsilons, of q and of k.
    pub norms: Option<([BufferId; 2], [f32; 2])>,
    pub turn: Option<Turn>,
}

impl New {
    fn fused(&self) -> Fused {
        Fused {
            norms: self.norms.is_some(),
            rotates: self.turn.is_some(),
            interleaved: self.turn.as_ref().is_some_and(|turn| turn.interleaved),
        }
    }
}

/// A rotation.
pub(super) struct Turn {
    pub freqs: BufferId,
    /// Pairs of dimensions.
    pub pairs: u32,
    pub interleaved: bool,
    pub magnitude: f32,
}

/// What splits leave until they are merged.
#[derive(Default)]
pub(crate) struct Splits {
    /// Weighted V, and largest scores with sums.
    buffers: Option<[BufferId; 2]>,
    /// Bytes of each.
    room: [u64; 2],
    rule: AttentionRule,
}

/// How the rows of a call are cut.
struct Plan {
    /// Every workgroup's row, its position, columns of the sequence, tile, first block, and the pages from that of the first
    /// block on.
    items: Vec<u32>,
    /// Words of an item.
    stride: usize,
    /// Row, its first item, splits, and row within the sequence.
    rows: Vec<u32>,
    /// Blocks of a split.
    blocks: usize,
}

/// Blocks that `seq` sees, from the first of a page on.
fn seen(args: &Attend, seq: &SeqRows) -> Range<usize> {
    seq.first_page(args.window) * PAGE_BLOCKS..(seq.position + seq.rows).div_ceil(BLOCK_POSITIONS)
}

fn longest(args: &Attend, seqs: &[SeqRows]) -> usize {
    seqs.iter().map(|seq| seen(args, seq).len()).max().unwrap_or(0)
}

/// Tiles of `columns` columns.
fn tiles(args: &Attend, seq: &SeqRows, columns: usize) -> usize {
    (seq.rows * (args.heads / args.kv_heads)).div_ceil(columns)
}

/// Blocks of a split, so that a dispatch has about `workgroups` workgroups; a split begins with a page or lies within one.
fn split_blocks(args: &Attend, seqs: &[SeqRows], variant: &Variant, rule: &AttentionRule) -> usize {
    let columns = 4 * variant.fours;
    let total: usize = seqs.iter().map(|seq| tiles(args, seq, columns) * seen(args, seq).len()).sum();
    let each = (total * args.kv_heads).div_ceil(rule.workgroups);
    let each = each.max(longest(args, seqs).div_ceil(MOST_SPLITS)).max(variant.blocks);
    if each > 2 { each.next_multiple_of(PAGE_BLOCKS.max(variant.blocks)) } else { each.max(1) }
}

impl Plan {
    /// Tiles of `columns` columns, splits of `blocks` blocks.
    fn new(args: &Attend, seqs: &[SeqRows], columns: usize, blocks: usize) -> Plan {
        let pages = blocks.div_ceil(PAGE_BLOCKS);
        let stride = ITEM_WORDS + pages;
        let (mut items, mut rows) = (Vec::new(), Vec::new());
        for seq in seqs {
            let seen = seen(args, seq);
            let (first, splits) = ((items.len() / stride) as u32, seen.len().div_ceil(blocks));
            for tile in 0..tiles(args, seq, columns) {
                for split in 0..splits {
                    let block = seen.start + split * blocks;
                    let count = seq.rows * (args.heads / args.kv_heads);
                    items.extend([seq.row, seq.position, count, tile, block].map(|n| n as u32));
                    let page = block / PAGE_BLOCKS;
                    let held = seq.pages.iter().skip(page).take(pages).map(|page| page.index);
                    items.extend(held);
                    items.resize(items.len().next_multiple_of(stride), 0);
                }
            }
            for row in 0..seq.rows {
                rows.extend([(seq.row + row) as u32, first, splits as u32, row as u32]);
            }
        }
        Plan { items, stride, rows, blocks }
    }

    fn count(&self) -> usize {
        self.items.len() / self.stride
    }
}

impl Gpu {
    /// Another rule. Hidden: only measurements (`examples/attend.rs`, which the figures come from) and tests have a use for
    /// it.
    #[doc(hidden)]
    pub fn tune_attention(&mut self, rule: AttentionRule) {
        self.splits.rule = rule;
    }

    /// Attention of `seqs`, those of the checked `args.seqs` with 1 to 16 rows, whose pages lie in `bound`. With `new` every
    /// sequence has one row. Writes the int8 form of `out` where it has the buffers, and says so where `seqs` are all.
    pub(super) fn run_decode(
        &mut self,
        args: &Attend,
        bound: &Bound,
        seqs: &[SeqRows],
        new: Option<&New>,
    ) -> Result<()> {
        let fits = longest(args, seqs) <= self.splits.rule.most_short.min(PAGE_BLOCKS);
        // Short contexts grow: both forms are rehearsed.
        if fits || self.stream.rehearsing {
            self.run_short(args, bound, seqs, new)?;
        }
        if !fits || self.stream.rehearsing {
            self.run_splits(args, bound, seqs, new)?;
        }
        let rows: usize = seqs.iter().map(|seq| seq.rows).sum();
        let all = rows == args.seqs.iter().map(|seq| seq.rows).sum::<usize>();
        let end = seqs.last().map_or(0, |seq| seq.row + seq.rows);
        let out = self.acts.get_mut(VERB, args.out)?;
        if out.int8.is_some() && args.head_dim.is_multiple_of(32) && all && end == rows {
            out.int8_rows = rows;
        }
        Ok(())
    }

    /// One dispatch: a workgroup for every row and query head, and one for every new row and KV head, which stores it.
    fn run_short(&mut self, args: &Attend, bound: &Bound, seqs: &[SeqRows], new: Option<&New>) -> Result<()> {
        let int8 = self.int8_of(args)?;
        let short = self.short(args, bound, new, int8.is_some())?;
        let mut items = Vec::new();
        for seq in seqs {
            let first = seq.first_page(args.window);
            let page = seq.pages.get(first).map_or(0, |page| page.index as usize);
            for row in 0..seq.rows {
                let item = [seq.row + row, seq.position + row, page, first * PAGE_BLOCKS];
                items.extend(item.map(|n| n as u32));
            }
        }
        let mut results = vec![self.acts.get(VERB, args.out)?.rows];
        results.extend(int8.map(|form| [form.codes, form.meta]).into_iter().flatten());
        if let Some(sinks) = args.sinks {
            results.push(self.weights.get(VERB, sinks)?.parts[0].buffer);
        }
        let at = if items.len() > ROW_WORDS { self.stream.arguments(&items)? } else { 0 };
        let mut immediates = vec![at];
        immediates.extend(items.iter().take(ROW_WORDS));
        let stores = if new.is_some() { args.kv_heads } else { 0 };
        let groups = [(items.len() / ROW_WORDS) as u32, (args.heads + stores) as u32, 1];
        for bound in self.with_stand_ins(bound)? {
            let kernel = self.stream.kernel(short.key(), || short.source())?;
            let call = (kernel, groups, &immediates[..]);
            self.dispatch(args, (&bound, seqs), call, new, &results)?;
        }
        Ok(())
    }

    /// The kernel of short contexts.
    fn short(&self, args: &Attend, bound: &Bound, new: Option<&New>, int8: bool) -> Result<Short> {
        let facts = &self.stream.context.facts;
        let wanted = Short {
            layout: bound.layout,
            lanes: self.splits.rule.short_lanes,
            cap: args.softcap.is_some(),
            sinks: args.sinks.is_some(),
            int8,
            fused: new.map(New::fused),
            subgroups: facts.tier.subgroups.then_some(facts.least_subgroup),
        };
        let fits = wanted.fitting(self.group_memory(), facts.group_lanes);
        fits.ok_or_else(|| self.too_wide(args.head_dim))
    }

    /// Two dispatches: sequences are split, and results merged.
    fn run_splits(
        &mut self,
        args: &Attend,
        bound: &Bound,
        seqs: &[SeqRows],
        new: Option<&New>,
    ) -> Result<()> {
        let variant = self.fitting(self.variant(args, bound, seqs, new)?)?;
        let (rule, columns) = (self.splits.rule, 4 * variant.fours);
        let plan = Plan::new(args, seqs, columns, split_blocks(args, seqs, &variant, &rule));
        let tiles: usize = seqs.iter().map(|seq| tiles(args, seq, columns)).sum();
        let most =
            AttentionRule::default().workgroups.max(plan.count() * args.kv_heads) + 2 * tiles * args.kv_heads;
        let splits = self.splits(most * columns, args.head_dim)?;
        let at = self.stream.arguments(&plan.items)?;
        let immediates = [at, plan.stride as u32, plan.blocks as u32];
        let groups = [plan.count() as u32, args.kv_heads as u32, 1];
        for bound in self.with_stand_ins(bound)? {
            // Pages are those of checked calls; everything else stays inside by the text, which is long: with checks a
            // software adapter takes more than eight times as long to compile it.
            let kernel = self.stream.kernel_with(variant.key(), Bounds::Trusted, || variant.source())?;
            self.dispatch(args, (&bound, seqs), (kernel, groups, &immediates), new, &splits)?;
        }
        self.dispatch_merge(args, bound, &plan, columns, splits)
    }

    /// The int8 form that `out` has and that heads fill in whole blocks.
    fn int8_of(&self, args: &Attend) -> Result<Option<Int8>> {
        Ok(self.acts.get(VERB, args.out)?.int8.filter(|_| args.head_dim.is_multiple_of(32)))
    }

    /// Whether a workgroup has all query heads of a KV head: else some would read what another stores.
    pub(super) fn one_tile(&self, args: &Attend, bound: &Bound, new: &New) -> Result<bool> {
        let split = self.variant(args, bound, args.seqs, Some(new)).and_then(|v| self.fitting(v));
        // Wide heads leave no room for new rows where workgroup memory is small.
        let (Ok(split), Ok(_)) = (split, self.short(args, bound, Some(new), true)) else { return Ok(false) };
        Ok(4 * split.fours >= args.heads / args.kv_heads)
    }

    /// The kernel of splits, before it is known to fit.
    fn variant(&self, args: &Attend, bound: &Bound, seqs: &[SeqRows], new: Option<&New>) -> Result<Variant> {
        let facts = &self.stream.context.facts;
        let several = seqs.iter().any(|seq| seq.rows > 1);
        let (group, most_rows) = (args.heads / args.kv_heads, if several { 16 } else { 1 });
        let rule = self.splits.rule;
        Ok(Variant {
            layout: bound.layout,
            group,
            fours: (most_rows * group).div_ceil(4).min(4),
            lanes: rule.lanes,
            blocks: rule.blocks_of(&bound.layout),
            cap: args.softcap.is_some(),
            fused: new.map(New::fused),
            subgroups: facts.tier.subgroups.then_some(facts.least_subgroup),
        })
    }

    fn fitting(&self, wanted: Variant) -> Result<Variant> {
        let fits = wanted.fitting(self.group_memory(), self.stream.context.facts.group_lanes);
        fits.ok_or_else(|| self.too_wide(wanted.layout.head_dim))
    }

    fn group_memory(&self) -> usize {
        self.stream.context.device.limits().max_compute_workgroup_storage_size as usize
    }

    fn too_wide(&self, head_dim: usize) -> ComputeError {
        let memory = self.group_memory();
        ComputeError::Device {
            device: self.stream.context.facts.name.clone(),
            problem: format!(
                "attention with heads of {head_dim} needs more than its {memory} bytes of workgroup memory"
            ),
        }
    }

    /// Buffers for `columns` columns of splits, made larger when first needed.
    pub(super) fn splits(&mut self, columns: usize, head_dim: usize) -> Result<[BufferId; 2]> {
        let room = [(4 * columns * head_dim) as u64, 8 * columns as u64];
        if let Some(buffers) = self.splits.buffers {
            if room[0] <= self.splits.room[0] && room[1] <= self.splits.room[1] {
                return Ok(buffers);
            }
            self.splits.buffers = None;
            self.stream.flush()?;
            buffers.into_iter().for_each(|id| self.stream.release(id));
        }
        let room = [room[0].max(self.splits.room[0]), room[1].max(self.splits.room[1])];
        let make = |stream: &mut Stream, bytes| stream.buffer("splits of attention", bytes);
        let buffers = [make(&mut self.stream, room[0])?, make(&mut self.stream, room[1])?];
        (self.splits.buffers, self.splits.room) = (Some(buffers), room);
        Ok(buffers)
    }

    /// A kernel with what both read; its own results and first immediates are given.
    fn dispatch(
        &mut self,
        args: &Attend,
        (bound, seqs): (&Bound, &[SeqRows]),
        (kernel, groups, first_words): (Kernel, [u32; 3], &[u32]),
        new: Option<&New>,
        results: &[BufferId],
    ) -> Result<()> {
        let arguments = self.stream.argument_buffer();
        let [rest, first] = [bound.rest, bound.first].map(|pool| pool.unwrap_or(arguments));
        let mut bindings = results.to_vec();
        bindings.extend([arguments, self.acts.get(VERB, args.q)?.rows, rest]);
        bindings.extend(bound.layout.first.then_some(first));
        let scoring = Scoring::new(args.scale, args.softcap);
        let window = args.window.map_or(u32::MAX, |w| w.min(u32::MAX as usize) as u32);
        let mut immediates = first_words.to_vec();
        immediates.extend([window, scoring.factor.to_bits(), scoring.cap.unwrap_or(0.0).to_bits()]);
        immediates.push(args.heads as u32);
        let (mut rotary, mut eps, mut magnitude) = (0, [0.0f32; 2], 0.0f32);
        if let Some(new) = new {
            bindings.extend([new.k, new.v]);
            if let Some((weights, both)) = new.norms {
                bindings.extend(weights);
                eps = both;
            }
            if let Some(turn) = &new.turn {
                bindings.push(turn.freqs);
                (rotary, magnitude) = (turn.pairs, turn.magnitude);
            }
        }
        immediates.extend([rotary, eps[0].to_bits(), eps[1].to_bits(), magnitude.to_bits()]);
        let seen = |seq: &SeqRows| seq.position + seq.rows - seq.first_seen(args.window);
        let positions: usize = seqs.iter().map(seen).sum();
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &immediates,
            groups,
            verb: VERB,
            bytes: (positions * bound.layout.page_bytes() / PAGE_POSITIONS) as u64,
        })
    }

    fn dispatch_merge(
        &mut self,
        args: &Attend,
        bound: &Bound,
        plan: &Plan,
        columns: usize,
        splits: [BufferId; 2],
    ) -> Result<()> {
        let (rows, int8) = (self.acts.get(VERB, args.out)?.rows, self.int8_of(args)?);
        let facts = &self.stream.context.facts;
        let merge = Merge {
            head_dim: args.head_dim,
            rotated: bound.layout.v_rotated,
            span: bound.layout.span(),
            sinks: args.sinks.is_some(),
            int8: int8.is_some(),
            splits: MOST_SPLITS,
            subgroups: facts.tier.subgroups.then_some(facts.least_subgroup),
        };
        let kernel = self.stream.kernel(merge.key(), || merge.source())?;
        let at = self.stream.arguments(&plan.rows)?;
        let mut bindings = vec![rows, splits[0], splits[1], self.stream.argument_buffer()];
        if let Some(sinks) = args.sinks {
            bindings.push(self.weights.get(VERB, sinks)?.parts[0].buffer);
        }
        if let Some(form) = int8 {
            bindings.extend([form.codes, form.meta]);
        }
        let sizes = [at, args.kv_heads as u32, args.heads as u32, columns as u32];
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &sizes,
            groups: [args.heads as u32, plan.rows.len() as u32 / 4, 1],
            verb: VERB,
            bytes: (plan.count() * args.kv_heads * columns * 4 * args.head_dim) as u64,
        })
    }
}
