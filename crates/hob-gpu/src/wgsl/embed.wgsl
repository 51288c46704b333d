// Rows of a table, one block of 32 weights per lane. A token is known, or was chosen on the device.
struct Sizes { width: u32, blocks: u32, tokens: u32, scale: f32, results: u32, stride: u32, first_row: u32, rows: u32, count: u32, first: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<$TYPE$>;
@group(0) @binding(1) var<storage, read> w_t: array<vec4<u32>>;
// Of every row but a single one: bit 31 clear, a token; bit 31 set, a row of the last pick.
@group(0) @binding(2) var<storage, read> arguments: array<u32>;
@group(0) @binding(3) var<storage, read> results: array<u32>;

//#include unpack

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.y + 65535u * id.z;
    let block = id.x;
    if (block >= sizes.blocks || row >= sizes.count) {
        return;
    }
    // A single token needs no reading.
    var token = sizes.first;
    if (sizes.count > 1u) {
        token = arguments[sizes.tokens + row];
    }
    if (token >= 0x80000000u) {
        token = results[sizes.results + (token & 0x7fffffffu) * sizes.stride];
    }
    // Wraps for the rows of other parts.
    let at = token - sizes.first_row;
    if (at >= sizes.rows) {
        return;
    }
    let w = weights_t(at, sizes.blocks, block);
    //#if VECTORS
    let start = row * (sizes.width / 4u) + 8u * block;
    //#for i 8
    if (32u * block + 4u * $i$u < sizes.width) {
        out[start + $i$u] = w[$i$] * sizes.scale;
    }
    //#endfor
    //#else
    let start = row * sizes.width + 32u * block;
    //#for i 8
    //#for j 4
    if (32u * block + 4u * $i$u + $j$u < sizes.width) {
        out[start + 4u * $i$u + $j$u] = w[$i$][$j$] * sizes.scale;
    }
    //#endfor
    //#endfor
    //#endif
}
