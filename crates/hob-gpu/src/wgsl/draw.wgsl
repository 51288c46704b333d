// One token of a row's candidates, as `hob_compute::draw` has it: top-k, typical, top-p, min-p, temperature. Every lane
// has one candidate, in the order of `keys`, and compares it with all others; nothing needs to be sorted again.
struct Draw { temperature: f32, top_k: u32, typical_p: f32, top_p: f32, min_p: f32, u: f32 }

// exp(logit - largest) of those still in the running, else 0.
var<workgroup> weights: array<f32, LANES>;
var<workgroup> alive: array<u32, LANES>;
// Smallest id past the mark; 1 + largest id with a weight.
var<workgroup> first: atomic<u32>;
var<workgroup> last: atomic<u32>;

fn draw_at(start: u32) -> Draw {
    return Draw(
        bitcast<f32>(arguments[start]),
        arguments[start + 1u],
        bitcast<f32>(arguments[start + 2u]),
        bitcast<f32>(arguments[start + 3u]),
        bitcast<f32>(arguments[start + 4u]),
        bitcast<f32>(arguments[start + 5u]),
    );
}

fn keep(lane: u32, weight: f32, on: bool) {
    workgroupBarrier();
    weights[lane] = select(0.0, weight, on);
    alive[lane] = u32(on);
    workgroupBarrier();
}

fn weight_of_all(n: u32) -> f32 {
    var all = 0.0;
    for (var j = 0u; j < n; j++) {
        all += weights[j];
    }
    return all;
}

// Whether candidate `lane` is among the most typical ones that reach the share.
fn is_typical(draw: Draw, lane: u32, top: f32) -> bool {
    let n = draw.top_k;
    let all = weight_of_all(n);
    var expected = 0.0;
    for (var j = 0u; j < n; j++) {
        if (weights[j] > 0.0) {
            expected += weights[j] * (top - number(keys[j]));
        }
    }
    expected /= all;
    let mine = abs(top - number(keys[lane]) - expected);
    var before = 0.0;
    var none = true;
    for (var j = 0u; j < n; j++) {
        let other = abs(top - number(keys[j]) - expected);
        if (other < mine || (other == mine && ids[j] < ids[lane])) {
            before += weights[j];
            none = false;
        }
    }
    return none || before < draw.typical_p * all;
}

// Whether it is among the largest that reach the share.
fn is_in_nucleus(draw: Draw, lane: u32) -> bool {
    var before = 0.0;
    var none = true;
    for (var j = 0u; j < lane; j++) {
        before += weights[j];
        none = none && alive[j] == 0u;
    }
    return none || before < draw.top_p * weight_of_all(draw.top_k);
}

// The chosen token of the row, known to all lanes.
fn chosen(draw: Draw, lane: u32) -> u32 {
    let n = draw.top_k;
    let logit = number(keys[lane]);
    var top = number(keys[0]);
    var on = lane < n;
    if (lane == 0u) {
        atomicStore(&first, 0xffffffffu);
        atomicStore(&last, 0u);
    }
    keep(lane, weight(logit, top), on);
    if (draw.typical_p < 1.0) {
        on = on && is_typical(draw, lane, top);
    }
    keep(lane, weight(logit, top), on);
    if (draw.top_p < 1.0) {
        on = on && is_in_nucleus(draw, lane);
    }
    keep(lane, weight(logit, top), on);
    for (var j = n; j > 0u; j--) {
        if (alive[j - 1u] != 0u) {
            top = number(keys[j - 1u]);
        }
    }
    on = on && (draw.min_p <= 0.0 || weight(logit, top) >= draw.min_p);
    keep(lane, weight((logit - top) / max(draw.temperature, 1e-30), 0.0), on);
    var sum = 0.0;
    for (var j = 0u; j < n; j++) {
        if (ids[j] <= ids[lane]) {
            sum += weights[j];
        }
    }
    if (on && sum > draw.u * weight_of_all(n)) {
        atomicMin(&first, ids[lane]);
    }
    if (weights[lane] > 0.0) {
        atomicMax(&last, ids[lane] + 1u);
    }
    workgroupBarrier();
    var token = atomicLoad(&first);
    if (token == 0xffffffffu) {
        token = atomicLoad(&last) - 1u;
    }
    return select(token, ids[0], draw.temperature == 0.0 || is_infinite(number(keys[0])));
}
