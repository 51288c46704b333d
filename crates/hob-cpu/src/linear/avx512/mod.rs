//! AVX-512 forms: 16 weight rows in lanes, `vpdpbusd` products. Q8_0 codes are stored as code + 128.
#![allow(clippy::needless_range_loop, reason = "indices number registers of several arrays at once")]

pub mod few;
pub mod float;
pub mod gemm;

use std::arch::x86_64::*;

use super::avx2::{Q4_0, Q8_0};

/// What an unsigned code exceeds the signed one by.
pub const fn bias<const F: u8>() -> i32 {
    match F {
        Q4_0 => 8,
        Q8_0 => 128,
        _ => 0,
    }
}

/// 16 half-precision scales as f32.
///
/// # Safety
/// Needs AVX-512 F; 32 bytes at `p`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c")]
pub unsafe fn scales(p: *const u8) -> __m512 {
    // SAFETY: the caller vouches for 32 bytes.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
}
