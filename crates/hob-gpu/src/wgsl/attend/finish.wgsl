// Writes `result`, [columns][HEAD_DIM], turned back where V is stored rotated, as rows of the output, and its int8 form
// where there is one.
//#if INT8
var<workgroup> finished: array<u32, $WORDS$>;
var<workgroup> largest: array<u32, $WORDS$>;
//#endif

// Columns from `first_column` of the rows from `row` on; GROUP columns to a row, whose heads begin with `first_head`.
fn finish(row: u32, first_column: u32, columns: u32, first_head: u32, lane: u32) {
    //#if V_ROTATED
    for (var stride = 1u; stride < $SPAN$u; stride *= 2u) {
        for (var i = lane; i < columns * (HEAD_DIM / 2u); i += LANES) {
            let a = 2u * i - (i & (stride - 1u));
            let x = result[a];
            let y = result[a + stride];
            result[a] = x + y;
            result[a + stride] = x - y;
        }
        workgroupBarrier();
    }
    for (var i = lane; i < columns * HEAD_DIM; i += LANES) {
        result[i] *= $SPAN_FACTOR$;
    }
    workgroupBarrier();
    //#endif
    for (var i = lane; i < columns * HEAD_DIM; i += LANES) {
        let column = first_column + i / HEAD_DIM;
        out[((row + column / GROUP) * sizes.heads + first_head + column % GROUP) * HEAD_DIM + i % HEAD_DIM] = result[i];
    }
    //#if INT8
    // One lane per word of four codes, eight to a block; see hob_compute::act.
    let words = columns * (HEAD_DIM / 4u);
    for (var i = lane; i < words; i += LANES) {
        // As bits, NaN is larger than any number.
        var bits = bitcast<u32>(result[4u * i]) & 0x7fffffffu;
        //#for k 3
        bits = max(bits, bitcast<u32>(result[4u * i + $k$u + 1u]) & 0x7fffffffu);
        //#endfor
        largest[i] = bits;
    }
    workgroupBarrier();
    let groups = sizes.heads * (HEAD_DIM / 32u);
    for (var i = lane; i < words; i += LANES) {
        let bits = largest_of(i / 8u);
        let size = bitcast<f32>(bits);
        let usable = bits < 0x7f800000u && size > 1.0e-30;
        let inverse = select(0.0, 127.0 / size, usable);
        var word = 0u;
        for (var k = 0u; k < 4u; k++) {
            let code = select(0, i32(round(result[4u * i + k] * inverse)), usable);
            word |= (bitcast<u32>(code) & 255u) << (8u * k);
        }
        finished[i] = word;
        let column = first_column + i / (HEAD_DIM / 4u);
        let at = row + column / GROUP;
        let block = (first_head + column % GROUP) * (HEAD_DIM / 32u) + (i / 8u) % (HEAD_DIM / 32u);
        codes[4u * (2u * at * groups + ((i / 4u) & 1u) * groups + block) + (i & 3u)] = word;
    }
    workgroupBarrier();
    for (var g = lane; g < words / 8u; g += LANES) {
        let bits = largest_of(g);
        var scale = bitcast<u32>(bitcast<f32>(bits) / 127.0);
        if (bitcast<f32>(bits) <= 1.0e-30) {
            scale = 0u;
        }
        if (bits >= 0x7f800000u) {
            scale = 0x7fc00000u;
        }
        var sums = vec2<i32>(0);
        //#for k 4
        sums += vec2<i32>(dot4I8Packed(finished[8u * g + $k$u], 0x01010101u), dot4I8Packed(finished[8u * g + 4u + $k$u], 0x01010101u));
        //#endfor
        let column = first_column + g / (HEAD_DIM / 32u);
        let block = (first_head + column % GROUP) * (HEAD_DIM / 32u) + g % (HEAD_DIM / 32u);
        metas[(row + column / GROUP) * groups + block] = vec2<u32>(scale, bitcast<u32>(sums.x & 0xffff) | (bitcast<u32>(sums.y) << 16u));
    }
    //#endif
}
//#if INT8

fn largest_of(block: u32) -> u32 {
    var bits = largest[8u * block];
    //#for k 7
    bits = max(bits, largest[8u * block + $k$u + 1u]);
    //#endfor
    return bits;
}
//#endif
