// Reads a buffer once, neighbouring lanes neighbouring vectors, and keeps a sum so that no read can be left out.
struct Sizes { vectors: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<u32>;
@group(0) @binding(1) var<storage, read> data: array<vec4<u32>>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let stride = groups.x * 256u;
    var sum = vec4<u32>(0u);
    for (var i = id.x; i < sizes.vectors; i += 4u * stride) {
        //#for n 4
        let v$n$ = data[i + $n$u * stride];
        //#endfor
        sum ^= v0 ^ v1 ^ v2 ^ v3;
    }
    let all = sum.x ^ sum.y ^ sum.z ^ sum.w;
    if (all == 0x9e3779b9u) {
        out[id.x % 64u] = all;
    }
}
