//! The inner loop of decoding on AVX2: columns of the state in lanes, every sum one chain of fused multiply-adds in the
//! order of the portable loop. Pointers advance by wrapping steps, so that tests, which check arithmetic, run at full speed
//! too.

use std::arch::x86_64::*;

use super::recurrent::BLOCK;

/// See [`super::recurrent::advance`].
///
/// # Safety
/// Needs AVX2 and FMA.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn advance(s: &mut [f32], [b, c]: [&[f32; BLOCK]; 2], a: f32, u: &[f32], y: &mut [f32]) {
    let width = u.len();
    assert!(width.is_multiple_of(8) && s.len() == BLOCK * width && y.len() == width);
    let (b, c) = (b.map(|b| _mm256_set1_ps(b)), c.map(|c| _mm256_set1_ps(c)));
    let a = _mm256_set1_ps(a);
    let mut rows = [s.as_mut_ptr(); BLOCK];
    for r in 1..BLOCK {
        rows[r] = rows[r - 1].wrapping_add(width);
    }
    let (u, y) = (u.as_ptr(), y.as_mut_ptr());
    let mut n = 0;
    while n < width {
        // SAFETY: n + 8 is at most the width, the length of u, y and each row of s.
        unsafe {
            let (u, mut sum) = (_mm256_loadu_ps(u.wrapping_add(n)), _mm256_loadu_ps(y.wrapping_add(n)));
            for r in 0..BLOCK {
                let to = rows[r].wrapping_add(n);
                let s = _mm256_fmadd_ps(b[r], u, _mm256_mul_ps(a, _mm256_loadu_ps(to)));
                _mm256_storeu_ps(to, s);
                sum = _mm256_fmadd_ps(c[r], s, sum);
            }
            _mm256_storeu_ps(y.wrapping_add(n), sum);
        }
        n = n.wrapping_add(8);
    }
}
