// Stores vectors of some positions of one aligned eight of positions, each position in a row of `fresh` (from `begin` on):
// row r is position `base + r` of the eight, and only those in `valid` (bits 0..8) are stored. Groups, codes and scales
// are those of hob_quant's encoders: the same lanes, the same order of sums.
//#if COMMON
var<workgroup> fresh: array<f32, $FRESH$>;
var<workgroup> fresh_codes: array<u32, $FRESH$>;
var<workgroup> fresh_scales: array<vec2<u32>, $SCALES$>;
//#if !NEIGHBORS
var<workgroup> fresh_parts: array<vec4<f32>, $PARTS$>;
//#endif

// Bits of x as f16, to nearest even, within +-65504; NaN stays NaN.
fn f16_bits(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let size = min(bits & 0x7fffffffu, 0x477fe000u);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return sign | 0x7e00u;
    }
    if (size < 0x38800000u) {
        // Steps of 2^-24, which are those of numbers from 0.5 on.
        return sign | (bitcast<u32>(bitcast<f32>(size) + 0.5) - 0x3f000000u);
    }
    return sign | ((size + 0xfffu + ((size >> 13u) & 1u) - 0x38000000u) >> 13u);
}

fn bf16_bits(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (bits >> 16u) | 0x40u;
    }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}

//#if NEIGHBORS
// Of eight neighboring lanes of a subgroup, which ask each other.
fn most_of_eight(x: u32) -> u32 {
    var y = max(x, subgroupShuffleXor(x, 4u));
    y = max(y, subgroupShuffleXor(y, 2u));
    return max(y, subgroupShuffleXor(y, 1u));
}

fn least_of_eight(x: f32) -> f32 {
    var y = min(x, subgroupShuffleXor(x, 4u));
    y = min(y, subgroupShuffleXor(y, 2u));
    return min(y, subgroupShuffleXor(y, 1u));
}

// Lane i with i + 4, i + 2, i + 1.
fn sum_of_eight(x: vec4<f32>) -> vec4<f32> {
    var y = x + subgroupShuffleXor(x, 4u);
    y += subgroupShuffleXor(y, 2u);
    return y + subgroupShuffleXor(y, 1u);
}
//#else
// The largest of the magnitudes that eight lanes left, as bits.
fn fresh_magnitude(task: u32) -> u32 {
    var most = 0u;
    for (var i = 0u; i < 8u; i++) {
        most = max(most, bitcast<u32>(fresh_parts[2u * (8u * task + i)].x));
    }
    return most;
}

// Sum of what eight lanes left, lane i with i + 4, i + 2, i + 1.
fn fresh_sum(task: u32, which: u32) -> vec4<f32> {
    let at = 16u * task + which;
    let a = (fresh_parts[at] + fresh_parts[at + 8u]) + (fresh_parts[at + 4u] + fresh_parts[at + 12u]);
    let b = (fresh_parts[at + 2u] + fresh_parts[at + 10u]) + (fresh_parts[at + 6u] + fresh_parts[at + 14u]);
    return a + b;
}
//#endif

// The Hadamard transform of every row: see hob_quant::hadamard.
fn rotate_fresh(lane: u32) {
    for (var stride = 1u; stride < $SPAN$u; stride *= 2u) {
        for (var i = lane; i < $FRESH$u / 2u; i += $LANES$u) {
            let a = (i / stride) * 2u * stride + i % stride;
            let x = fresh[a];
            let y = fresh[a + stride];
            fresh[a] = x + y;
            fresh[a + stride] = x - y;
        }
        workgroupBarrier();
    }
    for (var i = lane; i < $FRESH$u; i += $LANES$u) {
        fresh[i] *= $SPAN_FACTOR$;
    }
    workgroupBarrier();
}

// Positions 2 pair and 2 pair + 1: the mask of the halves of a word that are valid.
fn halves(valid: u32, pair: u32) -> u32 {
    let two = valid >> (2u * pair);
    return (two & 1u) * 0xffffu | ((two >> 1u) & 1u) * 0xffff0000u;
}
//#endif
//#if CODES
// Makes codes and scales of `groups` groups of 32 of `fresh`.
fn quantize_$FORMAT$(begin: u32, groups: u32, lane: u32) {
    for (var start = 0u; start < 8u * groups; start += $LANES$u) {
        let index = start + lane;
        let on = index < 8u * groups;
        // Eight lanes have a group; lane l of them has the values l, l + 8, l + 16, l + 24.
        let first = select(0u, 32u * (index >> 3u) + (index & 7u), on);
        let x = vec4<f32>(fresh[begin + first], fresh[begin + first + 8u], fresh[begin + first + 16u], fresh[begin + first + 24u]);
        let bits = bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu);
        let size = max(max(bits.x, bits.y), max(bits.z, bits.w));
        //#if ASYM
        let low = min(min(x.x, x.y), min(x.z, x.w));
        let high = max(max(x.x, x.y), max(x.z, x.w));
        //#endif
        //#if NEIGHBORS
        let most = most_of_eight(size);
        //#else
        //#if ASYM
        fresh_parts[2u * lane] = vec4<f32>(bitcast<f32>(size), low, high, 0.0);
        //#else
        fresh_parts[2u * lane] = vec4<f32>(bitcast<f32>(size), 0.0, 0.0, 0.0);
        //#endif
        workgroupBarrier();
        let task = lane >> 3u;
        let most = fresh_magnitude(task);
        //#endif
        var m = bitcast<f32>(most);
        if (most >= 0x7f800000u) {
            m = 0.0;
        }
        var codes = vec4<f32>(0.0);
        var d = 0u;
        var minimum = 0u;
        //#if Q8
        d = f16_bits(m / 127.0);
        if (d != 0u) {
            let inverse = 1.0 / unpack2x16float(d).x;
            codes = round(clamp(x * inverse, vec4<f32>(-127.0), vec4<f32>(127.0)));
        }
        //#if !NEIGHBORS
        workgroupBarrier();
        //#endif
        //#endif
        //#if ASYM
        //#if NEIGHBORS
        let l = least_of_eight(low);
        let h = -least_of_eight(-high);
        //#else
        var l = fresh_parts[16u * task].y;
        var h = fresh_parts[16u * task].z;
        for (var i = 1u; i < 8u; i++) {
            l = min(l, fresh_parts[16u * task + 2u * i].y);
            h = max(h, fresh_parts[16u * task + 2u * i].z);
        }
        //#endif
        if (most < 0x7f800000u) {
            d = f16_bits((h - l) / 15.0);
            minimum = f16_bits(l);
            if (d != 0u) {
                let inverse = 1.0 / unpack2x16float(d).x;
                codes = round(clamp((x - unpack2x16float(minimum).x) * inverse, vec4<f32>(0.0), vec4<f32>(15.0)));
            }
        }
        //#if !NEIGHBORS
        workgroupBarrier();
        //#endif
        //#endif
        //#if Q4
        //#if !NEIGHBORS
        workgroupBarrier();
        //#endif
        // Four proposals of what the largest magnitude becomes; the one with the least error wins, the first of equals.
        let usable = m > 8.5 / 3.4e38;
        let factors = vec4<f32>(8.5, 8.0, 7.5, 7.0) / select(1.0, m, usable);
        var s = vec4<f32>(0.0);
        var q = vec4<f32>(0.0);
        for (var i = 0u; i < 4u; i++) {
            let code = round(clamp(x[i] * factors, vec4<f32>(-8.0), vec4<f32>(7.0)));
            s = fma(vec4<f32>(x[i]), code, s);
            q += code * code;
        }
        //#if NEIGHBORS
        s = sum_of_eight(s);
        q = sum_of_eight(q);
        //#else
        fresh_parts[2u * lane] = s;
        fresh_parts[2u * lane + 1u] = q;
        workgroupBarrier();
        s = fresh_sum(task, 0u);
        q = fresh_sum(task, 1u);
        //#endif
        let gains = s * s / q;
        var best = 0.0;
        var scale = 0.0;
        var factor = 0.0;
        for (var i = 0u; i < 4u; i++) {
            if (gains[i] > best) {
                best = gains[i];
                scale = s[i] / q[i];
                factor = factors[i];
            }
        }
        if (usable) {
            d = f16_bits(scale);
            codes = round(clamp(x * factor, vec4<f32>(-8.0), vec4<f32>(7.0)));
        }
        codes += 8.0;
        //#if !NEIGHBORS
        workgroupBarrier();
        //#endif
        //#endif
        if (on) {
            let stored = vec4<u32>(vec4<i32>(codes)) & vec4<u32>(0xffu);
            fresh_codes[begin + first] = stored.x;
            fresh_codes[begin + first + 8u] = stored.y;
            fresh_codes[begin + first + 16u] = stored.z;
            fresh_codes[begin + first + 24u] = stored.w;
            if ((lane & 7u) == 0u) {
                fresh_scales[begin / 32u + (index >> 3u)] = vec2<u32>(d, minimum);
            }
        }
    }
    workgroupBarrier();
}
//#endif
//#if STORE
// Dimension `dim` of position p of the eight as the page stores it; 0 if it is not valid.
fn stored_$NAME$(valid: u32, base: u32, p: u32, dim: u32, begin: u32) -> u32 {
    if (((valid >> p) & 1u) == 0u) {
        return 0u;
    }
    let at = begin + (p - base) * $HEAD_DIM$u + dim;
    //#if F32
    return bitcast<u32>(fresh[at]);
    //#endif
    //#if F16
    return f16_bits(fresh[at]);
    //#endif
    //#if BF16
    return bf16_bits(fresh[at]);
    //#endif
    //#if PACKED
    return fresh_codes[at];
    //#endif
}

// Bits of `mask` within a word become those of `bits`.
fn put_$NAME$(at: u32, mask: u32, bits: u32) {
    if (mask == 0xffffffffu) {
        $PAGES$[at] = bits;
    } else if (mask != 0u) {
        $PAGES$[at] = ($PAGES$[at] & ~mask) | (bits & mask);
    }
}

//#if KEPT
// Dimension `dim` of the only row as it is read back.
fn kept_$NAME$(begin: u32, dim: u32) -> f32 {
    let x = fresh[begin + dim];
    //#if F32
    return x;
    //#endif
    //#if F16
    return unpack2x16float(f16_bits(x)).x;
    //#endif
    //#if BF16
    return bitcast<f32>(bf16_bits(x) << 16u);
    //#endif
    //#if PACKED
    let scales = fresh_scales[(begin + dim) / 32u];
    let d = unpack2x16float(scales.x).x;
    let code = fresh_codes[begin + dim];
    //#if Q8
    return f32(bitcast<i32>(code << 24u) >> 24u) * d;
    //#endif
    //#if Q4
    return (f32(code) - 8.0) * d;
    //#endif
    //#if ASYM
    return fma(f32(code), d, unpack2x16float(scales.y).x);
    //#endif
    //#endif
}
//#endif

// Stores `fresh`, and where the part is packed its codes, into the eight `octet` of the part at `at`.
fn keep_$NAME$(at: u32, octet: u32, base: u32, valid: u32, begin: u32, lane: u32) {
    //#if PACKED
    for (var i = lane; i < 4u * $GROUPS$u; i += $LANES$u) {
        let pair = i & 3u;
        let mask = halves(valid, pair);
        if (mask != 0u) {
            // A row that is not valid may not exist: its bits are masked, its index is kept within the array.
            let a = begin / 32u + min((max(2u * pair, base) - base), $ROWS$u - 1u) * $GROUPS$u + (i >> 2u);
            let b = begin / 32u + min((max(2u * pair + 1u, base) - base), $ROWS$u - 1u) * $GROUPS$u + (i >> 2u);
            let scales = fresh_scales[a] | (fresh_scales[b] << vec2<u32>(16u));
            let word = at + (i >> 2u) * 32u + 4u * octet + pair;
            put_$NAME$(word, mask, scales.x);
            //#if ASYM
            put_$NAME$(word + $GROUPS$u * 32u, mask, scales.y);
            //#endif
        }
    }
    //#endif
    let codes = at + $CODES_AT$u;
    //#if WHOLE_WORDS
    // A word has one position.
    for (var i = lane; i < $ROWS$u * $PER_POSITION$u; i += $LANES$u) {
        //#if KEYS
        let p = base + i % $ROWS$u;
        let unit = i / $ROWS$u;
        let word = codes + unit * 64u + 8u * octet + p;
        //#else
        let p = base + i / $PER_POSITION$u;
        let unit = i % $PER_POSITION$u;
        let word = codes + (8u * octet + p) * $PER_POSITION$u + unit;
        //#endif
        if (((valid >> p) & 1u) == 1u) {
            //#if F32
            $PAGES$[word] = stored_$NAME$(valid, base, p, unit, begin);
            //#else
            //#if PACKED
            var bits = 0u;
            for (var k = 0u; k < 8u; k++) {
                bits |= stored_$NAME$(valid, base, p, 8u * unit + k, begin) << (8u * (k & 3u) + 4u * (k >> 2u));
            }
            $PAGES$[word] = bits;
            //#else
            let low = stored_$NAME$(valid, base, p, 2u * unit, begin);
            $PAGES$[word] = low | (stored_$NAME$(valid, base, p, 2u * unit + 1u, begin) << 16u);
            //#endif
            //#endif
        }
    }
    //#else
    //#if NIBBLES
    // A word has eight positions of one dimension.
    var mask = 0u;
    for (var k = 0u; k < 8u; k++) {
        mask |= ((valid >> k) & 1u) * (15u << (8u * (k & 3u) + 4u * (k >> 2u)));
    }
    for (var dim = lane; dim < $HEAD_DIM$u; dim += $LANES$u) {
        var bits = 0u;
        for (var k = 0u; k < 8u; k++) {
            bits |= stored_$NAME$(valid, base, k, dim, begin) << (8u * (k & 3u) + 4u * (k >> 2u));
        }
        put_$NAME$(codes + octet * $HEAD_DIM$u + dim, mask, bits);
    }
    //#else
    // A word has two positions: of one dimension, or of two.
    for (var i = lane; i < 4u * $PER_PAIR$u; i += $LANES$u) {
        //#if KEYS
        let pair = i & 3u;
        let unit = i >> 2u;
        let word = codes + unit * 32u + 4u * octet + pair;
        //#else
        let pair = i / $PER_PAIR$u;
        let unit = i % $PER_PAIR$u;
        let word = codes + (4u * octet + pair) * $PER_PAIR$u + unit;
        //#endif
        var mask = halves(valid, pair);
        //#if PACKED
        let a = stored_$NAME$(valid, base, 2u * pair, 2u * unit, begin);
        let b = stored_$NAME$(valid, base, 2u * pair, 2u * unit + 1u, begin);
        let c = stored_$NAME$(valid, base, 2u * pair + 1u, 2u * unit, begin);
        let d = stored_$NAME$(valid, base, 2u * pair + 1u, 2u * unit + 1u, begin);
        //#if KEYS
        let bits = a | (b << 8u) | (c << 16u) | (d << 24u);
        //#else
        let bits = a | (c << 8u) | (b << 16u) | (d << 24u);
        mask = ((mask & 0xffu) | ((mask >> 8u) & 0xff00u)) * 0x10001u;
        //#endif
        //#else
        let bits = stored_$NAME$(valid, base, 2u * pair, unit, begin) | (stored_$NAME$(valid, base, 2u * pair + 1u, unit, begin) << 16u);
        //#endif
        put_$NAME$(word, mask, bits);
    }
    //#endif
    //#endif
}
//#endif
