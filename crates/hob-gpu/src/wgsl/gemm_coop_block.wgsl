// A block of weight $W$ on its way to workgroup memory: read, and later put there as 32 halves.
fn fetch_$W$(row: u32, block: u32) -> Raw {
    //#if TAIL
    if (block >= sizes.blocks) {
        return Raw();
    }
    //#endif
    //#if FLOATS
    let w = weights_$W$(row, sizes.blocks, block);
    return Raw(array(finite(w[0]), finite(w[1]), finite(w[2]), finite(w[3]), finite(w[4]), finite(w[5]), finite(w[6]), finite(w[7])));
    //#else
    return code_words_$W$(row, sizes.blocks, block);
    //#endif
}

//#if !FLOATS
fn fetch_scales_$W$(row: u32, block: u32) -> ScaleWords {
    //#if TAIL
    if (block >= sizes.blocks) {
        return ScaleWords();
    }
    //#endif
    return scale_words_$W$(row, sizes.blocks, block);
}
//#endif

//#if FLOATS
fn put_$W$(at: u32, block: u32, raw: Raw, scales: ScaleWords) {
    //#for i 8
    tile_w[at + $i$u] = raw.p[$i$];
    //#endfor
}
//#else
// Four codes as weights. A byte under the bits of 1024 is the half 1024 + code, or 1152 + code for signed ones with
// the sign flipped.
//#if EXACT
// The scale is an f16, so the product is rounded once.
fn halves_$W$(word: u32, s: f32, m: f32) -> vec4<f16> {
    //#if SIGNED
    let biased = word ^ 0x80808080u;
    //#else
    let biased = word;
    //#endif
    let even = vec2<f16>(unpack2x16float((biased & 0x00ff00ffu) | 0x64006400u));
    let odd = vec2<f16>(unpack2x16float(((biased >> 8u) & 0x00ff00ffu) | 0x64006400u));
    return (vec4(even.x, odd.x, even.y, odd.y) - f16($TAKEN$)) * f16(s);
}
//#else
// Scaled in f32, rounded once; `m` has what is too much taken off.
fn halves_$W$(word: u32, s: f32, m: f32) -> vec4<f16> {
    //#if SIGNED
    let biased = word ^ 0x80808080u;
    //#else
    let biased = word;
    //#endif
    let even = unpack2x16float((biased & 0x00ff00ffu) | 0x64006400u);
    let odd = unpack2x16float(((biased >> 8u) & 0x00ff00ffu) | 0x64006400u);
    return vec4<f16>(fma(vec4(even.x, odd.x, even.y, odd.y), vec4(s), vec4(m)));
}
//#endif

fn put_$W$(at: u32, block: u32, raw: Raw, scales: ScaleWords) {
    let codes = codes_of_$W$(raw);
    let all = scales_of_$W$(scales, block);
    let s = all.s;
    //#if EXACT
    let m = all.m;
    //#else
    let m = all.m - $TAKEN$.0 * s;
    //#endif
    tile_w[at] = halves_$W$(codes.lo.x, s.x, m.x);
    tile_w[at + 1u] = halves_$W$(codes.lo.y, s.x, m.x);
    tile_w[at + 2u] = halves_$W$(codes.lo.z, s.x, m.x);
    tile_w[at + 3u] = halves_$W$(codes.lo.w, s.x, m.x);
    tile_w[at + 4u] = halves_$W$(codes.hi.x, s.y, m.y);
    tile_w[at + 5u] = halves_$W$(codes.hi.y, s.y, m.y);
    tile_w[at + 6u] = halves_$W$(codes.hi.z, s.y, m.y);
    tile_w[at + 7u] = halves_$W$(codes.hi.w, s.y, m.y);
}
//#endif
