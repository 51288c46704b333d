//! Compressed attention: the oracle's own row operations, compiled for wide registers. Threads share blocks, rows and
//! entries, or rows and heads; a sum is never divided.

use std::cell::RefCell;

use hob_compute::reference::compressed::{
    self as rule, Place, attend_heads, choose, completed, finish_entry, kept, part, place, pool as pooled,
    score, seen,
};
use hob_compute::{CompressShape, RopePairs, SlotRows};

use super::{Parts, each_unit, sigmoid};
use crate::isa::Isa;
use crate::pool::Pool;

/// Heads that a thread takes at a time: their queries stay in the nearest cache while keys stream past.
const HEADS: usize = 8;
/// Entries that a thread scores at a time.
const SCORED: usize = 128;
/// Rows whose scores are held at once.
const ROWS: usize = 16;

thread_local! {
    /// Scores of some heads, or what a block is pooled with.
    static WORK: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static IDS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// Row `at` of all rows of the sequences, in their order.
fn row_of(seqs: &[SlotRows], at: usize) -> (&SlotRows, usize) {
    let mut at = at;
    for seq in seqs {
        if at < seq.rows {
            return (seq, at);
        }
        at -= seq.rows;
    }
    unreachable!("units are counted from the same sequences")
}

/// Copies the last rows of every sequence to their places in the ring; `at` of `of` in a row of it.
pub fn keep(
    seqs: &[SlotRows],
    (rows, width): (&[f32], usize),
    (ring, positions): (&mut [f32], usize),
    (at, of): (usize, usize),
) {
    for seq in seqs {
        let start = seq.slot * positions * of * width;
        for (from, to) in kept(seq, positions) {
            let to = start + (to * of + at) * width;
            ring[to..to + width].copy_from_slice(&rows[from * width..(from + 1) * width]);
        }
    }
}

/// One `compress`, but for the ring's rows. Lengths were checked by the caller.
pub struct Compress<'a> {
    pub shape: CompressShape,
    pub kv: &'a [f32],
    pub gate: &'a [f32],
    pub bias: &'a [f32],
    pub norm: &'a [f32],
    pub eps: f32,
    pub rotation: (&'a [f32], RopePairs, f32),
    pub recent: &'a [f32],
    /// Positions of the ring.
    pub ring: usize,
    pub capacity: usize,
    pub seqs: &'a [SlotRows],
}

/// Makes the entries of every block that the rows complete.
pub fn compress(pool: &Pool, isa: Isa, job: &Compress, entries: &mut [f32]) {
    let ratio = job.shape.ratio;
    let blocks = job.seqs.iter().map(|seq| completed(seq, ratio).len()).sum();
    let (entries, dim) = (Parts::new(entries), job.shape.dim);
    each_unit(pool, blocks, &|_, unit| {
        let mut at = unit;
        for seq in job.seqs {
            let own = completed(seq, ratio);
            if at >= own.len() {
                at -= own.len();
                continue;
            }
            let block = own.start + at;
            let row = seq.slot * job.capacity + block;
            // SAFETY: every block has a row of its own.
            let entry = unsafe { entries.part(row * dim..(row + 1) * dim) };
            return WORK.with_borrow_mut(|work| {
                work.resize(work.len().max(3 * dim), 0.0);
                block_entry(isa, job, (seq, block), &mut work[..3 * dim], entry);
            });
        }
    });
}

fn block_entry(isa: Isa, job: &Compress, of: (&SlotRows, usize), work: &mut [f32], entry: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: the ISA class was detected.
        unsafe { block_avx2(isa, job, of, work, entry) };
    } else {
        block_portable(isa, job, of, work, entry);
    }
    #[cfg(not(target_arch = "x86_64"))]
    block_portable(isa, job, of, work, entry);
    let position = of.1 * job.shape.ratio;
    let dim = job.shape.dim;
    finish_entry(entry, (job.norm, job.eps), job.rotation, position, &mut work[..dim]);
}

/// # Safety
/// Needs AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn block_avx2(isa: Isa, job: &Compress, of: (&SlotRows, usize), work: &mut [f32], entry: &mut [f32]) {
    block_portable(isa, job, of, work, entry);
}

#[inline(always)]
fn block_portable(
    isa: Isa,
    job: &Compress,
    (seq, block): (&SlotRows, usize),
    work: &mut [f32],
    entry: &mut [f32],
) {
    let (shape, width) = (&job.shape, job.shape.width());
    let at = |s: usize| {
        let (position, first, place_in_block) = part(shape, block, s)?;
        let span = |row: usize| row * width + first..row * width + first + shape.dim;
        let [kv, gate] = match place(seq, position, job.ring) {
            Place::Batch(at) => [&job.kv[span(at)], &job.gate[span(at)]],
            Place::Ring(at) => [0, 1].map(|which| &job.recent[span(2 * (seq.slot * job.ring + at) + which)]),
        };
        let bias = &job.bias[span(place_in_block)];
        Some([kv, gate, bias])
    };
    pooled(shape.span(), &at, |x| sigmoid::exps(isa, x), work, entry);
}

/// One `select`. Lengths were checked by the caller.
pub struct Select<'a> {
    pub q: &'a [f32],
    pub weights: &'a [f32],
    pub heads: usize,
    /// Of an entry.
    pub dim: usize,
    pub scale: f32,
    pub entries: &'a [f32],
    pub capacity: usize,
    pub ratio: usize,
    pub seqs: &'a [SlotRows],
    pub top_k: usize,
}

/// Writes the entries of the highest scores of every row. `scores` is working memory, kept between calls.
pub fn select(pool: &Pool, isa: Isa, job: &Select, scores: &mut Vec<f32>, out: &mut [f32]) {
    let rows: usize = job.seqs.iter().map(|seq| seq.rows).sum();
    scores.resize(scores.len().max(ROWS.min(rows) * job.capacity), 0.0);
    let out = Parts::new(out);
    for first in (0..rows).step_by(ROWS) {
        let count = ROWS.min(rows - first);
        let visible = |r: usize| {
            let (seq, i) = row_of(job.seqs, first + r);
            (seq, seq.row + i, seen(seq, i, job.ratio))
        };
        let most = (0..count).map(|r| visible(r).2).max().unwrap_or(0);
        if most > job.top_k {
            let held = Parts::new(scores);
            let parts = most.div_ceil(SCORED);
            each_unit(pool, count * parts, &|_, unit| {
                let (r, start) = (unit / parts, unit % parts * SCORED);
                let (seq, row, seen) = visible(r);
                if seen <= job.top_k || start >= seen {
                    return;
                }
                let end = seen.min(start + SCORED);
                // SAFETY: units have disjoint rows and entries.
                let to = unsafe { held.part(r * job.capacity + start..r * job.capacity + end) };
                scored(isa, job, row, seq.slot * job.capacity + start, to);
            });
        }
        let scores = &scores[..];
        each_unit(pool, count, &|_, r| {
            let (_, row, seen) = visible(r);
            // SAFETY: every row is one unit's.
            let to = unsafe { out.part(row * job.top_k..(row + 1) * job.top_k) };
            IDS.with_borrow_mut(|ids| choose(&scores[r * job.capacity..][..seen], ids, to));
        });
    }
}

fn scored(isa: Isa, job: &Select, row: usize, first: usize, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: the ISA class was detected.
        return unsafe { scored_avx2(job, row, first, out) };
    }
    let _ = isa;
    scored_portable(job, row, first, out);
}

/// # Safety
/// Needs AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn scored_avx2(job: &Select, row: usize, first: usize, out: &mut [f32]) {
    scored_portable(job, row, first, out);
}

#[inline(always)]
fn scored_portable(job: &Select, row: usize, first: usize, out: &mut [f32]) {
    let q = &job.q[row * job.heads * job.dim..][..job.heads * job.dim];
    let weights = &job.weights[row * job.heads..][..job.heads];
    for (e, out) in out.iter_mut().enumerate() {
        *out = score(q, weights, &job.entries[(first + e) * job.dim..][..job.dim], job.scale);
    }
}

/// The entries of an [`Attend`].
#[derive(Copy, Clone)]
pub struct Entries<'a> {
    pub entries: &'a [f32],
    pub capacity: usize,
    pub ratio: usize,
    /// Those of every row, and how many.
    pub chosen: Option<(&'a [f32], usize)>,
}

/// One `attend_entries`, but for the ring's rows. Lengths were checked by the caller.
pub struct Attend<'a> {
    pub q: &'a [f32],
    pub kv: &'a [f32],
    pub heads: usize,
    pub dim: usize,
    pub scale: f32,
    pub window: usize,
    pub sinks: &'a [f32],
    pub recent: &'a [f32],
    /// Positions of the ring.
    pub ring: usize,
    pub entries: Option<Entries<'a>>,
    pub seqs: &'a [SlotRows],
}

/// Attention of all rows.
pub fn attend(pool: &Pool, isa: Isa, job: &Attend, out: &mut [f32]) {
    let rows: usize = job.seqs.iter().map(|seq| seq.rows).sum();
    let (out, parts) = (Parts::new(out), job.heads.div_ceil(HEADS));
    each_unit(pool, rows * parts, &|_, unit| {
        let (seq, i) = row_of(job.seqs, unit / parts);
        let head = unit % parts * HEADS;
        let heads = head..job.heads.min(head + HEADS);
        let start = (seq.row + i) * job.heads;
        let span = (start + heads.start) * job.dim..(start + heads.end) * job.dim;
        // SAFETY: units have disjoint rows and heads.
        let out = unsafe { out.part(span.clone()) };
        let sinks = &job.sinks[heads];
        WORK.with_borrow_mut(|work| attended(isa, job, (seq, i), (&job.q[span], sinks), (work, out)));
    });
}

type Heads<'a> = (&'a [f32], &'a [f32]);

fn attended(isa: Isa, job: &Attend, of: (&SlotRows, usize), q: Heads, to: (&mut Vec<f32>, &mut [f32])) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: the ISA class was detected.
        return unsafe { attended_avx2(isa, job, of, q, to) };
    }
    attended_portable(isa, job, of, q, to);
}

/// # Safety
/// Needs AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn attended_avx2(
    isa: Isa,
    job: &Attend,
    of: (&SlotRows, usize),
    q: Heads,
    to: (&mut Vec<f32>, &mut [f32]),
) {
    attended_portable(isa, job, of, q, to);
}

#[inline(always)]
fn attended_portable(
    isa: Isa,
    job: &Attend,
    (seq, i): (&SlotRows, usize),
    (q, sinks): Heads,
    (work, out): (&mut Vec<f32>, &mut [f32]),
) {
    let (dim, position) = (job.dim, seq.position + i);
    let first = (position + 1).saturating_sub(job.window);
    let near = position + 1 - first;
    let mut ids: Option<&[f32]> = None;
    let mut far = 0;
    if let Some(entries) = &job.entries {
        far = seen(seq, i, entries.ratio);
        if let Some((chosen, top_k)) = entries.chosen {
            let row = &chosen[(seq.row + i) * top_k..][..top_k];
            let known = row[..rule::chosen(row)].iter().take_while(|&&id| (id as usize) < far).count();
            (ids, far) = (Some(&row[..known]), known);
        }
    }
    let key = |j: usize| -> &[f32] {
        let Some(entry) = j.checked_sub(near) else {
            return match place(seq, first + j, job.ring) {
                Place::Batch(row) => &job.kv[row * dim..][..dim],
                Place::Ring(row) => &job.recent[(seq.slot * job.ring + row) * dim..][..dim],
            };
        };
        let entry = ids.map_or(entry, |ids| ids[entry] as usize);
        let Some(entries) = &job.entries else { return &[] };
        &entries.entries[(seq.slot * entries.capacity + entry) * dim..][..dim]
    };
    let n = near + far;
    work.resize(work.len().max(sinks.len() * n), 0.0);
    let scores = &mut work[..sinks.len() * n];
    attend_heads((q, dim, job.scale, sinks), (n, &key), |x| sigmoid::exps(isa, x), scores, out);
}
