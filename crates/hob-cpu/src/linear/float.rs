//! Float products: rows are decoded to f32 once and multiplied with every activation row in 16 virtual lanes.

use std::cell::RefCell;

use hob_quant::Format;

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

/// Weight rows decoded at a time.
const BAND: usize = 4;

thread_local! {
    static DECODED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `y[r * stride + i] = dot(weight row first + i, x row r)` for `height` weight rows.
pub(super) fn unit(isa: Isa, matrix: &Matrix, first: usize, x: Rows, y: &mut [f32], shape: (usize, usize)) {
    let (height, stride) = shape;
    let cols = matrix.cols();
    #[cfg(target_arch = "x86_64")]
    if x.rows == 1 && isa >= Isa::Avx2 {
        for i in 0..height {
            let row = matrix.row(first + i);
            // SAFETY: the ISA class was detected; the row holds `cols` values of the format.
            let direct = unsafe {
                match matrix.format() {
                    Format::F16 => Some(super::avx2::float::dot_f16(row, x.row(0, cols))),
                    Format::BF16 => Some(super::avx2::float::dot_bf16(row, x.row(0, cols))),
                    Format::F32 => Some(super::avx2::float::dot_f32_bytes(row, x.row(0, cols))),
                    _ => None,
                }
            };
            match direct {
                Some(v) => y[i] = v,
                None => return decoded(isa, matrix, first, x, y, shape),
            }
        }
        return;
    }
    let _ = stride;
    decoded(isa, matrix, first, x, y, shape);
}

fn decoded(isa: Isa, matrix: &Matrix, first: usize, x: Rows, y: &mut [f32], shape: (usize, usize)) {
    let (height, stride) = shape;
    let cols = matrix.cols();
    DECODED.with_borrow_mut(|scratch| {
        scratch.resize((BAND * cols).max(scratch.len()), 0.0);
        for start in (0..height).step_by(BAND) {
            let count = (height - start).min(BAND);
            for i in 0..count {
                let out = &mut scratch[i * cols..(i + 1) * cols];
                hob_quant::decode_row(matrix.format(), matrix.row(first + start + i), out)
                    .expect("the row length was checked when the matrix was loaded");
            }
            dots(isa, &scratch[..count * cols], cols, x, &mut y[start..], stride);
        }
    });
}

/// All pairs of up to [`BAND`] weight rows and the activation rows.
fn dots(isa: Isa, w: &[f32], cols: usize, x: Rows, y: &mut [f32], stride: usize) {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 && w.len() == BAND * cols {
        return wide(w, cols, x, y, stride);
    }
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        let mut r = 0;
        while r < x.rows {
            let n = (x.rows - r).min(3);
            let first = &x.x[r * x.stride..];
            for pair in 0..w.len() / cols / 2 {
                let w = &w[pair * 2 * cols..(pair * 2 + 2) * cols];
                let mut out = [[0f32; 3]; 2];
                // SAFETY: the ISA class was detected; both inputs hold n (2) rows of `cols` floats.
                unsafe { super::avx2::float::dots_2xn(w, cols, first, x.stride, n, &mut out) };
                for (i, row) in out.iter().enumerate() {
                    for (k, v) in row[..n].iter().enumerate() {
                        y[(r + k) * stride + pair * 2 + i] = *v;
                    }
                }
            }
            if !(w.len() / cols).is_multiple_of(2) {
                let i = w.len() / cols - 1;
                for k in 0..n {
                    // SAFETY: as above.
                    y[(r + k) * stride + i] =
                        unsafe { super::avx2::float::dot_f32(&w[i * cols..], x.row(r + k, cols)) };
                }
            }
            r += n;
        }
        return;
    }
    let _ = isa;
    for (i, w) in w.chunks_exact(cols).enumerate() {
        for r in 0..x.rows {
            y[r * stride + i] = super::portable::dot(w, x.row(r, cols));
        }
    }
}

/// [`dots`] for a full band on AVX-512.
#[cfg(target_arch = "x86_64")]
fn wide(w: &[f32], cols: usize, x: Rows, y: &mut [f32], stride: usize) {
    use super::avx512::float::{WIDE, dots};
    fn put<const N: usize>(out: [[f32; N]; BAND], y: &mut [f32], stride: usize, r: usize) {
        for (i, row) in out.iter().enumerate() {
            for (k, v) in row.iter().enumerate() {
                y[(r + k) * stride + i] = *v;
            }
        }
    }
    let mut r = 0;
    while r < x.rows {
        let first = &x.x[r * x.stride..];
        // SAFETY: AVX-512 was detected; `w` holds BAND rows of `cols`, `first` at least the rows asked for.
        unsafe {
            if x.rows - r >= WIDE {
                put(dots::<BAND, WIDE>(w, cols, first, x.stride), y, stride, r);
                r += WIDE;
            } else {
                put(dots::<BAND, 1>(w, cols, first, x.stride), y, stride, r);
                r += 1;
            }
        }
    }
}
