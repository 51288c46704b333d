// The Hadamard transform of heads of q, in blocks of $SPAN$ dimensions: see hob_quant::hadamard. One workgroup per head of
// a row.
struct Sizes { heads: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read> q: array<f32>;

var<workgroup> fresh: array<f32, $HEAD_DIM$>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let start = (group.y * sizes.heads + group.x) * $HEAD_DIM$u;
    for (var i = lane; i < $HEAD_DIM$u; i += 128u) {
        fresh[i] = q[start + i];
    }
    for (var stride = 1u; stride < $SPAN$u; stride *= 2u) {
        workgroupBarrier();
        for (var i = lane; i < $HEAD_DIM$u / 2u; i += 128u) {
            let low = 2u * i - (i & (stride - 1u));
            let x = fresh[low];
            let y = fresh[low + stride];
            fresh[low] = x + y;
            fresh[low + stride] = x - y;
        }
    }
    workgroupBarrier();
    for (var i = lane; i < $HEAD_DIM$u; i += 128u) {
        out[start + i] = fresh[i] * $SPAN_FACTOR$;
    }
}
