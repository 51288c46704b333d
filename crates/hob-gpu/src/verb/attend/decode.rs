//! Attention of few rows: each sequence's context is cut into splits, which workgroups read at the same time, and a second
//! dispatch merges what they leave (flash decoding). It must not know how a split is computed: see `kernel`.

mod kernel;

use hob_compute::reference::attention::Scoring;
use hob_compute::{Attend, ComputeError, PAGE_POSITIONS, Result, SeqRows};

use super::VERB;
use crate::Gpu;
use crate::pages::{Bound, Tables};
use crate::stream::{BufferId, Call, Stream};
use kernel::{Fused, Merge, Variant};

/// Workgroups that a dispatch should have at least where contexts are long enough: several for each core of a large GPU.
const WORKGROUPS: usize = 1024;
/// Most splits of a sequence.
const MOST_SPLITS: usize = 1024;

/// Rows that are not yet remembered, for the dispatch that norms, rotates, appends and attends.
pub(super) struct New {
    pub k: BufferId,
    pub v: BufferId,
    /// Weights and epsilons, of q and of k.
    pub norms: Option<([BufferId; 2], [f32; 2])>,
    pub turn: Option<Turn>,
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
    /// For measurements: lanes of a workgroup and workgroups of a dispatch, where they are not to be chosen.
    pub tuned: Option<(usize, usize)>,
}

/// How the rows of a call are cut.
struct Plan {
    /// Sequence (index among those with rows, low half) and tile (high half), and split, of every workgroup.
    items: Vec<u32>,
    /// Row, its first item, splits, and row within the sequence.
    rows: Vec<u32>,
    /// Blocks of a split.
    blocks: usize,
}

impl Plan {
    /// Tiles of `columns` columns, `group` columns to a row; splits of a multiple of `step` blocks.
    fn new(args: &Attend, seqs: &[SeqRows], (columns, step): (usize, usize), workgroups: usize) -> Plan {
        let group = args.heads / args.kv_heads;
        let tiles = |seq: &SeqRows| (seq.rows * group).div_ceil(columns);
        let blocks = |seq: &SeqRows| {
            let end = (seq.position + seq.rows).div_ceil(64);
            end - seq.first_seen(args.window) / 64
        };
        let total: usize = seqs.iter().map(|seq| tiles(seq) * blocks(seq)).sum();
        let longest = seqs.iter().map(blocks).max().unwrap_or(0);
        let each = (total * args.kv_heads).div_ceil(workgroups).max(longest.div_ceil(MOST_SPLITS));
        let each = each.max(1).next_multiple_of(step);
        let (mut items, mut rows) = (Vec::new(), Vec::new());
        for (index, seq) in seqs.iter().enumerate() {
            let (first, splits) = (items.len() as u32 / 2, blocks(seq).div_ceil(each));
            for tile in 0..tiles(seq) {
                for split in 0..splits {
                    items.extend([index as u32 | (tile as u32) << 16, split as u32]);
                }
            }
            for row in 0..seq.rows {
                rows.extend([(seq.row + row) as u32, first, splits as u32, row as u32]);
            }
        }
        Plan { items, rows, blocks: each }
    }
}

impl Gpu {
    /// For measurements: lanes of a workgroup (32, 64, 128) and workgroups of a dispatch of attention of few rows.
    #[doc(hidden)]
    pub fn tune_attention(&mut self, tuned: Option<(usize, usize)>) {
        self.splits.tuned = tuned;
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
        let most = seqs.iter().map(|seq| seq.rows).max().unwrap_or(0);
        let several = if most > 1 { 16 } else { 1 };
        let variant = self.variant(args, bound, several, new)?;
        let workgroups = self.splits.tuned.map_or(WORKGROUPS, |(_, workgroups)| workgroups);
        let plan = Plan::new(args, seqs, (4 * variant.fours, variant.lanes / 32), workgroups);
        let tiles: usize =
            seqs.iter().map(|s| (s.rows * args.heads / args.kv_heads).div_ceil(4 * variant.fours)).sum();
        let usual = if self.splits.tuned.is_some() { 0 } else { WORKGROUPS };
        let most = usual.max(plan.items.len() / 2 * args.kv_heads) + 2 * tiles * args.kv_heads;
        let splits = self.splits(most * 4 * variant.fours, args.head_dim)?;
        for bound in self.with_stand_ins(bound)? {
            self.dispatch_splits(args, (&bound, seqs), (&variant, &plan), new, splits)?;
        }
        self.dispatch_merge(args, bound, &plan, 4 * variant.fours, splits)?;
        let rows: usize = seqs.iter().map(|seq| seq.rows).sum();
        let all = rows == args.seqs.iter().map(|seq| seq.rows).sum::<usize>();
        let end = seqs.last().map_or(0, |seq| seq.row + seq.rows);
        let out = self.acts.get_mut(VERB, args.out)?;
        if out.int8.is_some() && args.head_dim.is_multiple_of(32) && all && end == rows {
            out.int8_rows = rows;
        }
        Ok(())
    }

    /// Whether a workgroup has all query heads of a KV head: else some would read what another stores.
    pub(super) fn one_tile(&self, args: &Attend, bound: &Bound, new: &New) -> Result<bool> {
        Ok(4 * self.variant(args, bound, 1, Some(new))?.fours >= args.heads / args.kv_heads)
    }

    fn variant(&self, args: &Attend, bound: &Bound, rows: usize, new: Option<&New>) -> Result<Variant> {
        let context = &self.stream.context;
        let memory = context.device.limits().max_compute_workgroup_storage_size as usize;
        let fused = new.map(|new| Fused {
            norms: new.norms.is_some(),
            rotates: new.turn.is_some(),
            interleaved: new.turn.as_ref().is_some_and(|turn| turn.interleaved),
        });
        let wanted = Variant {
            layout: bound.layout,
            fours: (rows * args.heads / args.kv_heads).div_ceil(4).min(4),
            lanes: self.splits.tuned.map_or(128, |(lanes, _)| lanes),
            cap: args.softcap.is_some(),
            fused,
            subgroups: context.facts.tier.subgroups,
        };
        wanted.fitting(memory).ok_or_else(|| ComputeError::Device {
            device: context.facts.name.clone(),
            problem: format!(
                "attention with heads of {} needs more than its {memory} bytes of workgroup memory",
                args.head_dim
            ),
        })
    }

    /// Buffers for `columns` columns of splits, made larger when first needed.
    fn splits(&mut self, columns: usize, head_dim: usize) -> Result<[BufferId; 2]> {
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

    fn dispatch_splits(
        &mut self,
        args: &Attend,
        (bound, seqs): (&Bound, &[SeqRows]),
        (variant, plan): (&Variant, &Plan),
        new: Option<&New>,
        splits: [BufferId; 2],
    ) -> Result<()> {
        let kernel = self.stream.kernel(variant.key(), || variant.source())?;
        let mut words = plan.items.clone();
        words.extend(Tables::new(seqs.iter(), |seq| seq.first_page(args.window)).words);
        let at = self.stream.arguments(&words)?;
        let arguments = self.stream.argument_buffer();
        let [rest, first] = [bound.rest, bound.first].map(|pool| pool.unwrap_or(arguments));
        let mut bindings = vec![splits[0], splits[1], arguments, self.acts.get(VERB, args.q)?.rows, rest];
        bindings.extend(bound.layout.first.then_some(first));
        let scoring = Scoring::new(args.scale, args.softcap);
        let window = args.window.map_or(u32::MAX, |w| w.min(u32::MAX as usize) as u32);
        let mut immediates = vec![
            at,
            at + plan.items.len() as u32,
            plan.blocks as u32,
            window,
            scoring.factor.to_bits(),
            scoring.cap.unwrap_or(0.0).to_bits(),
            args.heads as u32,
            (args.heads / args.kv_heads) as u32,
        ];
        immediates.extend([0; 4]);
        if let Some(new) = new {
            bindings.extend([new.k, new.v]);
            if let Some((weights, eps)) = new.norms {
                bindings.extend(weights);
                (immediates[8], immediates[9]) = (eps[0].to_bits(), eps[1].to_bits());
            }
            if let Some(turn) = &new.turn {
                bindings.push(turn.freqs);
                (immediates[10], immediates[11]) = (turn.pairs, turn.magnitude.to_bits());
            }
        }
        let seen = |seq: &SeqRows| seq.position + seq.rows - seq.first_seen(args.window);
        let positions: usize = seqs.iter().map(seen).sum();
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &immediates,
            groups: [plan.items.len() as u32 / 2, args.kv_heads as u32, 1],
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
        let out = self.acts.get(VERB, args.out)?;
        let (rows, int8) = (out.rows, out.int8.filter(|_| args.head_dim.is_multiple_of(32)));
        let merge = Merge {
            head_dim: args.head_dim,
            rotated: bound.layout.v_rotated,
            sinks: args.sinks.is_some(),
            int8: int8.is_some(),
            splits: MOST_SPLITS,
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
            bytes: (plan.items.len() / 2 * args.kv_heads * columns * 4 * args.head_dim) as u64,
        })
    }
}
