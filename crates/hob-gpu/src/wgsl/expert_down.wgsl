// The experts' outputs of one row, weighted and added up: a team of lanes makes one output of all experts of the row,
// so that no two of them write the same float.
struct Sizes {
    cols: u32, blocks: u32, outputs: u32, top_k: u32, rows: u32, experts: u32,
    first: u32, end: u32, down_first: u32, add: u32,
}
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read> routes: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<storage, read> w_d: array<vec4<u32>>;
//#if BIASED
@group(0) @binding($BIAS$) var<storage, read> bias: array<f32>;
//#endif
//#if INT8
@group(0) @binding(3) var<storage, read> x_codes: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> x_meta: array<vec2<u32>>;
//#else
@group(0) @binding(3) var<storage, read> x: array<f32>;
//#endif

//#include unpack
//#include product_d

const TEAM = $TEAM$u;
const LANES = $LANES$u;
var<workgroup> sums: array<f32, LANES>;

@compute @workgroup_size($LANES$)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.y + 65535u * group.z;
    if (row >= sizes.rows) {
        return;
    }
    let output = (LANES / TEAM) * group.x + lane / TEAM;
    let route = row * 2u * sizes.top_k;
    var sum = 0.0;
    if (output < sizes.outputs) {
        for (var i = lane % TEAM; i < sizes.top_k * sizes.blocks; i += TEAM) {
            let slot = i / sizes.blocks;
            let expert = min(u32(routes[route + slot]), sizes.experts - 1u);
            if (expert >= sizes.first && expert < sizes.end) {
                let d = (expert - sizes.down_first) * sizes.outputs + output;
                let y = product_d(d, sizes.blocks, i % sizes.blocks, row * sizes.top_k + slot);
                sum = fma(routes[route + sizes.top_k + slot], y, sum);
            }
        }
    }
    sums[lane] = sum;
    workgroupBarrier();
    if (lane < LANES / TEAM && (LANES / TEAM) * group.x + lane < sizes.outputs) {
        let at = row * sizes.outputs + (LANES / TEAM) * group.x + lane;
        var all = 0.0;
        for (var i = 0u; i < TEAM; i++) {
            all += sums[lane * TEAM + i];
        }
        //#if BIASED
        for (var slot = 0u; slot < sizes.top_k; slot++) {
            let expert = min(u32(routes[route + slot]), sizes.experts - 1u);
            if (expert >= sizes.first && expert < sizes.end) {
                let b = bias[expert * sizes.outputs + (LANES / TEAM) * group.x + lane];
                all = fma(routes[route + sizes.top_k + slot], b, all);
            }
        }
        //#endif
        if (sizes.add != 0u) {
            all += out[at];
        }
        out[at] = all;
    }
}
