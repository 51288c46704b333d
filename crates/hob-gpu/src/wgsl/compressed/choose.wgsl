// One workgroup selects the entries of one row: four passes over the scores find the lowest that is selected, digit by
// digit, and one more writes the selected ones in ascending order; of equal ones the lowest.
struct Sizes { arguments: u32, capacity: u32, top: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read> scores: array<f32>;
// Of every row: itself, its sequence's slot, and the entries it sees.
@group(0) @binding(2) var<storage, read> arguments: array<u32>;

const LANES = 256u;
var<workgroup> digits: array<atomic<u32>, LANES>;
var<workgroup> counts: array<u32, LANES>;
// The digits found so far, and how many of the scores that begin with them are selected.
var<workgroup> found: vec2<u32>;

//#include order

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let item = sizes.arguments + 3u * group.x;
    let to = arguments[item] * sizes.top;
    let seen = arguments[item + 2u];
    if (seen <= sizes.top) {
        for (var i = lane; i < sizes.top; i += LANES) {
            out[to + i] = select(-1.0, f32(i), i < seen);
        }
        return;
    }
    let first = group.x * sizes.capacity;
    if (lane == 0u) {
        found = vec2<u32>(0u, sizes.top);
    }
    for (var pass_ = 0u; pass_ < 4u; pass_++) {
        let shift = 24u - 8u * pass_;
        atomicStore(&digits[lane], 0u);
        workgroupBarrier();
        let prefix = found.x;
        for (var e = lane; e < seen; e += LANES) {
            let k = key(scores[first + e]);
            // The digits above; a shift by 32 would be none.
            if (pass_ == 0u || ((k ^ prefix) >> (shift + 8u)) == 0u) {
                atomicAdd(&digits[(k >> shift) & 255u], 1u);
            }
        }
        workgroupBarrier();
        if (lane == 0u) {
            var left = found.y;
            var digit = 255u;
            for (; digit > 0u; digit--) {
                let here = atomicLoad(&digits[digit]);
                if (here >= left) {
                    break;
                }
                left -= here;
            }
            found = vec2<u32>(prefix | (digit << shift), left);
        }
        workgroupBarrier();
    }
    let lowest_ = found.x;
    let equal = found.y;
    var above_before = 0u;
    var equal_before = 0u;
    for (var start = 0u; start < seen; start += LANES) {
        let e = start + lane;
        var mine = 0u;
        if (e < seen) {
            let k = key(scores[first + e]);
            mine = select(0u, 1u, k > lowest_) | select(0u, 0x10000u, k == lowest_);
        }
        counts[lane] = mine;
        workgroupBarrier();
        // Sums up to and with each lane.
        for (var step_ = 1u; step_ < LANES; step_ *= 2u) {
            var before = 0u;
            if (lane >= step_) {
                before = counts[lane - step_];
            }
            workgroupBarrier();
            counts[lane] += before;
            workgroupBarrier();
        }
        let sum = counts[lane] - mine;
        let all = counts[LANES - 1u];
        let equals = equal_before + (sum >> 16u);
        let at = above_before + (sum & 0xffffu) + min(equals, equal);
        if ((mine & 0xffffu) == 1u || (mine == 0x10000u && equals < equal)) {
            out[to + at] = f32(e);
        }
        above_before += all & 0xffffu;
        equal_before += all >> 16u;
        workgroupBarrier();
    }
}
