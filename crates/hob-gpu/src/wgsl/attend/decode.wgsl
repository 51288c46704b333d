// Attention of few rows over one split of a sequence's blocks: one workgroup per split, KV head and tile of columns. A
// column is a query head of the KV head at one row; columns travel four to a vec4. It leaves, per column, the largest
// score, the sum of exp2(score - largest) and V weighted so; `merge` makes one result of all splits.
struct Sizes {
    items: u32, seqs: u32, per_split: u32, window: u32,
    factor: f32, cap: f32, heads: u32, group: u32,
    q_eps: f32, k_eps: f32, rotary: u32, magnitude: f32,
}
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> partials: array<f32>;
@group(0) @binding(1) var<storage, read_write> bounds: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read> arguments: array<u32>;
@group(0) @binding(3) var<storage, read> q_rows: array<f32>;
@group(0) @binding(4) var<storage, $ACCESS$> pages: array<u32>;
//#if FIRST
@group(0) @binding(5) var<storage, $ACCESS$> first_pages: array<u32>;
//#endif
//#if NEW
@group(0) @binding($AT_K$) var<storage, read> k_rows: array<f32>;
@group(0) @binding($AT_V$) var<storage, read> v_rows: array<f32>;
//#endif
//#if NORMS
@group(0) @binding($AT_Q_NORM$) var<storage, read> q_norm: array<f32>;
@group(0) @binding($AT_K_NORM$) var<storage, read> k_norm: array<f32>;
//#endif
//#if ROTATES
@group(0) @binding($AT_FREQS$) var<storage, read> freqs: array<f32>;
//#endif

const LANES: u32 = $LANES$u;
// Blocks of a round, and its positions.
const BLOCKS: u32 = $LANES$u / 32u;
const COLUMN_FOURS: u32 = $CV$u;
const COLUMNS: u32 = $CV$u * 4u;
// The score of what a column does not see.
const UNSEEN: f32 = -3.0e38;
// Added to a small integer it makes an f32 whose low bits are the integer; as an integer, the same of a small sum.
const MAGIC: f32 = 12582912.0;
const MAGIC_BITS: u32 = 0x4b400000u;

// [HEAD_DIM][COLUMN_FOURS]
var<workgroup> queries: array<vec4<f32>, $QUERIES$>;
//#if K_PACKED
// Codes of queries: word n of a group (four dimensions), per column.
var<workgroup> q_codes: array<vec4<u32>, $Q_CODES$>;
//#if K_Q8
var<workgroup> q_lows: array<vec4<u32>, $Q_CODES$>;
//#endif
// Scales of queries per group, and what is added to every product: minus eight sums of codes, or the sum itself (asym4).
var<workgroup> q_scales: array<vec4<f32>, $Q_GROUPS$>;
var<workgroup> q_sums: array<vec4<f32>, $Q_GROUPS$>;
//#endif
// Scores' maxima, then weights of the round's positions, then sums.
var<workgroup> weights: array<vec4<f32>, $WEIGHTS$>;
//#if V_PACKED
// Codes of weights times scales: four positions to a word, per column.
var<workgroup> w_codes: array<vec4<u32>, $W_CODES$>;
//#if V_Q8
var<workgroup> w_lows: array<vec4<u32>, $W_CODES$>;
//#endif
var<workgroup> w_most: array<vec4<f32>, $W_TASKS$>;
//#if V_NIBBLES
var<workgroup> w_adds: array<vec4<f32>, $W_TASKS$>;
//#endif
//#endif

//#include pages
//#if NEW
//#include encode
//#endif
//#if ROTATES
//#include rope_angle
//#endif
//#include score

// The largest of what the lanes have in `weights`, or the sum: afterwards in weights[0 .. COLUMN_FOURS].
fn most_of_all(lane: u32) {
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            //#for v CV
            weights[lane * COLUMN_FOURS + $v$u] = max(weights[lane * COLUMN_FOURS + $v$u], weights[(lane + half) * COLUMN_FOURS + $v$u]);
            //#endfor
        }
        workgroupBarrier();
    }
}

fn sum_of_all(lane: u32) {
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            //#for v CV
            weights[lane * COLUMN_FOURS + $v$u] += weights[(lane + half) * COLUMN_FOURS + $v$u];
            //#endfor
        }
        workgroupBarrier();
    }
}

// Products of four codes with those of four columns.
fn dots(a: u32, b: vec4<u32>) -> vec4<i32> {
    return vec4<i32>(dot4I8Packed(a, b.x), dot4I8Packed(a, b.y), dot4I8Packed(a, b.z), dot4I8Packed(a, b.w));
}

fn unsigned_dots(a: u32, b: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(dot4U8Packed(a, b.x), dot4U8Packed(a, b.y), dot4U8Packed(a, b.z), dot4U8Packed(a, b.w));
}

// A sum that started at MAGIC_BITS as f32.
fn plain(x: vec4<i32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(x) - MAGIC;
}

fn unsigned_plain(x: vec4<u32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(x) - MAGIC;
}

//#include prepare

@compute @workgroup_size($LANES$)
fn main(
    @builtin(workgroup_id) place: vec3<u32>,
    @builtin(num_workgroups) places: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    //#if SUBGROUPS
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
    //#endif
) {
    let kv_head = place.y;
    let which = arguments[sizes.items + 2u * place.x];
    let split = arguments[sizes.items + 2u * place.x + 1u];
    let seq = sizes.seqs + 4u * (which & 0xffffu);
    let tile = which >> 16u;
    let row = arguments[seq];
    let count = arguments[seq + 1u] * sizes.group;
    let position = arguments[seq + 2u];
    let table = sizes.seqs + arguments[seq + 3u];
    // What each column sees: positions from lows to below ends; nothing where there is no such column.
    //#for v CV
    let column$v$ = vec4<u32>(tile * COLUMNS + 4u * $v$u) + vec4<u32>(0u, 1u, 2u, 3u);
    let there$v$ = column$v$ < vec4<u32>(count);
    let end$v$ = select(vec4<u32>(0u), vec4<u32>(position + 1u) + column$v$ / sizes.group, there$v$);
    let low$v$ = end$v$ - min(end$v$, vec4<u32>(sizes.window));
    //#endfor
    let last_row = (min(tile * COLUMNS + COLUMNS, count) - 1u) / sizes.group;
    let first_row = tile * COLUMNS / sizes.group;
    let seen_end = position + last_row + 1u;
    let seen_start = position + first_row + 1u - min(position + first_row + 1u, sizes.window);
    let block_end = (seen_end + 63u) / 64u;
    let first_block = (position + 1u - min(position + 1u, sizes.window)) / 64u + split * sizes.per_split;
    let start = max(first_block, seen_start / 64u);
    let stop = min(first_block + sizes.per_split, block_end);

    prepare(row, tile, count, kv_head, position, lane);
    //#if NEW
    // The workgroup whose split holds the new position stores it.
    let owner = first_block <= position / 64u && position / 64u < first_block + sizes.per_split;
    if (owner && tile == 0u) {
        store_new(row, kv_head, position, arguments[table + position / 256u], lane);
    }
    storageBarrier();
    //#endif

    //#for v CV
    var most$v$ = vec4<f32>(UNSEEN);
    var sum$v$ = vec4<f32>(0.0);
    var a$v$ = vec4<f32>(0.0);
    var b$v$ = vec4<f32>(0.0);
    //#endfor
    for (var round = start; round < stop; round += BLOCKS) {
        // Scores: a lane has two positions of a block.
        //#for v CV
        var s$v$ = vec4<f32>(0.0);
        var t$v$ = vec4<f32>(0.0);
        //#endfor
        let own = round + lane / 32u;
        let l = lane % 32u;
        var p = 2u * l;
        var gap = 1u;
        if (own < stop) {
            let block = block_of(arguments[table + own / 4u], own / 4u, kv_head, own % 4u);
            //#include scores
        }
        //#for v CV
        {
            let at = vec4<u32>(64u * own + p);
            let inside = vec4<bool>(own < stop);
            s$v$ = select(vec4<f32>(UNSEEN), score(s$v$), inside & (at >= low$v$) & (at < end$v$));
            t$v$ = select(vec4<f32>(UNSEEN), score(t$v$), inside & (at + gap >= low$v$) & (at + gap < end$v$));
        }
        //#endfor
        // The largest score so far.
        //#if SUBGROUPS
        //#for v CV
        let m$v$ = subgroupMax(max(s$v$, t$v$));
        //#endfor
        if (subgroup_lane == 0u) {
            //#for v CV
            weights[subgroup * COLUMN_FOURS + $v$u] = m$v$;
            //#endfor
        }
        workgroupBarrier();
        //#for v CV
        var next$v$ = most$v$;
        //#endfor
        for (var i = 0u; i < subgroups; i++) {
            //#for v CV
            next$v$ = max(next$v$, weights[i * COLUMN_FOURS + $v$u]);
            //#endfor
        }
        //#else
        //#for v CV
        weights[lane * COLUMN_FOURS + $v$u] = max(s$v$, t$v$);
        //#endfor
        workgroupBarrier();
        most_of_all(lane);
        //#for v CV
        let next$v$ = max(most$v$, weights[$v$u]);
        //#endfor
        //#endif
        workgroupBarrier();
        // Weights, and what came before brought to the new largest score.
        //#for v CV
        {
            let shrink = exp2(most$v$ - next$v$);
            most$v$ = next$v$;
            let x = select(exp2(s$v$ - next$v$), vec4<f32>(0.0), s$v$ < vec4<f32>(-1.0e38));
            let y = select(exp2(t$v$ - next$v$), vec4<f32>(0.0), t$v$ < vec4<f32>(-1.0e38));
            sum$v$ = fma(sum$v$, shrink, x + y);
            a$v$ *= shrink;
            b$v$ *= shrink;
            let at = (lane / 32u) * 64u + p;
            weights[at * COLUMN_FOURS + $v$u] = x;
            weights[(at + gap) * COLUMN_FOURS + $v$u] = y;
        }
        //#endfor
        workgroupBarrier();
        //#if V_PACKED
        //#include weigh
        //#endif
        // V: a lane has two dimensions; lanes beyond those take other blocks.
        let u = lane % $V_LANES$u;
        for (var k = lane / $V_LANES$u; k < BLOCKS && lane < $V_USED$u; k += $V_SETS$u) {
            let own = round + k;
            if (own < stop) {
                let block = block_of(arguments[table + own / 4u], own / 4u, kv_head, own % 4u);
                //#include values
            }
        }
        workgroupBarrier();
    }

    // All lanes' sums, then all sets' weighted V.
    //#for v CV
    weights[lane * COLUMN_FOURS + $v$u] = sum$v$;
    //#endfor
    workgroupBarrier();
    sum_of_all(lane);
    let first = (place.x * places.y + kv_head) * COLUMNS;
    if (lane == 0u) {
        //#for v CV
        {
            let total = weights[$v$u];
            bounds[first + 4u * $v$u] = vec2<f32>(most$v$.x, total.x);
            bounds[first + 4u * $v$u + 1u] = vec2<f32>(most$v$.y, total.y);
            bounds[first + 4u * $v$u + 2u] = vec2<f32>(most$v$.z, total.z);
            bounds[first + 4u * $v$u + 3u] = vec2<f32>(most$v$.w, total.w);
        }
        //#endfor
    }
    workgroupBarrier();
    if (lane < $V_USED$u) {
        let u = lane % $V_LANES$u;
        let at = (lane / $V_LANES$u) * HEAD_DIM;
        //#if V_NIBBLES
        let da = 32u * (u / 16u) + u % 16u;
        let db = da + 16u;
        //#else
        let da = 2u * u;
        let db = da + 1u;
        //#endif
        //#for v CV
        weights[(at + da) * COLUMN_FOURS + $v$u] = a$v$;
        weights[(at + db) * COLUMN_FOURS + $v$u] = b$v$;
        //#endfor
    }
    workgroupBarrier();
    for (var i = lane; i < HEAD_DIM * COLUMN_FOURS; i += LANES) {
        let dim = i % HEAD_DIM;
        let v = i / HEAD_DIM;
        var x = weights[dim * COLUMN_FOURS + v];
        for (var k = 1u; k < $V_SETS$u; k++) {
            x += weights[(k * HEAD_DIM + dim) * COLUMN_FOURS + v];
        }
        let at = (first + 4u * v) * HEAD_DIM + dim;
        partials[at] = x.x;
        partials[at + HEAD_DIM] = x.y;
        partials[at + 2u * HEAD_DIM] = x.z;
        partials[at + 3u * HEAD_DIM] = x.w;
    }
}
