//! Row by row: the state is read once for both products, in the order in which it lies, and once more, by then near, to be
//! rewritten.

use hob_compute::DeltaShape;

use super::{ROWS, Rows, dot16};
use crate::isa::Isa;
use crate::verb::sigmoid;

/// Rows of the state that are multiplied at once.
pub(in crate::verb) const BLOCK: usize = 4;

/// `s` is `[dk, dv]`; `out(i)` is where row i goes, `[dv]`. `records` gets a, k and u of every row, as far as it goes.
#[inline(always)]
pub(super) fn run<'o, const AVX2: bool>(
    isa: Isa,
    rows: &Rows,
    (s, dk, dv): (&mut [f32], usize, usize),
    records: &mut [f32],
    out: impl Fn(usize) -> &'o mut [f32],
) {
    let mut kept = [0f32; ROWS];
    let kept = &mut kept[..rows.rows];
    kept.copy_from_slice(&rows.gates.log_decay[..rows.rows]);
    sigmoid::exps(isa, kept);
    let [mut p, mut w] = [[0f32; DeltaShape::MAX_DIM]; 2];
    let (p, w) = (&mut p[..dv], &mut w[..dv]);
    let mut records = records.chunks_exact_mut(1 + dk + dv);
    for (i, &a) in kept.iter().enumerate() {
        let (q, k) = (&rows.q[i * dk..][..dk], &rows.k[i * dk..][..dk]);
        let (v, out) = (&rows.v[i * rows.stride..][..dv], out(i));
        p.fill(0.0);
        w.fill(0.0);
        for ((s, k), q) in
            s.chunks_exact(BLOCK * dv).zip(k.as_chunks::<BLOCK>().0).zip(q.as_chunks::<BLOCK>().0)
        {
            products::<AVX2>(s, k, q, p, w);
        }
        let (kq, beta) = (dot16::<AVX2>(k, q), rows.gates.beta[i]);
        for ((p, w), (v, o)) in p.iter_mut().zip(&*w).zip(v.iter().zip(out)) {
            let u = beta * (v - a * *p);
            *o = kq.mul_add(u, a * w);
            *p = u;
        }
        if let Some(record) = records.next() {
            record[0] = a;
            record[1..=dk].copy_from_slice(k);
            record[1 + dk..].copy_from_slice(p);
        }
        for (s, k) in s.chunks_exact_mut(BLOCK * dv).zip(k.as_chunks::<BLOCK>().0) {
            update::<AVX2>(s, k, a, p);
        }
    }
}

/// Adds rows of `s` times `k` and `q` to `p` and `w`.
#[inline(always)]
pub(super) fn products<const AVX2: bool>(
    s: &[f32],
    k: &[f32; BLOCK],
    q: &[f32; BLOCK],
    p: &mut [f32],
    w: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    if AVX2 {
        // SAFETY: only the form compiled for AVX2 says so.
        return unsafe { super::avx2::products(s, k, q, p, w) };
    }
    for ((s, k), q) in s.chunks_exact(p.len()).zip(k).zip(q) {
        for ((s, p), w) in s.iter().zip(&mut *p).zip(&mut *w) {
            (*p, *w) = (k.mul_add(*s, *p), q.mul_add(*s, *w));
        }
    }
}

/// Rows of `s` become `k * u + a * s`.
#[inline(always)]
pub(in crate::verb) fn update<const AVX2: bool>(s: &mut [f32], k: &[f32; BLOCK], a: f32, u: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    if AVX2 {
        // SAFETY: only the form compiled for AVX2 says so.
        return unsafe { super::avx2::update(s, k, a, u) };
    }
    for (s, k) in s.chunks_exact_mut(u.len()).zip(k) {
        for (s, u) in s.iter_mut().zip(u) {
            *s = k.mul_add(*u, a * *s);
        }
    }
}
