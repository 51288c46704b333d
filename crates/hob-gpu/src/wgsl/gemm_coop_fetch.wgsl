// A block of weight $W$ on its way to workgroup memory.
fn fetch_$W$(row: u32, block: u32) -> Raw {
    //#if TAIL
    if (block >= sizes.blocks) {
        return Raw();
    }
    //#endif
    //#if FLOATS
    let w = weights_$W$(row, sizes.blocks, block);
    return Raw(array(finite(w[0]), finite(w[1]), finite(w[2]), finite(w[3]), finite(w[4]), finite(w[5]), finite(w[6]), finite(w[7])));
    //#else
    let codes = codes_$W$(row, sizes.blocks, block);
    let scales = scales_$W$(row, sizes.blocks, block);
    return Raw(codes.lo, codes.hi, scales.s, scales.m - f32(1152 + OFFSET_$W$) * scales.s);
    //#endif
}
