// The queries of the tile's columns and the new row of K and V (which travel as one more four of columns: k, v), normed and
// rotated where that is left to do; the queries' codes; what the new position is stored as, and its scores. A lane has a
// dimension, or some, of some fours.
//#for i WIDE_TURNS
let d$i$ = ($i$u * LANES + lane) % WIDE;
let inside$i$ = d$i$ < HEAD_DIM;
let safe$i$ = min(d$i$, HEAD_DIM - 1u);
//#if ROTATES
//#if INTERLEAVED
let second$i$ = (d$i$ & 1u) == 1u;
let pair$i$ = d$i$ / 2u;
let other$i$ = min(d$i$ ^ 1u, HEAD_DIM - 1u);
//#else
let second$i$ = d$i$ >= sizes.rotary;
let pair$i$ = select(d$i$, d$i$ - sizes.rotary, second$i$);
let other$i$ = min(select(d$i$ + sizes.rotary, d$i$ - sizes.rotary, second$i$), HEAD_DIM - 1u);
//#endif
let freq$i$ = freqs[min(pair$i$, sizes.rotary - 1u)];
//#endif
//#if NORMS
let q_weight$i$ = q_norm[safe$i$];
let k_weight$i$ = k_norm[safe$i$];
//#if ROTATES
let q_other$i$ = q_norm[other$i$];
let k_other$i$ = k_norm[other$i$];
//#endif
//#endif
//#endfor
//#for j FOUR_TURNS
let c$j$ = lane / WIDE + $j$u * $FOURS_AT_ONCE$u;
//#for i WIDE_TURNS
var x$i$_$j$ = vec4<f32>(0.0);
if (inside$i$ && c$j$ < COLUMN_FOURS) {
    //#for n 4
    {
        let column = tile * COLUMNS + 4u * c$j$ + $n$u;
        let safe = min(column, count - 1u);
        let x = q_rows[((row + safe / GROUP) * sizes.heads + kv_head * GROUP + safe % GROUP) * HEAD_DIM + safe$i$];
        x$i$_$j$[$n$] = select(0.0, x, column < count);
    }
    //#endfor
}
//#if NEW
if (inside$i$ && c$j$ == COLUMN_FOURS) {
    let at = (row * KV_HEADS + kv_head) * HEAD_DIM + safe$i$;
    x$i$_$j$ = vec4<f32>(k_rows[at], v_rows[at], 0.0, 0.0);
}
//#endif
//#if NORMS
put_sum(c$j$ * WIDE + d$i$, x$i$_$j$ * x$i$_$j$, true);
//#endif
//#if ROTATES
if (c$j$ < $FOURS$u) {
    shared_out[c$j$ * WIDE + d$i$] = x$i$_$j$;
}
//#endif
//#endfor
//#endfor
//#if NORMS
settle_sums($SLOTS$u, lane);
//#endif
//#if ROTATES
//#for i WIDE_TURNS
let turn$i$ = rope_angle(position, freq$i$) * sizes.magnitude;
//#endfor
//#endif
//#if STAGED
workgroupBarrier();
//#endif
//#for j FOUR_TURNS
let four$j$ = min(c$j$, $FOURS$u - 1u);
let is_new$j$ = c$j$ == COLUMN_FOURS;
//#if NORMS
var r$j$ = 1.0 / sqrt(sum_of(four$j$ * WIDE, WIDE) / f32(HEAD_DIM) + select(sizes.q_eps, sizes.k_eps, is_new$j$));
if (is_new$j$) {
    r$j$.y = 1.0;
}
//#endif
//#for i WIDE_TURNS
//#if NORMS
x$i$_$j$ = x$i$_$j$ * r$j$ * select(vec4<f32>(q_weight$i$), vec4<f32>(k_weight$i$, 1.0, 1.0, 1.0), is_new$j$);
//#endif
//#if ROTATES
{
    var far = shared_out[four$j$ * WIDE + other$i$];
    //#if NORMS
    far = far * r$j$ * select(vec4<f32>(q_other$i$), vec4<f32>(k_other$i$), is_new$j$);
    //#endif
    let turned = fma(x$i$_$j$, vec4<f32>(turn$i$.x), far * select(-turn$i$.y, turn$i$.y, second$i$));
    let whole = vec4<bool>(d$i$ < 2u * sizes.rotary) & vec4<bool>(true, !is_new$j$, true, true);
    x$i$_$j$ = select(x$i$_$j$, turned, whole);
}
//#endif
//#endfor
//#endfor
//#if HADAMARD
// See hob_quant::hadamard. Every other step goes through the other half of the memory.
var flip = $STAGE$u;
for (var stride = 1u; stride < $SPAN$u; stride *= 2u) {
    //#for j FOUR_TURNS
    //#for i WIDE_TURNS
    if (c$j$ < $FOURS$u) {
        shared_out[flip + c$j$ * WIDE + d$i$] = x$i$_$j$;
    }
    //#endfor
    //#endfor
    workgroupBarrier();
    //#for j FOUR_TURNS
    //#for i WIDE_TURNS
    {
        let other = shared_out[flip + four$j$ * WIDE + (d$i$ ^ stride)];
        let x = select(x$i$_$j$ + other, other - x$i$_$j$, (d$i$ & stride) != 0u);
        x$i$_$j$ = select(x$i$_$j$, x, select(vec4<bool>($K_ROTATED$), vec4<bool>($K_ROTATED$, $V_ROTATED$, false, false), is_new$j$));
    }
    //#endfor
    //#endfor
    flip = $STAGE$u - flip;
}
//#for j FOUR_TURNS
//#for i WIDE_TURNS
x$i$_$j$ = select(x$i$_$j$, x$i$_$j$ * $SPAN_FACTOR$, select(vec4<bool>($K_ROTATED$), vec4<bool>($K_ROTATED$, $V_ROTATED$, false, false), is_new$j$));
//#endfor
//#endfor
//#endif
//#for j FOUR_TURNS
//#for i WIDE_TURNS
if (inside$i$ && c$j$ < COLUMN_FOURS) {
    queries[d$i$ * COLUMN_FOURS + c$j$] = x$i$_$j$;
}
//#if NEW
if (inside$i$ && is_new$j$) {
    fresh[d$i$] = x$i$_$j$.x;
    fresh[HEAD_DIM + d$i$] = x$i$_$j$.y;
}
//#endif
//#endfor
//#endfor
workgroupBarrier();
//#if K_PACKED
//#include q_codes
//#endif
//#if NEW
let owner = first_block <= position / 64u && position / 64u < first_block + sizes.per_split;
var fresh_block = Block(0u, 0u, 3u);
if (owner) {
    fresh_block = block_at(table, first_block, position / 64u, kv_head);
    pack(fresh_block, lane);
    //#for i WIDE_TURNS
    let kept$i$ = select(0.0, kept_k(fresh_block, 0u, safe$i$), inside$i$);
    //#endfor
    //#for j FOUR_TURNS
    //#for i WIDE_TURNS
    {
        var q = x$i$_$j$;
        //#if K_NIBBLES
        if (fresh_block.kind != 2u) {
            // As all other positions see it.
            let at = min(c$j$, COLUMN_FOURS - 1u);
            let shift = vec4<u32>(24u - 8u * (safe$i$ % 4u));
            let code = bitcast<vec4<i32>>(q_codes[(safe$i$ / 4u) * COLUMN_FOURS + at] << shift) >> vec4<u32>(24u);
            q = vec4<f32>(code) * q_scales[(safe$i$ / 32u) * COLUMN_FOURS + at];
        }
        //#endif
        put_sum(c$j$ * WIDE + d$i$, q * kept$i$, true);
    }
    //#endfor
    //#endfor
    settle_sums($SLOTS$u, lane);
    workgroupBarrier();
}
//#endif
