//! The row operations of the oracle: norm, rotation, pick. Every arithmetic operation and its order is fixed here.

use std::cmp::Ordering;

use crate::RopePairs;
use crate::math::{self, dot16, sum16};

/// `1 / sqrt(mean(x^2) + eps)`: squares in 16 virtual lanes, then IEEE division, addition, square root, division.
pub fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot16(x, x) / x.len() as f32 + eps).sqrt()
}

/// `out[i] = (x[i] * inverse_rms) * weight[i]`
pub fn norm_group(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let r = inverse_rms(x, eps);
    for ((o, &v), &w) in out.iter_mut().zip(x).zip(weight) {
        *o = (v * r) * w;
    }
}

/// Cosine and sine of one pair at one position. Angle, cosine and sine are f64, each rounded once to f32 and then
/// multiplied by `magnitude` in f32: the angle of position 100,000 keeps full accuracy.
pub fn rope_angle(position: u32, freq: f32, magnitude: f32) -> (f32, f32) {
    let (sin, cos) = (f64::from(position) * f64::from(freq)).sin_cos();
    (cos as f32 * magnitude, sin as f32 * magnitude)
}

/// Rotates one pair: `(fma(x0, c, -(x1 * s)), fma(x1, c, x0 * s))`.
pub fn rotate_pair(x0: f32, x1: f32, cos: f32, sin: f32) -> (f32, f32) {
    (x0.mul_add(cos, -(x1 * sin)), x1.mul_add(cos, x0 * sin))
}

/// Rotates one head in place by `cos.len()` pairs.
pub fn rotate_head(head: &mut [f32], cos: &[f32], sin: &[f32], pairs: RopePairs) {
    let half = cos.len();
    for i in 0..half {
        let (a, b) = match pairs {
            RopePairs::Interleaved => (2 * i, 2 * i + 1),
            RopePairs::Half => (i, i + half),
        };
        (head[a], head[b]) = rotate_pair(head[a], head[b], cos[i], sin[i]);
    }
}

/// Logits per partial sum of [`log_sum_exp`].
pub const LSE_CHUNK: usize = 4096;

/// A logit as `pick` sees it: NaN counts as `-inf`.
pub fn logit(x: f32) -> f32 {
    if x.is_nan() { f32::NEG_INFINITY } else { x }
}

/// `m + ln(sum exp(x - m))` with `m` the largest logit: 16 lanes within every chunk of [`LSE_CHUNK`], chunk sums added
/// in ascending order. An infinite `m` is itself the result.
pub fn log_sum_exp(logits: &[f32]) -> f32 {
    let m = logits.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(logit(x)));
    if m.is_infinite() {
        return m;
    }
    let mut sum = 0f32;
    for chunk in logits.chunks(LSE_CHUNK) {
        let e: Vec<f32> = chunk.iter().map(|&x| math::exp(logit(x) - m)).collect();
        sum += sum16(&e);
    }
    m + sum.ln()
}

/// The order of `pick`: larger logit first, equal logits (`-0` equals `+0`) by ascending id.
pub fn pick_order(a: (f32, u32), b: (f32, u32)) -> Ordering {
    b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1))
}

/// The `k` first in [`pick_order`], as `(logit, id)`.
pub fn top_k(logits: &[f32], k: usize) -> Vec<(f32, u32)> {
    let mut all: Vec<(f32, u32)> = logits.iter().enumerate().map(|(i, &x)| (logit(x), i as u32)).collect();
    all.sort_by(|&a, &b| pick_order(a, b));
    all.truncate(k);
    all
}
