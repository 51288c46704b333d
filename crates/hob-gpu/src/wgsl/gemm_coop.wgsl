enable f16;
//#if COOP
enable wgpu_cooperative_matrix;
//#endif
// A tile of $BM$ activation rows by $BN$ weight rows per workgroup, in steps of $BK$ along the input width, on
// cooperative matrices of 16 x 16 x 16 f16 with f32 sums, $WM$ x $WN$ per subgroup. Both operands lie in workgroup
// memory as f16, $S$ vectors of four per row, two of them unused so that rows start in different banks. What the next
// step needs travels into registers, as it lies in memory, while this step is multiplied: nothing waits for it. Reading
// is what the device has least of, so scales are read once for as many steps as one read holds. A gated pair takes one
// half of the weight rows each, and so does every subgroup's share of them.
//#include finish
//#include unpack
//#if HALF_OUT
//#include finite_half
//#endif

// A block of 32 weights as read: floats as f16, or words of codes.
//#if FLOATS
struct Raw { p: array<vec4<f16>, 8> }

fn finite(v: vec4<f32>) -> vec4<f16> {
    return vec4<f16>(clamp(v, vec4(-65504.0), vec4(65504.0)));
}
//#else
alias Raw = CodeWords;
//#endif

//#include block_a
//#if GATED
//#include block_b
//#endif

// In vectors of four: with f16 in it a vector is loaded into a cooperative matrix at once, and other types are refused by
// one driver's compiler.
var<workgroup> tile_x: array<vec4<f16>, $SIZE_X$>;
var<workgroup> tile_w: array<vec4<f16>, $SIZE_W$>;
// 16 x 16 sums per subgroup, on their way from a cooperative matrix to its 32 lanes.
var<workgroup> sums: array<vec4<f32>, $SUMS$>;

fn put_x(at: u32, v: vec4<u32>) {
    tile_x[at] = vec4<f16>(vec4(unpack2x16float(v.x), unpack2x16float(v.y)));
    tile_x[at + 1u] = vec4<f16>(vec4(unpack2x16float(v.z), unpack2x16float(v.w)));
}

// Where unit `u` of the first step lies: a piece of 8 values of the activations' form.
fn place_x(row0: u32, u: u32) -> u32 {
    //#if ROUTED
    let row = input_row(u / $PIECES$u);
    //#else
    let row = sizes.first_row + min(row0 + u / $PIECES$u, sizes.rows - 1u);
    //#endif
    return row * ((sizes.x_width + 31u) / 32u * 4u) + u % $PIECES$u;
}

fn fetch_x(place: u32, u: u32, step: u32) -> vec4<u32> {
    //#if TAIL
    if (step * $PIECES$u + u % $PIECES$u >= (sizes.x_width + 31u) / 32u * 4u) {
        return vec4(0u);
    }
    //#endif
    return x[place + step * $PIECES$u];
}

// Unit `u` of a step, one of $PER_ROW$ blocks of a tile row.
fn fetch_w(col0: u32, u: u32, step: u32) -> Raw {
    let r = u / $PER_ROW$u;
    let block = step * $PER_ROW$u + u % $PER_ROW$u;
    //#if GATED
    if (r >= $COLS$u) {
        return fetch_b($ROW_B$ + min(col0 + r - $COLS$u, sizes.cols - 1u), block);
    }
    //#endif
    return fetch_a($ROW_A$ + min(col0 + r, sizes.cols - 1u), block);
}

fn fetch_scales(col0: u32, u: u32, step: u32) -> ScaleWords {
    //#if FLOATS
    return ScaleWords();
    //#else
    let r = u / $PER_ROW$u;
    let block = step * $PER_ROW$u + u % $PER_ROW$u;
    //#if GATED
    if (r >= $COLS$u) {
        return fetch_scales_b($ROW_B$ + min(col0 + r - $COLS$u, sizes.cols - 1u), block);
    }
    //#endif
    return fetch_scales_a($ROW_A$ + min(col0 + r, sizes.cols - 1u), block);
    //#endif
}

fn put_w(at: u32, u: u32, step: u32, raw: Raw, scales: ScaleWords) {
    let block = step * $PER_ROW$u + u % $PER_ROW$u;
    //#if MIXED
    if (u / $PER_ROW$u >= $COLS$u) {
        put_b(at, block, raw, scales);
        return;
    }
    //#endif
    put_a(at, block, raw, scales);
}

//#if !COOP
// What a cooperative matrix does, one lane after the other: a lane has 8 sums of one row. For devices without them.
fn multiply_add(x: u32, w: u32, sums: array<vec4<f32>, 2>, lane: u32) -> array<vec4<f32>, 2> {
    var out = sums;
    for (var c = 0u; c < 8u; c++) {
        for (var k = 0u; k < 4u; k++) {
            let a = tile_x[x + lane / 2u * $S$u + k];
            let b = tile_w[w + (lane % 2u * 8u + c) * $S$u + k];
            out[c / 4u][c % 4u] += dot(vec4<f32>(a), vec4<f32>(b));
        }
    }
    return out;
}
//#endif

@compute @workgroup_size($THREADS$)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
    //#if COOP
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    //#endif
) {
    //#if !COOP
    let subgroup = t / 32u;
    let lane = t % 32u;
    //#endif
    //#if ROUTED
    if (group.x >= tiles[0].x) {
        return;
    }
    let tile = tiles[group.x + 1u];
    if ((tile.x < sizes.first) | (tile.x >= sizes.end)) {
        return;
    }
    take_tile(tile, t);
    workgroupBarrier();
    let row0 = 0u;
    //#else
    let row0 = group.x * $BM$u;
    //#endif
    let col0 = group.y * $COLS$u;
    let wm = (subgroup / $WARPS_N$u) * $WM$u;
    let wn = (subgroup % $WARPS_N$u) * $WARP_COLS$u;
    //#for i MF
    //#for h SIDES
    //#for j NF
    var acc_$i$_$h$_$j$: $SUM$;
    //#endfor
    //#endfor
    //#endfor
    let steps = (sizes.blocks + $PER_ROW$u - 1u) / $PER_ROW$u;
    //#for i XU
    let unit_x_$i$ = t + $i$u * $THREADS$u;
    let place_x_$i$ = place_x(row0, unit_x_$i$);
    let to_x_$i$ = unit_x_$i$ / $PIECES$u * $S$u + unit_x_$i$ % $PIECES$u * 2u;
    var x_$i$ = fetch_x(place_x_$i$, unit_x_$i$, 0u);
    //#endfor
    //#for i WU
    let unit_w_$i$ = t + $i$u * $THREADS$u;
    let to_w_$i$ = unit_w_$i$ / $PER_ROW$u * $S$u + unit_w_$i$ % $PER_ROW$u * 8u;
    var w_$i$ = fetch_w(col0, unit_w_$i$, 0u);
    //#if PAIRS
    var second_$i$ = fetch_w(col0, unit_w_$i$, min(1u, steps - 1u));
    //#endif
    var scales_$i$ = fetch_scales(col0, unit_w_$i$, 0u);
    //#endfor
    for (var step = 0u; step < steps; step++) {
        //#for i XU
        put_x(to_x_$i$, x_$i$);
        //#endfor
        //#for i WU
        //#if PAIRS
        if (step % 2u == 1u) {
            w_$i$ = second_$i$;
        }
        //#endif
        put_w(to_w_$i$, unit_w_$i$, step, w_$i$, scales_$i$);
        //#endfor
        workgroupBarrier();
        // Behind the last step nobody needs what is fetched: read again is simpler than a branch.
        let next = min(step + 1u, steps - 1u);
        //#for i XU
        x_$i$ = fetch_x(place_x_$i$, unit_x_$i$, next);
        //#endfor
        //#if PAIRS
        if (next % 2u == 0u) {
            //#for i WU
            w_$i$ = fetch_w(col0, unit_w_$i$, next);
            second_$i$ = fetch_w(col0, unit_w_$i$, min(next + 1u, steps - 1u));
            //#endfor
        }
        //#else
        //#for i WU
        w_$i$ = fetch_w(col0, unit_w_$i$, next);
        //#endfor
        //#endif
        //#if RUNS
        if (next * $PER_ROW$u % $RUN$u == 0u) {
            //#for i WU
            scales_$i$ = fetch_scales(col0, unit_w_$i$, next);
            //#endfor
        }
        //#else
        //#for i WU
        scales_$i$ = fetch_scales(col0, unit_w_$i$, next);
        //#endfor
        //#endif
        //#for k KF
        //#for i MF
        let xa_$k$_$i$ = (wm + 16u * $i$u) * $S$u + 4u * $k$u;
        //#if COOP
        let x_$k$_$i$ = coopLoadT<coop_mat16x16<f16, A>>(&tile_x[xa_$k$_$i$], $S$u);
        //#endif
        //#endfor
        //#for h SIDES
        //#for j NF
        let wa_$k$_$h$_$j$ = (wn + 16u * $j$u + $h$u * $COLS$u) * $S$u + 4u * $k$u;
        //#if COOP
        let w_$k$_$h$_$j$ = coopLoad<coop_mat16x16<f16, B>>(&tile_w[wa_$k$_$h$_$j$], $S$u);
        //#endif
        //#for i MF
        //#if COOP
        acc_$i$_$h$_$j$ = coopMultiplyAdd(x_$k$_$i$, w_$k$_$h$_$j$, acc_$i$_$h$_$j$);
        //#else
        acc_$i$_$h$_$j$ = multiply_add(xa_$k$_$i$, wa_$k$_$h$_$j$, acc_$i$_$h$_$j$, lane);
        //#endif
        //#endfor
        //#endfor
        //#endfor
        //#endfor
        workgroupBarrier();
    }
    //#if DIRECT
    // A whole tile goes where it belongs without a detour. (`&&` is no uniform condition to the compiler.)
    if ((row0 + $BM$u <= sizes.rows) & (col0 + $COLS$u <= sizes.cols)) {
        let wide = sizes.out_width / 4u;
        //#for i MF
        //#for j NF
        let at_$i$_$j$ = (row0 + wm + 16u * $i$u) * wide + (sizes.first_col + col0 + wn + 16u * $j$u) / 4u;
        //#if COOP
        //#if ADD
        let old_$i$_$j$ = coopLoadT<coop_mat16x16<f32, C>>(&out[at_$i$_$j$], wide);
        acc_$i$_0_$j$ = acc_$i$_0_$j$ + old_$i$_$j$;
        //#endif
        coopStoreT(acc_$i$_0_$j$, &out[at_$i$_$j$], wide);
        //#else
        let mine_$i$_$j$ = at_$i$_$j$ + lane / 2u * wide + lane % 2u * 2u;
        //#if ADD
        out[mine_$i$_$j$] += acc_$i$_0_$j$[0];
        out[mine_$i$_$j$ + 1u] += acc_$i$_0_$j$[1];
        //#else
        out[mine_$i$_$j$] = acc_$i$_0_$j$[0];
        out[mine_$i$_$j$ + 1u] = acc_$i$_0_$j$[1];
        //#endif
        //#endif
        //#endfor
        //#endfor
        return;
    }
    //#endif
    let place = subgroup * 64u;
    //#for i MF
    //#for j NF
    //#if COOP
    coopStoreT(acc_$i$_0_$j$, &sums[place], 4u);
    //#else
    sums[place + 2u * lane] = acc_$i$_0_$j$[0];
    sums[place + 2u * lane + 1u] = acc_$i$_0_$j$[1];
    //#endif
    workgroupBarrier();
    let low_$i$_$j$ = sums[place + lane];
    let high_$i$_$j$ = sums[place + lane + 32u];
    workgroupBarrier();
    let row_$i$_$j$ = row0 + wm + 16u * $i$u + lane / 4u;
    let col_$i$_$j$ = col0 + wn + 16u * $j$u + lane % 4u * 4u;
    //#if GATED
    //#if COOP
    coopStoreT(acc_$i$_1_$j$, &sums[place], 4u);
    //#else
    sums[place + 2u * lane] = acc_$i$_1_$j$[0];
    sums[place + 2u * lane + 1u] = acc_$i$_1_$j$[1];
    //#endif
    workgroupBarrier();
    finish(row_$i$_$j$, col_$i$_$j$, low_$i$_$j$, sums[place + lane]);
    finish(row_$i$_$j$ + 8u, col_$i$_$j$, high_$i$_$j$, sums[place + lane + 32u]);
    workgroupBarrier();
    //#else
    finish(row_$i$_$j$, col_$i$_$j$, low_$i$_$j$, low_$i$_$j$);
    finish(row_$i$_$j$ + 8u, col_$i$_$j$, high_$i$_$j$, high_$i$_$j$);
    //#endif
    //#endfor
    //#endfor
}
