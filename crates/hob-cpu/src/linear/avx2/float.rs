//! Register tiles of float products in 16 virtual lanes (two registers), bit-equal to `math::dot16`; conversion of
//! float formats. It must not know how K and the rows are walked (`linear/float/walk.rs`).

use std::arch::x86_64::*;

use hob_quant::Format;

use crate::linear::float::walk::{Packed, Part, Tile, Tiles};

const IS_F16: u8 = 0;
const IS_BF16: u8 = 1;
const IS_F32: u8 = 2;

const fn width(f: u8) -> usize {
    if f == IS_F32 { 4 } else { 2 }
}

/// Eight weights as f32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load8<const F: u8>(p: *const u8) -> __m256 {
    // SAFETY: the caller has eight weights at `p`.
    unsafe {
        match F {
            IS_F16 => _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
            IS_BF16 => {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            }
            _ => _mm256_loadu_ps(p.cast()),
        }
    }
}

unsafe fn scalar<const F: u8>(p: *const u8) -> f32 {
    // SAFETY: the caller has one weight at `p`.
    unsafe {
        match F {
            IS_F16 => half::f16::from_bits(u16::from_le(p.cast::<u16>().read_unaligned())).to_f32(),
            IS_BF16 => f32::from_bits(u32::from(u16::from_le(p.cast::<u16>().read_unaligned())) << 16),
            _ => p.cast::<f32>().read_unaligned(),
        }
    }
}

/// Prefetches what follows the 32 values at step `i` of a chunk, in `R` rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn prefetch<const F: u8, const R: usize>(p: &Part, i: usize) {
    for r in 0..R {
        for line in (0..32 * width(F)).step_by(64) {
            let next = p.next.wrapping_add(r * p.w.row + i * p.w.step + line);
            _mm_prefetch::<_MM_HINT_T0>(next.cast());
        }
    }
}

/// `R` weight rows by `N` activation rows, both halves of the lanes at once: the weights are read in order, and four sums
/// or more are in flight. For streaming with one or two activation rows.
///
/// # Safety
/// Needs AVX2, FMA and F16C, and everything [`Part`] describes.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn stream<const F: u8, const R: usize, const N: usize>(p: &Part) {
    let sums: *mut f32 = p.sums.cast();
    let at = |r: usize, n: usize, h: usize| (r * p.sums_stride + n) * 16 + 8 * h;
    let mut acc = [[[_mm256_setzero_ps(); 2]; N]; R];
    // SAFETY: the caller's contract.
    unsafe {
        for r in 0..R {
            for n in 0..N {
                acc[r][n] = [_mm256_load_ps(sums.add(at(r, n, 0))), _mm256_load_ps(sums.add(at(r, n, 1)))];
            }
        }
        let steps = p.len / 16;
        for pair in 0..steps.div_ceil(2) {
            prefetch::<F, R>(p, 2 * pair);
            // Two steps at a time: the loop's own instructions would take a place in every cycle otherwise.
            for i in 2 * pair..(2 * pair + 2).min(steps) {
                for h in 0..2 {
                    let w: [__m256; R] = std::array::from_fn(|r| {
                        load8::<F>(p.w.at.add(r * p.w.row + i * p.w.step + h * p.w.half))
                    });
                    for n in 0..N {
                        let v = _mm256_loadu_ps(p.x.add(n * p.x_stride + 16 * i + 8 * h));
                        for r in 0..R {
                            acc[r][n][h] = _mm256_fmadd_ps(w[r], v, acc[r][n][h]);
                        }
                    }
                }
            }
        }
        for r in 0..R {
            for n in 0..N {
                _mm256_store_ps(sums.add(at(r, n, 0)), acc[r][n][0]);
                _mm256_store_ps(sums.add(at(r, n, 1)), acc[r][n][1]);
            }
        }
    }
}

/// `R` weight rows by `N` activation rows: lanes 0..8 over the chunk, then lanes 8..16. One half at a time allows 4 x 3
/// sums in registers, 7 loads for 12 products; with both halves it is 10 for 12, and they meet in the same cache banks.
///
/// # Safety
/// Needs AVX2, FMA and F16C, and everything [`Part`] describes.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const F: u8, const R: usize, const N: usize, const AHEAD: bool>(p: &Part) {
    let steps = p.len / 16;
    for h in 0..2 {
        // SAFETY: the caller's contract.
        unsafe {
            let sums = p.sums.cast::<f32>().add(8 * h);
            let at = |r: usize, n: usize| (r * p.sums_stride + n) * 16;
            let mut acc = [[_mm256_setzero_ps(); N]; R];
            for r in 0..R {
                for n in 0..N {
                    acc[r][n] = _mm256_load_ps(sums.add(at(r, n)));
                }
            }
            let (w, x) = (p.w.at.add(h * p.w.half), p.x.add(8 * h));
            let mut i = 0;
            while i + 2 <= steps {
                if AHEAD && h == 0 {
                    prefetch::<F, R>(p, i);
                }
                half_step::<F, R, N>(w.add(i * p.w.step), p.w.row, (x.add(16 * i), p.x_stride), &mut acc);
                let i1 = i + 1;
                half_step::<F, R, N>(w.add(i1 * p.w.step), p.w.row, (x.add(16 * i1), p.x_stride), &mut acc);
                i += 2;
            }
            if i < steps {
                half_step::<F, R, N>(w.add(i * p.w.step), p.w.row, (x.add(16 * i), p.x_stride), &mut acc);
            }
            for r in 0..R {
                for n in 0..N {
                    _mm256_store_ps(sums.add(at(r, n)), acc[r][n]);
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn half_step<const F: u8, const R: usize, const N: usize>(
    w: *const u8,
    row: usize,
    x: (*const f32, usize),
    acc: &mut [[__m256; N]; R],
) {
    // SAFETY: the caller has eight values in each row.
    unsafe {
        let v: [__m256; N] = std::array::from_fn(|n| _mm256_loadu_ps(x.0.add(n * x.1)));
        for r in 0..R {
            let a = load8::<F>(w.add(r * row));
            for n in 0..N {
                acc[r][n] = _mm256_fmadd_ps(a, v[n], acc[r][n]);
            }
        }
    }
}

/// Eight lanes of four weight rows times three activation rows, at these offsets.
macro_rules! step {
    ($load:ident, $w:expr, $x:literal) => {
        concat!(
            "vmovups {v0}, ymmword ptr [{x} + ",
            $x,
            "]\n",
            "vmovups {v1}, ymmword ptr [{x} + {xs} + ",
            $x,
            "]\n",
            "vmovups {v2}, ymmword ptr [{x} + 2*{xs} + ",
            $x,
            "]\n",
            $load!("{w}", $w),
            row!("a0", "a1", "a2"),
            $load!("{w} + {ws}", $w),
            row!("a3", "a4", "a5"),
            $load!("{w} + 2*{ws}", $w),
            row!("a6", "a7", "a8"),
            $load!("{w} + {ws3}", $w),
            row!("a9", "a10", "a11"),
        )
    };
}

macro_rules! row {
    ($a:literal, $b:literal, $c:literal) => {
        concat!(
            "vfmadd231ps {",
            $a,
            "}, {b}, {v0}\n",
            "vfmadd231ps {",
            $b,
            "}, {b}, {v1}\n",
            "vfmadd231ps {",
            $c,
            "}, {b}, {v2}\n",
        )
    };
}

macro_rules! load_f32 {
    ($at:literal, $w:expr) => {
        concat!("vmovups {b}, ymmword ptr [", $at, " + ", $w, "]\n")
    };
}

macro_rules! load_f16 {
    ($at:literal, $w:expr) => {
        concat!("vcvtph2ps {b}, xmmword ptr [", $at, " + ", $w, "]\n")
    };
}

macro_rules! load_bf16 {
    ($at:literal, $w:expr) => {
        concat!("vpmovzxwd {b}, xmmword ptr [", $at, " + ", $w, "]\nvpslld {b}, {b}, 16\n")
    };
}

/// What two of the rows read next: 64 values of 2 bytes. The other half of the lanes prefetches the other two rows.
macro_rules! lines2 {
    () => {
        concat!(
            "prefetcht0 byte ptr [{n}]\nprefetcht0 byte ptr [{n} + 64]\n",
            "prefetcht0 byte ptr [{n} + {ws}]\nprefetcht0 byte ptr [{n} + {ws} + 64]",
        )
    };
}

/// [`lines2`] for values of 4 bytes.
macro_rules! lines4 {
    () => {
        concat!(
            lines2!(),
            "\nprefetcht0 byte ptr [{n} + 128]\nprefetcht0 byte ptr [{n} + 192]\n",
            "prefetcht0 byte ptr [{n} + {ws} + 128]\nprefetcht0 byte ptr [{n} + {ws} + 192]",
        )
    };
}

macro_rules! none {
    () => {
        "\n"
    };
}

/// [`tile`] for 4 x 3, the one that nearly all products go through. The loop is written out in assembly: its 16 values fill
/// the registers, and the compiler, reordering, spills some. `W`: bytes from step to step.
macro_rules! four_by_three {
    ($name:ident, $w:literal $w2:literal $w3:literal $w4:literal, $line:literal, $load:ident, $ahead:ident) => {
        /// # Safety
        /// Needs AVX2, FMA and F16C, and everything [`Part`] describes.
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn $name(p: &Part) {
            for h in 0..2 {
                // SAFETY: the caller's contract; the loops stay inside `p.len` values of each row.
                unsafe {
                    let sums = p.sums.cast::<f32>().add(8 * h);
                    let at = |r: usize, n: usize| sums.add((r * p.sums_stride + n) * 16);
                    let mut a: [__m256; 12] = std::array::from_fn(|i| _mm256_load_ps(at(i / 3, i % 3)));
                    let [a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11] = &mut a;
                    std::arch::asm!(
                        "test {c}, {c}",
                        "jz 3f",
                        "2:",
                        $ahead!(),
                        step!($load, "0", "0"),
                        step!($load, $w, "64"),
                        step!($load, $w2, "128"),
                        step!($load, $w3, "192"),
                        concat!("add {w}, ", $w4),
                        "add {x}, 256",
                        "add {n}, {step4}",
                        "dec {c}",
                        "jnz 2b",
                        "3:",
                        "test {d}, {d}",
                        "jz 5f",
                        "4:",
                        step!($load, "0", "0"),
                        concat!("add {w}, ", $w),
                        "add {x}, 64",
                        "dec {d}",
                        "jnz 4b",
                        "5:",
                        w = inout(reg) p.w.at.add(h * p.w.half) => _,
                        ws = in(reg) p.w.row,
                        ws3 = in(reg) 3 * p.w.row,
                        x = inout(reg) p.x.add(8 * h) => _,
                        xs = in(reg) 4 * p.x_stride,
                        n = inout(reg) p.next.wrapping_add(2 * h * p.w.row) => _,
                        step4 = const $line * 64,
                        c = inout(reg) p.len / 64 => _,
                        d = inout(reg) p.len / 16 % 4 => _,
                        a0 = inout(ymm_reg) *a0, a1 = inout(ymm_reg) *a1, a2 = inout(ymm_reg) *a2,
                        a3 = inout(ymm_reg) *a3, a4 = inout(ymm_reg) *a4, a5 = inout(ymm_reg) *a5,
                        a6 = inout(ymm_reg) *a6, a7 = inout(ymm_reg) *a7, a8 = inout(ymm_reg) *a8,
                        a9 = inout(ymm_reg) *a9, a10 = inout(ymm_reg) *a10, a11 = inout(ymm_reg) *a11,
                        v0 = out(ymm_reg) _, v1 = out(ymm_reg) _, v2 = out(ymm_reg) _, b = out(ymm_reg) _,
                        options(nostack, readonly),
                    );
                    for (i, a) in a.into_iter().enumerate() {
                        _mm256_store_ps(at(i / 3, i % 3), a);
                    }
                }
            }
        }
    };
}

four_by_three!(converted_4x3, 128 256 384 512, 4, load_f32, none);
four_by_three!(f32_4x3, 64 128 192 256, 4, load_f32, lines4);
four_by_three!(f16_4x3, 32 64 96 128, 2, load_f16, lines2);
four_by_three!(bf16_4x3, 32 64 96 128, 2, load_bf16, lines2);

macro_rules! tiles {
    ($f:ident, $a:literal, $full:ident) => {
        &[
            tile::<$f, 1, 1, $a>,
            tile::<$f, 1, 2, $a>,
            tile::<$f, 1, 3, $a>,
            tile::<$f, 2, 1, $a>,
            tile::<$f, 2, 2, $a>,
            tile::<$f, 2, 3, $a>,
            tile::<$f, 3, 1, $a>,
            tile::<$f, 3, 2, $a>,
            tile::<$f, 3, 3, $a>,
            tile::<$f, 4, 1, $a>,
            tile::<$f, 4, 2, $a>,
            $full,
        ]
    };
}

/// Tiles of 4 x 3, of weights in any layout.
const fn wide<const F: u8>(tiles: &'static [Tile]) -> Tiles {
    Tiles { rows: 4, acts: 3, tiles, scalar: scalar::<F>, width: width(F) }
}

/// Tiles of 2 x 2, of weights where they lie.
const fn narrow<const F: u8>() -> Tiles {
    let tiles =
        &const { [stream::<F, 1, 1> as Tile, stream::<F, 1, 2>, stream::<F, 2, 1>, stream::<F, 2, 2>] };
    Tiles { rows: 2, acts: 2, tiles, scalar: scalar::<F>, width: width(F) }
}

/// Tiles of converted weights.
pub const CONVERTED: Tiles = wide::<IS_F32>(tiles!(IS_F32, false, converted_4x3));

/// Tiles for F16, BF16 or F32 weights where they lie, with `acts` activation rows.
pub const fn direct(format: Format, acts: usize) -> Tiles {
    match (format, acts <= 2) {
        (Format::F16, true) => narrow::<IS_F16>(),
        (Format::F16, false) => wide::<IS_F16>(tiles!(IS_F16, true, f16_4x3)),
        (Format::BF16, true) => narrow::<IS_BF16>(),
        (Format::BF16, false) => wide::<IS_BF16>(tiles!(IS_BF16, true, bf16_4x3)),
        (_, true) => narrow::<IS_F32>(),
        (_, false) => wide::<IS_F32>(tiles!(IS_F32, true, f32_4x3)),
    }
}

/// Writes a row of F16, BF16 or F32 bytes in f32 to its place `row` in packed weights.
///
/// # Safety
/// Needs AVX2, FMA and F16C; `to` has room for the row.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn convert(format: Format, bytes: &[u8], to: &Packed, row: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        match format {
            Format::F16 => convert_as::<IS_F16>(bytes, to, row),
            Format::BF16 => convert_as::<IS_BF16>(bytes, to, row),
            _ => convert_as::<IS_F32>(bytes, to, row),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn convert_as<const F: u8>(bytes: &[u8], to: &Packed, row: usize) {
    let (from, len) = (bytes.as_ptr(), bytes.len() / width(F));
    // SAFETY: `to` has a place for every value of the row, eight lanes of which are adjacent.
    unsafe {
        for k in (0..len / 8 * 8).step_by(8) {
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(k * width(F) + 2048).cast());
            _mm256_storeu_ps(to.at.add(to.offset(row, k)), load8::<F>(from.add(k * width(F))));
        }
        for k in len / 8 * 8..len {
            *to.at.add(to.offset(row, k)) = scalar::<F>(from.add(k * width(F)));
        }
    }
}

/// `math::tree16` of eight sums of 16 lanes each, `stride` floats apart.
///
/// # Safety
/// Needs AVX2; reads seven strides and 16 floats, writes 8.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn fold8(from: *const f32, stride: usize, to: *mut f32) {
    // SAFETY: the caller's contract.
    unsafe {
        // Lane i with i + 8.
        let v: [__m256; 8] = std::array::from_fn(|r| {
            let p = from.add(r * stride);
            _mm256_add_ps(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8)))
        });
        // Lane i with i + 4: rows r and r + 4 share a register, one in each half.
        let v: [__m256; 4] = std::array::from_fn(|r| {
            let low = _mm256_permute2f128_ps::<0x20>(v[r], v[r + 4]);
            _mm256_add_ps(low, _mm256_permute2f128_ps::<0x31>(v[r], v[r + 4]))
        });
        // Lane i with i + 2, then with i + 1; the rows of a half end in order.
        let v: [__m256; 2] = std::array::from_fn(|r| {
            let low = _mm256_shuffle_ps::<0b01_00_01_00>(v[2 * r], v[2 * r + 1]);
            _mm256_add_ps(low, _mm256_shuffle_ps::<0b11_10_11_10>(v[2 * r], v[2 * r + 1]))
        });
        let low = _mm256_shuffle_ps::<0b10_00_10_00>(v[0], v[1]);
        _mm256_storeu_ps(to, _mm256_add_ps(low, _mm256_shuffle_ps::<0b11_01_11_01>(v[0], v[1])));
    }
}
