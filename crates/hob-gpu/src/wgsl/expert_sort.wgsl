// Groups the (row, expert) pairs of a slab by expert and cuts them into tiles of pairs of one expert, in one workgroup.
struct Sizes { first_pair: u32, pairs: u32, top_k: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read> routes: array<f32>;
// Pairs of the slab by expert.
@group(0) @binding(1) var<storage, read_write> order: array<u32>;
// The number of tiles; then of every tile: expert, first place in `order`, pairs.
@group(0) @binding(2) var<storage, read_write> tiles: array<vec4<u32>>;

const EXPERTS = $EXPERTS$u;
const TILE = $TILE$u;
const LANES = $LANES$u;
var<workgroup> counts: array<atomic<u32>, EXPERTS>;
// Pairs, and tiles, of all experts before one.
var<workgroup> pairs_before: array<u32, EXPERTS + 1u>;
var<workgroup> tiles_before: array<u32, EXPERTS + 1u>;

fn expert_of(pair: u32) -> u32 {
    let at = sizes.first_pair + pair;
    return min(u32(routes[(at / sizes.top_k) * 2u * sizes.top_k + at % sizes.top_k]), EXPERTS - 1u);
}

@compute @workgroup_size($LANES$)
fn main(@builtin(local_invocation_index) lane: u32) {
    for (var e = lane; e < EXPERTS; e += LANES) {
        atomicStore(&counts[e], 0u);
    }
    workgroupBarrier();
    for (var p = lane; p < sizes.pairs; p += LANES) {
        atomicAdd(&counts[expert_of(p)], 1u);
    }
    workgroupBarrier();
    if (lane == 0u) {
        var at = 0u;
        var tile = 0u;
        for (var e = 0u; e < EXPERTS; e++) {
            pairs_before[e] = at;
            tiles_before[e] = tile;
            let count = atomicLoad(&counts[e]);
            at += count;
            tile += (count + TILE - 1u) / TILE;
        }
        pairs_before[EXPERTS] = at;
        tiles_before[EXPERTS] = tile;
        tiles[0] = vec4<u32>(tile, 0u, 0u, 0u);
    }
    workgroupBarrier();
    for (var e = lane; e < EXPERTS; e += LANES) {
        let end = pairs_before[e + 1u];
        var at = pairs_before[e];
        // From here on: where the expert's next pair goes.
        atomicStore(&counts[e], at);
        for (var tile = tiles_before[e]; tile < tiles_before[e + 1u]; tile++) {
            tiles[tile + 1u] = vec4<u32>(e, at, min(TILE, end - at), 0u);
            at += TILE;
        }
    }
    workgroupBarrier();
    for (var p = lane; p < sizes.pairs; p += LANES) {
        order[atomicAdd(&counts[expert_of(p)], 1u)] = p;
    }
}
