//! Short convolutions: channels are independent, so threads take stripes of them through all rows.

use hob_compute::reference::recurrent::{History, history};
use hob_compute::{ConvForm, SlotRows};

use super::{ALONE, Parts, each_unit, sigmoid};
use crate::isa::Isa;
use crate::pool::Pool;

/// One `short_conv`. Lengths were checked by the caller.
pub struct Job<'a> {
    pub form: ConvForm,
    /// `[rows, 3 * dim]` where gated, else `[rows, dim]`
    pub x: &'a [f32],
    /// `[count, dim]`
    pub taps: &'a [f32],
    pub count: usize,
    /// `[dim]`
    pub bias: Option<&'a [f32]>,
    pub memory: Columns<'a>,
    pub seqs: &'a [SlotRows],
    /// `[rows, dim]`
    pub out: &'a mut [f32],
}

/// What is remembered of all slots.
pub struct Columns<'a> {
    /// `[slots, (count - 1) * dim]`
    pub state: &'a mut [f32],
    /// `[slots, held, dim]`
    pub records: &'a mut [f32],
    pub held: usize,
}

/// The job as stripes see it.
struct Shared<'a> {
    form: ConvForm,
    x: &'a [f32],
    /// `[count, dim]`
    taps: &'a [f32],
    count: usize,
    bias: Option<&'a [f32]>,
    dim: usize,
    seqs: &'a [SlotRows],
    state: Parts<'a, f32>,
    records: Parts<'a, f32>,
    held: usize,
    out: Parts<'a, f32>,
}

/// Taps of a channel side by side as [`Job::taps`] has them.
pub fn turned(taps: &[f32], count: usize) -> Vec<f32> {
    let dim = taps.len() / count;
    (0..count).flat_map(|j| (0..dim).map(move |c| taps[c * count + j])).collect()
}

/// Runs a job.
pub fn short_conv(pool: &Pool, isa: Isa, job: Job) {
    let Job { form, x, taps, count, bias, memory, seqs, out } = job;
    let dim = taps.len() / count;
    let Columns { state, records, held } = memory;
    let (state, records, out) = (Parts::new(state), Parts::new(records), Parts::new(out));
    let shared = Shared { form, x, taps, count, bias, dim, seqs, state, records, held, out };
    let rows: usize = seqs.iter().map(|s| s.rows).sum();
    if rows * dim < ALONE {
        return stripe(isa, &shared, 0, dim);
    }
    let width = (dim / (2 * pool.threads())).clamp(64, 512).next_multiple_of(16);
    each_unit(pool, dim.div_ceil(width), &|_, u| {
        let start = u * width;
        stripe(isa, &shared, start, width.min(dim - start));
    });
}

fn stripe(isa: Isa, job: &Shared, start: usize, width: usize) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: the ISA class was detected.
        return unsafe { stripe_avx2(isa, job, start, width) };
    }
    stripe_portable(isa, job, start, width);
}

/// The portable loops, compiled for wider registers.
///
/// # Safety
/// Needs AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn stripe_avx2(isa: Isa, job: &Shared, start: usize, width: usize) {
    stripe_portable(isa, job, start, width);
}

/// `width` channels from `start`, of every row of every sequence.
#[inline(always)]
fn stripe_portable(isa: Isa, job: &Shared, start: usize, width: usize) {
    match job.form {
        ConvForm::Gated => stripe_of::<true>(isa, job, start, width),
        ConvForm::Silu => stripe_of::<false>(isa, job, start, width),
    }
}

#[inline(always)]
fn stripe_of<const GATED: bool>(isa: Isa, job: &Shared, start: usize, width: usize) {
    let &Shared { x, taps, count, bias, dim, seqs, state, records, held, out, .. } = job;
    let parts = if GATED { 3 } else { 1 };
    let part = |row: usize, which: usize| &x[(row * parts + which) * dim + start..][..width];
    let values = |row: usize| {
        let (b, u) = (part(row, 0), part(row, parts - 1));
        b.iter().zip(u).map(|(b, u)| if GATED { b * u } else { *b })
    };
    for seq in seqs {
        let column = |c: usize| {
            let at = (seq.slot * (count - 1) + c) * dim + start;
            at..at + width
        };
        let record = |n: usize| {
            let at = (seq.slot * held + n) * dim + start;
            at..at + width
        };
        for i in 0..seq.rows {
            let row = seq.row + i;
            // SAFETY: stripes are disjoint columns of `out`.
            let out = unsafe { out.part(row * dim + start..row * dim + start + width) };
            for j in 0..count {
                let w = &taps[j * dim + start..][..width];
                match history(seq, i, j, count) {
                    History::Row(row) => tap(j, w, out, values(row)),
                    History::Record(n) => {
                        // SAFETY: stripes are disjoint columns of the records, and nothing else of them is borrowed.
                        let v = unsafe { records.part(record(n)) };
                        tap(j, w, out, v.iter().copied());
                    }
                    History::Column(c) => {
                        // SAFETY: as above, of the state.
                        let v = unsafe { state.part(column(c)) };
                        tap(j, w, out, v.iter().copied());
                    }
                    History::Nowhere => tap(j, w, out, std::iter::repeat_n(0.0, width)),
                }
            }
            if let Some(bias) = bias {
                out.iter_mut().zip(&bias[start..]).for_each(|(o, b)| *o += b);
            }
            match GATED {
                true => out.iter_mut().zip(part(row, 1)).for_each(|(o, c)| *o *= c),
                false => sigmoid::silus(isa, out),
            }
        }
        // What tap j of the row behind the state will find. Columns move to lower indices, so ascending order is safe.
        let end = if seq.holds() { 0 } else { seq.rows };
        for j in 0..count - 1 {
            match history(seq, end, j, count) {
                History::Row(row) => {
                    // SAFETY: as above.
                    let to = unsafe { state.part(column(j)) };
                    to.iter_mut().zip(values(row)).for_each(|(to, v)| *to = v);
                }
                History::Record(n) => {
                    // SAFETY: as above, of two buffers.
                    let (to, from) = unsafe { (state.part(column(j)), records.part(record(n))) };
                    to.copy_from_slice(from);
                }
                History::Column(c) if c != j => {
                    // SAFETY: as above, and two different columns.
                    let (to, from) = unsafe { (state.part(column(j)), state.part(column(c))) };
                    to.copy_from_slice(from);
                }
                History::Column(_) => {}
                // SAFETY: as above.
                History::Nowhere => unsafe { state.part(column(j)) }.fill(0.0),
            }
        }
        // Last, since the state takes old records up.
        for i in 0..if seq.holds() { seq.rows } else { 0 } {
            // SAFETY: as above.
            let to = unsafe { records.part(record(i)) };
            to.iter_mut().zip(values(seq.row + i)).for_each(|(to, v)| *to = v);
        }
    }
}

/// Moves the columns of slots past accepted records.
pub fn catch_up((dim, count): (usize, usize), memory: Columns, seqs: &[SlotRows]) {
    let Columns { state, records, held } = memory;
    for seq in seqs.iter().filter(|s| s.accepted > 0) {
        let state = &mut state[seq.slot * (count - 1) * dim..][..(count - 1) * dim];
        let records = &records[seq.slot * held * dim..][..held * dim];
        for j in 0..count - 1 {
            match history(seq, 0, j, count) {
                History::Record(n) => {
                    state[j * dim..][..dim].copy_from_slice(&records[n * dim..][..dim]);
                }
                History::Column(c) => state.copy_within(c * dim..(c + 1) * dim, j * dim),
                History::Row(_) | History::Nowhere => state[j * dim..][..dim].fill(0.0),
            }
        }
    }
}

/// `out = w * v` for the first tap, `out = fma(w, v, out)` for the others.
#[inline(always)]
fn tap(j: usize, w: &[f32], out: &mut [f32], v: impl Iterator<Item = f32>) {
    if j == 0 {
        out.iter_mut().zip(w.iter().zip(v)).for_each(|(o, (w, v))| *o = w * v);
    } else {
        out.iter_mut().zip(w.iter().zip(v)).for_each(|(o, (w, v))| *o = w.mul_add(v, *o));
    }
}
