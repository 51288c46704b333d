// Some columns of a head's state walk through the chunks of a sequence. Teams of lanes have rows of a chunk, lanes of a
// team a column each: x = v - (state times k); u = W x; o = state times q + P u; state = kept state + k u.
struct Sizes { chunks: u32, runs: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read_write> state: array<f32>;
@group(0) @binding(2) var<storage, read> table: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> qkv: array<vec4<f32>>;
// Of every chunk: first row, rows. Of every run: first chunk, chunks, slot, whether the state begins here.
@group(0) @binding(4) var<storage, read> arguments: array<u32>;

const KEY_HEADS = $KEY_HEADS$u;
const HEADS = $VALUE_HEADS$u;
const DK = $KEY_DIM$u;
const DV = $VALUE_DIM$u;
const CHANNELS = $CHANNELS$u / 4u;
const COLUMNS = $COLUMNS$u;
const TEAMS = $TEAMS$u;
// Rows of a team.
const EACH = $EACH$u;
const ROWS = 64u;
const TABLE = (2u * ROWS * ROWS + 4u * ROWS) / 4u;

//#if CHANNEL
// Of every head of a chunk: running sums of log decay, what stays until and from each row on.
@group(0) @binding(5) var<storage, read> fades: array<vec4<f32>>;
const FADES = 3u * ROWS * DK / 4u;
//#endif

const STATE = DK * COLUMNS;
var<workgroup> s: array<f32, STATE>;
// x, then u.
const UPDATES = ROWS * COLUMNS;
var<workgroup> u: array<f32, UPDATES>;

// One float of a vector of the table.
fn of_table(at: u32, i: u32) -> f32 {
    return table[at + i / 4u][i % 4u];
}

@compute @workgroup_size($LANES$)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let h = group.y;
    let key_head = $KEY_HEAD$;
    let c = lane % COLUMNS;
    let team = lane / COLUMNS;
    let run = sizes.runs + 4u * group.z;
    let first = arguments[run];
    let end = first + arguments[run + 1u];
    let fresh = arguments[run + 3u] != 0u;
    let start = (arguments[run + 2u] * HEADS + h) * DK * DV + group.x * COLUMNS + c;
    let at_q = key_head * DK / 4u;
    let at_k = (KEY_HEADS + key_head) * DK / 4u;
    let of_v = 2u * KEY_HEADS * DK + h * DV + group.x * COLUMNS + c;
    for (var d = team; d < DK; d += TEAMS) {
        var value = 0.0;
        if (!fresh) {
            value = state[start + d * DV];
        }
        s[d * COLUMNS + c] = value;
    }
    workgroupBarrier();
    for (var chunk = first; chunk < end; chunk++) {
        let row = arguments[sizes.chunks + 2u * chunk];
        let rows = arguments[sizes.chunks + 2u * chunk + 1u];
        let at = (chunk * HEADS + h) * TABLE;
        let vectors = at + 2u * ROWS * ROWS / 4u;
        //#if CHANNEL
        let until = (chunk * HEADS + h) * FADES + ROWS * DK / 4u;
        let from_row = until + ROWS * DK / 4u;
        //#endif
        let mine = team * EACH;
        // A row behind the last is read as the last; its weights are 0.
        //#for n EACH
        let row_$n$ = (row + min(mine + $n$u, rows - 1u)) * CHANNELS;
        var x_$n$ = 0.0;
        var y_$n$ = 0.0;
        //#endfor
        for (var d = 0u; d < DK / 4u; d++) {
            let n = 4u * d * COLUMNS + c;
            let column = vec4<f32>(s[n], s[n + COLUMNS], s[n + 2u * COLUMNS], s[n + 3u * COLUMNS]);
            //#for n EACH
            //#if CHANNEL
            let kept_$n$ = column * fades[until + (mine + $n$u) * DK / 4u + d];
            //#else
            let kept_$n$ = column;
            //#endif
            x_$n$ += dot(qkv[row_$n$ + at_k + d], kept_$n$);
            y_$n$ += dot(qkv[row_$n$ + at_q + d], kept_$n$);
            //#endfor
        }
        //#for n EACH
        let v_$n$ = qkv[row_$n$ + of_v / 4u][of_v % 4u];
        u[(mine + $n$u) * COLUMNS + c] = v_$n$ - of_table(vectors, mine + $n$u) * x_$n$;
        y_$n$ *= of_table(vectors + ROWS / 4u, mine + $n$u);
        x_$n$ = 0.0;
        //#endfor
        workgroupBarrier();
        // Later rows weigh nothing.
        let quads = (mine + EACH + 3u) / 4u;
        for (var j = 0u; j < quads; j++) {
            let n = 4u * j * COLUMNS + c;
            let column = vec4<f32>(u[n], u[n + COLUMNS], u[n + 2u * COLUMNS], u[n + 3u * COLUMNS]);
            //#for n EACH
            x_$n$ += dot(table[at + (mine + $n$u) * ROWS / 4u + j], column);
            //#endfor
        }
        workgroupBarrier();
        //#for n EACH
        u[(mine + $n$u) * COLUMNS + c] = x_$n$;
        //#endfor
        workgroupBarrier();
        for (var j = 0u; j < quads; j++) {
            let n = 4u * j * COLUMNS + c;
            let column = vec4<f32>(u[n], u[n + COLUMNS], u[n + 2u * COLUMNS], u[n + 3u * COLUMNS]);
            //#for n EACH
            y_$n$ += dot(table[at + (ROWS * ROWS + (mine + $n$u) * ROWS) / 4u + j], column);
            //#endfor
        }
        //#for n EACH
        if (mine + $n$u < rows) {
            out[((row + mine + $n$u) * HEADS + h) * DV + group.x * COLUMNS + c] = y_$n$;
        }
        //#endfor
        //#for n QUADS
        var add_$n$ = vec4<f32>(0.0);
        let key_$n$ = min(team + $n$u * TEAMS, DK / 4u - 1u);
        //#endfor
        for (var i = 0u; i < rows; i++) {
            let by = of_table(vectors + 2u * ROWS / 4u, i) * u[i * COLUMNS + c];
            let from_ = (row + i) * CHANNELS + at_k;
            //#for n QUADS
            //#if CHANNEL
            add_$n$ += qkv[from_ + key_$n$] * fades[from_row + i * DK / 4u + key_$n$] * by;
            //#else
            add_$n$ += qkv[from_ + key_$n$] * by;
            //#endif
            //#endfor
        }
        let kept = of_table(vectors + 3u * ROWS / 4u, 0u);
        //#for n QUADS
        if (team + $n$u * TEAMS < DK / 4u) {
            for (var n = 0u; n < 4u; n++) {
                let d = (4u * key_$n$ + n) * COLUMNS + c;
                //#if CHANNEL
                s[d] = fma(fades[until + (rows - 1u) * DK / 4u + key_$n$][n], s[d], add_$n$[n]);
                //#else
                s[d] = fma(kept, s[d], add_$n$[n]);
                //#endif
            }
        }
        //#endfor
        workgroupBarrier();
    }
    for (var d = team; d < DK; d += TEAMS) {
        state[start + d * DV] = s[d * COLUMNS + c];
    }
}
