// Sums and maxima over aligned runs of slots, a slot per lane and round: what a subgroup (or 16 lanes in turn) makes of
// its slots lies in `runs`, and whoever wants to know adds those up. Lanes of a subgroup have neighboring slots.
var<workgroup> runs: array<vec4<f32>, $RUNS$>;
//#if SUBGROUPS
var<private> run: u32;
var<private> leads: bool;

fn put_sum(slot: u32, x: vec4<f32>, on: bool) {
    let y = subgroupAdd(x);
    if (leads && on) {
        runs[slot / run] = y;
    }
}

// A sum of one number.
fn put_one(slot: u32, x: f32) {
    let y = subgroupAdd(x);
    if (leads) {
        runs[slot / run] = vec4<f32>(y, 0.0, 0.0, 0.0);
    }
}

fn put_most(slot: u32, x: vec4<f32>, on: bool) {
    let y = subgroupMax(x);
    if (leads && on) {
        runs[slot / run] = y;
    }
}

// Between putting and asking there is a barrier, and before it these.
fn settle_sums(count: u32, lane: u32) {}

fn settle_most(count: u32, lane: u32) {}
//#else
const run: u32 = 16u;

fn put_sum(slot: u32, x: vec4<f32>, on: bool) {
    if (on) {
        weights[slot] = x;
    }
}

fn put_one(slot: u32, x: f32) {
    weights[slot] = vec4<f32>(x, 0.0, 0.0, 0.0);
}

fn put_most(slot: u32, x: vec4<f32>, on: bool) {
    if (on) {
        weights[slot] = x;
    }
}

fn settle_sums(count: u32, lane: u32) {
    workgroupBarrier();
    for (var i = lane; i < count / 16u; i += LANES) {
        var y = weights[16u * i];
        for (var k = 1u; k < 16u; k++) {
            y += weights[16u * i + k];
        }
        runs[i] = y;
    }
}

fn settle_most(count: u32, lane: u32) {
    workgroupBarrier();
    for (var i = lane; i < count / 16u; i += LANES) {
        var y = weights[16u * i];
        for (var k = 1u; k < 16u; k++) {
            y = max(y, weights[16u * i + k]);
        }
        runs[i] = y;
    }
}
//#endif

// Of `count` slots from `first` on, both multiples of 64.
fn sum_of(first: u32, count: u32) -> vec4<f32> {
    var y = runs[first / run];
    for (var i = 1u; i < count / run; i++) {
        y += runs[first / run + i];
    }
    return y;
}

fn most_of(first: u32, count: u32) -> vec4<f32> {
    var y = runs[first / run];
    for (var i = 1u; i < count / run; i++) {
        y = max(y, runs[first / run + i]);
    }
    return y;
}
