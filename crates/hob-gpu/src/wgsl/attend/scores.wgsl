if (block.kind == $KIND$u) {
    //#if K_PACKED
    //#if K_Q8
    for (var g = 0u; g < $GROUPS$u; g++) {
        let d = unpack2x16float($PAGES$[block.k + g * 32u + l]);
        let codes = block.k + $K_CODES$u + g * 512u + l;
        //#for v CV
        var xh$v$ = vec4<i32>(i32(MAGIC_BITS));
        var xl$v$ = vec4<i32>(i32(MAGIC_BITS));
        var yh$v$ = vec4<i32>(i32(MAGIC_BITS));
        var yl$v$ = vec4<i32>(i32(MAGIC_BITS));
        //#endfor
        //#for n 8
        let a$n$ = $PAGES$[codes + $n$u * 64u];
        let b$n$ = $PAGES$[codes + $n$u * 64u + 32u];
        //#endfor
        //#for n 8
        {
            let x = (a$n$ & 0xffffu) | (b$n$ << 16u);
            let y = (a$n$ >> 16u) | (b$n$ & 0xffff0000u);
            //#for v CV
            let h$v$ = q_codes[(g * 8u + $n$u) * COLUMN_FOURS + $v$u];
            let l$v$ = q_lows[(g * 8u + $n$u) * COLUMN_FOURS + $v$u];
            xh$v$ += dots(x, h$v$);
            xl$v$ += dots(x, l$v$);
            yh$v$ += dots(y, h$v$);
            yl$v$ += dots(y, l$v$);
            //#endfor
        }
        //#endfor
        //#for v CV
        {
            let scale = q_scales[g * COLUMN_FOURS + $v$u];
            s$v$ = fma(fma(plain(xh$v$), vec4<f32>(256.0), plain(xl$v$)), scale * d.x, s$v$);
            t$v$ = fma(fma(plain(yh$v$), vec4<f32>(256.0), plain(yl$v$)), scale * d.y, t$v$);
        }
        //#endfor
    }
    //#else
    // Positions l and l + 32.
    p = l;
    gap = 32u;
    for (var g = 0u; g < $GROUPS$u; g++) {
        let shift = 16u * (l & 1u);
        let scales = block.k + g * 32u + l / 2u;
        let dx = unpack2x16float($PAGES$[scales] >> shift).x;
        let dy = unpack2x16float($PAGES$[scales + 16u] >> shift).x;
        //#if K_ASYM
        let mx = unpack2x16float($PAGES$[scales + $GROUPS$u * 32u] >> shift).x;
        let my = unpack2x16float($PAGES$[scales + $GROUPS$u * 32u + 16u] >> shift).x;
        //#endif
        let codes = block.k + $K_CODES$u + g * 256u + l;
        //#for n 4
        let a$n$ = $PAGES$[codes + $n$u * 64u];
        let b$n$ = $PAGES$[codes + $n$u * 64u + 32u];
        //#endfor
        //#for v CV
        //#if K_ASYM
        var x$v$ = vec4<i32>(i32(MAGIC_BITS));
        //#else
        var x$v$ = bitcast<vec4<i32>>(q_sums[g * COLUMN_FOURS + $v$u]);
        //#endif
        var y$v$ = x$v$;
        //#endfor
        //#for n 4
        {
            let ax = a$n$ & 0x0f0f0f0fu;
            let bx = (a$n$ >> 4u) & 0x0f0f0f0fu;
            let ay = b$n$ & 0x0f0f0f0fu;
            let by = (b$n$ >> 4u) & 0x0f0f0f0fu;
            //#for v CV
            let q$v$ = q_codes[(g * 8u + 2u * $n$u) * COLUMN_FOURS + $v$u];
            let r$v$ = q_codes[(g * 8u + 2u * $n$u + 1u) * COLUMN_FOURS + $v$u];
            x$v$ += dots(ax, q$v$);
            x$v$ += dots(bx, r$v$);
            y$v$ += dots(ay, q$v$);
            y$v$ += dots(by, r$v$);
            //#endfor
        }
        //#endfor
        //#for v CV
        {
            let scale = q_scales[g * COLUMN_FOURS + $v$u];
            s$v$ = fma(plain(x$v$), scale * dx, s$v$);
            t$v$ = fma(plain(y$v$), scale * dy, t$v$);
            //#if K_ASYM
            s$v$ = fma(q_sums[g * COLUMN_FOURS + $v$u], vec4<f32>(mx), s$v$);
            t$v$ = fma(q_sums[g * COLUMN_FOURS + $v$u], vec4<f32>(my), t$v$);
            //#endif
        }
        //#endfor
    }
    //#endif
    //#else
    for (var e = 0u; e < $HEAD_DIM$u / $K_STEP$u; e++) {
        //#for i K_STEP
        //#if K_F32
        let k$i$ = vec2<f32>(bitcast<f32>($PAGES$[block.k + ($K_STEP$u * e + $i$u) * 64u + 2u * l]), bitcast<f32>($PAGES$[block.k + ($K_STEP$u * e + $i$u) * 64u + 2u * l + 1u]));
        //#else
        let k$i$ = $PAGES$[block.k + ($K_STEP$u * e + $i$u) * 32u + l];
        //#endif
        //#endfor
        //#for i K_STEP
        {
            //#if K_F32
            let k = k$i$;
            //#endif
            //#if K_F16
            let k = unpack2x16float(k$i$);
            //#endif
            //#if K_BF16
            let k = bitcast<vec2<f32>>(vec2<u32>(k$i$ << 16u, k$i$ & 0xffff0000u));
            //#endif
            //#for v CV
            let q$v$ = queries[($K_STEP$u * e + $i$u) * COLUMN_FOURS + $v$u];
            s$v$ = fma(q$v$, vec4<f32>(k.x), s$v$);
            t$v$ = fma(q$v$, vec4<f32>(k.y), t$v$);
            //#endfor
        }
        //#endfor
    }
    //#endif
}
