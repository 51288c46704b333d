//! Products head by head: every head's part of a row times a matrix of its own, each matrix read once.
//!
//! A unit is a stretch of one head's outputs for all rows, so that nothing depends on threads. It must not know handles.

use std::cell::RefCell;

use super::act::{Packed, SendPtr, Store, pack_rows, row_bytes};
use super::drive::{Acts, Rowed, tile, tile_height};
use super::float::Rows;
use super::layout::{Kind, Matrix};
use super::shape::LANES;
use crate::isa::Isa;
use crate::pool::{Pool, Shares};
use crate::verb::{ALONE, Parts, each_unit};

/// One `heads` verb. Lengths were checked by the caller.
pub struct Job<'a> {
    /// `[rows, heads * in_width]`
    pub x: &'a [f32],
    pub rows: usize,
    /// `[out_width, in_width]` of each head.
    pub matrices: &'a [Matrix],
    /// `[rows, heads * out_width]`
    pub out: &'a mut [f32],
}

/// Working memory, kept between calls.
#[derive(Default)]
pub struct Scratch {
    /// The rows of every head, packed one head behind the other.
    packed: Store,
}

thread_local! {
    static PRODUCTS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Runs a job on all threads of the pool.
pub fn run(pool: &Pool, isa: Isa, job: Job, scratch: &mut Scratch) {
    let Job { x, rows, matrices, out } = job;
    let Some(first) = matrices.first().filter(|_| rows > 0) else { return };
    let (heads, cols, height) = (matrices.len(), first.cols(), first.rows());
    let (x_stride, out_stride) = (heads * cols, heads * height);
    let per = rows * row_bytes(cols);
    let int8 = first.kind() != Kind::Float;
    let packed = if int8 { pack(pool, isa, (x, rows, cols), heads, &mut scratch.packed) } else { &[] };
    let stretch = (out_stride / (8 * pool.threads())).clamp(LANES, 16 * LANES) / LANES * LANES;
    let stretch = stretch.min(height.next_multiple_of(LANES));
    let (stride, units) = (tile_height(isa, rows, stretch), height.div_ceil(stretch));
    let out = SendPtr(out.as_mut_ptr());
    let unit = |unit: usize, y: &mut [f32]| {
        let (head, start) = (unit / units, unit % units * stretch);
        let (matrix, end) = (&matrices[head], height.min(start + stretch));
        let acts = Acts {
            packed: int8.then(|| Packed::of(&packed[head * per..(head + 1) * per], rows, cols)),
            x: Rows { x: &x[head * cols..], stride: x_stride, rows },
        };
        // Where this thread reads on when the head ends.
        let beyond = matrices[(head + 1) % heads].group_at(0);
        for row in (start..end).step_by(stride) {
            let n = stride.min(end - row);
            let next = if row + n < height { matrix.group_at(row + n) } else { beyond };
            tile(isa, Rowed { matrix, row, height: n, next }, acts, y, stride);
            for (r, y) in y.chunks(stride).take(rows).enumerate() {
                // SAFETY: row r has `out_stride` floats; units own disjoint outputs of disjoint heads.
                let to = unsafe {
                    std::slice::from_raw_parts_mut(out.get().add(r * out_stride + head * height + row), n)
                };
                to.copy_from_slice(&y[..n]);
            }
        }
    };
    let shares = Shares::new(heads * units, pool.threads());
    pool.run(&|thread| {
        PRODUCTS.with_borrow_mut(|y| {
            y.resize(y.len().max(rows * stride), 0.0);
            shares.each(thread, |range| range.for_each(|u| unit(u, y)));
        });
    });
}

/// Quantizes every head's rows as tiles of their own.
fn pack<'s>(
    pool: &Pool,
    isa: Isa,
    (x, rows, cols): (&[f32], usize, usize),
    heads: usize,
    store: &'s mut Store,
) -> &'s [u8] {
    let per = rows * row_bytes(cols);
    let bytes = store.bytes(heads * per);
    let parts = Parts::new(bytes);
    let one = |_: usize, head: usize| {
        // SAFETY: every unit is another head.
        let to = unsafe { parts.part(head * per..(head + 1) * per) };
        pack_rows(isa, rows, |r| &x[(r * heads + head) * cols..][..cols], to);
    };
    if x.len() < ALONE {
        (0..heads).for_each(|head| one(0, head))
    } else {
        each_unit(pool, heads, &one)
    }
    bytes
}
