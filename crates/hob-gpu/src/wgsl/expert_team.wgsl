// Lanes whose sum one of them writes.
var<private> span: u32;

// The sum of the lanes of a team that are in one subgroup.
fn team_sum(value: f32) -> f32 {
    var v = value;
    //#if SUBGROUPS
    for (var m = 1u; m < span; m *= 2u) {
        v += subgroupShuffleXor(v, m);
    }
    //#endif
    return v;
}
