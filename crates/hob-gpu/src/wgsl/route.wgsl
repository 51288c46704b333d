// One workgroup routes one row.
struct Sizes { eps: f32, scale: f32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
//#if BIAS
@group(0) @binding(2) var<storage, read> route_bias: array<f32>;
//#endif
//#if SCALES
// Of every expert.
@group(0) @binding($SCALES_AT$) var<storage, read> route_scales: array<f32>;
//#endif
//#if CHOSEN
// Ids of the experts of every row.
@group(0) @binding($CHOSEN_AT$) var<storage, read> given: array<f32>;
//#endif

const LANES = $LANES$u;
//#include lanes
//#include route_row

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
    //#endif
    let row = group.x;
    choose(row, lane);
    weigh(row, lane);
    for (var n = lane; n < TOP; n += LANES) {
        out[row * 2u * TOP + n] = f32(ids[n]);
        out[row * 2u * TOP + TOP + n] = weights[n];
    }
}
