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

// What a block's codes are made of, as it lies there: a read and no more, so that it may travel while others compute.
fn code_words_$S$(row: u32, blocks: u32, block: u32) -> CodeWords {
    let start = start_$S$(row, blocks);
    var words: CodeWords;
    //#if FOUR
    words.main = w_$S$[start + $P0$ + block];
    //#endif
    //#if EIGHT
    words.main = w_$S$[start + $P0$ + block];
    words.more = w_$S$[start + $P0$ + blocks + block];
    //#endif
    //#if TWO
    words.more.x = word_$S$(start + $P0$, block);
    words.more.y = word_$S$(start + $P0$, blocks + block);
    //#endif
    //#if HIGH_TWO
    words.more.x = word_$S$(start + $P1$, block);
    words.more.y = word_$S$(start + $P1$, blocks + block);
    //#endif
    //#if ONE
    words.more.z = word_$S$(start + $P1$, block);
    //#endif
    return words;
}

fn codes_of_$S$(words: CodeWords) -> Codes {
    //#if FOUR
    var lo = words.main & vec4(0x0f0f0f0fu);
    var hi = (words.main >> vec4(4u)) & vec4(0x0f0f0f0fu);
    //#endif
    //#if EIGHT
    let lo = words.main;
    let hi = words.more;
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
    var lo = (vec4(words.more.x) >> vec4(0u, 2u, 4u, 6u)) & vec4(0x03030303u);
    var hi = (vec4(words.more.y) >> vec4(0u, 2u, 4u, 6u)) & vec4(0x03030303u);
    //#endif
    //#if HIGH_TWO
    lo |= ((vec4(words.more.x) >> vec4(0u, 2u, 4u, 6u)) & vec4(0x03030303u)) << vec4(4u);
    hi |= ((vec4(words.more.y) >> vec4(0u, 2u, 4u, 6u)) & vec4(0x03030303u)) << vec4(4u);
    //#endif
    //#if ONE
    let one = vec4(words.more.z);
    lo |= ((one >> vec4(0u, 1u, 2u, 3u)) & vec4(0x01010101u)) << vec4($SHIFT$);
    hi |= ((one >> vec4(4u, 5u, 6u, 7u)) & vec4(0x01010101u)) << vec4($SHIFT$);
    //#endif
    return Codes(lo, hi);
}

fn codes_$S$(row: u32, blocks: u32, block: u32) -> Codes {
    return codes_of_$S$(code_words_$S$(row, blocks, block));
}

// Words of the scales of a superblock, or of a block that has a word or more; 0 where a block's own word says all.
fn shared_words_$S$(row: u32, blocks: u32, block: u32) -> vec4<u32> {
    let last = start_$S$(row, blocks) + $LAST$;
    var words = vec4(0u);
    //#if PAIR
    words.x = word_$S$(last, block);
    //#endif
    //#if Q2K
    words.x = word_$S$(last, block / 8u);
    //#endif
    //#if Q3K
    words = w_$S$[last + block / 8u];
    //#endif
    //#if Q4K
    words = w_$S$[last + block / 8u];
    //#endif
    //#if Q6K
    words.x = word_$S$(last, block / 16u);
    //#endif
    //#if IQ4XS
    words.x = word_$S$(last, block / 8u * 2u);
    words.y = word_$S$(last, block / 8u * 2u + 1u);
    //#endif
    return words;
}

// Scales from what blocks share and from the block's own word.
fn scales_from_$S$(words: vec4<u32>, own: u32, block: u32) -> Scales {
    let b = block % 8u;
    //#if HALF
    let s = unpack2x16float(own >> (16u * (b % 2u))).x;
    return Scales(vec2(s), vec2(0.0));
    //#endif
    //#if PAIR
    let both = unpack2x16float(words.x);
    return Scales(vec2(both.x), vec2(both.y));
    //#endif
    //#if E8M0
    let code = (own >> (8u * (b % 4u))) & 255u;
    // Half of 2^(code - 127); codes 0 and 1 are subnormal.
    let bits = select((code - 1u) << 23u, 0x00200000u << code, code < 2u);
    return Scales(vec2(bitcast<f32>(bits)), vec2(0.0));
    //#endif
    //#if Q2K
    let both = own >> (16u * (b % 2u));
    let d = unpack2x16float(words.x);
    let s = vec2<f32>(vec2(both & 15u, (both >> 8u) & 15u));
    let m = vec2<f32>(vec2((both >> 4u) & 15u, (both >> 12u) & 15u));
    return Scales(d.x * s, -d.y * m);
    //#endif
    //#if Q3K
    let low = select(words.y, words.z, b >= 4u) >> (8u * (b % 4u));
    let high = words.w >> (4u * b);
    let s = vec2((low & 15u) | ((high & 3u) << 4u), ((low >> 4u) & 15u) | ((high & 12u) << 2u));
    return Scales(unpack2x16float(words.x).x * (vec2<f32>(s) - 32.0), vec2(0.0));
    //#endif
    //#if Q4K
    let d = unpack2x16float(words.x);
    let pairs = words.w >> (2u * b);
    let s = ((words.y >> (4u * b)) & 15u) | ((pairs & 3u) << 4u);
    let m = ((words.z >> (4u * b)) & 15u) | ((pairs >> 12u) & 48u);
    return Scales(vec2(d.x * f32(s)), vec2(-d.y * f32(m)));
    //#endif
    //#if Q6K
    let both = own >> (16u * (b % 2u));
    let d = unpack2x16float(words.x >> (16u * (block / 8u % 2u))).x;
    return Scales(d * vec2<f32>(vec2(i32(both << 24u) >> 24u, i32(both << 16u) >> 24u)), vec2(0.0));
    //#endif
    //#if IQ4XS
    let low = (words.y >> (4u * b)) & 15u;
    let s = low | (((words.x >> (16u + 2u * b)) & 3u) << 4u);
    return Scales(vec2(unpack2x16float(words.x).x * (f32(s) - 32.0)), vec2(0.0));
    //#endif
}

fn scales_$S$(row: u32, blocks: u32, block: u32) -> Scales {
    var own = 0u;
    //#if OWN
    own = word_$S$(start_$S$(row, blocks) + $OWN_PLANE$, block / $OWN_BLOCKS$u);
    //#endif
    return scales_from_$S$(shared_words_$S$(row, blocks, block), own, block);
}

// The same for a run of $RUN$ blocks, a multiple of which `block` is in: read once for all of them.
fn scale_words_$S$(row: u32, blocks: u32, block: u32) -> ScaleWords {
    var words: ScaleWords;
    words.shared_ = shared_words_$S$(row, blocks, block);
    //#if OWN
    let plane = start_$S$(row, blocks) + $OWN_PLANE$;
    words.own = w_$S$[plane + block / (4u * $OWN_BLOCKS$u)];
    //#endif
    return words;
}

fn scales_of_$S$(words: ScaleWords, block: u32) -> Scales {
    var own = 0u;
    //#if OWN
    let at = block / $OWN_BLOCKS$u;
    let two = select(words.own.xy, words.own.zw, at % 4u >= 2u);
    own = select(two.x, two.y, at % 2u == 1u);
    //#endif
    return scales_from_$S$(words.shared_, own, block);
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
