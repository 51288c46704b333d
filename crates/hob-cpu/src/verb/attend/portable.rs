//! Attention in plain loops, with positions or dimensions innermost so that a compiler can vectorize them.

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use hob_compute::{BLOCK_POSITIONS, PAGE_POSITIONS, math};

use super::tile::{Partial, Tile, View};

/// One page of a tile.
pub(super) fn page(tile: &Tile, q: &[f32], view: &View, scores: &mut [f32], part: Partial) {
    let (rows, dim) = (tile.rows, tile.head_dim);
    let kv: &[f16] = view.kv.reinterpret_cast();
    let (first, last) = (tile.seen(0, view.page).start, tile.seen(rows - 1, view.page).end);
    scores[..rows * PAGE_POSITIONS].fill(0.0);
    let mut wide = [0f32; BLOCK_POSITIONS];
    for block in first / BLOCK_POSITIONS..last.div_ceil(BLOCK_POSITIONS) {
        let k = &kv[block * 2 * BLOCK_POSITIONS * dim..];
        for d in 0..dim {
            k[d * BLOCK_POSITIONS..][..BLOCK_POSITIONS].convert_to_f32_slice(&mut wide);
            for (first, n) in tile.chunks() {
                for t in first..first + n {
                    let x = q[first * dim + d * n + t - first];
                    let row = &mut scores[t * PAGE_POSITIONS + block * BLOCK_POSITIONS..][..BLOCK_POSITIONS];
                    row.iter_mut().zip(&wide).for_each(|(s, k)| *s = x.mul_add(*k, *s));
                }
            }
        }
    }
    for t in 0..rows {
        let seen = tile.seen(t, view.page);
        if seen.is_empty() {
            continue;
        }
        let row = &mut scores[t * PAGE_POSITIONS..][seen];
        row.iter_mut().for_each(|s| *s = view.scoring.score(*s));
        let max = math::max(row);
        row.iter_mut().for_each(|s| *s = math::exp2(*s - max));
        (part.max[t], part.sum[t]) = (max, math::sum16(row));
    }
    part.acc[..rows * dim].fill(0.0);
    for at in first..last {
        let v = ((at / BLOCK_POSITIONS * 2 + 1) * BLOCK_POSITIONS + at % BLOCK_POSITIONS) * dim;
        for (from, v) in kv[v..v + dim].chunks(BLOCK_POSITIONS).enumerate() {
            let wide = &mut wide[..v.len()];
            v.convert_to_f32_slice(wide);
            for t in (0..rows).filter(|&t| tile.seen(t, view.page).contains(&at)) {
                let p = scores[t * PAGE_POSITIONS + at];
                let acc = &mut part.acc[t * dim + from * BLOCK_POSITIONS..];
                acc.iter_mut().zip(wide.iter()).for_each(|(a, v)| *a = p.mul_add(*v, *a));
            }
        }
    }
}
