//! Decoding of file-order formats to small codes, 8 rows at a time, into the scratch of the GEMM kernels: grids (IQ1, IQ2,
//! IQ3) by table look-up, ternary digits by shifts and products. Owns how each format's bits become codes in registers;
//! what the codes mean is `hob_quant::int_block`. It must not know activations.
//!
//! Half a block (16 codes) of rows r and r + 4 share a register, so that unpacking dwords within its halves is all the
//! transposition there is. Helpers are `inline(always)`, which Rust does not allow beside `target_feature`: left to itself,
//! the compiler calls them and passes registers through memory.

use std::arch::x86_64::*;

use hob_quant::{Format, grids};

use super::gemm::Block;

/// Blocks of 32 in a superblock of any of these formats.
pub const BLOCKS: usize = 8;

/// What stored codes exceed codes by: all of them are within +-62.
const OFFSET: i8 = 64;

const IQ2_XXS: u8 = 0;
const IQ2_XS: u8 = 1;
const IQ2_S: u8 = 2;
const IQ3_XXS: u8 = 3;
const IQ3_S: u8 = 4;
const IQ1_S: u8 = 5;
const IQ1_M: u8 = 6;
const TQ1_0: u8 = 7;
const TQ2_0: u8 = 8;

/// The signs of eight codes as factors: -1 (255) or 1.
static SIGNS: [[u8; 8]; 128] = {
    let mut signs = [[1; 8]; 128];
    let mut i = 0;
    while i < 128 * 8 {
        if grids::EVEN_SIGNS[i / 8] >> (i % 8) & 1 == 1 {
            signs[i / 8][i % 8] = 255;
        }
        i += 1;
    }
    signs
};

/// The deltas of two grid points of IQ1, by their sign bits.
static DELTAS: [[i8; 16]; 4] = {
    let mut deltas = [[1; 16]; 4];
    let mut i = 0;
    while i < 4 * 16 {
        if (i / 16) >> (i % 16 / 8) & 1 == 1 {
            deltas[i / 16][i % 16] = -1;
        }
        i += 1;
    }
    deltas
};

/// Factors that bring digit n of a TQ1_0 byte to the top.
static POWERS: [[u16; 16]; 6] = {
    let mut powers = [[0; 16]; 6];
    let digits = [1, 3, 9, 27, 81];
    let mut i = 0;
    while i < 6 * 16 {
        // The last 16 weights of a superblock are four digits of four bytes.
        powers[i / 16][i % 16] = digits[if i / 16 < 5 { i / 16 } else { i % 16 / 4 }];
        i += 1;
    }
    powers
};

/// Whether there is a decoder for this format.
pub const fn decodes(format: Format) -> bool {
    use Format::*;
    matches!(format, IQ2XXS | IQ2XS | IQ2S | IQ3XXS | IQ3S | IQ1S | IQ1M | TQ1_0 | TQ2_0)
}

/// Decodes one superblock of 16 rows: codes + [`OFFSET`], `d` and sub-scales of its eight blocks.
///
/// # Safety
/// Needs AVX2, FMA and F16C; `rows` point to superblocks of `format`, one that [`decodes`] knows.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn superblock(format: Format, rows: &[*const u8; 16], to: &mut [Block; BLOCKS]) {
    macro_rules! go {
        ($format:ident) => {
            for half in 0..2 {
                let rows: &[*const u8; 8] = rows[8 * half..].first_chunk().expect("half of 16");
                eight::<$format>(rows, to, half);
            }
        };
    }
    // SAFETY: the caller's contract.
    unsafe {
        match format {
            Format::IQ2XXS => go!(IQ2_XXS),
            Format::IQ2XS => go!(IQ2_XS),
            Format::IQ2S => go!(IQ2_S),
            Format::IQ3XXS => go!(IQ3_XXS),
            Format::IQ3S => go!(IQ3_S),
            Format::IQ1S => go!(IQ1_S),
            Format::IQ1M => go!(IQ1_M),
            Format::TQ1_0 => go!(TQ1_0),
            _ => go!(TQ2_0),
        }
    }
}

/// Rows 8 * half.. of a superblock.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn eight<const F: u8>(rows: &[*const u8; 8], to: &mut [Block; BLOCKS], half: usize) {
    // SAFETY: the caller's contract; every access is to fields of `to` or to fixed offsets of a superblock.
    unsafe {
        // Integer scales first, so that their stores are done when they are loaded again as vectors.
        let mut ints = [[0u32; 8]; BLOCKS];
        let mut ds = [0u16; 8];
        for (r, &row) in rows.iter().enumerate() {
            ds[r] = scale_bits::<F>(row);
            for (i, ints) in ints.iter_mut().enumerate() {
                ints[r] = scale::<F>(row, i);
            }
        }
        for (i, to) in to.iter_mut().enumerate() {
            let codes = to.codes.as_mut_ptr().add(32 * half);
            for j in 0..2 {
                let mut v = [_mm256_setzero_si256(); 4];
                for r in 0..4 {
                    let codes = pair::<F>(rows[r], rows[r + 4], i, j);
                    v[r] = _mm256_add_epi8(codes, _mm256_set1_epi8(OFFSET));
                }
                let a = _mm256_unpacklo_epi32(v[0], v[1]);
                let b = _mm256_unpacklo_epi32(v[2], v[3]);
                let c = _mm256_unpackhi_epi32(v[0], v[1]);
                let d = _mm256_unpackhi_epi32(v[2], v[3]);
                let at = |t: usize| codes.add(64 * (4 * j + t)).cast();
                _mm256_store_si256(at(0), _mm256_unpacklo_epi64(a, b));
                _mm256_store_si256(at(1), _mm256_unpackhi_epi64(a, b));
                _mm256_store_si256(at(2), _mm256_unpacklo_epi64(c, d));
                _mm256_store_si256(at(3), _mm256_unpackhi_epi64(c, d));
            }
        }
        let factor = match F {
            IQ2_XXS | IQ2_XS | IQ2_S | IQ1_S | IQ1_M => 0.125,
            IQ3_XXS => 0.25,
            _ => 1.0,
        };
        let d = _mm256_mul_ps(_mm256_cvtph_ps(_mm_loadu_si128(ds.as_ptr().cast())), _mm256_set1_ps(factor));
        for (to, ints) in to.iter_mut().zip(&ints) {
            let k = _mm256_loadu_si256(ints.as_ptr().cast());
            let one = _mm256_set1_epi32(0x0001_0001);
            // Scales per 16 are integers of the kernel, scales per 32 a factor of d: exact either way.
            let (d, s) = if per_16(F) {
                let (low, high) =
                    (_mm256_and_si256(k, _mm256_set1_epi32(0xffff)), _mm256_srli_epi32::<16>(k));
                (d, [low, high].map(|s| _mm256_or_si256(s, _mm256_slli_epi32::<16>(s))))
            } else {
                (_mm256_mul_ps(d, _mm256_cvtepi32_ps(k)), [one; 2])
            };
            _mm256_store_ps(to.d.as_mut_ptr().add(8 * half), d);
            for (to, s) in to.s.iter_mut().zip(s) {
                _mm256_store_si256(to.as_mut_ptr().add(8 * half).cast(), s);
            }
        }
    }
}

const fn per_16(f: u8) -> bool {
    matches!(f, IQ2_XS | IQ2_S | IQ1_M)
}

#[inline(always)]
unsafe fn u16_at(b: *const u8, at: usize) -> u32 {
    // SAFETY: the caller stays inside a superblock.
    u32::from(u16::from_le(unsafe { b.add(at).cast::<u16>().read_unaligned() }))
}

#[inline(always)]
unsafe fn u32_at(b: *const u8, at: usize) -> u32 {
    // SAFETY: the caller stays inside a superblock.
    u32::from_le(unsafe { b.add(at).cast::<u32>().read_unaligned() })
}

#[inline(always)]
unsafe fn byte(b: *const u8, at: usize) -> usize {
    // SAFETY: the caller stays inside a superblock.
    usize::from(unsafe { *b.add(at) })
}

/// The f16 bits of a superblock's d.
#[inline(always)]
unsafe fn scale_bits<const F: u8>(b: *const u8) -> u16 {
    // SAFETY: offsets of the format.
    unsafe {
        let bits = match F {
            TQ1_0 => u16_at(b, 52),
            TQ2_0 => u16_at(b, 64),
            IQ1_M => {
                let part = |i: usize| (u16_at(b, 48 + 2 * i) >> 12) << (4 * i);
                part(0) | part(1) | part(2) | part(3)
            }
            _ => u16_at(b, 0),
        };
        bits as u16
    }
}

/// The integer scale of block `i`; where there is one per 16 weights, that of the second half in the high 16 bits.
#[inline(always)]
unsafe fn scale<const F: u8>(b: *const u8, i: usize) -> u32 {
    // SAFETY: offsets of the format.
    unsafe {
        let odd = |scale: u32| 2 * scale + 1;
        match F {
            IQ2_XXS => odd(u32_at(b, 6 + 8 * i) >> 28),
            IQ3_XXS => odd(u32_at(b, 66 + 4 * i) >> 28),
            IQ3_S => odd(byte(b, 106 + i / 2) as u32 >> (4 * (i % 2)) & 15),
            IQ1_S => odd(u16_at(b, 34 + 2 * i) >> 12 & 7),
            IQ2_XS | IQ2_S => {
                let both = byte(b, i + if F == IQ2_XS { 66 } else { 74 }) as u32;
                odd(both & 15) | odd(both >> 4) << 16
            }
            IQ1_M => {
                let both = u16_at(b, 48 + i / 2 * 2) >> (6 * (i % 2));
                odd(both & 7) | odd(both >> 3 & 7) << 16
            }
            _ => 1,
        }
    }
}

/// Two entries of a table side by side.
#[inline(always)]
unsafe fn two(first: *const u8, second: *const u8) -> __m128i {
    // SAFETY: the caller has eight bytes at each.
    unsafe {
        let first = _mm_loadl_epi64(first.cast());
        _mm_castpd_si128(_mm_loadh_pd(_mm_castsi128_pd(first), second.cast()))
    }
}

/// Four entries of four bytes.
#[inline(always)]
unsafe fn four<const N: usize>(table: &[[u8; 4]; N], at: [usize; 4]) -> __m128i {
    // SAFETY: the caller's indices lie in the table.
    unsafe {
        let entry = |i: usize| table.as_ptr().add(at[i]).cast::<i32>().read_unaligned();
        let v = _mm_insert_epi32::<1>(_mm_cvtsi32_si128(entry(0)), entry(1));
        _mm_insert_epi32::<3>(_mm_insert_epi32::<2>(v, entry(2)), entry(3))
    }
}

/// The 16 signs of two groups of seven bits.
#[inline(always)]
unsafe fn even_signs(first: u32, second: u32) -> __m128i {
    let at = |i: u32| SIGNS[(i & 127) as usize].as_ptr();
    // SAFETY: entries of eight bytes.
    unsafe { two(at(first), at(second)) }
}

/// The signs of two times 16 codes, one bit each, as factors.
#[inline(always)]
unsafe fn full_signs(low: u32, high: u32) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe {
        let words = _mm256_set_m128i(_mm_set1_epi16(high as i16), _mm_set1_epi16(low as i16));
        let spread = _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
        let bits = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let words = _mm256_shuffle_epi8(words, _mm256_broadcastsi128_si256(spread));
        let set = _mm256_cmpeq_epi8(_mm256_and_si256(words, bits), bits);
        _mm256_or_si256(set, _mm256_set1_epi8(1))
    }
}

/// Codes 16j.. of block `i` of two rows, one row in each half.
#[inline(always)]
unsafe fn pair<const F: u8>(b0: *const u8, b1: *const u8, i: usize, j: usize) -> __m256i {
    // SAFETY: offsets of the format; indices are below their tables' lengths by their number of bits.
    unsafe {
        match F {
            TQ1_0 => return digits(b0, b1, 32 * i + 16 * j),
            TQ2_0 => {
                let at = 32 * (i / 4) + 16 * j;
                let v =
                    _mm256_set_m128i(_mm_loadu_si128(b1.add(at).cast()), _mm_loadu_si128(b0.add(at).cast()));
                let v = _mm256_srl_epi16(v, _mm_cvtsi32_si128(2 * (i % 4) as i32));
                return _mm256_sub_epi8(_mm256_and_si256(v, _mm256_set1_epi8(3)), _mm256_set1_epi8(1));
            }
            _ => {}
        }
        let v = _mm256_set_m128i(points::<F>(b1, i, j), points::<F>(b0, i, j));
        match F {
            IQ2_XXS | IQ2_XS | IQ3_XXS => {
                _mm256_sign_epi8(v, _mm256_set_m128i(signs::<F>(b1, i, j), signs::<F>(b0, i, j)))
            }
            IQ2_S | IQ3_S => {
                let at = 4 * i + 2 * j + if F == IQ2_S { 34 } else { 74 };
                _mm256_sign_epi8(v, full_signs(u16_at(b0, at), u16_at(b1, at)))
            }
            _ => {
                let v = _mm256_add_epi8(v, v);
                let v = _mm256_add_epi8(v, v);
                let delta = _mm256_set_m128i(signs::<F>(b1, i, j), signs::<F>(b0, i, j));
                _mm256_add_epi8(_mm256_add_epi8(v, v), delta)
            }
        }
    }
}

/// The grid points of codes 16j.. of block `i`.
#[inline(always)]
unsafe fn points<const F: u8>(b: *const u8, i: usize, j: usize) -> __m128i {
    // SAFETY: as in `pair`.
    unsafe {
        match F {
            IQ2_XXS => {
                let at = |n: usize| grids::IQ2_XXS.as_ptr().add(byte(b, 2 + 8 * i + 2 * j + n)).cast();
                two(at(0), at(1))
            }
            IQ2_XS => {
                let at = |n: usize| {
                    let index = u16_at(b, 2 + 8 * i + 4 * j + 2 * n) & 511;
                    grids::IQ2_XS.as_ptr().add(index as usize).cast()
                };
                two(at(0), at(1))
            }
            IQ2_S => {
                let high = byte(b, 66 + i) >> (4 * j);
                let at = |n: usize| {
                    let index = byte(b, 2 + 4 * i + 2 * j + n) | (high >> (2 * n) & 3) << 8;
                    grids::IQ2_S.as_ptr().add(index).cast()
                };
                two(at(0), at(1))
            }
            IQ3_XXS => {
                let first = 2 + 8 * i + 4 * j;
                four(&grids::IQ3_XXS, std::array::from_fn(|n| byte(b, first + n)))
            }
            IQ3_S => {
                let (first, high) = (2 + 8 * i + 4 * j, byte(b, 66 + i) >> (4 * j));
                four(&grids::IQ3_S, std::array::from_fn(|n| byte(b, first + n) | (high >> n & 1) << 8))
            }
            _ => {
                let (first, high, step) = if F == IQ1_S {
                    (2 + 4 * i + 2 * j, (u16_at(b, 34 + 2 * i) >> (6 * j)) as usize, 3)
                } else {
                    (4 * i + 2 * j, byte(b, 32 + 2 * i + j), 4)
                };
                let at = |n: usize| {
                    let index = byte(b, first + n) | (high >> (step * n) & 7) << 8;
                    grids::IQ1.as_ptr().add(index).cast()
                };
                two(at(0), at(1))
            }
        }
    }
}

/// What is stored of the signs of codes 16j.. of block `i`: factors, for IQ1 addends.
#[inline(always)]
unsafe fn signs<const F: u8>(b: *const u8, i: usize, j: usize) -> __m128i {
    // SAFETY: as in `pair`.
    unsafe {
        match F {
            IQ2_XXS | IQ3_XXS => {
                let packed = if F == IQ2_XXS { u32_at(b, 6 + 8 * i) } else { u32_at(b, 66 + 4 * i) };
                even_signs(packed >> (14 * j), packed >> (14 * j + 7))
            }
            IQ2_XS => {
                let at = 2 + 8 * i + 4 * j;
                even_signs(u16_at(b, at) >> 9, u16_at(b, at + 2) >> 9)
            }
            _ => {
                let minus = if F == IQ1_S {
                    3 * (u16_at(b, 34 + 2 * i) >> 15) as usize
                } else {
                    let high = byte(b, 32 + 2 * i + j);
                    (high >> 3 & 1) | (high >> 6 & 2)
                };
                _mm_loadu_si128(DELTAS[minus].as_ptr().cast())
            }
        }
    }
}

/// TQ1_0: digits k.. k + 16 of two rows, minus 1.
#[inline(always)]
unsafe fn digits(b0: *const u8, b1: *const u8, k: usize) -> __m256i {
    let (at, power) = match k {
        ..160 => (k % 32, k / 32),
        160..240 => (32, (k - 160) / 16),
        _ => (48, 5),
    };
    // SAFETY: the bytes of these digits lie inside the superblock.
    unsafe {
        let mut digits = [_mm256_setzero_si256(); 2];
        for (digits, b) in digits.iter_mut().zip([b0, b1]) {
            let bytes = if power == 5 {
                _mm_set1_epi32(b.add(at).cast::<i32>().read_unaligned())
            } else {
                _mm_loadu_si128(b.add(at).cast())
            };
            let powers = _mm256_loadu_si256(POWERS[power].as_ptr().cast());
            let rest = _mm256_mullo_epi16(_mm256_cvtepu8_epi16(bytes), powers);
            let rest = _mm256_and_si256(rest, _mm256_set1_epi16(255));
            *digits = _mm256_srli_epi16::<8>(_mm256_mullo_epi16(rest, _mm256_set1_epi16(3)));
        }
        let both = _mm256_packus_epi16(digits[0], digits[1]);
        _mm256_sub_epi8(_mm256_permute4x64_epi64::<0b11_01_10_00>(both), _mm256_set1_epi8(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::linear::avx2::gemm::Scratch;
    use hob_testkit::guard::{Edge, GuardedBuf};
    use hob_testkit::rng::Rng;

    /// Rows end (or begin) at an inaccessible page: a load beyond a superblock is a fault.
    #[test]
    fn superblocks_decode_to_their_integer_blocks() {
        if !Isa::Avx2.available() {
            eprintln!("skipped: no avx2");
            return;
        }
        for &format in Format::ALL.iter().filter(|&&f| decodes(f)) {
            for edge in [Edge::Start, Edge::End] {
                let mut rng = Rng::for_label(5, format.name());
                let bytes: [Vec<u8>; 16] = std::array::from_fn(|_| {
                    let mut bytes = rng.bytes(format.block_bytes());
                    // A finite d wherever its f16 lies.
                    bytes.iter_mut().for_each(|b| *b &= 0xbb);
                    bytes
                });
                let guarded = bytes.each_ref().map(|row| GuardedBuf::from_bytes(row, edge));
                let rows = guarded.each_ref().map(|row| row.as_bytes().as_ptr());
                let mut scratch = Scratch::new();
                let to = scratch.blocks.first_chunk_mut::<BLOCKS>().expect("a superblock");
                // SAFETY: AVX2 was detected; the rows are superblocks of the format.
                unsafe { superblock(format, &rows, to) };
                for (r, row) in bytes.iter().enumerate() {
                    for (b, found) in to.iter().enumerate() {
                        let want = hob_quant::int_block(format, row, b).expect("a block");
                        let at = format!("{format} row {r} block {b}");
                        for (k, code) in want.codes.iter().enumerate() {
                            let found = found.codes[k / 4 * 64 + r * 4 + k % 4] as i8 - OFFSET;
                            assert_eq!(found, *code, "{at} code {k}");
                        }
                        assert_eq!(found.d[r].to_bits(), want.d.to_bits(), "{at} d");
                        let scales = [found.s[0][r], found.s[1][r]];
                        assert_eq!(scales, want.scales.map(|s| [s; 2]), "{at} scales");
                    }
                }
            }
        }
    }
}
