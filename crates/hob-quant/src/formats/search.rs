//! The search for the scale of one group of weights: of many scales tried the one whose codes leave the least weighted
//! squared error, then its least-squares value. It must not know how formats lay out bits or how scales are stored.
//!
//! Sums run in eight lanes, so that they vectorize, and in one fixed order: the same weights give the same bytes.

use super::BadBlock;

const LANES: usize = 8;

/// Larger weights fit no format with f16 scales (65504 times the largest scale, 127, and code, 128).
const MOST: f32 = 1.1e9;
/// Smaller ones are zero under the smallest f16 scale, 2^-24, and their squares must not vanish in f32.
const LEAST: f32 = 1e-9;
/// Scales tried on each side of the one that reaches the largest weight.
const TRIES: i32 = 5;
/// Times that codes and scale are fitted to each other at the end.
const ROUNDS: usize = 2;

/// The values that codes stand for, before the scale.
pub(super) trait Grid {
    /// The level nearest to `v`.
    fn level(&self, v: f32) -> f32;
    /// The lowest and the highest level.
    fn ends(&self) -> [f32; 2];
    /// How far apart the scales are that are tried, as levels of the largest weight.
    fn step(&self) -> f32;
}

/// The whole numbers `low..=high`.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    pub low: f32,
    pub high: f32,
}

impl Grid for Steps {
    fn level(&self, v: f32) -> f32 {
        nearest(bounded(v, self.low, self.high))
    }

    fn ends(&self) -> [f32; 2] {
        [self.low, self.high]
    }

    fn step(&self) -> f32 {
        0.2
    }
}

/// The nearest whole number of a value below 2^22, halves to even; `f32::round_ties_even` is a library call on old
/// CPUs, which keeps loops from vectorizing.
pub(super) fn nearest(v: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves no room for a fraction
    (v + SHIFT) - SHIFT
}

/// Calls `encode` for every block of `L` weights with the weights of their errors and its `B` bytes; `encode` says
/// `false` where a scale does not fit. Blocks of zeros, or next to it, become zero bytes, which decode to zero.
pub(super) fn each_block_searched<const L: usize, const B: usize>(
    x: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
    encode: impl Fn(&[f32; L], &[f32; L], &mut [u8; B]) -> bool,
) -> Result<(), BadBlock> {
    for (i, (x, block)) in x.as_chunks::<L>().0.iter().zip(out.as_chunks_mut::<B>().0).enumerate() {
        // Not a fold with `f32::max`, which drops a NaN.
        let largest = x.iter().fold(0f32, |most, v| if v.abs() <= most { most } else { v.abs() });
        block.fill(0);
        if !x.iter().all(|v| v.is_finite()) || largest > MOST {
            return Err(BadBlock(i));
        }
        if largest < LEAST {
            continue;
        }
        let importance = importance.and_then(|all| all.as_chunks::<L>().0.get(i));
        if !encode(x, &error_weights(x, largest, importance), block) {
            return Err(BadBlock(i));
        }
    }
    Ok(())
}

/// What a squared error of each weight costs. Without importance its own square and the block's mean square: large
/// weights meet large activations more often than not, and their errors are seen. With importance (a mean square of the
/// activations) that times the root of the same: the rule of llama.cpp's k-quants.
fn error_weights<const L: usize>(x: &[f32; L], largest: f32, importance: Option<&[f32; L]>) -> [f32; L] {
    let inverse = 1.0 / largest;
    let squares = x.map(|v| (v * inverse) * (v * inverse));
    let mean = squares.iter().sum::<f32>() / L as f32;
    let own = squares.map(|s| s + mean);
    let average = |all: &[f32; L]| all.iter().sum::<f32>() / L as f32;
    match importance.map(|all| (all, average(all))).filter(|(_, average)| *average > 0.0) {
        None => own,
        Some((all, average)) => {
            let inverse = 1.0 / average;
            // A column that was never seen still counts a little: some text will use it.
            std::array::from_fn(|i| (all[i] * inverse + 1e-4) * own[i].sqrt())
        }
    }
}

/// Adds up a group's `terms(x, w)`.
#[inline(always)]
fn sums<const N: usize, const T: usize>(
    x: &[f32; N],
    w: &[f32; N],
    terms: impl Fn(f32, f32) -> [f32; T],
) -> [f32; T] {
    let mut all = [[0f32; N]; T];
    for i in 0..N {
        let found = terms(x[i], w[i]);
        for t in 0..T {
            all[t][i] = found[t];
        }
    }
    all.map(|terms| {
        let mut lanes = [0f32; LANES];
        for terms in terms.as_chunks::<LANES>().0 {
            for i in 0..LANES {
                lanes[i] += terms[i];
            }
        }
        lanes.iter().sum()
    })
}

/// `v` kept within bounds. `f32::clamp` and its kin look at NaN, which costs instructions and is not here.
fn bounded(v: f32, low: f32, high: f32) -> f32 {
    let v = if v > low { v } else { low };
    if v < high { v } else { high }
}

/// `sum(w x q)` and `sum(w q q)` of the codes under the scale `1 / inverse`.
pub(super) fn products<G: Grid, const N: usize>(
    grid: &G,
    x: &[f32; N],
    w: &[f32; N],
    inverse: f32,
) -> [f32; 2] {
    sums(x, w, |x, w| {
        let q = grid.level(x * inverse);
        [w * x * q, w * q * q]
    })
}

/// The scale, of either sign, that leaves the least error.
pub(super) fn fit_scale<G: Grid, const N: usize>(grid: &G, x: &[f32; N], w: &[f32; N]) -> f32 {
    let largest = x.iter().fold(0f32, |most, &v| if v.abs() > most.abs() { v } else { most });
    if largest.abs() < LEAST {
        return 0.0;
    }
    // The error is sum(w x x) less what a scale explains: sum(w x q)^2 / sum(w q q).
    let (mut explained, mut scale) = (0.0, 0.0);
    let mut attempt = |inverse: f32| {
        let [xq, qq] = products(grid, x, w, inverse);
        if qq > 0.0 && xq * xq > explained * qq {
            (explained, scale) = (xq * xq / qq, xq / qq);
        }
        scale
    };
    for end in grid.ends() {
        for k in -TRIES..=TRIES {
            attempt((end + grid.step() * end.signum() * k as f32) / largest);
        }
    }
    let mut last = attempt(0.0);
    for _ in 0..ROUNDS {
        let next = attempt(inverse_of(last));
        if next == last {
            break;
        }
        last = next;
    }
    last
}

/// The error under a given scale.
pub(super) fn scale_error<G: Grid, const N: usize>(grid: &G, x: &[f32; N], w: &[f32; N], scale: f32) -> f32 {
    let inverse = inverse_of(scale);
    let [error] = sums(x, w, |x, w| {
        let e = x - scale * grid.level(x * inverse);
        [w * e * e]
    });
    error
}

/// `1 / v`, or 0 where that is no number to scale by.
pub(super) fn inverse_of(v: f32) -> f32 {
    let inverse = 1.0 / v;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// Scale and additive minimum of a group: `scale * q + min` with `q` in `0..=top`.
#[derive(Clone, Copy, Default)]
pub(super) struct Affine {
    pub scale: f32,
    pub min: f32,
}

impl Affine {
    /// The code of `v`, a whole number.
    pub(super) fn code(self, v: f32, top: f32) -> f32 {
        nearest(bounded((v - self.min) * inverse_of(self.scale), 0.0, top))
    }
}

/// Sums of a group that do not depend on codes.
struct Fixed {
    w: f32,
    wx: f32,
    wxx: f32,
}

/// The pair that leaves the least error; `down_only` keeps the minimum at or below zero, as the k-quants store it.
pub(super) fn fit_affine<const N: usize>(x: &[f32; N], w: &[f32; N], top: f32, down_only: bool) -> Affine {
    let low = x.iter().copied().fold(f32::INFINITY, f32::min);
    let low = if down_only { low.min(0.0) } else { low };
    let span = x.iter().copied().fold(f32::NEG_INFINITY, f32::max) - low;
    if span <= LEAST {
        return Affine { scale: 0.0, min: low };
    }
    let [w_sum, wx, wxx] = sums(x, w, |x, w| [w, w * x, w * x * x]);
    let fixed = Fixed { w: w_sum, wx, wxx };
    let plain = Affine { scale: span / top, min: low };
    let (mut least, mut best) = (f32::INFINITY, plain);
    let mut attempt = |pair: Affine| {
        let (error, fitted) = refit(x, w, pair, &fixed, (top, down_only));
        if error < least && fitted.scale > 0.0 {
            (least, best) = (error, fitted);
        }
        best
    };
    let mut last = plain;
    for k in -TRIES..=TRIES {
        // Few levels: the ends are worth more than a level, so that more is tried below than above.
        let levels = top + 0.15 * (k as f32 - 1.0) * (top / 15.0).max(0.5);
        last = attempt(Affine { scale: span / levels, min: low });
    }
    if top < 4.0 {
        // Three values, evenly spread.
        last = attempt(Affine { scale: span / 2.0, min: low });
    }
    for _ in 0..ROUNDS {
        let before = last;
        last = attempt(before);
        if last.scale == before.scale && last.min == before.min {
            break;
        }
    }
    last
}

/// The least-squares pair of the codes under `pair`, and its error.
fn refit<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    pair: Affine,
    fixed: &Fixed,
    (top, down_only): (f32, bool),
) -> (f32, Affine) {
    let inverse = inverse_of(pair.scale);
    let [wq, wqq, wxq] = sums(x, w, |x, w| {
        let q = nearest(bounded((x - pair.min) * inverse, 0.0, top));
        [w * q, w * q * q, w * x * q]
    });
    let spread = fixed.w * wqq - wq * wq;
    let mut scale = (fixed.w * wxq - fixed.wx * wq) * inverse_of(spread);
    let mut min = (wqq * fixed.wx - wq * wxq) * inverse_of(spread);
    if (down_only && min > 0.0) || spread <= 0.0 {
        (scale, min) = (wxq * inverse_of(wqq), 0.0);
    }
    (fixed.wxx - scale * wxq - min * fixed.wx, Affine { scale, min })
}

/// The error under a given pair.
pub(super) fn affine_error<const N: usize>(x: &[f32; N], w: &[f32; N], pair: Affine, top: f32) -> f32 {
    let inverse = inverse_of(pair.scale);
    let [error] = sums(x, w, |x, w| {
        let q = nearest(bounded((x - pair.min) * inverse, 0.0, top));
        let e = x - (pair.scale * q + pair.min);
        [w * e * e]
    });
    error
}

/// Sums from which the two outer scales of a superblock are fitted.
pub(super) fn affine_products<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    pair: Affine,
    top: f32,
) -> [f32; 5] {
    let inverse = inverse_of(pair.scale);
    sums(x, w, |x, w| {
        let q = nearest(bounded((x - pair.min) * inverse, 0.0, top));
        [w, w * x, w * q, w * q * q, w * x * q]
    })
}
