if ($IS_KIND$) {
    //#if V_PACKED
    let g = u / 16u;
    let w = ((k * $GROUPS$u + g) * 16u + vp * (16u / PARTS)) * COLUMN_FOURS;
    let four = (k * $GROUPS$u + g) * 4u * COLUMN_FOURS;
    //#if V_Q8
    //#for v CV
    var xh$v$ = vec4<i32>(i32(MAGIC_BITS));
    var xl$v$ = vec4<i32>(i32(MAGIC_BITS));
    var yh$v$ = vec4<i32>(i32(MAGIC_BITS));
    var yl$v$ = vec4<i32>(i32(MAGIC_BITS));
    //#endfor
    //#else
    //#for v CV
    var x$v$ = vec4<u32>(MAGIC_BITS);
    var y$v$ = vec4<u32>(MAGIC_BITS);
    //#endfor
    //#endif
    //#else
    // What nobody sees may be anything, not even numbers.
    let low = max(seen_start, 64u * own) - 64u * own;
    let high = min(seen_end - 64u * own, 64u);
    //#endif
    for (var v_batch = 0u; v_batch < $V_SHARE$u / $V_BATCH$u; v_batch++) {
        //#if V_LATER
        if (v_batch + i > 0u) {
            //#include loads
        }
        //#endif
        //#if V_Q8
        //#for n V_HALF_BATCH
        {
            let first = vc_even$n$;
            let second = vc_odd$n$;
            let x = (first & 0xffffu) | (second << 16u);
            let y = (first >> 16u) | (second & 0xffff0000u);
            //#for v CV
            let h$v$ = w_codes[w + (v_batch * ($V_BATCH$u / 2u) + $n$u) * COLUMN_FOURS + $v$u];
            let l$v$ = w_lows[w + (v_batch * ($V_BATCH$u / 2u) + $n$u) * COLUMN_FOURS + $v$u];
            xh$v$ += dots(x, h$v$);
            xl$v$ += dots(x, l$v$);
            yh$v$ += dots(y, h$v$);
            yl$v$ += dots(y, l$v$);
            //#endfor
        }
        //#endfor
        //#endif
        //#if V_NIBBLES
        //#for n V_BATCH
        {
            let cx = vc$n$ & 0x0f0f0f0fu;
            let cy = (vc$n$ >> 4u) & 0x0f0f0f0fu;
            let dx = vd$n$ & 0x0f0f0f0fu;
            let dy = (vd$n$ >> 4u) & 0x0f0f0f0fu;
            //#for v CV
            let h$v$ = w_codes[w + 2u * (v_batch * $V_BATCH$u + $n$u) * COLUMN_FOURS + $v$u];
            let l$v$ = w_codes[w + (2u * (v_batch * $V_BATCH$u + $n$u) + 1u) * COLUMN_FOURS + $v$u];
            x$v$ += unsigned_dots(cx, h$v$);
            x$v$ += unsigned_dots(cy, l$v$);
            y$v$ += unsigned_dots(dx, h$v$);
            y$v$ += unsigned_dots(dy, l$v$);
            //#endfor
        }
        //#endfor
        //#endif
        //#if !V_PACKED
        let places = vp * (64u / PARTS) + v_batch * $V_BATCH$u;
        //#if !V_AHEAD
        //#for i V_BATCH
        //#if V_F32
        var vc$i$ = $PAGES$[v_block.v + (places + $i$u) * HEAD_DIM + 2u * u];
        var vd$i$ = $PAGES$[v_block.v + (places + $i$u) * HEAD_DIM + 2u * u + 1u];
        //#else
        //#if SPREAD
        var vc$i$ = $PAGES$[v_block.v + ((places + $i$u) * HEAD_DIM + da) / 2u];
        var vd$i$ = $PAGES$[v_block.v + ((places + $i$u) * HEAD_DIM + da) / 2u + 8u];
        //#else
        var vc$i$ = $PAGES$[v_block.v + (places + $i$u) * $V_LANES$u + u];
        //#endif
        //#endif
        //#endfor
        //#endif
        if (low > 0u || high < 64u) {
            //#for i V_BATCH
            if (places + $i$u < low || places + $i$u >= high) {
                vc$i$ = 0u;
                //#if TWO_WORDS
                vd$i$ = 0u;
                //#endif
            }
            //#endfor
        }
        //#for i V_BATCH
        {
            //#if V_F32
            let x = bitcast<vec2<f32>>(vec2<u32>(vc$i$, vd$i$));
            //#endif
            //#if V_F16
            //#if SPREAD
            let shift = 16u * (u & 1u);
            let x = vec2<f32>(unpack2x16float(vc$i$ >> shift).x, unpack2x16float(vd$i$ >> shift).x);
            //#else
            let x = unpack2x16float(vc$i$);
            //#endif
            //#endif
            //#if V_BF16
            let x = bitcast<vec2<f32>>(vec2<u32>(vc$i$ << 16u, vc$i$ & 0xffff0000u));
            //#endif
            //#for v CV
            let w$v$ = weights[(64u * k + places + $i$u) * COLUMN_FOURS + $v$u];
            a$v$ = fma(w$v$, vec4<f32>(x.x), a$v$);
            b$v$ = fma(w$v$, vec4<f32>(x.y), b$v$);
            //#endfor
        }
        //#endfor
        //#endif
    }
    //#if V_PACKED
    //#for v CV
    {
        let most = max(max(w_most[four + $v$u], w_most[four + COLUMN_FOURS + $v$u]), max(w_most[four + 2u * COLUMN_FOURS + $v$u], w_most[four + 3u * COLUMN_FOURS + $v$u]));
        let scale = select(vec4<f32>(0.0), most / $W_MOST$, most > vec4<f32>($W_MOST$ / 3.4e38));
        //#if V_Q8
        a$v$ = fma(fma(plain(xh$v$), vec4<f32>(256.0), plain(xl$v$)), scale, a$v$);
        b$v$ = fma(fma(plain(yh$v$), vec4<f32>(256.0), plain(yl$v$)), scale, b$v$);
        //#else
        var add = vec4<f32>(0.0);
        for (var q = vp * (4u / PARTS); q < (vp + 1u) * (4u / PARTS); q++) {
            add += w_adds[four + q * COLUMN_FOURS + $v$u];
        }
        a$v$ += fma(unsigned_plain(x$v$), scale, add);
        b$v$ += fma(unsigned_plain(y$v$), scale, add);
        //#endif
    }
    //#endfor
    //#endif
}
