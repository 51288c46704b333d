//! Float dots in 16 virtual lanes (two registers), bit-equal to `math::dot16`.

use std::arch::x86_64::*;

use hob_compute::math;

use crate::verb::lanes::tree16;

/// Finishes a dot whose whole 16-lane steps are in two registers: the tail goes to lanes 0.. as in the specification.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn finish(low: __m256, high: __m256, tail: impl Iterator<Item = (f32, f32)>, has_tail: bool) -> f32 {
    if !has_tail {
        // SAFETY: same target features.
        return unsafe { tree16(low, high) };
    }
    let mut lanes = [0f32; 16];
    // SAFETY: 16 floats.
    unsafe {
        _mm256_storeu_ps(lanes.as_mut_ptr(), low);
        _mm256_storeu_ps(lanes.as_mut_ptr().add(8), high);
    }
    for (lane, (w, x)) in lanes.iter_mut().zip(tail) {
        *lane = w.mul_add(x, *lane);
    }
    math::tree16(&lanes)
}

macro_rules! dot {
    ($(#[$doc:meta])* $name:ident, $ty:ty, $load:expr, $scalar:expr) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// Needs AVX2, FMA and F16C.
        #[target_feature(enable = "avx2,fma,f16c")]
        pub unsafe fn $name(w: &[$ty], x: &[f32]) -> f32 {
            const WIDTH: usize = size_of::<$ty>();
            let bytes: *const u8 = w.as_ptr().cast();
            let unit = $scalar(&[0u8; 4]).1;
            let len = (w.len() * WIDTH / unit).min(x.len());
            let whole = len / 16 * 16;
            let (mut low, mut high) = (_mm256_setzero_ps(), _mm256_setzero_ps());
            for i in (0..whole).step_by(16) {
                // SAFETY: i + 16 <= len of both.
                unsafe {
                    let a = $load(bytes.add(i * unit));
                    let b = $load(bytes.add((i + 8) * unit));
                    low = _mm256_fmadd_ps(a, _mm256_loadu_ps(x.as_ptr().add(i)), low);
                    high = _mm256_fmadd_ps(b, _mm256_loadu_ps(x.as_ptr().add(i + 8)), high);
                }
            }
            let tail = (whole..len).map(|i| {
                let mut four = [0u8; 4];
                // SAFETY: element i lies inside `w`.
                unsafe { std::ptr::copy_nonoverlapping(bytes.add(i * unit), four.as_mut_ptr(), unit) };
                ($scalar(&four).0, x[i])
            });
            // SAFETY: same target features.
            unsafe { finish(low, high, tail, whole < len) }
        }
    };
}

dot!(
    /// f16 bytes times f32.
    dot_f16, u8,
    |p: *const u8| _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
    |b: &[u8; 4]| (half::f16::from_le_bytes([b[0], b[1]]).to_f32(), 2)
);
dot!(
    /// bf16 bytes times f32.
    dot_bf16, u8,
    |p: *const u8| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))),
    |b: &[u8; 4]| (half::bf16::from_le_bytes([b[0], b[1]]).to_f32(), 2)
);
dot!(
    /// f32 bytes (any alignment) times f32.
    dot_f32_bytes, u8,
    |p: *const u8| _mm256_loadu_ps(p.cast()),
    |b: &[u8; 4]| (f32::from_le_bytes(*b), 4)
);
dot!(
    /// f32 times f32.
    dot_f32, f32,
    |p: *const u8| _mm256_loadu_ps(p.cast()),
    |b: &[u8; 4]| (f32::from_le_bytes(*b), 4)
);

/// Two weight rows (`w`, `cols` apart) by `n <= 3` activation rows (`x`, `stride` apart).
///
/// # Safety
/// Needs AVX2, FMA and F16C; `w` holds 2 rows of `cols`, `x` holds n rows.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn dots_2xn(w: &[f32], cols: usize, x: &[f32], stride: usize, n: usize, out: &mut [[f32; 3]; 2]) {
    debug_assert!(w.len() >= 2 * cols && x.len() >= (n - 1) * stride + cols);
    // SAFETY: the caller's contract.
    unsafe {
        match n {
            1 => dots::<1>(w, cols, x, stride, out),
            2 => dots::<2>(w, cols, x, stride, out),
            _ => dots::<3>(w, cols, x, stride, out),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dots<const N: usize>(w: &[f32], cols: usize, x: &[f32], stride: usize, out: &mut [[f32; 3]; 2]) {
    let mut acc = [[[_mm256_setzero_ps(); 2]; N]; 2];
    let whole = cols / 16 * 16;
    for i in (0..whole).step_by(16) {
        for h in 0..2 {
            // SAFETY: i + 16 <= cols in every row.
            unsafe {
                let w0 = _mm256_loadu_ps(w.as_ptr().add(i + 8 * h));
                let w1 = _mm256_loadu_ps(w.as_ptr().add(cols + i + 8 * h));
                for n in 0..N {
                    let v = _mm256_loadu_ps(x.as_ptr().add(n * stride + i + 8 * h));
                    acc[0][n][h] = _mm256_fmadd_ps(w0, v, acc[0][n][h]);
                    acc[1][n][h] = _mm256_fmadd_ps(w1, v, acc[1][n][h]);
                }
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        for (n, acc) in acc.iter().enumerate() {
            let tail = (whole..cols).map(|i| (w[r * cols + i], x[n * stride + i]));
            // SAFETY: same target features.
            out[r][n] = unsafe { finish(acc[0], acc[1], tail, whole < cols) };
        }
    }
}
