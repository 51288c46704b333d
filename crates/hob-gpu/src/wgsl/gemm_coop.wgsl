enable f16;
enable wgpu_cooperative_matrix;
// A tile of $BM$ activation rows by $BN$ weight rows per workgroup, in steps of $BK$ along the input width, on
// cooperative matrices of 16 x 16 x 16 f16 with f32 sums, $WM$ x $WN$ per subgroup. Both operands lie in workgroup
// memory as f16, $S$ vectors of four per row, two of them unused so that rows start in different banks; what the next
// step needs travels into registers meanwhile. A gated pair takes one half of the weight rows each, and so does
// every subgroup's share of them.
//#include finish
//#include unpack
//#if HALF_OUT
//#include finite_half
//#endif

// A block of 32 weights: floats as f16, or codes with what makes weights of them.
//#if FLOATS
struct Raw { p: array<vec4<f16>, 8> }

fn finite(v: vec4<f32>) -> vec4<f16> {
    return vec4<f16>(clamp(v, vec4(-65504.0), vec4(65504.0)));
}
//#else
struct Raw { lo: vec4<u32>, hi: vec4<u32>, s: vec2<f32>, m: vec2<f32> }

// Four codes as weights. A byte with its sign flipped, under the bits of 1024, is the half 1152 + code: `m` has the 1152
// taken off. Scaled in f32, rounded once.
fn four_halves(word: u32, s: f32, m: f32) -> vec4<f16> {
    let biased = word ^ 0x80808080u;
    let even = unpack2x16float((biased & 0x00ff00ffu) | 0x64006400u);
    let odd = unpack2x16float(((biased >> 8u) & 0x00ff00ffu) | 0x64006400u);
    return vec4<f16>(fma(vec4(even.x, odd.x, even.y, odd.y), vec4(s), vec4(m)));
}
//#endif

//#include fetch_a
//#if GATED
//#include fetch_b
//#endif

// In vectors of four: with f16 in it a vector is loaded into a cooperative matrix at once, and other types are refused by
// one driver's compiler.
var<workgroup> tile_x: array<vec4<f16>, $SIZE_X$>;
var<workgroup> tile_w: array<vec4<f16>, $SIZE_W$>;
// 16 x 16 sums per subgroup, on their way from a cooperative matrix to its 32 lanes.
var<workgroup> sums: array<vec4<f32>, $SUMS$>;

fn put_x(at: u32, v: vec4<u32>) {
    tile_x[at] = vec4<f16>(vec4(unpack2x16float(v.x), unpack2x16float(v.y)));
    tile_x[at + 1u] = vec4<f16>(vec4(unpack2x16float(v.z), unpack2x16float(v.w)));
}

fn put_w(at: u32, raw: Raw) {
    //#if FLOATS
    //#for i 8
    tile_w[at + $i$u] = raw.p[$i$];
    //#endfor
    //#else
    tile_w[at] = four_halves(raw.lo.x, raw.s.x, raw.m.x);
    tile_w[at + 1u] = four_halves(raw.lo.y, raw.s.x, raw.m.x);
    tile_w[at + 2u] = four_halves(raw.lo.z, raw.s.x, raw.m.x);
    tile_w[at + 3u] = four_halves(raw.lo.w, raw.s.x, raw.m.x);
    tile_w[at + 4u] = four_halves(raw.hi.x, raw.s.y, raw.m.y);
    tile_w[at + 5u] = four_halves(raw.hi.y, raw.s.y, raw.m.y);
    tile_w[at + 6u] = four_halves(raw.hi.z, raw.s.y, raw.m.y);
    tile_w[at + 7u] = four_halves(raw.hi.w, raw.s.y, raw.m.y);
    //#endif
}

fn fetch_x(row0: u32, u: u32, step: u32) -> vec4<u32> {
    let pieces = (sizes.x_width + 31u) / 32u * 4u;
    let row = sizes.first_row + min(row0 + u / $PIECES$u, sizes.rows - 1u);
    let piece = step * $PIECES$u + u % $PIECES$u;
    //#if TAIL
    if (piece >= pieces) {
        return vec4(0u);
    }
    //#endif
    return x[row * pieces + piece];
}

// Where unit `u` of a step, one of $PER_ROW$ blocks of a tile row, comes from.
fn fetch_w(col0: u32, u: u32, step: u32) -> Raw {
    let r = u / $PER_ROW$u;
    let block = step * $PER_ROW$u + u % $PER_ROW$u;
    //#if GATED
    if (r >= $COLS$u) {
        return fetch_b(sizes.row_b + min(col0 + r - $COLS$u, sizes.cols - 1u), block);
    }
    //#endif
    return fetch_a(sizes.row_a + min(col0 + r, sizes.cols - 1u), block);
}

@compute @workgroup_size($THREADS$)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let row0 = group.x * $BM$u;
    let col0 = group.y * $COLS$u;
    let wm = (subgroup / $WARPS_N$u) * $WM$u;
    let wn = (subgroup % $WARPS_N$u) * $WARP_COLS$u;
    //#for i MF
    //#for h SIDES
    //#for j NF
    var acc_$i$_$h$_$j$: coop_mat16x16<f32, C>;
    //#endfor
    //#endfor
    //#endfor
    //#for i XU
    var x_$i$ = fetch_x(row0, t + $i$u * $THREADS$u, 0u);
    //#endfor
    //#for i WU
    var w_$i$ = fetch_w(col0, t + $i$u * $THREADS$u, 0u);
    //#endfor
    let steps = (sizes.blocks + $PER_ROW$u - 1u) / $PER_ROW$u;
    for (var step = 0u; step < steps; step++) {
        //#for i XU
        put_x((t + $i$u * $THREADS$u) / $PIECES$u * $S$u + (t + $i$u * $THREADS$u) % $PIECES$u * 2u, x_$i$);
        //#endfor
        //#for i WU
        put_w((t + $i$u * $THREADS$u) / $PER_ROW$u * $S$u + (t + $i$u * $THREADS$u) % $PER_ROW$u * 8u, w_$i$);
        //#endfor
        workgroupBarrier();
        if (step + 1u < steps) {
            //#for i XU
            x_$i$ = fetch_x(row0, t + $i$u * $THREADS$u, step + 1u);
            //#endfor
            //#for i WU
            w_$i$ = fetch_w(col0, t + $i$u * $THREADS$u, step + 1u);
            //#endfor
        }
        //#for k KF
        //#for i MF
        let xa_$k$_$i$ = (wm + 16u * $i$u) * $S$u + 4u * $k$u;
        let x_$k$_$i$ = coopLoadT<coop_mat16x16<f16, A>>(&tile_x[xa_$k$_$i$], $S$u);
        //#endfor
        //#for h SIDES
        //#for j NF
        let wa_$k$_$h$_$j$ = (wn + 16u * $j$u + $h$u * $COLS$u) * $S$u + 4u * $k$u;
        let w_$k$_$h$_$j$ = coopLoad<coop_mat16x16<f16, B>>(&tile_w[wa_$k$_$h$_$j$], $S$u);
        //#for i MF
        acc_$i$_$h$_$j$ = coopMultiplyAdd(x_$k$_$i$, w_$k$_$h$_$j$, acc_$i$_$h$_$j$);
        //#endfor
        //#endfor
        //#endfor
        //#endfor
        workgroupBarrier();
    }
    let place = subgroup * 64u;
    //#for i MF
    //#for j NF
    coopStoreT(acc_$i$_0_$j$, &sums[place], 4u);
    workgroupBarrier();
    let low_$i$_$j$ = sums[place + lane];
    let high_$i$_$j$ = sums[place + lane + 32u];
    workgroupBarrier();
    let row_$i$_$j$ = row0 + wm + 16u * $i$u + lane / 4u;
    let col_$i$_$j$ = col0 + wn + 16u * $j$u + lane % 4u * 4u;
    //#if GATED
    coopStoreT(acc_$i$_1_$j$, &sums[place], 4u);
    workgroupBarrier();
    finish(row_$i$_$j$, col_$i$_$j$, low_$i$_$j$, sums[place + lane]);
    finish(row_$i$_$j$ + 8u, col_$i$_$j$, high_$i$_$j$, sums[place + lane + 32u]);
    workgroupBarrier();
    //#else
    finish(row_$i$_$j$, col_$i$_$j$, low_$i$_$j$, low_$i$_$j$);
    finish(row_$i$_$j$ + 8u, col_$i$_$j$, high_$i$_$j$, high_$i$_$j$);
    //#endif
    //#endfor
    //#endfor
}
