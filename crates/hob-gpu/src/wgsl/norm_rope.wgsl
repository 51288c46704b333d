// RMS norm of every head, then its rotation, in place: a workgroup has every `shares`-th few heads of a row, a lane one
// pair of dimensions of each, four heads at a time. All of a head rotates, and its pairs are a power of two, at most 128.
struct Sizes {
    rows: u32, heads: u32, half_: u32, positions: u32,
    magnitude: f32, shares: u32, eps: f32,
}
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read> freqs: array<f32>;
@group(0) @binding(2) var<storage, read> arguments: array<u32>;
@group(0) @binding(3) var<storage, read> weight: array<f32>;

var<workgroup> squares: array<vec4<f32>, 128>;

//#include rope_angle

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = group.y * groups.x + group.x;
    let row = at / sizes.shares;
    if (row >= sizes.rows) {
        return;
    }
    let half_ = sizes.half_;
    let pair = lane % half_;
    //#if INTERLEAVED
    let dims = vec2(2u * pair, 2u * pair + 1u);
    //#else
    let dims = vec2(pair, pair + half_);
    //#endif
    let w = vec2(weight[dims.x], weight[dims.y]);
    let turn = rope_angle(arguments[sizes.positions + row], freqs[pair]) * sizes.magnitude;
    // Heads side by side, and from one of a lane to its next.
    let beside = 128u / half_;
    let stride = beside * sizes.shares;
    for (var first = at % sizes.shares * beside; first < sizes.heads; first += 4u * stride) {
        let heads = vec4(first + lane / half_) + vec4(0u, 1u, 2u, 3u) * stride;
        let starts = (row * sizes.heads + min(heads, vec4(sizes.heads - 1u))) * (2u * half_);
        var a = vec4(0.0);
        var b = vec4(0.0);
        for (var i = 0u; i < 4u; i++) {
            a[i] = x[starts[i] + dims.x];
            b[i] = x[starts[i] + dims.y];
        }
        squares[lane] = a * a + b * b;
        for (var reach = half_ / 2u; reach > 0u; reach /= 2u) {
            workgroupBarrier();
            if (pair < reach) {
                squares[lane] += squares[lane + reach];
            }
        }
        workgroupBarrier();
        let r = 1.0 / sqrt(squares[lane - pair] / f32(2u * half_) + sizes.eps);
        workgroupBarrier();
        a = a * r * w.x;
        b = b * r * w.y;
        for (var i = 0u; i < 4u; i++) {
            if (heads[i] < sizes.heads) {
                x[starts[i] + dims.x] = fma(a[i], turn.x, -(b[i] * turn.y));
                x[starts[i] + dims.y] = fma(b[i], turn.x, a[i] * turn.y);
            }
        }
    }
}
