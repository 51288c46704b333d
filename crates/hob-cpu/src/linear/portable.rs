//! Portable kernels: integer dots over file-order blocks, float dots in 16 lanes. Written as plain loops.

use hob_compute::act::{ActBlock, BLOCK};
use hob_compute::math;

use super::act::{Tile, block_bytes};
use super::layout::Matrix;

/// `y[row, i] = dot(weight row first + i, activation row)` for one tile.
pub(super) fn native(matrix: &Matrix, first: usize, height: usize, tile: Tile, y: &mut [f32], stride: usize) {
    let blocks = matrix.cols() / BLOCK;
    let mut acts = [ActBlock { d: 0.0, sum: 0, q: [0; BLOCK] }; 64];
    for n in 0..tile.n {
        for i in 0..height {
            let row = matrix.row(first + i);
            let wide = matrix.format().block_bytes();
            let mut acc = None;
            // The specification works on whole rows; feed it 64 blocks at a time and continue its accumulator.
            for start in (0..blocks).step_by(acts.len()) {
                let count = (blocks - start).min(acts.len());
                for (b, a) in acts[..count].iter_mut().enumerate() {
                    *a = unpack(tile, start + b, n);
                }
                let part = &row[start * wide..(start + count) * wide];
                acc =
                    hob_compute::act::continue_row(matrix.format(), part, &acts[..count], acc.unwrap_or(0.0));
            }
            y[(tile.row + n) * stride + i] = acc.unwrap_or(f32::NAN);
        }
    }
}

fn unpack(tile: Tile, block: usize, n: usize) -> ActBlock {
    let b = &tile.bytes[block * block_bytes(tile.n)..][..block_bytes(tile.n)];
    let word = |i: usize| -> [u8; 4] { b[tile.n * BLOCK + 4 * i..][..4].try_into().expect("four bytes") };
    let mut q = [0i8; BLOCK];
    for (q, &c) in q.iter_mut().zip(&b[n * BLOCK..(n + 1) * BLOCK]) {
        *q = c as i8;
    }
    ActBlock { d: f32::from_le_bytes(word(n)), sum: i32::from_le_bytes(word(tile.n + n)), q }
}

/// Dot product of f32 slices in the order of [`math::dot16`].
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    math::dot16(a, b)
}
