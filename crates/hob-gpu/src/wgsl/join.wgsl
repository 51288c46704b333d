// out[g] = a[g] ++ b[g] of `parts` equal parts of all rows together.
struct Sizes { count: u32, first: u32, width: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < sizes.count; i += groups.x * 256u) {
        let g = i / sizes.width;
        let at = i % sizes.width;
        if (at < sizes.first) {
            out[i] = a[g * sizes.first + at];
        } else {
            out[i] = b[g * (sizes.width - sizes.first) + at - sizes.first];
        }
    }
}
