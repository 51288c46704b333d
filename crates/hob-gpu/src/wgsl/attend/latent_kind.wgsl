// Blocks of one kind, decoded.
fn fetch_k_$KIND$(at: u32, run: u32, pair: u32) -> Two {
    var k: Two;
    //#if K_F32
    for (var i = 0u; i < 4u; i++) {
        let word = at + (4u * run + i) * 64u + 2u * pair;
        k.a[i] = bitcast<f32>($PAGES$[word]);
        k.b[i] = bitcast<f32>($PAGES$[word + 1u]);
    }
    //#endif
    //#if K_F16
    let word = at + 128u * run + pair;
    let x = unpack2x16float($PAGES$[word]);
    let y = unpack2x16float($PAGES$[word + 32u]);
    let z = unpack2x16float($PAGES$[word + 64u]);
    let w = unpack2x16float($PAGES$[word + 96u]);
    k.a = vec4<f32>(x.x, y.x, z.x, w.x);
    k.b = vec4<f32>(x.y, y.y, z.y, w.y);
    //#endif
    //#if K_BF16
    let word = at + 128u * run + pair;
    let four = vec4<u32>($PAGES$[word], $PAGES$[word + 32u], $PAGES$[word + 64u], $PAGES$[word + 96u]);
    k.a = bitcast<vec4<f32>>(four << vec4<u32>(16u));
    k.b = bitcast<vec4<f32>>(four & vec4<u32>(0xffff0000u));
    //#endif
    //#if K_Q8
    let d = unpack2x16float($PAGES$[at + (run / 8u) * 32u + pair]);
    let low = vec4<f32>(unpack4xI8($PAGES$[at + $K_CODES$u + 64u * run + pair]));
    let high = vec4<f32>(unpack4xI8($PAGES$[at + $K_CODES$u + 64u * run + 32u + pair]));
    k.a = vec4<f32>(low.xy, high.xy) * d.x;
    k.b = vec4<f32>(low.zw, high.zw) * d.y;
    //#endif
    //#if K_NIBBLES
    let d = unpack2x16float($PAGES$[at + (run / 8u) * 32u + pair]);
    let word = at + $K_CODES$u + (run / 2u) * 64u + 2u * pair;
    let shift = 4u * (run % 2u);
    let a = vec4<f32>(unpack4xU8(($PAGES$[word] >> shift) & 0x0f0f0f0fu));
    let b = vec4<f32>(unpack4xU8(($PAGES$[word + 1u] >> shift) & 0x0f0f0f0fu));
    //#if K_ASYM
    let m = unpack2x16float($PAGES$[at + ($GROUPS$u + run / 8u) * 32u + pair]);
    k.a = a * d.x + m.x;
    k.b = b * d.y + m.y;
    //#else
    k.a = (a - 8.0) * d.x;
    k.b = (b - 8.0) * d.y;
    //#endif
    //#endif
    return k;
}

//#if TOUCHES
// Reads all of a block, side by side, and tells little of it.
fn touch_$KIND$(at: u32, lane: u32) -> u32 {
    var touched = 0u;
    for (var i = lane; i < $K_FOURS$u; i += 128u) {
        touched |= $PAGES$_fours[at / 4u + i].x;
    }
    return touched;
}
//#endif

fn fetch_v_$KIND$(at: u32, dim: u32, octet: u32) -> Eight {
    var v: Eight;
    //#if K_F32
    let four = (at + 64u * dim + 8u * octet) / 4u;
    v.a = bitcast<vec4<f32>>($PAGES$_fours[four]);
    v.b = bitcast<vec4<f32>>($PAGES$_fours[four + 1u]);
    //#endif
    //#if K_F16
    let words = $PAGES$_fours[(at + 32u * dim + 4u * octet) / 4u];
    v.a = vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
    v.b = vec4<f32>(unpack2x16float(words.z), unpack2x16float(words.w));
    //#endif
    //#if K_BF16
    let words = $PAGES$_fours[(at + 32u * dim + 4u * octet) / 4u];
    let even = bitcast<vec4<f32>>(words << vec4<u32>(16u));
    let odd = bitcast<vec4<f32>>(words & vec4<u32>(0xffff0000u));
    v.a = vec4<f32>(even.x, odd.x, even.y, odd.y);
    v.b = vec4<f32>(even.z, odd.z, even.w, odd.w);
    //#endif
    //#if K_PACKED
    let ds = $PAGES$_fours[(at + (dim / 32u) * 32u + 4u * octet) / 4u];
    let da = vec4<f32>(unpack2x16float(ds.x), unpack2x16float(ds.y));
    let db = vec4<f32>(unpack2x16float(ds.z), unpack2x16float(ds.w));
    //#endif
    //#if K_Q8
    // Of a word's bytes, two dimensions of two positions, those of this dimension.
    let words = $PAGES$_fours[(at + $K_CODES$u + (dim / 2u) * 32u + 4u * octet) / 4u] >> vec4<u32>(8u * (dim % 2u));
    let even = vec4<f32>(bitcast<vec4<i32>>(words << vec4<u32>(24u)) >> vec4<u32>(24u));
    let odd = vec4<f32>(bitcast<vec4<i32>>(words << vec4<u32>(8u)) >> vec4<u32>(24u));
    v.a = vec4<f32>(even.x, odd.x, even.y, odd.y) * da;
    v.b = vec4<f32>(even.z, odd.z, even.w, odd.w) * db;
    //#endif
    //#if K_NIBBLES
    let four = (at + $K_CODES$u + (dim / 8u) * 64u + 8u * octet) / 4u;
    let shift = vec4<u32>(8u * (dim % 4u) + 4u * ((dim / 4u) % 2u));
    let a = vec4<f32>(($PAGES$_fours[four] >> shift) & vec4<u32>(15u));
    let b = vec4<f32>(($PAGES$_fours[four + 1u] >> shift) & vec4<u32>(15u));
    //#if K_ASYM
    let ms = $PAGES$_fours[(at + ($GROUPS$u + dim / 32u) * 32u + 4u * octet) / 4u];
    v.a = a * da + vec4<f32>(unpack2x16float(ms.x), unpack2x16float(ms.y));
    v.b = b * db + vec4<f32>(unpack2x16float(ms.z), unpack2x16float(ms.w));
    //#else
    v.a = (a - 8.0) * da;
    v.b = (b - 8.0) * db;
    //#endif
    //#endif
    return v;
}
