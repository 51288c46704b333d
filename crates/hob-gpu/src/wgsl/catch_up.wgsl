// Moves states S <- a S + k u^T past held rows that count: a lane owns one float. The operations are those of a row, so
// that the bits are what plain rows give.
struct Sizes { items: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> state: array<f32>;
@group(0) @binding(1) var<storage, read> records: array<f32>;
// Of every sequence: slot, held rows that count, whether there was nothing before them.
@group(0) @binding(2) var<storage, read> arguments: array<u32>;

const HEADS = $HEADS$u;
const DK = $KEY_DIM$u;
const DV = $VALUE_DIM$u;
const HELD = $HELD$u;
const RECORD = 1u + DK + DV;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let n = group.x * 256u + lane;
    let item = sizes.items + 3u * group.z;
    let head = arguments[item] * HEADS + group.y;
    let at = head * DK * DV + n;
    var s = 0.0;
    if (arguments[item + 2u] == 0u) {
        s = state[at];
    }
    for (var i = 0u; i < arguments[item + 1u]; i++) {
        let record = (head * HELD + i) * RECORD;
        s = fma(records[record + 1u + n / DV], records[record + 1u + DK + n % DV], records[record] * s);
    }
    state[at] = s;
}
