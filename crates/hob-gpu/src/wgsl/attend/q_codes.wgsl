// One lane per four dimensions of four columns.
for (var i = lane; i < HEAD_DIM / 4u * COLUMN_FOURS; i += LANES) {
    let v = i % COLUMN_FOURS;
    let word = i / COLUMN_FOURS;
    let group = word / 8u;
    var most = vec4<f32>(0.0);
    //#for k 32
    most = max(most, abs(queries[(32u * group + $k$u) * COLUMN_FOURS + v]));
    //#endfor
    // What is neither 0 nor out of reach: else all codes are 0.
    let usable = (most > vec4<f32>($Q_MOST$ / 3.4e38)) & (most < vec4<f32>(3.4e38));
    let factor = select(vec4<f32>(0.0), $Q_MOST$ / most, usable);
    var codes = vec4<u32>(0u);
    //#if K_Q8
    var lows = vec4<u32>(0u);
    //#endif
    //#for k 4
    {
        let code = vec4<i32>(round(queries[(4u * word + $k$u) * COLUMN_FOURS + v] * factor));
        //#if K_Q8
        let high = (code + 128) >> vec4<u32>(8u);
        lows |= (bitcast<vec4<u32>>(code - 256 * high) & vec4<u32>(255u)) << vec4<u32>(8u * $k$u);
        codes |= (bitcast<vec4<u32>>(high) & vec4<u32>(255u)) << vec4<u32>(8u * $k$u);
        //#else
        codes |= (bitcast<vec4<u32>>(code) & vec4<u32>(255u)) << vec4<u32>(8u * $k$u);
        //#endif
    }
    //#endfor
    q_codes[word * COLUMN_FOURS + v] = codes;
    //#if K_Q8
    q_lows[word * COLUMN_FOURS + v] = lows;
    //#endif
    if (word % 8u == 0u) {
        q_scales[group * COLUMN_FOURS + v] = select(vec4<f32>(0.0), most / $Q_MOST$, usable);
    }
}
workgroupBarrier();
//#if K_NIBBLES
for (var i = lane; i < HEAD_DIM / 32u * COLUMN_FOURS; i += LANES) {
    let v = i % COLUMN_FOURS;
    let group = i / COLUMN_FOURS;
    var sum = vec4<i32>(0);
    //#for k 8
    sum += dots(0x01010101u, q_codes[(8u * group + $k$u) * COLUMN_FOURS + v]);
    //#endfor
    //#if K_ASYM
    q_sums[i] = vec4<f32>(sum) * q_scales[i];
    //#else
    // Where products start: the codes of K are stored plus 8.
    q_sums[i] = MAGIC - 8.0 * vec4<f32>(sum);
    //#endif
}
workgroupBarrier();
//#endif
