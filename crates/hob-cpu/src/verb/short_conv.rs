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
    /// `[slots, (count - 1) * dim]`
    pub state: &'a mut [f32],
    pub seqs: &'a [SlotRows],
    /// `[rows, dim]`
    pub out: &'a mut [f32],
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
    out: Parts<'a, f32>,
}

/// Taps of a channel side by side as [`Job::taps`] has them.
pub fn turned(taps: &[f32], count: usize) -> Vec<f32> {
    let dim = taps.len() / count;
    (0..count).flat_map(|j| (0..dim).map(move |c| taps[c * count + j])).collect()
}

/// Runs a job.
pub fn short_conv(pool: &Pool, isa: Isa, job: Job) {
    let Job { form, x, taps, count, bias, state, seqs, out } = job;
    let dim = taps.len() / count;
    let (state, out) = (Parts::new(state), Parts::new(out));
    let shared = Shared { form, x, taps, count, bias, dim, seqs, state, out };
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
    let &Shared { x, taps, count, bias, dim, seqs, state, out, .. } = job;
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
        for i in 0..seq.rows {
            let row = seq.row + i;
            // SAFETY: stripes are disjoint columns of `out`.
            let out = unsafe { out.part(row * dim + start..row * dim + start + width) };
            for j in 0..count {
                let w = &taps[j * dim + start..][..width];
                match history(seq, i, j, count) {
                    History { row: Some(row), .. } => tap(j, w, out, values(row)),
                    History { column: Some(c), .. } => {
                        // SAFETY: stripes are disjoint columns of the state, and nothing else of it is borrowed.
                        let v = unsafe { state.part(column(c)) };
                        tap(j, w, out, v.iter().copied());
                    }
                    _ => tap(j, w, out, std::iter::repeat_n(0.0, width)),
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
        // What tap j of the next row will find. Columns move to lower indices, so ascending order is safe.
        for j in 0..count - 1 {
            match history(seq, seq.rows, j, count) {
                History { row: Some(row), .. } => {
                    // SAFETY: as above.
                    let to = unsafe { state.part(column(j)) };
                    to.iter_mut().zip(values(row)).for_each(|(to, v)| *to = v);
                }
                History { column: Some(c), .. } if c != j => {
                    // SAFETY: as above, and two different columns.
                    let (to, from) = unsafe { (state.part(column(j)), state.part(column(c))) };
                    to.copy_from_slice(from);
                }
                History { column: Some(_), .. } => {}
                // SAFETY: as above.
                _ => unsafe { state.part(column(j)) }.fill(0.0),
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
