// A short convolution: a lane owns one channel of one chunk of a sequence's rows. The first chunk, alone in
// reading the old state, writes the new one.
struct Sizes { dim: u32, items: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read_write> state: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> taps: array<f32>;
// Of every chunk: position of its sequence, the slot, held rows that count, whether its rows are held, its batch row, its
// rows, its first row within the sequence.
@group(0) @binding(4) var<storage, read> arguments: array<u32>;
//#if RECORDS
@group(0) @binding(5) var<storage, read_write> records: array<f32>;
const HELD = $HELD$u;
//#endif
//#if BIASED
@group(0) @binding($BIAS$) var<storage, read> bias: array<f32>;
//#endif

const TAPS = $TAPS$u;
const CHUNK = $CHUNK$u;

// v of a batch row.
fn value(row: u32, c: u32) -> f32 {
    //#if GATED
    let start = row * 3u * sizes.dim + c;
    return x[start] * x[start + 2u * sizes.dim];
    //#else
    return x[row * sizes.dim + c];
    //#endif
}

//#include earlier

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let c = id.x;
    if (c >= sizes.dim) {
        return;
    }
    let item = sizes.items + 7u * id.y;
    let slot = arguments[item + 1u] * (TAPS - 1u) * sizes.dim + c;
    let holds = arguments[item + 3u] != 0u;
    let row = arguments[item + 4u];
    let rows = arguments[item + 5u];
    let first = arguments[item + 6u];
    var old: array<f32, TAPS>;
    if (first == 0u) {
        for (var j = 0u; j + 1u < TAPS; j++) {
            old[j] = earlier(item, j, c);
        }
    }
    var weight: array<f32, TAPS>;
    for (var j = 0u; j < TAPS; j++) {
        weight[j] = taps[c * TAPS + j];
    }
    // The values under the taps, oldest first.
    var window: array<f32, TAPS>;
    for (var j = 0u; j + 1u < TAPS; j++) {
        if (first == 0u) {
            window[j + 1u] = old[j];
        } else {
            window[j + 1u] = value(row + first + j + 1u - TAPS, c);
        }
    }
    for (var i = first; i < min(rows, first + CHUNK); i++) {
        for (var j = 0u; j + 1u < TAPS; j++) {
            window[j] = window[j + 1u];
        }
        window[TAPS - 1u] = value(row + i, c);
        var sum = weight[0] * window[0];
        for (var j = 1u; j < TAPS; j++) {
            sum = fma(weight[j], window[j], sum);
        }
        //#if BIASED
        sum += bias[c];
        //#endif
        //#if GATED
        out[(row + i) * sizes.dim + c] = x[(row + i) * 3u * sizes.dim + sizes.dim + c] * sum;
        //#else
        out[(row + i) * sizes.dim + c] = sum / (1.0 + exp(clamp(-sum, -87.0, 87.0)));
        //#endif
    }
    if (first == 0u) {
        // Held rows leave the state before them.
        let end = select(rows, 0u, holds);
        for (var j = 0u; j + 1u < TAPS; j++) {
            let from_ = end + j;
            var v = 0.0;
            if (from_ + 1u < TAPS) {
                v = old[from_];
            } else {
                v = value(row + from_ + 1u - TAPS, c);
            }
            state[slot + j * sizes.dim] = v;
        }
        //#if RECORDS
        for (var i = 0u; i < select(0u, rows, holds); i++) {
            records[(arguments[item + 1u] * HELD + i) * sizes.dim + c] = value(row + i, c);
        }
        //#endif
    }
}
