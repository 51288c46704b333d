//! A mixture's products: every row through the experts its route names, each expert's weights read once.
//!
//! (row, expert) pairs are sorted by expert; an expert's rows are gathered into tiles and computed together. Two passes
//! over the weights: gate and up of all experts, then down. The second is cut by output columns, and each of its units
//! adds the experts in ascending id: the order of a row's sum does not depend on the batch. It must not know handles.

use std::cell::RefCell;

use hob_compute::check::mixture::expert_id;
use hob_compute::{Activation, ComputeError};

use super::act::{Packed, SendPtr, Store, gather_rows, pack_rows, row_bytes};
use super::combine::{Block, Target, activated, gated};
use super::drive::{Acts, Rowed, tile, tile_height};
use super::float::Rows;
use super::layout::{Kind, Matrix};
use super::shape::LANES;
use crate::isa::Isa;
use crate::pool::{Pool, Shares};
use crate::verb::{Parts, each_unit};

/// One `experts` verb. Lengths were checked by the caller.
pub struct Job<'a> {
    /// `[rows, dim]`
    pub x: &'a [f32],
    pub rows: usize,
    /// `[rows, 2 * top_k]`
    pub routes: &'a [f32],
    pub top_k: usize,
    /// As `up`; nothing where experts have no gate.
    pub gate: &'a [Matrix],
    /// `[ff, dim]` of each expert.
    pub up: &'a [Matrix],
    /// `[dim, ff]` of each expert.
    pub down: &'a [Matrix],
    /// Of gate and up, `[experts, ff]`, and of down, `[experts, dim]`.
    pub biases: [Option<&'a [f32]>; 3],
    pub activation: Activation,
    /// `[rows * top_k, ff]`
    pub hidden: &'a mut [f32],
    /// `[rows, dim]`
    pub out: &'a mut [f32],
    /// Add to `out` instead of overwriting it.
    pub add: bool,
}

/// Working memory, kept between calls.
#[derive(Default)]
pub struct Scratch {
    sorted: Sorted,
    /// Every row of x, packed by itself.
    ones: Store,
    /// Gathered rows of x, later the hidden rows: each expert's tiles one after the other.
    tiles: Store,
}

/// (row, weight) pairs by ascending expert, rows ascending within one.
#[derive(Default)]
struct Sorted {
    pairs: Vec<(u32, f32)>,
    /// Where each expert's pairs end.
    ends: Vec<u32>,
    /// Experts with rows, ascending.
    active: Vec<u32>,
    /// Most rows of one expert.
    most: usize,
}

impl Sorted {
    /// # Errors
    /// A route that names no expert.
    fn fill(&mut self, job: &Job) -> Result<(), ComputeError> {
        let Sorted { pairs, ends, active, most } = self;
        let (count, k) = (job.up.len(), job.top_k);
        ends.clear();
        ends.resize(count, 0);
        let routes = || job.routes.chunks_exact(2 * k).take(job.rows);
        for route in routes() {
            for &id in &route[..k] {
                ends[expert_id(id, count)?] += 1;
            }
        }
        active.clear();
        *most = ends.iter().copied().max().unwrap_or(0) as usize;
        let mut start = 0;
        for (e, end) in ends.iter_mut().enumerate() {
            if *end > 0 {
                active.push(e as u32);
            }
            // First a cursor to the expert's next pair; it ends where the expert's pairs end.
            start += std::mem::replace(end, start);
        }
        pairs.clear();
        pairs.resize(job.rows * k, (0, 0.0));
        for (row, route) in routes().enumerate() {
            let (ids, weights) = route.split_at(k);
            for (&id, &w) in ids.iter().zip(weights) {
                let cursor = &mut ends[id as usize];
                pairs[*cursor as usize] = (row as u32, w);
                *cursor += 1;
            }
        }
        Ok(())
    }

    /// The pairs of expert `e`, and the index of the first.
    fn of(&self, e: usize) -> (usize, &[(u32, f32)]) {
        let start = if e == 0 { 0 } else { self.ends[e - 1] as usize };
        (start, &self.pairs[start..self.ends[e] as usize])
    }
}

/// A thread's own memory.
#[derive(Default)]
struct Own {
    y: Vec<f32>,
    /// Rows gathered for the float family.
    gathered: Vec<f32>,
}

thread_local! {
    static OWN: RefCell<Own> = RefCell::new(Own::default());
}

/// What both passes know.
struct Pass<'a> {
    isa: Isa,
    sorted: &'a Sorted,
    /// Weight rows of a unit, a multiple of [`LANES`].
    stretch: usize,
    /// Floats of one `y`, enough for any expert.
    room: usize,
    /// Of gate, up and down.
    biases: [Option<&'a [f32]>; 3],
}

/// Runs a job on all threads of the pool.
///
/// # Errors
/// [`ComputeError::Shape`] when a route names no expert; nothing is written then.
pub fn run(pool: &Pool, isa: Isa, job: Job, scratch: &mut Scratch) -> Result<(), ComputeError> {
    let Scratch { sorted, ones, tiles } = scratch;
    sorted.fill(&job)?;
    if job.rows == 0 {
        return Ok(());
    }
    let Job { x, rows, gate, up, down, biases, activation, hidden, out, add, .. } = job;
    let (dim, ff) = (up[0].cols(), up[0].rows());
    let int8 = |m: &Matrix| m.kind() != Kind::Float;
    let packs = gate.first().is_some_and(int8) || int8(&up[0]);
    if packs {
        pack_input(pool, isa, (x, rows, dim), sorted, (&mut *ones, &mut *tiles));
    }
    let stretch = stretch(sorted, ff * sorted.active.len(), pool.threads(), ff);
    let pass = Pass::new(isa, sorted, stretch, (rows, biases));
    let input = Input {
        x,
        dim,
        ones: ones.bytes(if packs { rows * row_bytes(dim) } else { 0 }),
        tiles: tiles.bytes(if packs { sorted.pairs.len() * row_bytes(dim) } else { 0 }),
    };
    pass.gate_up(pool, &input, [gate, up], activation, hidden);
    let packed = if int8(&down[0]) { pack_hidden(pool, isa, hidden, ff, sorted, tiles) } else { &[] };
    if !add {
        out.fill(0.0);
    }
    let stretch = self::stretch(sorted, down[0].rows(), pool.threads(), down[0].rows());
    Pass::new(isa, sorted, stretch, (rows, biases)).down(pool, (hidden, packed), down, out);
    Ok(())
}

/// Weight rows per unit: enough units to share out, otherwise long stretches, since every change of stream costs the
/// reader some time (on Zen 3, 64 rows instead of 256 cost 7 % of a decode step's experts).
fn stretch(sorted: &Sorted, outputs: usize, threads: usize, most: usize) -> usize {
    let parts = if sorted.most > LANES { threads * 4 } else { threads * 8 };
    let rows = (outputs / parts).clamp(LANES, 16 * LANES) / LANES * LANES;
    rows.min(most.next_multiple_of(LANES))
}

/// Rows of x in every form an expert may read.
struct Input<'a> {
    x: &'a [f32],
    dim: usize,
    ones: &'a [u8],
    tiles: &'a [u8],
}

impl<'a> Input<'a> {
    /// The rows of one expert; `first` is the index of its first pair. `gathered` is filled for the float family.
    fn acts<'b>(
        &self,
        pairs: &[(u32, f32)],
        first: usize,
        float: bool,
        gathered: &'b mut Vec<f32>,
    ) -> Acts<'b>
    where
        'a: 'b,
    {
        let (n, dim) = (pairs.len(), self.dim);
        let row = |i: usize| pairs[i].0 as usize;
        let per = row_bytes(dim);
        let packed = (!self.ones.is_empty()).then(|| match n {
            1 => Packed::of(&self.ones[row(0) * per..(row(0) + 1) * per], 1, dim),
            _ => Packed::of(&self.tiles[first * per..(first + n) * per], n, dim),
        });
        if n == 1 || !float {
            let x = if n == 1 { &self.x[row(0) * dim..(row(0) + 1) * dim] } else { self.x };
            return Acts { packed, x: Rows { x, stride: dim, rows: n } };
        }
        for (i, to) in gathered[..n * dim].chunks_exact_mut(dim).enumerate() {
            to.copy_from_slice(&self.x[row(i) * dim..(row(i) + 1) * dim]);
        }
        Acts { packed, x: Rows { x: gathered, stride: dim, rows: n } }
    }
}

/// Quantises every row once, then gathers the rows of experts that have more than one.
fn pack_input(
    pool: &Pool,
    isa: Isa,
    (x, rows, dim): (&[f32], usize, usize),
    sorted: &Sorted,
    (ones, tiles): (&mut Store, &mut Store),
) {
    let per = row_bytes(dim);
    let ones = ones.bytes(rows * per);
    let small = rows * dim < SMALL;
    let parts = Parts::new(ones);
    units(pool, small, rows, &|_, r| {
        // SAFETY: every unit is another row.
        let to = unsafe { parts.part(r * per..(r + 1) * per) };
        pack_rows(isa, 1, |_| &x[r * dim..(r + 1) * dim], to);
    });
    let ones: &[u8] = ones;
    let parts = Parts::new(tiles.bytes(sorted.pairs.len() * per));
    units(pool, small, sorted.active.len(), &|_, u| {
        let (first, pairs) = sorted.of(sorted.active[u] as usize);
        if pairs.len() > 1 {
            // SAFETY: every unit is another expert.
            let to = unsafe { parts.part(first * per..(first + pairs.len()) * per) };
            gather_rows(pairs.len(), |i| &ones[pairs[i].0 as usize * per..][..per], to);
        }
    });
}

/// Quantises the hidden rows, each expert's into tiles of their own.
fn pack_hidden<'t>(
    pool: &Pool,
    isa: Isa,
    hidden: &[f32],
    ff: usize,
    sorted: &Sorted,
    tiles: &'t mut Store,
) -> &'t [u8] {
    let per = row_bytes(ff);
    let bytes = tiles.bytes(sorted.pairs.len() * per);
    let parts = Parts::new(bytes);
    units(pool, sorted.pairs.len() * ff < SMALL, sorted.active.len(), &|_, u| {
        let (first, pairs) = sorted.of(sorted.active[u] as usize);
        // SAFETY: every unit is another expert.
        let to = unsafe { parts.part(first * per..(first + pairs.len()) * per) };
        pack_rows(isa, pairs.len(), |i| &hidden[(first + i) * ff..(first + i + 1) * ff], to);
    });
    bytes
}

/// Floats below which rows are packed on the calling thread.
const SMALL: usize = 1 << 14;

fn units(pool: &Pool, alone: bool, count: usize, work: &(dyn Fn(usize, usize) + Sync)) {
    if alone { (0..count).for_each(|u| work(0, u)) } else { each_unit(pool, count, work) }
}

impl<'a> Pass<'a> {
    fn new(
        isa: Isa,
        sorted: &'a Sorted,
        stretch: usize,
        (rows, biases): (usize, [Option<&'a [f32]>; 3]),
    ) -> Self {
        // For any number of rows up to the batch's, so that the same batch size never needs more.
        let room = (1..=rows).map(|n| n * tile_height(isa, n, stretch)).max().unwrap_or(0);
        Pass { isa, sorted, stretch, room, biases }
    }

    /// Adds the bias of outputs `first..first + height` of all experts' matrix `which` to every row of `y`.
    fn add_bias(&self, which: usize, (first, height): (usize, usize), y: &mut [f32], stride: usize) {
        let Some(bias) = self.biases[which] else { return };
        let bias = &bias[first..first + height];
        y.chunks_mut(stride).for_each(|y| y.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
    }

    /// Calls `work(unit, own)`: long streams in static shares when rows are few, unit by unit when experts differ.
    fn each(&self, pool: &Pool, units: usize, gathered: usize, work: &(dyn Fn(usize, &mut Own) + Sync)) {
        let ready = |own: &mut Own| {
            own.y.resize(own.y.len().max(2 * self.room), 0.0);
            own.gathered.resize(own.gathered.len().max(gathered), 0.0);
        };
        if self.sorted.most <= LANES {
            let shares = Shares::new(units, pool.threads());
            pool.run(&|thread| {
                OWN.with_borrow_mut(|own| {
                    ready(own);
                    shares.each(thread, |range| range.for_each(|u| work(u, own)));
                });
            });
        } else {
            each_unit(pool, units, &|_, u| {
                OWN.with_borrow_mut(|own| {
                    ready(own);
                    work(u, own);
                });
            });
        }
    }

    /// `hidden[pair] = activation(gate_e x) * up_e x`, or `activation(up_e x)` without a gate.
    fn gate_up(
        &self,
        pool: &Pool,
        input: &Input,
        [gate, up]: [&[Matrix]; 2],
        activation: Activation,
        hidden: &mut [f32],
    ) {
        let ff = up[0].rows();
        let per = ff.div_ceil(self.stretch);
        let hidden = SendPtr(hidden.as_mut_ptr());
        let float = [gate, up].iter().any(|m| m.first().is_some_and(|m| m.kind() == Kind::Float));
        let gathered = if float { input.x.len() } else { 0 };
        self.each(pool, self.sorted.active.len() * per, gathered, &|unit, own| {
            let e = self.sorted.active[unit / per] as usize;
            let (first, pairs) = self.sorted.of(e);
            let Own { y, gathered } = own;
            let acts = input.acts(pairs, first, float, gathered);
            let (gate, up, n) = (gate.get(e), &up[e], pairs.len());
            let start = unit % per * self.stretch;
            let stride = tile_height(self.isa, n, self.stretch);
            let (a, b) = y.split_at_mut(self.room);
            for row in (start..ff.min(start + self.stretch)).step_by(stride) {
                let height = stride.min(ff - row).min(start + self.stretch - row);
                // SAFETY: pointer arithmetic inside `hidden`, whose rows are the pairs.
                let out = unsafe { hidden.get().add(first * ff) };
                let target = Target { out, width: ff, col: row };
                let block = |y| Block { y, rows: n, height, stride };
                let Some(gate) = gate else {
                    let next = up.group_at(row + height);
                    tile(self.isa, Rowed { matrix: up, row, height, next }, acts, b, stride);
                    // SAFETY: `hidden` has a row of `ff` for every pair; units own disjoint columns of them.
                    unsafe { activated(block(b), activation, target) };
                    continue;
                };
                // Reading alternates between the two matrices.
                let next = up.group_at(row);
                tile(self.isa, Rowed { matrix: gate, row, height, next }, acts, a, stride);
                let next = gate.group_at(row + height);
                tile(self.isa, Rowed { matrix: up, row, height, next }, acts, b, stride);
                self.add_bias(0, (e * ff + row, height), &mut a[..n * stride], stride);
                self.add_bias(1, (e * ff + row, height), &mut b[..n * stride], stride);
                let blocks = [block(&*a), block(&*b)];
                // SAFETY: as above.
                unsafe { gated(self.isa, blocks, [None, None], activation, target) };
            }
        });
    }

    /// `out[row] += w * down_e hidden[pair]`, experts ascending.
    fn down(&self, pool: &Pool, (hidden, packed): (&[f32], &[u8]), down: &[Matrix], out: &mut [f32]) {
        let (dim, ff) = (down[0].rows(), down[0].cols());
        let per = row_bytes(ff);
        let active = &self.sorted.active;
        let out = SendPtr(out.as_mut_ptr());
        self.each(pool, dim.div_ceil(self.stretch), 0, &|unit, own| {
            let start = unit * self.stretch;
            let end = dim.min(start + self.stretch);
            for (i, &e) in active.iter().enumerate() {
                let (first, pairs) = self.sorted.of(e as usize);
                let (matrix, n) = (&down[e as usize], pairs.len());
                let tiles =
                    (!packed.is_empty()).then(|| Packed::of(&packed[first * per..(first + n) * per], n, ff));
                let x = &hidden[first * ff..(first + n) * ff];
                let acts = Acts { packed: tiles, x: Rows { x, stride: ff, rows: n } };
                // Where this thread reads on: the next expert, or the first one's next columns.
                let beyond = match active.get(i + 1) {
                    Some(&e) => down[e as usize].group_at(start),
                    None => down[active[0] as usize].group_at(end),
                };
                let stride = tile_height(self.isa, n, self.stretch);
                for row in (start..end).step_by(stride) {
                    let height = stride.min(end - row);
                    let next = if row + height < end { matrix.group_at(row + height) } else { beyond };
                    tile(self.isa, Rowed { matrix, row, height, next }, acts, &mut own.y, stride);
                    self.add_bias(2, (e as usize * dim + row, height), &mut own.y[..n * stride], stride);
                    for (y, &(r, w)) in own.y.chunks(stride).zip(pairs) {
                        // SAFETY: row r has `dim` floats; units own disjoint columns.
                        let out = unsafe {
                            std::slice::from_raw_parts_mut(out.get().add(r as usize * dim + row), height)
                        };
                        out.iter_mut().zip(y).for_each(|(o, y)| *o += w * y);
                    }
                }
            }
        });
    }
}
