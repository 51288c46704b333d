// Sums and maxima over the lanes of a workgroup.
var<workgroup> partial_: array<f32, LANES>;
//#if SUBGROUPS
var<private> subgroup_: u32;
var<private> subgroup_lane_: u32;
var<private> subgroup_size_: u32;
//#endif

// Every lane's part, before a barrier; behind it `all_parts` gives their sum.
fn put_part(value: f32, lane: u32) {
    //#if SUBGROUPS
    let mine = subgroupAdd(value);
    if (subgroup_lane_ == 0u) {
        partial_[subgroup_] = mine;
    }
    //#else
    partial_[lane] = value;
    //#endif
}

fn all_parts() -> f32 {
    //#if SUBGROUPS
    let count = (LANES + subgroup_size_ - 1u) / subgroup_size_;
    //#else
    let count = LANES;
    //#endif
    var all = 0.0;
    for (var i = 0u; i < count; i++) {
        all += partial_[i];
    }
    return all;
}

fn total(value: f32, lane: u32) -> f32 {
    put_part(value, lane);
    workgroupBarrier();
    let all = all_parts();
    workgroupBarrier();
    return all;
}

fn largest(value: f32, lane: u32) -> f32 {
    //#if SUBGROUPS
    let mine = subgroupMax(value);
    if (subgroup_lane_ == 0u) {
        partial_[subgroup_] = mine;
    }
    let count = (LANES + subgroup_size_ - 1u) / subgroup_size_;
    //#else
    partial_[lane] = value;
    let count = LANES;
    //#endif
    workgroupBarrier();
    var all = partial_[0];
    for (var i = 1u; i < count; i++) {
        all = max(all, partial_[i]);
    }
    workgroupBarrier();
    return all;
}
