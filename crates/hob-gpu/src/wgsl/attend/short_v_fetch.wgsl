// Words of V of eight positions and a lane's two dimensions: see hob_compute::page for where words lie.
//#if V_PACKED
//#for n 4
v_a$n$ = $PAGES$[block.v + (da / 32u) * 32u + 4u * octet + $n$u];
//#if V_Q8
v_b$n$ = $PAGES$[block.v + $V_CODES$u + 4u * octet * V_LANES + u + $n$u * V_LANES];
//#endif
//#if V_ASYM
v_b$n$ = $PAGES$[block.v + (da / 32u) * 32u + 4u * octet + $GROUPS$u * 32u + $n$u];
//#endif
//#endfor
//#if V_NIBBLES
v_a4 = $PAGES$[block.v + $V_CODES$u + octet * HEAD_DIM + da];
v_a5 = $PAGES$[block.v + $V_CODES$u + octet * HEAD_DIM + db];
//#endif
//#else
//#for n 8
//#if V_F32
v_a$n$ = $PAGES$[block.v + (8u * octet + $n$u) * HEAD_DIM + da];
v_b$n$ = $PAGES$[block.v + (8u * octet + $n$u) * HEAD_DIM + db];
//#else
v_a$n$ = $PAGES$[block.v + ((8u * octet + $n$u) * HEAD_DIM + da) / 2u];
//#if SPREAD
v_b$n$ = $PAGES$[block.v + ((8u * octet + $n$u) * HEAD_DIM + db) / 2u];
//#endif
//#endif
//#endfor
//#endif
