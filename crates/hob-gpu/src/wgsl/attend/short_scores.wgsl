// A share of a block's products with the query, for one kind of block.
if (block.kind == $KIND$u) {
    let each = $K_UNITS$u / sharers;
    //#if K_NIBBLES
    ps = l;
    pt = l + 32u;
    //#endif
    for (var unit = sharer * each; unit < (sharer + 1u) * each; unit++) {
        if (own != k_first || unit != sharer * each) {
            //#include k_fetch
        }
        //#if K_PACKED
        let q = 32u * unit;
        //#if K_Q8
        let scales = unpack2x16float(k_b0);
        var x = 0.0;
        var y = 0.0;
        //#for n 16
        {
            let c = unpack4xI8(k_a$n$);
            x = fma(queries[q + 2u * $n$u], f32(c.x), x);
            x = fma(queries[q + 2u * $n$u + 1u], f32(c.y), x);
            y = fma(queries[q + 2u * $n$u], f32(c.z), y);
            y = fma(queries[q + 2u * $n$u + 1u], f32(c.w), y);
        }
        //#endfor
        s = fma(x, scales.x, s);
        t = fma(y, scales.y, t);
        //#else
        let shift = 16u * (l & 1u);
        let dx = unpack2x16float(k_c0 >> shift).x;
        let dy = unpack2x16float(k_c1 >> shift).x;
        var x = 0.0;
        var y = 0.0;
        var all = 0.0;
        //#for n 4
        {
            let low = vec4<f32>(queries[q + 8u * $n$u], queries[q + 8u * $n$u + 1u], queries[q + 8u * $n$u + 2u], queries[q + 8u * $n$u + 3u]);
            let high = vec4<f32>(queries[q + 8u * $n$u + 4u], queries[q + 8u * $n$u + 5u], queries[q + 8u * $n$u + 6u], queries[q + 8u * $n$u + 7u]);
            x += dot(low, vec4<f32>(unpack4xU8(k_a$n$ & 0x0f0f0f0fu))) + dot(high, vec4<f32>(unpack4xU8((k_a$n$ >> 4u) & 0x0f0f0f0fu)));
            y += dot(low, vec4<f32>(unpack4xU8(k_b$n$ & 0x0f0f0f0fu))) + dot(high, vec4<f32>(unpack4xU8((k_b$n$ >> 4u) & 0x0f0f0f0fu)));
            all += dot(low, vec4<f32>(1.0)) + dot(high, vec4<f32>(1.0));
        }
        //#endfor
        //#if K_ASYM
        let mx = unpack2x16float(k_c2 >> shift).x;
        let my = unpack2x16float(k_c3 >> shift).x;
        s = fma(x, dx, fma(all, mx, s));
        t = fma(y, dy, fma(all, my, t));
        //#else
        // The codes are stored plus 8.
        s = fma(fma(-8.0, all, x), dx, s);
        t = fma(fma(-8.0, all, y), dy, t);
        //#endif
        //#endif
        //#else
        //#for n K_UNIT
        {
            //#if K_F32
            let k = bitcast<vec2<f32>>(vec2<u32>(k_a$n$, k_b$n$));
            //#endif
            //#if K_F16
            let k = unpack2x16float(k_a$n$);
            //#endif
            //#if K_BF16
            let k = bitcast<vec2<f32>>(vec2<u32>(k_a$n$ << 16u, k_a$n$ & 0xffff0000u));
            //#endif
            let q = queries[$K_UNIT$u * unit + $n$u];
            s = fma(q, k.x, s);
            t = fma(q, k.y, t);
        }
        //#endfor
        //#endif
    }
}
