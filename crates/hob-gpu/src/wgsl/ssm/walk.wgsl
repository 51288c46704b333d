// Some columns of a head's state walk through the chunks of a sequence. Teams of lanes have rows of a chunk, lanes of a
// team a column each: y = kept (state times C) + P x + skip x; state = kept state + B (faded x).
struct Sizes { chunks: u32, runs: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read_write> state: array<f32>;
@group(0) @binding(2) var<storage, read> table: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> xbc: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> skip: array<f32>;
// Of every chunk: first row, rows. Of every run: first chunk, chunks, slot, whether the state begins here.
@group(0) @binding(5) var<storage, read> arguments: array<u32>;

const HEADS = $HEADS$u;
const HEAD_DIM = $HEAD_DIM$u;
const STATE_DIM = $STATE_DIM$u;
const GROUPS = $GROUPS$u;
const CHANNELS = $CHANNELS$u / 4u;
const COLUMNS = $COLUMNS$u;
const TEAMS = $TEAMS$u;
// Rows of a team.
const EACH = $EACH$u;
const ROWS = 64u;
const TABLE = (ROWS * ROWS + 3u * ROWS) / 4u;

const STATE = STATE_DIM * COLUMNS;
var<workgroup> s: array<f32, STATE>;
const INPUTS = ROWS * COLUMNS;
var<workgroup> x: array<f32, INPUTS>;

// One float of a vector of the table.
fn of_table(at: u32, i: u32) -> f32 {
    return table[at + i / 4u][i % 4u];
}

@compute @workgroup_size($LANES$)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let h = group.y;
    let c = lane % COLUMNS;
    let team = lane / COLUMNS;
    let run = sizes.runs + 4u * group.z;
    let first = arguments[run];
    let end = first + arguments[run + 1u];
    let fresh = arguments[run + 3u] != 0u;
    let column = group.x * COLUMNS + c;
    let start = (arguments[run + 2u] * HEADS + h) * STATE_DIM * HEAD_DIM + column;
    let at_b = (HEADS * HEAD_DIM + h / (HEADS / GROUPS) * STATE_DIM) / 4u;
    let at_c = at_b + GROUPS * STATE_DIM / 4u;
    let of_x = h * HEAD_DIM + column;
    let by_x = skip[h];
    for (var d = team; d < STATE_DIM; d += TEAMS) {
        var value = 0.0;
        if (!fresh) {
            value = state[start + d * HEAD_DIM];
        }
        s[d * COLUMNS + c] = value;
    }
    workgroupBarrier();
    for (var chunk = first; chunk < end; chunk++) {
        let row = arguments[sizes.chunks + 2u * chunk];
        let rows = arguments[sizes.chunks + 2u * chunk + 1u];
        let at = (chunk * HEADS + h) * TABLE;
        let vectors = at + ROWS * ROWS / 4u;
        let mine = team * EACH;
        // A row behind the last is read as the last; its weights are 0.
        //#for n EACH
        let row_$n$ = (row + min(mine + $n$u, rows - 1u)) * CHANNELS;
        let x_$n$ = xbc[row_$n$ + of_x / 4u][of_x % 4u];
        x[(mine + $n$u) * COLUMNS + c] = x_$n$;
        var y_$n$ = 0.0;
        //#endfor
        for (var d = 0u; d < STATE_DIM / 4u; d++) {
            let n = 4u * d * COLUMNS + c;
            let of_s = vec4<f32>(s[n], s[n + COLUMNS], s[n + 2u * COLUMNS], s[n + 3u * COLUMNS]);
            //#for n EACH
            y_$n$ += dot(xbc[row_$n$ + at_c + d], of_s);
            //#endfor
        }
        //#for n EACH
        y_$n$ *= of_table(vectors, mine + $n$u);
        //#endfor
        workgroupBarrier();
        // Later rows weigh nothing.
        let quads = (mine + EACH + 3u) / 4u;
        for (var j = 0u; j < quads; j++) {
            let n = 4u * j * COLUMNS + c;
            let inputs = vec4<f32>(x[n], x[n + COLUMNS], x[n + 2u * COLUMNS], x[n + 3u * COLUMNS]);
            //#for n EACH
            y_$n$ += dot(table[at + (mine + $n$u) * ROWS / 4u + j], inputs);
            //#endfor
        }
        //#for n EACH
        if (mine + $n$u < rows) {
            out[(row + mine + $n$u) * HEADS * HEAD_DIM + of_x] = fma(by_x, x_$n$, y_$n$);
        }
        //#endfor
        //#for n QUADS
        var add_$n$ = vec4<f32>(0.0);
        let quad_$n$ = min(team + $n$u * TEAMS, STATE_DIM / 4u - 1u);
        //#endfor
        for (var i = 0u; i < rows; i++) {
            let by = of_table(vectors + ROWS / 4u, i) * x[i * COLUMNS + c];
            let from_ = (row + i) * CHANNELS + at_b;
            //#for n QUADS
            add_$n$ += xbc[from_ + quad_$n$] * by;
            //#endfor
        }
        let kept = of_table(vectors + 2u * ROWS / 4u, 0u);
        //#for n QUADS
        if (team + $n$u * TEAMS < STATE_DIM / 4u) {
            for (var n = 0u; n < 4u; n++) {
                let d = (4u * quad_$n$ + n) * COLUMNS + c;
                s[d] = fma(kept, s[d], add_$n$[n]);
            }
        }
        //#endfor
        workgroupBarrier();
    }
    for (var d = team; d < STATE_DIM; d += TEAMS) {
        state[start + d * HEAD_DIM] = s[d * COLUMNS + c];
    }
}
