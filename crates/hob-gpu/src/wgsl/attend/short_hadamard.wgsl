// The Hadamard transform of the rows in `rotated`: see hob_quant::hadamard. Neighbours within a subgroup ask each other.
//#if SUBGROUPS
for (var stride = 1u; stride < $NEAR$u; stride *= 2u) {
    //#for i TURNS
    {
        let other = subgroupShuffleXor(x$i$, stride);
        x$i$ = select(x$i$, select(x$i$ + other, other - x$i$, (d$i$ & stride) != 0u), rotated);
    }
    //#endfor
}
//#endif
// Every other step goes through the other half of the memory.
var flip = WIDE;
for (var stride = $NEAR$u; stride < $SPAN$u; stride *= 2u) {
    //#for i TURNS
    if (d$i$ < WIDE) {
        stage[flip + d$i$] = x$i$;
    }
    //#endfor
    workgroupBarrier();
    //#for i TURNS
    {
        let other = stage[flip + (min(d$i$, WIDE - 1u) ^ stride)];
        x$i$ = select(x$i$, select(x$i$ + other, other - x$i$, (d$i$ & stride) != 0u), rotated);
    }
    //#endfor
    flip = WIDE - flip;
}
//#for i TURNS
x$i$ = select(x$i$, x$i$ * $SPAN_FACTOR$, rotated);
//#endfor
