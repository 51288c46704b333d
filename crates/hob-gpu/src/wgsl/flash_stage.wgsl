// A block's K or V as numbers in workgroup memory: K as [dimensions, positions], V as [positions, dimensions], a part at a
// time, in pieces of 16 bytes.
const K_PART = $K_PART$u; // dimensions of K staged at once
const K_KEYS = $K_KEYS$u; // positions of K staged at once: all 64, or parts of them with all dimensions
const V_PART = $V_PART$u; // positions of V staged at once
const V_AT = $V_AT$u; // where V starts in `stage`
const K_COUNT = $K_COUNT$u; // pieces of K staged at once
const V_COUNT = $V_COUNT$u; // pieces of V staged at once
// Between rows of them, in fours, as all places here.
const K_STRIDE = $K_STRIDE$u;
const V_STRIDE = $V_STRIDE$u;
const DIM_LANES = 32u; // neighbors that clear one position

// A piece on its way to workgroup memory, with the piece that holds its scales, and the one that holds its minima.
struct RawK {
    codes: vec4<u32>,
    //#if K_PACKED
    scales: vec4<u32>,
    //#endif
    //#if K_MINIMA
    minima: vec4<u32>,
    //#endif
}

struct RawV {
    codes: vec4<u32>,
    //#if V_PACKED
    scales: vec4<u32>,
    //#endif
    //#if V_MINIMA
    minima: vec4<u32>,
    //#endif
}

fn piece(first: bool, i: u32) -> vec4<u32> {
    //#if FIRST
    if (first) {
        return first_pages[i];
    }
    //#endif
    return pages[i];
}

// What numbers in workgroup memory are.
alias Number = $NUMBER$;
alias Four = vec4<$NUMBER$>;

fn put_four(at: u32, x: Four) {
    //#if HALVES
    stage[at] = clamp(x, Four(-65504.0), Four(65504.0));
    //#else
    stage[4u * at] = x.x;
    stage[4u * at + 1u] = x.y;
    stage[4u * at + 2u] = x.z;
    stage[4u * at + 3u] = x.w;
    //#endif
}

// Four bf16, or f16.
fn four_floats(bf16: bool, a: u32, b: u32) -> Four {
    if (bf16) {
        let x = vec4<f32>(
            bitcast<f32>(a << 16u), bitcast<f32>(a & 0xffff0000u), bitcast<f32>(b << 16u), bitcast<f32>(b & 0xffff0000u));
        return Four(clamp(x, vec4<f32>(-$MOST$), vec4<f32>($MOST$)));
    }
    return Four(vec4<f32>(unpack2x16float(a), unpack2x16float(b)));
}

fn put_eight(at: u32, bf16: bool, w: vec4<u32>) {
    //#if HALVES
    stage[at] = four_floats(bf16, w.x, w.y);
    stage[at + 1u] = four_floats(bf16, w.z, w.w);
    //#else
    put_four(at, four_floats(bf16, w.x, w.y));
    put_four(at + 1u, four_floats(bf16, w.z, w.w));
    //#endif
}

// The first dimension of a part of K, and its first eight positions.
fn first_dim(part: u32) -> u32 {
    return select(part * K_PART, 0u, K_KEYS < 64u);
}

fn first_eight(part: u32) -> u32 {
    return select(0u, part * (K_KEYS / 8u), K_KEYS < 64u);
}

// Four of the eight f16 of a piece.
fn four(w: vec4<u32>, high: bool) -> Four {
    let two = select(w.xy, w.zw, high);
    return four_floats(false, two.x, two.y);
}

//#if HALVES
// Bytes under the bits of 1024 are the halves 1024 + byte: cheaper than a conversion.
fn four_bytes(w: u32, less: f16) -> Four {
    let even = unpack2x16float((w & 0x00ff00ffu) | 0x64006400u);
    let odd = unpack2x16float(((w >> 8u) & 0x00ff00ffu) | 0x64006400u);
    return Four(vec4<f32>(even.x, odd.x, even.y, odd.y)) - Four(less);
}

fn signed_bytes(w: u32) -> Four {
    return four_bytes(w ^ 0x80808080u, 1152.0h);
}

fn low_nibbles(w: u32, less: f16) -> Four {
    return four_bytes(w & 0x0f0f0f0fu, 1024.0h + less);
}
//#else
fn signed_bytes(w: u32) -> Four {
    return vec4<f32>(unpack4xI8(w));
}

fn low_nibbles(w: u32, less: f32) -> Four {
    return vec4<f32>(unpack4xU8(w & 0x0f0f0f0fu)) - Four(less);
}
//#endif

// Piece `i` of a part of K; `at` is where the block's K starts.
fn fetch_k(first: bool, at: u32, part: u32, i: u32) -> RawK {
    var raw: RawK;
    //#if EXACT
    raw.codes = piece(first, at + (first_dim(part) + i / 16u) * 16u + i % 16u);
    //#endif
    //#if K_FLOATS
    let dim = first_dim(part) + i / (K_KEYS / 8u);
    raw.codes = piece(first, at + dim * 8u + first_eight(part) + i % (K_KEYS / 8u));
    //#endif
    //#if K_Q8
    // A piece holds two dimensions of eight positions.
    let two = first_dim(part) / 2u + i / (K_KEYS / 8u);
    let e = first_eight(part) + i % (K_KEYS / 8u);
    raw.codes = piece(first, at + $K_CODES$u + two * 8u + e);
    raw.scales = piece(first, at + two / 16u * 8u + e);
    //#endif
    //#if K_NIBBLES
    // A piece holds eight dimensions of four positions.
    let eight = first_dim(part) / 8u + i / (K_KEYS / 4u);
    let n = first_eight(part) * 2u + i % (K_KEYS / 4u);
    raw.codes = piece(first, at + $K_CODES$u + eight * 16u + n);
    raw.scales = piece(first, at + eight / 4u * 8u + n / 2u);
    //#endif
    //#if K_MINIMA
    raw.minima = piece(first, at + DIM / 4u + eight / 4u * 8u + n / 2u);
    //#endif
    return raw;
}

fn put_k(i: u32, raw: RawK) {
    //#if EXACT
    put_four(i / 16u * K_STRIDE + i % 16u, bitcast<Four>(raw.codes));
    //#endif
    //#if K_FLOATS
    put_eight(i / (K_KEYS / 8u) * K_STRIDE + i % (K_KEYS / 8u) * 2u, $K_BF16$, raw.codes);
    //#endif
    //#if K_Q8
    let low = four(raw.scales, false);
    let high = four(raw.scales, true);
    let a = signed_bytes(raw.codes.x) * low.xxyy;
    let b = signed_bytes(raw.codes.y) * low.zzww;
    let c = signed_bytes(raw.codes.z) * high.xxyy;
    let d = signed_bytes(raw.codes.w) * high.zzww;
    let to = i / (K_KEYS / 8u) * 2u * K_STRIDE + i % (K_KEYS / 8u) * 2u;
    // Bytes are (dimension pair, position, dimension).
    put_four(to, Four(a.x, a.z, b.x, b.z));
    put_four(to + 1u, Four(c.x, c.z, d.x, d.z));
    put_four(to + K_STRIDE, Four(a.y, a.w, b.y, b.w));
    put_four(to + K_STRIDE + 1u, Four(c.y, c.w, d.y, d.w));
    //#endif
    //#if K_NIBBLES
    let d = four(raw.scales, i % 2u == 1u);
    //#if K_MINIMA
    let less = Number(0.0);
    let m = four(raw.minima, i % 2u == 1u);
    //#else
    let less = Number(8.0);
    let m = Four();
    //#endif
    let to = i / (K_KEYS / 4u) * 8u * K_STRIDE + i % (K_KEYS / 4u);
    for (var high = 0u; high < 2u; high++) {
        let w = raw.codes >> vec4<u32>(4u * high);
        put_across(
            to + 4u * high * K_STRIDE, K_STRIDE,
            low_nibbles(w.x, less) * d.x + m.x, low_nibbles(w.y, less) * d.y + m.y,
            low_nibbles(w.z, less) * d.z + m.z, low_nibbles(w.w, less) * d.w + m.w);
    }
    //#endif
}

// Piece `i` of a part of V; `at` is where the block's V starts.
fn fetch_v(first: bool, at: u32, part: u32, i: u32) -> RawV {
    var raw: RawV;
    //#if EXACT
    raw.codes = piece(first, at + part * V_COUNT + i);
    //#endif
    //#if V_FLOATS
    raw.codes = piece(first, at + part * V_COUNT + i);
    //#endif
    //#if V_Q8
    // A piece holds two positions of eight dimensions.
    let two = part * (V_PART / 2u) + i / (DIM / 8u);
    raw.codes = piece(first, at + $V_CODES$u + part * V_COUNT + i);
    raw.scales = piece(first, at + i % (DIM / 8u) / 4u * 8u + two / 4u);
    //#endif
    //#if V_NIBBLES
    // A piece holds eight positions of four dimensions.
    let group = i % (DIM / 4u) / 8u;
    let eight = part * (V_PART / 8u) + i / (DIM / 4u);
    raw.codes = piece(first, at + $V_CODES$u + part * V_COUNT + i);
    raw.scales = piece(first, at + group * 8u + eight);
    //#endif
    //#if V_MINIMA
    raw.minima = piece(first, at + DIM / 4u + group * 8u + eight);
    //#endif
    return raw;
}

fn put_v(i: u32, raw: RawV) {
    //#if EXACT
    put_four(V_AT + i / (DIM / 4u) * V_STRIDE + i % (DIM / 4u), bitcast<Four>(raw.codes));
    //#endif
    //#if V_FLOATS
    put_eight(V_AT + i / (DIM / 8u) * V_STRIDE + i % (DIM / 8u) * 2u, $V_BF16$, raw.codes);
    //#endif
    //#if V_Q8
    let two = i / (DIM / 8u);
    let scales = vec2<$NUMBER$>(unpack2x16float(raw.scales[two % 4u]));
    let a = signed_bytes(raw.codes.x) * scales.xyxy;
    let b = signed_bytes(raw.codes.y) * scales.xyxy;
    let c = signed_bytes(raw.codes.z) * scales.xyxy;
    let d = signed_bytes(raw.codes.w) * scales.xyxy;
    let to = V_AT + two * 2u * V_STRIDE + i % (DIM / 8u) * 2u;
    put_four(to, Four(a.x, a.z, b.x, b.z));
    put_four(to + 1u, Four(c.x, c.z, d.x, d.z));
    put_four(to + V_STRIDE, Four(a.y, a.w, b.y, b.w));
    put_four(to + V_STRIDE + 1u, Four(c.y, c.w, d.y, d.w));
    //#endif
    //#if V_NIBBLES
    let to = V_AT + i / (DIM / 4u) * 8u * V_STRIDE + i % (DIM / 4u);
    for (var high = 0u; high < 2u; high++) {
        let d = four(raw.scales, high == 1u);
        //#if V_MINIMA
        let less = Number(0.0);
        let m = four(raw.minima, high == 1u);
        //#else
        let less = Number(8.0);
        let m = Four();
        //#endif
        let w = raw.codes >> vec4<u32>(4u * high);
        put_across(
            to + 4u * high * V_STRIDE, V_STRIDE,
            low_nibbles(w.x, less) * d + m, low_nibbles(w.y, less) * d + m,
            low_nibbles(w.z, less) * d + m, low_nibbles(w.w, less) * d + m);
    }
    //#endif
}

//#if FIRST
// K and V of a block that is f16 whatever the format.
fn stage_wide_k(at: u32, part: u32, lane: u32) {
    for (var i = lane; i < K_PART * (K_KEYS / 8u); i += LANES) {
        let row = i / (K_KEYS / 8u);
        let c = i % (K_KEYS / 8u);
        let w = first_pages[at + (first_dim(part) + row) * 8u + first_eight(part) + c];
        put_eight(row * K_STRIDE + c * 2u, false, w);
    }
}

fn stage_wide_v(at: u32, part: u32, lane: u32) {
    for (var i = lane; i < V_PART * (DIM / 8u); i += LANES) {
        let w = first_pages[at + part * V_PART * (DIM / 8u) + i];
        put_eight(V_AT + i / (DIM / 8u) * V_STRIDE + i % (DIM / 8u) * 2u, false, w);
    }
}
//#endif

//#if !HALVES
fn stage_k(first: bool, wide: bool, at: u32, part: u32, lane: u32) {
    //#if FIRST
    if (wide) {
        stage_wide_k(at, part, lane);
        return;
    }
    //#endif
    for (var i = lane; i < K_COUNT; i += LANES) {
        put_k(i, fetch_k(first, at, part, i));
    }
}

fn stage_v(first: bool, wide: bool, at: u32, part: u32, lane: u32) {
    //#if FIRST
    if (wide) {
        stage_wide_v(at, part, lane);
        return;
    }
    //#endif
    for (var i = lane; i < V_COUNT; i += LANES) {
        put_v(i, fetch_v(first, at, part, i));
    }
}
//#endif

// Zeros where nobody looks, of positions from `end` on, in V that starts at position `start`: 0 times what is left there may
// be NaN.
fn clear_v(start: u32, end: u32, lane: u32) {
    if (start + V_PART > end) {
        workgroupBarrier();
        for (var i = max(end, start) - start + lane / DIM_LANES; i < V_PART; i += LANES / DIM_LANES) {
            for (var d = lane % DIM_LANES; d < DIM / 4u; d += DIM_LANES) {
                put_four(V_AT + i * V_STRIDE + d, Four());
            }
        }
    }
}

// Four columns side by side: row `r` of the four goes `r` strides on.
fn put_across(at: u32, stride: u32, a: Four, b: Four, c: Four, d: Four) {
    put_four(at, Four(a.x, b.x, c.x, d.x));
    put_four(at + stride, Four(a.y, b.y, c.y, d.y));
    put_four(at + 2u * stride, Four(a.z, b.z, c.z, d.z));
    put_four(at + 3u * stride, Four(a.w, b.w, c.w, d.w));
}
