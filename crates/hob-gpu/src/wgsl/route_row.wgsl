// Chooses the experts of a row, then weighs them. They are selected by counting those that come before them, not by
// sorting.
//#if SCALES
var<workgroup> scale_of: array<f32, $TOP$>;
//#endif

const EXPERTS = $EXPERTS$u;
const PADDED = (EXPERTS + 7u) / 8u * 8u;
const TOP = $TOP$u;
const GROUPS = $GROUPS$u;
const KEPT_GROUPS = $KEPT_GROUPS$u;
// Lanes, neighbours in a subgroup, that count for one expert.
const SPLIT = $SPLIT$u;

// Probabilities. (Logits where the softmax is over the selected ones.)
var<workgroup> p: array<f32, EXPERTS>;
// Ranks in an order that integers have; 0 is out of the running.
var<workgroup> rank: array<u32, PADDED>;
var<workgroup> chosen: array<u32, TOP>;
var<workgroup> ids: array<u32, TOP>;
var<workgroup> weights: array<f32, TOP>;
//#if GROUPED
var<workgroup> scores: array<u32, GROUPS>;
//#endif

//#include order

// exp(z - m) where m is the largest; among infinite logits only a single +inf has a weight, which `share` gives.
fn weight_of(z: f32, m: f32) -> f32 {
    if (is_infinite(m)) {
        return select(0.0, 1.0, z == m);
    }
    return exp(z - m);
}

fn share(e: f32, sum: f32, m: f32) -> f32 {
    if (is_infinite(m)) {
        return select(0.0, e, sum == 1.0);
    }
    return e / sum;
}

//#if SOFTPLUS
// ln(1 + e) for e of 0..=1.
fn ln_1p(e: f32) -> f32 {
    if (e < 0.01) {
        return e * fma(e, fma(e, fma(e, -0.25, 0.33333334), -0.5), 1.0);
    }
    return log(1.0 + e);
}
//#endif

fn probabilities(row: u32, lane: u32) {
    //#if SOFTMAX
    var m = lowest();
    for (var i = lane; i < EXPERTS; i += LANES) {
        m = max(m, logit(logits[row * EXPERTS + i]));
    }
    m = largest(m, lane);
    var sum = 0.0;
    for (var i = lane; i < EXPERTS; i += LANES) {
        let e = weight_of(logit(logits[row * EXPERTS + i]), m);
        p[i] = e;
        sum += e;
    }
    sum = total(sum, lane);
    for (var i = lane; i < EXPERTS; i += LANES) {
        p[i] = share(p[i], sum, m);
    }
    //#else
    for (var i = lane; i < EXPERTS; i += LANES) {
        let z = logit(logits[row * EXPERTS + i]);
        //#if SIGMOID
        // Never 0: weights of which all are tiny can still be normalised.
        p[i] = 1.0 / (1.0 + exp(min(-z, 87.0)));
        //#endif
        //#if SELECTED
        p[i] = z;
        //#endif
        //#if SOFTPLUS
        p[i] = sqrt(max(z, 0.0) + ln_1p(exp(-abs(z))));
        //#endif
    }
    //#endif
}

//#if GROUPED
// Takes all but the best groups out of the running.
fn keep_groups(lane: u32) {
    const SIZE = EXPERTS / GROUPS;
    for (var g = lane; g < GROUPS; g += LANES) {
        var first = 0u;
        var second = 0u;
        for (var i = g * SIZE; i < (g + 1u) * SIZE; i++) {
            second = max(second, min(first, rank[i]));
            first = max(first, rank[i]);
        }
        scores[g] = first;
        //#if BEST_TWO
        if (SIZE > 1u) {
            scores[g] = key(number(first) + number(second));
        }
        //#endif
    }
    workgroupBarrier();
    for (var i = lane; i < EXPERTS; i += LANES) {
        let mine = i / SIZE;
        var before = 0u;
        for (var g = 0u; g < GROUPS; g++) {
            before += u32(scores[g] > scores[mine] || (scores[g] == scores[mine] && g < mine));
        }
        if (before >= KEPT_GROUPS) {
            rank[i] = 0u;
        }
    }
    workgroupBarrier();
}
//#endif

// Leaves the ids of row `row` in `ids`, ascending.
fn choose(row: u32, lane: u32) {
    //#if CHOSEN
    for (var n = lane; n < TOP; n += LANES) {
        chosen[n] = min(u32(max(given[row * TOP + n], 0.0)), EXPERTS - 1u);
    }
    //#else
    //#if !LATE
    probabilities(row, lane);
    //#endif
    for (var i = lane; i < EXPERTS; i += LANES) {
        let z = logits[row * EXPERTS + i];
        //#if LATE
        // In the order of their probabilities, and NaN behind all.
        rank[i] = select(key(z), 0x007ffffeu, is_nan(z));
        //#else
        //#if BIAS
        let r = p[i] + route_bias[i];
        //#else
        let r = p[i];
        //#endif
        rank[i] = select(key(r), 0x007fffffu, is_nan(z));
        //#endif
    }
    for (var i = EXPERTS + lane; i < PADDED; i += LANES) {
        rank[i] = 0u;
    }
    workgroupBarrier();
    //#if GROUPED
    keep_groups(lane);
    //#endif
    // All lanes go along.
    for (var base = 0u; base < EXPERTS; base += LANES / SPLIT) {
        let i = base + lane / SPLIT;
        let mine = rank[min(i, EXPERTS - 1u)];
        var before = 0u;
        for (var j = 8u * (lane % SPLIT); j < PADDED; j += 8u * SPLIT) {
            //#for n 8
            let r$n$ = rank[j + $n$u];
            //#endfor
            //#for n 8
            before += u32(r$n$ > mine || (r$n$ == mine && j + $n$u < i));
            //#endfor
        }
        //#if SPLITS
        for (var m = 1u; m < SPLIT; m *= 2u) {
            before += subgroupShuffleXor(before, m);
        }
        //#endif
        if (lane % SPLIT == 0u && i < EXPERTS && mine != 0u && before < TOP) {
            chosen[before] = i;
        }
    }
    //#endif
    workgroupBarrier();
    for (var n = lane; n < TOP; n += LANES) {
        let id = chosen[n];
        var at = 0u;
        for (var j = 0u; j < TOP; j++) {
            at += u32(chosen[j] < id || (chosen[j] == id && j < n));
        }
        ids[at] = id;
    }
    workgroupBarrier();
}

// Leaves the weights of the experts in `ids` in `weights`.
fn weigh(row: u32, lane: u32) {
    //#if LATE
    probabilities(row, lane);
    workgroupBarrier();
    //#endif
    for (var n = lane; n < TOP; n += LANES) {
        let id = ids[n];
        weights[n] = select(p[id], nan(), is_nan(logits[row * EXPERTS + id]));
        //#if SCALES
        scale_of[n] = route_scales[id];
        //#endif
    }
    workgroupBarrier();
    //#if SELECTED
    softmax_selected(lane);
    //#endif
    //#if NORMALIZE
    var sum = 0.0;
    for (var j = 0u; j < TOP; j++) {
        sum += weights[j];
    }
    let divisor = sum + sizes.eps;
    workgroupBarrier();
    //#endif
    for (var n = lane; n < TOP; n += LANES) {
        //#if NORMALIZE
        let w = weights[n] / divisor;
        //#else
        let w = weights[n];
        //#endif
        //#if SCALES
        weights[n] = w * sizes.scale * scale_of[n];
        //#else
        weights[n] = w * sizes.scale;
        //#endif
    }
    workgroupBarrier();
}
//#if SELECTED

// A NaN among the weights makes all of them NaN.
fn softmax_selected(lane: u32) {
    var m = lowest();
    for (var j = 0u; j < TOP; j++) {
        m = max(m, logit(weights[j]));
    }
    var sum = 0.0;
    var broken = false;
    for (var j = 0u; j < TOP; j++) {
        sum += weight_of(weights[j], m);
        broken = broken || is_nan(weights[j]);
    }
    workgroupBarrier();
    for (var n = lane; n < TOP; n += LANES) {
        let w = share(weight_of(weights[n], m), sum, m);
        weights[n] = select(w, nan(), broken);
    }
    workgroupBarrier();
}
//#endif
