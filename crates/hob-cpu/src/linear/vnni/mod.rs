//! Kernels on `vpdpbusd`: unsigned weight codes times signed activation codes, four products per lane and instruction.
//!
//! Owns the decoding of every interleaved format to unsigned bytes, the decode kernels of 1 to 4 activation rows and the
//! prefill kernels, written once over a register width: [`wide`] has 512 bits (AVX-512 VNNI), [`narrow`] 256 (AVX-VNNI).
//! It must not know matrices or threads. Numerics: [`hob_compute::act`].
//!
//! Signed codes travel as code + bias; the bias comes off again through the sums of the activation's codes. Q8_0 is
//! stored with its bias on these machines.
#![allow(clippy::needless_range_loop, reason = "indices number registers of several arrays at once")]

#[macro_use]
mod kernels;
#[cfg(test)]
mod tests;

use hob_quant::Format;

use super::act::{Packed, Tile, block_bytes, sum_of};
use super::avx2::few::Stream;
use super::shape::Shape;
use hob_compute::act::BLOCK;

/// Formats as const parameters of the kernels.
mod id {
    pub const Q4_0: u8 = 0;
    pub const Q4_1: u8 = 1;
    pub const Q5_0: u8 = 2;
    pub const Q5_1: u8 = 3;
    pub const Q8_0: u8 = 4;
    pub const IQ4_NL: u8 = 5;
    pub const MXFP4: u8 = 6;
    pub const Q4_K: u8 = 7;
    pub const Q5_K: u8 = 8;
    pub const IQ4_XS: u8 = 9;
    pub const Q6_K: u8 = 10;
    pub const Q3_K: u8 = 11;
    pub const Q2_K: u8 = 12;
}

/// Bytes of the nibbles of one block of 16 rows, which other planes follow.
const NIBBLES: usize = 256;

const fn format_of(id: u8) -> Format {
    match id {
        id::Q4_0 => Format::Q4_0,
        id::Q4_1 => Format::Q4_1,
        id::Q5_0 => Format::Q5_0,
        id::Q5_1 => Format::Q5_1,
        id::Q8_0 => Format::Q8_0,
        id::IQ4_NL => Format::IQ4NL,
        id::MXFP4 => Format::MXFP4,
        id::Q4_K => Format::Q4K,
        id::Q5_K => Format::Q5K,
        id::IQ4_XS => Format::IQ4XS,
        id::Q6_K => Format::Q6K,
        id::Q3_K => Format::Q3K,
        _ => Format::Q2K,
    }
}

const fn shape_of(id: u8) -> Shape {
    match Shape::of(format_of(id)) {
        Some(shape) => shape,
        None => panic!("every id names a packed format"),
    }
}

/// What an unsigned code exceeds the signed one by.
const fn bias(id: u8) -> i32 {
    match id {
        id::Q8_0 | id::IQ4_NL | id::IQ4_XS | id::MXFP4 => 128,
        _ => shape_of(id).offset as i32,
    }
}

/// Whether the format has integer scales per 16 columns.
const fn halves(format: u8) -> bool {
    matches!(format, id::Q6_K | id::Q3_K | id::Q2_K)
}

const NO_MINIMA: u8 = 0;
/// One f32 per 32 columns.
const BLOCK_MINIMA: u8 = 1;
/// One integer per 16 columns and a common factor.
const HALF_MINIMA: u8 = 2;

const fn minima(format: u8) -> u8 {
    match format {
        id::Q4_1 | id::Q5_1 | id::Q4_K | id::Q5_K => BLOCK_MINIMA,
        id::Q2_K => HALF_MINIMA,
        _ => NO_MINIMA,
    }
}

/// Blocks of 32 columns unpacked at a time: 64 KiB of codes at 512 bits, in the L2 cache.
const STRETCH: usize = 64;

/// Calls `$call::<ID>(..)` with the id of `$format`.
macro_rules! by_format {
    (# $call:ident, $id:ident, ($($arg:expr),*)) => {
        $call::<{ id::$id }>($($arg),*)
    };
    (@ $format:expr, $call:ident, $args:tt, $($name:ident $id:ident),*) => {
        match $format {
            $(Format::$name => by_format!(# $call, $id, $args),)*
            other => debug_assert!(false, "{other} has no interleaved form"),
        }
    };
    ($format:expr, $call:ident, $args:tt) => {
        by_format!(@ $format, $call, $args, Q4_0 Q4_0, Q4_1 Q4_1, Q5_0 Q5_0, Q5_1 Q5_1, Q8_0 Q8_0, IQ4NL IQ4_NL,
            MXFP4 MXFP4, Q4K Q4_K, Q5K Q5_K, IQ4XS IQ4_XS, Q6K Q6_K, Q3K Q3_K, Q2K Q2_K)
    };
}

/// Values of IQ4_NL and IQ4_XS codes, plus 128.
const IQ4_CODES: [u8; 16] = [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];
/// Doubled values of the e2m1 codes, plus 128.
const E2M1_CODES: [u8; 16] = [128, 129, 130, 131, 132, 134, 136, 140, 128, 127, 126, 125, 124, 122, 120, 116];

/// 512 bits: 16 rows per register.
pub mod wide {
    use super::*;
    use std::arch::x86_64::*;
    use std::arch::x86_64::{
        __m512 as F, __m512i as I, _mm512_add_epi32 as add, _mm512_and_si512 as and,
        _mm512_castsi512_ps as bits, _mm512_cvtepi32_ps as to_f, _mm512_dpbusd_epi32 as dp,
        _mm512_fmadd_ps as fma, _mm512_madd_epi16 as madd, _mm512_max_epi32 as max, _mm512_mul_ps as mul,
        _mm512_mullo_epi32 as mul_i, _mm512_or_si512 as or, _mm512_set1_epi8 as set_b,
        _mm512_set1_epi32 as set_i, _mm512_set1_ps as set_f, _mm512_setzero_ps as zero_f,
        _mm512_setzero_si512 as zero_i, _mm512_shuffle_epi8 as look, _mm512_slli_epi32 as sll,
        _mm512_sllv_epi32 as sllv, _mm512_srai_epi32 as sra, _mm512_srli_epi32 as srl,
        _mm512_sub_epi32 as sub, _mm512_sub_ps as sub_f,
    };

    /// Registers per group of 16 rows.
    const PARTS: usize = 1;
    /// Rows per register.
    const LANES: usize = 16;

    kernels!(
        "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c",
        load: |p| _mm512_loadu_si512(p.cast()),
        store: |p, v| _mm512_storeu_si512(p.cast(), v),
        load_f: |p| _mm512_loadu_ps(p),
        store_f: |p, v| _mm512_storeu_ps(p, v),
        f16s: |p| _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())),
        unsigned: |p| _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())),
        signed: |p| _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())),
        pairs: |p| _mm512_cvtepi8_epi16(_mm256_loadu_si256(p.cast())),
        table: |t| _mm512_broadcast_i32x4(_mm_loadu_si128(t.cast()))
    );
}

/// 256 bits: 8 rows per register.
pub mod narrow {
    use super::*;
    use std::arch::x86_64::*;
    use std::arch::x86_64::{
        __m256 as F, __m256i as I, _mm256_add_epi32 as add, _mm256_and_si256 as and,
        _mm256_castsi256_ps as bits, _mm256_cvtepi32_ps as to_f, _mm256_dpbusd_avx_epi32 as dp,
        _mm256_fmadd_ps as fma, _mm256_madd_epi16 as madd, _mm256_max_epi32 as max, _mm256_mul_ps as mul,
        _mm256_mullo_epi32 as mul_i, _mm256_or_si256 as or, _mm256_set1_epi8 as set_b,
        _mm256_set1_epi32 as set_i, _mm256_set1_ps as set_f, _mm256_setzero_ps as zero_f,
        _mm256_setzero_si256 as zero_i, _mm256_shuffle_epi8 as look, _mm256_slli_epi32 as sll,
        _mm256_sllv_epi32 as sllv, _mm256_srai_epi32 as sra, _mm256_srli_epi32 as srl,
        _mm256_sub_epi32 as sub, _mm256_sub_ps as sub_f,
    };

    /// Registers per group of 16 rows.
    const PARTS: usize = 2;
    /// Rows per register.
    const LANES: usize = 8;

    kernels!(
        "avxvnni,avx2,fma,f16c",
        load: |p| _mm256_loadu_si256(p.cast()),
        store: |p, v| _mm256_storeu_si256(p.cast(), v),
        load_f: |p| _mm256_loadu_ps(p),
        store_f: |p, v| _mm256_storeu_ps(p, v),
        f16s: |p| _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
        unsigned: |p| _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())),
        signed: |p| _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())),
        pairs: |p| _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast())),
        table: |t| _mm256_broadcastsi128_si256(_mm_loadu_si128(t.cast()))
    );
}
