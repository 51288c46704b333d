//#for u STEPS
let b_$u$ = b + $u$u * TEAM;
//#for r ROWS
//#if FLOATS
let w_$u$_$r$ = piece_$S$(row_$r$, blocks, b_$u$);
//#else
//#if EXACT
let w_$u$_$r$ = weights_$S$(row_$r$, blocks, b_$u$);
//#else
let w_$u$_$r$ = codes_$S$(row_$r$, blocks, b_$u$);
let s_$u$_$r$ = scales_$S$(row_$r$, blocks, b_$u$);
//#endif
//#endif
//#endfor
//#endfor
//#for u STEPS
//#for c COLUMNS
{
    //#if FLOATS
    let x0 = x_at(x_$c$, 2u * b_$u$);
    let x1 = x_at(x_$c$, 2u * b_$u$ + 1u);
    //#for r ROWS
    acc_$r$_$c$ += dot(w_$u$_$r$[0], x0) + dot(w_$u$_$r$[1], x1);
    //#endfor
    //#else
    //#if EXACT
    //#for i 8
    let v$i$ = x_at(x_$c$, 8u * b_$u$ + $i$u);
    //#endfor
    //#for r ROWS
    //#for i 8
    acc_$r$_$c$ += dot(w_$u$_$r$[$i$], v$i$);
    //#endfor
    //#endfor
    //#else
    let x0 = codes[2u * x_$c$ * blocks + b_$u$];
    let x1 = codes[(2u * x_$c$ + 1u) * blocks + b_$u$];
    let form = meta_[x_$c$ * blocks + b_$u$];
    let d = bitcast<f32>(form.x);
    let sums = vec2(bitcast<i32>(form.y << 16u) >> 16u, bitcast<i32>(form.y) >> 16u);
    //#for r ROWS
    {
        let w = w_$u$_$r$;
        let s = s_$u$_$r$;
        //#if HALVES
        let dots = vec2(dot16(w.lo, x0), dot16(w.hi, x1)) - OFFSET_$S$ * sums;
        acc_$r$_$c$ += dot(s.s, vec2<f32>(dots)) * d;
        //#if MINIMA
        acc_$r$_$c$ += dot(s.m, vec2<f32>(sums)) * d;
        //#endif
        //#else
        let dots = dot16(w.lo, x0) + dot16(w.hi, x1) - OFFSET_$S$ * (sums.x + sums.y);
        acc_$r$_$c$ += f32(dots) * (s.s.x * d);
        //#if MINIMA
        acc_$r$_$c$ += s.m.x * (f32(sums.x + sums.y) * d);
        //#endif
        //#endif
    }
    //#endfor
    //#endif
    //#endif
}
//#endfor
//#endfor
