// Makes one result of the splits of a row's query head, with its sink; one workgroup per head and row. Writes the int8
// form as well where there is one.
struct Sizes { rows: u32, kv_heads: u32, heads: u32, columns: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read> partials: array<f32>;
@group(0) @binding(2) var<storage, read> bounds: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read> arguments: array<u32>;
//#if SINKS
@group(0) @binding(4) var<storage, read> sinks: array<f32>;
//#endif
//#if INT8
@group(0) @binding($AT_CODES$) var<storage, read_write> codes: array<vec4<u32>>;
@group(0) @binding($AT_META$) var<storage, read_write> metas: array<vec2<u32>>;
//#endif

const LANES: u32 = 256u;
const HEAD_DIM: u32 = $HEAD_DIM$u;
// Lanes that have a dimension each, and lots of them.
const WIDE: u32 = $WIDE$u;
const SETS: u32 = 256u / $WIDE$u;

var<workgroup> shares: array<f32, $MOST_SPLITS$>;
var<workgroup> lanes: array<f32, 256>;
var<workgroup> result: array<f32, $RESULT$>;
//#if INT8
var<workgroup> words: array<u32, $WORDS$>;
//#endif

fn most_of(x: f32, lane: u32) -> f32 {
    lanes[lane] = x;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half /= 2u) {
        if (lane < half) {
            lanes[lane] = max(lanes[lane], lanes[lane + half]);
        }
        workgroupBarrier();
    }
    let y = lanes[0];
    workgroupBarrier();
    return y;
}

fn sum_of(x: f32, lane: u32) -> f32 {
    lanes[lane] = x;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half /= 2u) {
        if (lane < half) {
            lanes[lane] += lanes[lane + half];
        }
        workgroupBarrier();
    }
    let y = lanes[0];
    workgroupBarrier();
    return y;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) place: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = place.x;
    let entry = sizes.rows + 4u * place.y;
    let row = arguments[entry];
    let splits = arguments[entry + 2u];
    let group = sizes.heads / sizes.kv_heads;
    let column = arguments[entry + 3u] * group + head % group;
    let first = arguments[entry + 1u] + (column / sizes.columns) * splits;
    // Of split s: (first + s) * kv_heads * columns + here.
    let each = sizes.kv_heads * sizes.columns;
    let here = first * each + (head / group) * sizes.columns + column % sizes.columns;

    //#if SINKS
    let sink = sinks[head] * 1.442695;
    var most = sink;
    //#else
    var most = -3.0e38;
    //#endif
    for (var s = lane; s < splits; s += LANES) {
        most = max(most, bounds[here + s * each].x);
    }
    most = most_of(most, lane);
    var sum = 0.0;
    // Behind the last split come some without a share.
    for (var s = lane; s < splits + 4u * SETS; s += LANES) {
        var share = 0.0;
        if (s < splits) {
            let bound = bounds[here + s * each];
            share = exp2(bound.x - most);
            sum = fma(share, bound.y, sum);
        }
        shares[s] = share;
    }
    sum = sum_of(sum, lane);
    //#if SINKS
    sum += exp2(sink - most);
    //#endif

    for (var start = 0u; start < HEAD_DIM; start += WIDE) {
        let dim = start + lane % WIDE;
        let lot = lane / WIDE;
        var acc = vec4<f32>(0.0);
        if (dim < HEAD_DIM && lot < SETS) {
            for (var s = lot; s < splits; s += 4u * SETS) {
                let a = partials[(here + s * each) * HEAD_DIM + dim];
                let b = partials[(here + min(s + SETS, splits - 1u) * each) * HEAD_DIM + dim];
                let c = partials[(here + min(s + 2u * SETS, splits - 1u) * each) * HEAD_DIM + dim];
                let d = partials[(here + min(s + 3u * SETS, splits - 1u) * each) * HEAD_DIM + dim];
                let w = vec4<f32>(shares[s], shares[s + SETS], shares[s + 2u * SETS], shares[s + 3u * SETS]);
                acc = fma(vec4<f32>(a, b, c, d), w, acc);
            }
        }
        lanes[lane] = (acc.x + acc.y) + (acc.z + acc.w);
        workgroupBarrier();
        if (lane < WIDE && dim < HEAD_DIM) {
            var x = 0.0;
            for (var k = 0u; k < SETS; k++) {
                x += lanes[k * WIDE + lane];
            }
            result[dim] = x / sum;
        }
        workgroupBarrier();
    }
    //#if V_ROTATED
    for (var stride = 1u; stride < $SPAN$u; stride *= 2u) {
        for (var i = lane; i < HEAD_DIM / 2u; i += LANES) {
            let a = (i / stride) * 2u * stride + i % stride;
            let x = result[a];
            let y = result[a + stride];
            result[a] = x + y;
            result[a + stride] = x - y;
        }
        workgroupBarrier();
    }
    for (var i = lane; i < HEAD_DIM; i += LANES) {
        result[i] *= $SPAN_FACTOR$;
    }
    workgroupBarrier();
    //#endif
    for (var i = lane; i < HEAD_DIM; i += LANES) {
        out[(row * sizes.heads + head) * HEAD_DIM + i] = result[i];
    }
    //#if INT8
    // One lane per word of four codes; see hob_compute::act.
    for (var i = lane; i < HEAD_DIM / 4u; i += LANES) {
        var bits = 0u;
        for (var k = 0u; k < 32u; k++) {
            bits = max(bits, bitcast<u32>(result[(i / 8u) * 32u + k]) & 0x7fffffffu);
        }
        let size = bitcast<f32>(bits);
        let usable = bits < 0x7f800000u && size > 1.0e-30;
        let inverse = select(0.0, 127.0 / size, usable);
        var word = 0u;
        for (var k = 0u; k < 4u; k++) {
            let code = select(0, i32(round(result[4u * i + k] * inverse)), usable);
            word |= (bitcast<u32>(code) & 255u) << (8u * k);
        }
        words[i] = word;
    }
    workgroupBarrier();
    let groups = sizes.heads * (HEAD_DIM / 32u);
    for (var g = lane; g < HEAD_DIM / 32u; g += LANES) {
        var bits = 0u;
        for (var k = 0u; k < 32u; k++) {
            bits = max(bits, bitcast<u32>(result[g * 32u + k]) & 0x7fffffffu);
        }
        var scale = bitcast<u32>(bitcast<f32>(bits) / 127.0);
        if (bitcast<f32>(bits) <= 1.0e-30) {
            scale = 0u;
        }
        if (bits >= 0x7f800000u) {
            scale = 0x7fc00000u;
        }
        var sums = vec2<i32>(0);
        for (var k = 0u; k < 4u; k++) {
            sums += vec2<i32>(dot4I8Packed(words[8u * g + k], 0x01010101u), dot4I8Packed(words[8u * g + 4u + k], 0x01010101u));
        }
        let block = head * (HEAD_DIM / 32u) + g;
        let at = 2u * row * groups + block;
        codes[at] = vec4<u32>(words[8u * g], words[8u * g + 1u], words[8u * g + 2u], words[8u * g + 3u]);
        codes[at + groups] = vec4<u32>(words[8u * g + 4u], words[8u * g + 5u], words[8u * g + 6u], words[8u * g + 7u]);
        metas[row * groups + block] = vec2<u32>(scale, bitcast<u32>(sums.x & 0xffff) | (bitcast<u32>(sums.y) << 16u));
    }
    //#endif
}
