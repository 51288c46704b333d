// A block's K or V as numbers in workgroup memory: K as [dimensions, 64], V as [positions, dimensions], a part at a time.
const K_PART = $K_PART$u; // dimensions of K staged at once
const V_PART = $V_PART$u; // positions of V staged at once
// Between rows of them, in fours, as all places here.
const K_STRIDE = $K_STRIDE$u;
const V_STRIDE = $V_STRIDE$u;
const DIM_LANES = 32u; // neighbors that clear one position

fn piece(first: bool, i: u32) -> vec4<u32> {
    //#if FIRST
    if (first) {
        return first_pages[i];
    }
    //#endif
    return pages[i];
}

fn put_four(at: u32, x: vec4<f32>) {
    //#if HALVES
    stage[at] = vec4<f16>(clamp(x, vec4<f32>(-65504.0), vec4<f32>(65504.0)));
    //#else
    stage[4u * at] = x.x;
    stage[4u * at + 1u] = x.y;
    stage[4u * at + 2u] = x.z;
    stage[4u * at + 3u] = x.w;
    //#endif
}

fn pair(bf16: bool, w: u32) -> vec2<f32> {
    if (bf16) {
        return vec2<f32>(bitcast<f32>(w << 16u), bitcast<f32>(w & 0xffff0000u));
    }
    return unpack2x16float(w);
}

fn put_eight(at: u32, bf16: bool, w: vec4<u32>) {
    put_four(at, vec4<f32>(pair(bf16, w.x), pair(bf16, w.y)));
    put_four(at + 1u, vec4<f32>(pair(bf16, w.z), pair(bf16, w.w)));
}

// K of 16-bit floats: rows of 64 positions are eight pieces.
fn stage_k_floats(bf16: bool, first: bool, at: u32, part: u32, lane: u32) {
    for (var i = lane; i < K_PART * 8u; i += LANES) {
        let dim = part * K_PART + i / 8u;
        if (dim < DIM) {
            put_eight(i / 8u * K_STRIDE + i % 8u * 2u, bf16, piece(first, at + dim * 8u + i % 8u));
        }
    }
}

// V of 16-bit floats.
fn stage_v_floats(bf16: bool, first: bool, at: u32, part: u32, lane: u32) {
    for (var i = lane; i < V_PART * (DIM / 8u); i += LANES) {
        let position = i / (DIM / 8u);
        let c = i % (DIM / 8u);
        let w = piece(first, at + (part * V_PART + position) * (DIM / 8u) + c);
        put_eight(position * V_STRIDE + c * 2u, bf16, w);
    }
}

//#if EXACT
fn stage_k(first: bool, wide: bool, at: u32, part: u32, lane: u32) {
    for (var i = lane; i < K_PART * 16u; i += LANES) {
        let dim = part * K_PART + i / 16u;
        if (dim < DIM) {
            let w = bitcast<vec4<f32>>(piece(first, at + dim * 16u + i % 16u));
            put_four(i / 16u * K_STRIDE + i % 16u, w);
        }
    }
}

fn stage_v(first: bool, wide: bool, at: u32, part: u32, lane: u32) {
    for (var i = lane; i < V_PART * (DIM / 4u); i += LANES) {
        let position = i / (DIM / 4u);
        let c = i % (DIM / 4u);
        let w = bitcast<vec4<f32>>(piece(first, at + (part * V_PART + position) * (DIM / 4u) + c));
        put_four(position * V_STRIDE + c, w);
    }
}
//#else

// Four scales (or minima) of positions 4n.. of a group; `at` is where the side's scales start.
fn four(first: bool, at: u32, group: u32, n: u32) -> vec4<f32> {
    let w = piece(first, at + group * 8u + n / 2u);
    let two = select(w.xy, w.zw, n % 2u == 1u);
    return vec4<f32>(unpack2x16float(two.x), unpack2x16float(two.y));
}

fn signed_bytes(w: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xI8(w));
}

fn low_nibbles(w: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xU8(w & 0x0f0f0f0fu));
}

fn stage_k(first: bool, wide: bool, at: u32, part: u32, lane: u32) {
    //#if FIRST
    if (wide) {
        stage_k_floats(false, first, at, part, lane);
        return;
    }
    //#endif
    //#if K_FLOATS
    stage_k_floats($K_BF16$, first, at, part, lane);
    //#endif
    //#if K_Q8
    // A piece holds two dimensions of eight positions.
    for (var i = lane; i < K_PART * 4u; i += LANES) {
        let pair_ = part * (K_PART / 2u) + i / 8u;
        let w = piece(first, at + DIM / 4u + pair_ * 8u + i % 8u);
        let group = pair_ / 16u;
        let low = four(first, at, group, i % 8u * 2u);
        let high = four(first, at, group, i % 8u * 2u + 1u);
        let a = signed_bytes(w.x) * low.xxyy;
        let b = signed_bytes(w.y) * low.zzww;
        let c = signed_bytes(w.z) * high.xxyy;
        let d = signed_bytes(w.w) * high.zzww;
        let to = i / 8u * 2u * K_STRIDE + i % 8u * 2u;
        // Bytes are (dimension pair, position, dimension).
        put_four(to, vec4<f32>(a.x, a.z, b.x, b.z));
        put_four(to + 1u, vec4<f32>(c.x, c.z, d.x, d.z));
        put_four(to + K_STRIDE, vec4<f32>(a.y, a.w, b.y, b.w));
        put_four(to + K_STRIDE + 1u, vec4<f32>(c.y, c.w, d.y, d.w));
    }
    //#endif
    //#if K_NIBBLES
    // A piece holds eight dimensions of four positions.
    for (var i = lane; i < K_PART * 2u; i += LANES) {
        let eight = part * (K_PART / 8u) + i / 16u;
        let n = i % 16u;
        let w = piece(first, at + $K_CODES$u + eight * 16u + n);
        let d = four(first, at, eight / 4u, n);
        //#if K_MINIMA
        let m = four(first, at + DIM / 4u, eight / 4u, n);
        //#else
        let m = d * -8.0;
        //#endif
        let to = i / 16u * 8u * K_STRIDE + n;
        put_across(to, K_STRIDE, mat4x4<f32>(
            low_nibbles(w.x) * d.x + m.x, low_nibbles(w.y) * d.y + m.y,
            low_nibbles(w.z) * d.z + m.z, low_nibbles(w.w) * d.w + m.w));
        put_across(to + 4u * K_STRIDE, K_STRIDE, mat4x4<f32>(
            low_nibbles(w.x >> 4u) * d.x + m.x, low_nibbles(w.y >> 4u) * d.y + m.y,
            low_nibbles(w.z >> 4u) * d.z + m.z, low_nibbles(w.w >> 4u) * d.w + m.w));
    }
    //#endif
}

fn stage_v(first: bool, wide: bool, at: u32, part: u32, lane: u32) {
    //#if FIRST
    if (wide) {
        stage_v_floats(false, first, at, part, lane);
        return;
    }
    //#endif
    //#if V_FLOATS
    stage_v_floats($V_BF16$, first, at, part, lane);
    //#endif
    //#if V_Q8
    // A piece holds two positions of eight dimensions.
    for (var i = lane; i < V_PART / 2u * (DIM / 8u); i += LANES) {
        let pair_ = i / (DIM / 8u);
        let c = i % (DIM / 8u);
        let positions = part * (V_PART / 2u) + pair_;
        let w = piece(first, at + DIM / 4u + positions * (DIM / 8u) + c);
        let scales = unpack2x16float(piece(first, at + c / 4u * 8u + positions / 4u)[positions % 4u]);
        let a = signed_bytes(w.x) * scales.xyxy;
        let b = signed_bytes(w.y) * scales.xyxy;
        let c_ = signed_bytes(w.z) * scales.xyxy;
        let d = signed_bytes(w.w) * scales.xyxy;
        let to = pair_ * 2u * V_STRIDE + c * 2u;
        put_four(to, vec4<f32>(a.x, a.z, b.x, b.z));
        put_four(to + 1u, vec4<f32>(c_.x, c_.z, d.x, d.z));
        put_four(to + V_STRIDE, vec4<f32>(a.y, a.w, b.y, b.w));
        put_four(to + V_STRIDE + 1u, vec4<f32>(c_.y, c_.w, d.y, d.w));
    }
    //#endif
    //#if V_NIBBLES
    // A piece holds eight positions of four dimensions.
    for (var i = lane; i < V_PART / 8u * (DIM / 4u); i += LANES) {
        let eight = i / (DIM / 4u);
        let c = i % (DIM / 4u);
        let positions = part * (V_PART / 8u) + eight;
        let w = piece(first, at + $V_CODES$u + positions * (DIM / 4u) + c);
        let to = eight * 8u * V_STRIDE + c;
        for (var high = 0u; high < 2u; high++) {
            let d = four(first, at, c / 8u, positions * 2u + high);
            //#if V_MINIMA
            let m = four(first, at + DIM / 4u, c / 8u, positions * 2u + high);
            //#else
            let m = d * -8.0;
            //#endif
            let codes = w >> vec4<u32>(4u * high);
            put_across(to + 4u * high * V_STRIDE, V_STRIDE, mat4x4<f32>(
                low_nibbles(codes.x) * d + m, low_nibbles(codes.y) * d + m,
                low_nibbles(codes.z) * d + m, low_nibbles(codes.w) * d + m));
        }
    }
    //#endif
}
//#endif

// Zeros where nobody looks, of positions from `end` on: 0 times what is left there may be NaN.
fn clear_v(block: u32, part: u32, end: u32, lane: u32) {
    let start = block * 64u + part * V_PART;
    if (start + V_PART > end) {
        workgroupBarrier();
        for (var i = max(end, start) - start + lane / DIM_LANES; i < V_PART; i += LANES / DIM_LANES) {
            for (var d = lane % DIM_LANES; d < DIM / 4u; d += DIM_LANES) {
                put_four(i * V_STRIDE + d, vec4<f32>());
            }
        }
    }
}

// Columns of `x` side by side: row `r` of the four goes `r` strides on.
fn put_across(at: u32, stride: u32, x: mat4x4<f32>) {
    put_four(at, vec4<f32>(x[0].x, x[1].x, x[2].x, x[3].x));
    put_four(at + stride, vec4<f32>(x[0].y, x[1].y, x[2].y, x[3].y));
    put_four(at + 2u * stride, vec4<f32>(x[0].z, x[1].z, x[2].z, x[3].z));
    put_four(at + 3u * stride, vec4<f32>(x[0].w, x[1].w, x[2].w, x[3].w));
}
