// 32 pairs of one expert times 64 weight rows, on int8: 32 of gate and the same 32 of up, 64 of up alone, or 64 of down.
struct Sizes {
    blocks: u32, outputs: u32, top_k: u32, first_pair: u32,
    // Experts of this dispatch, and those that the bound parts begin with.
    first: u32, end: u32, a_first: u32, b_first: u32,
}
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read> order: array<u32>;
@group(0) @binding(1) var<storage, read> tiles: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> x_codes: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> x_meta: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read> w_a: array<vec4<u32>>;
//#if BIASED
@group(0) @binding($BIAS_A$) var<storage, read> bias_a: array<f32>;
//#endif
//#if GATED
@group(0) @binding(5) var<storage, read> w_b: array<vec4<u32>>;
//#if BIASED
@group(0) @binding($BIAS_B$) var<storage, read> bias_b: array<f32>;
//#endif
//#endif
//#if HIDDEN
@group(0) @binding($OUT$) var<storage, read_write> codes: array<u32>;
@group(0) @binding($META$) var<storage, read_write> meta_: array<vec2<u32>>;
//#else
@group(0) @binding($OUT$) var<storage, read_write> products: array<f32>;
//#endif

//#include unpack
//#include activate

const LANES = 128u;
const TILE = 32u;
// Blocks of 32 that are in workgroup memory at once.
const DEEP = $DEEP$u;

var<workgroup> x_lo: array<vec4<u32>, TILE * DEEP>;
var<workgroup> x_hi: array<vec4<u32>, TILE * DEEP>;
var<workgroup> x_form: array<vec2<u32>, TILE * DEEP>;
var<workgroup> w_lo: array<vec4<u32>, 64u * DEEP>;
var<workgroup> w_hi: array<vec4<u32>, 64u * DEEP>;
// s.xy, m.xy
var<workgroup> w_scale: array<vec4<f32>, 64u * DEEP>;
var<workgroup> pair_of: array<u32, TILE>;
//#if HIDDEN
// Outputs of a pair.
//#if GATED
const WIDE = 32u;
//#else
const WIDE = 64u;
//#endif
const VALUES = TILE * WIDE;
var<workgroup> values: array<f32, VALUES>;
//#include quantize_block
//#endif

// A weight row's block into place `to`; `output` is one of the expert's.
fn fetch(expert: u32, side: u32, output: u32, block: u32, to: u32) {
    if (output >= sizes.outputs || block >= sizes.blocks) {
        w_lo[to] = vec4<u32>(0u);
        w_hi[to] = vec4<u32>(0u);
        w_scale[to] = vec4<f32>(0.0);
        return;
    }
    //#if GATED
    if (side == 1u) {
        let row = (expert - sizes.b_first) * sizes.outputs + output;
        let c = codes_b(row, sizes.blocks, block);
        let s = scales_b(row, sizes.blocks, block);
        w_lo[to] = c.lo;
        w_hi[to] = c.hi;
        w_scale[to] = vec4<f32>(s.s, s.m);
        return;
    }
    //#endif
    let row = (expert - sizes.a_first) * sizes.outputs + output;
    let c = codes_a(row, sizes.blocks, block);
    let s = scales_a(row, sizes.blocks, block);
    w_lo[to] = c.lo;
    w_hi[to] = c.hi;
    w_scale[to] = vec4<f32>(s.s, s.m);
}

fn dot16(w: vec4<u32>, x: vec4<u32>) -> i32 {
    return dot4I8Packed(w.x, x.x) + dot4I8Packed(w.y, x.y) + dot4I8Packed(w.z, x.z) + dot4I8Packed(w.w, x.w);
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    if (group.y >= tiles[0].x) {
        return;
    }
    let tile = tiles[group.y + 1u];
    let expert = tile.x;
    if (expert < sizes.first || expert >= sizes.end) {
        return;
    }
    if (lane < TILE) {
        // Places past the tile's pairs repeat its last one and are not written.
        pair_of[lane] = order[tile.y + min(lane, tile.z - 1u)];
    }
    workgroupBarrier();
    let column = lane % 8u;
    let line = lane / 8u;
    //#for i 2
    //#for j 8
    var acc_$i$_$j$ = 0.0;
    //#endfor
    //#endfor
    for (var block = 0u; block < sizes.blocks; block += DEEP) {
        for (var n = lane; n < TILE * DEEP; n += LANES) {
            let b = block + n / TILE;
            let pair = sizes.first_pair + pair_of[n % TILE];
            //#if HIDDEN
            let at = pair / sizes.top_k;
            //#else
            let at = pair;
            //#endif
            x_lo[n] = vec4<u32>(0u);
            x_hi[n] = vec4<u32>(0u);
            x_form[n] = vec2<u32>(0u);
            if (b < sizes.blocks) {
                x_lo[n] = x_codes[2u * at * sizes.blocks + b];
                x_hi[n] = x_codes[(2u * at + 1u) * sizes.blocks + b];
                x_form[n] = x_meta[at * sizes.blocks + b];
            }
        }
        // Neighbouring lanes fetch neighbouring blocks of a row.
        for (var n = lane; n < 64u * DEEP; n += LANES) {
            let w = n / DEEP;
            //#if GATED
            let output = 32u * group.x + w % 32u;
            //#else
            let output = 64u * group.x + w;
            //#endif
            fetch(expert, w / 32u, output, block + n % DEEP, (n % DEEP) * 64u + w);
        }
        workgroupBarrier();
        for (var b = 0u; b < DEEP; b++) {
            //#for i 2
            let lo_$i$ = x_lo[b * TILE + line + 16u * $i$u];
            let hi_$i$ = x_hi[b * TILE + line + 16u * $i$u];
            let form_$i$ = x_form[b * TILE + line + 16u * $i$u];
            let d_$i$ = bitcast<f32>(form_$i$.x);
            let sums_$i$ = vec2(bitcast<i32>(form_$i$.y << 16u) >> 16u, bitcast<i32>(form_$i$.y) >> 16u);
            //#endfor
            //#for j 8
            {
                let at = b * 64u + column + 8u * $j$u;
                let lo = w_lo[at];
                let hi = w_hi[at];
                let scale = w_scale[at];
                //#for i 2
                {
                    let dots = vec2(dot16(lo, lo_$i$), dot16(hi, hi_$i$)) - offset_of($j$u) * sums_$i$;
                    acc_$i$_$j$ += d_$i$ * (dot(scale.xy, vec2<f32>(dots)) + dot(scale.zw, vec2<f32>(sums_$i$)));
                }
                //#endfor
            }
            //#endfor
        }
        workgroupBarrier();
    }
    //#if HIDDEN
    //#if GATED
    // Outputs column + 8 j; j from 4 on are those of up.
    //#for j 4
    //#if BIASED
    let at_$j$ = expert * sizes.outputs + min(32u * group.x + column + 8u * $j$u, sizes.outputs - 1u);
    let bias_$j$ = vec2(bias_a[at_$j$], bias_b[at_$j$]);
    //#else
    let bias_$j$ = vec2(0.0);
    //#endif
    //#endfor
    //#for i 2
    let ups_$i$ = array(acc_$i$_4, acc_$i$_5, acc_$i$_6, acc_$i$_7);
    //#for j 4
    values[(line + 16u * $i$u) * 32u + column + 8u * $j$u] =
        gated(acc_$i$_$j$ + bias_$j$.x, ups_$i$[$j$] + bias_$j$.y);
    //#endfor
    //#endfor
    //#else
    //#for i 2
    //#for j 8
    values[(line + 16u * $i$u) * WIDE + column + 8u * $j$u] = alone(acc_$i$_$j$);
    //#endfor
    //#endfor
    //#endif
    workgroupBarrier();
    let out_blocks = (sizes.outputs + 31u) / 32u;
    for (var n = lane; n < TILE * WIDE / 4u; n += LANES) {
        let line_ = 4u * n / WIDE;
        let half = n / 8u % (WIDE / 32u);
        let word = n % 8u;
        let block_ = group.x * (WIDE / 32u) + half;
        let pair = sizes.first_pair + pair_of[line_];
        if (line_ < tile.z && block_ < out_blocks) {
            let piece = (2u * pair + word / 4u) * out_blocks + block_;
            let from_ = WIDE * line_ + 32u * half;
            codes[4u * piece + word % 4u] = quantize_word(from_, word);
            if (word == 0u) {
                meta_[pair * out_blocks + block_] = quantize_meta(from_);
            }
        }
    }
    //#else
    //#for i 2
    if (line + 16u * $i$u < tile.z) {
        let start = pair_of[line + 16u * $i$u] * sizes.outputs;
        //#for j 8
        if (64u * group.x + column + 8u * $j$u < sizes.outputs) {
            //#if BIASED
            let b = bias_a[expert * sizes.outputs + 64u * group.x + column + 8u * $j$u];
            //#else
            let b = 0.0;
            //#endif
            products[start + 64u * group.x + column + 8u * $j$u] = acc_$i$_$j$ + b;
        }
        //#endfor
    }
    //#endfor
    //#endif
}

fn offset_of(j: u32) -> i32 {
    //#if GATED
    return select(OFFSET_a, OFFSET_b, j >= 4u);
    //#else
    return OFFSET_a;
    //#endif
}
