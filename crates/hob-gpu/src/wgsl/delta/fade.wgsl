// How the channels of a head fade within a chunk, one workgroup per head and chunk, a lane per channel: running sums of log
// decay, what stays of the state until each row, and what stays of each row until the end. Rows behind the last do not
// fade.
struct Sizes { chunks: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> fades: array<f32>;
@group(0) @binding(1) var<storage, read> decay: array<f32>;
@group(0) @binding(2) var<storage, read> rate: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
// Of every chunk: first row, rows.
@group(0) @binding(4) var<storage, read> arguments: array<u32>;

const HEADS = $VALUE_HEADS$u;
const DK = $KEY_DIM$u;
const ROWS = 64u;

//#include gates

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let h = group.x;
    let row = arguments[sizes.chunks + 2u * group.y];
    let rows = arguments[sizes.chunks + 2u * group.y + 1u];
    let to = (group.y * HEADS + h) * 3u * ROWS * DK;
    for (var d = lane; d < DK; d += 64u) {
        let of_d = h * DK + d;
        var sum = 0.0;
        for (var i = 0u; i < ROWS; i++) {
            if (i < rows) {
                sum += rate[h] * softplus(decay[(row + i) * HEADS * DK + of_d] + bias[of_d]);
            }
            fades[to + i * DK + d] = sum;
            fades[to + (ROWS + i) * DK + d] = exp(max(sum, -87.0));
        }
        for (var i = 0u; i < ROWS; i++) {
            // A lane reads what it wrote.
            fades[to + (2u * ROWS + i) * DK + d] = exp(clamp(sum - fades[to + i * DK + d], -87.0, 0.0));
        }
    }
}
