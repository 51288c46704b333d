// Attention of few rows over one split of a sequence's blocks: one workgroup per split, KV head and tile of columns. A
// column is a query head of the KV head at one row; columns travel four to a vec4. It leaves, per column, the largest
// score, the sum of exp2(score - largest) and V weighted so, which `merge` makes one result of. Everything that does not
// depend on scores is loaded before anything is computed.
struct Sizes {
    items: u32, stride: u32, per_split: u32, window: u32,
    factor: f32, cap: f32, heads: u32, rotary: u32,
    q_eps: f32, k_eps: f32, magnitude: f32,
}
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> partials: array<f32>;
@group(0) @binding(1) var<storage, read_write> bounds: array<vec2<f32>>;
@group(0) @binding($AT_ARGUMENTS$) var<storage, read> arguments: array<u32>;
@group(0) @binding($AT_Q$) var<storage, read> q_rows: array<f32>;
@group(0) @binding($AT_PAGES$) var<storage, $ACCESS$> pages: array<u32>;
//#if FIRST
@group(0) @binding($AT_FIRST$) var<storage, $ACCESS$> first_pages: array<u32>;
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
// Blocks of a round; lanes, in 32s, that share a block's K; positions of a round, once per four columns.
const BLOCKS: u32 = $BLOCKS$u;
const SHARERS: u32 = $SHARERS$u;
const ROUND: u32 = 64u * BLOCKS;
const COLUMN_FOURS: u32 = $CV$u;
const COLUMNS: u32 = $CV$u * 4u;
const GROUP: u32 = $GROUP$u;
// Lanes that dimensions are given to: a power of two, at least a subgroup.
const WIDE: u32 = $WIDE$u;
// V: parts of a block's positions that lanes take, and sets of lanes that have all dimensions, two each.
const PARTS: u32 = $PARTS$u;
const SETS: u32 = $SETS$u;
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
// Rows on their way to queries; then what the sharers of a block have of its scores; then what the sets have of the result.
var<workgroup> shared_out: array<vec4<f32>, $SHARED$>;
// Weights of the round's positions.
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

//#include runs
//#include pages
//#if NEW
//#include encode
//#endif
//#if ROTATES
//#include rope_angle
//#endif
//#include score

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

// Block `own` of the sequence; the table begins with the page of the split's first block.
fn block_at(table: u32, first_block: u32, own: u32, kv_head: u32) -> Block {
    return block_of(arguments[table + (own - first_block) / 4u], own / 4u, kv_head, own % 4u);
}

// Position, within its block, of a lane's score: words of K have two positions of f16, else one.
fn place_of(own: u32, half: u32, l: u32) -> u32 {
    //#if K_NIBBLES
    //#if SINK
    if (own == 0u) {
        return 2u * l + half;
    }
    //#endif
    return l + 32u * half;
    //#else
    return 2u * l + half;
    //#endif
}

@compute @workgroup_size($LANES$)
fn main(
    @builtin(workgroup_id) place: vec3<u32>,
    @builtin(num_workgroups) places: vec3<u32>,
    //#if SUBGROUPS
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) subgroup_size: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
    //#else
    @builtin(local_invocation_index) lane: u32,
    //#endif
) {
    //#if SUBGROUPS
    let lane = subgroup * subgroup_size + subgroup_lane;
    run = subgroup_size;
    leads = subgroup_lane == 0u;
    //#endif
    let kv_head = place.y;
    let item = sizes.items + place.x * sizes.stride;
    let row = arguments[item];
    let position = arguments[item + 1u];
    let count = arguments[item + 2u];
    let tile = arguments[item + 3u];
    let first_block = arguments[item + 4u];
    let table = item + 5u;
    // What is read from pages: a new row's position is not.
    let first_end = position + tile * COLUMNS / GROUP + 1u;
    let seen_start = first_end - min(first_end, sizes.window);
    //#if NEW
    let seen_end = position;
    //#else
    let seen_end = position + (min(tile * COLUMNS + COLUMNS, count) - 1u) / GROUP + 1u;
    //#endif
    let start = max(first_block, seen_start / 64u);
    let stop = min(first_block + sizes.per_split, (seen_end + 63u) / 64u);

    // K: 32 lanes have the positions of a block, two each, and a share of the dimensions.
    let l = lane % 32u;
    let k_own = lane / (32u * SHARERS);
    let sharer = (lane / 32u) % SHARERS;
    var k_block = Block(0u, 0u, 3u);
    //#include k_names
    // V: a lane has two dimensions of a part of the positions.
    let u = lane % $V_LANES$u;
    let crew = lane / $V_LANES$u;
    //#if V_NIBBLES
    let da = 32u * (u / 16u) + u % 16u;
    let db = da + 16u;
    //#else
    let da = 2u * u;
    let db = da + 1u;
    //#endif
    var v_block = Block(0u, 0u, 3u);
    //#include v_names
    var ahead = start;
    //#include k_fetch
    //#include v_fetch

    //#include prepare

    //#for v CV
    var most$v$ = vec4<f32>(UNSEEN);
    var a$v$ = vec4<f32>(0.0);
    var b$v$ = vec4<f32>(0.0);
    //#endfor
    // A lane weighs some positions for four columns each, which see from lows to below ends; nothing where there is no such
    // column.
    //#for j EACH
    let e$j$ = $j$u * LANES + lane;
    let column$j$ = vec4<u32>(tile * COLUMNS + 4u * (e$j$ / ROUND)) + vec4<u32>(0u, 1u, 2u, 3u);
    //#if NEW
    let after$j$ = vec4<u32>(position + 1u);
    //#else
    let after$j$ = vec4<u32>(position + 1u) + column$j$ / GROUP;
    //#endif
    let end$j$ = select(vec4<u32>(0u), after$j$, (column$j$ < vec4<u32>(count)) & vec4<bool>(e$j$ < ROUND * COLUMN_FOURS));
    let low$j$ = end$j$ - min(end$j$, vec4<u32>(sizes.window));
    var sum$j$ = vec4<f32>(0.0);
    //#endfor
    //#if NEW
    if (owner) {
        //#for v CV
        most$v$ = score(sum_of($v$u * WIDE, WIDE));
        //#endfor
        //#for j EACH
        if (e$j$ % ROUND == 0u) {
            sum$j$ = vec4<f32>(1.0);
        }
        //#endfor
        if (lane < $V_LANES$u) {
            let kept_a = vec4<f32>(kept_v(fresh_block, HEAD_DIM, da));
            let kept_b = vec4<f32>(kept_v(fresh_block, HEAD_DIM, db));
            //#for v CV
            a$v$ = kept_a;
            b$v$ = kept_b;
            //#endfor
        }
    }
    //#endif
    for (var round = start; round < stop; round += BLOCKS) {
        //#for v CV
        var s$v$ = vec4<f32>(0.0);
        var t$v$ = vec4<f32>(0.0);
        //#endfor
        //#include scores
        //#for v CV
        shared_out[(sharer * COLUMN_FOURS + $v$u) * ROUND + 64u * k_own + l] = s$v$;
        shared_out[(sharer * COLUMN_FOURS + $v$u) * ROUND + 64u * k_own + 32u + l] = t$v$;
        //#endfor
        ahead = round + BLOCKS;
        //#include k_fetch
        workgroupBarrier();
        //#for j EACH
        var s$j$of = vec4<f32>(UNSEEN);
        let own$j$ = round + (e$j$ % ROUND) / 64u;
        let p$j$ = place_of(own$j$, (e$j$ / 32u) % 2u, e$j$ % 32u);
        if (e$j$ < ROUND * COLUMN_FOURS) {
            var products = shared_out[e$j$];
            for (var i = 1u; i < SHARERS; i++) {
                products += shared_out[i * ROUND * COLUMN_FOURS + e$j$];
            }
            let at = vec4<u32>(64u * own$j$ + p$j$);
            //#if NEW
            let seen = (at >= low$j$) & (at + 1u < end$j$);
            //#else
            let seen = (at >= low$j$) & (at < end$j$);
            //#endif
            s$j$of = select(vec4<f32>(UNSEEN), score(products), seen & vec4<bool>(own$j$ < stop));
        }
        put_most(e$j$, s$j$of, e$j$ < ROUND * COLUMN_FOURS);
        //#endfor
        settle_most(ROUND * COLUMN_FOURS, lane);
        workgroupBarrier();
        // The largest score so far; what came before is brought to it.
        //#for v CV
        let next$v$ = max(most$v$, most_of($v$u * ROUND, ROUND));
        let shrink$v$ = exp2(most$v$ - next$v$);
        most$v$ = next$v$;
        a$v$ *= shrink$v$;
        b$v$ *= shrink$v$;
        //#endfor
        //#for j EACH
        if (e$j$ < ROUND * COLUMN_FOURS) {
            var next = next0;
            var shrink = shrink0;
            //#for v CV
            if (e$j$ / ROUND == $v$u) {
                next = next$v$;
                shrink = shrink$v$;
            }
            //#endfor
            let x = select(exp2(s$j$of - next), vec4<f32>(0.0), s$j$of < vec4<f32>(-1.0e38));
            sum$j$ = fma(sum$j$, shrink, x);
            weights[(64u * ((e$j$ % ROUND) / 64u) + p$j$) * COLUMN_FOURS + e$j$ / ROUND] = x;
        }
        //#endfor
        workgroupBarrier();
        //#if V_PACKED
        //#include weigh
        //#endif
        for (var i = 0u; i < $V_TURNS$u; i++) {
            let unit = crew + i * SETS;
            let k = unit / PARTS;
            let vp = unit % PARTS;
            let own = round + k;
            if (i > 0u) {
                v_block = Block(0u, 0u, 3u);
                if (own < stop && unit < BLOCKS * PARTS && lane < $V_USED$u) {
                    v_block = block_at(table, first_block, own, kv_head);
                }
            }
            //#include values
        }
        //#include v_fetch
    }

    // All lanes' sums, and all sets' weighted V.
    workgroupBarrier();
    //#for j EACH
    put_sum(e$j$, sum$j$, e$j$ < ROUND * COLUMN_FOURS);
    //#endfor
    if (lane < $V_USED$u) {
        //#for v CV
        shared_out[((crew * COLUMN_FOURS + $v$u) * 2u) * $V_LANES$u + u] = a$v$;
        shared_out[((crew * COLUMN_FOURS + $v$u) * 2u + 1u) * $V_LANES$u + u] = b$v$;
        //#endfor
    }
    settle_sums(ROUND * COLUMN_FOURS, lane);
    workgroupBarrier();
    let first = (place.x * places.y + kv_head) * COLUMNS;
    if (lane == 0u) {
        //#for v CV
        {
            let total = sum_of($v$u * ROUND, ROUND);
            bounds[first + 4u * $v$u] = vec2<f32>(most$v$.x, total.x);
            bounds[first + 4u * $v$u + 1u] = vec2<f32>(most$v$.y, total.y);
            bounds[first + 4u * $v$u + 2u] = vec2<f32>(most$v$.z, total.z);
            bounds[first + 4u * $v$u + 3u] = vec2<f32>(most$v$.w, total.w);
        }
        //#endfor
    }
    for (var i = lane; i < HEAD_DIM * COLUMN_FOURS; i += LANES) {
        let v = i / HEAD_DIM;
        let half = (i % HEAD_DIM) / $V_LANES$u;
        let w = i % $V_LANES$u;
        //#if V_NIBBLES
        let dim = 32u * (w / 16u) + w % 16u + 16u * half;
        //#else
        let dim = 2u * w + half;
        //#endif
        var x = shared_out[i];
        for (var k = 1u; k < SETS; k++) {
            x += shared_out[k * HEAD_DIM * COLUMN_FOURS + i];
        }
        let at = (first + 4u * v) * HEAD_DIM + dim;
        partials[at] = x.x;
        partials[at + HEAD_DIM] = x.y;
        partials[at + 2u * HEAD_DIM] = x.z;
        partials[at + 3u * HEAD_DIM] = x.w;
    }
    //#if NEW
    // Nobody waits for what is stored: the next dispatch reads it.
    if (owner) {
        let base = position % 8u;
        keep_k(fresh_block, (position / 8u) % 8u, base, 1u << base, 0u, lane);
        keep_v(fresh_block, (position / 8u) % 8u, base, 1u << base, HEAD_DIM, lane);
    }
    //#endif
}
