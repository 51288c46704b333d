// activation(a), in place or from another buffer.
struct Sizes { count: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
//#if APART
@group(0) @binding(1) var<storage, read> a: array<f32>;
//#endif

//#include activate

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < sizes.count; i += groups.x * 256u) {
        //#if APART
        out[i] = alone(a[i]);
        //#else
        out[i] = alone(out[i]);
        //#endif
    }
}
