// A selective state space row by row. A lane has a part of one column of a head's state in registers: the state is read
// once and written once, however many rows there are.
struct Sizes { items: u32, least: f32, most: f32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read_write> state: array<f32>;
@group(0) @binding(2) var<storage, read> xbc: array<f32>;
@group(0) @binding(3) var<storage, read> dt: array<f32>;
@group(0) @binding(4) var<storage, read> rate: array<f32>;
@group(0) @binding(5) var<storage, read> bias: array<f32>;
@group(0) @binding(6) var<storage, read> skip: array<f32>;
// Of every sequence: row, rows, position, slot, whether the rows are held.
@group(0) @binding(7) var<storage, read> arguments: array<u32>;
//#if RECORDS
@group(0) @binding(8) var<storage, read_write> records: array<f32>;
const HELD = $HELD$u;
const RECORD = 1u + $STATE_DIM$u + $HEAD_DIM$u;
//#endif

const HEADS = $HEADS$u;
const HEAD_DIM = $HEAD_DIM$u;
const WIDTH = HEADS * HEAD_DIM;
const STATE_DIM = $STATE_DIM$u;
const GROUPS = $GROUPS$u;
const CHANNELS = $CHANNELS$u;
// Columns of a workgroup, lanes that share one, and what each of them has of it.
const COLUMNS = $COLUMNS$u;
const BLOCKS = HEAD_DIM / COLUMNS;
const PARTS = $PARTS$u;
const LANES = COLUMNS * PARTS;

var<workgroup> b: array<f32, STATE_DIM>;
var<workgroup> c: array<f32, STATE_DIM>;
var<workgroup> sums: array<f32, LANES>;

//#include gates

@compute @workgroup_size($LANES$)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let h = group.x / BLOCKS;
    let item = sizes.items + 5u * group.y;
    let first_row = arguments[item];
    let rows = arguments[item + 1u];
    let column = group.x % BLOCKS * COLUMNS + lane % COLUMNS;
    let first = lane / COLUMNS * $EACH$u;
    let start = ((arguments[item + 3u] * HEADS + h) * STATE_DIM + first) * HEAD_DIM + column;
    let at_b = WIDTH + h / (HEADS / GROUPS) * STATE_DIM;
    //#for d EACH
    var s_$d$ = 0.0;
    //#endfor
    // Before position 0 there is nothing, whatever the slot holds.
    if (arguments[item + 2u] != 0u) {
        //#for d EACH
        s_$d$ = state[start + $d$u * HEAD_DIM];
        //#endfor
    }
    for (var i = 0u; i < rows; i++) {
        let row = first_row + i;
        let at = row * CHANNELS;
        for (var d = lane; d < STATE_DIM; d += LANES) {
            b[d] = xbc[at + at_b + d];
            c[d] = xbc[at + at_b + GROUPS * STATE_DIM + d];
        }
        let x = xbc[at + h * HEAD_DIM + column];
        let step = min(max(softplus(dt[row * HEADS + h] + bias[h]), sizes.least), sizes.most);
        let a = exp(max(rate[h] * step, -87.0));
        let u = step * x;
        workgroupBarrier();
        var part = 0.0;
        //#for d EACH
        s_$d$ = fma(b[first + $d$u], u, a * s_$d$);
        part = fma(c[first + $d$u], s_$d$, part);
        //#endfor
        //#if RECORDS
        // The head's first block of columns writes what all blocks share.
        if (arguments[item + 4u] != 0u) {
            let record = ((arguments[item + 3u] * HEADS + h) * HELD + i) * RECORD;
            if (lane < COLUMNS) {
                records[record + 1u + STATE_DIM + column] = u;
            }
            if (group.x % BLOCKS == 0u) {
                for (var d = lane; d < STATE_DIM; d += LANES) {
                    records[record + 1u + d] = b[d];
                }
                if (lane == 0u) {
                    records[record] = a;
                }
            }
        }
        //#endif
        sums[lane] = part;
        workgroupBarrier();
        if (lane < COLUMNS) {
            var y = 0.0;
            for (var n = 0u; n < PARTS; n++) {
                y += sums[n * COLUMNS + lane];
            }
            out[row * WIDTH + h * HEAD_DIM + column] = fma(skip[h], x, y);
        }
    }
    if (rows > 0u && arguments[item + 4u] == 0u) {
        //#for d EACH
        state[start + $d$u * HEAD_DIM] = s_$d$;
        //#endfor
    }
}
