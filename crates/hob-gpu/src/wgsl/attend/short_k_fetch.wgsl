// Words of K of a block's two positions and a unit of dimensions: see hob_compute::page for where words lie.
//#if K_PACKED
//#if K_Q8
k_b0 = $PAGES$[block.k + unit * 32u + l];
//#for n 16
k_a$n$ = $PAGES$[block.k + $K_CODES$u + unit * 512u + l + $n$u * 32u];
//#endfor
//#else
k_c0 = $PAGES$[block.k + unit * 32u + l / 2u];
k_c1 = $PAGES$[block.k + unit * 32u + l / 2u + 16u];
//#if K_ASYM
k_c2 = $PAGES$[block.k + unit * 32u + l / 2u + $GROUPS$u * 32u];
k_c3 = $PAGES$[block.k + unit * 32u + l / 2u + $GROUPS$u * 32u + 16u];
//#endif
//#for n 4
k_a$n$ = $PAGES$[block.k + $K_CODES$u + unit * 256u + l + $n$u * 64u];
k_b$n$ = $PAGES$[block.k + $K_CODES$u + unit * 256u + l + $n$u * 64u + 32u];
//#endfor
//#endif
//#else
//#for n K_UNIT
//#if K_F32
k_a$n$ = $PAGES$[block.k + ($K_UNIT$u * unit + $n$u) * 64u + 2u * l];
k_b$n$ = $PAGES$[block.k + ($K_UNIT$u * unit + $n$u) * 64u + 2u * l + 1u];
//#else
k_a$n$ = $PAGES$[block.k + ($K_UNIT$u * unit + $n$u) * 32u + l];
//#endif
//#endfor
//#endif
