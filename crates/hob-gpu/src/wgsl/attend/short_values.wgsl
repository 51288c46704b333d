// Eight positions of V in their shares, for one kind of block: see hob_compute::page for where words lie.
if (block.kind == $KIND$u) {
    let share = 8u * eight;
    //#if V_PACKED
    let scales_at = block.v + (da / 32u) * 32u + 4u * octet;
    //#if V_Q8
    let words = block.v + $V_CODES$u + 4u * octet * V_LANES + u;
    //#else
    let words = block.v + $V_CODES$u + octet * HEAD_DIM + da;
    let wa = $PAGES$[words];
    let wb = $PAGES$[words + 16u];
    //#endif
    //#for n 4
    let d$n$ = $PAGES$[scales_at + $n$u];
    //#if V_Q8
    let w$n$ = $PAGES$[words + $n$u * V_LANES];
    //#endif
    //#if V_ASYM
    let m$n$ = $PAGES$[scales_at + $GROUPS$u * 32u + $n$u];
    //#endif
    //#endfor
    //#for n 4
    {
        let on = vec2<bool>(2u * $n$u >= low && 2u * $n$u < high, 2u * $n$u + 1u >= low && 2u * $n$u + 1u < high);
        let weigh = vec2<f32>(shares[share + 2u * $n$u], shares[share + 2u * $n$u + 1u]);
        let d = weigh * select(vec2<f32>(0.0), unpack2x16float(d$n$), on);
        //#if V_Q8
        let c = vec4<f32>(unpack4xI8(w$n$));
        a = fma(d.x, c.x, fma(d.y, c.y, a));
        b = fma(d.x, c.z, fma(d.y, c.w, b));
        //#else
        // Nibbles of positions 0 to 3 are the low ones of bytes.
        let shift = vec2<u32>(8u * ((2u * $n$u) & 3u) + 4u * ($n$u / 2u)) + vec2<u32>(0u, 8u);
        let ca = vec2<f32>((vec2<u32>(wa) >> shift) & vec2<u32>(15u));
        let cb = vec2<f32>((vec2<u32>(wb) >> shift) & vec2<u32>(15u));
        //#if V_ASYM
        let m = dot(weigh, select(vec2<f32>(0.0), unpack2x16float(m$n$), on));
        a += dot(d, ca) + m;
        b += dot(d, cb) + m;
        //#else
        a += dot(d, ca - 8.0);
        b += dot(d, cb - 8.0);
        //#endif
        //#endif
    }
    //#endfor
    //#else
    let places = 8u * octet;
    //#for n 8
    //#if V_F32
    let va$n$ = $PAGES$[block.v + (places + $n$u) * HEAD_DIM + da];
    let vb$n$ = $PAGES$[block.v + (places + $n$u) * HEAD_DIM + db];
    //#else
    let va$n$ = $PAGES$[block.v + ((places + $n$u) * HEAD_DIM + da) / 2u];
    //#if SPREAD
    let vb$n$ = $PAGES$[block.v + ((places + $n$u) * HEAD_DIM + db) / 2u];
    //#endif
    //#endif
    //#endfor
    //#for n 8
    {
        //#if V_F32
        let x = bitcast<vec2<f32>>(vec2<u32>(va$n$, vb$n$));
        //#endif
        //#if V_F16
        //#if SPREAD
        let shift = 16u * (da & 1u);
        let x = vec2<f32>(unpack2x16float(va$n$ >> shift).x, unpack2x16float(vb$n$ >> shift).x);
        //#else
        let x = unpack2x16float(va$n$);
        //#endif
        //#endif
        //#if V_BF16
        let x = bitcast<vec2<f32>>(vec2<u32>(va$n$ << 16u, va$n$ & 0xffff0000u));
        //#endif
        let on = $n$u >= low && $n$u < high;
        a = fma(shares[share + $n$u], select(0.0, x.x, on), a);
        b = fma(shares[share + $n$u], select(0.0, x.y, on), b);
    }
    //#endfor
    //#endif
}
