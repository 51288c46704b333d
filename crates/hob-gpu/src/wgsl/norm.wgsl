// One workgroup norms one group of `cols` floats, which its lanes keep in registers, and writes the forms that are
// asked for.
//#if HALF_FORM
// The f16 form is written in pairs, so it needs no f16 in the language.
//#endif
struct Sizes { cols: u32, eps: f32, count: u32, half_stride: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<$TYPE$>;
@group(0) @binding(1) var<storage, read> weight: array<$TYPE$>;
//#if !IN_PLACE
@group(0) @binding($X$) var<storage, read> x: array<$TYPE$>;
//#endif
//#if INT8_FORM
@group(0) @binding($CODES$) var<storage, read_write> codes: array<u32>;
@group(0) @binding($META$) var<storage, read_write> meta_: array<vec2<u32>>;
// Of every four values: the largest magnitude, as bits; the sum of their codes.
var<workgroup> largest: array<u32, PIECES>;
var<workgroup> sums: array<i32, PIECES>;
//#endif
//#if HALF_FORM
@group(0) @binding($HALF$) var<storage, read_write> half_: array<vec2<u32>>;
//#endif

const LANES = $LANES$u;
// Values (or vectors of 4) of a lane.
const EACH = $EACH$u;
const PIECES = $PIECES$u;

var<workgroup> partial: array<f32, LANES>;

//#if SUBGROUPS
fn total(sum: f32, lane: u32, subgroup: u32, subgroups: u32, at: u32, size: u32) -> f32 {
    let mine = subgroupAdd(sum);
    if (at == 0u) {
        partial[subgroup] = mine;
    }
    workgroupBarrier();
    var rest = 0.0;
    for (var i = at; i < subgroups; i += size) {
        rest += partial[i];
    }
    return subgroupAdd(rest);
}
//#else
fn total(sum: f32, lane: u32) -> f32 {
    partial[lane] = sum;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            partial[lane] += partial[lane + half];
        }
        workgroupBarrier();
    }
    return partial[0];
}
//#endif

@compute @workgroup_size($LANES$)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    //#if SUBGROUPS
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) at: u32,
    @builtin(subgroup_size) size: u32,
    //#endif
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    if (row >= sizes.count) {
        return;
    }
    let start = row * sizes.cols;
    var v: array<$TYPE$, EACH>;
    var w: array<$TYPE$, EACH>;
    var sum = 0.0;
    for (var j = 0u; j < EACH; j++) {
        let i = lane + j * LANES;
        if (i < sizes.cols) {
            //#if IN_PLACE
            v[j] = out[start + i];
            //#else
            v[j] = x[start + i];
            //#endif
            w[j] = weight[i];
        }
        //#if VECTORS
        sum += dot(v[j], v[j]);
        //#else
        sum = fma(v[j], v[j], sum);
        //#endif
    }
    //#if SUBGROUPS
    let all = total(sum, lane, subgroup, subgroups, at, size);
    //#else
    let all = total(sum, lane);
    //#endif
    let r = 1.0 / sqrt(all / f32(sizes.cols * $WIDE$u) + sizes.eps);
    for (var j = 0u; j < EACH; j++) {
        let i = lane + j * LANES;
        v[j] = v[j] * r * w[j];
        if (i < sizes.cols) {
            out[start + i] = v[j];
            //#if HALF_FORM
            let finite = clamp(v[j], vec4<f32>(-65504.0), vec4<f32>(65504.0));
            half_[row * sizes.half_stride + i] = vec2<u32>(pack2x16float(finite.xy), pack2x16float(finite.zw));
            //#endif
        }
        //#if INT8_FORM
        // As bits, NaN is larger than any number.
        let bits = bitcast<vec4<u32>>(v[j]) & vec4<u32>(0x7fffffffu);
        largest[i] = max(max(bits.x, bits.y), max(bits.z, bits.w));
        //#endif
    }
    //#if INT8_FORM
    workgroupBarrier();
    let blocks = sizes.cols / 8u;
    for (var j = 0u; j < EACH; j++) {
        let i = lane + j * LANES;
        var most = 0u;
        for (var k = 0u; k < 8u; k++) {
            most = max(most, largest[(i & ~7u) + k]);
        }
        let usable = most < 0x7f800000u && bitcast<f32>(most) > 1e-30;
        let q = vec4<i32>(round(select(v[j] * (127.0 / bitcast<f32>(most)), vec4<f32>(0.0), !usable)));
        sums[i] = q.x + q.y + q.z + q.w;
        if (i < sizes.cols) {
            let at_word = ((i / 4u % 2u) * blocks + i / 8u) * 4u + i % 4u;
            codes[row * sizes.cols + at_word] = pack4xI8(q);
        }
    }
    workgroupBarrier();
    for (var j = 0u; j < EACH; j++) {
        let i = lane + j * LANES;
        if (i % 8u == 0u && i < sizes.cols) {
            var most = 0u;
            for (var k = 0u; k < 8u; k++) {
                most = max(most, largest[i + k]);
            }
            let low = sums[i] + sums[i + 1u] + sums[i + 2u] + sums[i + 3u];
            let high = sums[i + 4u] + sums[i + 5u] + sums[i + 6u] + sums[i + 7u];
            var scale = 0x7fc00000u;
            if (most < 0x7f800000u) {
                scale = select(0u, bitcast<u32>(bitcast<f32>(most) / 127.0), bitcast<f32>(most) > 1e-30);
            }
            let both = (bitcast<u32>(low) & 0xffffu) | (bitcast<u32>(high) << 16u);
            meta_[row * blocks + i / 8u] = vec2<u32>(scale, both);
        }
    }
    //#endif
}
