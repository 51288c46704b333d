//! Causal attention over KV pages.
//!
//! Owns the division of work: tiles of query rows that share a KV head, walked page by page in ascending order, or for
//! few rows and long contexts pages computed apart and folded in the same order. The arithmetic stands in
//! [`hob_compute::reference::attention`]; every kernel repeats it per element, so any division gives the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod packed;
mod portable;
mod tile;
#[cfg(target_arch = "x86_64")]
mod vector;

use std::ops::Range;

use hob_compute::reference::attention::Scoring;
use hob_compute::{Page, PageSpec, Result, SeqRows};

use super::{Parts, each_unit, kv};
use crate::arena::HugeVec;
use crate::isa::Isa;
use crate::pool::{Pool, Shares};
use tile::{Asked, Form, Lay, Memory, Tile, View};

/// One `attend` verb on plain slices; shapes as in [`hob_compute::Attend`], already checked.
pub struct Job<'a> {
    pub q: &'a [f32],
    pub out: &'a mut [f32],
    pub heads: usize,
    /// Of the pages, without [`PageSpec::first`].
    pub spec: PageSpec,
    pub scoring: Scoring,
    pub window: Option<usize>,
    /// A logit of every query head.
    pub sinks: Option<&'a [f32]>,
    pub seqs: &'a [SeqRows<'a>],
    /// The bytes of a page.
    pub page: &'a (dyn Fn(Page) -> &'a [u8] + Sync),
}

/// Working memory, kept between calls.
#[derive(Default)]
pub struct Scratch {
    threads: Vec<Grown>,
    /// Partial results of pages computed apart, and what was folded of each unit.
    apart: Grown,
}

/// Memory that only grows.
#[derive(Default)]
struct Grown(Option<HugeVec<f32>>);

impl Grown {
    fn at_least(&mut self, floats: usize) -> Result<&mut [f32]> {
        if self.0.as_ref().is_none_or(|m| m.len() < floats) {
            self.0 = Some(HugeVec::zeroed(floats)?);
        }
        Ok(self.0.as_deref_mut().unwrap_or_default())
    }
}

/// Up to this many query rows the pages may be computed apart.
const SMALL: usize = 8;
/// Query rows of a large tile: enough to make reading a page cheap, few enough for their scores to stay in the L2
/// cache.
const LARGE: usize = 96;
/// Query heads that a share of a KV head has at least.
const LEAST: usize = 4;
/// Multiply-adds below which waking the pool does not pay.
const ALONE: usize = 64 << 10;

/// Attention of every row of `job`.
///
/// # Errors
/// No memory for scratch; nothing is allocated once the largest shape was seen.
pub fn attend(pool: &Pool, isa: Isa, job: Job, scratch: &mut Scratch) -> Result<()> {
    let Job { q, out, heads, spec, scoring, window, sinks, seqs, page } = job;
    let mut plan = Plan {
        q,
        out: Parts::new(out),
        group: heads / spec.kv_heads,
        parts: 1,
        spec,
        lays: [0, 1].map(|index| Lay::new(spec.of_page(index))),
        scoring,
        window,
        sinks,
        seqs,
        page,
        isa,
        form: Form::choose(isa, spec.value_dim()),
        packed: packed::Kernels::choose(isa),
        threads: pool.threads(),
    };
    let units: usize = seqs.iter().map(|s| plan.units(s)).sum();
    let rows = seqs.iter().map(|s| plan.tile_rows(s) * plan.group).max().unwrap_or(0);
    let seen = |s: &SeqRows| s.position + s.rows - s.first_seen(window);
    let pages = (0..units).filter_map(|u| Some(plan.unit(u)?.tile.pages().len())).max().unwrap_or(0);
    let memory = Memory::floats(rows, &spec);
    scratch.threads.resize_with(pool.capacity(), Grown::default);
    for thread in &mut scratch.threads {
        thread.at_least(memory)?;
    }
    let work = seqs.iter().map(|s| s.rows * seen(s)).sum::<usize>() * heads * spec.head_dim * 2;
    let small = rows <= SMALL.max(plan.group);
    let few = small && units < 4 * pool.threads() && pool.threads() > 1;
    let mut apart = Apart::new(units, rows, pages, &plan);
    // Allocated before the context is long enough to need it, and for all heads of a KV head together, so that a growing
    // context allocates nothing.
    let memory = if few { scratch.apart.at_least(apart.floats())? } else { &mut [] };
    let mut units = units;
    // Several rows of a sequence are units of their own.
    if few && work >= ALONE && seqs.iter().all(|s| s.rows <= 1) {
        plan.share(units * pages);
        units *= plan.parts;
        apart = Apart::new(units, rows / plan.parts, pages, &plan);
    }
    let threads = Parts::new(&mut scratch.threads);
    let whole = |thread: usize, unit: usize| {
        // SAFETY: a thread's memory is its own.
        let own = unsafe { &mut threads.part(thread..thread + 1)[0] };
        plan.whole(unit, own.0.as_deref_mut().unwrap_or_default());
    };
    if work < ALONE || pool.threads() == 1 {
        (0..units).for_each(|u| whole(0, u));
    } else if few && pages > 1 {
        apart.run(pool, &plan, threads, memory);
    } else {
        each_unit(pool, units, &whole);
    }
    Ok(())
}

/// A job and how it is cut. A unit is a tile of rows of one sequence and one KV head, or a part of its query heads.
struct Plan<'a> {
    q: &'a [f32],
    out: Parts<'a, f32>,
    /// Query heads of a unit.
    group: usize,
    /// Units that share a KV head.
    parts: usize,
    spec: PageSpec,
    /// Of a sequence's first page, and of the others.
    lays: [Lay; 2],
    scoring: Scoring,
    window: Option<usize>,
    sinks: Option<&'a [f32]>,
    seqs: &'a [SeqRows<'a>],
    page: &'a (dyn Fn(Page) -> &'a [u8] + Sync),
    isa: Isa,
    form: Form,
    packed: &'static packed::Kernels,
    threads: usize,
}

/// A unit found by its number.
struct Unit<'a> {
    seq: &'a SeqRows<'a>,
    /// First batch row.
    row: usize,
    /// First query head over `group`.
    share: usize,
    tile: Tile,
}

impl<'a> Plan<'a> {
    /// Shares the query heads of a KV head among threads that would have nothing to do while few units have few pages:
    /// one latent head is all that some models have. Each share reads the pages again, so that it has several heads.
    fn share(&mut self, tasks: usize) {
        while self.group.is_multiple_of(2) && self.group >= 2 * LEAST && tasks * self.parts < self.threads {
            self.group /= 2;
            self.parts *= 2;
        }
    }

    /// Units of a tile of rows.
    fn shares(&self) -> usize {
        self.spec.kv_heads * self.parts
    }

    /// Batch rows per tile of a sequence.
    fn tile_rows(&self, seq: &SeqRows) -> usize {
        if seq.rows <= 1 || seq.rows * self.group <= SMALL {
            return seq.rows.max(1);
        }
        let mut rows = (LARGE / self.group).clamp(1, seq.rows);
        // Smaller tiles when there would be too few to keep all threads busy to the end.
        while rows > 1
            && rows * self.group > LARGE / 4
            && seq.rows.div_ceil(rows) * self.shares() < 3 * self.threads
        {
            rows = rows.div_ceil(2);
        }
        rows
    }

    fn units(&self, seq: &SeqRows) -> usize {
        seq.rows.div_ceil(self.tile_rows(seq)) * self.shares()
    }

    fn unit(&self, mut number: usize) -> Option<Unit<'a>> {
        for seq in self.seqs {
            let units = self.units(seq);
            if number >= units {
                number -= units;
                continue;
            }
            let step = self.tile_rows(seq);
            // Last rows first: they see the most, and short work at the end evens out.
            let first = (seq.rows.div_ceil(step) - 1 - number / self.shares()) * step;
            let rows = step.min(seq.rows - first);
            let tile = Tile {
                rows: rows * self.group,
                group: self.group,
                position: seq.position + first,
                window: self.window,
                head_dim: self.spec.head_dim,
                value_dim: self.spec.value_dim(),
            };
            return Some(Unit { seq, row: seq.row + first, share: number % self.shares(), tile });
        }
        None
    }

    /// Which of all heads of all rows query row `t` of a unit is.
    fn head(&self, unit: &Unit, t: usize) -> usize {
        let heads = self.group * self.shares();
        let row = unit.row + t / self.group;
        row * heads + unit.share * self.group + t % self.group
    }

    fn ask(&self, unit: &Unit, memory: &mut Memory) {
        let row = |t| &self.q[self.head(unit, t) * self.spec.head_dim..][..self.spec.head_dim];
        unit.tile.ask(self.isa, self.packed, &self.spec, row, memory);
    }

    /// The KV head's bytes of page `index` of a unit.
    fn bytes(&self, unit: &Unit, index: usize) -> &'a [u8] {
        let bytes = self.lays[index.min(1)].bytes;
        &(self.page)(unit.seq.pages[index])[unit.share / self.parts * bytes..][..bytes]
    }

    /// Page `index` of a unit; this thread reads `next` after it.
    fn view<'v>(&'v self, unit: &Unit, index: usize, next: Option<&'v [u8]>) -> View<'v> {
        View {
            kv: self.bytes(unit, index),
            next: next.unwrap_or_default(),
            lay: &self.lays[index.min(1)],
            page: index,
            scoring: self.scoring,
            packed: self.packed,
        }
    }

    fn store(&self, unit: &Unit, state: &[f32]) {
        for t in 0..unit.tile.rows {
            let (head, dims) = (self.head(unit, t), self.spec.value_dim());
            let sink = self.sinks.map(|s| s[unit.share * self.group + t % self.group]);
            // SAFETY: every unit has its own rows and heads.
            let out = unsafe { self.out.part(head * dims..(head + 1) * dims) };
            unit.tile.finish(self.form, state, t, sink, out);
            if self.spec.v.is_rotated() {
                out.chunks_mut(self.spec.mixed_dims()).for_each(|x| kv::hadamard(self.isa, x));
            }
        }
    }

    /// All pages of a unit, one after the other.
    fn whole(&self, unit: usize, memory: &mut [f32]) {
        let Some(unit) = self.unit(unit) else { return };
        let mut memory = Memory::split(memory, &unit.tile, self.spec.latent);
        self.ask(&unit, &mut memory);
        let Memory { q, queries, mut room, part, state } = memory;
        let cuts = unit.tile.cuts(self.form);
        let q = Asked { floats: q, packed: &queries, cuts: &cuts };
        let pages = unit.tile.pages();
        for index in pages.clone() {
            let next = (index + 1 < pages.end).then(|| self.bytes(&unit, index + 1));
            let view = self.view(&unit, index, next);
            if index == pages.start {
                unit.tile.page(self.form, q, &view, &mut room, state);
            } else {
                unit.tile.page(self.form, q, &view, &mut room, part);
                unit.tile.fold(self.form, index, state, part);
            }
        }
        self.store(&unit, state);
    }
}

/// Pages of few units computed apart: windows of pages, each followed by a fold in page order. Pages are counted from
/// the first that a unit sees.
struct Apart {
    units: usize,
    /// Most pages of a unit.
    pages: usize,
    /// Pages of every unit per window.
    window: usize,
    /// Floats of one partial result.
    slot: usize,
}

impl Apart {
    fn new(units: usize, rows: usize, pages: usize, plan: &Plan) -> Apart {
        // Enough pages at once to balance all threads, few enough for their results to stay in the cache.
        let window = ((16 * plan.threads).max(64) / units.max(1)).max(1);
        Apart { units, pages, window, slot: Memory::part_floats(rows, plan.spec.head_dim) }
    }

    /// Partial results of one window, then one state per unit.
    fn floats(&self) -> usize {
        self.units * (self.window + 1) * self.slot
    }

    fn run(&self, pool: &Pool, plan: &Plan, threads: Parts<Grown>, memory: &mut [f32]) {
        let memory = Parts::new(memory);
        for first in (0..self.pages).step_by(self.window) {
            let window = first..(first + self.window).min(self.pages);
            // Neighboring pages stay on one thread, which can ask for the next one ahead.
            let shares = Shares::new(self.units * window.len(), pool.threads());
            pool.run(&|thread| {
                // SAFETY: a thread's memory is its own.
                let own = unsafe { &mut threads.part(thread..thread + 1)[0] };
                let own = own.0.as_deref_mut().unwrap_or_default();
                shares.each(thread, |tasks| self.pages(plan, &window, tasks, own, memory));
            });
            let fold = |_: usize, u: usize| self.fold(plan, &window, u, memory);
            if self.units * window.len() * self.slot < ALONE {
                (0..self.units).for_each(|u| fold(0, u));
            } else {
                each_unit(pool, self.units, &fold);
            }
        }
    }

    /// Slot `i` of the memory.
    fn slot(&self, i: usize) -> Range<usize> {
        i * self.slot..(i + 1) * self.slot
    }

    /// The unit of a task of a window, and the index of its page in its sequence.
    fn task<'p>(&self, plan: &Plan<'p>, window: &Range<usize>, task: usize) -> Option<(Unit<'p>, usize)> {
        let unit = plan.unit(task / window.len())?;
        let pages = unit.tile.pages();
        let index = pages.start + window.start + task % window.len();
        (index < pages.end).then_some((unit, index))
    }

    /// Computes the pages of some consecutive tasks of a window into their slots.
    fn pages(
        &self,
        plan: &Plan,
        window: &Range<usize>,
        tasks: Range<usize>,
        own: &mut [f32],
        memory: Parts<f32>,
    ) {
        // What a thread is asked stays the same while its pages are of one unit.
        let (mut asked, mut cuts) = (None, None);
        for task in tasks.clone() {
            let Some((unit, index)) = self.task(plan, window, task) else { continue };
            let next = (task + 1 < tasks.end).then(|| self.task(plan, window, task + 1)).flatten();
            let view = plan.view(&unit, index, next.map(|(unit, index)| plan.bytes(&unit, index)));
            // SAFETY: every task has its own slot.
            let part = unsafe { memory.part(self.slot(task)) };
            let mut memory = Memory::split(own, &unit.tile, plan.spec.latent);
            if asked != Some(task / window.len()) {
                plan.ask(&unit, &mut memory);
                asked = Some(task / window.len());
                cuts = Some(unit.tile.cuts(plan.form));
            }
            let Some(cuts) = &cuts else { continue };
            let Memory { q, queries, mut room, .. } = memory;
            let q = Asked { floats: q, packed: &queries, cuts };
            unit.tile.page(plan.form, q, &view, &mut room, part);
        }
    }

    /// Folds the pages of a window into the state of unit `u`; behind the last window, stores it.
    fn fold(&self, plan: &Plan, window: &Range<usize>, u: usize, memory: Parts<f32>) {
        let Some(unit) = plan.unit(u) else { return };
        // SAFETY: the states lie behind the slots of the window; every unit has its own.
        let state = unsafe { memory.part(self.slot(self.units * self.window + u)) };
        for task in u * window.len()..(u + 1) * window.len() {
            let Some((_, index)) = self.task(plan, window, task) else { break };
            // SAFETY: this unit's slots, which no other task touches now.
            let part = unsafe { memory.part(self.slot(task)) };
            unit.tile.fold(plan.form, index, state, part);
        }
        if window.end == self.pages {
            plan.store(&unit, state);
        }
    }
}
