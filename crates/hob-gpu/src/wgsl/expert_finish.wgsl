// What tiles of (row, expert) pairs share: sizes, which rows they read, and what becomes of four neighbouring sums. Takes
// the place of `gemm_finish`.
struct Sizes {
    // Pairs before those of this slab, and experts of a row.
    first_pair: u32, top_k: u32,
    // Values in a row of what is bound as `x`, and blocks of 32 in a row of the weights.
    x_width: u32, blocks: u32,
    // Outputs of an expert; pieces of 4 values in a row of the output's f16 form.
    cols: u32, half_pieces: u32,
    // Experts of this dispatch, and those that the bound parts begin with.
    first: u32, end: u32, a_first: u32, b_first: u32,
}
var<immediate> sizes: Sizes;
$BINDINGS$

// Pairs of the tile; places past its last pair repeat that and are not written.
var<workgroup> pair_of: array<u32, $BM$>;
var<private> expert: u32;
var<private> pairs: u32;
// The expert's first row in what is bound.
var<private> row_a: u32;
var<private> row_b: u32;

fn take_tile(tile: vec4<u32>, t: u32) {
    expert = tile.x;
    pairs = tile.z;
    row_a = (expert - sizes.a_first) * sizes.cols;
    row_b = (expert - sizes.b_first) * sizes.cols;
    for (var i = t; i < $BM$u; i += $THREADS$u) {
        pair_of[i] = order[tile.y + min(i, pairs - 1u)];
    }
}

fn input_row(at: u32) -> u32 {
    //#if HALF_OUT
    return (sizes.first_pair + pair_of[at]) / sizes.top_k;
    //#else
    return sizes.first_pair + pair_of[at];
    //#endif
}

//#if HALF_OUT
//#include activate
//#endif

//#if GATED
fn gated4(gate: vec4<f32>, up: vec4<f32>) -> vec4<f32> {
    return vec4(gated(gate.x, up.x), gated(gate.y, up.y), gated(gate.z, up.z), gated(gate.w, up.w));
}
//#endif

//#if BIAS_A
fn bias_of_a(c: u32) -> vec4<f32> {
    let at = expert * sizes.cols + min(vec4(c) + vec4(0u, 1u, 2u, 3u), vec4(sizes.cols - 1u));
    return vec4(bias_a[at.x], bias_a[at.y], bias_a[at.z], bias_a[at.w]);
}
//#endif
//#if BIAS_B
fn bias_of_b(c: u32) -> vec4<f32> {
    let at = expert * sizes.cols + min(vec4(c) + vec4(0u, 1u, 2u, 3u), vec4(sizes.cols - 1u));
    return vec4(bias_b[at.x], bias_b[at.y], bias_b[at.z], bias_b[at.w]);
}
//#endif

// Sums of pair `r` of the tile, columns `c..c + 4`, with those of up where this is gate and up. Hidden rows go out in the f16 form.
fn finish(r: u32, c: u32, sum_a: vec4<f32>, sum_b: vec4<f32>) {
    if (r >= pairs || c >= sizes.cols) {
        return;
    }
    var v = sum_a;
    //#if BIAS_A
    v += bias_of_a(c);
    //#endif
    let inside = vec4(sizes.cols - c) > vec4(0u, 1u, 2u, 3u);
    //#if HALF_OUT
    //#if GATED
    var up = sum_b;
    //#if BIAS_B
    up += bias_of_b(c);
    //#endif
    v = gated4(v, up);
    //#else
    v = vec4(alone(v.x), alone(v.y), alone(v.z), alone(v.w));
    //#endif
    v = select(vec4(0.0), v, inside);
    let row = sizes.first_pair + pair_of[r];
    half_out[row * sizes.half_pieces + c / 4u] = vec2(finite_half(v.xy), finite_half(v.zw));
    //#else
    let at = pair_of[r] * sizes.cols + c;
    //#if VECTORS
    out[at / 4u] = v;
    //#else
    out[at] = v.x;
    if (inside.y) { out[at + 1u] = v.y; }
    if (inside.z) { out[at + 2u] = v.z; }
    if (inside.w) { out[at + 3u] = v.w; }
    //#endif
    //#endif
}
