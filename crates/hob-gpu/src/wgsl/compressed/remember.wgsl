// Copies rows of a batch to their places in a ring.
struct Sizes { width: u32, arguments: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> ring: array<f32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
// Of every row: itself, and its row of the ring.
@group(0) @binding(2) var<storage, read> arguments: array<u32>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let from_ = arguments[sizes.arguments + 2u * group.x] * sizes.width;
    let to = arguments[sizes.arguments + 2u * group.x + 1u] * sizes.width;
    for (var c = group.y * 128u + lane; c < sizes.width; c += 65535u * 128u) {
        ring[to + c] = x[from_ + c];
    }
}
