// activation(gate) * up, or activation(up) where there is no gate, of 32 neighbouring outputs of one (row, expert): a team of lanes makes one of them.
struct Sizes {
    cols: u32, blocks: u32, outputs: u32, top_k: u32, pairs: u32, experts: u32,
    // Experts of this dispatch, and those that the bound parts begin with.
    first: u32, end: u32, gate_first: u32, up_first: u32,
}
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read> routes: array<f32>;
@group(0) @binding(1) var<storage, read> w_g: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> w_u: array<vec4<u32>>;
//#if INT8
@group(0) @binding(3) var<storage, read> x_codes: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> x_meta: array<vec2<u32>>;
//#endif
//#if ROWS
@group(0) @binding($X$) var<storage, read> x: array<f32>;
//#endif
//#if BIASED
@group(0) @binding($BIAS_G$) var<storage, read> bias_g: array<f32>;
@group(0) @binding($BIAS_U$) var<storage, read> bias_u: array<f32>;
//#endif
//#if HIDDEN8
@group(0) @binding($OUT$) var<storage, read_write> codes: array<u32>;
@group(0) @binding($META$) var<storage, read_write> meta_: array<vec2<u32>>;
//#else
@group(0) @binding($OUT$) var<storage, read_write> hidden: array<f32>;
//#endif

//#include unpack
//#include product_g
//#include product_u
//#include activate

const TEAM = $TEAM$u;
const LANES = 32u * TEAM;
var<workgroup> gates: array<f32, LANES>;
var<workgroup> ups: array<f32, LANES>;
var<workgroup> values: array<f32, 32>;
//#if HIDDEN8
//#include quantize_block
//#endif

@compute @workgroup_size($LANES$)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let pair = group.y + 65535u * group.z;
    if (pair >= sizes.pairs) {
        return;
    }
    let row = pair / sizes.top_k;
    let expert = min(u32(routes[row * 2u * sizes.top_k + pair % sizes.top_k]), sizes.experts - 1u);
    // Of another part: nothing to do. (No early return: lanes must stay together for barriers.)
    let mine = expert >= sizes.first && expert < sizes.end;
    let output = 32u * group.x + lane / TEAM;
    var gate = 0.0;
    var up = 0.0;
    if (mine && output < sizes.outputs) {
        let g = (expert - sizes.gate_first) * sizes.outputs + output;
        let u = (expert - sizes.up_first) * sizes.outputs + output;
        for (var b = lane % TEAM; b < sizes.blocks; b += TEAM) {
            //#if !ALONE
            gate += product_g(g, sizes.blocks, b, row);
            //#endif
            up += product_u(u, sizes.blocks, b, row);
        }
    }
    gates[lane] = gate;
    ups[lane] = up;
    workgroupBarrier();
    if (lane < 32u) {
        gate = 0.0;
        up = 0.0;
        for (var i = 0u; i < TEAM; i++) {
            gate += gates[lane * TEAM + i];
            up += ups[lane * TEAM + i];
        }
        //#if BIASED
        let at = expert * sizes.outputs + min(32u * group.x + lane, sizes.outputs - 1u);
        gate += bias_g[at];
        up += bias_u[at];
        //#endif
        //#if ALONE
        values[lane] = alone(up);
        //#else
        values[lane] = gated(gate, up);
        //#endif
    }
    workgroupBarrier();
    if (!mine) {
        return;
    }
    //#if HIDDEN8
    let out_blocks = (sizes.outputs + 31u) / 32u;
    if (lane < 8u) {
        let piece = (2u * pair + lane / 4u) * out_blocks + group.x;
        codes[4u * piece + lane % 4u] = quantize_word(0u, lane);
    }
    if (lane == 0u) {
        meta_[pair * out_blocks + group.x] = quantize_meta(0u);
    }
    //#else
    if (lane < 32u && 32u * group.x + lane < sizes.outputs) {
        hidden[pair * sizes.outputs + 32u * group.x + lane] = values[lane];
    }
    //#endif
}
