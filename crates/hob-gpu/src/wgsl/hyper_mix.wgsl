// One workgroup mixes the streams of one row and writes how they are mixed again after the sublayer.
struct Sizes { dim: u32, eps: f32, iterations: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
//#if WEIGHTS
@group(0) @binding(1) var<storage, read_write> weights: array<f32>;
//#endif
@group(0) @binding($X$) var<storage, read> x: array<f32>;
@group(0) @binding($LOGITS$) var<storage, read> logits: array<f32>;
@group(0) @binding($BASE$) var<storage, read> base: array<f32>;
@group(0) @binding($SCALE$) var<storage, read> scale: array<f32>;

const N = $STREAMS$u;
const WIDE = $WIDE$u;
var<workgroup> pre: array<f32, N>;
//#if WEIGHTS
var<workgroup> comb: array<f32, $SQUARE$>;
//#endif

fn value(row: u32, i: u32, which: u32) -> f32 {
    return fma(logits[row * WIDE + i], scale[which], base[i]);
}

fn sigmoid(z: f32) -> f32 {
    return 1.0 / (1.0 + exp(clamp(-z, -87.0, 87.0)));
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x;
    if (lane < N) {
        pre[lane] = sigmoid(value(row, lane, 0u)) + sizes.eps;
        //#if WEIGHTS
        weights[row * N * (N + 1u) + lane] = 2.0 * sigmoid(value(row, N + lane, 1u));
        let first = 2u * N + lane * N;
        var most = value(row, first, 2u);
        for (var k = 1u; k < N; k++) {
            most = max(most, value(row, first + k, 2u));
        }
        var sum = 0.0;
        for (var k = 0u; k < N; k++) {
            let e = exp(value(row, first + k, 2u) - most);
            comb[lane * N + k] = e;
            sum += e;
        }
        for (var k = 0u; k < N; k++) {
            comb[lane * N + k] = comb[lane * N + k] / sum + sizes.eps;
        }
        //#endif
    }
    workgroupBarrier();
    //#if WEIGHTS
    for (var turn = 0u; turn < sizes.iterations; turn++) {
        if (turn > 0u && lane < N) {
            var sum = 0.0;
            for (var k = 0u; k < N; k++) {
                sum += comb[lane * N + k];
            }
            for (var k = 0u; k < N; k++) {
                comb[lane * N + k] /= sum + sizes.eps;
            }
        }
        workgroupBarrier();
        if (lane < N) {
            var sum = 0.0;
            for (var j = 0u; j < N; j++) {
                sum += comb[j * N + lane];
            }
            for (var j = 0u; j < N; j++) {
                comb[j * N + lane] /= sum + sizes.eps;
            }
        }
        workgroupBarrier();
    }
    if (lane < N * N) {
        weights[row * N * (N + 1u) + N + lane] = comb[lane];
    }
    //#endif
    for (var d = lane; d < sizes.dim; d += 256u) {
        let start = row * N * sizes.dim + d;
        var sum = pre[0] * x[start];
        for (var i = 1u; i < N; i++) {
            sum = fma(pre[i], x[start + i * sizes.dim], sum);
        }
        out[row * sizes.dim + d] = sum;
    }
}
