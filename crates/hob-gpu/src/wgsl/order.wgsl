// The order of f32 values as integers have it, and what is no number. Tests go by bits, since compilers may assume that
// numbers are finite.

// WGSL refuses constants that are not finite.
fn lowest() -> f32 {
    var bits = 0xff800000u;
    return bitcast<f32>(bits);
}

fn nan() -> f32 {
    var bits = 0x7fc00000u;
    return bitcast<f32>(bits);
}

fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

fn is_infinite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) == 0x7f800000u;
}

// Larger for larger numbers; -0 is 0; NaN is -inf. Never 0.
fn key(x: f32) -> u32 {
    var bits = bitcast<u32>(x);
    if (is_nan(x)) {
        bits = 0xff800000u;
    }
    if (bits == 0x80000000u) {
        bits = 0u;
    }
    return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}

// The number of a key.
fn number(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, key >= 0x80000000u));
}

// NaN counts as -inf.
fn logit(x: f32) -> f32 {
    return number(key(x));
}
