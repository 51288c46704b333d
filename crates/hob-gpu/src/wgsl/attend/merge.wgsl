// Makes one result of the splits of a row's query head, with its sink; one workgroup per head and row. Writes the int8
// form as well where there is one.
struct Sizes { rows: u32, kv_heads: u32, heads: u32, columns: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read> partials: array<f32>;
@group(0) @binding(2) var<storage, read> bounds: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read> arguments: array<u32>;
//#if SINKS
@group(0) @binding(4) var<storage, read> sinks: array<f32>;
//#endif
//#if INT8
@group(0) @binding($AT_CODES$) var<storage, read_write> codes: array<u32>;
@group(0) @binding($AT_META$) var<storage, read_write> metas: array<vec2<u32>>;
//#endif

const LANES: u32 = 256u;
const HEAD_DIM: u32 = $HEAD_DIM$u;
// A workgroup's result is one column.
const GROUP: u32 = 1u;
// Lanes that have a dimension each, and lots of them.
const WIDE: u32 = $WIDE$u;
const SETS: u32 = 256u / $WIDE$u;
// Splits that a lane loads at once.
const BATCH: u32 = 8u;

var<workgroup> shares: array<f32, $MOST_SPLITS$>;
var<workgroup> lanes: array<f32, 256>;
var<workgroup> result: array<f32, $RESULT$>;
//#if !SUBGROUPS
var<workgroup> weights: array<vec4<f32>, 256>;
//#endif

//#include runs
//#include finish

@compute @workgroup_size(256)
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
    let head = place.x;
    let entry = sizes.rows + 4u * place.y;
    let row = arguments[entry];
    let splits = arguments[entry + 2u];
    let group = sizes.heads / sizes.kv_heads;
    let column = arguments[entry + 3u] * group + head % group;
    let first = arguments[entry + 1u] + (column / sizes.columns) * splits;
    // Of split s: (first + s) * kv_heads * columns + here.
    let each = sizes.kv_heads * sizes.columns;
    let here = first * each + (head / group) * sizes.columns + column % sizes.columns;

    // All that most rows need is on its way before anything is waited for.
    let own_bound = bounds[here + min(lane, splits - 1u) * each];
    let lot = lane / WIDE;
    let own_dim = min(lane % WIDE, HEAD_DIM - 1u);
    //#for i 8
    let part$i$ = partials[(here + min(lot + $i$u * SETS, splits - 1u) * each) * HEAD_DIM + own_dim];
    //#endfor
    //#if SINKS
    let sink = sinks[head] * 1.442695;
    var most = sink;
    //#else
    var most = -3.0e38;
    //#endif
    most = max(most, own_bound.x);
    for (var s = lane + LANES; s < splits; s += LANES) {
        most = max(most, bounds[here + s * each].x);
    }
    put_most(lane, vec4<f32>(most), true);
    settle_most(LANES, lane);
    workgroupBarrier();
    most = most_of(0u, LANES).x;
    workgroupBarrier();
    var sum = 0.0;
    // Behind the last split come some without a share.
    for (var s = lane; s < splits + BATCH * SETS; s += LANES) {
        var share = 0.0;
        if (s < splits) {
            var bound = own_bound;
            if (s >= LANES) {
                bound = bounds[here + s * each];
            }
            share = exp2(bound.x - most);
            sum = fma(share, bound.y, sum);
        }
        shares[s] = share;
    }
    put_sum(lane, vec4<f32>(sum), true);
    settle_sums(LANES, lane);
    workgroupBarrier();
    sum = sum_of(0u, LANES).x;
    //#if SINKS
    sum += exp2(sink - most);
    //#endif

    for (var start = 0u; start < HEAD_DIM; start += WIDE) {
        let dim = start + lane % WIDE;
        var acc = 0.0;
        if (dim < HEAD_DIM && lot < SETS) {
            var s = lot;
            if (start == 0u) {
                //#for i 8
                acc = fma(part$i$, shares[s + $i$u * SETS], acc);
                //#endfor
                s += BATCH * SETS;
            }
            for (; s < splits; s += BATCH * SETS) {
                //#for i 8
                let x$i$ = partials[(here + min(s + $i$u * SETS, splits - 1u) * each) * HEAD_DIM + dim];
                //#endfor
                //#for i 8
                acc = fma(x$i$, shares[s + $i$u * SETS], acc);
                //#endfor
            }
        }
        lanes[lane] = acc;
        workgroupBarrier();
        if (lane < WIDE && dim < HEAD_DIM) {
            var x = lanes[lane];
            for (var k = 1u; k < SETS; k++) {
                x += lanes[k * WIDE + lane];
            }
            result[dim] = x / sum;
        }
        workgroupBarrier();
    }
    finish(row, 0u, 1u, head, lane);
}
