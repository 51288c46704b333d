// One workgroup stores K and V of one KV head at those rows of a sequence that lie in one aligned eight of positions.
struct Sizes { items: u32, seqs: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> pages: array<u32>;
@group(0) @binding(1) var<storage, read> arguments: array<u32>;
@group(0) @binding(2) var<storage, read> k_rows: array<f32>;
//#if VALUES
@group(0) @binding(3) var<storage, read> v_rows: array<f32>;
//#endif
//#if FIRST
@group(0) @binding(4) var<storage, read_write> first_pages: array<u32>;
//#endif

//#include pages
//#include encode

// Positions that are in workgroup memory at once.
const ROWS = $ROWS$u;

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
    for (var base = 0u; base < 8u; base += ROWS) {
        let here = valid & (((1u << ROWS) - 1u) << base);
        load(false, start + base, here >> base, group.y, lane);
        //#if K_ROTATED
        rotate_fresh(lane);
        //#endif
        pack_k(block, 0u, lane);
        keep_k(block, eight % 8u, base, here, 0u, lane);
        workgroupBarrier();
        //#if VALUES
        load(true, start + base, here >> base, group.y, lane);
        //#if V_ROTATED
        rotate_fresh(lane);
        //#endif
        pack_v(block, 0u, lane);
        keep_v(block, eight % 8u, base, here, 0u, lane);
        workgroupBarrier();
        //#endif
    }
}

// Makes `fresh` the rows from `start` on (modulo 2^32), as far as they are valid, of K or of V.
fn load(values: bool, start: u32, valid: u32, kv_head: u32, lane: u32) {
    for (var i = lane; i < ROWS * HEAD_DIM; i += $LANES$u) {
        let r = i / HEAD_DIM;
        var x = 0.0;
        if (((valid >> r) & 1u) == 1u) {
            let at = ((start + r) * KV_HEADS + kv_head) * HEAD_DIM + i % HEAD_DIM;
            //#if VALUES
            if (values) {
                x = v_rows[at];
            } else {
                x = k_rows[at];
            }
            //#else
            x = k_rows[at];
            //#endif
        }
        fresh[i] = x;
    }
    workgroupBarrier();
}
