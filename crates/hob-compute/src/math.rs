//! Scalar functions whose every operation is fixed, so that SIMD forms give the same bits.
//!
//! Each is a chain of IEEE f32 operations with explicit fused multiply-adds; a vector form performs the same chain per
//! lane. Reductions use 16 virtual lanes over ascending index and the tree of [`tree16`].

/// Sum of 16 lanes: lane i with i+8, then i+4, i+2, i+1.
pub fn tree16(lanes: &[f32; 16]) -> f32 {
    let mut v = *lanes;
    let mut half = 8;
    while half > 0 {
        for i in 0..half {
            v[i] += v[i + half];
        }
        half /= 2;
    }
    v[0]
}

/// Dot product in 16 virtual lanes: lane `i % 16` accumulates by fma over ascending `i`.
#[inline(always)] // so that it becomes wide where a caller was compiled for wide registers
pub fn dot16(a: &[f32], b: &[f32]) -> f32 {
    let len = a.len().min(b.len());
    let ((a, a_rest), (b, b_rest)) = (a[..len].as_chunks::<16>(), b[..len].as_chunks::<16>());
    let mut lanes = [0f32; 16];
    for (a, b) in a.iter().zip(b) {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(l, (x, y))| *l = x.mul_add(*y, *l));
    }
    lanes.iter_mut().zip(a_rest.iter().zip(b_rest)).for_each(|(l, (x, y))| *l = x.mul_add(*y, *l));
    tree16(&lanes)
}

/// Largest element in any order (maximum is exact); `-inf` for an empty slice.
pub fn max(x: &[f32]) -> f32 {
    x.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Sum in 16 virtual lanes.
pub fn sum16(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    for (i, &v) in x.iter().enumerate() {
        lanes[i % 16] += v;
    }
    tree16(&lanes)
}

/// `exp(x)` within about 2 ulp; 0 below -87.33, saturating at `exp(88.37)`.
///
/// Cody-Waite reduction by ln 2 in two parts and a degree-5 polynomial (Cephes `expf` coefficients), all fma.
pub fn exp(x: f32) -> f32 {
    if x < EXP_LOW {
        return 0.0;
    }
    let x = x.min(EXP_HIGH);
    let n = x.mul_add(std::f32::consts::LOG2_E, 0.5).floor();
    let r = n.mul_add(-LN2_HIGH, x);
    let r = n.mul_add(-LN2_LOW, r);
    let mut p = EXP_POLY[0];
    for &c in &EXP_POLY[1..] {
        p = p.mul_add(r, c);
    }
    let y = p.mul_add(r * r, r) + 1.0;
    y * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

/// Below this `exp` is exactly 0 (no subnormals).
pub const EXP_LOW: f32 = -87.336_54;
/// Above this `exp` saturates.
pub const EXP_HIGH: f32 = 88.376_26;
/// High part of ln 2, exact in few bits.
pub const LN2_HIGH: f32 = 0.693_359_4;
/// ln 2 minus [`LN2_HIGH`].
pub const LN2_LOW: f32 = -2.121_944_4e-4;
/// Polynomial of `(exp(r) - 1 - r) / r^2`, highest power first.
pub const EXP_POLY: [f32; 6] =
    [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// `2^x` for `x <= 0`, the weight of a score in a softmax: relative error below 1.4 * 2^-23, exact at integers.
///
/// Below -126 it stays at `2^-126`, which nothing notices beside the 1 that every softmax holds, and which spares a
/// comparison. NaN stays NaN. Degree-5 polynomial of the remainder, fitted to the smallest relative error.
pub fn exp2(x: f32) -> f32 {
    let x = if x < EXP2_LOW { EXP2_LOW } else { x };
    // Adding this rounds to an integer and leaves it in the low bits.
    let t = x + EXP2_ROUND;
    let f = x - (t - EXP2_ROUND);
    let mut p = EXP2_POLY[0];
    for &c in &EXP2_POLY[1..] {
        p = p.mul_add(f, c);
    }
    f32::from_bits(p.to_bits().wrapping_add(t.to_bits() << 23))
}

/// The least argument of [`exp2`].
pub const EXP2_LOW: f32 = -126.0;
/// 1.5 * 2^23.
pub const EXP2_ROUND: f32 = 12_582_912.0;
/// Polynomial of `2^f` for f in -0.5..=0.5, highest power first.
pub const EXP2_POLY: [f32; 6] =
    [1.325_593_8e-3, 9.671_233e-3, 5.550_768_6e-2, 2.402_224_8e-1, 6.931_469_4e-1, 1.0];

/// `tanh(x)` within 6 ulp: an odd rational function of degrees 9 and 8, fitted to the smallest relative error up to
/// [`TANH_HIGH`], beyond which it is constant (and at most two ulp above 1). NaN stays NaN.
#[inline]
pub fn tanh(x: f32) -> f32 {
    let x = if x > TANH_HIGH { TANH_HIGH } else { x };
    let x = if x < -TANH_HIGH { -TANH_HIGH } else { x };
    let z = x * x;
    let (mut p, mut q) = (TANH_P[0], TANH_Q[0]);
    for (&a, &b) in TANH_P[1..].iter().zip(&TANH_Q[1..]) {
        (p, q) = (p.mul_add(z, a), q.mul_add(z, b));
    }
    x * p / q
}

/// Where f32 cannot tell `tanh` from 1 any more.
pub const TANH_HIGH: f32 = 9.0109;
/// Numerator of `tanh(x) / x` in `x^2`, highest power first.
pub const TANH_P: [f32; 5] = [1.333_518_3e-8, 2.059_507_6e-5, 3.494_738_4e-3, 1.338_031e-1, 1.0];
/// Its denominator.
pub const TANH_Q: [f32; 5] = [7.768_602_5e-7, 3.284_244_2e-4, 2.587_375e-2, 4.671_362_6e-1, 1.0];

/// `x / (1 + exp(-x))`.
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `ln(1 + exp(x))`.
pub fn softplus(x: f32) -> f32 {
    x.max(0.0) + exp(-x.abs()).ln_1p()
}

/// `1 / (1 + exp(-x))`.
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// GELU, tanh approximation: `x * sigmoid(2 * sqrt(2/pi) * (x + 0.044715 x^3))`.
pub fn gelu_tanh(x: f32) -> f32 {
    let u = x * (x * x).mul_add(0.044_715, 1.0);
    x / (1.0 + exp(-1.595_769_2 * u))
}

/// `max(x, 0)^2`. NaN stays NaN.
pub fn relu_squared(x: f32) -> f32 {
    let x = if x < 0.0 { 0.0 } else { x };
    x * x
}

/// The gate of gpt-oss: `g / (1 + exp(-alpha g)) * (u + 1)`, the gate `g` at most `limit`, `u` within `-limit..=limit`.
/// NaN stays NaN.
pub fn clamped_swiglu(gate: f32, up: f32, (alpha, limit): (f32, f32), plus: f32) -> f32 {
    let g = if gate > limit { limit } else { gate };
    let u = if up > limit { limit } else { up };
    let u = if u < -limit { -limit } else { u };
    (u + plus) * (g / (1.0 + exp(-alpha * g)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest relative error over `x`, in ulp at 1.
    fn error(x: impl Iterator<Item = f32>, found: fn(f32) -> f32, expected: fn(f64) -> f64) -> f64 {
        x.map(|x| {
            let expected = expected(f64::from(x));
            ((f64::from(found(x)) - expected) / expected).abs() / f64::from(f32::EPSILON)
        })
        .fold(0.0, f64::max)
    }

    #[test]
    fn exp2_is_close_over_its_whole_range_and_exact_at_its_ends() {
        let worst = error((0..1_260_000).map(|i| i as f32 * -1e-4), exp2, f64::exp2);
        assert!(worst < 1.4, "{worst} ulp");
        for n in 0..=126 {
            assert_eq!(exp2(-n as f32), (-f64::from(n)).exp2() as f32);
        }
        for low in [-126.5, -1e4, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp2(low), f32::MIN_POSITIVE);
        }
        assert!(exp2(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_close_and_odd() {
        let worst = error((1..1_200_000).map(|i| i as f32 * 1e-5), tanh, f64::tanh);
        assert!(worst < 6.0, "{worst} ulp");
        for x in [0.0, 1e-30, 0.1, 3.0, 8.9, 9.1, 1e30, f32::INFINITY] {
            assert_eq!(tanh(-x).to_bits(), (-tanh(x)).to_bits());
            assert!(tanh(x) < 1.000_000_3);
        }
        assert!(tanh(f32::NAN).is_nan());
    }
}
