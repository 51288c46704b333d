// Where blocks of 64 positions lie, in words. `kind` says in which buffer and how: 0 in `pages`, 1 in `first_pages`, both
// in the layer's formats, 2 in `first_pages` as f16.
const KV_HEADS: u32 = $KV_HEADS$u;
const HEAD_DIM: u32 = $HEAD_DIM$u;

struct Block { k: u32, v: u32, kind: u32 }

// Block `block` (0..4) of page `index` of a sequence, which is page `page` of its pool.
fn block_of(page: u32, index: u32, kv_head: u32, block: u32) -> Block {
    let head = page * KV_HEADS + kv_head;
    //#if FIRST
    if (index == 0u) {
        let start = head * $FIRST_BLOCK_WORDS$u + head * 3u * $BLOCK_WORDS$u;
        //#if SINK
        if (block == 0u) {
            return Block(start, start + $SINK_K_WORDS$u, 2u);
        }
        //#endif
        let at = start + select($FIRST_BLOCK_WORDS$u + (block - 1u) * $BLOCK_WORDS$u, 0u, block == 0u);
        return Block(at, at + $K_WORDS$u, 1u);
    }
    //#endif
    let at = (4u * head + block) * $BLOCK_WORDS$u;
    return Block(at, at + $K_WORDS$u, 0u);
}
