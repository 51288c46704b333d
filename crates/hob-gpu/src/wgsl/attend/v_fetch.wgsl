{
    let own = ahead + crew / PARTS;
    v_block = Block(0u, 0u, 3u);
    if (own < stop && crew < BLOCKS * PARTS && lane < $V_USED$u) {
        v_block = block_at(table, first_block, own, kv_head);
        let vp = crew % PARTS;
        let v_batch = 0u;
        //#include v_loads
    }
    //#if V_PACKED
    //#for r ROUNDS
    {
        let task = $r$u * LANES + lane;
        let own = ahead + task / (4u * COLUMN_FOURS * $GROUPS$u);
        if (task < $TASKS$u && own < stop) {
            let block = block_at(table, first_block, own, kv_head);
            let scales = block.v + ((task / (4u * COLUMN_FOURS)) % $GROUPS$u) * 32u + 8u * ((task / COLUMN_FOURS) % 4u);
            if (block.kind == 0u) {
                //#for i 8
                vs$r$_$i$ = pages[scales + $i$u];
                //#endfor
            }
            //#if FIRST
            if (block.kind == 1u) {
                //#for i 8
                vs$r$_$i$ = first_pages[scales + $i$u];
                //#endfor
            }
            //#endif
        }
    }
    //#endfor
    //#endif
}
