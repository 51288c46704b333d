struct Sizes { to: u32, from_: u32, width: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read> a: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < sizes.width) {
        out[sizes.to + id.x] = a[sizes.from_ + id.x];
    }
}
