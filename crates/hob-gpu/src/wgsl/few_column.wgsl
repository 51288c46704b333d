// Block b of column $c$, times that of all weight rows at hand.
//#if FLOATS
let x0 = x_at($c$u, 2u * b);
let x1 = x_at($c$u, 2u * b + 1u);
//#else
//#if EXACT
//#for i 8
let v$i$ = x_at($c$u, 8u * b + $i$u);
//#endfor
//#else
let x0 = codes[(2u * sizes.first_row + 2u * $c$u) * BLOCKS + b];
let x1 = codes[(2u * sizes.first_row + 2u * $c$u + 1u) * BLOCKS + b];
let form = meta_[(sizes.first_row + $c$u) * BLOCKS + b];
let d = bitcast<f32>(form.x);
let sums = vec2(bitcast<i32>(form.y << 16u) >> 16u, bitcast<i32>(form.y) >> 16u);
let total = sums.x + sums.y;
//#endif
//#endif
//#for m MOST
//#if IN_$m$
//#for r BATCH
{
    let w = w_$m$_$r$;
    //#if FLOATS
    acc_$m$_$q$_$r$_$c$ += dot(w[0], x0) + dot(w[1], x1);
    //#else
    //#if EXACT
    //#for i 8
    acc_$m$_$q$_$r$_$c$ += dot(w[$i$], v$i$);
    //#endfor
    //#else
    let s = s_$m$_$r$;
    //#if HALVES_$m$
    let lo = whole(dot16(w.lo, x0, WHOLE - OFFSET_$m$ * sums.x));
    let hi = whole(dot16(w.hi, x1, WHOLE - OFFSET_$m$ * sums.y));
    acc_$m$_$q$_$r$_$c$ += (s.s.x * lo + s.s.y * hi) * d;
    //#if MINIMA_$m$
    acc_$m$_$q$_$r$_$c$ += dot(s.m, vec2<f32>(sums)) * d;
    //#endif
    //#else
    let dots = dot16(w.hi, x1, dot16(w.lo, x0, WHOLE - OFFSET_$m$ * total));
    acc_$m$_$q$_$r$_$c$ += whole(dots) * (s.s.x * d);
    //#if MINIMA_$m$
    acc_$m$_$q$_$r$_$c$ += s.m.x * (f32(total) * d);
    //#endif
    //#endif
    //#endif
    //#endif
}
//#endfor
//#endif
//#endfor
