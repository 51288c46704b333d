//! The inner loops on AVX2: columns of the state in lanes, every sum one chain of fused multiply-adds in the order of the
//! portable loops. Pointers advance by wrapping steps, so that tests, which check arithmetic, run at full speed too.

use std::arch::x86_64::*;

use super::chunk::{Side, TALL, Tile, WIDE};
use super::recurrent::BLOCK;
use crate::verb::lanes;

/// See [`super::chunk::multiply`].
///
/// # Safety
/// Needs AVX2 and FMA.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn multiply(a: Side, b: Side, depth: usize, tile: &mut Tile) {
    if depth == 0 {
        return;
    }
    assert!(a.data.len() >= (TALL - 1) * a.stride + depth && b.data.len() >= (depth - 1) * b.stride + WIDE);
    let start = a.data.as_ptr();
    let mut rows: [*const f32; TALL] = [start; TALL];
    for r in 1..TALL {
        rows[r] = rows[r - 1].wrapping_add(a.stride);
    }
    let mut columns = b.data.as_ptr();
    let to = tile.as_mut_ptr().cast::<f32>();
    // SAFETY: a tile is 64 floats; of `a` floats `r * stride + k` for k below the depth are read, of `b` 16 from each
    // `k * stride` on, which the assertion covers.
    unsafe {
        let mut low: [__m256; TALL] = [_mm256_setzero_ps(); TALL];
        let mut high = low;
        for r in 0..TALL {
            low[r] = _mm256_loadu_ps(to.wrapping_add(r * WIDE));
            high[r] = _mm256_loadu_ps(to.wrapping_add(r * WIDE + 8));
        }
        for _ in 0..depth {
            let (x, y) = (_mm256_loadu_ps(columns), _mm256_loadu_ps(columns.wrapping_add(8)));
            for r in 0..TALL {
                let of = _mm256_broadcast_ss(&*rows[r]);
                low[r] = _mm256_fmadd_ps(of, x, low[r]);
                high[r] = _mm256_fmadd_ps(of, y, high[r]);
                rows[r] = rows[r].wrapping_add(1);
            }
            columns = columns.wrapping_add(b.stride);
        }
        for r in 0..TALL {
            _mm256_storeu_ps(to.wrapping_add(r * WIDE), low[r]);
            _mm256_storeu_ps(to.wrapping_add(r * WIDE + 8), high[r]);
        }
    }
}

/// Pointers to `BLOCK` rows of `dv` floats.
fn rows_of(s: *mut f32, dv: usize) -> [*mut f32; BLOCK] {
    let mut rows = [s; BLOCK];
    for r in 1..BLOCK {
        rows[r] = rows[r - 1].wrapping_add(dv);
    }
    rows
}

/// See [`super::recurrent::products`].
///
/// # Safety
/// Needs AVX2 and FMA.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn products(s: &[f32], k: &[f32; BLOCK], q: &[f32; BLOCK], p: &mut [f32], w: &mut [f32]) {
    let dv = p.len();
    assert!(dv.is_multiple_of(8) && s.len() == BLOCK * dv && w.len() == dv);
    let (k, q) = (k.map(|k| _mm256_set1_ps(k)), q.map(|q| _mm256_set1_ps(q)));
    let rows = rows_of(s.as_ptr().cast_mut(), dv);
    let (p, w) = (p.as_mut_ptr(), w.as_mut_ptr());
    let mut n = 0;
    while n < dv {
        // SAFETY: n + 8 is at most dv, the length of p, w and each row of s, which is only read.
        unsafe {
            let (mut x, mut y) = (_mm256_loadu_ps(p.wrapping_add(n)), _mm256_loadu_ps(w.wrapping_add(n)));
            for r in 0..BLOCK {
                let s = _mm256_loadu_ps(rows[r].wrapping_add(n));
                x = _mm256_fmadd_ps(k[r], s, x);
                y = _mm256_fmadd_ps(q[r], s, y);
            }
            _mm256_storeu_ps(p.wrapping_add(n), x);
            _mm256_storeu_ps(w.wrapping_add(n), y);
        }
        n = n.wrapping_add(8);
    }
}

/// See [`super::recurrent::update`].
///
/// # Safety
/// Needs AVX2 and FMA.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn update(s: &mut [f32], k: &[f32; BLOCK], a: f32, u: &[f32]) {
    let dv = u.len();
    assert!(dv.is_multiple_of(8) && s.len() == BLOCK * dv);
    let (k, a) = (k.map(|k| _mm256_set1_ps(k)), _mm256_set1_ps(a));
    let (rows, u) = (rows_of(s.as_mut_ptr(), dv), u.as_ptr());
    let mut n = 0;
    while n < dv {
        // SAFETY: n + 8 is at most dv, the length of u and each row of s.
        unsafe {
            let u = _mm256_loadu_ps(u.wrapping_add(n));
            for r in 0..BLOCK {
                let to = rows[r].wrapping_add(n);
                _mm256_storeu_ps(to, _mm256_fmadd_ps(k[r], u, _mm256_mul_ps(a, _mm256_loadu_ps(to))));
            }
        }
        n = n.wrapping_add(8);
    }
}

/// `math::dot16` of whole lanes.
///
/// # Safety
/// Needs AVX2 and FMA.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn dot16(a: &[f32], b: &[f32]) -> f32 {
    let (mut low, mut high) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for (a, b) in a.as_chunks::<16>().0.iter().zip(b.as_chunks::<16>().0) {
        let (a, b) = (a.as_ptr(), b.as_ptr());
        // SAFETY: 16 floats each.
        unsafe {
            low = _mm256_fmadd_ps(_mm256_loadu_ps(a), _mm256_loadu_ps(b), low);
            let (a, b) = (_mm256_loadu_ps(a.wrapping_add(8)), _mm256_loadu_ps(b.wrapping_add(8)));
            high = _mm256_fmadd_ps(a, b, high);
        }
    }
    // SAFETY: AVX2 by this function's contract.
    unsafe { lanes::tree16(low, high) }
}
