// 32 weights of row `row` times block `block` of row `at` of the input.
//#if INT8
fn product_$S$(row: u32, blocks: u32, block: u32, at: u32) -> f32 {
    let lo = x_codes[2u * at * blocks + block];
    let hi = x_codes[(2u * at + 1u) * blocks + block];
    let form = x_meta[at * blocks + block];
    let sums = vec2(bitcast<i32>(form.y << 16u) >> 16u, bitcast<i32>(form.y) >> 16u);
    let w = codes_$S$(row, blocks, block);
    let s = scales_$S$(row, blocks, block);
    let low = dot4I8Packed(w.lo.x, lo.x) + dot4I8Packed(w.lo.y, lo.y) + dot4I8Packed(w.lo.z, lo.z)
        + dot4I8Packed(w.lo.w, lo.w);
    let high = dot4I8Packed(w.hi.x, hi.x) + dot4I8Packed(w.hi.y, hi.y) + dot4I8Packed(w.hi.z, hi.z)
        + dot4I8Packed(w.hi.w, hi.w);
    let dots = vec2<f32>(vec2(low, high) - OFFSET_$S$ * sums);
    return bitcast<f32>(form.x) * (dot(s.s, dots) + dot(s.m, vec2<f32>(sums)));
}
//#else
fn product_$S$(row: u32, blocks: u32, block: u32, at: u32) -> f32 {
    let w = weights_$S$(row, blocks, block);
    let start = at * COLS + 32u * block;
    var sum = 0.0;
    if (32u * block + 32u <= COLS) {
        //#for i 8
        sum += dot(w[$i$], vec4(x[start + 4u * $i$u], x[start + 4u * $i$u + 1u], x[start + 4u * $i$u + 2u], x[start + 4u * $i$u + 3u]));
        //#endfor
        return sum;
    }
    //#for i 8
    //#for j 4
    if (32u * block + 4u * $i$u + $j$u < COLS) {
        sum = fma(w[$i$][$j$], x[start + 4u * $i$u + $j$u], sum);
    }
    //#endfor
    //#endfor
    return sum;
}
//#endif
