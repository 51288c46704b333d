//! The inner loop of a register tile: words of one, two or three rows, each times some vectors. In assembly, because the
//! compiler, reordering additions and loads, keeps sums in memory, and works out all addresses of the unrolled loop
//! before it starts (half the speed).

use std::arch::asm;
use std::arch::x86_64::*;

use super::Sums;

/// Words of some rows.
#[derive(Copy, Clone)]
pub struct Words {
    pub at: *const u32,
    /// Bytes from a row to the next.
    pub apart: usize,
    /// Bytes from a word to the next.
    pub step: usize,
}

/// Vectors that lie side by side, `count` times `step` bytes apart.
#[derive(Copy, Clone)]
pub struct Steps {
    pub at: *const u8,
    pub step: usize,
    pub count: usize,
}

/// # Safety
/// Needs AVX2; 32 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load(v: *const u8) -> __m256i {
    // SAFETY: the caller's word.
    unsafe { _mm256_loadu_si256(v.cast()) }
}

/// 16 bytes as i16.
///
/// # Safety
/// Needs AVX2; 16 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn widen_bytes(v: *const u8) -> __m256i {
    // SAFETY: the caller's word.
    unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(v.cast())) }
}

/// Low and high nibbles of 32 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn split(bytes: __m256i) -> [__m256i; 2] {
    let mask = _mm256_set1_epi8(15);
    [_mm256_and_si256(bytes, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask)]
}

/// Low and high codes of 32 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn split_codes(bytes: __m256i) -> [__m256i; 2] {
    let ([low, high], eight) = (split(bytes), _mm256_set1_epi8(8));
    [_mm256_sub_epi8(low, eight), _mm256_sub_epi8(high, eight)]
}

/// One vector of a step: `$x` and `$y` make products of the first rows in `t`, `$z` the last row's in `v`. Its sums are
/// `$a`, `$b` and `$c`.
macro_rules! vector {
    ($load:expr, $x:literal, $z:literal, $add:literal, $a:literal, $c:literal) => {
        concat!(
            $load, "\n", $x, "\n", $add, " {", $a, "}, {", $a, "}, {t}\n", $z, "\n", $add, " {", $c, "}, {",
            $c, "}, {v}\n"
        )
    };
    ($load:expr, $x:literal, $y:literal, $z:literal, $add:literal, $a:literal, $b:literal, $c:literal) => {
        concat!(
            $load, "\n", $x, "\n", $y, "\n", $z, "\n", $add, " {", $a, "}, {", $a, "}, {t}\n", $add, " {",
            $b, "}, {", $b, "}, {u}\n", $add, " {", $c, "}, {", $c, "}, {v}\n"
        )
    };
}

/// Adds the steps of one word per row.
macro_rules! step {
    (
        $(#[$doc:meta])* $name:ident: $load:literal at $size:literal,
        $x:literal, $y:literal, $y_last:literal, $z_last:literal, $add:literal;
        $one:expr, $plus:ident
    ) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// Needs AVX2; the words, and the steps of `P` vectors. Two rows have four vectors, three have two.
        #[inline]
        #[target_feature(enable = "avx2,fma,f16c")]
        pub unsafe fn $name<const R: usize, const P: usize>(sums: &mut Sums<R, P>, words: Words, v: Steps) {
            // SAFETY: reads what the caller vouches for, writes registers only.
            unsafe {
                match &mut sums[..] {
                    [a, b, c] => asm!(
                        "2:",
                        "vpbroadcastd {x}, dword ptr [{words}]",
                        "vpbroadcastd {y}, dword ptr [{words} + {apart}]",
                        "vpbroadcastd {z}, dword ptr [{words} + 2 * {apart}]",
                        vector!(concat!($load, " [{at}]"), $x, $y, $z_last, $add, "a0", "b0", "c0"),
                        vector!(concat!($load, " [{at} + ", $size, "]"), $x, $y, $z_last, $add, "a1", "b1", "c1"),
                        "add {words}, {next}", "add {at}, {step}", "dec {count}", "jnz 2b",
                        words = inout(reg) words.at => _, apart = in(reg) words.apart, next = in(reg) words.step,
                        at = inout(reg) v.at => _, step = in(reg) v.step, count = inout(reg) v.count => _,
                        x = out(ymm_reg) _, y = out(ymm_reg) _, z = out(ymm_reg) _,
                        v = out(ymm_reg) _, t = out(ymm_reg) _, u = out(ymm_reg) _,
                        a0 = inout(ymm_reg) a[0], a1 = inout(ymm_reg) a[1],
                        b0 = inout(ymm_reg) b[0], b1 = inout(ymm_reg) b[1],
                        c0 = inout(ymm_reg) c[0], c1 = inout(ymm_reg) c[1],
                        options(pure, readonly, nostack),
                    ),
                    [a, b] => asm!(
                        "2:",
                        "vpbroadcastd {x}, dword ptr [{words}]",
                        "vpbroadcastd {y}, dword ptr [{words} + {apart}]",
                        vector!(concat!($load, " [{at}]"), $x, $y_last, $add, "a0", "b0"),
                        vector!(concat!($load, " [{at} + ", $size, "]"), $x, $y_last, $add, "a1", "b1"),
                        vector!(concat!($load, " [{at} + 2 * ", $size, "]"), $x, $y_last, $add, "a2", "b2"),
                        vector!(concat!($load, " [{at} + 3 * ", $size, "]"), $x, $y_last, $add, "a3", "b3"),
                        "add {words}, {next}", "add {at}, {step}", "dec {count}", "jnz 2b",
                        words = inout(reg) words.at => _, apart = in(reg) words.apart, next = in(reg) words.step,
                        at = inout(reg) v.at => _, step = in(reg) v.step, count = inout(reg) v.count => _,
                        x = out(ymm_reg) _, y = out(ymm_reg) _, v = out(ymm_reg) _, t = out(ymm_reg) _,
                        a0 = inout(ymm_reg) a[0], a1 = inout(ymm_reg) a[1],
                        a2 = inout(ymm_reg) a[2], a3 = inout(ymm_reg) a[3],
                        b0 = inout(ymm_reg) b[0], b1 = inout(ymm_reg) b[1],
                        b2 = inout(ymm_reg) b[2], b3 = inout(ymm_reg) b[3],
                        options(pure, readonly, nostack),
                    ),
                    _ => {
                        for i in 0..v.count {
                            let word = words.at.byte_add(i * words.step).read_unaligned();
                            let x = _mm256_set1_epi32(word as i32);
                            for p in 0..P {
                                sums[0][p] = $plus(sums[0][p], $one(v.at.add(i * v.step + $size * p), x));
                            }
                        }
                    }
                }
            }
        }
    };
}

step! {
    /// Signed words times unsigned bytes.
    quads_of_k: "vmovdqa {v}, ymmword ptr" at 32,
    "vpmaddubsw {t}, {v}, {x}", "vpmaddubsw {u}, {v}, {y}", "vpmaddubsw {v}, {v}, {y}", "vpmaddubsw {v}, {v}, {z}",
    "vpaddw"; |v, x| _mm256_maddubs_epi16(load(v), x), _mm256_add_epi16
}
step! {
    /// Unsigned words times signed bytes.
    quads_of_v: "vmovdqa {v}, ymmword ptr" at 32,
    "vpmaddubsw {t}, {x}, {v}", "vpmaddubsw {u}, {y}, {v}", "vpmaddubsw {v}, {y}, {v}", "vpmaddubsw {v}, {z}, {v}",
    "vpaddw"; |v, x| _mm256_maddubs_epi16(x, load(v)), _mm256_add_epi16
}
step! {
    /// Pairs of i16 times pairs of bytes.
    pairs: "vpmovsxbw {v}, xmmword ptr" at 16,
    "vpmaddwd {t}, {v}, {x}", "vpmaddwd {u}, {v}, {y}", "vpmaddwd {v}, {v}, {y}", "vpmaddwd {v}, {v}, {z}",
    "vpaddd"; |v, x| _mm256_madd_epi16(widen_bytes(v), x), _mm256_add_epi32
}

/// One vector of [`nibbles`]: its low nibbles with the words `x0`, `y0`, `z0` and its high ones with `x1`, `y1`, `z1`. `n`
/// holds either while they are multiplied.
macro_rules! nibble_vector {
    ($at:expr, $sign:literal, [$($low:expr),*], [$($high:expr),*]) => {
        concat!(
            "vmovdqu {v}, ymmword ptr [{at} + ", $at, "]\n",
            "vpand {n}, {v}, {mask}\n", $sign, "\n", $($low, "\n",)*
            "vpsrlw {v}, {v}, 4\n",
            "vpand {n}, {v}, {mask}\n", $sign, "\n", $($high, "\n",)*
        )
    };
}

/// A row's product, in `$t`, joins its sum.
macro_rules! product {
    ($mul:literal, $t:literal, $sum:literal) => {
        concat!($mul, "\nvpaddw {", $sum, "}, {", $sum, "}, {", $t, "}")
    };
}

/// Adds the steps of two words per row, on vectors whose bytes hold two nibbles: first words with the low ones.
macro_rules! nibbles {
    (
        $(#[$doc:meta])* $name:ident: $sign:literal,
        $x0:literal, $y0:literal, $x1:literal, $y1:literal,
        $y0_last:literal, $z0_last:literal, $y1_last:literal, $z1_last:literal;
        $split:ident, $one:expr
    ) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// Needs AVX2; the words, and the steps of `P` vectors. Two rows have four vectors, three have two.
        #[inline]
        #[target_feature(enable = "avx2,fma,f16c")]
        pub unsafe fn $name<const R: usize, const P: usize>(sums: &mut Sums<R, P>, words: Words, v: Steps) {
            static EIGHT: [u64; 4] = [0x0808_0808_0808_0808; 4];
            let mask = _mm256_set1_epi8(15);
            // SAFETY: reads what the caller vouches for, writes registers only.
            unsafe {
                match &mut sums[..] {
                    [a, b, c] => asm!(
                        "2:",
                        "vpbroadcastd {x0}, dword ptr [{low}]",
                        "vpbroadcastd {y0}, dword ptr [{low} + {apart}]",
                        "vpbroadcastd {z0}, dword ptr [{low} + 2 * {apart}]",
                        "vpbroadcastd {x1}, dword ptr [{high}]",
                        "vpbroadcastd {y1}, dword ptr [{high} + {apart}]",
                        "vpbroadcastd {z1}, dword ptr [{high} + 2 * {apart}]",
                        nibble_vector!("0", $sign,
                            [product!($x0, "t", "a0"), product!($y0, "t", "b0"), product!($z0_last, "n", "c0")],
                            [product!($x1, "t", "a0"), product!($y1, "t", "b0"), product!($z1_last, "n", "c0")]),
                        nibble_vector!("32", $sign,
                            [product!($x0, "t", "a1"), product!($y0, "t", "b1"), product!($z0_last, "n", "c1")],
                            [product!($x1, "t", "a1"), product!($y1, "t", "b1"), product!($z1_last, "n", "c1")]),
                        "add {low}, {next}", "add {high}, {next}", "add {at}, {step}", "dec {count}", "jnz 2b",
                        "/* {eight} */",
                        low = inout(reg) words.at => _, high = inout(reg) words.at.byte_add(words.step) => _,
                        apart = in(reg) words.apart, next = in(reg) 2 * words.step,
                        at = inout(reg) v.at => _, step = in(reg) v.step, count = inout(reg) v.count => _,
                        eight = in(reg) &raw const EIGHT, mask = in(ymm_reg) mask,
                        x0 = out(ymm_reg) _, y0 = out(ymm_reg) _, z0 = out(ymm_reg) _,
                        x1 = out(ymm_reg) _, y1 = out(ymm_reg) _, z1 = out(ymm_reg) _,
                        v = out(ymm_reg) _, n = out(ymm_reg) _, t = out(ymm_reg) _,
                        a0 = inout(ymm_reg) a[0], a1 = inout(ymm_reg) a[1],
                        b0 = inout(ymm_reg) b[0], b1 = inout(ymm_reg) b[1],
                        c0 = inout(ymm_reg) c[0], c1 = inout(ymm_reg) c[1],
                        options(pure, readonly, nostack),
                    ),
                    [a, b] => asm!(
                        "2:",
                        "vpbroadcastd {x0}, dword ptr [{low}]",
                        "vpbroadcastd {y0}, dword ptr [{low} + {apart}]",
                        "vpbroadcastd {x1}, dword ptr [{high}]",
                        "vpbroadcastd {y1}, dword ptr [{high} + {apart}]",
                        nibble_vector!("0", $sign,
                            [product!($x0, "t", "a0"), product!($y0_last, "n", "b0")],
                            [product!($x1, "t", "a0"), product!($y1_last, "n", "b0")]),
                        nibble_vector!("32", $sign,
                            [product!($x0, "t", "a1"), product!($y0_last, "n", "b1")],
                            [product!($x1, "t", "a1"), product!($y1_last, "n", "b1")]),
                        nibble_vector!("64", $sign,
                            [product!($x0, "t", "a2"), product!($y0_last, "n", "b2")],
                            [product!($x1, "t", "a2"), product!($y1_last, "n", "b2")]),
                        nibble_vector!("96", $sign,
                            [product!($x0, "t", "a3"), product!($y0_last, "n", "b3")],
                            [product!($x1, "t", "a3"), product!($y1_last, "n", "b3")]),
                        "add {low}, {next}", "add {high}, {next}", "add {at}, {step}", "dec {count}", "jnz 2b",
                        "/* {eight} */",
                        low = inout(reg) words.at => _, high = inout(reg) words.at.byte_add(words.step) => _,
                        apart = in(reg) words.apart, next = in(reg) 2 * words.step,
                        at = inout(reg) v.at => _, step = in(reg) v.step, count = inout(reg) v.count => _,
                        eight = in(reg) &raw const EIGHT, mask = in(ymm_reg) mask,
                        x0 = out(ymm_reg) _, y0 = out(ymm_reg) _, x1 = out(ymm_reg) _, y1 = out(ymm_reg) _,
                        v = out(ymm_reg) _, n = out(ymm_reg) _, t = out(ymm_reg) _,
                        a0 = inout(ymm_reg) a[0], a1 = inout(ymm_reg) a[1],
                        a2 = inout(ymm_reg) a[2], a3 = inout(ymm_reg) a[3],
                        b0 = inout(ymm_reg) b[0], b1 = inout(ymm_reg) b[1],
                        b2 = inout(ymm_reg) b[2], b3 = inout(ymm_reg) b[3],
                        options(pure, readonly, nostack),
                    ),
                    _ => {
                        for i in 0..v.count {
                            let two = words.at.byte_add(2 * i * words.step);
                            let two = [two, two.byte_add(words.step)].map(|w| w.read_unaligned() as i32);
                            for p in 0..P {
                                let n = $split(load(v.at.add(i * v.step + 32 * p)));
                                for (n, word) in n.into_iter().zip(two) {
                                    let x = _mm256_set1_epi32(word);
                                    sums[0][p] = _mm256_add_epi16(sums[0][p], $one(n, x));
                                }
                            }
                        }
                    }
                }
            }
        }
    };
}

nibbles! {
    /// Signed words times nibbles.
    nibbles_of_k: "",
    "vpmaddubsw {t}, {n}, {x0}", "vpmaddubsw {t}, {n}, {y0}", "vpmaddubsw {t}, {n}, {x1}", "vpmaddubsw {t}, {n}, {y1}",
    "vpmaddubsw {n}, {n}, {y0}", "vpmaddubsw {n}, {n}, {z0}", "vpmaddubsw {n}, {n}, {y1}", "vpmaddubsw {n}, {n}, {z1}";
    split, |n, x| _mm256_maddubs_epi16(n, x)
}
nibbles! {
    /// Unsigned words times nibbles.
    nibbles_of_v: "",
    "vpmaddubsw {t}, {x0}, {n}", "vpmaddubsw {t}, {y0}, {n}", "vpmaddubsw {t}, {x1}, {n}", "vpmaddubsw {t}, {y1}, {n}",
    "vpmaddubsw {n}, {y0}, {n}", "vpmaddubsw {n}, {z0}, {n}", "vpmaddubsw {n}, {y1}, {n}", "vpmaddubsw {n}, {z1}, {n}";
    split, |n, x| _mm256_maddubs_epi16(x, n)
}
nibbles! {
    /// Unsigned words times nibbles less 8.
    codes_of_v: "vpsubb {n}, {n}, ymmword ptr [{eight}]",
    "vpmaddubsw {t}, {x0}, {n}", "vpmaddubsw {t}, {y0}, {n}", "vpmaddubsw {t}, {x1}, {n}", "vpmaddubsw {t}, {y1}, {n}",
    "vpmaddubsw {n}, {y0}, {n}", "vpmaddubsw {n}, {z0}, {n}", "vpmaddubsw {n}, {y1}, {n}", "vpmaddubsw {n}, {z1}, {n}";
    split_codes, |n, x| _mm256_maddubs_epi16(x, n)
}
