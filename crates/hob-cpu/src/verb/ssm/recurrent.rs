//! Row by row: the state is read once and written once, in the order in which it lies.

use hob_compute::SsmShape;

use super::{Group, Head, ROWS};
use crate::isa::Isa;
use crate::verb::sigmoid;

/// Rows of the state that are moved at once.
pub(super) const BLOCK: usize = 4;

/// `s` is `[state_dim, width]`; `out(i)` is where row i goes, `[width]`. `records` gets a, B and u of every row, as far as it
/// goes.
#[inline(always)]
pub(super) fn run<'o, const AVX2: bool>(
    isa: Isa,
    (group, head): (&Group, &Head),
    (s, width): (&mut [f32], usize),
    records: &mut [f32],
    out: impl Fn(usize) -> &'o mut [f32],
) {
    let mut kept = [0f32; ROWS];
    let kept = &mut kept[..head.rows];
    kept.copy_from_slice(&head.gates.log_decay[..head.rows]);
    sigmoid::exps(isa, kept);
    let mut u = [0f32; SsmShape::MAX_DIM];
    let u = &mut u[..width];
    let mut records = records.chunks_exact_mut(1 + group.state_dim + width);
    for (i, &a) in kept.iter().enumerate() {
        let (b, c) = (&group.b[i * group.stride..], &group.c[i * group.stride..]);
        let (b, c) = (&b[..group.state_dim], &c[..group.state_dim]);
        let (x, y) = (&head.x[i * head.stride..][..width], out(i));
        u.iter_mut().zip(x).for_each(|(u, x)| *u = head.gates.step[i] * x);
        if let Some(record) = records.next() {
            record[0] = a;
            record[1..=group.state_dim].copy_from_slice(b);
            record[1 + group.state_dim..].copy_from_slice(u);
        }
        y.fill(0.0);
        let rows = s.chunks_exact_mut(BLOCK * width);
        for ((s, b), c) in rows.zip(b.as_chunks::<BLOCK>().0).zip(c.as_chunks::<BLOCK>().0) {
            advance::<AVX2>(s, [b, c], a, u, y);
        }
        y.iter_mut().zip(x).for_each(|(y, x)| *y = head.skip.mul_add(*x, *y));
    }
}

/// Rows of `s` become `b * u + a * s`, and what they are then times `c` is added to `y`.
#[inline(always)]
fn advance<const AVX2: bool>(s: &mut [f32], [b, c]: [&[f32; BLOCK]; 2], a: f32, u: &[f32], y: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if AVX2 {
        // SAFETY: only the form compiled for AVX2 says so.
        return unsafe { super::avx2::advance(s, [b, c], a, u, y) };
    }
    for ((s, b), c) in s.chunks_exact_mut(u.len()).zip(b).zip(c) {
        for ((s, u), y) in s.iter_mut().zip(u).zip(&mut *y) {
            *s = b.mul_add(*u, a * *s);
            *y = c.mul_add(*s, *y);
        }
    }
}
