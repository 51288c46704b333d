//#if K_PACKED
//#for g K_BATCH
{
    let g = sharer * $K_SHARE$u + k_batch * $K_BATCH$u + $g$u;
    //#if K_Q8
    let codes = k_block.k + $K_CODES$u + g * 512u + l;
    kd$g$ = $PAGES$[k_block.k + g * 32u + l];
    //#for n 8
    k$g$_even$n$ = $PAGES$[codes + $n$u * 64u];
    k$g$_odd$n$ = $PAGES$[codes + $n$u * 64u + 32u];
    //#endfor
    //#else
    let scales = k_block.k + g * 32u + l / 2u;
    let codes = k_block.k + $K_CODES$u + g * 256u + l;
    kx$g$ = $PAGES$[scales];
    ky$g$ = $PAGES$[scales + 16u];
    //#if K_ASYM
    kmx$g$ = $PAGES$[scales + $GROUPS$u * 32u];
    kmy$g$ = $PAGES$[scales + $GROUPS$u * 32u + 16u];
    //#endif
    //#for n 4
    k$g$_even$n$ = $PAGES$[codes + $n$u * 64u];
    k$g$_odd$n$ = $PAGES$[codes + $n$u * 64u + 32u];
    //#endfor
    //#endif
}
//#endfor
//#else
{
    let words = k_block.k + (sharer * $K_SHARE$u + k_batch * $K_BATCH$u) * 32u + l;
    //#for i K_BATCH
    k$i$ = $PAGES$[words + $i$u * 32u];
    //#endfor
}
//#endif
