// Products head by head of many rows: a tile of 64 rows by 64 outputs of a head per workgroup, all in f32, in steps of one
// block of 32.
struct Sizes { cols: u32, blocks: u32, outputs: u32, heads: u32, first: u32, rows: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read> w_a: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> x: array<f32>;

//#include unpack

// `[32][64]`, four neighbours in a vector.
var<workgroup> tile_x: array<vec4<f32>, 512>;
var<workgroup> tile_a: array<vec4<f32>, 512>;

fn store(row: u32, head: u32, output: u32, y: vec4<f32>) {
    if (row < sizes.rows) {
        let at = (row * sizes.heads + head) * sizes.outputs;
        for (var i = 0u; i < 4u; i++) {
            if (output + i < sizes.outputs) {
                out[at + output + i] = y[i];
            }
        }
    }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let row0 = 64u * group.x;
    let col0 = 64u * group.y;
    let head = sizes.first + group.z;
    var a0 = vec4(0.0);
    var a1 = vec4(0.0);
    var a2 = vec4(0.0);
    var a3 = vec4(0.0);
    let tx = t % 16u;
    let ty = t / 16u;
    for (var block = 0u; block < sizes.blocks; block++) {
        if (t < 64u) {
            let output = group.z * sizes.outputs + min(col0 + t, sizes.outputs - 1u);
            var w = weights_a(output, sizes.blocks, block);
            for (var k = 0u; k < 32u; k++) {
                tile_a[16u * k + t / 4u][t % 4u] = w[k / 4u][k % 4u];
            }
        }
        for (var i = 255u - t; i < 2048u; i += 256u) {
            let k = i % 32u;
            let r = i / 32u;
            let start = (min(row0 + r, sizes.rows - 1u) * sizes.heads + head) * sizes.cols;
            let v = x[start + min(32u * block + k, sizes.cols - 1u)];
            tile_x[16u * k + r / 4u][r % 4u] = select(0.0, v, 32u * block + k < sizes.cols);
        }
        workgroupBarrier();
        for (var k = 0u; k < 32u; k++) {
            let v = tile_x[16u * k + ty];
            let w = tile_a[16u * k + tx];
            a0 = fma(vec4(v.x), w, a0);
            a1 = fma(vec4(v.y), w, a1);
            a2 = fma(vec4(v.z), w, a2);
            a3 = fma(vec4(v.w), w, a3);
        }
        workgroupBarrier();
    }
    let row = row0 + 4u * ty;
    let output = col0 + 4u * tx;
    store(row, head, output, a0);
    store(row + 1u, head, output, a1);
    store(row + 2u, head, output, a2);
    store(row + 3u, head, output, a3);
}
