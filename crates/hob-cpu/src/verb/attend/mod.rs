//! Causal attention over KV pages.
//!
//! Owns the division of work: tiles of query rows that share a KV head, walked page by page in ascending order, or for
//! few rows and long contexts pages computed apart and folded in the same order. The arithmetic stands in
//! [`hob_compute::reference::attention`]; every kernel repeats it per element, so any division gives the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
mod tile;
#[cfg(target_arch = "x86_64")]
mod vector;

use hob_compute::{PAGE_POSITIONS, Page, PageSpec, Result, SeqRows};

use super::{Parts, each_unit};
use crate::arena::HugeVec;
use crate::isa::Isa;
use crate::pool::Pool;
use tile::{Form, Memory, Tile, View};

/// One `attend` verb on plain slices; shapes as in [`hob_compute::Attend`], already checked.
pub struct Job<'a> {
    pub q: &'a [f32],
    pub out: &'a mut [f32],
    pub heads: usize,
    pub spec: PageSpec,
    pub scale: f32,
    pub seqs: &'a [SeqRows<'a>],
    /// The values of a page.
    pub page: &'a (dyn Fn(Page) -> &'a [u16] + Sync),
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
/// Multiply-adds below which waking the pool does not pay.
const ALONE: usize = 64 << 10;

/// Attention of every row of `job`.
///
/// # Errors
/// No memory for scratch; nothing is allocated once the largest shape was seen.
pub fn attend(pool: &Pool, isa: Isa, job: Job, scratch: &mut Scratch) -> Result<()> {
    let Job { q, out, heads, spec, scale, seqs, page } = job;
    let plan = Plan {
        q,
        out: Parts::new(out),
        group: heads / spec.kv_heads,
        spec,
        scale,
        seqs,
        page,
        form: Form::choose(isa, spec.head_dim),
        threads: pool.threads(),
    };
    let units: usize = seqs.iter().map(|s| plan.units(s)).sum();
    let rows = seqs.iter().map(|s| plan.tile_rows(s) * plan.group).max().unwrap_or(0);
    let pages = seqs.iter().map(|s| (s.position + s.rows).div_ceil(PAGE_POSITIONS)).max().unwrap_or(0);
    let memory = Memory::floats(rows, spec.head_dim);
    scratch.threads.resize_with(pool.threads(), Grown::default);
    for thread in &mut scratch.threads {
        thread.at_least(memory)?;
    }
    let work = seqs.iter().map(|s| s.rows * (s.position + s.rows)).sum::<usize>() * heads * spec.head_dim * 2;
    let small = rows <= SMALL.max(plan.group);
    let threads = Parts::new(&mut scratch.threads);
    let whole = |thread: usize, unit: usize| {
        // SAFETY: a thread's memory is its own.
        let own = unsafe { &mut threads.part(thread..thread + 1)[0] };
        plan.whole(unit, own.0.as_deref_mut().unwrap_or_default());
    };
    let few = small && units < 4 * pool.threads() && pool.threads() > 1;
    let apart = Apart::new(units, rows, pages, &plan);
    // Allocated before the context is long enough to need it, so that a growing context allocates nothing.
    let memory = if few { scratch.apart.at_least(apart.floats())? } else { &mut [] };
    if work < ALONE || pool.threads() == 1 {
        (0..units).for_each(|u| whole(0, u));
    } else if few && pages > 1 {
        apart.run(pool, &plan, threads, memory);
    } else {
        each_unit(pool, units, &whole);
    }
    Ok(())
}

/// A job and how it is cut. A unit is a tile of rows of one sequence and one KV head.
struct Plan<'a> {
    q: &'a [f32],
    out: Parts<'a, f32>,
    /// Query heads per KV head.
    group: usize,
    spec: PageSpec,
    scale: f32,
    seqs: &'a [SeqRows<'a>],
    page: &'a (dyn Fn(Page) -> &'a [u16] + Sync),
    form: Form,
    threads: usize,
}

/// A unit found by its number.
struct Unit<'a> {
    seq: &'a SeqRows<'a>,
    /// First batch row.
    row: usize,
    kv_head: usize,
    tile: Tile,
}

impl<'a> Plan<'a> {
    /// Batch rows per tile of a sequence.
    fn tile_rows(&self, seq: &SeqRows) -> usize {
        if seq.rows <= 1 || seq.rows * self.group <= SMALL {
            return seq.rows.max(1);
        }
        let mut rows = (LARGE / self.group).clamp(1, seq.rows);
        // Smaller tiles when there would be too few to keep all threads busy to the end.
        while rows > 1
            && rows * self.group > LARGE / 4
            && seq.rows.div_ceil(rows) * self.spec.kv_heads < 3 * self.threads
        {
            rows = rows.div_ceil(2);
        }
        rows
    }

    fn units(&self, seq: &SeqRows) -> usize {
        seq.rows.div_ceil(self.tile_rows(seq)) * self.spec.kv_heads
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
            let first = (seq.rows.div_ceil(step) - 1 - number / self.spec.kv_heads) * step;
            let rows = step.min(seq.rows - first);
            let tile = Tile {
                rows: rows * self.group,
                group: self.group,
                visible: seq.position + first + 1,
                head_dim: self.spec.head_dim,
            };
            return Some(Unit { seq, row: seq.row + first, kv_head: number % self.spec.kv_heads, tile });
        }
        None
    }

    /// Floats of the queries and results of `row`, query row `t` of a unit.
    fn head_at(&self, unit: &Unit, t: usize) -> usize {
        let heads = self.group * self.spec.kv_heads;
        let row = unit.row + t / self.group;
        (row * heads + unit.kv_head * self.group + t % self.group) * self.spec.head_dim
    }

    fn pack(&self, unit: &Unit, to: &mut [f32]) {
        unit.tile.pack(|t| &self.q[self.head_at(unit, t)..][..self.spec.head_dim], to);
    }

    /// The KV head's values of page `index` of a unit.
    fn view(&self, unit: &Unit, index: usize) -> View<'a> {
        let values = self.spec.head_values();
        let head = |page: Page| &(self.page)(page)[unit.kv_head * values..][..values];
        let next = unit.seq.pages.get(index + 1).filter(|_| index + 1 < unit.tile.pages());
        View { kv: head(unit.seq.pages[index]), next: next.map(|&p| head(p)), page: index, scale: self.scale }
    }

    fn store(&self, unit: &Unit, state: &[f32]) {
        for t in 0..unit.tile.rows {
            let at = self.head_at(unit, t);
            // SAFETY: every unit has its own rows and heads.
            let out = unsafe { self.out.part(at..at + self.spec.head_dim) };
            unit.tile.finish(self.form, state, t, out);
        }
    }

    /// All pages of a unit, one after the other.
    fn whole(&self, unit: usize, memory: &mut [f32]) {
        let Some(unit) = self.unit(unit) else { return };
        let Memory { q, scores, part, state } = Memory::split(memory, &unit.tile);
        self.pack(&unit, q);
        for index in 0..unit.tile.pages() {
            let view = self.view(&unit, index);
            if index == 0 {
                unit.tile.page(self.form, q, &view, scores, state);
            } else {
                unit.tile.page(self.form, q, &view, scores, part);
                unit.tile.fold(self.form, index, state, part);
            }
        }
        self.store(&unit, state);
    }
}

/// Pages of few units computed apart: windows of pages, each followed by a fold in page order.
struct Apart {
    units: usize,
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
        let slot = |i: usize| i * self.slot..(i + 1) * self.slot;
        let mut first = 0;
        while first < self.pages {
            let count = self.window.min(self.pages - first);
            each_unit(pool, self.units * count, &|thread, task| {
                let (u, index) = (task / count, first + task % count);
                let Some(unit) = plan.unit(u).filter(|unit| index < unit.tile.pages()) else { return };
                // SAFETY: a thread's memory is its own, and every task has its own slot.
                let (own, part) =
                    unsafe { (&mut threads.part(thread..thread + 1)[0], memory.part(slot(task))) };
                let Memory { q, scores, .. } =
                    Memory::split(own.0.as_deref_mut().unwrap_or_default(), &unit.tile);
                plan.pack(&unit, q);
                unit.tile.page(plan.form, q, &plan.view(&unit, index), scores, part);
            });
            let fold = |_: usize, u: usize| {
                let Some(unit) = plan.unit(u) else { return };
                // SAFETY: the states lie behind the slots of the window; every unit has its own.
                let state = unsafe { memory.part(slot(self.units * self.window + u)) };
                for index in first..(first + count).min(unit.tile.pages()) {
                    // SAFETY: this unit's slots, which no other task touches now.
                    let part = unsafe { memory.part(slot(u * count + index - first)) };
                    if index == 0 {
                        state.copy_from_slice(part);
                    } else {
                        unit.tile.fold(plan.form, index, state, part);
                    }
                }
                if first + count >= self.pages {
                    plan.store(&unit, state);
                }
            };
            if self.units * count * self.slot < ALONE {
                (0..self.units).for_each(|u| fold(0, u));
            } else {
                each_unit(pool, self.units, &fold);
            }
            first += count;
        }
    }
}
