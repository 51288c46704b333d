{
    //#if V_Q8
    // Words of two positions and two dimensions.
    let words = v_block.v + $V_CODES$u + (vp * (32u / PARTS) + v_batch * $V_BATCH$u) * $V_LANES$u + u;
    //#for i V_HALF_BATCH
    vc_even$i$ = $PAGES$[words + 2u * $i$u * $V_LANES$u];
    vc_odd$i$ = $PAGES$[words + (2u * $i$u + 1u) * $V_LANES$u];
    //#endfor
    //#endif
    //#if V_NIBBLES
    // Words of eight positions.
    let words = v_block.v + $V_CODES$u + (vp * (8u / PARTS) + v_batch * $V_BATCH$u) * HEAD_DIM + da;
    //#for i V_BATCH
    vc$i$ = $PAGES$[words + $i$u * HEAD_DIM];
    vd$i$ = $PAGES$[words + $i$u * HEAD_DIM + 16u];
    //#endfor
    //#endif
    //#if !V_PACKED
    let words = v_block.v + (vp * (64u / PARTS) + v_batch * $V_BATCH$u) * $V_LANES$u + u;
    //#for i V_BATCH
    vc$i$ = $PAGES$[words + $i$u * $V_LANES$u];
    //#endfor
    //#endif
}
