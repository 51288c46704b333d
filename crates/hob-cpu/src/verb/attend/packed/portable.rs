//! Packed kernels in plain loops over arrays, which a compiler turns into what vector code it can: for any CPU, and what the
//! vector kernels are tested by.
#![allow(clippy::needless_range_loop, reason = "several arrays in step: indices keep them in registers")]

use half::f16;
use half::slice::HalfFloatSliceExt;

use hob_compute::{BLOCK_POSITIONS, PAGE_POSITIONS};
use hob_quant::KV_GROUP;

use super::{Kernels, MOST_ROWS, ScoreArgs, WeighArgs, round};

/// For any CPU.
pub static BASE: Kernels = Kernels {
    rows: MOST_ROWS,
    quantize: |queries, from| queries.fill(from),
    scores_q8,
    scores_q4: scores_nibbles::<true>,
    scores_asym4: scores_nibbles::<false>,
    weigh_q8,
    weigh_q4: weigh_nibbles::<true>,
    weigh_asym4: weigh_nibbles::<false>,
};

type Lanes<T> = [T; BLOCK_POSITIONS];

/// The f32 values of the 64 f16 of a group's scales or minima.
#[inline(always)]
fn widen(bytes: &[u8], group: usize) -> Lanes<f32> {
    let bytes = bytes[2 * BLOCK_POSITIONS * group..].as_chunks::<2>().0;
    let mut halves = [f16::ZERO; BLOCK_POSITIONS];
    halves.iter_mut().zip(bytes).for_each(|(h, &b)| *h = f16::from_le_bytes(b));
    let mut wide = [0f32; BLOCK_POSITIONS];
    halves.convert_to_f32_slice(&mut wide);
    wide
}

/// Bytes of the scales of a part, or of its minima.
fn scale_bytes(head_dim: usize) -> usize {
    head_dim / KV_GROUP * BLOCK_POSITIONS * 2
}

#[inline(always)]
fn scores_q8(args: &mut ScoreArgs) {
    let (scales, codes) = args.k.split_at(scale_bytes(args.head_dim));
    let rows = args.rows;
    for g in 0..args.head_dim / KV_GROUP {
        let d = widen(scales, g);
        let pairs = codes[g * KV_GROUP * BLOCK_POSITIONS..].as_chunks::<{ 2 * BLOCK_POSITIONS }>().0;
        for r in 0..rows {
            let mut int = [0i32; BLOCK_POSITIONS];
            for (w, k) in pairs[..KV_GROUP / 2].iter().enumerate() {
                let word = args.words[(g * KV_GROUP / 2 + w) * rows + r];
                multiply_pairs(word, k, &mut int);
            }
            let at = g * rows + r;
            add_dots(&mut args.out[r * PAGE_POSITIONS..], g, &int, &d.map(|d| args.scales[at] * d));
        }
    }
    scale_rows(args);
}

/// Adds the two i16 of `word` times pairs of i8.
#[inline(always)]
fn multiply_pairs<const N: usize, const L: usize>(word: u32, pairs: &[u8; N], int: &mut [i32; L]) {
    let (a, b) = (i32::from(word as i16), i32::from((word >> 16) as i16));
    for i in 0..L {
        int[i] += a * i32::from(pairs[2 * i] as i8) + b * i32::from(pairs[2 * i + 1] as i8);
    }
}

/// 4-bit K: codes less 8 if `SIGNED`, else above a minimum.
#[inline(always)]
fn scores_nibbles<const SIGNED: bool>(args: &mut ScoreArgs) {
    let each = scale_bytes(args.head_dim);
    let (scales, rest) = args.k.split_at(each);
    let (minima, codes) = if SIGNED { (rest, rest) } else { rest.split_at(each) };
    let rows = args.rows;
    for g in 0..args.head_dim / KV_GROUP {
        let d = widen(scales, g);
        let quads = codes[g * KV_GROUP / 2 * BLOCK_POSITIONS..].as_chunks::<{ 4 * BLOCK_POSITIONS }>().0;
        for r in 0..rows {
            let word =
                |w: usize| args.words[(g * KV_GROUP / 4 + w) * rows + r].to_le_bytes().map(|b| b as i8);
            let mut halves = [0i16; 2 * BLOCK_POSITIONS];
            for (j, k) in quads[..KV_GROUP / 8].iter().enumerate() {
                // 16 products of at most 127 * 15 in every lane of the group.
                let (low, high) = (word(2 * j).map(i16::from), word(2 * j + 1).map(i16::from));
                multiply_nibbles(low, high, k, &mut halves);
            }
            let at = g * rows + r;
            let (scale, sum) = (args.scales[at], args.sums[at]);
            let mut int = [0i32; BLOCK_POSITIONS];
            add_halves(&halves, &mut int);
            if SIGNED {
                int.iter_mut().for_each(|i| *i -= 8 * sum);
            }
            let out = &mut args.out[r * PAGE_POSITIONS..];
            add_dots(out, g, &int, &d.map(|d| scale * d));
            if !SIGNED {
                let sums = [sum; BLOCK_POSITIONS];
                add_dots(out, g + 1, &sums, &widen(minima, g).map(|m| scale * m));
            }
        }
    }
    scale_rows(args);
}

/// Adds products of four bytes, low nibbles with `low`, high ones with `high`, in 16-bit lanes of two bytes.
#[inline(always)]
fn multiply_nibbles<const N: usize, const L: usize>(
    low: [i16; 4],
    high: [i16; 4],
    bytes: &[u8; N],
    int: &mut [i16; L],
) {
    let lanes = |x: [i16; 2]| -> [i16; 16] { std::array::from_fn(|i| x[i % 2]) };
    let (a, b) = (lanes([low[0], low[2]]), lanes([high[0], high[2]]));
    let (c, d) = (lanes([low[1], low[3]]), lanes([high[1], high[3]]));
    for (int, bytes) in int.as_chunks_mut::<16>().0.iter_mut().zip(bytes.as_chunks::<32>().0) {
        for i in 0..16 {
            let v = u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]);
            let even = (v & 15) as i16 * a[i] + (v >> 4 & 15) as i16 * b[i];
            int[i] += even + (v >> 8 & 15) as i16 * c[i] + (v >> 12) as i16 * d[i];
        }
    }
}

/// Adds lanes `2 i` and `2 i + 1` to `int[i]`.
#[inline(always)]
fn add_halves<const H: usize, const L: usize>(halves: &[i16; H], int: &mut [i32; L]) {
    for (int, &[a, b]) in int.iter_mut().zip(halves.as_chunks::<2>().0) {
        *int += i32::from(a) + i32::from(b);
    }
}

/// `dot = fma(int, scale, dot)`; the first of a chain, `link` 0, starts at +0.
#[inline(always)]
fn add_dots(dots: &mut [f32], link: usize, int: &Lanes<i32>, scales: &Lanes<f32>) {
    let dots = &mut dots[..BLOCK_POSITIONS];
    if link == 0 {
        dots.fill(0.0);
    }
    for i in 0..BLOCK_POSITIONS {
        dots[i] = (int[i] as f32).mul_add(scales[i], dots[i]);
    }
}

#[inline(always)]
fn scale_rows(args: &mut ScoreArgs) {
    for r in 0..args.rows {
        args.out[r * PAGE_POSITIONS..][..BLOCK_POSITIONS].iter_mut().for_each(|s| *s *= args.factor);
    }
}

/// Weights of all positions, of which the largest is `MOST`, and what one of them is worth; `None` where the group is
/// skipped.
#[inline(always)]
fn weights<const MOST: i32>(p: &[f32], d: &Lanes<f32>) -> Option<(Lanes<i32>, f32)> {
    let mut x = [0f32; BLOCK_POSITIONS];
    let mut lanes = [0f32; 8];
    for ((x, p), d) in x.as_chunks_mut::<8>().0.iter_mut().zip(p.as_chunks::<8>().0).zip(d.as_chunks::<8>().0)
    {
        for i in 0..8 {
            x[i] = p[i] * d[i];
            lanes[i] = if x[i] > lanes[i] { x[i] } else { lanes[i] };
        }
    }
    let m = lanes.into_iter().fold(0f32, f32::max);
    let factor = MOST as f32 / m;
    if !factor.is_finite() {
        return None;
    }
    // All bits of MOST are set: the mask changes no number, and leaves none too large where there was none (NaN).
    Some((x.map(|x| round(x * factor) & MOST), m / MOST as f32))
}

#[inline(always)]
fn weigh_q8(args: &mut WeighArgs) {
    let dim = args.head_dim;
    let (scales, codes) = args.v.split_at(scale_bytes(dim));
    for g in 0..dim / KV_GROUP {
        let d = widen(scales, g);
        for r in 0..args.rows {
            let p = &args.p[r * PAGE_POSITIONS..][..BLOCK_POSITIONS];
            let Some((w, scale)) = weights::<32767>(p, &d) else { continue };
            let mut int = [0i32; KV_GROUP];
            for (j, w) in w.as_chunks::<2>().0.iter().enumerate() {
                let v = &codes[(j * dim + g * KV_GROUP) * 2..].as_chunks::<{ 2 * KV_GROUP }>().0[0];
                multiply_pairs(u32::from(w[0] as u16) | u32::from(w[1] as u16) << 16, v, &mut int);
            }
            add_int(&mut args.acc[r * dim + g * KV_GROUP..], &int, scale);
        }
    }
}

/// 4-bit V, as [`scores_nibbles`].
#[inline(always)]
fn weigh_nibbles<const SIGNED: bool>(args: &mut WeighArgs) {
    let (dim, each) = (args.head_dim, scale_bytes(args.head_dim));
    let (scales, rest) = args.v.split_at(each);
    let (minima, codes) = if SIGNED { (rest, rest) } else { rest.split_at(each) };
    for g in 0..dim / KV_GROUP {
        let d = widen(scales, g);
        for r in 0..args.rows {
            let p = &args.p[r * PAGE_POSITIONS..][..BLOCK_POSITIONS];
            let acc = &mut args.acc[r * dim + g * KV_GROUP..][..KV_GROUP];
            if let Some((w, scale)) = weights::<255>(p, &d) {
                let mut int = weighted_nibbles(&codes[4 * g * KV_GROUP..], 4 * dim, &w);
                if SIGNED {
                    let sum: i32 = w.iter().sum();
                    int.iter_mut().for_each(|i| *i -= 8 * sum);
                }
                add_int(acc, &int, scale);
            }
            if !SIGNED {
                let m = widen(minima, g);
                let sum = p.iter().zip(&m).fold(0f32, |sum, (p, m)| p.mul_add(*m, sum));
                if sum != 0.0 {
                    acc.iter_mut().for_each(|a| *a += sum);
                }
            }
        }
    }
}

/// `sum(w * nibble)` over 64 positions for a group's 32 dimensions; quads of positions are `step` bytes apart.
#[inline(always)]
fn weighted_nibbles(codes: &[u8], step: usize, w: &Lanes<i32>) -> [i32; KV_GROUP] {
    let mut int = [0i32; KV_GROUP];
    let w = w.map(|w| w as i16);
    for (two, w) in w.as_chunks::<16>().0.iter().enumerate() {
        let mut halves = [0i16; 2 * KV_GROUP];
        for (j, w) in w.as_chunks::<8>().0.iter().enumerate() {
            // 8 products of at most 255 * 15 in every lane.
            let [a, b, c, d, e, f, g, h] = *w;
            let v = &codes[(2 * two + j) * step..].as_chunks::<{ 4 * KV_GROUP }>().0[0];
            multiply_nibbles([a, b, c, d], [e, f, g, h], v, &mut halves);
        }
        add_halves(&halves, &mut int);
    }
    int
}

/// `acc = fma(int, scale, acc)`
#[inline(always)]
fn add_int(acc: &mut [f32], int: &[i32; KV_GROUP], scale: f32) {
    for (a, &i) in acc.iter_mut().zip(int) {
        *a = (i as f32).mul_add(scale, *a);
    }
}
