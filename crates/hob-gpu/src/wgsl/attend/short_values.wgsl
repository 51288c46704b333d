// Eight positions of V in their shares, for one kind of block.
if (block.kind == $KIND$u) {
    if (eight != v_first) {
        //#include v_fetch
    }
    let share = 8u * eight;
    var x = 0.0;
    var y = 0.0;
    //#if V_PACKED
    //#for n 4
    {
        let on = vec2<bool>(2u * $n$u >= low && 2u * $n$u < high, 2u * $n$u + 1u >= low && 2u * $n$u + 1u < high);
        let weigh = vec2<f32>(shares[share + 2u * $n$u], shares[share + 2u * $n$u + 1u]);
        let d = weigh * select(vec2<f32>(0.0), unpack2x16float(v_a$n$), on);
        //#if V_Q8
        let c = vec4<f32>(unpack4xI8(v_b$n$));
        x = fma(d.x, c.x, fma(d.y, c.y, x));
        y = fma(d.x, c.z, fma(d.y, c.w, y));
        //#else
        // Nibbles of positions 0 to 3 are the low ones of bytes.
        let shift = vec2<u32>(8u * ((2u * $n$u) & 3u) + 4u * ($n$u / 2u)) + vec2<u32>(0u, 8u);
        let ca = vec2<f32>((vec2<u32>(v_a4) >> shift) & vec2<u32>(15u));
        let cb = vec2<f32>((vec2<u32>(v_a5) >> shift) & vec2<u32>(15u));
        //#if V_ASYM
        let m = dot(weigh, select(vec2<f32>(0.0), unpack2x16float(v_b$n$), on));
        x += dot(d, ca) + m;
        y += dot(d, cb) + m;
        //#else
        x += dot(d, ca - 8.0);
        y += dot(d, cb - 8.0);
        //#endif
        //#endif
    }
    //#endfor
    //#else
    //#for n 8
    {
        //#if V_F32
        let v = bitcast<vec2<f32>>(vec2<u32>(v_a$n$, v_b$n$));
        //#endif
        //#if V_F16
        //#if SPREAD
        let shift = 16u * (da & 1u);
        let v = vec2<f32>(unpack2x16float(v_a$n$ >> shift).x, unpack2x16float(v_b$n$ >> shift).x);
        //#else
        let v = unpack2x16float(v_a$n$);
        //#endif
        //#endif
        //#if V_BF16
        let v = bitcast<vec2<f32>>(vec2<u32>(v_a$n$ << 16u, v_a$n$ & 0xffff0000u));
        //#endif
        let on = $n$u >= low && $n$u < high;
        x = fma(shares[share + $n$u], select(0.0, v.x, on), x);
        y = fma(shares[share + $n$u], select(0.0, v.y, on), y);
    }
    //#endfor
    //#endif
    a = fma(lift, x, a);
    b = fma(lift, y, b);
}
