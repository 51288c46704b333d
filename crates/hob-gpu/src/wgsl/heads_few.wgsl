// Products head by head of few rows: a team of lanes makes one output of one row.
struct Sizes { cols: u32, blocks: u32, outputs: u32, heads: u32, first: u32, end: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read> w_a: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> x: array<f32>;

//#include unpack

const TEAM = 8u;
const LANES = 256u;
var<workgroup> sums: array<f32, LANES>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    // Outputs of all heads of the bound weight, one after the other.
    let output = (LANES / TEAM) * group.x + lane / TEAM;
    let row = group.y;
    var sum = 0.0;
    if (output < sizes.end) {
        let head = sizes.first / sizes.outputs + output / sizes.outputs;
        let start = (row * sizes.heads + head) * sizes.cols;
        for (var block = lane % TEAM; block < sizes.blocks; block += TEAM) {
            // Weights past the last column are 0.
            let w = weights_a(output, sizes.blocks, block);
            let at = start + 32u * block;
            let end = start + sizes.cols - 1u;
            //#for k 8
            let x$k$ = vec4<f32>(
                x[min(at + 4u * $k$u, end)], x[min(at + 4u * $k$u + 1u, end)],
                x[min(at + 4u * $k$u + 2u, end)], x[min(at + 4u * $k$u + 3u, end)],
            );
            //#endfor
            //#for k 8
            sum += dot(w[$k$], x$k$);
            //#endfor
        }
    }
    sums[lane] = sum;
    workgroupBarrier();
    let mine = (LANES / TEAM) * group.x + lane;
    if (lane < LANES / TEAM && mine < sizes.end) {
        var all = 0.0;
        for (var i = 0u; i < TEAM; i++) {
            all += sums[lane * TEAM + i];
        }
        out[row * sizes.heads * sizes.outputs + sizes.first + mine] = all;
    }
}
