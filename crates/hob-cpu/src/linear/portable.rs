//! Portable kernels: integer dots over file-order blocks, float dots in 16 lanes. Written as plain loops.

use std::array;

use hob_compute::act::BLOCK;
use hob_compute::math;
use hob_quant::{IntBlock, Minima, int_block};

use super::act::{Packed, Tile, block_bytes};
use super::layout::Matrix;

/// Blocks of a weight row decoded at a time, for all activation rows.
const STRETCH: usize = 64;

/// `y[r * stride + i] = dot(weight row first + i, activation row r)`.
pub(super) fn native(
    matrix: &Matrix,
    first: usize,
    height: usize,
    acts: Packed,
    y: &mut [f32],
    stride: usize,
) {
    let blocks = matrix.cols() / BLOCK;
    let Some(empty) = int_block(matrix.format(), matrix.row(first), 0) else { return };
    let mut decoded = [empty; STRETCH];
    for i in 0..height {
        let row = matrix.row(first + i);
        for start in (0..blocks).step_by(STRETCH) {
            let count = (blocks - start).min(STRETCH);
            for (b, block) in decoded[..count].iter_mut().enumerate() {
                *block = int_block(matrix.format(), row, start + b).unwrap_or(empty);
            }
            for tile in acts.tiles() {
                for n in 0..tile.n {
                    let y = &mut y[(tile.row + n) * stride + i];
                    let acc = if start == 0 { 0.0 } else { *y };
                    *y = stretch(&decoded[..count], tile, n, start, acc);
                }
            }
        }
    }
}

/// `acc` plus the products of `weights` with row `n` of the tile from block `start` on, as [`hob_compute::act::add_block`] has it.
fn stretch(weights: &[IntBlock], tile: Tile, n: usize, start: usize, acc: f32) -> f32 {
    let blocks = tile.bytes[start * block_bytes(tile.n)..].chunks_exact(block_bytes(tile.n));
    weights.iter().zip(blocks).fold(acc, |acc, (w, b)| {
        let codes: &[u8; BLOCK] = b[n * BLOCK..].first_chunk().expect("a row of codes");
        let word = |i: usize| -> [u8; 4] { *b[tile.n * BLOCK + 4 * i..].first_chunk().expect("a dword") };
        let [a0, a1, b0, b1] = word(tile.n + n);
        let sums = [i16::from_le_bytes([a0, a1]), i16::from_le_bytes([b0, b1])].map(i32::from);
        let d = f32::from_le_bytes(word(n));
        let dots: [i32; 2] = array::from_fn(|h| {
            (16 * h..16 * h + 16).map(|k| i32::from(w.codes[k]) * i32::from(codes[k] as i8)).sum()
        });
        let scaled = |s: [i16; 2], v: [i32; 2]| i32::from(s[0]) * v[0] + i32::from(s[1]) * v[1];
        let acc = (scaled(w.scales, dots) as f32).mul_add(w.d * d, acc);
        match w.minima {
            Minima::None => acc,
            Minima::Block(m) => m.mul_add(f32::from_le_bytes(word(2 * tile.n + n)), acc),
            Minima::Halves { m, scales } => (scaled(scales, sums) as f32).mul_add(m * d, acc),
        }
    })
}

/// Dot product of f32 slices in the order of [`math::dot16`].
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    math::dot16(a, b)
}
