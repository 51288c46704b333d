// Attention of a row over a context within one page: one workgroup per row and query head, and one per row and KV head that
// stores the new row: what others read of the words it stores into does not change. All is over so soon that what counts
// is how often one waits and how much text a lane runs through: so what comes from afar is asked for before anything is
// computed, as far as every lane needs some of it; loops stay loops, and a workgroup has one column.
struct Sizes {
    items: u32, row: u32, position: u32, page: u32, first_block: u32,
    window: u32, factor: f32, cap: f32, heads: u32, rotary: u32,
    q_eps: f32, k_eps: f32, magnitude: f32,
}
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<$OUT$>;
//#if INT8
@group(0) @binding($AT_CODES$) var<storage, read_write> codes: array<u32>;
@group(0) @binding($AT_META$) var<storage, read_write> metas: array<vec2<u32>>;
//#endif
//#if SINKS
@group(0) @binding($AT_SINKS$) var<storage, read> sinks: array<f32>;
//#endif
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
// Lots of 32 lanes: each has the positions of a block, two to a lane.
const LOTS: u32 = LANES / 32u;
// A workgroup's result is one column.
const GROUP: u32 = 1u;
// Lanes that dimensions are given to: a power of two, at least a subgroup.
const WIDE: u32 = $WIDE$u;
// Slots of sums; the second half are others.
const SLOTS: u32 = $SLOTS$u;
// V: sets of lanes that have all dimensions, two each.
const SETS: u32 = $SETS$u;
const V_LANES: u32 = $V_LANES$u;
const UNSEEN: f32 = -3.0e38;
// Runs of lanes that have positions, at most; a lane by itself where there are no subgroups.
const PEAKS: u32 = $PEAKS$u;

var<workgroup> queries: array<f32, $HEAD_DIM$>;
// What lanes have of scores, then of the result.
var<workgroup> parts: array<f32, $PARTS$>;
// Scores of positions, then their shares, to the largest score of their run.
var<workgroup> shares: array<f32, 256>;
// Of every run: the largest score, and the sum of its shares.
var<workgroup> peaks: array<vec2<f32>, PEAKS>;
var<workgroup> result: array<f32, $HEAD_DIM$>;
//#if STAGED
// Rows whose dimensions other lanes want to know: of q, k and v.
var<workgroup> stage: array<vec4<f32>, $STAGE$>;
//#endif
//#if !SUBGROUPS
var<workgroup> weights: array<vec4<f32>, 2u * SLOTS>;
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
//#if SHARED
//#include quantize_block
//#else
//#include finish
//#endif

@compute @workgroup_size($LANES$)
fn main(
    @builtin(workgroup_id) place: vec3<u32>,
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
    //#if NEW
    let stores = place.y >= sizes.heads;
    let head = min(place.y, sizes.heads - 1u);
    let kv_head = select(head / (sizes.heads / KV_HEADS), place.y - sizes.heads, stores);
    //#else
    let head = place.y;
    let kv_head = head / (sizes.heads / KV_HEADS);
    //#endif
    // The first row's place needs no reading.
    var row = sizes.row;
    var position = sizes.position;
    var page = sizes.page;
    var first_block = sizes.first_block;
    if (place.x > 0u) {
        let item = sizes.items + 4u * place.x;
        row = arguments[item];
        position = arguments[item + 1u];
        page = arguments[item + 2u];
        first_block = arguments[item + 3u];
    }
    // What is read from pages: a new row's position is not.
    let seen_start = position + 1u - min(position + 1u, sizes.window);
    //#if NEW
    let seen_end = position;
    //#else
    let seen_end = position + 1u;
    //#endif
    let start = max(first_block, seen_start / 64u);
    let stop = max(start, (seen_end + 63u) / 64u);
    let blocks = stop - start;
    // As many lots to a block as there are for it, each with a share of the dimensions.
    let l = lane % 32u;
    let sharers = min(max(LOTS / max(select(blocks, 4u, blocks == 3u), 1u), 1u), $MOST_SHARERS$u);
    let sharer = (lane / 32u) % sharers;
    // V: eights of positions in turn; a lane has two dimensions.
    let u = lane % V_LANES;
    //#if V_NIBBLES
    let da = 32u * (u / 16u) + u % 16u;
    let db = da + 16u;
    //#else
    let da = 2u * u;
    let db = da + 1u;
    //#endif

    //#for i TURNS
    let d$i$ = $i$u * LANES + lane;
    let inside$i$ = d$i$ < HEAD_DIM;
    let safe$i$ = min(d$i$, HEAD_DIM - 1u);
    // q, k and v.
    var x$i$ = vec4<f32>(0.0);
    if (inside$i$) {
        x$i$.x = q_rows[(row * sizes.heads + head) * HEAD_DIM + d$i$];
        //#if NEW
        let at = (row * KV_HEADS + kv_head) * HEAD_DIM + d$i$;
        x$i$.y = k_rows[at];
        x$i$.z = v_rows[at];
        //#endif
    }
    //#if ROTATES
    //#if INTERLEAVED
    let second$i$ = (d$i$ & 1u) == 1u;
    let pair$i$ = d$i$ / 2u;
    let other$i$ = min(d$i$ ^ 1u, HEAD_DIM - 1u);
    //#else
    let second$i$ = d$i$ >= sizes.rotary;
    let pair$i$ = select(d$i$, d$i$ - sizes.rotary, second$i$);
    let other$i$ = min(select(d$i$ + sizes.rotary, d$i$ - sizes.rotary, second$i$), HEAD_DIM - 1u);
    //#endif
    let freq$i$ = freqs[min(pair$i$, sizes.rotary - 1u)];
    //#endif
    //#if NORMS
    let weight$i$ = vec4<f32>(q_norm[safe$i$], k_norm[safe$i$], 1.0, 0.0);
    //#endif
    //#endfor
    // The first share of K and of V that the lane has.
    //#include ahead_names
    let k_first = start + lane / (32u * sharers);
    if (k_first < stop) {
        let block = block_of(page, first_block / 4u, kv_head, k_first - first_block);
        //#include k_ahead
    }
    let v_first = lane / V_LANES;
    if (v_first < min(8u * blocks, SETS)) {
        let block = block_of(page, first_block / 4u, kv_head, start + v_first / 8u - first_block);
        let octet = v_first % 8u;
        //#include v_ahead
    }

    //#for i TURNS
    //#if NORMS
    put_sum(d$i$, x$i$ * x$i$, true);
    x$i$ *= weight$i$;
    //#endif
    //#if ROTATES
    if (d$i$ < WIDE) {
        stage[d$i$] = x$i$;
    }
    let turn$i$ = rope_angle(position, freq$i$) * sizes.magnitude;
    //#endif
    //#endfor
    //#if NORMS
    settle_sums(SLOTS, lane);
    //#endif
    //#if PREPARED
    workgroupBarrier();
    //#endif
    //#if ROTATES
    //#for i TURNS
    {
        let far = stage[other$i$] * select(-turn$i$.y, turn$i$.y, second$i$);
        let turned = vec4<f32>(fma(x$i$.xy, vec2<f32>(turn$i$.x), far.xy), x$i$.zw);
        x$i$ = select(x$i$, turned, d$i$ < 2u * sizes.rotary);
    }
    //#endfor
    //#endif
    //#if NORMS
    // A rotation keeps the norm's factor.
    var r = 1.0 / sqrt(sum_of(0u, WIDE) / f32(HEAD_DIM) + vec4<f32>(sizes.q_eps, sizes.k_eps, 1.0, 1.0));
    r.z = 1.0;
    //#for i TURNS
    x$i$ *= r;
    //#endfor
    //#endif
    //#if HADAMARD
    {
        let rotated = vec4<bool>($K_ROTATED$, $K_ROTATED$, $V_ROTATED$, false);
        //#include hadamard
    }
    //#endif
    //#for i TURNS
    if (inside$i$) {
        queries[d$i$] = x$i$.x;
        //#if NEW
        fresh[d$i$] = x$i$.y;
        fresh[HEAD_DIM + d$i$] = x$i$.z;
        //#endif
    }
    //#endfor
    workgroupBarrier();
    //#if NEW
    let fresh_block = block_of(page, first_block / 4u, kv_head, position / 64u - first_block);
    pack(fresh_block, lane);
    if (stores) {
        let base = position % 8u;
        keep_k(fresh_block, (position / 8u) % 8u, base, 1u << base, 0u, lane);
        keep_v(fresh_block, (position / 8u) % 8u, base, 1u << base, HEAD_DIM, lane);
        return;
    }
    //#for i TURNS
    put_one(SLOTS + d$i$, select(0.0, x$i$.x * kept_k(fresh_block, 0u, safe$i$), inside$i$));
    if (inside$i$) {
        // As it is read back: codes are not made of it any more.
        fresh[HEAD_DIM + d$i$] = kept_v(fresh_block, HEAD_DIM, d$i$);
    }
    //#endfor
    settle_sums(2u * SLOTS, lane);
    //#endif

    for (var own = k_first; own < stop; own += LOTS / sharers) {
        let block = block_of(page, first_block / 4u, kv_head, own - first_block);
        var s = 0.0;
        var t = 0.0;
        // Positions of the two.
        var ps = 2u * l;
        var pt = 2u * l + 1u;
        //#include scores
        let at = sharer * 256u + 64u * (own - start);
        parts[at + ps] = s;
        parts[at + pt] = t;
    }
    workgroupBarrier();
    var most = UNSEEN;
    for (var p = lane; p < 64u * blocks; p += LANES) {
        var sum = parts[p];
        for (var i = 1u; i < sharers; i++) {
            sum += parts[256u * i + p];
        }
        let at = 64u * start + p;
        let s = select(UNSEEN, score(vec4<f32>(sum)).x, at >= seen_start && at < seen_end);
        shares[p] = s;
        most = max(most, s);
    }
    //#if SUBGROUPS
    most = subgroupMax(most);
    //#endif
    var sum = 0.0;
    for (var p = lane; p < 64u * blocks; p += LANES) {
        let s = shares[p];
        let x = select(exp2(s - most), 0.0, s < -1.0e38);
        shares[p] = x;
        sum += x;
    }
    //#if SUBGROUPS
    sum = subgroupAdd(sum);
    if (leads && lane / run < PEAKS) {
        peaks[lane / run] = vec2<f32>(most, sum);
    }
    //#else
    if (lane < PEAKS) {
        peaks[lane] = vec2<f32>(most, sum);
    }
    //#endif
    workgroupBarrier();
    //#if SUBGROUPS
    let peak_count = min(PEAKS, LANES / run);
    //#else
    let peak_count = PEAKS;
    //#endif
    var top = UNSEEN;
    //#if NEW
    let own_score = score(sum_of(SLOTS, WIDE)).x;
    top = own_score;
    //#endif
    //#if SINKS
    let sink = sinks[head] * 1.442695;
    top = max(top, sink);
    //#endif
    for (var i = 0u; i < peak_count; i++) {
        top = max(top, peaks[i].x);
    }
    var total = 0.0;
    for (var i = 0u; i < peak_count; i++) {
        total = fma(peaks[i].y, exp2(peaks[i].x - top), total);
    }
    //#if NEW
    let own_share = exp2(own_score - top);
    total += own_share;
    //#endif
    //#if SINKS
    total += exp2(sink - top);
    //#endif
    //#if !SUBGROUPS
    // An eight of positions has several peaks here.
    for (var p = lane; p < 64u * blocks; p += LANES) {
        shares[p] *= exp2(peaks[lane].x - top);
    }
    workgroupBarrier();
    //#endif

    var a = 0.0;
    var b = 0.0;
    if (lane < SETS * V_LANES) {
        for (var eight = v_first; eight < 8u * blocks; eight += SETS) {
            let block = block_of(page, first_block / 4u, kv_head, start + eight / 8u - first_block);
            let octet = eight % 8u;
            //#if SUBGROUPS
            let lift = exp2(peaks[8u * eight % LANES / run].x - top);
            //#else
            let lift = 1.0;
            //#endif
            // What nobody sees may be anything, not even numbers.
            let at = 64u * start + 8u * eight;
            let low = max(seen_start, at) - at;
            let high = max(seen_end, at) - at;
            //#include values
        }
        parts[lane / V_LANES * HEAD_DIM + da] = a;
        parts[lane / V_LANES * HEAD_DIM + db] = b;
    }
    workgroupBarrier();
    //#if TURNED
    //#for i TURNS
    if (inside$i$) {
        var y = parts[d$i$];
        for (var k = 1u; k < SETS; k++) {
            y += parts[k * HEAD_DIM + d$i$];
        }
        //#if NEW
        y = fma(own_share, fresh[HEAD_DIM + d$i$], y);
        //#endif
        x$i$ = vec4<f32>(y / total, 0.0, 0.0, 0.0);
    }
    //#endfor
    //#if V_ROTATED
    {
        let rotated = vec4<bool>(true, false, false, false);
        //#include hadamard
    }
    //#endif
    //#for i TURNS
    if (inside$i$) {
        result[d$i$] = x$i$.x;
    }
    //#endfor
    workgroupBarrier();
    //#endif
    //#if SHARED
    // A lane has four dimensions; eight make a block of the int8 form.
    if (lane < HEAD_DIM / 4u) {
        //#if TURNED
        let y = vec4<f32>(result[4u * lane], result[4u * lane + 1u], result[4u * lane + 2u], result[4u * lane + 3u]);
        //#else
        var y = vec4<f32>(0.0);
        for (var k = 0u; k < SETS; k++) {
            y += four_values(k * HEAD_DIM + 4u * lane);
        }
        //#if NEW
        //#for i 4
        y[$i$] = fma(own_share, fresh[HEAD_DIM + 4u * lane + $i$u], y[$i$]);
        //#endfor
        //#endif
        y *= 1.0 / total;
        //#endif
        out[(row * sizes.heads + head) * (HEAD_DIM / 4u) + lane] = y;
        let form = quantize_shared(y);
        let groups = sizes.heads * (HEAD_DIM / 32u);
        let block = head * (HEAD_DIM / 32u) + lane / 8u;
        let word = lane % 8u;
        codes[4u * ((2u * row + word / 4u) * groups + block) + word % 4u] = form.codes;
        if (word == 0u) {
            metas[row * groups + block] = form.meta_;
        }
    }
    //#else
    finish(row, 0u, 1u, head, lane);
    //#endif
}
