// A team of lanes multiplies $ROWS$ weight rows of each product that $NAME$ stands for with all columns: what is read of
// the input serves all of them.
fn product_$NAME$(first: u32, slot: u32, team_lane: u32) {
    //#for m MOST
    //#if IN_$m$
    //#for q BATCHES
    //#for r BATCH
    let row_$m$_$q$_$r$ = min(first + $q$u * $BATCH$u + $r$u, sizes.rows_$m$ - 1u) + sizes.at_$m$;
    //#for c COLUMNS
    var acc_$m$_$q$_$r$_$c$ = 0.0;
    //#endfor
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
        // A batch's weights first: they come from afar.
        //#for q BATCHES
        {
        //#for m MOST
        //#if IN_$m$
        //#for r BATCH
        //#if FLOATS
        let w_$m$_$r$ = piece_$m$(row_$m$_$q$_$r$, BLOCKS, b);
        //#else
        //#if EXACT
        let w_$m$_$r$ = weights_$m$(row_$m$_$q$_$r$, BLOCKS, b);
        //#else
        let w_$m$_$r$ = codes_$m$(row_$m$_$q$_$r$, BLOCKS, b);
        let s_$m$_$r$ = scales_$m$(row_$m$_$q$_$r$, BLOCKS, b);
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
        }
        //#endfor
        b += TEAM;
    }
    //#include puts
}
