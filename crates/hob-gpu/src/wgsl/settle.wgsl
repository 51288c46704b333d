// Gives rows of a norm the factor that they lack, and the scales of their int8 form. A workgroup does 1024 values of a row.
struct Sizes { cols: u32, blocks: u32, eps: f32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> rows: array<f32>;
@group(0) @binding(1) var<storage, read_write> meta_: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> squares: array<f32>;

var<workgroup> partial: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.y;
    var sum = 0.0;
    for (var i = lane; i < sizes.blocks; i += 64u) {
        sum += squares[row * sizes.blocks + i];
    }
    partial[lane] = sum;
    workgroupBarrier();
    var all = 0.0;
    for (var i = 0u; i < 64u; i++) {
        all += partial[i];
    }
    let r = 1.0 / sqrt(all / f32(sizes.cols) + sizes.eps);
    let first = group.x * 1024u;
    for (var i = first + lane; i < min(first + 1024u, sizes.cols); i += 64u) {
        rows[row * sizes.cols + i] *= r;
    }
    let block = group.x * 32u + lane;
    if (lane < 32u && block < sizes.blocks) {
        let at = row * sizes.blocks + block;
        meta_[at].x = bitcast<u32>(bitcast<f32>(meta_[at].x) * r);
    }
}
