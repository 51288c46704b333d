if ($IS_KIND$) {
    for (var k_batch = 0u; k_batch < $K_SHARE$u / $K_BATCH$u; k_batch++) {
        //#if K_LATER
        if (k_batch > 0u) {
            //#include loads
        }
        //#endif
        //#if K_PACKED
        //#for g K_BATCH
        {
            let g = sharer * $K_SHARE$u + k_batch * $K_BATCH$u + $g$u;
            //#if K_Q8
            let d = unpack2x16float(kd$g$);
            //#for v CV
            var xh$v$ = vec4<i32>(i32(MAGIC_BITS));
            var xl$v$ = vec4<i32>(i32(MAGIC_BITS));
            var yh$v$ = vec4<i32>(i32(MAGIC_BITS));
            var yl$v$ = vec4<i32>(i32(MAGIC_BITS));
            //#endfor
            //#for n 8
            {
                let a = k$g$_even$n$;
                let b = k$g$_odd$n$;
                let x = (a & 0xffffu) | (b << 16u);
                let y = (a >> 16u) | (b & 0xffff0000u);
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
            //#else
            // Positions l and l + 32.
            let shift = 16u * (l & 1u);
            let dx = unpack2x16float(kx$g$ >> shift).x;
            let dy = unpack2x16float(ky$g$ >> shift).x;
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
                let a = k$g$_even$n$;
                let b = k$g$_odd$n$;
                let ax = a & 0x0f0f0f0fu;
                let bx = (a >> 4u) & 0x0f0f0f0fu;
                let ay = b & 0x0f0f0f0fu;
                let by = (b >> 4u) & 0x0f0f0f0fu;
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
                let mx = unpack2x16float(kmx$g$ >> shift).x;
                let my = unpack2x16float(kmy$g$ >> shift).x;
                s$v$ = fma(q_sums[g * COLUMN_FOURS + $v$u], vec4<f32>(mx), s$v$);
                t$v$ = fma(q_sums[g * COLUMN_FOURS + $v$u], vec4<f32>(my), t$v$);
                //#endif
            }
            //#endfor
            //#endif
        }
        //#endfor
        //#else
        let dims = sharer * $K_SHARE$u + k_batch * $K_BATCH$u;
        //#if !K_AHEAD
        //#for i K_BATCH
        //#if K_F32
        let k$i$ = vec2<f32>(bitcast<f32>($PAGES$[k_block.k + (dims + $i$u) * 64u + 2u * l]), bitcast<f32>($PAGES$[k_block.k + (dims + $i$u) * 64u + 2u * l + 1u]));
        //#else
        let k$i$ = $PAGES$[k_block.k + (dims + $i$u) * 32u + l];
        //#endif
        //#endfor
        //#endif
        //#for i K_BATCH
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
            let q$v$ = queries[(dims + $i$u) * COLUMN_FOURS + $v$u];
            s$v$ = fma(q$v$, vec4<f32>(k.x), s$v$);
            t$v$ = fma(q$v$, vec4<f32>(k.y), t$v$);
            //#endfor
        }
        //#endfor
        //#endif
    }
}
