// Product $S$ of `few.wgsl`: a team of lanes multiplies a few weight rows with all columns.
fn product_$S$(first: u32, slot: u32, team_lane: u32) {
    let blocks = sizes.blocks;
    //#for r ROWS
    let row_$r$ = min(first + $r$u, sizes.rows_$S$ - 1u) + sizes.at_$S$;
    //#for c COLUMNS
    var acc_$r$_$c$ = 0.0;
    //#endfor
    //#endfor
    //#for c COLUMNS
    let x_$c$ = sizes.first_row + min($c$u, sizes.rows - 1u);
    //#endfor
    let count = $PIECES$;
    var b = team_lane;
    //#if UNROLLED
    for (; b + ($UNROLL$u - 1u) * TEAM < count; b += $UNROLL$u * TEAM) {
        //#include unrolled
    }
    //#endif
    for (; b < count; b += TEAM) {
        //#include single
    }
    //#for r ROWS
    //#for c COLUMNS
    put(slot + $r$u * $COLUMNS$u + $c$u, team_lane, acc_$r$_$c$);
    //#endfor
    //#endfor
}
