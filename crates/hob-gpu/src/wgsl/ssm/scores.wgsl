// What a chunk of a selective state space needs beside the state: one workgroup has a chunk, a group, and some of the
// group's heads. With G the running sum of log decay and D[i][j] = exp(G[i] - G[j]), it writes for every head:
// - P[i][j] = D[i][j] (C[i] . B[j]) step[j] for j <= i
// - vectors: exp(G[i]), D[last][i] step[i], exp(G[last])
struct Sizes { chunks: u32, least: f32, most: f32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> table: array<f32>;
@group(0) @binding(1) var<storage, read> xbc: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dt: array<f32>;
@group(0) @binding(3) var<storage, read> rate: array<f32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
// Of every chunk: first row, rows.
@group(0) @binding(5) var<storage, read> arguments: array<u32>;

const HEADS = $HEADS$u;
const GROUPS = $GROUPS$u;
const QUADS = $STATE_DIM$u / 4u;
const CHANNELS = $CHANNELS$u / 4u;
const AT_B = HEADS * $HEAD_DIM$u / 4u;
// Heads of a workgroup.
const EACH = $EACH$u;
const ROWS = 64u;
const TABLE = ROWS * ROWS + 3u * ROWS;
// Quads of B and of C that are staged at once, as [dimension][row].
const STAGED = 4u;

var<workgroup> b: array<f32, 1024>;
var<workgroup> c: array<f32, 1024>;
// Step and G.
var<workgroup> of_row: array<vec2<f32>, 64>;

//#include gates

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = arguments[sizes.chunks + 2u * group.y];
    let rows = arguments[sizes.chunks + 2u * group.y + 1u];
    // Every lane stages a quad of a row of B and of C at a time. A row behind the last is read as the last; it has no step.
    let staged_row = lane / 4u;
    let from_ = (row + min(staged_row, rows - 1u)) * CHANNELS + AT_B + group.x * QUADS;
    // A lane has column j of every fourth quad of rows.
    let j = lane % ROWS;
    let first = lane / ROWS;
    //#for n 4
    var cb_$n$ = vec4<f32>(0.0);
    //#endfor
    for (var d = 0u; d < QUADS; d += STAGED) {
        let of_b = xbc[from_ + d + lane % 4u];
        let of_c = xbc[from_ + GROUPS * QUADS + d + lane % 4u];
        workgroupBarrier();
        for (var n = 0u; n < 4u; n++) {
            let at = (4u * (lane % 4u) + n) * ROWS + staged_row;
            b[at] = of_b[n];
            c[at] = of_c[n];
        }
        workgroupBarrier();
        for (var n = 0u; n < 4u * STAGED; n++) {
            let column = b[n * ROWS + j];
            //#for m 4
            let at_$m$ = n * ROWS + 4u * (first + 4u * $m$u);
            cb_$m$ += column * vec4<f32>(c[at_$m$], c[at_$m$ + 1u], c[at_$m$ + 2u], c[at_$m$ + 3u]);
            //#endfor
        }
    }
    let of_group = HEADS / GROUPS;
    let begin = group.x * of_group + group.z * EACH;
    let end = min(begin + EACH, (group.x + 1u) * of_group);
    for (var h = begin; h < end; h++) {
        if (lane < ROWS) {
            var values = vec2<f32>(0.0);
            if (lane < rows) {
                let given = softplus(dt[(row + lane) * HEADS + h] + bias[h]);
                let step = min(max(given, sizes.least), sizes.most);
                values = vec2<f32>(step, rate[h] * step);
            }
            of_row[lane] = values;
        }
        workgroupBarrier();
        var total = 0.0;
        if (lane < ROWS) {
            for (var n = 0u; n <= lane; n++) {
                total += of_row[n].y;
            }
        }
        workgroupBarrier();
        if (lane < ROWS) {
            of_row[lane].y = total;
        }
        workgroupBarrier();
        let to = (group.y * HEADS + h) * TABLE;
        let column = of_row[j];
        //#for m 4
        for (var n = 0u; n < 4u; n++) {
            let i = 4u * (first + 4u * $m$u) + n;
            let faded = exp(clamp(of_row[i].y - column.y, -87.0, 0.0)) * column.x;
            table[to + i * ROWS + j] = select(0.0, faded * cb_$m$[n], j <= i);
        }
        //#endfor
        if (lane < ROWS) {
            let last = of_row[rows - 1u].y;
            let vectors = to + ROWS * ROWS + lane;
            table[vectors] = exp(max(column.y, -87.0));
            table[vectors + ROWS] = exp(clamp(last - column.y, -87.0, 0.0)) * column.x;
            table[vectors + 2u * ROWS] = exp(max(last, -87.0));
        }
        workgroupBarrier();
    }
}
