{
    let own = ahead + k_own;
    k_block = Block(0u, 0u, 3u);
    if (own < stop) {
        k_block = block_at(table, first_block, own, kv_head);
        let k_batch = 0u;
        //#include k_loads
    }
}
