// The first eight positions, for one kind of block.
if (block.kind == $KIND$u) {
    //#include v_fetch
}
