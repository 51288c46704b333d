//! AVX2 forms: two registers of 8 weight rows in lanes, `vpmaddubsw` products, exact 16- and 32-bit integer sums.
#![allow(clippy::needless_range_loop, reason = "indices number registers of several arrays at once")]

pub mod few;
pub mod float;
pub mod gemm;
pub mod tile;

use std::arch::x86_64::*;

use hob_compute::Activation;
use hob_compute::act::BLOCK;

use crate::verb::lanes::exp8;

/// Quantises one block; returns its scale and the sums of codes 0..16 and 16..32. Same bits as `act::quantize_block`.
///
/// # Safety
/// Needs AVX2.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn quantize_block(x: &[f32; BLOCK], codes: &mut [u8; BLOCK]) -> (f32, [i16; 2]) {
    // SAFETY: all loads and stores stay inside the two 32-element arrays.
    unsafe {
        let v: [__m256; 4] = std::array::from_fn(|i| _mm256_loadu_ps(x.as_ptr().add(8 * i)));
        let sign = _mm256_set1_ps(-0.0);
        let inf = _mm256_set1_ps(f32::INFINITY);
        let a: [__m256; 4] = std::array::from_fn(|i| _mm256_andnot_ps(sign, v[i]));
        let finite = |a: __m256| _mm256_cmp_ps::<_CMP_LT_OQ>(a, inf);
        let all = _mm256_and_ps(
            _mm256_and_ps(finite(a[0]), finite(a[1])),
            _mm256_and_ps(finite(a[2]), finite(a[3])),
        );
        if _mm256_movemask_ps(all) != 0xff {
            codes.fill(0);
            return (f32::NAN, [0; 2]);
        }
        let m = _mm256_max_ps(_mm256_max_ps(a[0], a[1]), _mm256_max_ps(a[2], a[3]));
        let m = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps::<1>(m));
        let m = _mm_max_ps(m, _mm_movehl_ps(m, m));
        let m = _mm_max_ss(m, _mm_shuffle_ps::<1>(m, m));
        let (d, id) = crate::linear::act::scales(_mm_cvtss_f32(m));
        let id = _mm256_set1_ps(id);
        let q: [__m256i; 4] = std::array::from_fn(|i| _mm256_cvtps_epi32(_mm256_mul_ps(v[i], id)));
        let low = _mm256_packs_epi32(q[0], q[1]);
        let high = _mm256_packs_epi32(q[2], q[3]);
        let packed = _mm256_packs_epi16(low, high);
        let packed = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256(codes.as_mut_ptr().cast(), packed);
        let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), packed);
        let sums = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        // Four sums of 4 codes in each half; the halves of the register are the halves of the block.
        let s = _mm256_add_epi32(sums, _mm256_shuffle_epi32::<0b00_00_11_10>(sums));
        let s = _mm256_add_epi32(s, _mm256_shuffle_epi32::<1>(s));
        (d, [_mm256_extract_epi32::<0>(s) as i16, _mm256_extract_epi32::<4>(s) as i16])
    }
}

/// `out = activation(gate) * up`.
///
/// # Safety
/// Needs AVX2, FMA and F16C; the slices have one length, a multiple of 8.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn gate(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let one = _mm256_set1_ps(1.0);
    for i in (0..out.len()).step_by(8) {
        // SAFETY: i + 8 <= len of all three.
        unsafe {
            let mut g = _mm256_loadu_ps(gate.as_ptr().add(i));
            let mut u = _mm256_loadu_ps(up.as_ptr().add(i));
            let t = match activation {
                Activation::ReluSquared => {
                    // Of a NaN and 0 this takes the NaN, its second operand.
                    let g = _mm256_max_ps(_mm256_setzero_ps(), g);
                    let a = _mm256_mul_ps(g, g);
                    _mm256_storeu_ps(out.as_mut_ptr().add(i), _mm256_mul_ps(u, a));
                    continue;
                }
                Activation::ClampedSwiglu { alpha, limit, plus_one } => {
                    // Of a NaN and a limit these take the NaN, their second operand.
                    g = _mm256_min_ps(_mm256_set1_ps(limit), g);
                    u = _mm256_max_ps(_mm256_set1_ps(-limit), _mm256_min_ps(_mm256_set1_ps(limit), u));
                    let plus = if plus_one { one } else { _mm256_setzero_ps() };
                    u = _mm256_add_ps(u, plus);
                    _mm256_mul_ps(_mm256_set1_ps(-alpha), g)
                }
                Activation::Silu => _mm256_xor_ps(g, _mm256_set1_ps(-0.0)),
                Activation::GeluTanh => {
                    let c = _mm256_fmadd_ps(_mm256_mul_ps(g, g), _mm256_set1_ps(0.044_715), one);
                    _mm256_mul_ps(_mm256_set1_ps(-1.595_769_2), _mm256_mul_ps(g, c))
                }
            };
            let a = _mm256_div_ps(g, _mm256_add_ps(one, exp8(t)));
            _mm256_storeu_ps(out.as_mut_ptr().add(i), _mm256_mul_ps(u, a));
        }
    }
}
