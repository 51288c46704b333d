// A tile of 64 activation rows by 64 outputs per workgroup, all in f32, in steps of one block of 32.
//#include finish
//#include unpack
//#if HALF_OUT
//#include finite_half
//#endif

// `[32][64]`, four neighbours in a vector.
var<workgroup> tile_x: array<vec4<f32>, 512>;
var<workgroup> tile_a: array<vec4<f32>, 512>;
//#if GATED
var<workgroup> tile_b: array<vec4<f32>, 512>;
//#endif

fn put_a(row: u32, block: u32, at: u32) {
    var w = weights_a(row, sizes.blocks, block);
    for (var k = 0u; k < 32u; k++) {
        tile_a[16u * k + at / 4u][at % 4u] = w[k / 4u][k % 4u];
    }
}
//#if GATED

fn put_b(row: u32, block: u32, at: u32) {
    var w = weights_b(row, sizes.blocks, block);
    for (var k = 0u; k < 32u; k++) {
        tile_b[16u * k + at / 4u][at % 4u] = w[k / 4u][k % 4u];
    }
}
//#endif

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let row0 = 64u * group.x;
    let col0 = 64u * group.y;
    var a0 = vec4(0.0);
    var a1 = vec4(0.0);
    var a2 = vec4(0.0);
    var a3 = vec4(0.0);
    //#if GATED
    var b0 = vec4(0.0);
    var b1 = vec4(0.0);
    var b2 = vec4(0.0);
    var b3 = vec4(0.0);
    //#endif
    let tx = t % 16u;
    let ty = t / 16u;
    for (var block = 0u; block < sizes.blocks; block++) {
        if (t < 64u) {
            put_a(sizes.row_a + min(col0 + t, sizes.cols - 1u), block, t);
        }
        //#if GATED
        if (t >= 64u && t < 128u) {
            put_b(sizes.row_b + min(col0 + t - 64u, sizes.cols - 1u), block, t - 64u);
        }
        //#endif
        for (var i = 255u - t; i < 2048u; i += 256u) {
            let k = i % 32u;
            let r = i / 32u;
            let row = sizes.first_row + min(row0 + r, sizes.rows - 1u);
            let col = min(32u * block + k, sizes.x_width - 1u);
            let v = x[row * sizes.x_width + col];
            tile_x[16u * k + r / 4u][r % 4u] = select(0.0, v, 32u * block + k < sizes.x_width);
        }
        workgroupBarrier();
        for (var k = 0u; k < 32u; k++) {
            let v = tile_x[16u * k + ty];
            let w = tile_a[16u * k + tx];
            a0 = fma(vec4(v.x), w, a0);
            a1 = fma(vec4(v.y), w, a1);
            a2 = fma(vec4(v.z), w, a2);
            a3 = fma(vec4(v.w), w, a3);
            //#if GATED
            let u = tile_b[16u * k + tx];
            b0 = fma(vec4(v.x), u, b0);
            b1 = fma(vec4(v.y), u, b1);
            b2 = fma(vec4(v.z), u, b2);
            b3 = fma(vec4(v.w), u, b3);
            //#endif
        }
        workgroupBarrier();
    }
    //#if !GATED
    let b0 = a0;
    let b1 = a1;
    let b2 = a2;
    let b3 = a3;
    //#endif
    finish(row0 + 4u * ty, col0 + 4u * tx, a0, b0);
    finish(row0 + 4u * ty + 1u, col0 + 4u * tx, a1, b1);
    finish(row0 + 4u * ty + 2u, col0 + 4u * tx, a2, b2);
    finish(row0 + 4u * ty + 3u, col0 + 4u * tx, a3, b3);
}
