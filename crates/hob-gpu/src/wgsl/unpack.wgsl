const OFFSET_$S$: i32 = $OFFSET$;

fn start_$S$(row: u32, blocks: u32) -> u32 {
    return row * ($STRIDE$);
}

//#if FLOATS
fn piece_$S$(row: u32, blocks: u32, piece: u32) -> array<vec4<f32>, 2> {
    let start = start_$S$(row, blocks);
    //#if F32
    return array(bitcast<vec4<f32>>(w_$S$[start + 2u * piece]), bitcast<vec4<f32>>(w_$S$[start + 2u * piece + 1u]));
    //#else
    let v = w_$S$[start + piece];
    //#if F16
    return array(
        vec4(unpack2x16float(v.x), unpack2x16float(v.y)),
        vec4(unpack2x16float(v.z), unpack2x16float(v.w)),
    );
    //#else
    let even = bitcast<vec4<f32>>(v << vec4(16u));
    let odd = bitcast<vec4<f32>>(v & vec4(0xffff0000u));
    return array(vec4(even.x, odd.x, even.y, odd.y), vec4(even.z, odd.z, even.w, odd.w));
    //#endif
    //#endif
}

fn weights_$S$(row: u32, blocks: u32, block: u32) -> array<vec4<f32>, 8> {
    let p0 = piece_$S$(row, blocks, 4u * block);
    let p1 = piece_$S$(row, blocks, 4u * block + 1u);
    let p2 = piece_$S$(row, blocks, 4u * block + 2u);
    let p3 = piece_$S$(row, blocks, 4u * block + 3u);
    return array(p0[0], p0[1], p1[0], p1[1], p2[0], p2[1], p3[0], p3[1]);
}
//#else
// The word `at` words behind vector `start`.
fn word_$S$(start: u32, at: u32) -> u32 {
    return w_$S$[start + at / 4u][at % 4u];
}

fn codes_$S$(row: u32, blocks: u32, block: u32) -> Codes {
    let start = start_$S$(row, blocks);
    //#if FOUR
    let four = w_$S$[start + $P0$ + block];
    var lo = four & vec4(0x0f0f0f0fu);
    var hi = (four >> vec4(4u)) & vec4(0x0f0f0f0fu);
    //#endif
    //#if EIGHT
    let lo = w_$S$[start + $P0$ + block];
    let hi = w_$S$[start + $P0$ + blocks + block];
    //#endif
    //#if LEVELS
    lo = iq4_levels(lo);
    hi = iq4_levels(hi);
    //#endif
    //#if FP4
    lo = fp4_levels(lo);
    hi = fp4_levels(hi);
    //#endif
    //#if TWO
    let two_lo = word_$S$(start + $P0$, block);
    let two_hi = word_$S$(start + $P0$, blocks + block);
    var lo = (vec4(two_lo) >> vec4(0u, 2u, 4u, 6u)) & vec4(0x03030303u);
    var hi = (vec4(two_hi) >> vec4(0u, 2u, 4u, 6u)) & vec4(0x03030303u);
    //#endif
    //#if HIGH_TWO
    let two_lo = word_$S$(start + $P1$, block);
    let two_hi = word_$S$(start + $P1$, blocks + block);
    lo |= ((vec4(two_lo) >> vec4(0u, 2u, 4u, 6u)) & vec4(0x03030303u)) << vec4(4u);
    hi |= ((vec4(two_hi) >> vec4(0u, 2u, 4u, 6u)) & vec4(0x03030303u)) << vec4(4u);
    //#endif
    //#if ONE
    let one = vec4(word_$S$(start + $P1$, block));
    lo |= ((one >> vec4(0u, 1u, 2u, 3u)) & vec4(0x01010101u)) << vec4($SHIFT$);
    hi |= ((one >> vec4(4u, 5u, 6u, 7u)) & vec4(0x01010101u)) << vec4($SHIFT$);
    //#endif
    return Codes(lo, hi);
}

fn scales_$S$(row: u32, blocks: u32, block: u32) -> Scales {
    let start = start_$S$(row, blocks);
    //#if HALF
    let last = start + $LAST$;
    let s = unpack2x16float(word_$S$(last, block / 2u) >> (16u * (block % 2u))).x;
    return Scales(vec2(s), vec2(0.0));
    //#endif
    //#if PAIR
    let both = unpack2x16float(word_$S$(start + $LAST$, block));
    return Scales(vec2(both.x), vec2(both.y));
    //#endif
    //#if E8M0
    let code = (word_$S$(start + $LAST$, block / 4u) >> (8u * (block % 4u))) & 255u;
    // Half of 2^(code - 127); codes 0 and 1 are subnormal.
    let bits = select((code - 1u) << 23u, 0x00200000u << code, code < 2u);
    return Scales(vec2(bitcast<f32>(bits)), vec2(0.0));
    //#endif
    //#if Q2K
    let both = word_$S$(start + $P1$, block / 2u) >> (16u * (block % 2u));
    let d = unpack2x16float(word_$S$(start + $LAST$, block / 8u));
    let s = vec2<f32>(vec2(both & 15u, (both >> 8u) & 15u));
    let m = vec2<f32>(vec2((both >> 4u) & 15u, (both >> 12u) & 15u));
    return Scales(d.x * s, -d.y * m);
    //#endif
    //#if Q3K
    let super_ = w_$S$[start + $LAST$ + block / 8u];
    let b = block % 8u;
    let low = select(super_.y, super_.z, b >= 4u) >> (8u * (b % 4u));
    let high = super_.w >> (4u * b);
    let s = vec2((low & 15u) | ((high & 3u) << 4u), ((low >> 4u) & 15u) | ((high & 12u) << 2u));
    return Scales(unpack2x16float(super_.x).x * (vec2<f32>(s) - 32.0), vec2(0.0));
    //#endif
    //#if Q4K
    let super_ = w_$S$[start + $LAST$ + block / 8u];
    let b = block % 8u;
    let d = unpack2x16float(super_.x);
    let pairs = super_.w >> (2u * b);
    let s = ((super_.y >> (4u * b)) & 15u) | ((pairs & 3u) << 4u);
    let m = ((super_.z >> (4u * b)) & 15u) | ((pairs >> 12u) & 48u);
    return Scales(vec2(d.x * f32(s)), vec2(-d.y * f32(m)));
    //#endif
    //#if Q6K
    let both = word_$S$(start + $P2$, block / 2u) >> (16u * (block % 2u));
    let super_ = block / 8u;
    let d = unpack2x16float(word_$S$(start + $LAST$, super_ / 2u) >> (16u * (super_ % 2u))).x;
    return Scales(d * vec2<f32>(vec2(i32(both << 24u) >> 24u, i32(both << 16u) >> 24u)), vec2(0.0));
    //#endif
    //#if IQ4XS
    let super_ = block / 8u;
    let b = block % 8u;
    let head = word_$S$(start + $LAST$, 2u * super_);
    let low = (word_$S$(start + $LAST$, 2u * super_ + 1u) >> (4u * b)) & 15u;
    let s = low | (((head >> (16u + 2u * b)) & 3u) << 4u);
    return Scales(vec2(unpack2x16float(head).x * (f32(s) - 32.0)), vec2(0.0));
    //#endif
}

fn weights_$S$(row: u32, blocks: u32, block: u32) -> array<vec4<f32>, 8> {
    let codes = codes_$S$(row, blocks, block);
    let scales = scales_$S$(row, blocks, block);
    return array(
        four_floats(codes.lo.x, $OFFSET$) * scales.s.x + scales.m.x,
        four_floats(codes.lo.y, $OFFSET$) * scales.s.x + scales.m.x,
        four_floats(codes.lo.z, $OFFSET$) * scales.s.x + scales.m.x,
        four_floats(codes.lo.w, $OFFSET$) * scales.s.x + scales.m.x,
        four_floats(codes.hi.x, $OFFSET$) * scales.s.y + scales.m.y,
        four_floats(codes.hi.y, $OFFSET$) * scales.s.y + scales.m.y,
        four_floats(codes.hi.z, $OFFSET$) * scales.s.y + scales.m.y,
        four_floats(codes.hi.w, $OFFSET$) * scales.s.y + scales.m.y,
    );
}
//#endif
