//! From the packed layout to [`super::Block`]s, by format family: scales and minima to f32, sub-scales to pairs, codes to
//! one byte each. It must not know activations.

use std::arch::x86_64::*;

use super::{Block, HEIGHT};

/// Bytes of the nibbles, which other planes follow, in a block of 16 rows.
const NIBBLES: usize = 256;

/// Sixteen f16 as two registers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn halves(from: *const u8) -> [__m256; 2] {
    // SAFETY: the caller has 32 bytes at `from`.
    unsafe {
        [_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast()))]
    }
}

/// Sixteen bytes as f32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn bytes<const SIGNED: bool>(from: *const u8) -> [__m256; 2] {
    // SAFETY: the caller has 16 bytes at `from`.
    let all = unsafe { _mm_loadu_si128(from.cast()) };
    [all, _mm_unpackhi_epi64(all, all)].map(|v| {
        let wide = if SIGNED { _mm256_cvtepi8_epi32(v) } else { _mm256_cvtepu8_epi32(v) };
        _mm256_cvtepi32_ps(wide)
    })
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn put(to: &mut [f32; HEIGHT], [low, high]: [__m256; 2]) {
    // SAFETY: 16 floats.
    unsafe {
        _mm256_storeu_ps(to.as_mut_ptr(), low);
        _mm256_storeu_ps(to.as_mut_ptr().add(8), high);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn product(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
    [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn negative(a: [__m256; 2]) -> [__m256; 2] {
    a.map(|a| _mm256_xor_ps(a, _mm256_set1_ps(-0.0)))
}

/// Scales of block `half` of a superblock of two: f16 scales, and minima behind those of both blocks.
///
/// # Safety
/// Needs AVX2 and F16C; `sup` has 64 bytes of header, 128 with minima.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn scales_of_two<const MINIMA: bool>(sup: *const u8, half: usize, to: &mut Block) {
    // SAFETY: the caller's contract.
    unsafe {
        put(&mut to.d, halves(sup.add(32 * half)));
        if MINIMA {
            put(&mut to.m, halves(sup.add(64 + 32 * half)));
        }
    }
}

/// MXFP4: half of the scale 2^(e - 127), exact also where it is subnormal.
///
/// # Safety
/// Needs AVX2; `sup` has 32 bytes of header.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn scales_of_exponents(sup: *const u8, half: usize, to: &mut Block) {
    // SAFETY: 16 bytes per block.
    let all = unsafe { _mm_loadu_si128(sup.add(16 * half).cast()) };
    let d = [all, _mm_unpackhi_epi64(all, all)].map(|v| {
        let e = _mm256_cvtepu8_epi32(v);
        let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, _mm256_set1_epi32(1)));
        // 2^-128 and 2^-127.
        let small = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), e);
        let is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
        _mm256_castsi256_ps(_mm256_blendv_epi8(normal, small, is_small))
    });
    // SAFETY: same target features.
    unsafe { put(&mut to.d, d) };
}

/// Q4_K, Q5_K: `d * sc` and `-(dmin * mn)`, both exact.
///
/// # Safety
/// Needs AVX2 and F16C; `sup` has 320 bytes of header.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn scales_and_minima_of_eight(sup: *const u8, b: usize, to: &mut Block) {
    // SAFETY: the caller's contract.
    unsafe {
        put(&mut to.d, product(halves(sup), bytes::<false>(sup.add(64 + 16 * b))));
        let m = product(halves(sup.add(32)), bytes::<false>(sup.add(64 + 128 + 16 * b)));
        put(&mut to.m, negative(m));
    }
}

/// IQ4_XS: `d * scale`, exact.
///
/// # Safety
/// Needs AVX2 and F16C; `sup` has 160 bytes of header.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn scales_of_eight(sup: *const u8, b: usize, to: &mut Block) {
    // SAFETY: the caller's contract.
    unsafe { put(&mut to.d, product(halves(sup), bytes::<true>(sup.add(32 + 16 * b)))) };
}

/// Writes sub-scale pairs (two i16 a row) as the two halves want them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn put_pairs(to: &mut Block, g: usize, pairs: __m256i) {
    let twice = |word: i16| {
        let at = i32::from(word) * 2;
        let low = at | (at + 1) << 8;
        let both = low | low << 16;
        let step = 0x0404_0404;
        _mm256_setr_epi32(
            both,
            both + step,
            both + 2 * step,
            both + 3 * step,
            both,
            both + step,
            both + 2 * step,
            both + 3 * step,
        )
    };
    let s = to.s.as_mut_ptr().cast::<u8>();
    // SAFETY: `s` is 2 x 64 bytes, g below 2.
    unsafe {
        _mm256_storeu_si256(s.add(32 * g).cast(), _mm256_shuffle_epi8(pairs, twice(0)));
        _mm256_storeu_si256(s.add(64 + 32 * g).cast(), _mm256_shuffle_epi8(pairs, twice(1)));
    }
}

/// Q6_K and Q3_K: `d` as it is, sub-scale pairs, and their products with the offset of the codes.
///
/// # Safety
/// Needs AVX2 and F16C; `sup` has 288 bytes of header.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn sub_scales(sup: *const u8, b: usize, offset: i16, to: &mut Block) {
    // SAFETY: the caller's contract; `o` is 64 bytes.
    unsafe {
        put(&mut to.d, halves(sup));
        for g in 0..2 {
            let pairs = _mm256_cvtepi8_epi16(_mm_loadu_si128(sup.add(32 + 32 * b + 16 * g).cast()));
            put_pairs(to, g, pairs);
            let o = _mm256_mullo_epi16(pairs, _mm256_set1_epi16(offset));
            _mm256_storeu_si256(to.o.as_mut_ptr().cast::<__m256i>().add(g), o);
        }
    }
}

/// Q2_K: `d` and `-dmin`, sub-scale and minimum pairs of 4 bits each.
///
/// # Safety
/// Needs AVX2 and F16C; `sup` has 320 bytes of header.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn sub_scales_and_minima(sup: *const u8, b: usize, to: &mut Block) {
    // SAFETY: the caller's contract; `o` is 64 bytes.
    unsafe {
        put(&mut to.d, halves(sup));
        put(&mut to.m, negative(halves(sup.add(32))));
        for g in 0..2 {
            let both = _mm256_cvtepu8_epi16(_mm_loadu_si128(sup.add(64 + 32 * b + 16 * g).cast()));
            put_pairs(to, g, _mm256_and_si256(both, _mm256_set1_epi16(15)));
            _mm256_storeu_si256(to.o.as_mut_ptr().cast::<__m256i>().add(g), _mm256_srli_epi16::<4>(both));
        }
    }
}

/// The bits of a plane that belong to step `t`, each code's at bit `at` of its byte.
#[inline(always)]
fn plane<const WIDTH: i32>(w: __m256i, t: i32, at: i32) -> __m256i {
    let mask = ((1 << WIDTH) - 1) << at;
    let shift = at - WIDTH * t;
    // SAFETY: only called from functions with AVX2; bits that cross bytes are masked away.
    unsafe {
        let count = _mm_cvtsi32_si128(shift.abs());
        let moved = match shift {
            0 => w,
            1.. => _mm256_sll_epi16(w, count),
            _ => _mm256_srl_epi16(w, count),
        };
        _mm256_and_si256(moved, _mm256_set1_epi8(mask as i8))
    }
}

/// Codes in a nibble plane, with the bits above the nibble from a second plane of `HIGH` (0, 1 or 2) bits a code.
///
/// # Safety
/// Needs AVX2; `from` has 256 + 64 * HIGH bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn nibbles<const HIGH: usize>(from: *const u8, to: &mut Block) {
    let to = to.codes.as_mut_ptr();
    let mask = _mm256_set1_epi8(15);
    for g in 0..2 {
        // SAFETY: chunks of 64 bytes inside `from` and the 512 bytes of codes.
        unsafe {
            let high = |c: usize| _mm256_loadu_si256(from.add(NIBBLES + 64 * c + 32 * g).cast());
            let planes = match HIGH {
                0 => [_mm256_setzero_si256(); 2],
                1 => [high(0); 2],
                _ => [high(0), high(1)],
            };
            macro_rules! chunk {
                ($c:literal) => {{
                    let w = _mm256_loadu_si256(from.add(64 * $c + 32 * g).cast());
                    let mut low = _mm256_and_si256(w, mask);
                    let mut top = _mm256_and_si256(_mm256_srli_epi16::<4>(w), mask);
                    if HIGH == 1 {
                        low = _mm256_or_si256(low, plane::<1>(planes[0], $c, 4));
                        top = _mm256_or_si256(top, plane::<1>(planes[0], 4 + $c, 4));
                    }
                    if HIGH == 2 {
                        low = _mm256_or_si256(low, plane::<2>(planes[0], $c, 4));
                        top = _mm256_or_si256(top, plane::<2>(planes[1], $c, 4));
                    }
                    _mm256_storeu_si256(to.add(64 * $c + 32 * g).cast(), low);
                    _mm256_storeu_si256(to.add(64 * (4 + $c) + 32 * g).cast(), top);
                }};
            }
            chunk!(0);
            chunk!(1);
            chunk!(2);
            chunk!(3);
        }
    }
}

/// Codes in a nibble plane that are indices of a table of bytes; their magnitudes too if `SPLIT`.
///
/// # Safety
/// Needs AVX2; `from` has 256 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn looked_up<const SPLIT: bool>(from: *const u8, table: &[i8; 16], to: &mut Block) {
    let (codes, magnitudes) = (to.codes.as_mut_ptr(), to.magnitudes.as_mut_ptr());
    let mask = _mm256_set1_epi8(15);
    // SAFETY: chunks of 32 bytes inside `from` and the 512 bytes of codes and of magnitudes.
    unsafe {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
        for c in 0..8 {
            let w = _mm256_loadu_si256(from.add(32 * c).cast());
            let low = _mm256_shuffle_epi8(table, _mm256_and_si256(w, mask));
            let top = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16::<4>(w), mask));
            for (at, code) in [(32 * c, low), (256 + 32 * c, top)] {
                _mm256_storeu_si256(codes.add(at).cast(), code);
                if SPLIT {
                    _mm256_storeu_si256(magnitudes.add(at).cast(), _mm256_abs_epi8(code));
                }
            }
        }
    }
}

/// Magnitudes of signed codes that stay where they are.
///
/// # Safety
/// Needs AVX2; `from` has 512 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn magnitudes(from: *const u8, to: &mut Block) {
    let to = to.magnitudes.as_mut_ptr();
    for at in (0..512).step_by(32) {
        // SAFETY: 32 bytes below 512 on both sides.
        unsafe {
            let code = _mm256_loadu_si256(from.add(at).cast());
            _mm256_storeu_si256(to.add(at).cast(), _mm256_abs_epi8(code));
        }
    }
}

/// Codes in a plane of 2 bits a code.
///
/// # Safety
/// Needs AVX2; `from` has 128 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn pairs(from: *const u8, to: &mut Block) {
    let to = to.codes.as_mut_ptr();
    for g in 0..2 {
        // SAFETY: chunks of 64 bytes inside `from` and the 512 bytes of codes.
        unsafe {
            let planes: [__m256i; 2] = [
                _mm256_loadu_si256(from.add(32 * g).cast()),
                _mm256_loadu_si256(from.add(64 + 32 * g).cast()),
            ];
            macro_rules! step {
                ($t:literal) => {
                    let code = plane::<2>(planes[$t / 4], $t % 4, 0);
                    _mm256_storeu_si256(to.add(64 * $t + 32 * g).cast(), code);
                };
            }
            step!(0);
            step!(1);
            step!(2);
            step!(3);
            step!(4);
            step!(5);
            step!(6);
            step!(7);
        }
    }
}

/// Codes of 3 bits.
///
/// # Safety
/// Needs AVX2; `from` has 192 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn triples(from: *const u8, to: &mut Block) {
    let to = to.codes.as_mut_ptr();
    let mask = |bits: i8| _mm256_set1_epi8(bits);
    for g in 0..2 {
        // SAFETY: chunks of 64 bytes inside `from` and the 512 bytes of codes.
        unsafe {
            let chunk = |c: usize| _mm256_loadu_si256(from.add(64 * c + 32 * g).cast());
            let (a, b, c) = (chunk(0), chunk(1), chunk(2));
            let low = _mm256_and_si256(_mm256_srli_epi16::<6>(a), mask(3));
            let middle = _mm256_and_si256(_mm256_srli_epi16::<4>(b), mask(12));
            let high = _mm256_and_si256(_mm256_srli_epi16::<2>(c), mask(48));
            let tops = _mm256_or_si256(_mm256_or_si256(low, middle), high);
            for (u, bits) in [a, b, c, tops].into_iter().enumerate() {
                let to = to.add(128 * u + 32 * g);
                _mm256_storeu_si256(to.cast(), _mm256_and_si256(bits, mask(7)));
                let second = _mm256_and_si256(_mm256_srli_epi16::<3>(bits), mask(7));
                _mm256_storeu_si256(to.add(64).cast(), second);
            }
        }
    }
}
