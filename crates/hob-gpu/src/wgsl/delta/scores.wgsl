// What a chunk of the gated delta rule needs beside the state, one workgroup per head and chunk. With unit vectors q
// and k, G the running sum of log decay and D[i][j] = exp(G[i] - G[j]), it writes:
// - weights W = inverse(1 + A) * diag(b), A[i][j] = b[i] D[i][j] (k[i] . k[j]) for j < i
// - P[i][j] = D[i][j] (q[i] . k[j]) for j <= i
// - vectors: exp(G[i]) and unit length of k, the same of q, D[last][i] and unit length of k, exp(G[last])
struct Sizes { chunks: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> table: array<f32>;
@group(0) @binding(1) var<storage, read> qkv: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> beta: array<f32>;
@group(0) @binding(3) var<storage, read> decay: array<f32>;
@group(0) @binding(4) var<storage, read> rate: array<f32>;
@group(0) @binding(5) var<storage, read> bias: array<f32>;
// Of every chunk: first row, rows.
@group(0) @binding(6) var<storage, read> arguments: array<u32>;

const KEY_HEADS = $KEY_HEADS$u;
const HEADS = $VALUE_HEADS$u;
const QUADS = $KEY_DIM$u / 4u;
const CHANNELS = $CHANNELS$u / 4u;
const ROWS = 64u;
const TABLE = 2u * ROWS * ROWS + 4u * ROWS;
// Quads of the keys that are staged at once: of k, then of q.
const STAGED = 4u;
const Q_STAGE = 4u * STAGED * ROWS;
// Rows of a block of the inverse.
const BLOCK = 16u;

// Staged keys as [dimension][row]; later A, then its inverse.
var<workgroup> matrix: array<f32, 4096>;
// A product on its way to the inverse.
var<workgroup> between: array<f32, 768>;
var<workgroup> lengths: array<vec2<f32>, 256>;
// Unit lengths of q and k, b, G.
var<workgroup> of_row: array<vec4<f32>, 64>;

//#if CHANNEL
// Of every head of a chunk: running sums of log decay, what stays until and from each row on.
@group(0) @binding(7) var<storage, read> fades: array<vec4<f32>>;
const FADES = 3u * ROWS * QUADS;
const G_STAGE = 2u * Q_STAGE;
//#endif

//#include gates

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let h = group.x;
    let key_head = $KEY_HEAD$;
    let row = arguments[sizes.chunks + 2u * group.y];
    let rows = arguments[sizes.chunks + 2u * group.y + 1u];
    let to = (group.y * HEADS + h) * TABLE;
    let at_q = key_head * QUADS;
    let at_k = (KEY_HEADS + key_head) * QUADS;
    // Every lane stages a quad of a row of q and of k at a time, and sums their squares. A row behind the last is read
    // as the last; its weights are 0.
    let staged_row = lane / 4u;
    let from_ = (row + min(staged_row, rows - 1u)) * CHANNELS;
    // A lane has column j of every fourth quad of rows.
    let j = lane % ROWS;
    let first = lane / ROWS;
    //#for n 4
    var kk_$n$ = vec4<f32>(0.0);
    var qk_$n$ = vec4<f32>(0.0);
    //#endfor
    var squares = vec2<f32>(0.0);
    for (var d = 0u; d < QUADS; d += STAGED) {
        let quad = d + lane % 4u;
        let k = qkv[from_ + at_k + quad];
        let q = qkv[from_ + at_q + quad];
        //#if CHANNEL
        let g = fades[(group.y * HEADS + h) * FADES + staged_row * QUADS + quad];
        //#endif
        squares += vec2<f32>(dot(q, q), dot(k, k));
        workgroupBarrier();
        for (var n = 0u; n < 4u; n++) {
            let at = (4u * (lane % 4u) + n) * ROWS + staged_row;
            matrix[at] = k[n];
            matrix[Q_STAGE + at] = q[n];
            //#if CHANNEL
            matrix[G_STAGE + at] = g[n];
            //#endif
        }
        workgroupBarrier();
        for (var n = 0u; n < 4u * STAGED; n++) {
            //#if CHANNEL
            let until = matrix[G_STAGE + n * ROWS + j];
            //#endif
            //#for m 4
            let at_$m$ = n * ROWS + 4u * (first + 4u * $m$u);
            //#if CHANNEL
            let from_$m$ = G_STAGE + at_$m$;
            let sums_$m$ =
                vec4<f32>(matrix[from_$m$], matrix[from_$m$ + 1u], matrix[from_$m$ + 2u], matrix[from_$m$ + 3u]);
            let column_$m$ = matrix[n * ROWS + j] * exp(clamp(sums_$m$ - until, vec4<f32>(-87.0), vec4<f32>(0.0)));
            //#else
            let column_$m$ = matrix[n * ROWS + j];
            //#endif
            kk_$m$ += column_$m$ * vec4<f32>(matrix[at_$m$], matrix[at_$m$ + 1u], matrix[at_$m$ + 2u], matrix[at_$m$ + 3u]);
            let of_q_$m$ = Q_STAGE + at_$m$;
            qk_$m$ += column_$m$
                * vec4<f32>(matrix[of_q_$m$], matrix[of_q_$m$ + 1u], matrix[of_q_$m$ + 2u], matrix[of_q_$m$ + 3u]);
            //#endfor
        }
    }
    lengths[lane] = squares;
    workgroupBarrier();
    if (lane < ROWS) {
        var values = vec4<f32>(0.0);
        if (lane < rows) {
            let n = 4u * lane;
            let all = lengths[n] + lengths[n + 1u] + lengths[n + 2u] + lengths[n + 3u] + vec2<f32>(UNIT_EPS);
            let at = (row + lane) * HEADS + h;
            //#if CHANNEL
            // Scores have faded.
            let g = 0.0;
            //#else
            let g = rate[h] * softplus(decay[at] + bias[h]);
            //#endif
            let unit = 1.0 / sqrt(all);
            values = vec4<f32>(unit.x / sqrt(f32(4u * QUADS)), unit.y, sigmoid(beta[at]), g);
        }
        of_row[lane] = values;
    }
    workgroupBarrier();
    var total = 0.0;
    if (lane < ROWS) {
        for (var n = 0u; n <= lane; n++) {
            total += of_row[n].w;
        }
    }
    workgroupBarrier();
    if (lane < ROWS) {
        of_row[lane].w = total;
    }
    workgroupBarrier();
    let column = of_row[j];
    //#for m 4
    for (var n = 0u; n < 4u; n++) {
        let i = 4u * (first + 4u * $m$u) + n;
        let mine = of_row[i];
        let faded = exp(clamp(mine.w - column.w, -87.0, 0.0)) * column.y;
        matrix[i * ROWS + j] = select(0.0, mine.z * faded * mine.y * kk_$m$[n], j < i);
        table[to + ROWS * ROWS + i * ROWS + j] = select(0.0, faded * mine.x * qk_$m$[n], j <= i);
    }
    //#endfor
    // The inverse in place. First the four blocks of the diagonal side by side, row by row: a row needs those before it.
    let block = lane / BLOCK % 4u * BLOCK;
    let c = lane % BLOCK;
    for (var i = 1u; i < BLOCK; i++) {
        workgroupBarrier();
        var x = 0.0;
        if (lane < ROWS && c < i) {
            x = matrix[(block + i) * ROWS + block + c];
            for (var n = c + 1u; n < i; n++) {
                x = fma(matrix[(block + i) * ROWS + block + n], matrix[(block + n) * ROWS + block + c], x);
            }
        }
        workgroupBarrier();
        if (lane < ROWS && c < i) {
            matrix[(block + i) * ROWS + block + c] = -x;
        }
    }
    // Then a row of blocks at a time: minus its own inverse times A times the inverse of what lies above.
    for (var top = BLOCK; top < ROWS; top += BLOCK) {
        workgroupBarrier();
        let i = lane / BLOCK;
        for (var n = c; n < top; n += BLOCK) {
            // The diagonal of the inverse is 1 and is not stored.
            var x = matrix[(top + i) * ROWS + n];
            for (var m = n + 1u; m < top; m++) {
                x = fma(matrix[(top + i) * ROWS + m], matrix[m * ROWS + n], x);
            }
            between[i * 48u + n] = x;
        }
        workgroupBarrier();
        for (var n = c; n < top; n += BLOCK) {
            var x = between[i * 48u + n];
            for (var m = 0u; m < i; m++) {
                x = fma(matrix[(top + i) * ROWS + top + m], between[m * 48u + n], x);
            }
            matrix[(top + i) * ROWS + n] = -x;
        }
    }
    workgroupBarrier();
    for (var n = lane; n < ROWS * ROWS; n += 256u) {
        let i = n / ROWS;
        let x = select(matrix[n], 1.0, i == n % ROWS);
        table[to + n] = x * of_row[n % ROWS].z;
    }
    if (lane < ROWS) {
        let mine = of_row[lane];
        let last = of_row[rows - 1u].w;
        let kept = exp(max(mine.w, -87.0));
        let vectors = to + 2u * ROWS * ROWS + lane;
        table[vectors] = kept * mine.y;
        table[vectors + ROWS] = kept * mine.x;
        table[vectors + 2u * ROWS] = exp(clamp(last - mine.w, -87.0, 0.0)) * mine.y;
        table[vectors + 3u * ROWS] = exp(max(last, -87.0));
    }
}
