// A tile of 64 activation rows by 64 outputs per workgroup on int8 codes: exact integer sums per block of 32 (or half),
// scaled and added in f32; two blocks per step. A gated pair goes through it one after the other.
//#include finish
//#include unpack
//#if HALF_OUT
//#include finite_half
//#endif

// Codes `[block][half][row]`, 16 in a vector; meta and scales `[block][row]`. Weight row `c` stands at `slot(c)`, so that
// neighbouring lanes, each with four columns, read neighbouring vectors.
var<workgroup> tile_x: array<vec4<u32>, 256>;
var<workgroup> meta_x: array<vec4<f32>, 128>;
var<workgroup> tile_w: array<vec4<u32>, 256>;
var<workgroup> scales_w: array<vec4<f32>, 128>;

fn slot(c: u32) -> u32 {
    return 16u * (c % 4u) + c / 4u;
}

// The activations of row `r`, block `b` of this step, which is block `block`: scale, and the sums of both halves.
fn put_x(r: u32, b: u32, row: u32, block: u32) {
    if (block >= sizes.blocks) {
        tile_x[128u * b + r] = vec4(0u);
        tile_x[128u * b + 64u + r] = vec4(0u);
        meta_x[64u * b + r] = vec4(0.0);
        return;
    }
    tile_x[128u * b + r] = x[(2u * row) * sizes.blocks + block];
    tile_x[128u * b + 64u + r] = x[(2u * row + 1u) * sizes.blocks + block];
    let m = x_meta[row * sizes.blocks + block];
    let low = i32(m.y << 16u) >> 16u;
    let high = i32(m.y) >> 16u;
    meta_x[64u * b + r] = vec4(bitcast<f32>(m.x), f32(low), f32(high), f32(low + high));
}

fn dot16(a: vec4<u32>, b: vec4<u32>) -> i32 {
    return dot4I8Packed(a.x, b.x) + dot4I8Packed(a.y, b.y) + dot4I8Packed(a.z, b.z) + dot4I8Packed(a.w, b.w);
}

// One row of this step's block `b` times one column.
fn product(r: u32, c: u32, b: u32) -> f32 {
    let low = dot16(tile_x[128u * b + r], tile_w[128u * b + c]);
    let high = dot16(tile_x[128u * b + 64u + r], tile_w[128u * b + 64u + c]);
    let m = meta_x[64u * b + r];
    let s = scales_w[64u * b + c];
    //#if HALVES
    let y = fma(f32(low), s.x, f32(high) * s.y);
    return m.x * fma(m.y, s.z, fma(m.z, s.w, y));
    //#else
    return m.x * fma(f32(low + high), s.x, m.w * s.z);
    //#endif
}

fn four(r: u32, c: u32, b: u32) -> vec4<f32> {
    return vec4(product(r, c, b), product(r, c + 16u, b), product(r, c + 32u, b), product(r, c + 48u, b));
}

//#include sums_a
//#if GATED
//#include sums_b
//#endif

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let row0 = 64u * group.x;
    let col0 = 64u * group.y;
    let a = sums_a(row0, col0, t);
    //#if GATED
    let b = sums_b(row0, col0, t);
    //#else
    let b = a;
    //#endif
    let row = row0 + 4u * (t / 16u);
    let col = col0 + 4u * (t % 16u);
    finish(row, col, a[0], b[0]);
    finish(row + 1u, col, a[1], b[1]);
    finish(row + 2u, col, a[2], b[2]);
    finish(row + 3u, col, a[3], b[3]);
}
