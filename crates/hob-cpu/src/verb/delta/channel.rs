//! The rule where every channel of the key fades by itself: what differs from the one where a head fades as a whole. The
//! operations of `hob_compute::reference::kda`.

use hob_compute::DeltaShape;
use hob_compute::reference::kda::BLOCK as NEAR;

use super::chunk::{Scratch, Side, TALL, WIDE, multiply};
use super::recurrent::{BLOCK, products, update};
use super::{Job, ROWS, Rows, dot16};
use crate::isa::Isa;
use crate::verb::sigmoid;

/// Fills `[rows, key_dim]` logarithms of what stays of every channel of head `h`.
#[inline(always)]
pub(super) fn log_decays(isa: Isa, job: &Job, h: usize, (row, rows): (usize, usize), out: &mut Vec<f32>) {
    let (dk, heads) = (job.shape.key_dim, job.shape.value_heads);
    out.resize(ROWS * dk, 0.0);
    let bias = &job.bias[h * dk..][..dk];
    let mut exps = [0f32; DeltaShape::MAX_DIM];
    let exps = &mut exps[..dk];
    for (i, out) in out.chunks_exact_mut(dk).take(rows).enumerate() {
        let given = &job.decay[((row + i) * heads + h) * dk..][..dk];
        out.iter_mut().zip(given.iter().zip(bias)).for_each(|(x, (decay, bias))| *x = decay + bias);
        exps.iter_mut().zip(&*out).for_each(|(e, x)| *e = -x.abs());
        sigmoid::exps(isa, exps);
        out.iter_mut().zip(&*exps).for_each(|(x, e)| *x = job.rate[h] * (x.max(0.0) + e.ln_1p()));
    }
}

/// As [`super::recurrent::run`].
#[inline(always)]
pub(super) fn run<'o, const AVX2: bool>(
    isa: Isa,
    rows: &Rows,
    log_decay: &[f32],
    (s, dk, dv): (&mut [f32], usize, usize),
    out: impl Fn(usize) -> &'o mut [f32],
) {
    let [mut p, mut w, mut kept] = [[0f32; DeltaShape::MAX_DIM]; 3];
    let (p, w, kept) = (&mut p[..dv], &mut w[..dv], &mut kept[..dk]);
    for (i, log_decay) in log_decay.chunks_exact(dk).take(rows.rows).enumerate() {
        let (q, k) = (&rows.q[i * dk..][..dk], &rows.k[i * dk..][..dk]);
        let (v, out) = (&rows.v[i * rows.stride..][..dv], out(i));
        kept.copy_from_slice(log_decay);
        sigmoid::exps(isa, kept);
        p.fill(0.0);
        w.fill(0.0);
        for (((s, k), q), a) in s
            .chunks_exact_mut(BLOCK * dv)
            .zip(k.as_chunks::<BLOCK>().0)
            .zip(q.as_chunks::<BLOCK>().0)
            .zip(kept.as_chunks::<BLOCK>().0)
        {
            for (s, a) in s.chunks_exact_mut(dv).zip(a) {
                s.iter_mut().for_each(|s| *s *= a);
            }
            products::<AVX2>(s, k, q, p, w);
        }
        let (kq, beta) = (dot16::<AVX2>(k, q), rows.gates.beta[i]);
        for ((p, w), (v, o)) in p.iter_mut().zip(&*w).zip(v.iter().zip(out)) {
            let u = beta * (v - *p);
            *o = kq.mul_add(u, *w);
            *p = u;
        }
        for (s, k) in s.chunks_exact_mut(BLOCK * dv).zip(k.as_chunks::<BLOCK>().0) {
            update::<AVX2>(s, k, 1.0, p);
        }
    }
}

/// One thread's matrices; rows behind those of a piece are 0.
#[derive(Default)]
pub(super) struct Faded {
    /// `[rows, key_dim]`, from [`log_decays`]; running sums from [`prepare`] on.
    pub sums: Vec<f32>,
    /// The same as columns, `[key_dim, ROWS]`.
    sums_t: Vec<f32>,
    /// k and q as they meet the state, `[ROWS, key_dim]`.
    k: Vec<f32>,
    q: Vec<f32>,
    /// k and q of a block of rows, as they meet rows before it, `[NEAR, key_dim]`.
    k_near: Vec<f32>,
    q_near: Vec<f32>,
    /// k as columns, as a block behind meets it, `[key_dim, ROWS]`.
    kt_far: Vec<f32>,
}

/// As [`Scratch::prepare`]; gives k and q as they meet the state.
#[inline(always)]
pub(super) fn prepare<'f, const AVX2: bool>(
    isa: Isa,
    rows: &Rows,
    dk: usize,
    faded: &'f mut Faded,
    scratch: &mut Scratch,
) -> (&'f [f32], &'f [f32]) {
    let count = rows.rows;
    scratch.resize(dk);
    let Faded { sums, sums_t, k, q, k_near, q_near, kt_far } = faded;
    for (matrix, len) in [
        (&mut *sums_t, dk * ROWS),
        (&mut *k, ROWS * dk),
        (&mut *q, ROWS * dk),
        (&mut *k_near, NEAR * dk),
        (&mut *q_near, NEAR * dk),
        (&mut *kt_far, dk * ROWS),
    ] {
        matrix.resize(len, 0.0);
    }
    (dk..count * dk).for_each(|i| sums[i] += sums[i - dk]);
    let end = &sums[(count - 1) * dk..][..dk];
    for i in 0..count {
        let g = &sums[i * dk..][..dk];
        let (k, q) = (&mut k[i * dk..][..dk], &mut q[i * dk..][..dk]);
        // First what stays of the row until the end, as a column of what is added to the state.
        k.iter_mut().zip(end.iter().zip(g)).for_each(|(k, (end, g))| *k = end - g);
        sigmoid::exps(isa, k);
        for d in 0..dk {
            scratch.kt[d * ROWS + i] = rows.k[i * dk + d];
            scratch.faded[d * ROWS + i] = rows.k[i * dk + d] * k[d];
            sums_t[d * ROWS + i] = g[d];
        }
        k.copy_from_slice(g);
        sigmoid::exps(isa, k);
        q.iter_mut().zip(&*k).zip(&rows.q[i * dk..]).for_each(|((to, e), q)| *to = q * e);
        k.iter_mut().zip(&rows.k[i * dk..]).for_each(|(e, k)| *e *= k);
    }
    k[count * dk..].fill(0.0);
    q[count * dk..].fill(0.0);
    for d in 0..dk {
        for matrix in [&mut scratch.kt, &mut scratch.faded] {
            matrix[d * ROWS + count..(d + 1) * ROWS].fill(0.0);
        }
        let mine = &mut sums_t[d * ROWS..][..ROWS];
        let of_last = mine[count - 1];
        mine[count..].fill(of_last);
    }
    scratch.last.copy_from_slice(end);
    sigmoid::exps(isa, &mut scratch.last);
    scratch.kept.fill(1.0);
    for first in (0..count).step_by(NEAR) {
        let near_by = (&mut k_near[..], &mut q_near[..], &mut kt_far[..]);
        far::<AVX2>(isa, rows, (first, dk), (&sums[..], &sums_t[..]), near_by, scratch);
        near(isa, rows, (first, dk), sums_t, scratch);
    }
    for i in 0..count.next_multiple_of(TALL) {
        let (u, o) = (&mut scratch.to_u[i * ROWS..][..ROWS], &mut scratch.to_o[i * ROWS..][..ROWS]);
        let (before, behind) = if i < count { (i, i + 1) } else { (0, 0) };
        u[..before].iter_mut().for_each(|u| *u = -(rows.gates.beta[i] * *u));
        u[before..].fill(0.0);
        o[behind..].fill(0.0);
    }
    (&k[..], &q[..])
}

/// Scores of the block of rows from `first` on with all rows before it.
#[inline(always)]
fn far<const AVX2: bool>(
    isa: Isa,
    rows: &Rows,
    (first, dk): (usize, usize),
    (sums, sums_t): (&[f32], &[f32]),
    (k_near, q_near, kt_far): (&mut [f32], &mut [f32], &mut [f32]),
    scratch: &mut Scratch,
) {
    if first == 0 {
        return;
    }
    let from = &sums[first * dk..][..dk];
    let count = (rows.rows - first).min(NEAR);
    for i in 0..count {
        let g = &sums[(first + i) * dk..][..dk];
        let (k, q) = (&mut k_near[i * dk..][..dk], &mut q_near[i * dk..][..dk]);
        k.iter_mut().zip(g.iter().zip(from)).for_each(|(k, (g, from))| *k = g - from);
        sigmoid::exps(isa, k);
        q.iter_mut().zip(&*k).zip(&rows.q[(first + i) * dk..]).for_each(|((to, e), q)| *to = q * e);
        k.iter_mut().zip(&rows.k[(first + i) * dk..]).for_each(|(e, k)| *e *= k);
    }
    k_near[count * dk..].fill(0.0);
    q_near[count * dk..].fill(0.0);
    for (d, from) in from.iter().enumerate() {
        let to = &mut kt_far[d * ROWS..][..first];
        to.iter_mut().zip(&sums_t[d * ROWS..]).for_each(|(to, g)| *to = from - g);
        sigmoid::exps(isa, to);
        to.iter_mut().zip(&scratch.kt[d * ROWS..]).for_each(|(e, k)| *e *= k);
    }
    for i in (0..count).step_by(TALL) {
        for j in (0..first).step_by(WIDE) {
            let side = Side { data: &kt_far[j..], stride: ROWS };
            for (of, to) in [(&*k_near, &mut scratch.to_u), (&*q_near, &mut scratch.to_o)] {
                let mut x = [[0f32; WIDE]; TALL];
                multiply::<AVX2>(Side { data: &of[i * dk..], stride: dk }, side, dk, &mut x);
                for (r, x) in x.iter().enumerate() {
                    to[(first + i + r) * ROWS + j..][..WIDE].copy_from_slice(x);
                }
            }
        }
    }
}

/// Scores of the block of rows from `first` on among themselves; those with later rows are anything.
#[inline(always)]
fn near(isa: Isa, rows: &Rows, (first, dk): (usize, usize), sums_t: &[f32], scratch: &mut Scratch) {
    for i in first..rows.rows.min(first + NEAR) {
        let (mut of_k, mut of_q) = ([0f32; NEAR], [0f32; NEAR]);
        for d in 0..dk {
            let at = d * ROWS + first;
            let (g, kt) = (&sums_t[at..][..NEAR], &scratch.kt[at..][..NEAR]);
            let mut e = [0f32; NEAR];
            e.iter_mut().zip(g).for_each(|(e, g)| *e = sums_t[d * ROWS + i] - g);
            sigmoid::exps(isa, &mut e);
            let (k, q) = (rows.k[i * dk + d], rows.q[i * dk + d]);
            for ((of_k, of_q), (e, kt)) in of_k.iter_mut().zip(&mut of_q).zip(e.iter().zip(kt)) {
                *of_k = (k * e).mul_add(*kt, *of_k);
                *of_q = (q * e).mul_add(*kt, *of_q);
            }
        }
        scratch.to_u[i * ROWS + first..][..NEAR].copy_from_slice(&of_k);
        scratch.to_o[i * ROWS + first..][..NEAR].copy_from_slice(&of_q);
    }
}
