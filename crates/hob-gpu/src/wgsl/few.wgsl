// All products of one linear on few rows ("columns" here). A workgroup computes GROUP_ROWS rows of one product (of gate
// and of up); a team of TEAM lanes computes a few of them, every lane its share of the blocks.
struct Sizes {
    cols: u32, blocks: u32, first_row: u32, rows: u32, out_blocks: u32, out_row: u32,
    //#for p PRODUCTS
    rows_$p$: u32, at_$p$: u32, group_$p$: u32, width_$p$: u32, out_$p$: u32,
    //#endfor
}
var<immediate> sizes: Sizes;
//#include bindings

const TEAM = $TEAM$u;
const LANES = $LANES$u;
const GROUP_ROWS = $GROUP_ROWS$u;
// Sums of one value that subgroups leave.
const PARTS = $PARTS$u;
const SLOTS = $SLOTS$u;

var<workgroup> sums: array<f32, SLOTS * PARTS>;
// Lanes whose sum one of them writes.
var<private> span: u32;

//#include unpack

//#if INT8
fn dot16(w: vec4<u32>, x: vec4<u32>) -> i32 {
    return dot4I8Packed(w.x, x.x) + dot4I8Packed(w.y, x.y) + dot4I8Packed(w.z, x.z) + dot4I8Packed(w.w, x.w);
}
//#endif

//#if F32_FORM
// Values 4 * at..4 * at + 4 of a row; 0 past its end.
fn x_at(row: u32, at: u32) -> vec4<f32> {
    //#if ALIGNED
    if (4u * at < sizes.cols) {
        return x[row * (sizes.cols / 4u) + at];
    }
    return vec4(0.0);
    //#else
    var v = vec4(0.0);
    //#for i 4
    if (4u * at + $i$u < sizes.cols) {
        v[$i$] = x[row * sizes.cols + 4u * at + $i$u];
    }
    //#endfor
    return v;
    //#endif
}
//#endif

fn put(slot: u32, team_lane: u32, value: f32) {
    //#if SUBGROUPS
    var v = value;
    for (var m = 1u; m < span; m *= 2u) {
        v += subgroupShuffleXor(v, m);
    }
    if (team_lane % span == 0u) {
        sums[slot * PARTS + team_lane / span] = v;
    }
    //#else
    sums[slot * PARTS + team_lane] = value;
    //#endif
}

fn sum_of(slot: u32) -> f32 {
    var sum = 0.0;
    for (var i = 0u; i < TEAM / span; i++) {
        sum += sums[slot * PARTS + i];
    }
    return sum;
}

//#include products

//#if GATED
fn activate(x: f32) -> f32 {
    //#if SILU
    let u = -x;
    //#else
    let u = -1.5957692 * (x * fma(x * x, 0.044715, 1.0));
    //#endif
    return x / (1.0 + exp(min(u, 88.37626)));
}
//#if INT8_OUT
var<workgroup> values: array<f32, SLOTS / 2u>;
//#include quantize_block
//#endif
//#endif

@compute @workgroup_size($LANES$)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    //#if SUBGROUPS
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
    @builtin(subgroup_size) subgroup_size: u32,
    //#else
    @builtin(local_invocation_index) lane: u32,
    //#endif
) {
    //#if SUBGROUPS
    let lane = subgroup * subgroup_size + subgroup_lane;
    span = min(TEAM, subgroup_size);
    //#else
    span = 1u;
    //#endif
    let group = id.y * groups.x + id.x;
    let team = lane / TEAM;
    //#if GATED
    let first = group * GROUP_ROWS;
    for (var j = team * $ROWS$u; j < GROUP_ROWS; j += LANES / TEAM * $ROWS$u) {
        product_0(first + j, j * $COLUMNS$u, lane % TEAM);
        product_1(first + j, (GROUP_ROWS + j) * $COLUMNS$u, lane % TEAM);
    }
    workgroupBarrier();
    for (var t = lane; t < GROUP_ROWS * $COLUMNS$u; t += LANES) {
        let row = first + t % GROUP_ROWS;
        let column = t / GROUP_ROWS;
        let slot = (t % GROUP_ROWS) * $COLUMNS$u + column;
        var gate = sum_of(slot);
        var up = sum_of(GROUP_ROWS * $COLUMNS$u + slot);
        var value = 0.0;
        if (row < sizes.rows_0) {
            //#if BIAS_0
            gate += bias_0[sizes.out_0 + row];
            //#endif
            //#if BIAS_1
            up += bias_1[sizes.out_0 + row];
            //#endif
            value = activate(gate) * up;
            if (column < sizes.rows) {
                out_0[(sizes.out_row + column) * sizes.width_0 + sizes.out_0 + row] = value;
            }
        }
        //#if INT8_OUT
        values[t] = value;
        //#endif
    }
    //#if INT8_OUT
    workgroupBarrier();
    for (var t = lane; t < GROUP_ROWS / 4u * $COLUMNS$u; t += LANES) {
        let at = t / 8u * 32u;
        let column = at / GROUP_ROWS;
        let block = (sizes.out_0 + first + at % GROUP_ROWS) / 32u;
        if (column < sizes.rows && block < sizes.out_blocks) {
            let word = t % 8u;
            let piece = (2u * (sizes.out_row + column) + word / 4u) * sizes.out_blocks + block;
            out_codes[4u * piece + word % 4u] = quantize_word(at, word);
            if (word == 0u) {
                out_meta[(sizes.out_row + column) * sizes.out_blocks + block] = quantize_meta(at);
            }
        }
    }
    //#endif
    //#else
    let slot = lane / TEAM * $ROWS$u * $COLUMNS$u;
    let j = lane / TEAM * $ROWS$u;
    //#for p PRODUCTS
    if (group >= sizes.group_$p$ && group < sizes.group_$p$ + (sizes.rows_$p$ + GROUP_ROWS - 1u) / GROUP_ROWS) {
        product_$p$((group - sizes.group_$p$) * GROUP_ROWS + j, slot, lane % TEAM);
    }
    //#endfor
    workgroupBarrier();
    for (var t = lane; t < GROUP_ROWS * $COLUMNS$u; t += LANES) {
        let column = t / GROUP_ROWS;
        var value = sum_of((t % GROUP_ROWS) * $COLUMNS$u + column);
        //#for p PRODUCTS
        if (group >= sizes.group_$p$ && group < sizes.group_$p$ + (sizes.rows_$p$ + GROUP_ROWS - 1u) / GROUP_ROWS) {
            let row = (group - sizes.group_$p$) * GROUP_ROWS + t % GROUP_ROWS;
            if (row < sizes.rows_$p$ && column < sizes.rows) {
                //#if BIAS_$p$
                value += bias_$p$[sizes.out_$p$ + row];
                //#endif
                //#if ADD
                out_$p$[(sizes.out_row + column) * sizes.width_$p$ + sizes.out_$p$ + row] += value;
                //#else
                out_$p$[(sizes.out_row + column) * sizes.width_$p$ + sizes.out_$p$ + row] = value;
                //#endif
            }
        }
        //#endfor
    }
    //#endif
}
