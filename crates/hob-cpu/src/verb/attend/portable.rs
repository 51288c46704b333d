//! Attention in plain loops, with positions or dimensions innermost so that a compiler can vectorize them.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use hob_compute::{BLOCK_POSITIONS, PAGE_POSITIONS, math};
use hob_quant::KvFormat;

use super::tile::{Asked, Partial, Room, Tile, View};
use crate::isa::Isa;

/// One page of a tile.
pub(super) fn page(tile: &Tile, q: Asked, view: &View, room: &mut Room, part: Partial) {
    let (rows, dim) = (tile.rows, tile.value_dim);
    let Room { scores, turned } = room;
    let blocks = tile.seen(0, view.page).start / BLOCK_POSITIONS
        ..tile.seen(rows - 1, view.page).end.div_ceil(BLOCK_POSITIONS);
    for block in blocks.clone() {
        if view.lay.spec.k_format(block).is_packed() {
            tile.score_packed(q.packed, view, (block, &[]), scores);
        } else {
            score(tile, q.floats, view, block, scores);
        }
    }
    for t in 0..rows {
        let seen = tile.seen(t, view.page);
        if seen.is_empty() {
            continue;
        }
        let row = &mut scores[t * PAGE_POSITIONS..][seen];
        if let Some(cap) = view.scoring.cap {
            row.iter_mut().for_each(|s| *s = math::tanh(*s) * cap);
        }
        let max = math::max(row);
        row.iter_mut().for_each(|s| *s = math::exp2(*s - max));
        (part.max[t], part.sum[t]) = (max, math::sum16(row));
    }
    part.acc[..rows * dim].fill(0.0);
    for block in blocks {
        let v = view.values(Isa::Scalar, block, turned);
        if view.lay.spec.v_format(block).is_packed() {
            tile.weigh_packed(view, (block, v, &[]), scores, part.acc);
        } else {
            weigh(tile, view, (block, v), scores, part.acc);
        }
    }
}

/// Up to 64 values of a format that is not packed, widened.
fn widen(format: KvFormat, bytes: &[u8], out: &mut [f32]) {
    let bytes = bytes.as_chunks::<2>().0.iter();
    if format == KvFormat::Bf16 {
        return bytes.zip(out).for_each(|(&b, o)| *o = bf16::from_le_bytes(b).to_f32());
    }
    let mut halves = [f16::ZERO; BLOCK_POSITIONS];
    bytes.zip(&mut halves).for_each(|(&b, h)| *h = f16::from_le_bytes(b));
    halves[..out.len()].convert_to_f32_slice(out);
}

/// Scores of a block that is not packed.
fn score(tile: &Tile, q: &[f32], view: &View, block: usize, scores: &mut [f32]) {
    let (format, dim, start) = (view.lay.spec.k_format(block), tile.head_dim, block * BLOCK_POSITIONS);
    let mut wide = [0f32; BLOCK_POSITIONS];
    for t in 0..tile.rows {
        scores[t * PAGE_POSITIONS + start..][..BLOCK_POSITIONS].fill(0.0);
    }
    for (d, k) in view.k(block).chunks_exact(2 * BLOCK_POSITIONS).enumerate() {
        widen(format, k, &mut wide);
        for (first, n) in tile.chunks() {
            for t in first..first + n {
                let x = q[first * dim + d * n + t - first];
                let row = &mut scores[t * PAGE_POSITIONS + start..][..BLOCK_POSITIONS];
                row.iter_mut().zip(&wide).for_each(|(s, k)| *s = x.mul_add(*k, *s));
            }
        }
    }
    for t in 0..tile.rows {
        let row = &mut scores[t * PAGE_POSITIONS + start..][..BLOCK_POSITIONS];
        row.iter_mut().for_each(|s| *s *= view.scoring.factor);
    }
}

/// Adds a block that is not packed.
fn weigh(tile: &Tile, view: &View, (block, v): (usize, &[u8]), scores: &[f32], acc: &mut [f32]) {
    let (format, dim) = (view.lay.spec.v_format(block), tile.value_dim);
    let mut wide = [0f32; BLOCK_POSITIONS];
    for (i, v) in v.chunks_exact(2 * dim).enumerate() {
        let at = block * BLOCK_POSITIONS + i;
        for (from, v) in v.chunks(2 * BLOCK_POSITIONS).enumerate() {
            let wide = &mut wide[..v.len() / 2];
            widen(format, v, wide);
            for t in (0..tile.rows).filter(|&t| tile.seen(t, view.page).contains(&at)) {
                let p = scores[t * PAGE_POSITIONS + at];
                let acc = &mut acc[t * dim + from * BLOCK_POSITIONS..];
                acc.iter_mut().zip(wide.iter()).for_each(|(a, v)| *a = p.mul_add(*v, *a));
            }
        }
    }
}
