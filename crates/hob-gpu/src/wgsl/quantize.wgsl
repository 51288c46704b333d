// A workgroup makes the int8 form of 32 blocks of one row; 8 lanes a block.
struct Sizes { cols: u32, blocks: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> codes: array<u32>;
@group(0) @binding(1) var<storage, read_write> meta_: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> x: array<f32>;

var<workgroup> values: array<f32, 1024>;
//#include quantize_block

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = group.x * 1024u;
    for (var i = lane; i < 1024u; i += 256u) {
        var v = 0.0;
        if (first + i < sizes.cols) {
            v = x[group.y * sizes.cols + first + i];
        }
        values[i] = v;
    }
    workgroupBarrier();
    let block = group.x * 32u + lane / 8u;
    let word = lane % 8u;
    if (block < sizes.blocks) {
        let at = 32u * (lane / 8u);
        let piece = (2u * group.y + word / 4u) * sizes.blocks + block;
        codes[4u * piece + word % 4u] = quantize_word(at, word);
        if (word == 0u) {
            meta_[group.y * sizes.blocks + block] = quantize_meta(at);
        }
    }
}
