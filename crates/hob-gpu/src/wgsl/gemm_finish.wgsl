// What every tile shares: sizes, and what becomes of four neighbouring sums.
struct Sizes {
    // Activation rows, and the first of them in what is bound.
    rows: u32, first_row: u32,
    // Values in a row of what is bound as `x`, and blocks of 32 in a row of the weights.
    x_width: u32, blocks: u32,
    // Outputs of a row here, the first one's column in the output, and the width of the output.
    cols: u32, first_col: u32, out_width: u32,
    // Pieces of 4 values in a row of the output's f16 form.
    half_pieces: u32,
    // The weight row of the first output, in each weight.
    row_a: u32, row_b: u32,
}
var<immediate> sizes: Sizes;
$BINDINGS$

//#if GATED
//#if GELU
//#include tanh
//#endif
fn activation(x: vec4<f32>) -> vec4<f32> {
    //#if GELU
    return 0.5 * x * (1.0 + tanh_of(0.7978845608 * (x + 0.044715 * x * x * x)));
    //#else
    return x / (1.0 + exp(-x));
    //#endif
}
//#endif

//#if BIAS_A
fn bias_of_a(c: u32) -> vec4<f32> {
    let last = sizes.first_col + sizes.cols - 1u;
    let at = min(vec4(sizes.first_col + c) + vec4(0u, 1u, 2u, 3u), vec4(last));
    return vec4(bias_a[at.x], bias_a[at.y], bias_a[at.z], bias_a[at.w]);
}
//#endif
//#if BIAS_B
fn bias_of_b(c: u32) -> vec4<f32> {
    let last = sizes.first_col + sizes.cols - 1u;
    let at = min(vec4(sizes.first_col + c) + vec4(0u, 1u, 2u, 3u), vec4(last));
    return vec4(bias_b[at.x], bias_b[at.y], bias_b[at.z], bias_b[at.w]);
}
//#endif

// Sums of row `r`, columns `c..c + 4` of this dispatch, with those of the second weight where there is one.
fn finish(r: u32, c: u32, sum_a: vec4<f32>, sum_b: vec4<f32>) {
    if (r >= sizes.rows || c >= sizes.cols) {
        return;
    }
    var v = sum_a;
    //#if BIAS_A
    v += bias_of_a(c);
    //#endif
    //#if GATED
    var up = sum_b;
    //#if BIAS_B
    up += bias_of_b(c);
    //#endif
    v = activation(v) * up;
    //#endif
    let at = r * sizes.out_width + sizes.first_col + c;
    //#if VECTORS
    //#if ADD
    v += out[at / 4u];
    //#endif
    out[at / 4u] = v;
    //#else
    let inside = vec4(sizes.cols - c) > vec4(0u, 1u, 2u, 3u);
    //#if ADD
    let end = at + min(sizes.cols - c, 4u) - 1u;
    v += vec4(out[at], out[min(at + 1u, end)], out[min(at + 2u, end)], out[min(at + 3u, end)]);
    //#endif
    out[at] = v.x;
    if (inside.y) { out[at + 1u] = v.y; }
    if (inside.z) { out[at + 2u] = v.z; }
    if (inside.w) { out[at + 3u] = v.w; }
    v = select(vec4(0.0), v, inside);
    //#endif
    //#if HALF_OUT
    half_out[r * sizes.half_pieces + (sizes.first_col + c) / 4u] = vec2(finite_half(v.xy), finite_half(v.zw));
    //#endif
}
