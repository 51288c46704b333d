// Attention to pages whose V is the first dimensions of K. A workgroup has sixteen columns, (row, query head) pairs of one
// KV head with heads fastest, and some blocks of 64 positions of their sequence. For scores each quarter of the lanes
// takes every fourth run of four dimensions, a lane two positions of it for all columns; then a lane has some dimensions
// of V, read again from the caches, for all columns. All sums are f32.
struct Sizes { tables: u32, items: u32, window: u32, factor: f32, cap: f32, heads: u32 }
var<immediate> sizes: Sizes;
//#if WHOLE
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
//#else
@group(0) @binding(0) var<storage, read_write> partials: array<f32>;
@group(0) @binding(1) var<storage, read_write> bounds: array<vec2<f32>>;
//#endif
@group(0) @binding($AT_ARGUMENTS$) var<storage, read> arguments: array<u32>;
@group(0) @binding($AT_Q$) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding($AT_PAGES$) var<storage, read> pages: array<u32>;
@group(0) @binding($AT_FOURS$) var<storage, read> pages_fours: array<vec4<u32>>;
//#if FIRST
@group(0) @binding($AT_FIRST$) var<storage, read> first_pages: array<u32>;
@group(0) @binding($AT_FIRST_FOURS$) var<storage, read> first_pages_fours: array<vec4<u32>>;
//#endif
//#if SINKS
@group(0) @binding($AT_SINKS$) var<storage, read> sinks: array<f32>;
//#endif

//#include pages

const GROUP = $GROUP$u;
const VALUES = $VALUES$u;
const LANES = 128u;
const COLUMNS = 16u;

// Four dimensions of K at two positions; eight positions of a dimension of V.
struct Two { a: vec4<f32>, b: vec4<f32> }
struct Eight { a: vec4<f32>, b: vec4<f32> }

// [part][column][pair of positions]
var<workgroup> shares: array<vec2<f32>, 2048>;
// [position][column]
var<workgroup> weights: array<vec4<f32>, 256>;
var<workgroup> lane_most: array<f32, 128>;
var<workgroup> lane_sum: array<f32, 128>;
// By column: where its query is, the maximum, the sum, and the factor of what was summed under the last maximum.
var<workgroup> queries: array<u32, 16>;
var<workgroup> maxima: array<f32, 16>;
var<workgroup> sums: array<f32, 16>;
var<workgroup> factors: array<vec4<f32>, 4>;
//#if TURNS
var<workgroup> turned: array<vec4<f32>, VALUES>;
//#endif

//#include kinds

fn fetch_k(block: Block, run: u32, pair: u32) -> Two {
    //#include k_calls
}

fn fetch_v(block: Block, dim: u32, octet: u32) -> Eight {
    //#include v_calls
}

//#if !WHOLE
fn touch(block: Block, lane: u32) -> u32 {
    //#include touch_calls
}
//#endif

fn score(dot: f32) -> f32 {
    //#if CAP
    let e = exp(2.0 * clamp(dot * sizes.factor, -15.0, 15.0));
    return (e - 1.0) / (e + 1.0) * sizes.cap;
    //#else
    return dot * sizes.factor;
    //#endif
}

fn first_seen(position: u32) -> u32 {
    return select(0u, position + 1u - sizes.window, sizes.window > 0u && position >= sizes.window);
}

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = sizes.items + 4u * group.x;
    let seq = sizes.tables + 4u * arguments[item];
    let row = arguments[seq];
    let position = arguments[seq + 2u];
    let table = sizes.tables + arguments[seq + 3u];
    let start = arguments[item + 1u] * COLUMNS;
    let end = min(start + COLUMNS, arguments[seq + 1u] * GROUP);
    let from_ = arguments[item + 2u];
    let to = arguments[item + 3u];
    if (lane < COLUMNS) {
        let column = min(start + lane, end - 1u);
        let head = group.y * GROUP + column % GROUP;
        queries[lane] = ((row + column / GROUP) * sizes.heads + head) * (HEAD_DIM / 4u);
        maxima[lane] = -1.0e30;
        sums[lane] = 0.0;
    }
    workgroupBarrier();
    let part = lane / 32u;
    let pair = lane % 32u;
    let column = lane / 8u;
    let octet = lane % 8u;
    // Of the lane's column in the softmax, and of all columns.
    let last = position + min(start + column, end - 1u) / GROUP;
    let first = first_seen(last);
    let limit = position + (end - 1u) / GROUP + 1u;
    //#if !WHOLE
    var touched = 0u;
    for (var i = lane; i < COLUMNS * (HEAD_DIM / 4u); i += LANES) {
        touched |= bitcast<u32>(q[queries[i / (HEAD_DIM / 4u)] + i % (HEAD_DIM / 4u)].x);
    }
    //#endif
    //#for d DIMS
    //#for j 4
    var acc$d$_$j$ = vec4<f32>(0.0);
    //#endfor
    //#endfor
    for (var b = from_; b < to; b++) {
        let block = block_of(arguments[table + b / 4u], b / 4u, group.y, b % 4u);
        //#if !WHOLE
        // Splits are few to a core: all of the block is asked for at once, so that the loops below wait for no memory.
        touched |= touch(block, lane);
        //#endif
        //#for c 16
        var dot$c$ = vec2<f32>(0.0);
        //#endfor
        for (var run = part; run < HEAD_DIM / 4u; run += 4u) {
            let k = fetch_k(block, run, pair);
            //#for c 16
            let q$c$ = q[queries[$c$u] + run];
            dot$c$ += vec2<f32>(dot(q$c$, k.a), dot(q$c$, k.b));
            //#endfor
        }
        //#for c 16
        shares[(part * 16u + $c$u) * 32u + pair] = dot$c$;
        //#endfor
        workgroupBarrier();

        var scores: array<vec2<f32>, 4>;
        var most = -1.0e30;
        for (var i = 0u; i < 4u; i++) {
            let at = column * 32u + 4u * octet + i;
            let dot = (shares[at] + shares[at + 512u]) + (shares[at + 1024u] + shares[at + 1536u]);
            let p = 64u * b + 8u * octet + 2u * i;
            scores[i].x = select(-3.0e38, score(dot.x), p <= last && p >= first);
            scores[i].y = select(-3.0e38, score(dot.y), p + 1u <= last && p + 1u >= first);
            most = max(most, max(scores[i].x, scores[i].y));
        }
        lane_most[lane] = most;
        workgroupBarrier();
        let old = maxima[column];
        var m = old;
        for (var i = 0u; i < 8u; i++) {
            m = max(m, lane_most[8u * column + i]);
        }
        var sum = 0.0;
        for (var i = 0u; i < 4u; i++) {
            let x = select(exp2(scores[i].x - m), 0.0, scores[i].x < -2.0e38);
            let y = select(exp2(scores[i].y - m), 0.0, scores[i].y < -2.0e38);
            let at = 8u * octet + 2u * i;
            weights[4u * at + column / 4u][column % 4u] = x;
            weights[4u * at + 4u + column / 4u][column % 4u] = y;
            sum += x + y;
        }
        lane_sum[lane] = sum;
        workgroupBarrier();
        if (octet == 0u) {
            let factor = exp2(old - m);
            var all = sums[column] * factor;
            for (var i = 0u; i < 8u; i++) {
                all += lane_sum[lane + i];
            }
            sums[column] = all;
            maxima[column] = m;
            factors[column / 4u][column % 4u] = factor;
        }
        workgroupBarrier();

        //#for d DIMS
        //#for j 4
        acc$d$_$j$ *= factors[$j$];
        //#endfor
        //#endfor
        for (var o = 0u; o < 8u; o++) {
            let at = 64u * b + 8u * o;
            // What lies behind the last position that counts may be anything.
            let low = vec4<u32>(at, at + 1u, at + 2u, at + 3u) < vec4<u32>(limit);
            let high = vec4<u32>(at + 4u, at + 5u, at + 6u, at + 7u) < vec4<u32>(limit);
            //#for d DIMS
            var v$d$ = fetch_v(block, min($d$u * LANES + lane, VALUES - 1u), o);
            v$d$.a = select(vec4<f32>(0.0), v$d$.a, low);
            v$d$.b = select(vec4<f32>(0.0), v$d$.b, high);
            //#endfor
            //#for p 4
            //#for j 4
            let w$p$_$j$ = weights[4u * (8u * o + $p$u) + $j$u];
            let u$p$_$j$ = weights[4u * (8u * o + 4u + $p$u) + $j$u];
            //#for d DIMS
            acc$d$_$j$ = fma(vec4<f32>(v$d$.a[$p$]), w$p$_$j$, acc$d$_$j$);
            acc$d$_$j$ = fma(vec4<f32>(v$d$.b[$p$]), u$p$_$j$, acc$d$_$j$);
            //#endfor
            //#endfor
            //#endfor
        }
    }
    workgroupBarrier();
    //#if WHOLE
    //#for j 4
    {
        var sum = vec4<f32>(sums[4u * $j$u], sums[4u * $j$u + 1u], sums[4u * $j$u + 2u], sums[4u * $j$u + 3u]);
        var scale = vec4<f32>(1.0);
        //#if SINKS
        for (var i = 0u; i < 4u; i++) {
            let sink = sinks[group.y * GROUP + min(start + 4u * $j$u + i, end - 1u) % GROUP] * 1.4426950408889634;
            let m = max(maxima[4u * $j$u + i], sink);
            scale[i] = exp2(maxima[4u * $j$u + i] - m);
            sum[i] = fma(sum[i], scale[i], exp2(sink - m));
        }
        //#endif
        scale /= sum;
        //#if TURNS
        //#for d DIMS
        if ($d$u * LANES + lane < VALUES) {
            turned[$d$u * LANES + lane] = acc$d$_$j$ * scale;
        }
        //#endfor
        for (var stride = 1u; stride < $SPAN$u; stride *= 2u) {
            workgroupBarrier();
            for (var i = lane; i < VALUES / 2u; i += LANES) {
                let low = 2u * i - (i & (stride - 1u));
                let x = turned[low];
                let y = turned[low + stride];
                turned[low] = x + y;
                turned[low + stride] = x - y;
            }
        }
        workgroupBarrier();
        //#for d DIMS
        if ($d$u * LANES + lane < VALUES) {
            put(row, start + 4u * $j$u, end, group.y, $d$u * LANES + lane, turned[$d$u * LANES + lane] * $SPAN_FACTOR$);
        }
        //#endfor
        workgroupBarrier();
        //#else
        //#for d DIMS
        if ($d$u * LANES + lane < VALUES) {
            put(row, start + 4u * $j$u, end, group.y, $d$u * LANES + lane, acc$d$_$j$ * scale);
        }
        //#endfor
        //#endif
    }
    //#endfor
    //#else
    let place = (group.x * groups.y + group.y) * COLUMNS;
    //#for d DIMS
    if ($d$u * LANES + lane < VALUES) {
        //#for j 4
        //#for i 4
        partials[(place + 4u * $j$u + $i$u) * VALUES + $d$u * LANES + lane] = acc$d$_$j$[$i$];
        //#endfor
        //#endfor
    }
    //#endfor
    // There is no call without heads: what was touched must only seem to matter.
    if (lane < COLUMNS || (touched == 1u && sizes.heads == 0u)) {
        bounds[place + lane % COLUMNS] = vec2<f32>(maxima[lane % COLUMNS], sums[lane % COLUMNS]);
    }
    //#endif
}
//#if WHOLE

// A dimension of four columns from `column` on, as far as there are any.
fn put(row: u32, column: u32, end: u32, kv_head: u32, dim: u32, x: vec4<f32>) {
    for (var i = 0u; i < 4u; i++) {
        let c = column + i;
        if (c < end) {
            out[((row + c / GROUP) * sizes.heads + kv_head * GROUP + c % GROUP) * VALUES + dim] = x[i];
        }
    }
}
//#endif
