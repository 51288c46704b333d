// What is loaded of V ahead: words of the first batch of a lane's part, and scales of what the lane weighs.
//#if V_AHEAD
//#if V_Q8
//#for i V_HALF_BATCH
var vc_even$i$ = 0u;
var vc_odd$i$ = 0u;
//#endfor
//#else
//#for i V_BATCH
var vc$i$ = 0u;
//#if V_NIBBLES
var vd$i$ = 0u;
//#endif
//#endfor
//#endif
//#if V_PACKED
//#for r ROUNDS
//#for i 8
var vs$r$_$i$ = 0u;
//#endfor
//#endfor
//#endif
//#endif
