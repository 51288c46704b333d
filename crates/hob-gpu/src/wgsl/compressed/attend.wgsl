// One workgroup has four heads of one row and folds its keys in tiles of 64: a lane has the score of one key for one head,
// then some dimensions of the output of all four.
struct Sizes {
    arguments: u32,
    heads: u32,
    window: u32,
    ring: u32,
    capacity: u32,
    ratio: u32,
    top: u32,
    scale: f32,
}
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> kv: array<f32>;
@group(0) @binding(3) var<storage, read> recent: array<f32>;
@group(0) @binding(4) var<storage, read> sinks: array<f32>;
// Of every row: itself, its position, and row, position and slot of its sequence.
@group(0) @binding(5) var<storage, read> arguments: array<u32>;
//#if ENTRIES
@group(0) @binding(6) var<storage, read> entries: array<f32>;
//#endif
//#if CHOSEN
@group(0) @binding(7) var<storage, read> chosen: array<f32>;
//#endif

const DIM = $DIM$u;
const EACH = $EACH$u;
const HEADS = 4u;
const KEYS = 64u;
const LANES = 256u;
const PIECE = 32u;
const PITCH = 33u;

var<workgroup> tile: array<f32, 2112>;
var<workgroup> queries: array<f32, 128>;
var<workgroup> shares: array<f32, LANES>;
var<workgroup> partial_: array<f32, LANES>;
var<workgroup> factor: array<f32, HEADS>;
// Where keys are: a buffer, and where they start in it.
var<workgroup> source: array<u32, KEYS>;
var<workgroup> start_of: array<u32, KEYS>;

fn value(key: u32, d: u32) -> f32 {
    let at = start_of[key] + d;
    //#if ENTRIES
    if (source[key] == 2u) {
        return entries[at];
    }
    //#endif
    if (source[key] == 1u) {
        return recent[at];
    }
    return kv[at];
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let item = sizes.arguments + 5u * group.x;
    let row = arguments[item];
    let position = arguments[item + 1u];
    let seq_row = arguments[item + 2u];
    let seq_position = arguments[item + 3u];
    let slot = arguments[item + 4u];
    let head0 = group.y * HEADS;
    let near = min(position + 1u, sizes.window);
    let first = position + 1u - near;
    var count = near;
    //#if ENTRIES
    let seen = (position + 1u) / sizes.ratio;
    //#if CHOSEN
    count += min(seen, sizes.top);
    //#else
    count += seen;
    //#endif
    //#endif
    let h = lane / KEYS;
    let k = lane % KEYS;
    // Of the lane's head: the largest logit and the sum so far, the sink's included.
    var most = sinks[min(head0 + h, sizes.heads - 1u)];
    var sum = 1.0;
    var acc: array<f32, $ACC$>;
    for (var i = 0u; i < HEADS * EACH; i++) {
        acc[i] = 0.0;
    }
    for (var begin = 0u; begin < count; begin += KEYS) {
        if (lane < KEYS) {
            let j = min(begin + lane, count - 1u);
            if (j < near) {
                let at = first + j;
                if (at >= seq_position) {
                    source[lane] = 0u;
                    start_of[lane] = (seq_row + at - seq_position) * DIM;
                } else {
                    source[lane] = 1u;
                    start_of[lane] = (slot * sizes.ring + at % sizes.ring) * DIM;
                }
            } else {
                //#if ENTRIES
                var entry = j - near;
                //#if CHOSEN
                entry = min(u32(max(chosen[row * sizes.top + entry], 0.0)), sizes.capacity - 1u);
                //#endif
                source[lane] = 2u;
                start_of[lane] = (slot * sizes.capacity + entry) * DIM;
                //#endif
            }
        }
        workgroupBarrier();
        var score = 0.0;
        for (var c = 0u; c < DIM; c += PIECE) {
            for (var i = lane; i < KEYS * PIECE; i += LANES) {
                let d = c + i % PIECE;
                var v = 0.0;
                if (d < DIM) {
                    v = value(i / PIECE, d);
                }
                tile[i / PIECE * PITCH + i % PIECE] = v;
            }
            if (lane < HEADS * PIECE) {
                let d = c + lane % PIECE;
                let head = head0 + lane / PIECE;
                var v = 0.0;
                if (d < DIM && head < sizes.heads) {
                    v = q[(row * sizes.heads + head) * DIM + d];
                }
                queries[lane] = v;
            }
            workgroupBarrier();
            for (var i = 0u; i < PIECE; i++) {
                score = fma(queries[h * PIECE + i], tile[k * PITCH + i], score);
            }
            workgroupBarrier();
        }
        let there = begin + k < count;
        score = select(-3.4e38, score * sizes.scale, there);
        partial_[lane] = score;
        workgroupBarrier();
        for (var half = KEYS / 2u; half > 0u; half /= 2u) {
            if (k < half) {
                partial_[lane] = max(partial_[lane], partial_[lane + half]);
            }
            workgroupBarrier();
        }
        let now = max(most, partial_[h * KEYS]);
        let fade = exp(most - now);
        workgroupBarrier();
        let share = select(0.0, exp(score - now), there);
        shares[lane] = share;
        partial_[lane] = share;
        if (k == 0u) {
            factor[h] = fade;
        }
        workgroupBarrier();
        for (var half = KEYS / 2u; half > 0u; half /= 2u) {
            if (k < half) {
                partial_[lane] += partial_[lane + half];
            }
            workgroupBarrier();
        }
        sum = fma(sum, fade, partial_[h * KEYS]);
        most = now;
        let keys = min(KEYS, count - begin);
        for (var i = 0u; i < EACH; i++) {
            let d = lane + i * LANES;
            if (d < DIM) {
                //#for n 4
                var mine$n$ = acc[$n$u * EACH + i] * factor[$n$];
                //#endfor
                for (var j = 0u; j < keys; j++) {
                    let v = value(j, d);
                    //#for n 4
                    mine$n$ = fma(shares[$n$u * KEYS + j], v, mine$n$);
                    //#endfor
                }
                //#for n 4
                acc[$n$u * EACH + i] = mine$n$;
                //#endfor
            }
        }
        workgroupBarrier();
    }
    if (k == 0u) {
        factor[h] = 1.0 / sum;
    }
    workgroupBarrier();
    for (var i = 0u; i < EACH; i++) {
        let d = lane + i * LANES;
        if (d < DIM) {
            //#for n 4
            if (head0 + $n$u < sizes.heads) {
                out[(row * sizes.heads + head0 + $n$u) * DIM + d] = acc[$n$u * EACH + i] * factor[$n$];
            }
            //#endfor
        }
    }
}
