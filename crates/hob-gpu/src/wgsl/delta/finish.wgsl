// The norm and the gate of a head's output, in place: one workgroup per head and row.
struct Sizes { rows: u32, eps: f32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read> z: array<f32>;
@group(0) @binding(2) var<storage, read> norm: array<f32>;
@group(0) @binding(3) var<storage, read> arguments: array<u32>;

const DV = $VALUE_DIM$u;
const LANES = 64u;

var<workgroup> sums: array<f32, LANES>;

//#include gates

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = (arguments[sizes.rows + group.y] * groups.x + group.x) * DV;
    var sum = 0.0;
    for (var c = lane; c < DV; c += LANES) {
        let o = out[start + c];
        sum = fma(o, o, sum);
    }
    sums[lane] = sum;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            sums[lane] += sums[lane + half];
        }
        workgroupBarrier();
    }
    let r = 1.0 / sqrt(sums[0] / f32(DV) + sizes.eps);
    for (var c = lane; c < DV; c += LANES) {
        let gate = z[start + c];
        out[start + c] = out[start + c] * r * norm[c] * gate * sigmoid(gate);
    }
}
