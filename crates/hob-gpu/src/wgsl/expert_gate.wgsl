// activation(gate) * up, or activation(up) where there is no gate, of 32 neighbouring outputs of one (row, expert): a team
// of lanes makes one of them. How wide the input is, is known to the compiler: it knows every turn of the loop over blocks, and reads ahead.
struct Sizes {
    pairs: u32, experts: u32,
    // Experts of this dispatch, and those that the bound parts begin with.
    first: u32, end: u32, gate_first: u32, up_first: u32,
    // Of the norm whose factor the rows lack; of the routing.
    norm_eps: f32, eps: f32, scale: f32,
}
var<immediate> sizes: Sizes;
//#include bindings

const TEAM = $TEAM$u;
const LANES = 32u * TEAM;
const COLS = $COLS$u;
const BLOCKS = $BLOCKS$u;
const OUTPUTS = $OUTPUTS$u;
// Sums of one value that subgroups leave.
const PARTS = $PARTS$u;

//#include unpack
//#if !ALONE
//#include product_g
//#endif
//#include product_u
//#include activate
//#include lanes
//#if ROUTE
//#include route_row
//#else
const TOP = $TOP$u;
//#endif

//#if !ALONE
var<workgroup> gates: array<f32, 32u * PARTS>;
//#endif
var<workgroup> ups: array<f32, 32u * PARTS>;
//#include team_sum
//#if HIDDEN8
var<workgroup> values: array<f32, 32>;
//#include quantize_block
//#endif

// The gated value of output `at` of the workgroup's.
fn value_of(at: u32, expert: u32, first: u32, factor: f32) -> f32 {
    var up = 0.0;
    for (var i = 0u; i < TEAM / span; i++) {
        up += ups[at * PARTS + i];
    }
    up *= factor;
    //#if ALONE
    let v = alone(up);
    //#else
    var gate = 0.0;
    for (var i = 0u; i < TEAM / span; i++) {
        gate += gates[at * PARTS + i];
    }
    gate *= factor;
    //#if BIASED
    let place = expert * OUTPUTS + min(first + at, OUTPUTS - 1u);
    gate += bias_g[place];
    up += bias_u[place];
    //#endif
    let v = gated(gate, up);
    //#endif
    return select(0.0, v, first + at < OUTPUTS);
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
    subgroup_ = subgroup;
    subgroup_lane_ = subgroup_lane;
    subgroup_size_ = subgroup_size;
    let lane = subgroup * subgroup_size + subgroup_lane;
    span = min(TEAM, subgroup_size);
    //#else
    span = 1u;
    //#endif
    let pair = group.y + 65535u * group.z;
    if (pair >= sizes.pairs) {
        return;
    }
    let row = pair / TOP;
    let slot = pair % TOP;
    //#if SCALED
    // Asked for early, looked at late.
    var square = 0.0;
    for (var b = lane; b < BLOCKS; b += LANES) {
        square += squares[row * BLOCKS + b];
    }
    //#endif
    //#if ROUTE
    // Every workgroup chooses its row's experts: that takes less time than another dispatch. One more weighs them.
    choose(row, lane);
    if (group.x == (OUTPUTS + 31u) / 32u) {
        if (slot == 0u) {
            weigh(row, lane);
            for (var n = lane; n < TOP; n += LANES) {
                routes[row * 2u * TOP + n] = f32(ids[n]);
                routes[row * 2u * TOP + TOP + n] = weights[n];
            }
        }
        return;
    }
    let expert = min(ids[slot], sizes.experts - 1u);
    //#else
    let expert = min(u32(routes[row * 2u * TOP + slot]), sizes.experts - 1u);
    //#endif
    // Of another part: nothing to do. (No early return: lanes must stay together for barriers.)
    let mine = expert >= sizes.first && expert < sizes.end;
    let output = 32u * group.x + lane / TEAM;
    //#if !ALONE
    var gate = 0.0;
    //#endif
    var up = 0.0;
    if (mine && output < OUTPUTS) {
        //#if !ALONE
        let g = (expert - sizes.gate_first) * OUTPUTS + output;
        //#endif
        let u = (expert - sizes.up_first) * OUTPUTS + output;
        //#if STRAIGHT
        //#for t TURNS
        //#if !ALONE
        gate += product_g(g, BLOCKS, lane % TEAM + $t$u * TEAM, row);
        //#endif
        up += product_u(u, BLOCKS, lane % TEAM + $t$u * TEAM, row);
        //#endfor
        //#else
        for (var b = lane % TEAM; b < BLOCKS; b += TEAM) {
            //#if !ALONE
            gate += product_g(g, BLOCKS, b, row);
            //#endif
            up += product_u(u, BLOCKS, b, row);
        }
        //#endif
    }
    //#if !ALONE
    gate = team_sum(gate);
    //#endif
    up = team_sum(up);
    if (lane % span == 0u) {
        //#if !ALONE
        gates[lane / TEAM * PARTS + lane % TEAM / span] = gate;
        //#endif
        ups[lane / TEAM * PARTS + lane % TEAM / span] = up;
    }
    //#if SCALED
    put_part(square, lane);
    //#endif
    workgroupBarrier();
    //#if SCALED
    let factor = 1.0 / sqrt(all_parts() / f32(COLS) + sizes.norm_eps);
    //#else
    let factor = 1.0;
    //#endif
    let first = 32u * group.x;
    //#if HIDDEN8
    let out_blocks = (OUTPUTS + 31u) / 32u;
    let word = lane % 8u;
    //#if SHARED
    // All lanes go along: eight neighbours make a block.
    var v: vec4<f32>;
    //#for i 4
    v[$i$] = value_of(4u * word + $i$u, expert, first, factor);
    //#endfor
    let form = quantize_shared(v);
    //#else
    if (lane < 32u) {
        values[lane] = value_of(lane, expert, first, factor);
    }
    workgroupBarrier();
    //#endif
    if (mine && lane < 8u) {
        let piece = (2u * pair + word / 4u) * out_blocks + group.x;
        //#if SHARED
        codes[4u * piece + word % 4u] = form.codes;
        if (word == 0u) {
            meta_[pair * out_blocks + group.x] = form.meta_;
        }
        //#else
        codes[4u * piece + word % 4u] = quantize_word(0u, word);
        if (word == 0u) {
            meta_[pair * out_blocks + group.x] = quantize_meta(0u);
        }
        //#endif
    }
    //#else
    if (mine && lane < 32u && first + lane < OUTPUTS) {
        hidden[pair * OUTPUTS + first + lane] = value_of(lane, expert, first, factor);
    }
    //#endif
}
