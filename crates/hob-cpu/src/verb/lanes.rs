//! Vector forms of `hob_compute::math`: the same chain of operations in every lane, so the same bits.

use std::arch::x86_64::*;

use hob_compute::math;

/// `math::exp` in 8 lanes.
///
/// # Safety
/// Needs AVX2 and FMA.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn exp8(x: __m256) -> __m256 {
    let zero = _mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_set1_ps(math::EXP_LOW));
    // The second operand wins against NaN, as in `f32::min`.
    let x = _mm256_min_ps(x, _mm256_set1_ps(math::EXP_HIGH));
    let n =
        _mm256_floor_ps(_mm256_fmadd_ps(x, _mm256_set1_ps(std::f32::consts::LOG2_E), _mm256_set1_ps(0.5)));
    let r = _mm256_fmadd_ps(n, _mm256_set1_ps(-math::LN2_HIGH), x);
    let r = _mm256_fmadd_ps(n, _mm256_set1_ps(-math::LN2_LOW), r);
    let mut p = _mm256_set1_ps(math::EXP_POLY[0]);
    for &c in &math::EXP_POLY[1..] {
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
    }
    let y = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0));
    let power = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvttps_epi32(n), _mm256_set1_epi32(127)));
    _mm256_andnot_ps(zero, _mm256_mul_ps(y, _mm256_castsi256_ps(power)))
}

/// `math::exp2` in 8 lanes.
///
/// # Safety
/// Needs AVX2 and FMA.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn exp2_8(x: __m256) -> __m256 {
    // The second operand wins against NaN.
    let x = _mm256_max_ps(_mm256_set1_ps(math::EXP2_LOW), x);
    let round = _mm256_set1_ps(math::EXP2_ROUND);
    let t = _mm256_add_ps(x, round);
    let f = _mm256_sub_ps(x, _mm256_sub_ps(t, round));
    let mut p = _mm256_set1_ps(math::EXP2_POLY[0]);
    for &c in &math::EXP2_POLY[1..] {
        p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(c));
    }
    let power = _mm256_slli_epi32::<23>(_mm256_castps_si256(t));
    _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), power))
}

/// `math::tanh` in 8 lanes.
///
/// # Safety
/// Needs AVX2 and FMA.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn tanh8(x: __m256) -> __m256 {
    let x = _mm256_min_ps(_mm256_set1_ps(math::TANH_HIGH), x);
    let x = _mm256_max_ps(_mm256_set1_ps(-math::TANH_HIGH), x);
    let z = _mm256_mul_ps(x, x);
    let (mut p, mut q) = (_mm256_set1_ps(math::TANH_P[0]), _mm256_set1_ps(math::TANH_Q[0]));
    for (&a, &b) in math::TANH_P[1..].iter().zip(&math::TANH_Q[1..]) {
        p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(a));
        q = _mm256_fmadd_ps(q, z, _mm256_set1_ps(b));
    }
    _mm256_div_ps(_mm256_mul_ps(x, p), q)
}

/// `math::tree16` of lanes 0..8 and 8..16.
///
/// # Safety
/// Needs AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn tree16(low: __m256, high: __m256) -> f32 {
    let v = _mm256_add_ps(low, high);
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
}

/// Largest lane.
///
/// # Safety
/// Needs AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn max8(v: __m256) -> f32 {
    let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps::<1>(v, v)))
}

/// A mask whose first `n` lanes (of 8) are set; all for `n >= 8`.
///
/// # Safety
/// Needs AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn first8(n: usize) -> __m256i {
    let index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_cmpgt_epi32(_mm256_set1_epi32(n.min(8) as i32), index)
}

/// `math::exp` in 16 lanes.
///
/// # Safety
/// Needs AVX-512 F and DQ.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub unsafe fn exp16(x: __m512) -> __m512 {
    let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(math::EXP_LOW));
    let x = _mm512_min_ps(x, _mm512_set1_ps(math::EXP_HIGH));
    let n = _mm512_fmadd_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E), _mm512_set1_ps(0.5));
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(n);
    let r = _mm512_fmadd_ps(n, _mm512_set1_ps(-math::LN2_HIGH), x);
    let r = _mm512_fmadd_ps(n, _mm512_set1_ps(-math::LN2_LOW), r);
    let mut p = _mm512_set1_ps(math::EXP_POLY[0]);
    for &c in &math::EXP_POLY[1..] {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    }
    let y = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0));
    let power = _mm512_slli_epi32::<23>(_mm512_add_epi32(_mm512_cvttps_epi32(n), _mm512_set1_epi32(127)));
    _mm512_maskz_mul_ps(keep, y, _mm512_castsi512_ps(power))
}

/// `math::exp2` in 16 lanes.
///
/// # Safety
/// Needs AVX-512 F and DQ.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub unsafe fn exp2_16(x: __m512) -> __m512 {
    let x = _mm512_max_ps(_mm512_set1_ps(math::EXP2_LOW), x);
    let round = _mm512_set1_ps(math::EXP2_ROUND);
    let t = _mm512_add_ps(x, round);
    let f = _mm512_sub_ps(x, _mm512_sub_ps(t, round));
    let mut p = _mm512_set1_ps(math::EXP2_POLY[0]);
    for &c in &math::EXP2_POLY[1..] {
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
    }
    let power = _mm512_slli_epi32::<23>(_mm512_castps_si512(t));
    _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), power))
}

/// `math::tanh` in 16 lanes.
///
/// # Safety
/// Needs AVX-512 F and DQ.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub unsafe fn tanh16(x: __m512) -> __m512 {
    let x = _mm512_min_ps(_mm512_set1_ps(math::TANH_HIGH), x);
    let x = _mm512_max_ps(_mm512_set1_ps(-math::TANH_HIGH), x);
    let z = _mm512_mul_ps(x, x);
    let (mut p, mut q) = (_mm512_set1_ps(math::TANH_P[0]), _mm512_set1_ps(math::TANH_Q[0]));
    for (&a, &b) in math::TANH_P[1..].iter().zip(&math::TANH_Q[1..]) {
        p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(a));
        q = _mm512_fmadd_ps(q, z, _mm512_set1_ps(b));
    }
    _mm512_div_ps(_mm512_mul_ps(x, p), q)
}

/// `math::tree16` of 16 lanes.
///
/// # Safety
/// Needs AVX-512 F and DQ.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub unsafe fn tree16_zmm(v: __m512) -> f32 {
    // SAFETY: AVX-512 includes AVX2.
    unsafe { tree16(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    /// Every exponent, the edges of the range and what is not a number.
    fn inputs() -> Vec<f32> {
        let mut x: Vec<f32> = (0..200_000).map(|i| (i as f32 - 100_000.0) * 9.3e-4).collect();
        x.extend([0.0, -0.0, 1e-30, -1e-30, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
        x.extend([
            -126.0,
            -126.5,
            -0.5,
            9.0109,
            9.010_901,
            math::EXP_LOW,
            math::EXP_HIGH,
            -87.336_55,
            -87.336_53,
            88.376_25,
            88.376_27,
        ]);
        x.resize(x.len().next_multiple_of(16), 0.5);
        x
    }

    #[test]
    fn eight_lanes_have_the_bits_of_the_specification() {
        if !Isa::Avx2.available() {
            eprintln!("skipped: no avx2");
            return;
        }
        type Form = unsafe fn(__m256) -> __m256;
        type Named = (&'static str, fn(f32) -> f32, Form);
        let forms: [Named; 3] =
            [("exp", math::exp, exp8), ("exp2", math::exp2, exp2_8), ("tanh", math::tanh, tanh8)];
        for (name, expected, form) in forms {
            for chunk in inputs().chunks_exact(8) {
                let mut out = [0f32; 8];
                // SAFETY: AVX2 is available; 8 floats each.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr(), form(_mm256_loadu_ps(chunk.as_ptr()))) };
                for (&x, &y) in chunk.iter().zip(&out) {
                    assert_eq!(y.to_bits(), expected(x).to_bits(), "{name}({x})");
                }
            }
        }
    }

    #[test]
    fn sixteen_lanes_have_the_bits_of_the_specification() {
        if !Isa::Avx512.available() {
            eprintln!("skipped: no avx512");
            return;
        }
        type Form = unsafe fn(__m512) -> __m512;
        type Named = (&'static str, fn(f32) -> f32, Form);
        let forms: [Named; 3] =
            [("exp", math::exp, exp16), ("exp2", math::exp2, exp2_16), ("tanh", math::tanh, tanh16)];
        for (name, expected, form) in forms {
            for chunk in inputs().chunks_exact(16) {
                let mut out = [0f32; 16];
                // SAFETY: AVX-512 is available; 16 floats each.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), form(_mm512_loadu_ps(chunk.as_ptr()))) };
                for (&x, &y) in chunk.iter().zip(&out) {
                    assert_eq!(y.to_bits(), expected(x).to_bits(), "{name}({x})");
                }
            }
        }
    }
}
