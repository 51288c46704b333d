// A lane scores one entry for one row: heads in groups of 16, whose queries lanes share piece by piece.
struct Sizes { arguments: u32, capacity: u32, top: u32, scale: f32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> scores: array<f32>;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> weights: array<f32>;
@group(0) @binding(3) var<storage, read> entries: array<f32>;
// Of every row: itself, its sequence's slot, and the entries it sees.
@group(0) @binding(4) var<storage, read> arguments: array<u32>;

const DIM = $DIM$u;
const HEADS = $HEADS$u;
const PIECE = 32u;

var<workgroup> queries: array<f32, 512>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let item = sizes.arguments + 3u * group.y;
    let row = arguments[item];
    let seen = arguments[item + 2u];
    // All are selected then.
    if (seen <= sizes.top || group.x * 64u >= seen) {
        return;
    }
    let e = group.x * 64u + lane;
    let start = (arguments[item + 1u] * sizes.capacity + min(e, seen - 1u)) * DIM;
    var sum = 0.0;
    for (var head = 0u; head < HEADS; head += 16u) {
        //#for h 16
        var acc$h$ = 0.0;
        //#endfor
        for (var first = 0u; first < DIM; first += PIECE) {
            for (var i = lane; i < 512u; i += 64u) {
                let h = head + i / PIECE;
                let d = first + i % PIECE;
                var value = 0.0;
                if (h < HEADS && d < DIM) {
                    value = q[(row * HEADS + h) * DIM + d];
                }
                queries[i] = value;
            }
            workgroupBarrier();
            for (var i = 0u; i < min(PIECE, DIM - first); i++) {
                let value = entries[start + first + i];
                //#for h 16
                acc$h$ = fma(queries[$h$u * PIECE + i], value, acc$h$);
                //#endfor
            }
            workgroupBarrier();
        }
        //#for h 16
        if (head + $h$u < HEADS) {
            sum = fma(weights[row * HEADS + head + $h$u], max(acc$h$, 0.0), sum);
        }
        //#endfor
    }
    if (e < seen) {
        scores[group.y * sizes.capacity + e] = sum * sizes.scale;
    }
}
