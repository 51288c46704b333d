if (block.kind == $KIND$u) {
    //#if V_PACKED
    let g = u / 16u;
    let w = (k * $GROUPS$u + g) * 16u * COLUMN_FOURS;
    let four = (k * $GROUPS$u + g) * 4u * COLUMN_FOURS;
    //#if V_Q8
    let codes = block.v + $V_CODES$u + u;
    //#for v CV
    var xh$v$ = vec4<i32>(i32(MAGIC_BITS));
    var xl$v$ = vec4<i32>(i32(MAGIC_BITS));
    var yh$v$ = vec4<i32>(i32(MAGIC_BITS));
    var yl$v$ = vec4<i32>(i32(MAGIC_BITS));
    //#endfor
    for (var e = 0u; e < 4u; e++) {
        //#for n 4
        let c$n$ = $PAGES$[codes + (8u * e + 2u * $n$u) * $V_LANES$u];
        let d$n$ = $PAGES$[codes + (8u * e + 2u * $n$u + 1u) * $V_LANES$u];
        //#endfor
        //#for n 4
        {
            let x = (c$n$ & 0xffffu) | (d$n$ << 16u);
            let y = (c$n$ >> 16u) | (d$n$ & 0xffff0000u);
            //#for v CV
            let h$v$ = w_codes[w + (4u * e + $n$u) * COLUMN_FOURS + $v$u];
            let l$v$ = w_lows[w + (4u * e + $n$u) * COLUMN_FOURS + $v$u];
            xh$v$ += dots(x, h$v$);
            xl$v$ += dots(x, l$v$);
            yh$v$ += dots(y, h$v$);
            yl$v$ += dots(y, l$v$);
            //#endfor
        }
        //#endfor
    }
    //#else
    // Dimensions 32 g + u % 16 and 16 further.
    let codes = block.v + $V_CODES$u + 32u * g + u % 16u;
    //#for v CV
    var x$v$ = vec4<u32>(MAGIC_BITS);
    var y$v$ = vec4<u32>(MAGIC_BITS);
    //#endfor
    //#for n 8
    let c$n$ = $PAGES$[codes + $n$u * $HEAD_DIM$u];
    let d$n$ = $PAGES$[codes + $n$u * $HEAD_DIM$u + 16u];
    //#endfor
    //#for n 8
    {
        let cx = c$n$ & 0x0f0f0f0fu;
        let cy = (c$n$ >> 4u) & 0x0f0f0f0fu;
        let dx = d$n$ & 0x0f0f0f0fu;
        let dy = (d$n$ >> 4u) & 0x0f0f0f0fu;
        //#for v CV
        let h$v$ = w_codes[w + 2u * $n$u * COLUMN_FOURS + $v$u];
        let l$v$ = w_codes[w + (2u * $n$u + 1u) * COLUMN_FOURS + $v$u];
        x$v$ += unsigned_dots(cx, h$v$);
        x$v$ += unsigned_dots(cy, l$v$);
        y$v$ += unsigned_dots(dx, h$v$);
        y$v$ += unsigned_dots(dy, l$v$);
        //#endfor
    }
    //#endfor
    //#endif
    //#for v CV
    {
        let most = max(max(w_most[four + $v$u], w_most[four + COLUMN_FOURS + $v$u]), max(w_most[four + 2u * COLUMN_FOURS + $v$u], w_most[four + 3u * COLUMN_FOURS + $v$u]));
        let scale = select(vec4<f32>(0.0), most / $W_MOST$, most > vec4<f32>($W_MOST$ / 3.4e38));
        //#if V_Q8
        a$v$ = fma(fma(plain(xh$v$), vec4<f32>(256.0), plain(xl$v$)), scale, a$v$);
        b$v$ = fma(fma(plain(yh$v$), vec4<f32>(256.0), plain(yl$v$)), scale, b$v$);
        //#else
        let add = (w_adds[four + $v$u] + w_adds[four + COLUMN_FOURS + $v$u]) + (w_adds[four + 2u * COLUMN_FOURS + $v$u] + w_adds[four + 3u * COLUMN_FOURS + $v$u]);
        a$v$ += fma(unsigned_plain(x$v$), scale, add);
        b$v$ += fma(unsigned_plain(y$v$), scale, add);
        //#endif
    }
    //#endfor
    //#else
    // What nobody sees may be anything, not even numbers.
    let low = max(seen_start, 64u * own) - 64u * own;
    let high = min(seen_end - 64u * own, 64u);
    for (var e = 0u; e < 64u / $V_STEP$u; e++) {
        //#for i V_STEP
        //#if V_F32
        let c$i$ = $PAGES$[block.v + ($V_STEP$u * e + $i$u) * $HEAD_DIM$u + 2u * u];
        let d$i$ = $PAGES$[block.v + ($V_STEP$u * e + $i$u) * $HEAD_DIM$u + 2u * u + 1u];
        //#else
        //#if SPREAD
        let c$i$ = $PAGES$[block.v + (($V_STEP$u * e + $i$u) * $HEAD_DIM$u + 32u * (u / 16u) + u % 16u) / 2u];
        let d$i$ = $PAGES$[block.v + (($V_STEP$u * e + $i$u) * $HEAD_DIM$u + 32u * (u / 16u) + u % 16u) / 2u + 8u];
        //#else
        let c$i$ = $PAGES$[block.v + ($V_STEP$u * e + $i$u) * $V_LANES$u + u];
        //#endif
        //#endif
        //#endfor
        //#for i V_STEP
        {
            let at = $V_STEP$u * e + $i$u;
            //#if V_F32
            let read = bitcast<vec2<f32>>(vec2<u32>(c$i$, d$i$));
            //#endif
            //#if V_F16
            //#if SPREAD
            let shift = 16u * (u & 1u);
            let read = vec2<f32>(unpack2x16float(c$i$ >> shift).x, unpack2x16float(d$i$ >> shift).x);
            //#else
            let read = unpack2x16float(c$i$);
            //#endif
            //#endif
            //#if V_BF16
            let read = bitcast<vec2<f32>>(vec2<u32>(c$i$ << 16u, c$i$ & 0xffff0000u));
            //#endif
            let x = select(vec2<f32>(0.0), read, at >= low && at < high);
            //#for v CV
            let w$v$ = weights[(64u * k + at) * COLUMN_FOURS + $v$u];
            a$v$ = fma(w$v$, vec4<f32>(x.x), a$v$);
            b$v$ = fma(w$v$, vec4<f32>(x.y), b$v$);
            //#endfor
        }
        //#endfor
    }
    //#endif
}
