struct Sizes { count: u32, value: f32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
//#if !BOTH
@group(0) @binding(1) var<storage, read> a: array<f32>;
//#endif
//#if SECOND
@group(0) @binding(2) var<storage, read> b: array<f32>;
//#endif

//#if SOFTCAP
//#include tanh
//#endif

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < sizes.count; i += groups.x * 256u) {
        //#if BOTH
        let x = out[i];
        //#else
        let x = a[i];
        //#endif
        //#if SECOND
        let y = b[i];
        //#else
        //#if IN_PLACE
        let y = out[i];
        //#else
        let y = x;
        //#endif
        //#endif
        //#if ADD
        out[i] = x + y;
        //#endif
        //#if SCALE
        out[i] = x * sizes.value;
        //#endif
        //#if SOFTCAP
        out[i] = tanh_of(x / sizes.value) * sizes.value;
        //#endif
    }
}
