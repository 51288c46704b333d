// Weighs the experts' products of every row of a slab and adds them in ascending order.
struct Sizes { outputs: u32, top_k: u32, first_row: u32, rows: u32, add: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read> routes: array<f32>;
@group(0) @binding(2) var<storage, read> products: array<f32>;

@compute @workgroup_size(128)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let o = id.x;
    let row = id.y;
    if (o >= sizes.outputs || row >= sizes.rows) {
        return;
    }
    let route = (sizes.first_row + row) * 2u * sizes.top_k;
    let at = (sizes.first_row + row) * sizes.outputs + o;
    var sum = 0.0;
    if (sizes.add != 0u) {
        sum = out[at];
    }
    for (var s = 0u; s < sizes.top_k; s++) {
        sum = fma(routes[route + sizes.top_k + s], products[(row * sizes.top_k + s) * sizes.outputs + o], sum);
    }
    out[at] = sum;
}
