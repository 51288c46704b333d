// Rotates pairs of `2 * half` dimensions of every head from `first` on, in place; `sign` of -1 turns back. A lane has one pair of every `shares`-th head
// of a row: all heads of a row turn by the same angles, which are dearer than the rotation.
struct Sizes { rows: u32, heads: u32, head_dim: u32, half_: u32, positions: u32, magnitude: f32, shares: u32, first: u32, sign: f32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read> freqs: array<f32>;
@group(0) @binding(2) var<storage, read> arguments: array<u32>;

//#include rope_angle

@compute @workgroup_size(128)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let count = sizes.rows * sizes.shares * sizes.half_;
    for (var at = id.x; at < count; at += groups.x * 128u) {
        let pair = at % sizes.half_;
        let share = at / sizes.half_ % sizes.shares;
        let row = at / sizes.half_ / sizes.shares;
        let angle = rope_angle(arguments[sizes.positions + row], freqs[pair]) * sizes.magnitude;
        let turn = vec2<f32>(angle.x, angle.y * sizes.sign);
        for (var head = share; head < sizes.heads; head += sizes.shares) {
            let start = (row * sizes.heads + head) * sizes.head_dim + sizes.first;
            //#if INTERLEAVED
            let first = start + 2u * pair;
            let second = first + 1u;
            //#else
            let first = start + pair;
            let second = first + sizes.half_;
            //#endif
            let a = x[first];
            let b = x[second];
            x[first] = fma(a, turn.x, -(b * turn.y));
            x[second] = fma(b, turn.x, a * turn.y);
        }
    }
}
