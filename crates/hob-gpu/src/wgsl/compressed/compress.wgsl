// One workgroup makes one entry: lanes pool channels, norm them together, and rotate the last.
struct Sizes { arguments: u32, ring: u32, capacity: u32, eps: f32, magnitude: f32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> entries: array<f32>;
@group(0) @binding(1) var<storage, read> kv: array<f32>;
@group(0) @binding(2) var<storage, read> gate: array<f32>;
@group(0) @binding(3) var<storage, read> recent: array<f32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read> norm: array<f32>;
@group(0) @binding(6) var<storage, read> freqs: array<f32>;
// Of every entry: its block, and row, position and slot of its sequence.
@group(0) @binding(7) var<storage, read> arguments: array<u32>;

const DIM = $DIM$u;
const WIDTH = $WIDTH$u;
const RATIO = $RATIO$u;
const SPAN = $SPAN$u;
const HALF = $HALF$u;
const LANES = 256u;

var<workgroup> entry: array<f32, DIM>;
var<workgroup> sums: array<f32, LANES>;

//#include rope_angle

struct Place { ring: bool, at: u32, bias: u32, there: bool }

// Where place `s` of the block's span is.
fn place(item: u32, s: u32) -> Place {
    let block = arguments[item];
    let position = arguments[item + 2u];
    var out: Place;
    out.there = true;
    var first = 0u;
    var inside = s;
    var at = block * RATIO + s;
    //#if OVERLAPPED
    if (s < RATIO) {
        out.there = block > 0u;
        at -= min(RATIO, at);
    } else {
        first = DIM;
        inside = s - RATIO;
        at = block * RATIO + inside;
    }
    //#endif
    out.bias = inside * WIDTH + first;
    out.ring = at < position;
    if (out.ring) {
        out.at = (arguments[item + 3u] * sizes.ring + at % sizes.ring) * 2u * WIDTH + first;
    } else {
        out.at = (arguments[item + 1u] + at - position) * WIDTH + first;
    }
    return out;
}

fn gate_of(p: Place, d: u32) -> f32 {
    if (p.ring) {
        return recent[p.at + WIDTH + d] + bias[p.bias + d];
    }
    return gate[p.at + d] + bias[p.bias + d];
}

fn kv_of(p: Place, d: u32) -> f32 {
    if (p.ring) {
        return recent[p.at + d];
    }
    return kv[p.at + d];
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let item = sizes.arguments + 4u * group.x;
    var squares = 0.0;
    for (var d = lane; d < DIM; d += LANES) {
        var most = -3.4e38;
        for (var s = 0u; s < SPAN; s++) {
            let p = place(item, s);
            if (p.there) {
                most = max(most, gate_of(p, d));
            }
        }
        var sum = 0.0;
        var value = 0.0;
        for (var s = 0u; s < SPAN; s++) {
            let p = place(item, s);
            if (p.there) {
                let e = exp(gate_of(p, d) - most);
                sum += e;
                value = fma(e, kv_of(p, d), value);
            }
        }
        value /= sum;
        entry[d] = value;
        squares = fma(value, value, squares);
    }
    sums[lane] = squares;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            sums[lane] += sums[lane + half];
        }
        workgroupBarrier();
    }
    let factor = 1.0 / sqrt(sums[0] / f32(DIM) + sizes.eps);
    for (var d = lane; d < DIM; d += LANES) {
        entry[d] = entry[d] * factor * norm[d];
    }
    workgroupBarrier();
    const TAIL = DIM - 2u * HALF;
    for (var i = lane; i < HALF; i += LANES) {
        let turn = rope_angle(arguments[item] * RATIO, freqs[i]) * sizes.magnitude;
        //#if INTERLEAVED
        let first = TAIL + 2u * i;
        let second = first + 1u;
        //#else
        let first = TAIL + i;
        let second = first + HALF;
        //#endif
        let a = entry[first];
        let b = entry[second];
        entry[first] = fma(a, turn.x, -(b * turn.y));
        entry[second] = fma(b, turn.x, a * turn.y);
    }
    workgroupBarrier();
    let to = (arguments[item + 3u] * sizes.capacity + arguments[item]) * DIM;
    for (var d = lane; d < DIM; d += LANES) {
        entries[to + d] = entry[d];
    }
}
