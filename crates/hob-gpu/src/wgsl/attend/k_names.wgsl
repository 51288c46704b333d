// What is loaded of K ahead: words of the first batch of a lane's share of a block.
//#if K_AHEAD
//#if K_PACKED
//#for g K_BATCH
//#if K_Q8
var kd$g$ = 0u;
//#for n 8
var k$g$_even$n$ = 0u;
var k$g$_odd$n$ = 0u;
//#endfor
//#else
var kx$g$ = 0u;
var ky$g$ = 0u;
//#if K_ASYM
var kmx$g$ = 0u;
var kmy$g$ = 0u;
//#endif
//#for n 4
var k$g$_even$n$ = 0u;
var k$g$_odd$n$ = 0u;
//#endfor
//#endif
//#endfor
//#else
//#for i K_BATCH
var k$i$ = 0u;
//#endfor
//#endif
//#endif
