// Moves the state of a short convolution past held rows that count: a lane owns one channel of one sequence.
struct Sizes { dim: u32, items: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> state: array<f32>;
@group(0) @binding(1) var<storage, read> records: array<f32>;
// Of every sequence: position, slot, held rows that count.
@group(0) @binding(2) var<storage, read> arguments: array<u32>;

const TAPS = $TAPS$u;
const HELD = $HELD$u;

//#include earlier

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let c = id.x;
    if (c >= sizes.dim) {
        return;
    }
    let item = sizes.items + 3u * id.y;
    var old: array<f32, TAPS>;
    for (var j = 0u; j + 1u < TAPS; j++) {
        old[j] = earlier(item, j, c);
    }
    let slot = arguments[item + 1u] * (TAPS - 1u);
    for (var j = 0u; j + 1u < TAPS; j++) {
        state[(slot + j) * sizes.dim + c] = old[j];
    }
}
