//! The kernels of both widths on arrays instead of registers, for machines without the instructions: what runs is the same
//! text, so its arithmetic, addresses and orders are tested wherever tests run. Each operation is what Intel's manual says
//! of the instruction, within 128 bits where that matters.

use std::arch::x86_64::{__m128, _mm_loadu_ps};

macro_rules! emulated {
    ($lanes:literal, k4: $k4:expr, k8: $k8:expr, v: $v:expr, rows: $($rows:literal)*) => {
        use super::super::*;
        use super::*;

        const LANES: usize = $lanes;

        #[derive(Copy, Clone)]
        pub struct F([f32; LANES]);
        #[derive(Copy, Clone)]
        pub struct I([i32; LANES]);

        fn zero_f() -> F { F([0.0; LANES]) }
        fn zero_i() -> I { I([0; LANES]) }
        fn set_f(x: f32) -> F { F([x; LANES]) }
        fn set_i(x: i32) -> I { I([x; LANES]) }
        fn set_b(x: i8) -> I { I([i32::from_ne_bytes([x as u8; 4]); LANES]) }
        fn zip(a: I, b: I, f: impl Fn(i32, i32) -> i32) -> I { I(std::array::from_fn(|i| f(a.0[i], b.0[i]))) }
        fn and(a: I, b: I) -> I { zip(a, b, |a, b| a & b) }
        fn srl4(x: I) -> I { I(x.0.map(|x| (x as u32 >> 4) as i32)) }
        fn to_f(x: I) -> F { F(x.0.map(|x| x as f32)) }
        fn mul(a: F, b: F) -> F { F(std::array::from_fn(|i| a.0[i] * b.0[i])) }
        fn fma(a: F, b: F, c: F) -> F { F(std::array::from_fn(|i| a.0[i].mul_add(b.0[i], c.0[i]))) }
        /// The second operand if either is NaN.
        fn max(a: F, b: F) -> F { F(std::array::from_fn(|i| if a.0[i] > b.0[i] { a.0[i] } else { b.0[i] })) }
        /// What does not fit becomes the smallest integer.
        fn to_i(x: F) -> I {
            I(x.0.map(|x| {
                let x = x.round_ties_even();
                if (-2147483648.0..2147483648.0).contains(&x) { x as i32 } else { i32::MIN }
            }))
        }
        /// Four products of an unsigned and a signed byte.
        fn dp(acc: I, a: I, b: I) -> I {
            I(std::array::from_fn(|i| {
                let (a, b) = (a.0[i].to_le_bytes(), b.0[i].to_le_bytes());
                let products = a.iter().zip(b).map(|(&a, b)| i32::from(a) * i32::from(b as i8));
                products.fold(acc.0[i], i32::wrapping_add)
            }))
        }
        /// Two products of signed words.
        fn dpw(acc: I, a: I, b: I) -> I {
            let product = |a: i32, b: i32| i32::from(a as i16) * i32::from(b as i16);
            I(std::array::from_fn(|i| {
                let (a, b) = (a.0[i], b.0[i]);
                acc.0[i].wrapping_add(product(a, b)).wrapping_add(product(a >> 16, b >> 16))
            }))
        }
        /// Within 128 bits: four words of `a`, then four of `b`.
        fn words(a: I, b: I, f: impl Fn(i32) -> u16) -> [u16; 2 * LANES] {
            std::array::from_fn(|i| {
                let from = if i % 8 < 4 { &a } else { &b };
                f(from.0[i / 8 * 4 + i % 4])
            })
        }
        fn shorts(a: I, b: I) -> I {
            let w = words(a, b, |x| x.clamp(-32768, 32767) as u16);
            I(std::array::from_fn(|i| (u32::from(w[2 * i]) | u32::from(w[2 * i + 1]) << 16) as i32))
        }
        fn bytes(w: [I; 4]) -> I {
            let unsigned = |x: i32| x.clamp(0, 65535) as u16;
            let (ab, cd) = (words(w[0], w[1], unsigned), words(w[2], w[3], unsigned));
            // Words are signed to the second step.
            let byte = |i: usize| {
                let from = if i % 16 < 8 { &ab } else { &cd };
                (from[i / 16 * 8 + i % 8] as i16).clamp(0, 255) as u8
            };
            I(std::array::from_fn(|i| i32::from_le_bytes(std::array::from_fn(|j| byte(4 * i + j)))))
        }
        fn nibbles() {}
        fn low_nibbles(_: (), x: I) -> I {
            I(x.0.map(|x| i32::from_le_bytes(x.to_le_bytes().map(|b| ((b & 15) as i8 - 8) as u8))))
        }
        fn maxima(a: F, b: F, c: F, d: F) -> __m128 {
            let m = [a, b, c, d].map(|x| x.0.into_iter().reduce(f32::max).unwrap());
            // SAFETY: four floats.
            unsafe { _mm_loadu_ps(m.as_ptr()) }
        }
        ops! {
            "sse2"
            values:
            memory:
            fn load(p: *const u8) -> I { I(p.cast::<[i32; LANES]>().read_unaligned()) }
            fn store(p: *mut u8, x: I) -> () { p.cast::<[i32; LANES]>().write_unaligned(x.0) }
            fn load_f(p: *const f32) -> F { F(p.cast::<[f32; LANES]>().read_unaligned()) }
            fn store_f(p: *mut f32, x: F) -> () { p.cast::<[f32; LANES]>().write_unaligned(x.0) }
            fn word(p: *const u8) -> I { set_i(p.cast::<i32>().read_unaligned()) }
            fn f16s(p: *const u8) -> F {
                F(p.cast::<[u16; LANES]>().read_unaligned().map(|h| half::f16::from_bits(h).to_f32()))
            }
            fn widen(p: *const u8) -> I {
                let b = p.cast::<[i8; 2 * LANES]>().read_unaligned();
                I(std::array::from_fn(|i| i32::from(b[2 * i] as i16 as u16) | i32::from(b[2 * i + 1]) << 16))
            }
        }

        // An instruction set that every x86-64 has.
        kernels!("sse2", k4: $k4, k8: $k8, v: $v, rows: $($rows)*);
    };
}

/// As `wide`.
pub mod of_512 {
    emulated!(16, k4: WIDE_K4, k8: WIDE_K8, v: WIDE_V, rows: 1 2 3 4 5 6 7 8);
}

/// As `narrow`.
pub mod of_256 {
    emulated!(8, k4: NARROW_K4, k8: NARROW_K8, v: NARROW_V, rows: 1 2 3 4 5 6);
}
