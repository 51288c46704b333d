// out (+)= a * sigmoid(gate); `each` neighbours share a gate.
struct Sizes { count: u32, each: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read> gate: array<f32>;
//#if !IN_PLACE
@group(0) @binding(2) var<storage, read> a: array<f32>;
//#endif

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < sizes.count; i += groups.x * 256u) {
        let open = 1.0 / (1.0 + exp(clamp(-gate[i / sizes.each], -87.0, 87.0)));
        //#if IN_PLACE
        out[i] *= open;
        //#else
        //#if ADD
        out[i] = fma(a[i], open, out[i]);
        //#else
        out[i] = a[i] * open;
        //#endif
        //#endif
    }
}
