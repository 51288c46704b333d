// A team of lanes multiplies $ROWS$ weight rows of each product that $NAME$ stands for with all columns: what is read of
// the input serves all of them.
fn product_$NAME$(first: u32, slot: u32, team_lane: u32) {
    //#for m MOST
    //#if IN_$m$
    //#for r ROWS
    let row_$m$_$r$ = min(first + $r$u, sizes.rows_$m$ - 1u) + sizes.at_$m$;
    //#for c COLUMNS
    var acc_$m$_$r$_$c$ = 0.0;
    //#endfor
    //#endfor
    //#endif
    //#endfor
    var b = team_lane;
    //#if WHOLE_TURNS
    for (var turn = 0u; turn < $TURNS$u; turn++) {
    //#else
    while (b < $COUNT$u) {
    //#endif
        // All weights first: they come from afar.
        //#for m MOST
        //#if IN_$m$
        //#for r ROWS
        //#if FLOATS
        let w_$m$_$r$ = piece_$m$(row_$m$_$r$, BLOCKS, b);
        //#else
        //#if EXACT
        let w_$m$_$r$ = weights_$m$(row_$m$_$r$, BLOCKS, b);
        //#else
        let w_$m$_$r$ = codes_$m$(row_$m$_$r$, BLOCKS, b);
        let s_$m$_$r$ = scales_$m$(row_$m$_$r$, BLOCKS, b);
        //#endif
        //#endif
        //#endfor
        //#endif
        //#endfor
        //#for c COLUMNS
        {
            //#include column
        }
        //#endfor
        b += TEAM;
    }
    //#include puts
}
