enable f16;
enable wgpu_cooperative_matrix;
// Attention of many rows on cooperative matrices. A subgroup of 32 has $ROW_TILES$ x 16 rows and keeps their queries and sums in
// registers; scores go through workgroup memory, where two lanes share a row.
//#include rows
// Between rows of scores, and of weights, in fours: 64 positions and some, so that rows start in different banks.
const STRIDE = $STRIDE$u;
// Powers of 2 by which a maximum may grow before the sums are scaled anew: weights stay far from f16's limits.
const SLACK = 8.0;

var<workgroup> scores: array<vec4<f32>, $SCORES$>;
var<workgroup> weights: array<vec4<f16>, $WEIGHTS$>;
var<workgroup> factors: array<f32, $ROWS$>;
// The first: the last block at which some row's maximum grew too much, plus 1. Four, so that all starts at multiples of 16
// bytes: drivers lose their way otherwise.
var<workgroup> grown: array<u32, 4>;
var<workgroup> stage: array<vec4<f16>, $STAGE$>;
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

fn half_of(x: vec4<f32>) -> vec4<f16> {
    return vec4<f16>(clamp(x, vec4<f32>(-65504.0), vec4<f32>(65504.0)));
}

// Puts `count` (at most 4) tiles of 16 dimensions of all queries where weights will be.
fn put_queries(t: Tile, tile: u32, count: u32, lane: u32) {
    for (var i = lane; i < ROWS * count; i += LANES) {
        let row = i / count;
        let x = sixteen(t, row, tile + i % count);
        let at = row * STRIDE + i % count * 4u;
        weights[at] = half_of(x[0]);
        weights[at + 1u] = half_of(x[1]);
        weights[at + 2u] = half_of(x[2]);
        weights[at + 3u] = half_of(x[3]);
    }
}

struct Row {
    most: f32,
    // Of this lane's positions.
    sum: f32,
}

fn four_scores(at: u32, position: u32, seen: vec2<u32>, all: bool) -> vec4<f32> {
    var x = scores[at];
    x = vec4<f32>(score(x.x), score(x.y), score(x.z), score(x.w));
    if (!all) {
        let p = vec4<u32>(position, position + 1u, position + 2u, position + 3u);
        x = select(vec4<f32>(-3.0e38), x, (p >= vec4<u32>(seen.x)) & (p < vec4<u32>(seen.y)));
    }
    return x;
}

// Scores of one row become weights: the lane has every other four positions, its neighbor those between.
// `seen` are the positions that the row sees; `all` says that they hold the whole block.
fn weigh(state: Row, row: u32, from_: u32, side: u32, block: u32, seen: vec2<u32>, all: bool) -> Row {
    var most = -1.0e30;
    for (var j = 0u; j < 8u; j++) {
        let c = 2u * j + side;
        let x = four_scores(from_ + c, block * 64u + 4u * c, seen, all);
        most = max(most, max(max(x.x, x.y), max(x.z, x.w)));
    }
    most = max(most, subgroupShuffleXor(most, 1u));
    var next = state;
    // The first maximum is taken as it is: nothing was summed before.
    if (most > state.most + SLACK || state.most == -1.0e30) {
        next.most = most;
        next.sum *= exp2(state.most - most);
        if (state.most > -1.0e30) {
            grown[0] = block + 1u;
        }
    }
    if (side == 0u) {
        factors[row] = exp2(state.most - next.most);
    }
    let to = row * STRIDE;
    for (var j = 0u; j < 8u; j++) {
        let c = 2u * j + side;
        let x = four_scores(from_ + c, block * 64u + 4u * c, seen, all);
        let w = vec4<f16>(exp2(x - next.most));
        weights[to + c] = w;
        let s = vec4<f32>(w);
        next.sum += s.x + s.y + s.z + s.w;
    }
    return next;
}

// Multiplies the 64 columns of the lane's 16 rows in `scores` by the rows' factors.
fn scale_scores(at: u32, row: u32, lane: u32) {
    for (var i = lane; i < 16u * 16u; i += 32u) {
        scores[at + i / 16u * STRIDE + i % 16u] *= factors[row + i / 16u];
    }
}

// Writes `count` (at most 4) tiles of 16 dimensions of the lane's 16 rows.
fn write_tiles(t: Tile, at: u32, row: u32, tile: u32, count: u32, lane: u32) {
    for (var i = lane; i < 16u * count; i += 32u) {
        let r = row + i / count;
        if (t.start + r < t.end) {
            let s = at + i / count * STRIDE + i % count * 4u;
            var x = mat4x4<f32>(scores[s], scores[s + 1u], scores[s + 2u], scores[s + 3u]);
            //#if V_ROTATED
            x = rotate(x);
            //#endif
            x *= factors[r];
            let to = row_at(t, r) / 4u + (tile + i % count) * 4u;
            write_four(to, x[0]);
            write_four(to + 1u, x[1]);
            write_four(to + 2u, x[2]);
            write_four(to + 3u, x[3]);
        }
    }
}

fn write_four(at: u32, x: vec4<f32>) {
    out[at] = x;
    //#if HALF
    half_out[at] = half_of(x);
    //#endif
}

// What a row's sums are multiplied by in the end.
fn last_factor(t: Tile, row: u32, state: Row) -> f32 {
    let sum = state.sum + subgroupShuffleXor(state.sum, 1u);
    //#if SINKS
    let sink = sinks[t.kv_head * GROUP + (t.start + row) % GROUP] * 1.4426950408889634;
    let m = max(state.most, sink);
    let scale = exp2(state.most - m);
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
    let row = subgroup * $ROW_TILES$u * 16u;
    let mine = row * STRIDE;
    let scratch = subgroup * 16u * STRIDE;
    if (index == 0u) {
        grown[0] = 0u;
    }
    // Blocks that every row sees whole lie between these.
    let first_position = t.position + t.start / GROUP;
    let last_position = t.position + (t.end - 1u) / GROUP;
    let whole_from = first_seen(last_position);
    //#include state
    //#include queries
    for (var block = t.from_block; block < t.to_block; block++) {
        let at = block_at(t, block);
        let all = block * 64u >= whole_from && block * 64u + 63u <= first_position;
        //#if FIRST
        let first = block < 4u;
        let wide = $SINK$ && block == 0u;
        let v_at = at + select($K_PIECES$u, $WIDE_PIECES$u, wide);
        //#else
        let first = false;
        let wide = false;
        let v_at = at + $K_PIECES$u;
        //#endif
        //#include scores
        //#include weights
        // The same for the whole workgroup: nobody writes it before the next barrier.
        let scaled = grown[0] == block + 1u;
        for (var once = scaled; once; once = false) {
            //#include rescale
        }
        //#include values
    }
    //#include finish
}
