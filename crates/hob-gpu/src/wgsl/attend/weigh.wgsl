// Codes of weights times the scales of V: a task is 16 positions of a block, four columns and a group of dimensions.
//#for r ROUNDS
let task$r$ = $r$u * LANES + lane;
let v$r$ = task$r$ % COLUMN_FOURS;
let quarter$r$ = (task$r$ / COLUMN_FOURS) % 4u;
let g$r$ = (task$r$ / (4u * COLUMN_FOURS)) % $GROUPS$u;
let k$r$ = task$r$ / (4u * COLUMN_FOURS * $GROUPS$u);
let on$r$ = task$r$ < $TASKS$u && round + k$r$ < stop;
var at$r$ = Block(0u, 0u, 3u);
if (on$r$) {
    at$r$ = block_at(table, first_block, round + k$r$, kv_head);
    let w = (64u * k$r$ + 16u * quarter$r$) * COLUMN_FOURS + v$r$;
    var most = vec4<f32>(0.0);
    //#for i 8
    {
        let d = unpack2x16float(vs$r$_$i$);
        most = max(most, weights[w + 2u * $i$u * COLUMN_FOURS] * d.x);
        most = max(most, weights[w + (2u * $i$u + 1u) * COLUMN_FOURS] * d.y);
    }
    //#endfor
    w_most[task$r$] = most;
}
//#endfor
workgroupBarrier();
//#for r ROUNDS
if (on$r$ && at$r$.kind < 2u) {
    let w = (64u * k$r$ + 16u * quarter$r$) * COLUMN_FOURS + v$r$;
    let four = task$r$ - quarter$r$ * COLUMN_FOURS;
    let most = max(max(w_most[four], w_most[four + COLUMN_FOURS]), max(w_most[four + 2u * COLUMN_FOURS], w_most[four + 3u * COLUMN_FOURS]));
    let usable = most > vec4<f32>($W_MOST$ / 3.4e38);
    let factor = select(vec4<f32>(0.0), $W_MOST$ / most, usable);
    let codes = ((k$r$ * $GROUPS$u + g$r$) * 16u + 4u * quarter$r$) * COLUMN_FOURS + v$r$;
    //#if V_NIBBLES
    // Of the codes themselves: taking MAGIC away again may be optimized into leaving out the rounding.
    var sum = vec4<u32>(0u);
    //#endif
    //#if V_ASYM
    var minima = vec4<f32>(0.0);
    //#endif
    //#if V_ASYM
    //#for i 8
    var m$i$ = 0u;
    //#endfor
    let minima_at = at$r$.v + ($GROUPS$u + g$r$) * 32u + 8u * quarter$r$;
    if (at$r$.kind == 0u) {
        //#for i 8
        m$i$ = pages[minima_at + $i$u];
        //#endfor
    }
    //#if FIRST
    if (at$r$.kind == 1u) {
        //#for i 8
        m$i$ = first_pages[minima_at + $i$u];
        //#endfor
    }
    //#endif
    //#endif
    var word = vec4<u32>(0u);
    //#if V_Q8
    var low_word = vec4<u32>(0u);
    //#endif
    //#for n 8
    {
        let d = unpack2x16float(vs$r$_$n$);
        let x = weights[w + 2u * $n$u * COLUMN_FOURS];
        let y = weights[w + (2u * $n$u + 1u) * COLUMN_FOURS];
        let cx = fma(x * d.x, factor, vec4<f32>(MAGIC));
        let cy = fma(y * d.y, factor, vec4<f32>(MAGIC));
        //#if V_ASYM
        let m = unpack2x16float(m$n$);
        minima = fma(x, vec4<f32>(m.x), minima);
        minima = fma(y, vec4<f32>(m.y), minima);
        //#endif
        let bx = bitcast<vec4<u32>>(cx) & vec4<u32>(0xffffu);
        let by = bitcast<vec4<u32>>(cy) & vec4<u32>(0xffffu);
        let shift = vec4<u32>(16u * ($n$u % 2u));
        //#if V_NIBBLES
        sum += bx + by;
        //#endif
        //#if V_Q8
        // High and low bytes, the low one signed.
        word |= (((bx + 128u) >> vec4<u32>(8u)) | (((by + 128u) >> vec4<u32>(8u)) << vec4<u32>(8u))) << shift;
        low_word |= ((bx & vec4<u32>(255u)) | ((by & vec4<u32>(255u)) << vec4<u32>(8u))) << shift;
        //#else
        word |= (bx | (by << vec4<u32>(8u))) << shift;
        //#endif
        if ($n$u % 2u == 1u) {
            w_codes[codes + ($n$u / 2u) * COLUMN_FOURS] = word;
            word = vec4<u32>(0u);
            //#if V_Q8
            w_lows[codes + ($n$u / 2u) * COLUMN_FOURS] = low_word;
            low_word = vec4<u32>(0u);
            //#endif
        }
    }
    //#endfor
    //#if V_NIBBLES
    //#if V_ASYM
    w_adds[task$r$] = minima;
    //#else
    // The codes of V are stored plus 8.
    w_adds[task$r$] = -8.0 * vec4<f32>(sum) * select(vec4<f32>(0.0), most / $W_MOST$, usable);
    //#endif
    //#endif
}
//#endfor
workgroupBarrier();
