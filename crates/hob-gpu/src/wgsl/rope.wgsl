// Rotates pairs of the first `2 * half` dimensions of every head, in place: one lane per pair.
struct Sizes { rows: u32, heads: u32, head_dim: u32, half_: u32, positions: u32, magnitude: f32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read> freqs: array<f32>;
@group(0) @binding(2) var<storage, read> arguments: array<u32>;

//#include rope_angle

@compute @workgroup_size(128)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let count = sizes.rows * sizes.heads * sizes.half_;
    for (var at = id.x; at < count; at += groups.x * 128u) {
        let head = at / sizes.half_;
        let pair = at % sizes.half_;
        let position = arguments[sizes.positions + head / sizes.heads];
        let turn = rope_angle(position, freqs[pair]) * sizes.magnitude;
        //#if INTERLEAVED
        let first = head * sizes.head_dim + 2u * pair;
        let second = first + 1u;
        //#else
        let first = head * sizes.head_dim + pair;
        let second = first + sizes.half_;
        //#endif
        let a = x[first];
        let b = x[second];
        x[first] = fma(a, turn.x, -(b * turn.y));
        x[second] = fma(b, turn.x, a * turn.y);
    }
}
