// The int8 form of 32 values from `at` on in the workgroup array `$VALUES$`: the rule of hob_compute::act.
fn quantize_largest(at: u32) -> f32 {
    var most = 0u;
    for (var i = 0u; i < 32u; i++) {
        // As bits, NaN is larger than any number.
        most = max(most, bitcast<u32>($VALUES$[at + i]) & 0x7fffffffu);
    }
    return bitcast<f32>(most);
}

fn four_values(at: u32) -> vec4<f32> {
    return vec4($VALUES$[at], $VALUES$[at + 1u], $VALUES$[at + 2u], $VALUES$[at + 3u]);
}

fn quantize_four(v: vec4<f32>, largest: f32) -> vec4<i32> {
    let usable = bitcast<u32>(largest) < 0x7f800000u && largest > 1e-30;
    return vec4<i32>(round(select(vec4(0.0), v * (127.0 / largest), usable)));
}

// Word `word` of the block's 8: codes 4 * word..4 * word + 4.
fn quantize_word(at: u32, word: u32) -> u32 {
    return pack4xI8(quantize_four(four_values(at + 4u * word), quantize_largest(at)));
}

// The block's pair in `meta`.
fn quantize_meta(at: u32) -> vec2<u32> {
    let largest = quantize_largest(at);
    var sums = vec2(0);
    for (var i = 0u; i < 4u; i++) {
        let low = quantize_four(four_values(at + 4u * i), largest);
        let high = quantize_four(four_values(at + 16u + 4u * i), largest);
        sums += vec2(low.x + low.y + low.z + low.w, high.x + high.y + high.z + high.w);
    }
    return quantize_pair(largest, sums);
}

fn quantize_pair(largest: f32, sums: vec2<i32>) -> vec2<u32> {
    var scale = 0x7fc00000u;
    if (bitcast<u32>(largest) < 0x7f800000u) {
        scale = select(0u, bitcast<u32>(largest / 127.0), largest > 1e-30);
    }
    return vec2(scale, (bitcast<u32>(sums.x) & 0xffffu) | (bitcast<u32>(sums.y) << 16u));
}

//#if SHARED
struct Shared { codes: u32, meta_: vec2<u32> }

// By eight neighbouring lanes of a subgroup, the first a multiple of eight from the subgroup's first, each with four values
// of the block: the word of each, and the block's pair for the first of them.
fn quantize_shared(v: vec4<f32>) -> Shared {
    let bits = bitcast<vec4<u32>>(v) & vec4(0x7fffffffu);
    var most = max(max(bits.x, bits.y), max(bits.z, bits.w));
    most = max(most, subgroupShuffleXor(most, 1u));
    most = max(most, subgroupShuffleXor(most, 2u));
    most = max(most, subgroupShuffleXor(most, 4u));
    let largest = bitcast<f32>(most);
    let four = quantize_four(v, largest);
    var sum = four.x + four.y + four.z + four.w;
    sum += subgroupShuffleXor(sum, 1u);
    sum += subgroupShuffleXor(sum, 2u);
    let other = subgroupShuffleXor(sum, 4u);
    return Shared(pack4xI8(four), quantize_pair(largest, vec2(sum, other)));
}
//#endif
