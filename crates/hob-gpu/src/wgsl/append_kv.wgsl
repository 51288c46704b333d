// One workgroup stores K and V of one KV head at those rows of a sequence that lie in one aligned eight of positions.
struct Sizes { items: u32, seqs: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> pages: array<u32>;
@group(0) @binding(1) var<storage, read> arguments: array<u32>;
@group(0) @binding(2) var<storage, read> k_rows: array<f32>;
@group(0) @binding(3) var<storage, read> v_rows: array<f32>;
//#if FIRST
@group(0) @binding(4) var<storage, read_write> first_pages: array<u32>;
//#endif

//#include pages
//#include encode

@compute @workgroup_size($LANES$)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let item = sizes.items + 2u * group.x;
    let seq = sizes.seqs + 4u * arguments[item];
    let eight = arguments[item + 1u];
    let row = arguments[seq];
    let rows = arguments[seq + 1u];
    let position = arguments[seq + 2u];
    let index = eight / 32u;
    let page = arguments[sizes.seqs + arguments[seq + 3u] + index];
    let block = block_of(page, index, group.y, (eight / 8u) % 4u);
    var valid = 0u;
    for (var i = 0u; i < 8u; i++) {
        let p = 8u * eight + i;
        valid |= select(0u, 1u << i, p >= position && p < position + rows);
    }
    // Row of position 0 of the eight, modulo 2^32.
    let start = row + 8u * eight - position;
    for (var i = lane; i < 8u * HEAD_DIM; i += $LANES$u) {
        let r = i / HEAD_DIM;
        var x = 0.0;
        if (((valid >> r) & 1u) == 1u) {
            x = k_rows[((start + r) * KV_HEADS + group.y) * HEAD_DIM + i % HEAD_DIM];
        }
        fresh[i] = x;
    }
    workgroupBarrier();
    //#if K_ROTATED
    rotate_fresh(lane);
    //#endif
    pack_k(block, 0u, lane);
    keep_k(block, eight % 8u, 0u, valid, 0u, lane);
    workgroupBarrier();
    for (var i = lane; i < 8u * HEAD_DIM; i += $LANES$u) {
        let r = i / HEAD_DIM;
        var x = 0.0;
        if (((valid >> r) & 1u) == 1u) {
            x = v_rows[((start + r) * KV_HEADS + group.y) * HEAD_DIM + i % HEAD_DIM];
        }
        fresh[i] = x;
    }
    workgroupBarrier();
    //#if V_ROTATED
    rotate_fresh(lane);
    //#endif
    pack_v(block, 0u, lane);
    keep_v(block, eight % 8u, 0u, valid, 0u, lane);
}
