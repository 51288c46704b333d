enable f16;
enable wgpu_cooperative_matrix;
// Attention of many rows on cooperative matrices. A subgroup of 32 has 16 rows and keeps their queries and sums in registers;
// scores go through workgroup memory, a strip of positions at a time, where two lanes share a row, and come back as weights.
// V travels into registers while scores are summed, the next K while V is: waiting for them was a third of the time.
//#include rows
const KEYS = $KEYS$u; // positions of a step
const STEPS = 64u / KEYS; // steps of a block
// Between rows of scores (a strip of positions at a time), of weights and of queries, in fours: rows start in different banks.
const SCORE_STRIDE = $SCORE_STRIDE$u;
const WEIGHT_STRIDE = $WEIGHT_STRIDE$u;
const QUERY_STRIDE = $V_STRIDE$u;
// Powers of 2 by which a maximum may grow before the sums are scaled anew: weights stay far from f16's limits.
const SLACK = 8.0;

// K, whose place the weights take, then V; queries before that.
var<workgroup> stage: array<vec4<f16>, $STAGE$>;
var<workgroup> scores: array<vec4<f32>, $SCORES$>;
// The first: the last step at which some row's maximum grew too much, plus 1. Four, so that all starts at multiples of 16
// bytes: drivers lose their way otherwise.
var<workgroup> grown: array<u32, 4>;
//#include stage

//#if ROTATES
fn four_of_sixteen(x: vec4<f32>) -> vec4<f32> {
    let y = vec4<f32>(x.x + x.y, x.x - x.y, x.z + x.w, x.z - x.w);
    return vec4<f32>(y.x + y.z, y.y + y.w, y.x - y.z, y.y - y.w);
}

// The Hadamard rotation of 16 neighboring dimensions.
fn rotate(x: mat4x4<f32>) -> mat4x4<f32> {
    let a = four_of_sixteen(x[0]);
    let b = four_of_sixteen(x[1]);
    let c = four_of_sixteen(x[2]);
    let d = four_of_sixteen(x[3]);
    return mat4x4<f32>(a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d);
}
//#endif

fn quads(at: u32) -> mat4x4<f32> {
    return mat4x4<f32>(q[at], q[at + 1u], q[at + 2u], q[at + 3u]);
}

// Sixteen dimensions of a query, rotated where K is.
fn sixteen(t: Tile, row: u32, tile: u32) -> mat4x4<f32> {
    if (t.start + row >= t.end) {
        return mat4x4<f32>();
    }
    let at = row_at(t, row) / 4u;
    //#if K_ROTATED
    const BLOCK = $ROTATED$u / 16u;
    var x = mat4x4<f32>();
    for (var i = 0u; i < BLOCK; i++) {
        let sign = 1.0 - 2.0 * f32(countOneBits(i & tile) & 1u);
        x += sign * quads(at + (tile / BLOCK * BLOCK + i) * 4u);
    }
    return rotate(x) * $ROTATION$;
    //#else
    return quads(at + tile * 4u);
    //#endif
}

// A piece that exists: the last lanes may have less to do.
fn k_place(i: u32) -> u32 {
    return select(i, min(i, K_COUNT - 1u), K_COUNT % LANES > 0u);
}

fn v_place(i: u32) -> u32 {
    return select(i, min(i, V_COUNT - 1u), V_COUNT % LANES > 0u);
}

fn half_of(x: vec4<f32>) -> vec4<f16> {
    return vec4<f16>(clamp(x, vec4<f32>(-65504.0), vec4<f32>(65504.0)));
}

fn put_queries(t: Tile, lane: u32) {
    for (var i = lane; i < ROWS * (DIM / 16u); i += LANES) {
        let row = i / (DIM / 16u);
        let tile = i % (DIM / 16u);
        // Scores come out scaled.
        let x = sixteen(t, row, tile) * sizes.factor;
        let at = row * QUERY_STRIDE + tile * 4u;
        stage[at] = half_of(x[0]);
        stage[at + 1u] = half_of(x[1]);
        stage[at + 2u] = half_of(x[2]);
        stage[at + 3u] = half_of(x[3]);
    }
}

// Four scores in powers of 2; those of positions beyond `seen` are far below any, unless `all` are seen.
fn four_scores(at: u32, position: u32, seen: vec2<u32>, all: bool) -> vec4<f32> {
    var x = scores[at];
    //#if CAPPED
    x = vec4<f32>(tanh_of(x.x), tanh_of(x.y), tanh_of(x.z), tanh_of(x.w)) * sizes.cap;
    //#endif
    if (!all) {
        let p = vec4<u32>(position, position + 1u, position + 2u, position + 3u);
        x = select(vec4<f32>(-3.0e38), x, (p >= vec4<u32>(seen.x)) & (p < vec4<u32>(seen.y)));
    }
    return x;
}

fn largest(x: vec4<f32>) -> f32 {
    return max(max(x.x, x.y), max(x.z, x.w));
}

fn write_four(at: u32, x: vec4<f32>) {
    out[at] = x;
    //#if HALF
    half_out[at] = half_of(x);
    //#endif
}

// Writes 16 dimensions of the row that two lanes share.
fn write_tile(t: Tile, at: u32, row: u32, tile: u32, side: u32, factor: f32) {
    if (t.start + row >= t.end) {
        return;
    }
    let to = row_at(t, row) / 4u + tile * 4u;
    //#if V_ROTATED
    if (side == 0u) {
        let x = rotate(mat4x4<f32>(scores[at], scores[at + 1u], scores[at + 2u], scores[at + 3u])) * factor;
        write_four(to, x[0]);
        write_four(to + 1u, x[1]);
        write_four(to + 2u, x[2]);
        write_four(to + 3u, x[3]);
    }
    //#else
    write_four(to + 2u * side, scores[at + 2u * side] * factor);
    write_four(to + 2u * side + 1u, scores[at + 2u * side + 1u] * factor);
    //#endif
}

// What a row's sums are multiplied by in the end.
fn last_factor(t: Tile, row: u32, most: f32, part: f32) -> f32 {
    let sum = part + subgroupShuffleXor(part, 1u);
    //#if SINKS
    let sink = sinks[t.kv_head * GROUP + (t.start + row) % GROUP] * 1.4426950408889634;
    let m = max(most, sink);
    let scale = exp2(most - m);
    return scale * $ROTATION_OF_V$ / fma(sum, scale, exp2(sink - m));
    //#else
    return $ROTATION_OF_V$ / sum;
    //#endif
}

@compute @workgroup_size($LANES$)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = tile_of(group, groups.y);
    let lane = index % 32u;
    let side = lane % 2u;
    let subgroup = index / 32u;
    let first_row = subgroup * 16u;
    let scratch = subgroup * 16u * SCORE_STRIDE;
    // Of the lane's row, or half a row, in `scores`.
    let own = scratch + lane / 2u * SCORE_STRIDE;
    if (index == 0u) {
        grown[0] = 0u;
    }
    // Steps that every row sees whole lie between these.
    let first_position = t.position + t.start / GROUP;
    let last_position = t.position + (t.end - 1u) / GROUP;
    let whole_from = first_seen(last_position);
    put_queries(t, index);
    workgroupBarrier();
    let row = first_row + lane / 2u;
    let last = t.position + (t.start + row) / GROUP;
    let seen = vec2<u32>(first_seen(last), last + 1u);
    let weights = first_row * WEIGHT_STRIDE;
    var most = -1.0e30;
    var sum = 0.0;
    //#for n TILES
    var acc_$n$ = coop_mat16x16<f32, C>();
    let at_q_$n$ = first_row * QUERY_STRIDE + 4u * $n$u;
    let q_$n$ = coopLoadT<coop_mat16x16<f16, A>>(&stage[at_q_$n$], QUERY_STRIDE);
    //#endfor
    workgroupBarrier();
    //#for i K_UNITS
    var next_k_$i$: RawK;
    //#endfor
    //#for i V_UNITS
    var next_v_$i$: RawV;
    //#endfor
    {
        let next = t.from_block * STEPS;
        //#include fetch_k
    }
    for (var step = t.from_block * STEPS; step <= last_position / KEYS; step++) {
        let block = step / STEPS;
        let part = step % STEPS;
        let at = block_at(t, block);
        let start = step * KEYS;
        let all = start >= whole_from && start + (KEYS - 1u) <= first_position;
        //#if FIRST
        let first = block < 4u;
        let wide = $SINK$ && block == 0u;
        let v_at = at + select($K_PIECES$u, $WIDE_PIECES$u, wide);
        //#else
        let first = false;
        let wide = false;
        let v_at = at + $K_PIECES$u;
        //#endif
        //#if FIRST
        if (wide) {
            stage_wide_k(at, part, index);
        }
        //#endif
        if (!wide) {
            //#for i K_UNITS
            put_k(k_place(index + $i$u * LANES), next_k_$i$);
            //#endfor
        }
        //#include fetch_v
        workgroupBarrier();
        //#for h STRIPS
        //#for e WIDTH
        var s_$h$_$e$ = coop_mat16x16<f32, C>();
        //#endfor
        //#endfor
        //#for n TILES
        //#for h STRIPS
        //#for e WIDTH
        let at_k_$n$_$h$_$e$ = 16u * $n$u * K_STRIDE + 4u * ($WIDTH$u * $h$u + $e$u);
        let k_$n$_$h$_$e$ = coopLoadT<coop_mat16x16<f16, B>>(&stage[at_k_$n$_$h$_$e$], K_STRIDE);
        s_$h$_$e$ = coopMultiplyAdd(q_$n$, k_$n$_$h$_$e$, s_$h$_$e$);
        //#endfor
        //#endfor
        //#endfor
        //#if FIRST
        if (wide) {
            stage_wide_v(v_at, part, index);
        }
        //#endif
        if (!wide) {
            //#for i V_UNITS
            put_v(v_place(index + $i$u * LANES), next_v_$i$);
            //#endfor
        }
        clear_v(start, last_position + 1u, index);
        workgroupBarrier();
        var high = -1.0e30;
        //#for h STRIPS
        //#for e WIDTH
        let at_s_$h$_$e$ = scratch + 4u * $e$u;
        coopStoreT(s_$h$_$e$, &scores[at_s_$h$_$e$], SCORE_STRIDE);
        //#endfor
        workgroupBarrier();
        //#for j FOURS
        let c_$h$_$j$ = 2u * ($FOURS$u * $h$u + $j$u) + side;
        let x_$h$_$j$ = four_scores(own + 2u * $j$u + side, start + 4u * c_$h$_$j$, seen, all);
        high = max(high, largest(x_$h$_$j$));
        //#endfor
        workgroupBarrier();
        //#endfor
        high = max(high, subgroupShuffleXor(high, 1u));
        var factor = 1.0;
        // The first maximum is taken as it is: nothing was summed before.
        if (high > most + SLACK || most == -1.0e30) {
            factor = exp2(most - high);
            if (most > -1.0e30) {
                grown[0] = step + 1u;
            }
            sum *= factor;
            most = high;
        }
        //#for h STRIPS
        //#for j FOURS
        {
            let w = exp2(x_$h$_$j$ - most);
            sum += w.x + w.y + w.z + w.w;
            stage[weights + lane / 2u * WEIGHT_STRIDE + c_$h$_$j$] = vec4<f16>(w);
        }
        //#endfor
        //#endfor
        workgroupBarrier();
        {
            let next = min(step + 1u, last_position / KEYS);
            //#include fetch_k
        }
        // The same for the whole workgroup: nobody writes it before the next barrier.
        let scaled = grown[0] == step + 1u;
        for (var once = scaled; once; once = false) {
            //#for n TILES
            coopStoreT(acc_$n$, &scores[scratch], SCORE_STRIDE);
            workgroupBarrier();
            scores[own + 2u * side] *= factor;
            scores[own + 2u * side + 1u] *= factor;
            workgroupBarrier();
            acc_$n$ = coopLoadT<coop_mat16x16<f32, C>>(&scores[scratch], SCORE_STRIDE);
            workgroupBarrier();
            //#endfor
        }
        //#for h STRIPS
        //#for e WIDTH
        let at_w_$h$_$e$ = weights + 4u * ($WIDTH$u * $h$u + $e$u);
        let w_$h$_$e$ = coopLoadT<coop_mat16x16<f16, A>>(&stage[at_w_$h$_$e$], WEIGHT_STRIDE);
        //#for n TILES
        let at_v_$h$_$e$_$n$ = V_AT + 16u * ($WIDTH$u * $h$u + $e$u) * V_STRIDE + 4u * $n$u;
        let v_$h$_$e$_$n$ = coopLoadT<coop_mat16x16<f16, B>>(&stage[at_v_$h$_$e$_$n$], V_STRIDE);
        acc_$n$ = coopMultiplyAdd(w_$h$_$e$, v_$h$_$e$_$n$, acc_$n$);
        //#endfor
        //#endfor
        //#endfor
        workgroupBarrier();
    }
    let end = last_factor(t, row, most, sum);
    //#include turn
    //#for n TILES
    coopStoreT(acc_$n$, &scores[scratch], SCORE_STRIDE);
    workgroupBarrier();
    write_tile(t, own, row, $n$u, side, end);
    workgroupBarrier();
    //#endfor
}
