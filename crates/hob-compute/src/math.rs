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
pub fn dot16(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    for (i, (&x, &y)) in a.iter().zip(b).enumerate() {
        lanes[i % 16] = x.mul_add(y, lanes[i % 16]);
    }
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

/// `x / (1 + exp(-x))`.
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// GELU, tanh approximation: `x * sigmoid(2 * sqrt(2/pi) * (x + 0.044715 x^3))`.
pub fn gelu_tanh(x: f32) -> f32 {
    let u = x * (x * x).mul_add(0.044_715, 1.0);
    x / (1.0 + exp(-1.595_769_2 * u))
}
