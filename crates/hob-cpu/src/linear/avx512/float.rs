//! Register tiles of float products in the 16 lanes of one register, bit-equal to `math::dot16`. It must not know how K
//! and the rows are walked (`linear/float/walk.rs`).
#![allow(clippy::needless_range_loop, reason = "indices number registers of several arrays at once")]

use std::arch::x86_64::*;

use crate::linear::float::walk::{Part, Tile, Tiles};

/// `R` rows of f32 weights by `N` activation rows, one chunk of k.
///
/// # Safety
/// Needs the AVX-512 class, and everything [`Part`] describes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c")]
unsafe fn tile<const R: usize, const N: usize>(p: &Part) {
    let sums: *mut f32 = p.sums.cast();
    let at = |r: usize, n: usize| (r * p.sums_stride + n) * 16;
    let mut acc = [[_mm512_setzero_ps(); N]; R];
    // SAFETY: the caller's contract; a step of 16 values never goes beyond `len`.
    unsafe {
        for r in 0..R {
            for n in 0..N {
                acc[r][n] = _mm512_load_ps(sums.add(at(r, n)));
            }
        }
        let mut i = 0;
        while i < p.len / 16 {
            let mut w = [_mm512_setzero_ps(); R];
            for r in 0..R {
                w[r] = _mm512_loadu_ps(p.w.at.add(r * p.w.row + i * p.w.step).cast());
            }
            for n in 0..N {
                let v = _mm512_loadu_ps(p.x.add(n * p.x_stride + 16 * i));
                for r in 0..R {
                    acc[r][n] = _mm512_fmadd_ps(w[r], v, acc[r][n]);
                }
            }
            i += 1;
        }
        for r in 0..R {
            for n in 0..N {
                _mm512_store_ps(sums.add(at(r, n)), acc[r][n]);
            }
        }
    }
}

macro_rules! row {
    ($($r:literal)*) => {
        [$(tile::<$r, 1>, tile::<$r, 2>, tile::<$r, 3>, tile::<$r, 4>, tile::<$r, 5>, tile::<$r, 6>),*]
    };
}

/// Four weight rows by six activation rows: 24 sums and five operands in 32 registers.
pub const CONVERTED: Tiles = {
    const ALL: &[Tile] = &row!(1 2 3 4);
    Tiles { rows: 4, acts: 6, tiles: ALL, scalar, width: 4 }
};

unsafe fn scalar(p: *const u8) -> f32 {
    // SAFETY: the caller has one weight at `p`.
    unsafe { p.cast::<f32>().read_unaligned() }
}
