//! Encoders for AVX2: every operation is that of `hob_quant`'s plain form, eight values at a time.

use std::arch::x86_64::*;

use half::f16;
use hob_quant::KV_GROUP;

/// Magnitudes compared as integers: there a NaN is larger than any number.
const MAGNITUDE: i32 = 0x7FFF_FFFF;
/// Bits of infinity.
const INFINITY: i32 = 0x7F80_0000;

/// [`hob_quant::hadamard`]
///
/// # Safety
/// Needs AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn hadamard(x: &mut [f32]) {
    if x.is_empty() || !x.len().is_multiple_of(8) {
        return hob_quant::hadamard(x);
    }
    let block = 1usize << x.len().trailing_zeros();
    let minus = -0.0f32;
    // SAFETY: whole vectors of the slice.
    unsafe {
        let second = _mm256_setr_ps(0.0, minus, 0.0, minus, 0.0, minus, 0.0, minus);
        let pair = _mm256_setr_ps(0.0, 0.0, minus, minus, 0.0, 0.0, minus, minus);
        let half = _mm256_setr_ps(0.0, 0.0, 0.0, 0.0, minus, minus, minus, minus);
        for eight in x.as_chunks_mut::<8>().0 {
            // Of a pair (a, b): b + a and a + (-b).
            let v = _mm256_loadu_ps(eight.as_ptr());
            let v = _mm256_add_ps(_mm256_permute_ps::<0b10_11_00_01>(v), _mm256_xor_ps(v, second));
            let v = _mm256_add_ps(_mm256_permute_ps::<0b01_00_11_10>(v), _mm256_xor_ps(v, pair));
            let v = _mm256_add_ps(_mm256_permute2f128_ps::<1>(v, v), _mm256_xor_ps(v, half));
            _mm256_storeu_ps(eight.as_mut_ptr(), v);
        }
        let mut stride = 8;
        while stride < block {
            for pair in x.chunks_exact_mut(2 * stride) {
                let (low, high) = pair.split_at_mut(stride);
                for (a, b) in low.as_chunks_mut::<8>().0.iter_mut().zip(high.as_chunks_mut::<8>().0) {
                    let (u, v) = (_mm256_loadu_ps(a.as_ptr()), _mm256_loadu_ps(b.as_ptr()));
                    _mm256_storeu_ps(a.as_mut_ptr(), _mm256_add_ps(u, v));
                    _mm256_storeu_ps(b.as_mut_ptr(), _mm256_sub_ps(u, v));
                }
            }
            stride *= 2;
        }
    }
    let factor = (1.0 / (block as f64).sqrt()) as f32;
    x.iter_mut().for_each(|v| *v *= factor);
}

/// f16 of some values, little-endian.
///
/// # Safety
/// Needs AVX2 and F16C.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn halves(x: &[f32], out: &mut [u8]) {
    let (eights, rest) = x.as_chunks::<8>();
    let (out, last) = out.split_at_mut(16 * eights.len());
    for (x, out) in eights.iter().zip(out.as_chunks_mut::<16>().0) {
        // SAFETY: 8 values and 16 bytes.
        unsafe {
            let h = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(x.as_ptr()));
            _mm_storeu_si128(out.as_mut_ptr().cast(), h);
        }
    }
    rest.iter().zip(last.as_chunks_mut().0).for_each(|(&x, o)| *o = f16::from_f32(x).to_le_bytes());
}

/// The four vectors of a group, and their largest magnitude as bits.
///
/// # Safety
/// Needs AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load(x: &[f32; KV_GROUP]) -> ([__m256; 4], i32) {
    // SAFETY: 32 values.
    let v: [__m256; 4] = std::array::from_fn(|i| unsafe { _mm256_loadu_ps(x.as_ptr().add(8 * i)) });
    let bits = |i: usize| _mm256_and_si256(_mm256_castps_si256(v[i]), _mm256_set1_epi32(MAGNITUDE));
    let m = _mm256_max_epi32(_mm256_max_epi32(bits(0), bits(1)), _mm256_max_epi32(bits(2), bits(3)));
    let m = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256::<1>(m));
    let m = _mm_max_epi32(m, _mm_shuffle_epi32::<0b01_00_11_10>(m));
    let m = _mm_max_epi32(m, _mm_shuffle_epi32::<0b10_11_00_01>(m));
    (v, _mm_cvtsi128_si32(m))
}

/// f16 bits of a scale, at most 65504, and its value.
///
/// # Safety
/// Needs AVX2 and F16C.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn half(scale: f32) -> (u16, f32) {
    let scale = _mm_min_ss(_mm_set_ss(scale), _mm_set_ss(65504.0));
    let bits = _mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(scale);
    (_mm_cvtsi128_si32(bits) as u16, _mm_cvtss_f32(_mm_cvtph_ps(bits)))
}

/// `round(clamp(x * factor, low, high)) + add` as bytes.
///
/// # Safety
/// Needs AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn codes(v: [__m256; 4], factor: f32, [low, high]: [f32; 2], add: i8) -> [u8; KV_GROUP] {
    let int = v.map(|v| {
        let x = _mm256_mul_ps(v, _mm256_set1_ps(factor));
        let x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(low)), _mm256_set1_ps(high));
        _mm256_cvtps_epi32(x)
    });
    let (a, b) = (_mm256_packs_epi32(int[0], int[1]), _mm256_packs_epi32(int[2], int[3]));
    let bytes = _mm256_add_epi8(_mm256_packs_epi16(a, b), _mm256_set1_epi8(add));
    // Packing works in halves: dwords lie 0 2 4 6 1 3 5 7.
    let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    let mut out = [0u8; KV_GROUP];
    // SAFETY: 32 bytes.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes) };
    out
}

/// [`hob_quant::q8_group`]
///
/// # Safety
/// Needs AVX2 and F16C.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn q8(x: &[f32; KV_GROUP]) -> (u16, [u8; KV_GROUP]) {
    // SAFETY: the caller's word.
    unsafe {
        let (v, m) = load(x);
        let (d, value) = half(f32::from_bits(m as u32) / 127.0);
        if m >= INFINITY || d == 0 {
            return (0, [0; KV_GROUP]);
        }
        (d, codes(v, 1.0 / value, [-127.0, 127.0], 0))
    }
}

/// [`hob_quant::q4_group`], with 8 added to the codes.
///
/// # Safety
/// Needs AVX2, FMA and F16C.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn q4(x: &[f32; KV_GROUP]) -> (u16, [u8; KV_GROUP]) {
    // SAFETY: the caller's word.
    unsafe {
        let (v, m) = load(x);
        let m = if m >= INFINITY { 0.0 } else { f32::from_bits(m as u32) };
        let factors = hob_quant::Q4_PROPOSALS.map(|proposal| proposal / m);
        if factors.contains(&f32::INFINITY) {
            return (0, [8; KV_GROUP]);
        }
        let mut best = [0f32; 3];
        for factor in factors {
            let (s, q) = sums(v, factor);
            let gain = s * s / q;
            if gain > best[0] {
                best = [gain, s / q, factor];
            }
        }
        let [_, scale, factor] = best;
        (half(scale).0, codes(v, factor, [-8.0, 7.0], 8))
    }
}

/// `sum(x * code)` and `sum(code * code)` for the codes of a factor.
///
/// # Safety
/// Needs AVX2 and FMA.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn sums(v: [__m256; 4], factor: f32) -> (f32, f32) {
    let (mut s, mut q) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for v in v {
        let x = _mm256_mul_ps(v, _mm256_set1_ps(factor));
        let x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-8.0)), _mm256_set1_ps(7.0));
        let code = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
        s = _mm256_fmadd_ps(v, code, s);
        q = _mm256_fmadd_ps(code, code, q);
    }
    // Both trees at once: lanes 0..4 are those of s, 4..8 those of q.
    let both = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(s, q), _mm256_permute2f128_ps::<0x31>(s, q));
    let both = _mm256_add_ps(both, _mm256_permute_ps::<0b01_00_11_10>(both));
    let both = _mm256_add_ps(both, _mm256_permute_ps::<0b10_11_00_01>(both));
    (_mm256_cvtss_f32(both), _mm_cvtss_f32(_mm256_extractf128_ps::<1>(both)))
}
