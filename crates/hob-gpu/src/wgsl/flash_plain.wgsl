//#if HALF
enable f16;
//#endif
// Attention of many rows in f32: each lane has a position of K, then some dimensions of V, for all rows of the tile.
//#include rows

const QUADS = $QUADS$u; // vectors of four rows in a tile
const PARTS = LANES / ROWS; // lanes that share a row in the softmax
const DIMS = (DIM + LANES - 1u) / LANES; // dimensions of a lane

var<workgroup> stage: array<f32, $STAGE$>;
//#include stage

// [dimension][rows]: the queries; in the end the result.
var<workgroup> queries: array<vec4<f32>, $QUERIES$>;
// [position][rows]: scores, then weights.
var<workgroup> weights: array<vec4<f32>, $WEIGHTS$>;
var<workgroup> partial: array<f32, $LANES$>;
// By row: the maximum, the factor of what was summed under the last maximum, the sum.
var<workgroup> maxima: array<vec4<f32>, $QUADS$>;
var<workgroup> factors: array<vec4<f32>, $QUADS$>;
var<workgroup> sums: array<vec4<f32>, $QUADS$>;

// 2^x for x <= 0.
fn power(value: f32) -> f32 {
    let x = max(value, -126.0);
    let n = round(x);
    let f = x - n;
    var p = fma(1.3255938e-3, f, 9.671233e-3);
    p = fma(p, f, 5.5507686e-2);
    p = fma(p, f, 2.4022248e-1);
    p = fma(p, f, 6.9314694e-1);
    p = fma(p, f, 1.0);
    return bitcast<f32>(bitcast<i32>(p) + (i32(n) << 23u));
}

//#if ROTATES
// The Hadamard rotation of `queries` over the dimensions, in blocks of $ROTATED$.
fn rotate(lane: u32) {
    for (var stride = 1u; stride < $ROTATED$u; stride *= 2u) {
        workgroupBarrier();
        for (var i = lane; i < DIM / 2u * QUADS; i += LANES) {
            let pair_ = i / QUADS;
            let low = (pair_ / stride * 2u * stride + pair_ % stride) * QUADS + i % QUADS;
            let high = low + stride * QUADS;
            let a = queries[low];
            let b = queries[high];
            queries[low] = a + b;
            queries[high] = a - b;
        }
    }
    workgroupBarrier();
    for (var i = lane; i < DIM * QUADS; i += LANES) {
        queries[i] *= $ROTATION$;
    }
}
//#endif

fn load_queries(t: Tile, lane: u32) {
    for (var i = lane; i < DIM * ROWS; i += LANES) {
        let row = i / DIM;
        var x = 0.0;
        if (t.start + row < t.end) {
            x = q[row_at(t, row) + i % DIM];
        }
        queries[i % DIM * QUADS + row / 4u][row % 4u] = x;
    }
    //#if K_ROTATED
    rotate(lane);
    //#endif
}

// The scores of the lane's position with all rows; hidden ones are far below any.
fn score_block(t: Tile, block: u32, lane: u32) {
    //#if FIRST
    let first = block < 4u;
    let wide = $SINK$ && block == 0u;
    //#else
    let first = false;
    let wide = false;
    //#endif
    let at = block_at(t, block);
    var dots: array<vec4<f32>, $QUADS$>;
    for (var part = 0u; part < $K_PARTS$u; part++) {
        workgroupBarrier();
        stage_k(first, wide, at, part, lane);
        workgroupBarrier();
        let count = min(K_PART, DIM - part * K_PART);
        for (var d = 0u; d < count; d++) {
            let k = vec4<f32>(stage[4u * d * K_STRIDE + lane]);
            for (var j = 0u; j < QUADS; j++) {
                dots[j] = fma(k, queries[(part * K_PART + d) * QUADS + j], dots[j]);
            }
        }
    }
    let position = block * 64u + lane;
    for (var j = 0u; j < QUADS; j++) {
        for (var r = 0u; r < 4u; r++) {
            let last = t.position + (t.start + 4u * j + r) / GROUP;
            let seen = position <= last && position >= first_seen(last);
            dots[j][r] = select(-3.0e38, score(dots[j][r]), seen);
        }
        weights[lane * QUADS + j] = dots[j];
    }
    workgroupBarrier();
}

// Scores become weights; maxima, factors and sums follow.
fn weigh_block(lane: u32) {
    let row = lane % ROWS;
    let share = 64u / PARTS;
    let from_ = lane / ROWS * share;
    var most = -1.0e30;
    for (var p = from_; p < from_ + share; p++) {
        most = max(most, weights[p * QUADS + row / 4u][row % 4u]);
    }
    partial[lane] = most;
    workgroupBarrier();
    if (lane < ROWS) {
        let old = maxima[row / 4u][row % 4u];
        var m = old;
        for (var i = 0u; i < PARTS; i++) {
            m = max(m, partial[row + ROWS * i]);
        }
        maxima[row / 4u][row % 4u] = m;
        factors[row / 4u][row % 4u] = power(old - m);
    }
    workgroupBarrier();
    let m = maxima[row / 4u][row % 4u];
    var sum = 0.0;
    for (var p = from_; p < from_ + share; p++) {
        let s = weights[p * QUADS + row / 4u][row % 4u];
        let w = select(power(s - m), 0.0, s < -2.0e38);
        weights[p * QUADS + row / 4u][row % 4u] = w;
        sum += w;
    }
    partial[lane] = sum;
    workgroupBarrier();
    if (lane < ROWS) {
        var total = sums[row / 4u][row % 4u] * factors[row / 4u][row % 4u];
        for (var i = 0u; i < PARTS; i++) {
            total += partial[row + ROWS * i];
        }
        sums[row / 4u][row % 4u] = total;
    }
}

fn write_rows(t: Tile, lane: u32) {
    //#if V_ROTATED
    rotate(lane);
    //#endif
    workgroupBarrier();
    for (var i = lane; i < DIM * ROWS; i += LANES) {
        let row = i / DIM;
        if (t.start + row < t.end) {
            let x = queries[i % DIM * QUADS + row / 4u][row % 4u];
            let at = row_at(t, row) + i % DIM;
            out[at] = x;
            //#if HALF
            half_out[at] = f16(clamp(x, -65504.0, 65504.0));
            //#endif
        }
    }
}

@compute @workgroup_size($LANES$)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let t = tile_of(group, groups.y);
    load_queries(t, lane);
    if (lane < QUADS) {
        maxima[lane] = vec4<f32>(-1.0e30);
        sums[lane] = vec4<f32>();
    }
    var acc: array<vec4<f32>, $ACCUMULATORS$>;
    for (var block = t.from_block; block < t.to_block; block++) {
        score_block(t, block, lane);
        weigh_block(lane);
        //#if FIRST
        let first = block < 4u;
        let wide = $SINK$ && block == 0u;
        let at = block_at(t, block) + select($K_PIECES$u, $WIDE_PIECES$u, wide);
        //#else
        let first = false;
        let wide = false;
        let at = block_at(t, block) + $K_PIECES$u;
        //#endif
        for (var i = 0u; i < DIMS * QUADS; i++) {
            acc[i] *= factors[i % QUADS];
        }
        for (var part = 0u; part < 64u / V_PART; part++) {
            workgroupBarrier();
            stage_v(first, wide, at, part, lane);
            clear_v(block * 64u + part * V_PART, t.position + (t.end - 1u) / GROUP + 1u, lane);
            workgroupBarrier();
            for (var p = 0u; p < V_PART; p++) {
                for (var d = 0u; d < DIMS; d++) {
                    // Lanes beyond the head add what nobody reads.
                    let v = vec4<f32>(stage[4u * p * V_STRIDE + min(d * LANES + lane, DIM - 1u)]);
                    for (var j = 0u; j < QUADS; j++) {
                        let i = d * QUADS + j;
                        acc[i] = fma(v, weights[(part * V_PART + p) * QUADS + j], acc[i]);
                    }
                }
            }
        }
    }
    workgroupBarrier();
    for (var j = 0u; j < QUADS; j++) {
        var sum = sums[j];
        //#if SINKS
        var scale = vec4<f32>(1.0);
        for (var r = 0u; r < 4u; r++) {
            let head = t.kv_head * GROUP + (t.start + 4u * j + r) % GROUP;
            let sink = sinks[head] * 1.4426950408889634;
            let m = max(maxima[j][r], sink);
            scale[r] = power(maxima[j][r] - m);
            sum[r] = fma(sum[r], scale[r], power(sink - m));
        }
        let factor = scale / sum;
        //#else
        let factor = 1.0 / sum;
        //#endif
        for (var d = 0u; d < DIMS; d++) {
            if (d * LANES + lane < DIM) {
                queries[(d * LANES + lane) * QUADS + j] = acc[d * QUADS + j] * factor;
            }
        }
    }
    write_rows(t, lane);
}
