// The gated delta rule row by row. A lane has one column of the state, or a stretch of one, in registers: the state is
// read once and written once, however many rows there are.
struct Sizes { items: u32, eps: f32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read_write> state: array<f32>;
@group(0) @binding(2) var<storage, read> qkv: array<f32>;
@group(0) @binding(3) var<storage, read> z: array<f32>;
@group(0) @binding(4) var<storage, read> beta: array<f32>;
@group(0) @binding(5) var<storage, read> decay: array<f32>;
@group(0) @binding(6) var<storage, read> rate: array<f32>;
@group(0) @binding(7) var<storage, read> bias: array<f32>;
@group(0) @binding(8) var<storage, read> norm: array<f32>;
// Of every sequence: row, rows, positions that the state has seen, slot, held rows that count, whether the rows are held.
@group(0) @binding(9) var<storage, read> arguments: array<u32>;
//#if RECORDS
@group(0) @binding(10) var<storage, read_write> records: array<f32>;
const HELD = $HELD$u;
const RECORD = 1u + $KEY_DIM$u + $VALUE_DIM$u;
//#endif

const KEY_HEADS = $KEY_HEADS$u;
const HEADS = $VALUE_HEADS$u;
const DK = $KEY_DIM$u;
const DV = $VALUE_DIM$u;
const CHANNELS = $CHANNELS$u;
const PARTS = $PARTS$u;
const LANES = $LANES$u;
// Floats of a column that a lane has.
const EACH = $EACH$u;
const TEAM = 16u;

var<workgroup> q: array<f32, DK>;
var<workgroup> k: array<f32, DK>;
//#if CHANNEL
// What stays of every channel.
var<workgroup> kept: array<f32, DK>;
//#endif
// Of a stretch of q and k: q . q, k . k, q . k.
var<workgroup> lengths: array<vec4<f32>, TEAM>;
var<workgroup> products: array<vec2<f32>, LANES>;
var<workgroup> squares: array<f32, DV>;
var<workgroup> sums: array<f32, TEAM>;

//#include gates

@compute @workgroup_size($LANES$)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let h = group.x;
    let key_head = $KEY_HEAD$;
    let item = sizes.items + 6u * group.y;
    let first_row = arguments[item];
    let rows = arguments[item + 1u];
    let column = lane % DV;
    let first = lane / DV * EACH;
    let start = ((arguments[item + 3u] * HEADS + h) * DK + first) * DV + column;
    //#for d EACH
    var s_$d$ = 0.0;
    //#endfor
    // Before position 0 there is nothing, whatever the slot holds.
    if (arguments[item + 2u] != 0u) {
        //#for d EACH
        s_$d$ = state[start + $d$u * DV];
        //#endfor
    }
    //#if RECORDS
    // Held rows that count are taken up with the operations of plain rows.
    let accepted = arguments[item + 4u];
    let holds = arguments[item + 5u] != 0u;
    let held = (arguments[item + 3u] * HEADS + h) * HELD * RECORD;
    for (var n = 0u; n < accepted; n++) {
        let a = records[held + n * RECORD];
        let of_k = held + n * RECORD + 1u + first;
        let step = records[held + n * RECORD + 1u + DK + column];
        //#for d EACH
        s_$d$ = fma(records[of_k + $d$u], step, a * s_$d$);
        //#endfor
    }
    // Rows that are held leave the state before them.
    if (holds && accepted > 0u) {
        //#for d EACH
        state[start + $d$u * DV] = s_$d$;
        //#endfor
    }
    // Old records have been read when the first is overwritten.
    storageBarrier();
    //#endif
    let of_norm = norm[column];
    for (var i = 0u; i < rows; i++) {
        let row = first_row + i;
        let at = row * CHANNELS;
        for (var d = lane; d < DK; d += LANES) {
            q[d] = qkv[at + key_head * DK + d];
            k[d] = qkv[at + (KEY_HEADS + key_head) * DK + d];
            //#if CHANNEL
            let of_d = h * DK + d;
            kept[d] = exp(max(rate[h] * softplus(decay[row * HEADS * DK + of_d] + bias[of_d]), -87.0));
            //#endif
        }
        // Read early: they are wanted when the state has been multiplied.
        let v = qkv[at + 2u * KEY_HEADS * DK + h * DV + column];
        let to = (row * HEADS + h) * DV + column;
        let gate = z[to];
        let b = sigmoid(beta[row * HEADS + h]);
        //#if CHANNEL
        // It has faded before it is multiplied.
        let a = 1.0;
        //#else
        let a = exp(max(rate[h] * softplus(decay[row * HEADS + h] + bias[h]), -87.0));
        //#endif
        workgroupBarrier();
        if (lane < TEAM) {
            var sum = vec4<f32>(0.0);
            for (var d = lane; d < DK; d += TEAM) {
                sum += vec4<f32>(q[d] * q[d], k[d] * k[d], q[d] * k[d], 0.0);
            }
            lengths[lane] = sum;
        }
        var part = vec2<f32>(0.0);
        //#for d EACH
        //#if CHANNEL
        s_$d$ *= kept[first + $d$u];
        //#endif
        part = fma(vec2<f32>(k[first + $d$u], q[first + $d$u]), vec2<f32>(s_$d$), part);
        //#endfor
        products[lane] = part;
        workgroupBarrier();
        var all = vec4<f32>(0.0);
        for (var n = 0u; n < TEAM; n++) {
            all += lengths[n];
        }
        let unit_q = 1.0 / (sqrt(all.x + UNIT_EPS) * sqrt(f32(DK)));
        let unit_k = 1.0 / sqrt(all.y + UNIT_EPS);
        var both = vec2<f32>(0.0);
        for (var n = 0u; n < PARTS; n++) {
            both += products[n * DV + column];
        }
        let u = b * (v - a * unit_k * both.x);
        let o = fma(all.z * unit_q * unit_k, u, a * unit_q * both.y);
        let step = unit_k * u;
        //#for d EACH
        s_$d$ = fma(k[first + $d$u], step, a * s_$d$);
        //#endfor
        //#if RECORDS
        if (holds) {
            let record = held + i * RECORD;
            for (var d = lane; d < DK; d += LANES) {
                records[record + 1u + d] = k[d];
            }
            if (lane < DV) {
                records[record + 1u + DK + column] = step;
            }
            if (lane == 0u) {
                records[record] = a;
            }
        }
        //#endif
        if (lane < DV) {
            squares[lane] = o * o;
        }
        workgroupBarrier();
        if (lane < TEAM) {
            var sum = 0.0;
            for (var c = lane; c < DV; c += TEAM) {
                sum += squares[c];
            }
            sums[lane] = sum;
        }
        workgroupBarrier();
        var square = 0.0;
        for (var n = 0u; n < TEAM; n++) {
            square += sums[n];
        }
        if (lane < DV) {
            out[to] = o / sqrt(square / f32(DV) + sizes.eps) * of_norm * gate * sigmoid(gate);
        }
    }
    //#if RECORDS
    let moves = !holds && rows + accepted > 0u;
    //#else
    let moves = rows > 0u;
    //#endif
    if (moves) {
        //#for d EACH
        state[start + $d$u * DV] = s_$d$;
        //#endfor
    }
}
