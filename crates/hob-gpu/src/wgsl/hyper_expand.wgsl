// A lane spreads one value of a row over its places in all streams, in place.
struct Sizes { count: u32, dim: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read> y: array<f32>;
//#if WEIGHTS
@group(0) @binding(2) var<storage, read> weights: array<f32>;
//#endif

const N = $STREAMS$u;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < sizes.count; i += groups.x * 256u) {
        let row = i / sizes.dim;
        let start = row * N * sizes.dim + i % sizes.dim;
        let value = y[i];
        //#if WEIGHTS
        let own = row * N * (N + 1u);
        //#for j N
        let old$j$ = x[start + $j$u * sizes.dim];
        //#endfor
        for (var k = 0u; k < N; k++) {
            var sum = weights[own + k] * value;
            //#for j N
            sum = fma(weights[own + N + $j$u * N + k], old$j$, sum);
            //#endfor
            x[start + k * sizes.dim] = sum;
        }
        //#else
        for (var k = 0u; k < N; k++) {
            x[start + k * sizes.dim] = value;
        }
        //#endif
    }
}
