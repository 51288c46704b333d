// The gate and the norm of a group's output, in place: one workgroup per group and row. Where a product follows that
// multiplies int8, that form too.
struct Sizes { rows: u32, eps: f32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read> z: array<f32>;
@group(0) @binding(2) var<storage, read> norm: array<f32>;
@group(0) @binding(3) var<storage, read> arguments: array<u32>;
//#if INT8
@group(0) @binding(4) var<storage, read_write> codes: array<u32>;
@group(0) @binding(5) var<storage, read_write> meta_: array<vec2<u32>>;
//#endif

const WIDTH = $WIDTH$u;
const LANES = 256u;

var<workgroup> sums: array<f32, LANES>;
//#if INT8
// Values that are quantized at once.
const STRIP = 4u * LANES;
var<workgroup> values: array<f32, STRIP>;
//#include quantize_block
//#endif

//#include gates

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = arguments[sizes.rows + group.y];
    let start = (row * groups.x + group.x) * WIDTH;
    var sum = 0.0;
    for (var c = lane; c < WIDTH; c += LANES) {
        let gate = z[start + c];
        let y = out[start + c] * gate * sigmoid(gate);
        out[start + c] = y;
        sum = fma(y, y, sum);
    }
    sums[lane] = sum;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            sums[lane] += sums[lane + half];
        }
        workgroupBarrier();
    }
    let r = 1.0 / sqrt(sums[0] / f32(WIDTH) + sizes.eps);
    //#if INT8
    for (var strip = 0u; strip < WIDTH; strip += STRIP) {
        for (var n = lane; n < STRIP; n += LANES) {
            let c = strip + n;
            var value = 0.0;
            if (c < WIDTH) {
                value = out[start + c] * r * norm[group.x * WIDTH + c];
                out[start + c] = value;
            }
            values[n] = value;
        }
        workgroupBarrier();
        // A lane has a word of 4 codes; a row has two pieces of 16 for each block of 32.
        let block = lane / 8u;
        let word = lane % 8u;
        if (strip + 32u * block < WIDTH) {
            let blocks = groups.x * WIDTH / 32u;
            let at = (group.x * WIDTH + strip) / 32u + block;
            codes[4u * ((2u * row + word / 4u) * blocks + at) + word % 4u] = quantize_word(32u * block, word);
            if (word == 0u) {
                meta_[row * blocks + at] = quantize_meta(32u * block);
            }
        }
        workgroupBarrier();
    }
    //#else
    for (var c = lane; c < WIDTH; c += LANES) {
        out[start + c] = out[start + c] * r * norm[group.x * WIDTH + c];
    }
    //#endif
}
