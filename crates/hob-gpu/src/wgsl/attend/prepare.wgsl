//#if NEW
//#if ROTATES
// Cosine and sine of a pair of dimensions, times the magnitude; the pair's dimensions.
fn turn_of(pair: u32, position: u32) -> vec2<f32> {
    return rope_angle(position, freqs[pair]) * sizes.magnitude;
}

fn pair_of(pair: u32) -> vec2<u32> {
    //#if INTERLEAVED
    return vec2<u32>(2u * pair, 2u * pair + 1u);
    //#else
    return vec2<u32>(pair, pair + sizes.rotary);
    //#endif
}
//#endif

// Stores K and V of the new row of a KV head.
fn store_new(row: u32, kv_head: u32, position: u32, page: u32, lane: u32) {
    let block = block_of(page, position / 256u, kv_head, (position / 64u) % 4u);
    let eight = (position / 8u) % 8u;
    let base = position % 8u;
    let first = (row * KV_HEADS + kv_head) * HEAD_DIM;
    for (var i = lane; i < HEAD_DIM; i += LANES) {
        fresh[i] = k_rows[first + i];
    }
    workgroupBarrier();
    //#if NORMS
    var squares = 0.0;
    for (var i = lane; i < HEAD_DIM; i += LANES) {
        squares = fma(fresh[i], fresh[i], squares);
    }
    weights[lane * COLUMN_FOURS] = vec4<f32>(squares);
    workgroupBarrier();
    sum_of_all(lane);
    let r = 1.0 / sqrt(weights[0].x / f32(HEAD_DIM) + sizes.k_eps);
    for (var i = lane; i < HEAD_DIM; i += LANES) {
        fresh[i] = fresh[i] * r * k_norm[i];
    }
    workgroupBarrier();
    //#endif
    //#if ROTATES
    for (var i = lane; i < sizes.rotary; i += LANES) {
        let turn = turn_of(i, position);
        let dims = pair_of(i);
        let x = fresh[dims.x];
        let y = fresh[dims.y];
        fresh[dims.x] = fma(x, turn.x, -(y * turn.y));
        fresh[dims.y] = fma(y, turn.x, x * turn.y);
    }
    workgroupBarrier();
    //#endif
    //#if K_ROTATED
    rotate_fresh(lane);
    //#endif
    encode_k(block, eight, base, 1u << base, lane);
    for (var i = lane; i < HEAD_DIM; i += LANES) {
        fresh[i] = v_rows[first + i];
    }
    workgroupBarrier();
    //#if V_ROTATED
    rotate_fresh(lane);
    //#endif
    encode_v(block, eight, base, 1u << base, lane);
}
//#endif

// The queries of the tile's columns, normed and rotated where that is left to do, and their codes.
fn prepare(row: u32, tile: u32, count: u32, kv_head: u32, position: u32, lane: u32) {
    for (var i = lane; i < HEAD_DIM * COLUMN_FOURS; i += LANES) {
        let dim = i % HEAD_DIM;
        let v = i / HEAD_DIM;
        var x = vec4<f32>(0.0);
        //#for j 4
        {
            let column = tile * COLUMNS + 4u * v + $j$u;
            if (column < count) {
                let head = kv_head * sizes.group + column % sizes.group;
                x[$j$] = q_rows[((row + column / sizes.group) * sizes.heads + head) * HEAD_DIM + dim];
            }
        }
        //#endfor
        queries[dim * COLUMN_FOURS + v] = x;
    }
    workgroupBarrier();
    //#if NORMS
    //#for v CV
    var squares$v$ = vec4<f32>(0.0);
    //#endfor
    for (var i = lane; i < HEAD_DIM; i += LANES) {
        //#for v CV
        squares$v$ = fma(queries[i * COLUMN_FOURS + $v$u], queries[i * COLUMN_FOURS + $v$u], squares$v$);
        //#endfor
    }
    //#for v CV
    weights[lane * COLUMN_FOURS + $v$u] = squares$v$;
    //#endfor
    workgroupBarrier();
    sum_of_all(lane);
    //#for v CV
    let r$v$ = 1.0 / sqrt(weights[$v$u] / f32(HEAD_DIM) + sizes.q_eps);
    //#endfor
    for (var i = lane; i < HEAD_DIM; i += LANES) {
        //#for v CV
        queries[i * COLUMN_FOURS + $v$u] = queries[i * COLUMN_FOURS + $v$u] * r$v$ * q_norm[i];
        //#endfor
    }
    workgroupBarrier();
    //#endif
    //#if ROTATES
    for (var i = lane; i < sizes.rotary; i += LANES) {
        let turn = turn_of(i, position);
        let dims = pair_of(i);
        //#for v CV
        {
            let x = queries[dims.x * COLUMN_FOURS + $v$u];
            let y = queries[dims.y * COLUMN_FOURS + $v$u];
            queries[dims.x * COLUMN_FOURS + $v$u] = fma(x, vec4<f32>(turn.x), -(y * turn.y));
            queries[dims.y * COLUMN_FOURS + $v$u] = fma(y, vec4<f32>(turn.x), x * turn.y);
        }
        //#endfor
    }
    workgroupBarrier();
    //#endif
    //#if K_ROTATED
    for (var stride = 1u; stride < $SPAN$u; stride *= 2u) {
        for (var i = lane; i < HEAD_DIM / 2u * COLUMN_FOURS; i += LANES) {
            let pair = i / COLUMN_FOURS;
            let at = ((pair / stride) * 2u * stride + pair % stride) * COLUMN_FOURS + i % COLUMN_FOURS;
            let x = queries[at];
            let y = queries[at + stride * COLUMN_FOURS];
            queries[at] = x + y;
            queries[at + stride * COLUMN_FOURS] = x - y;
        }
        workgroupBarrier();
    }
    for (var i = lane; i < HEAD_DIM * COLUMN_FOURS; i += LANES) {
        queries[i] *= $SPAN_FACTOR$;
    }
    workgroupBarrier();
    //#endif
    //#if K_PACKED
    // One lane per four dimensions of four columns; the first of a group adds up its codes as well.
    for (var i = lane; i < HEAD_DIM / 4u * COLUMN_FOURS; i += LANES) {
        let v = i % COLUMN_FOURS;
        let word = i / COLUMN_FOURS;
        let group = word / 8u;
        var most = vec4<f32>(0.0);
        for (var k = 0u; k < 32u; k++) {
            most = max(most, abs(queries[(32u * group + k) * COLUMN_FOURS + v]));
        }
        // What is neither 0 nor out of reach: else all codes are 0.
        let usable = (most > vec4<f32>($Q_MOST$ / 3.4e38)) & (most < vec4<f32>(3.4e38));
        let factor = select(vec4<f32>(0.0), $Q_MOST$ / most, usable);
        var codes = vec4<u32>(0u);
        //#if K_Q8
        var lows = vec4<u32>(0u);
        //#endif
        for (var k = 0u; k < 4u; k++) {
            let code = vec4<i32>(round(queries[(4u * word + k) * COLUMN_FOURS + v] * factor));
            //#if K_Q8
            let high = (code + 128) >> vec4<u32>(8u);
            lows |= (bitcast<vec4<u32>>(code - 256 * high) & vec4<u32>(255u)) << vec4<u32>(8u * k);
            codes |= (bitcast<vec4<u32>>(high) & vec4<u32>(255u)) << vec4<u32>(8u * k);
            //#else
            codes |= (bitcast<vec4<u32>>(code) & vec4<u32>(255u)) << vec4<u32>(8u * k);
            //#endif
        }
        q_codes[word * COLUMN_FOURS + v] = codes;
        //#if K_Q8
        q_lows[word * COLUMN_FOURS + v] = lows;
        //#endif
        if (word % 8u == 0u) {
            let scale = select(vec4<f32>(0.0), most / $Q_MOST$, usable);
            q_scales[group * COLUMN_FOURS + v] = scale;
            //#if K_NIBBLES
            var sum = vec4<f32>(0.0);
            for (var k = 0u; k < 32u; k++) {
                sum += round(queries[(32u * group + k) * COLUMN_FOURS + v] * factor);
            }
            //#if K_ASYM
            q_sums[group * COLUMN_FOURS + v] = sum * scale;
            //#else
            // Where products start: the codes of K are stored plus 8.
            q_sums[group * COLUMN_FOURS + v] = MAGIC - 8.0 * sum;
            //#endif
            //#endif
        }
    }
    workgroupBarrier();
    //#endif
}
