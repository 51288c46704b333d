//! Float dots in 16 lanes of one register, bit-equal to `math::dot16`.

use std::arch::x86_64::*;

use hob_compute::math;

/// Activation rows multiplied at once.
pub const WIDE: usize = 4;

/// `R` weight rows (`w`, `cols` apart) by `N` activation rows (`x`, `stride` apart).
///
/// # Safety
/// Needs the AVX-512 class; `w` holds R rows of `cols`, `x` holds N rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c")]
pub unsafe fn dots<const R: usize, const N: usize>(
    w: &[f32],
    cols: usize,
    x: &[f32],
    stride: usize,
) -> [[f32; N]; R] {
    debug_assert!(w.len() >= R * cols && x.len() >= (N - 1) * stride + cols);
    let mut acc = [[_mm512_setzero_ps(); N]; R];
    let mut i = 0;
    while i < cols {
        // The tail is masked: absent lanes add 0 * 0.
        let mask: __mmask16 = if cols - i >= 16 { 0xffff } else { (1 << (cols - i)) - 1 };
        // SAFETY: masked lanes are not read, the others lie inside the rows.
        unsafe {
            let v: [__m512; N] =
                std::array::from_fn(|n| _mm512_maskz_loadu_ps(mask, x.as_ptr().add(n * stride + i)));
            for (r, acc) in acc.iter_mut().enumerate() {
                let w = _mm512_maskz_loadu_ps(mask, w.as_ptr().add(r * cols + i));
                for (acc, v) in acc.iter_mut().zip(v) {
                    *acc = _mm512_mask3_fmadd_ps(w, v, *acc, mask);
                }
            }
        }
        i += 16;
    }
    let mut out = [[0f32; N]; R];
    for (out, acc) in out.iter_mut().zip(acc) {
        for (out, acc) in out.iter_mut().zip(acc) {
            let mut lanes = [0f32; 16];
            // SAFETY: 16 floats.
            unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), acc) };
            *out = math::tree16(&lanes);
        }
    }
    out
}
