// The f16 form of f32 rows, 8 values per lane: `[rows, pieces]` of 16 bytes, with zeros behind the width.
struct Sizes {
    first_row: u32,
    width: u32,
    // Pieces of 8 values in a row of the form.
    pieces: u32,
}
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> form: array<vec4<u32>>;
//#if ALIGNED
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
//#else
@group(0) @binding(1) var<storage, read> x: array<f32>;

fn value(row: u32, col: u32) -> f32 {
    return select(0.0, x[row * sizes.width + min(col, sizes.width - 1u)], col < sizes.width);
}

fn two(row: u32, col: u32) -> u32 {
    return finite_half(vec2<f32>(value(row, col), value(row, col + 1u)));
}
//#endif

//#include finite_half

@compute @workgroup_size(128)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let piece = id.x;
    if (piece >= sizes.pieces) {
        return;
    }
    let row = sizes.first_row + id.y;
    //#if ALIGNED
    // The width is a multiple of 8.
    var packed = vec4<u32>(0u);
    if (piece * 8u < sizes.width) {
        let at = (row * sizes.width) / 4u + 2u * piece;
        let a = x[at];
        let b = x[at + 1u];
        packed = vec4<u32>(finite_half(a.xy), finite_half(a.zw), finite_half(b.xy), finite_half(b.zw));
    }
    //#else
    let col = 8u * piece;
    let packed = vec4<u32>(two(row, col), two(row, col + 2u), two(row, col + 4u), two(row, col + 6u));
    //#endif
    form[row * sizes.pieces + piece] = packed;
}
