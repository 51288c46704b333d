// Keeps the k best of every chunk of a row, in order; from logits, or from what was kept before. The last of these
// dispatches has one chunk and writes the results.
struct Sizes { count: u32, k: u32, chunks: u32, results: u32, first_row: u32, draws: u32, sorted: u32 }
var<immediate> sizes: Sizes;
//#if FIRST
@group(0) @binding(0) var<storage, read> logits: array<f32>;
//#else
// (key, id)
@group(0) @binding(0) var<storage, read> candidates: array<vec2<u32>>;
//#endif
//#if LAST
// Of every row: k ids, k logits, the log-sum-exp, the chosen token.
@group(0) @binding(1) var<storage, read_write> results: array<u32>;
//#else
@group(0) @binding(1) var<storage, read_write> kept: array<vec2<u32>>;
//#endif
//#if SUMS
// Of every chunk of logits: the largest, and the sum of exp(logit - largest).
//#if FIRST
@group(0) @binding(2) var<storage, read_write> sums: array<vec2<f32>>;
//#else
@group(0) @binding(2) var<storage, read> sums: array<vec2<f32>>;
//#endif
//#endif

//#if DRAW
// Of every row of the slab: how its token is chosen.
@group(0) @binding($DRAWS$) var<storage, read> arguments: array<u32>;
//#endif

//#include order

const LANES = $LANES$u;
const CHUNK = $CHUNK$u;
// Entries in workgroup memory: all of a chunk to sort, or the best of each lane.
const HELD = $HELD$u;

var<workgroup> keys: array<u32, HELD>;
var<workgroup> ids: array<u32, HELD>;
var<workgroup> partial_: array<f32, LANES>;

fn total(value: f32, lane: u32) -> f32 {
    partial_[lane] = value;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            partial_[lane] += partial_[lane + half];
        }
        workgroupBarrier();
    }
    return partial_[0];
}

// exp(x - m), where m is not smaller.
fn weight(x: f32, m: f32) -> f32 {
    if (is_infinite(x) || is_infinite(m)) {
        return 0.0;
    }
    return exp(x - m);
}

//#if DRAW
//#include draw
//#endif

// Whether entry a comes after entry b.
fn after(a: u32, b: u32) -> bool {
    return keys[a] < keys[b] || (keys[a] == keys[b] && ids[a] > ids[b]);
}

//#if ONE
// The best entry comes to the front.
fn order_entries(lane: u32) {
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if (lane < half && after(lane, lane + half)) {
            keys[lane] = keys[lane + half];
            ids[lane] = ids[lane + half];
        }
        workgroupBarrier();
    }
}
//#else
// All entries come in order: a bitonic network.
fn order_entries(lane: u32) {
    for (var run = 2u; run <= sizes.sorted; run *= 2u) {
        for (var stride = run / 2u; stride > 0u; stride /= 2u) {
            for (var p = lane; p < sizes.sorted / 2u; p += LANES) {
                let a = 2u * p - (p & (stride - 1u));
                let b = a + stride;
                if (after(a, b) == ((a & run) == 0u)) {
                    let key_a = keys[a];
                    let id_a = ids[a];
                    keys[a] = keys[b];
                    ids[a] = ids[b];
                    keys[b] = key_a;
                    ids[b] = id_a;
                }
            }
            workgroupBarrier();
        }
    }
}
//#endif

@compute @workgroup_size($LANES$)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // Of the slab, and of the logits and results.
    let row = group.y;
    let of_all = sizes.first_row + row;
    //#for j EACH
    let at_$j$ = group.x * CHUNK + $j$u * LANES + lane;
    var entry_$j$ = vec2<u32>(0u, 0xffffffffu);
    if (at_$j$ < sizes.count) {
        //#if FIRST
        entry_$j$ = vec2<u32>(key(logits[of_all * sizes.count + at_$j$]), at_$j$);
        //#else
        entry_$j$ = candidates[row * sizes.count + at_$j$];
        //#endif
    }
    //#if !ONE
    keys[$j$u * LANES + lane] = entry_$j$.x;
    ids[$j$u * LANES + lane] = entry_$j$.y;
    //#endif
    //#endfor
    //#if ONE
    var best = entry_0;
    //#for j EACH
    if (entry_$j$.x > best.x || (entry_$j$.x == best.x && entry_$j$.y < best.y)) {
        best = entry_$j$;
    }
    //#endfor
    keys[lane] = best.x;
    ids[lane] = best.y;
    //#endif
    workgroupBarrier();
    order_entries(lane);
    //#if FIRST
    let m = number(keys[0]);
    var mine = 0.0;
    //#for j EACH
    if (entry_$j$.x != 0u) {
        mine += weight(number(entry_$j$.x), m);
    }
    //#endfor
    let sum = total(mine, lane);
    //#endif
    //#if LAST
    let result = sizes.results + of_all * (2u * sizes.k + 2u);
    for (var i = lane; i < sizes.k; i += LANES) {
        results[result + i] = ids[i];
        results[result + sizes.k + i] = bitcast<u32>(number(keys[i]));
    }
    //#if !FIRST
    // The best of all is the largest of all.
    let m = number(keys[0]);
    var mine = 0.0;
    for (var c = lane; c < sizes.chunks; c += LANES) {
        let part = sums[row * sizes.chunks + c];
        mine += part.y * weight(part.x, m);
    }
    let sum = total(mine, lane);
    //#endif
    //#if DRAW
    let token = chosen(draw_at(sizes.draws + 6u * row), lane);
    //#else
    let token = ids[0];
    //#endif
    if (lane == 0u) {
        results[result + 2u * sizes.k + 1u] = token;
        results[result + 2u * sizes.k] = bitcast<u32>(select(m + log(sum), m, is_infinite(m)));
    }
    //#else
    let start = (row * groups.x + group.x) * sizes.k;
    for (var i = lane; i < sizes.k; i += LANES) {
        kept[start + i] = vec2<u32>(keys[i], ids[i]);
    }
    //#if FIRST
    if (lane == 0u) {
        sums[row * groups.x + group.x] = vec2<f32>(m, sum);
    }
    //#endif
    //#endif
}
