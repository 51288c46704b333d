// What stands between the products of a latent attention and its pages: a workgroup has a head's query of a row, or behind
// the last head the row's latent and key.
struct Sizes { heads: u32, rank: u32, rotary: u32, positions: u32, magnitude: f32, eps: f32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> q: array<f32>;
@group(0) @binding(1) var<storage, read_write> k: array<f32>;
@group(0) @binding(2) var<storage, read> wide: array<f32>;
@group(0) @binding(3) var<storage, read> rotated: array<f32>;
@group(0) @binding(4) var<storage, read> latent: array<f32>;
@group(0) @binding(5) var<storage, read> key: array<f32>;
@group(0) @binding(6) var<storage, read> weight: array<f32>;
//#if ROTATES
@group(0) @binding(7) var<storage, read> freqs: array<f32>;
@group(0) @binding(8) var<storage, read> arguments: array<u32>;
//#endif

//#if ROTATES
//#include rope_angle
//#endif

var<workgroup> squares: array<f32, 128>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.y;
    let head = group.x;
    let is_key = head == sizes.heads;
    let width = sizes.rank + sizes.rotary;
    let query = row * sizes.heads + head;
    if (is_key) {
        var sum = 0.0;
        for (var i = lane; i < sizes.rank; i += 128u) {
            let x = latent[row * sizes.rank + i];
            sum = fma(x, x, sum);
        }
        squares[lane] = sum;
    }
    for (var reach = 64u; reach > 0u; reach /= 2u) {
        workgroupBarrier();
        if (is_key && lane < reach) {
            squares[lane] += squares[lane + reach];
        }
    }
    workgroupBarrier();
    if (is_key) {
        let r = 1.0 / sqrt(squares[0] / f32(sizes.rank) + sizes.eps);
        for (var i = lane; i < sizes.rank; i += 128u) {
            k[row * width + i] = latent[row * sizes.rank + i] * r * weight[i];
        }
    } else {
        for (var i = lane; i < sizes.rank; i += 128u) {
            q[query * width + i] = wide[query * sizes.rank + i];
        }
    }
    //#if ROTATES
    let half_ = sizes.rotary / 2u;
    for (var pair = lane; pair < half_; pair += 128u) {
        //#if INTERLEAVED
        let a = 2u * pair;
        let b = 2u * pair + 1u;
        //#else
        let a = pair;
        let b = pair + half_;
        //#endif
        let turn = rope_angle(arguments[sizes.positions + row], freqs[pair]) * sizes.magnitude;
        if (is_key) {
            let x = key[row * sizes.rotary + a];
            let y = key[row * sizes.rotary + b];
            k[row * width + sizes.rank + a] = fma(x, turn.x, -(y * turn.y));
            k[row * width + sizes.rank + b] = fma(y, turn.x, x * turn.y);
        } else {
            let x = rotated[query * sizes.rotary + a];
            let y = rotated[query * sizes.rotary + b];
            q[query * width + sizes.rank + a] = fma(x, turn.x, -(y * turn.y));
            q[query * width + sizes.rank + b] = fma(y, turn.x, x * turn.y);
        }
    }
    //#else
    for (var i = lane; i < sizes.rotary; i += 128u) {
        if (is_key) {
            k[row * width + sizes.rank + i] = key[row * sizes.rotary + i];
        } else {
            q[query * width + sizes.rank + i] = rotated[query * sizes.rotary + i];
        }
    }
    //#endif
}
