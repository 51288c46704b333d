// Copies the first positions of a page: one workgroup per KV head and block.
//#if MAIN
struct Sizes { from_: u32, to: u32, index: u32, positions: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> pages: array<u32>;
//#if !SAME
@group(0) @binding(1) var<storage, read> others: array<u32>;
//#endif

//#include pages

// The bits of a word whose halves are positions 2 pair and 2 pair + 1, of which `count` positions count.
fn halves(pair: u32, count: u32) -> u32 {
    return select(0u, 0xffffu, 2u * pair < count) | select(0u, 0xffff0000u, 2u * pair + 1u < count);
}

fn copy_word(from_: u32, to: u32, mask: u32) {
    if (mask != 0u) {
        //#if SAME
        let word = pages[from_];
        //#else
        let word = others[from_];
        //#endif
        pages[to] = (pages[to] & ~mask) | (word & mask);
    }
}

//#include kinds

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let start = 64u * group.y;
    if (start < sizes.positions) {
        let count = min(sizes.positions - start, 64u);
        let a = block_of(sizes.from_, sizes.index, group.x, group.y);
        let b = block_of(sizes.to, sizes.index, group.x, group.y);
        //#include calls
    }
}
//#endif
//#if KIND_OF
// The bits of word `word` of a K part that belong to its first `count` positions.
fn k_mask_$KIND$(word: u32, count: u32) -> u32 {
    //#if K_F32
    return select(0u, 0xffffffffu, word % 64u < count);
    //#endif
    //#if K_NIBBLES
    if (word >= $K_CODES$u) {
        return select(0u, 0xffffffffu, (word - $K_CODES$u) % 64u < count);
    }
    //#endif
    //#if !K_F32
    return halves(word % 32u, count);
    //#endif
}

fn v_mask_$KIND$(word: u32, count: u32) -> u32 {
    //#if V_F32
    return select(0u, 0xffffffffu, word / $HEAD_DIM$u < count);
    //#endif
    //#if V_F16
    return select(0u, 0xffffffffu, 2u * word / $HEAD_DIM$u < count);
    //#endif
    //#if V_BF16
    return select(0u, 0xffffffffu, 2u * word / $HEAD_DIM$u < count);
    //#endif
    //#if V_Q8
    if (word >= $V_CODES$u) {
        let mask = halves(2u * (word - $V_CODES$u) / $HEAD_DIM$u, count);
        return ((mask & 0xffu) | ((mask >> 8u) & 0xff00u)) * 0x10001u;
    }
    //#endif
    //#if V_NIBBLES
    if (word >= $V_CODES$u) {
        var mask = 0u;
        for (var k = 0u; k < 8u; k++) {
            let on = 8u * ((word - $V_CODES$u) / $HEAD_DIM$u) + k < count;
            mask |= select(0u, 15u << (8u * (k & 3u) + 4u * (k >> 2u)), on);
        }
        return mask;
    }
    //#endif
    //#if V_PACKED
    return halves(word % 32u, count);
    //#endif
}

fn copy_$KIND$(a: Block, b: Block, count: u32, lane: u32) {
    for (var i = lane; i < $K_WORDS$u; i += 64u) {
        copy_word(a.k + i, b.k + i, k_mask_$KIND$(i, count));
    }
    for (var i = lane; i < $V_WORDS$u; i += 64u) {
        copy_word(a.v + i, b.v + i, v_mask_$KIND$(i, count));
    }
}
//#endif
