// A share's first unit, for one kind of block.
if (block.kind == $KIND$u) {
    let unit = sharer * ($K_UNITS$u / sharers);
    //#include k_fetch
}
