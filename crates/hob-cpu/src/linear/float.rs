//! Float products: F16, BF16 and F32 weights as they lie in the file, every other format decoded to f32 first, times f32
//! activations in the 16 virtual lanes of [`hob_compute::math::dot16`]. It must not know interleaved layouts or int8.

#[cfg(target_arch = "x86_64")]
pub(super) mod walk;

use std::cell::RefCell;

use super::layout::Matrix;
use crate::isa::Isa;

/// Activation rows of a float product: `rows` rows of `cols` floats, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub x: &'a [f32],
    pub stride: usize,
    pub rows: usize,
}

impl<'a> Rows<'a> {
    pub fn row(&self, r: usize, cols: usize) -> &'a [f32] {
        &self.x[r * self.stride..][..cols]
    }
}

/// Per-thread working memory, kept between calls so that a decode step allocates nothing.
#[derive(Default)]
struct Scratch {
    #[cfg(target_arch = "x86_64")]
    walk: walk::Scratch,
    /// One decoded row.
    row: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// `y[r * stride + i] = dot(weight row first + i, x row r)` for `(height, stride) = shape` weight rows.
pub(super) fn unit(isa: Isa, matrix: &Matrix, first: usize, x: Rows, y: &mut [f32], shape: (usize, usize)) {
    SCRATCH.with_borrow_mut(|scratch| {
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx2 {
            let band = walk::Band { matrix, first, height: shape.0 };
            return walk::unit(isa, band, x, (y, shape.1), &mut scratch.walk);
        }
        let _ = isa;
        let cols = matrix.cols();
        scratch.row.resize(cols.max(scratch.row.len()), 0.0);
        let w = &mut scratch.row[..cols];
        for i in 0..shape.0 {
            decode(matrix, first + i, w);
            for r in 0..x.rows {
                y[r * shape.1 + i] = super::portable::dot(w, x.row(r, cols));
            }
        }
    });
}

fn decode(matrix: &Matrix, row: usize, out: &mut [f32]) {
    hob_quant::decode_row(matrix.format(), matrix.row(row), out)
        .expect("the row length was checked when the matrix was loaded");
}
