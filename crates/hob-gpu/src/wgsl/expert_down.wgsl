// The experts' outputs of one row, weighted and added up: a team of lanes makes one output of all experts of the row,
// so that no two of them write the same float. Where a norm follows, a workgroup has a block of outputs and writes the
// norm's rows and their int8 form as well, all but the factor of the row.
struct Sizes {
    rows: u32, experts: u32,
    // Experts of this dispatch, and the one that the bound part begins with.
    first: u32, end: u32, down_first: u32, add: u32,
}
var<immediate> sizes: Sizes;
//#include bindings

const TEAM = $TEAM$u;
const LANES = $LANES$u;
const OUTPUTS = $OUTPUTS$u;
const TOP = $TOP$u;
const COLS = $COLS$u;
const BLOCKS = $BLOCKS$u;
const COUNT = TOP * BLOCKS;
const GROUP_ROWS = LANES / TEAM;
// Sums of one value that subgroups leave.
const PARTS = $PARTS$u;

//#include unpack
//#include product_d

var<workgroup> ids: array<u32, TOP>;
var<workgroup> weights: array<f32, TOP>;
var<workgroup> sums: array<f32, GROUP_ROWS * PARTS>;
//#include team_sum
//#if FOLD
var<workgroup> values: array<f32, 32>;
//#if !SHARED
var<workgroup> stream: array<f32, 32>;
//#endif
//#include quantize_block
//#endif

// Output `at` of the workgroup's.
fn value_of(at: u32, output: u32) -> f32 {
    var all = 0.0;
    for (var i = 0u; i < TEAM / span; i++) {
        all += sums[at * PARTS + i];
    }
    //#if BIASED
    for (var slot = 0u; slot < TOP; slot++) {
        let expert = ids[slot];
        if (expert >= sizes.first && expert < sizes.end) {
            all = fma(weights[slot], bias[expert * OUTPUTS + min(output, OUTPUTS - 1u)], all);
        }
    }
    //#endif
    return all;
}

// Turn `i` of a lane: a block of one of the row's experts.
fn term(i: u32, output: u32, row: u32, before: f32) -> f32 {
    let slot = i / BLOCKS;
    let expert = ids[slot];
    //#if PARTED
    if (expert < sizes.first || expert >= sizes.end) {
        return before;
    }
    //#endif
    let d = (expert - sizes.down_first) * OUTPUTS + output;
    return fma(weights[slot], product_d(d, BLOCKS, i % BLOCKS, row * TOP + slot), before);
}

@compute @workgroup_size($LANES$)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
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
    let row = group.y + 65535u * group.z;
    if (row >= sizes.rows) {
        return;
    }
    for (var n = lane; n < TOP; n += LANES) {
        ids[n] = min(u32(routes[row * 2u * TOP + n]), sizes.experts - 1u);
        weights[n] = routes[row * 2u * TOP + TOP + n];
    }
    let first = GROUP_ROWS * group.x;
    //#if FOLD
    // What the end needs of memory is asked for before the weights, and not looked at before them.
    let word = lane % 8u;
    let place = (row * OUTPUTS + first) / 4u + word;
    let before = out[place];
    let norm = norm_weight[first / 4u + word];
    //#endif
    workgroupBarrier();
    let output = first + lane / TEAM;
    var sum = 0.0;
    if (output < OUTPUTS) {
        //#if STRAIGHT
        //#for t TURNS
        sum = term(lane % TEAM + $t$u * TEAM, output, row, sum);
        //#endfor
        //#else
        for (var i = lane % TEAM; i < COUNT; i += TEAM) {
            sum = term(i, output, row, sum);
        }
        //#endif
    }
    sum = team_sum(sum);
    if (lane % span == 0u) {
        sums[lane / TEAM * PARTS + lane % TEAM / span] = sum;
    }
    workgroupBarrier();
    //#if FOLD
    // All lanes go along: eight neighbours make the block.
    var h: vec4<f32>;
    //#for i 4
    h[$i$] = value_of(4u * word + $i$u, first + 4u * word + $i$u);
    //#endfor
    h = before + h;
    let n = h * norm;
    let blocks = OUTPUTS / 32u;
    let piece = (2u * row + word / 4u) * blocks + group.x;
    //#if SHARED
    let form = quantize_shared(n);
    var square = dot(h, h);
    square += subgroupShuffleXor(square, 1u);
    square += subgroupShuffleXor(square, 2u);
    square += subgroupShuffleXor(square, 4u);
    if (lane < 8u) {
        out[place] = h;
        normed[place] = n;
        codes[4u * piece + word % 4u] = form.codes;
        if (word == 0u) {
            meta_[row * blocks + group.x] = form.meta_;
            squares[row * blocks + group.x] = square;
        }
    }
    //#else
    if (lane < 8u) {
        out[place] = h;
        normed[place] = n;
        //#for i 4
        values[4u * word + $i$u] = n[$i$];
        stream[4u * word + $i$u] = h[$i$];
        //#endfor
    }
    workgroupBarrier();
    if (lane < 8u) {
        codes[4u * piece + word % 4u] = quantize_word(0u, word);
        if (word == 0u) {
            meta_[row * blocks + group.x] = quantize_meta(0u);
            var square = 0.0;
            for (var i = 0u; i < 32u; i++) {
                square = fma(stream[i], stream[i], square);
            }
            squares[row * blocks + group.x] = square;
        }
    }
    //#endif
    //#else
    if (lane < GROUP_ROWS && first + lane < OUTPUTS) {
        let at = row * OUTPUTS + first + lane;
        var all = value_of(lane, first + lane);
        if (sizes.add != 0u) {
            all += out[at];
        }
        out[at] = all;
    }
    //#endif
}
