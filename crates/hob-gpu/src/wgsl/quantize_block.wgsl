// The int8 form of 32 values from `at` on in the workgroup array `$VALUES$`: the rule of hob_compute::act.
fn quantize_largest(at: u32) -> f32 {
    var most = 0u;
    for (var i = 0u; i < 32u; i++) {
        // As bits, NaN is larger than any number.
        most = max(most, bitcast<u32>($VALUES$[at + i]) & 0x7fffffffu);
    }
    return bitcast<f32>(most);
}

fn quantize_four(at: u32, largest: f32) -> vec4<i32> {
    let usable = bitcast<u32>(largest) < 0x7f800000u && largest > 1e-30;
    let v = vec4($VALUES$[at], $VALUES$[at + 1u], $VALUES$[at + 2u], $VALUES$[at + 3u]);
    return vec4<i32>(round(select(vec4(0.0), v * (127.0 / largest), usable)));
}

// Word `word` of the block's 8: codes 4 * word..4 * word + 4.
fn quantize_word(at: u32, word: u32) -> u32 {
    return pack4xI8(quantize_four(at + 4u * word, quantize_largest(at)));
}

// The block's pair in `meta`.
fn quantize_meta(at: u32) -> vec2<u32> {
    let largest = quantize_largest(at);
    var sums = vec2(0);
    for (var i = 0u; i < 4u; i++) {
        let low = quantize_four(at + 4u * i, largest);
        let high = quantize_four(at + 16u + 4u * i, largest);
        sums += vec2(low.x + low.y + low.z + low.w, high.x + high.y + high.z + high.w);
    }
    var scale = 0x7fc00000u;
    if (bitcast<u32>(largest) < 0x7f800000u) {
        scale = select(0u, bitcast<u32>(largest / 127.0), largest > 1e-30);
    }
    return vec2(scale, (bitcast<u32>(sums.x) & 0xffffu) | (bitcast<u32>(sums.y) << 16u));
}
