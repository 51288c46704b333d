// All products of one linear on few rows ("columns" here). A workgroup computes GROUP_ROWS rows of one product (of gate
// and of up); a team of TEAM lanes computes a few of them, every lane its share of the blocks. How wide the input is, is
// known to the compiler: it knows every turn of the loops over blocks, and reads ahead.
struct Sizes {
    first_row: u32, rows: u32, out_blocks: u32, out_row: u32, eps: f32,
    //#for p PRODUCTS
    rows_$p$: u32, at_$p$: u32, group_$p$: u32, width_$p$: u32, out_$p$: u32,
    //#endfor
    //#for n AHEAD
    pages_$n$: u32,
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
const COLS = $COLS$u;
const BLOCKS = $BLOCKS$u;

var<workgroup> sums: array<f32, SLOTS * PARTS>;
// Lanes whose sum one of them writes.
var<private> span: u32;

//#include unpack

//#if INT8
// In this order a device's product adds to what was there before.
fn dot16(w: vec4<u32>, x: vec4<u32>, before: i32) -> i32 {
    return before + dot4I8Packed(w.x, x.x) + dot4I8Packed(w.y, x.y) + dot4I8Packed(w.z, x.z) + dot4I8Packed(w.w, x.w);
}

// Sums start at the bits of 1.5 * 2^23, so that they are a float's once they are done: a subtraction takes the place of a
// conversion (what that gains was not measured). A block's sum is below 2^22.
const WHOLE = 0x4b400000;

fn whole(sum: i32) -> f32 {
    return bitcast<f32>(sum) - 12582912.0;
}
//#endif

//#if F32_FORM
// Values 4 * at..4 * at + 4 of a column; 0 past its end.
fn x_at(column: u32, at: u32) -> vec4<f32> {
    let row = sizes.first_row + column;
    //#if ALIGNED
    //#if EVEN
    return x[row * (COLS / 4u) + at];
    //#else
    if (4u * at < COLS) {
        return x[row * (COLS / 4u) + at];
    }
    return vec4(0.0);
    //#endif
    //#else
    var v = vec4(0.0);
    //#for i 4
    if (4u * at + $i$u < COLS) {
        v[$i$] = x[row * COLS + 4u * at + $i$u];
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

//#if EIGHTS
// Sums of 8 values for slots from `slot` on: lanes swap halves, so that each adds one value in the end.
fn put8(slot: u32, team_lane: u32, a: vec4<f32>, b: vec4<f32>) {
    let first = (team_lane & 1u) != 0u;
    let second = (team_lane & 2u) != 0u;
    let third = (team_lane & 4u) != 0u;
    let four = select(a, b, first) + subgroupShuffleXor(select(b, a, first), 1u);
    let two = select(four.xy, four.zw, second) + subgroupShuffleXor(select(four.zw, four.xy, second), 2u);
    var v = select(two.x, two.y, third) + subgroupShuffleXor(select(two.y, two.x, third), 4u);
    for (var m = 8u; m < span; m *= 2u) {
        v += subgroupShuffleXor(v, m);
    }
    let which = 4u * (team_lane & 1u) + (team_lane & 2u) + ((team_lane >> 2u) & 1u);
    if (team_lane % span < 8u) {
        sums[(slot + which) * PARTS + team_lane / span] = v;
    }
}
//#endif

fn sum_of(slot: u32) -> f32 {
    var sum = 0.0;
    for (var i = 0u; i < TEAM / span; i++) {
        sum += sums[slot * PARTS + i];
    }
    return sum;
}

//#if SCALED
// Rows that a folded norm left lack a factor. Blocks of a column, rounded up so that no subgroup has those of two.
const PADDED = $PADDED$u;
// Sums of squares that subgroups leave.
var<workgroup> row_squares: array<f32, $COLUMNS$u * PADDED / $SPAN$u>;

// `at` is the lane's place among the blocks of all columns.
fn put_square(at: u32, value: f32, subgroup_lane: u32, size: u32) {
    //#if SUBGROUPS
    let sum = subgroupAdd(value);
    //#else
    let sum = value;
    //#endif
    if (subgroup_lane == 0u && at < $COLUMNS$u * PADDED) {
        row_squares[at / size] = sum;
    }
}

// `size` lanes make a subgroup.
fn factor(column: u32, size: u32) -> f32 {
    var sum = 0.0;
    for (var i = 0u; i < (BLOCKS + size - 1u) / size; i++) {
        sum += row_squares[column * PADDED / size + i];
    }
    return 1.0 / sqrt(sum / f32(COLS) + sizes.eps);
}
//#endif

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

// Row `row` of the workgroup's, `at` of the product's.
fn gated_at(row: u32, column: u32, at: u32, r: f32) -> f32 {
    let slot = row * $COLUMNS$u + column;
    var gate = sum_of(slot);
    var up = sum_of(GROUP_ROWS * $COLUMNS$u + slot);
    //#if SCALED
    gate *= r;
    up *= r;
    //#endif
    //#if BIAS_0
    gate += bias_0[at];
    //#endif
    //#if BIAS_1
    up += bias_1[at];
    //#endif
    return activate(gate) * up;
}
//#endif
//#if FORM_OUT
var<workgroup> values: array<f32, GROUP_ROWS * $COLUMNS$u>;
//#include quantize_block
// Words of codes of a workgroup.
const FORM_WORDS = GROUP_ROWS / 4u * $COLUMNS$u;
//#endif
//#if FOLD
//#if !SHARED
// What the norm squares.
var<workgroup> stream: array<f32, GROUP_ROWS * $COLUMNS$u>;
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
    @builtin(local_invocation_index) subgroup: u32,
    //#endif
) {
    //#if !SUBGROUPS
    // Every lane by itself.
    let subgroup_lane = 0u;
    let subgroup_size = 1u;
    //#endif
    let lane = subgroup * subgroup_size + subgroup_lane;
    //#if SUBGROUPS
    span = min(TEAM, subgroup_size);
    //#else
    span = 1u;
    //#endif
    let group = id.y * groups.x + id.x;
    let team = lane / TEAM;
    //#if FORM_OUT
    let first = group * GROUP_ROWS;
    //#endif
    // What the end needs of memory is asked for before the weights, and not looked at before them.
    //#if SCALED
    //#for k SQUARES
    let square_at_$k$ = lane + $k$u * LANES;
    var square_$k$ = 0.0;
    if (square_at_$k$ / PADDED < sizes.rows && square_at_$k$ % PADDED < BLOCKS) {
        square_$k$ = squares[(sizes.first_row + square_at_$k$ / PADDED) * BLOCKS + square_at_$k$ % PADDED];
    }
    //#endfor
    //#endif
    //#if FOLD
    // Every lane ends with four rows of a column.
    //#for k EACH
    let column_$k$ = (lane + $k$u * LANES) / (GROUP_ROWS / 4u);
    let row_$k$ = 4u * ((lane + $k$u * LANES) % (GROUP_ROWS / 4u));
    let at_$k$ = ((sizes.out_row + column_$k$) * sizes.width_0 + first + row_$k$) / 4u;
    let kept_$k$ = column_$k$ < sizes.rows && first + row_$k$ < sizes.rows_0;
    var before_$k$ = vec4(0.0);
    var norm_$k$ = vec4(0.0);
    if (kept_$k$) {
        before_$k$ = out_0[at_$k$];
        norm_$k$ = norm_weight[(first + row_$k$) / 4u];
    }
    //#endfor
    //#endif
    //#if GATED
    //#if TOUCHES
    //#for n AHEAD
    var ahead_word_$n$ = 0u;
    //#endfor
    //#endif
    for (var j = team * $ROWS$u; j < GROUP_ROWS; j += LANES / TEAM * $ROWS$u) {
        //#if TOUCHES
        // Behind the first weights, or with them where there are no others: a word of a page of what is read soon.
        if (lane == 0u && j == select(0u, LANES / TEAM * $ROWS$u, LANES / TEAM * $ROWS$u < GROUP_ROWS)) {
            //#for n AHEAD
            if (group < sizes.pages_$n$) {
                ahead_word_$n$ = ahead_$n$[group * $PAGE_WORDS$u];
            }
            //#endfor
        }
        //#endif
        //#for m MOST
        //#if CALLED_$m$
        product_$m$(group * GROUP_ROWS + j, j * $COLUMNS$u, lane % TEAM);
        //#endif
        //#endfor
    }
    //#include put_squares
    workgroupBarrier();
    //#if FORM_SOON
    // A lane has four rows of a column, and eight make a block of the form: all lanes go along.
    //#for k EACH
    {
        let column = (lane + $k$u * LANES) / (GROUP_ROWS / 4u);
        let row = 4u * ((lane + $k$u * LANES) % (GROUP_ROWS / 4u));
        var value = vec4(0.0);
        if (column < sizes.rows && first + row < sizes.rows_0) {
            //#if SCALED
            let r = factor(column, subgroup_size);
            //#else
            let r = 1.0;
            //#endif
            //#for i 4
            value[$i$] = gated_at(row + $i$u, column, sizes.out_0 + first + row + $i$u, r);
            //#endfor
            let at = (sizes.out_row + column) * sizes.width_0 + sizes.out_0 + first + row;
            //#for i 4
            if (first + row + $i$u < sizes.rows_0) {
                out_0[at + $i$u] = value[$i$];
            } else {
                value[$i$] = 0.0;
            }
            //#endfor
        }
        let form = quantize_shared(value);
        let block = (sizes.out_0 + first + row) / 32u;
        if (column < sizes.rows && block < sizes.out_blocks) {
            let word = row / 4u % 8u;
            let piece = (2u * (sizes.out_row + column) + word / 4u) * sizes.out_blocks + block;
            out_codes[4u * piece + word % 4u] = form.codes;
            if (word == 0u) {
                out_meta[(sizes.out_row + column) * sizes.out_blocks + block] = form.meta_;
            }
        }
    }
    //#endfor
    //#else
    for (var t = lane; t < GROUP_ROWS * $COLUMNS$u; t += LANES) {
        let row = group * GROUP_ROWS + t % GROUP_ROWS;
        let column = t / GROUP_ROWS;
        var value = 0.0;
        if (row < sizes.rows_0) {
            //#if SCALED
            let r = factor(column, subgroup_size);
            //#else
            let r = 1.0;
            //#endif
            value = gated_at(t % GROUP_ROWS, column, sizes.out_0 + row, r);
            if (column < sizes.rows) {
                out_0[(sizes.out_row + column) * sizes.width_0 + sizes.out_0 + row] = value;
            }
        }
        //#if INT8_OUT
        values[t] = value;
        //#endif
    }
    //#endif
    //#else
    //#for p PRODUCTS
    if (group >= sizes.group_$p$ && group < sizes.group_$p$ + (sizes.rows_$p$ + GROUP_ROWS - 1u) / GROUP_ROWS) {
        for (var j = team * $ROWS$u; j < GROUP_ROWS; j += LANES / TEAM * $ROWS$u) {
            product_$p$((group - sizes.group_$p$) * GROUP_ROWS + j, j * $COLUMNS$u, lane % TEAM);
        }
    }
    //#endfor
    //#include put_squares
    workgroupBarrier();
    //#if FOLD
    //#for k EACH
    {
        var h = vec4(0.0);
        if (kept_$k$) {
            let slot = row_$k$ * $COLUMNS$u + column_$k$;
            //#for i 4
            h[$i$] = sum_of(slot + $i$u * $COLUMNS$u);
            //#endfor
            //#if SCALED
            h *= factor(column_$k$, subgroup_size);
            //#endif
            //#if BIAS_0
            //#for i 4
            h[$i$] += bias_0[first + row_$k$ + $i$u];
            //#endfor
            //#endif
            h = before_$k$ + h;
            out_0[at_$k$] = h;
            normed[at_$k$] = h * norm_$k$;
        }
        let n = h * norm_$k$;
        //#if SHARED
        let form = quantize_shared(n);
        var square = dot(h, h);
        square += subgroupShuffleXor(square, 1u);
        square += subgroupShuffleXor(square, 2u);
        square += subgroupShuffleXor(square, 4u);
        if (kept_$k$) {
            let word = row_$k$ / 4u % 8u;
            let block = (first + row_$k$) / 32u;
            let piece = (2u * (sizes.out_row + column_$k$) + word / 4u) * sizes.out_blocks + block;
            out_codes[4u * piece + word % 4u] = form.codes;
            if (word == 0u) {
                let meta_at = (sizes.out_row + column_$k$) * sizes.out_blocks + block;
                out_meta[meta_at] = form.meta_;
                out_squares[meta_at] = square;
            }
        }
        //#else
        if (column_$k$ < $COLUMNS$u) {
            //#for i 4
            values[column_$k$ * GROUP_ROWS + row_$k$ + $i$u] = n[$i$];
            stream[column_$k$ * GROUP_ROWS + row_$k$ + $i$u] = h[$i$];
            //#endfor
        }
        //#endif
    }
    //#endfor
    //#else
    for (var t = lane; t < GROUP_ROWS * $COLUMNS$u; t += LANES) {
        let column = t / GROUP_ROWS;
        var value = sum_of((t % GROUP_ROWS) * $COLUMNS$u + column);
        //#if SCALED
        value *= factor(column, subgroup_size);
        //#endif
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
    //#endif
    //#if FORM_LATE
    workgroupBarrier();
    for (var t = lane; t < FORM_WORDS; t += LANES) {
        let at = t / 8u * 32u;
        let column = at / GROUP_ROWS;
        let block = (sizes.out_0 + first + at % GROUP_ROWS) / 32u;
        let word = t % 8u;
        if (column < sizes.rows && block < sizes.out_blocks) {
            let piece = (2u * (sizes.out_row + column) + word / 4u) * sizes.out_blocks + block;
            out_codes[4u * piece + word % 4u] = quantize_word(at, word);
            if (word == 0u) {
                out_meta[(sizes.out_row + column) * sizes.out_blocks + block] = quantize_meta(at);
            }
        }
    }
    //#endif
    //#if FOLD
    //#if !SHARED
    // By lanes that have no part in the form.
    for (var t = LANES - 1u - lane; t < GROUP_ROWS / 32u * $COLUMNS$u; t += LANES) {
        let column = 32u * t / GROUP_ROWS;
        let block = (first + 32u * t % GROUP_ROWS) / 32u;
        if (column < sizes.rows && block < sizes.out_blocks) {
            var sum = 0.0;
            for (var i = 0u; i < 32u; i++) {
                sum = fma(stream[32u * t + i], stream[32u * t + i], sum);
            }
            out_squares[(sizes.out_row + column) * sizes.out_blocks + block] = sum;
        }
    }
    //#endif
    //#endif
    //#if TOUCHES
    if (lane == 0u && group < $MOST_PAGES$u) {
        var word = 0u;
        //#for n AHEAD
        word ^= ahead_word_$n$;
        //#endfor
        touched[group] = word;
    }
    //#endif
}
