// The planes' words of a block's codes: nibbles or the first 16 bytes; what there is beside them.
struct CodeWords { main: vec4<u32>, more: vec4<u32> }
// What scales of a run of blocks are made of: words that they share, and words of each.
struct ScaleWords { shared_: vec4<u32>, own: vec4<u32> }
// 16 int8 codes each, in order.
struct Codes { lo: vec4<u32>, hi: vec4<u32> }
// Scales and minima of weights 0..16 and 16..32.
struct Scales { s: vec2<f32>, m: vec2<f32> }

// 0xff in the bytes whose bit 0 is set.
fn byte_mask(q: vec4<u32>) -> vec4<u32> {
    return (q & vec4(0x01010101u)) * vec4(255u);
}

// Bytes 0..16 to the levels of IQ4_NL: a tree of choices, by byte.
fn iq4_levels(q: vec4<u32>) -> vec4<u32> {
    let m0 = byte_mask(q);
    let m1 = byte_mask(q >> vec4(1u));
    let m2 = byte_mask(q >> vec4(2u));
    let m3 = byte_mask(q >> vec4(3u));
    let p0 = vec4(0x81818181u) ^ (m0 & vec4(0x19191919u));
    let p1 = vec4(0xadadadadu) ^ (m0 & vec4(0x12121212u));
    let p2 = vec4(0xcfcfcfcfu) ^ (m0 & vec4(0x12121212u));
    let p3 = vec4(0xeaeaeaeau) ^ (m0 & vec4(0x1c1c1c1cu));
    let p4 = vec4(0x01010101u) ^ (m0 & vec4(0x0c0c0c0cu));
    let p5 = vec4(0x19191919u) ^ (m0 & vec4(0x3f3f3f3fu));
    let p6 = vec4(0x35353535u) ^ (m0 & vec4(0x70707070u));
    let p7 = vec4(0x59595959u) ^ (m0 & vec4(0x28282828u));
    let a0 = (p0 & ~m1) | (p1 & m1);
    let a1 = (p2 & ~m1) | (p3 & m1);
    let a2 = (p4 & ~m1) | (p5 & m1);
    let a3 = (p6 & ~m1) | (p7 & m1);
    let low = (a0 & ~m2) | (a1 & m2);
    let high = (a2 & ~m2) | (a3 & m2);
    return (low & ~m3) | (high & m3);
}

// Bytes 0..16, E2M1 numbers, to twice their value plus 12.
fn fp4_levels(q: vec4<u32>) -> vec4<u32> {
    let ones = vec4(0x01010101u);
    let b0 = q & ones;
    let b1 = (q >> vec4(1u)) & ones;
    let b2 = (q >> vec4(2u)) & ones;
    // 0 1 2 3 4 6 8 12
    let v = (q & vec4(0x07070707u)) + (b2 & b0) + ((b2 & b1) << vec4(1u)) + ((b2 & b1 & b0) << vec4(1u));
    return vec4(0x0c0c0c0cu) + v - ((v & byte_mask(q >> vec4(3u))) << vec4(1u));
}

fn four_floats(word: u32, offset: i32) -> vec4<f32> {
    return vec4<f32>(unpack4xI8(word) - vec4(offset));
}
