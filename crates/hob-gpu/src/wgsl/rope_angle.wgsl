// Cosine and sine of `position * freq`, exact to f32 at any position: the angle is reduced as an integer, in turns
// (multiples of 2 pi), since neither f32 products nor the built-in sine keep the accuracy of angles of 100,000 rad.

// 64 bits of a * b: (low, high).
fn rope_wide(a: u32, b: u32) -> vec2<u32> {
    let a0 = a & 0xffffu;
    let a1 = a >> 16u;
    let b0 = b & 0xffffu;
    let b1 = b >> 16u;
    let low = a0 * b0;
    let mid = a1 * b0 + (low >> 16u);
    let cross = a0 * b1 + (mid & 0xffffu);
    return vec2<u32>((low & 0xffffu) | (cross << 16u), a1 * b1 + (mid >> 16u) + (cross >> 16u));
}

// Words `at` and `at + 1`, shifted right by `bits` (below 32): the low word of the result.
fn rope_funnel(low: u32, high: u32, bits: u32) -> u32 {
    if (bits == 0u) {
        return low;
    }
    return (low >> bits) | (high << (32u - bits));
}

// The fraction of a turn per position, `freq / (2 pi) mod 1`, times 2^64: (low, high). `freq` is positive and finite.
fn rope_turn(freq: f32) -> vec2<u32> {
    let bits = bitcast<u32>(freq);
    // freq = mantissa * 2^(exponent - 150)
    let exponent = (bits >> 23u) & 0xffu;
    if (exponent == 0u || exponent > 182u) {
        return vec2<u32>(0u, 0u);
    }
    let mantissa = (bits & 0x7fffffu) | 0x800000u;
    // 1 / (2 pi) * 2^96, in three words from the lowest.
    let p0 = rope_wide(mantissa, 0x7f09d5f4u);
    let p1 = rope_wide(mantissa, 0x9391054au);
    let p2 = rope_wide(mantissa, 0x28be60dbu);
    // Words of the product from the lowest.
    let w0 = p0.x;
    let w1 = p0.y + p1.x;
    let middle = p1.y + u32(w1 < p1.x);
    let w2 = middle + p2.x;
    let w3 = p2.y + u32(w2 < p2.x);
    let shift = 182u - exponent;
    let at = shift / 32u;
    if (at > 3u) {
        return vec2<u32>(0u, 0u);
    }
    let down = shift % 32u;
    // Those that the shift leaves lowest; an array indexed at run time would lie in memory.
    let odd = (at & 1u) == 1u;
    let far = at >= 2u;
    let low = select(select(w0, w1, odd), select(w2, w3, odd), far);
    let middle_word = select(select(w1, w2, odd), select(w3, 0u, odd), far);
    let high = select(select(w2, w3, odd), 0u, far);
    return vec2<u32>(rope_funnel(low, middle_word, down), rope_funnel(middle_word, high, down));
}

// (cosine, sine) of `position * freq`.
fn rope_angle(position: u32, freq: f32) -> vec2<f32> {
    let turn = rope_turn(abs(freq));
    let phase = rope_wide(turn.x, position).y + turn.y * position;
    // The nearest quarter turn, and what remains: at most an eighth of a turn.
    let quarter = (phase + 0x20000000u) >> 30u;
    let x = f32(bitcast<i32>(phase - (quarter << 30u))) * 1.4629180792671596e-9;
    // Polynomials of Cephes' sinf and cosf.
    let z = x * x;
    let s = fma(fma(fma(-1.9515295891e-4, z, 8.3321608736e-3), z, -1.6666654611e-1) * z, x, x);
    let c = fma(fma(fma(2.443315711809948e-5, z, -1.388731625493765e-3), z, 4.166664568298827e-2) * z, z,
        fma(-0.5, z, 1.0));
    var out = vec2<f32>(c, s);
    if ((quarter & 1u) == 1u) {
        out = vec2<f32>(-s, c);
    }
    if ((quarter & 2u) == 2u) {
        out = -out;
    }
    if (freq < 0.0) {
        out.y = -out.y;
    }
    return out;
}
