// activation(a) * b: rows of `a` are as wide as those of `out`, those of `b` wider.
struct Sizes { count: u32, width: u32, wide: u32, first: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
//#if APART
@group(0) @binding(2) var<storage, read> a: array<f32>;
//#endif

//#include activate

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < sizes.count; i += groups.x * 256u) {
        let up = b[(i / sizes.width) * sizes.wide + sizes.first + i % sizes.width];
        //#if APART
        let gate = a[i];
        //#else
        let gate = out[i];
        //#endif
        out[i] = gated(gate, up);
    }
}
