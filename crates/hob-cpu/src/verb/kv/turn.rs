//! The V part that a K part would have: where V is the first dimensions of K, attention turns each block on its way to the
//! kernels, from positions in lanes to dimensions in lanes. It must not know attention.

use hob_compute::BLOCK_POSITIONS;
use hob_quant::{KV_GROUP, KvFormat};

use crate::isa::Isa;

/// Writes the V part of the first `dims` dimensions of a K part in `format`; `k` has at least as many.
pub fn turn(isa: Isa, format: KvFormat, k: &[u8], (head_dim, dims): (usize, usize), v: &mut [u8]) {
    compiled!(isa, turn_any, format: KvFormat, k: &[u8], head_dim: usize, dims: usize, v: &mut [u8])
}

#[inline(always)]
fn turn_any(format: KvFormat, k: &[u8], head_dim: usize, dims: usize, v: &mut [u8]) {
    if !format.is_packed() {
        return halves(k, dims, v);
    }
    // Scales, and minima, are by groups on either side.
    let [from, to] = [head_dim, dims].map(|d| d / KV_GROUP * BLOCK_POSITIONS * 2);
    let planes = if format == KvFormat::Asym4 { 2 } else { 1 };
    for plane in 0..planes {
        v[plane * to..(plane + 1) * to].copy_from_slice(&k[plane * from..][..to]);
    }
    let (k, v) = (&k[planes * from..], &mut v[planes * to..]);
    if format == KvFormat::Q8 { bytes(k, dims, v) } else { nibbles(k, dims, v) }
}

/// `[dims, 64]` values of 16 bits to `[64, dims]`.
#[inline(always)]
fn halves(k: &[u8], dims: usize, v: &mut [u8]) {
    const STEP: usize = 2 * BLOCK_POSITIONS;
    let eights = dims / 8 * 8;
    for dim in (0..eights).step_by(8) {
        for at in (0..BLOCK_POSITIONS).step_by(8) {
            let rows = std::array::from_fn(|d| chunk(k, (dim + d) * STEP + 2 * at));
            for (p, row) in turned(rows).into_iter().enumerate() {
                v[2 * ((at + p) * dims + dim)..][..16].copy_from_slice(&row);
            }
        }
    }
    for dim in eights..dims {
        for at in 0..BLOCK_POSITIONS {
            let to = 2 * (at * dims + dim);
            v[to..to + 2].copy_from_slice(&k[dim * STEP + 2 * at..][..2]);
        }
    }
}

/// `[dims / 2, 64, 2]` bytes to `[32, dims, 2]`: pairs of dimensions to pairs of positions.
#[inline(always)]
fn bytes(k: &[u8], dims: usize, v: &mut [u8]) {
    const STEP: usize = 2 * BLOCK_POSITIONS;
    for pair in (0..dims / 2).step_by(8) {
        for at in (0..BLOCK_POSITIONS).step_by(8) {
            let rows = std::array::from_fn(|d| chunk(k, (pair + d) * STEP + 2 * at));
            let rows = turned(rows);
            for (p, two) in rows.as_chunks::<2>().0.iter().enumerate() {
                let mut both = [0u8; 32];
                for (both, (&a, &b)) in both.as_chunks_mut::<2>().0.iter_mut().zip(two[0].iter().zip(&two[1]))
                {
                    *both = [a, b];
                }
                v[2 * ((at / 2 + p) * dims + 2 * pair)..][..32].copy_from_slice(&both);
            }
        }
    }
}

/// `[dims / 8, 64, 4]` bytes to `[8, dims, 4]`: a word holds eight dimensions of a position, then eight positions of a
/// dimension; the first four in low nibbles.
#[inline(always)]
fn nibbles(k: &[u8], dims: usize, v: &mut [u8]) {
    for eight in 0..dims / 8 {
        for at in 0..BLOCK_POSITIONS / 8 {
            let from = 4 * (eight * BLOCK_POSITIONS + 8 * at);
            let (a, b): ([u8; 16], [u8; 16]) = (chunk(k, from), chunk(k, from + 16));
            // Byte `4 p + d`: positions p and 4 + p of a dimension.
            let low: [u8; 16] = std::array::from_fn(|i| a[i] & 15 | b[i] << 4);
            let high: [u8; 16] = std::array::from_fn(|i| a[i] >> 4 | b[i] & 0xF0);
            let to = &mut v[4 * (at * dims + 8 * eight)..][..32];
            to[..16].copy_from_slice(&std::array::from_fn::<u8, 16, _>(|i| low[i % 4 * 4 + i / 4]));
            to[16..].copy_from_slice(&std::array::from_fn::<u8, 16, _>(|i| high[i % 4 * 4 + i / 4]));
        }
    }
}

#[inline(always)]
fn chunk(bytes: &[u8], at: usize) -> [u8; 16] {
    let mut chunk = [0u8; 16];
    chunk.copy_from_slice(&bytes[at..at + 16]);
    chunk
}

/// Eight rows of eight values of 16 bits, as columns.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn turned(rows: [[u8; 16]; 8]) -> [[u8; 16]; 8] {
    use std::arch::x86_64::*;
    // SAFETY: SSE2 belongs to x86-64; every array is a register's 16 bytes.
    unsafe {
        let r = rows.map(|row| _mm_loadu_si128(row.as_ptr().cast()));
        // Values of 16 bits of two rows side by side, then pairs of four, then fours of eight.
        let two = |i: usize| [_mm_unpacklo_epi16(r[i], r[i + 1]), _mm_unpackhi_epi16(r[i], r[i + 1])];
        let [a, b, c, d] = [two(0), two(2), two(4), two(6)];
        let four = |x: __m128i, y: __m128i| [_mm_unpacklo_epi32(x, y), _mm_unpackhi_epi32(x, y)];
        let low = [four(a[0], b[0]), four(a[1], b[1])];
        let high = [four(c[0], d[0]), four(c[1], d[1])];
        let mut out = [[0u8; 16]; 8];
        for (i, out) in out.iter_mut().enumerate() {
            let (x, y) = (low[i / 4][i / 2 % 2], high[i / 4][i / 2 % 2]);
            let row = if i % 2 == 0 { _mm_unpacklo_epi64(x, y) } else { _mm_unpackhi_epi64(x, y) };
            _mm_storeu_si128(out.as_mut_ptr().cast(), row);
        }
        out
    }
}

/// Eight rows of eight values of 16 bits, as columns.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn turned(rows: [[u8; 16]; 8]) -> [[u8; 16]; 8] {
    std::array::from_fn(|column| std::array::from_fn(|byte| rows[byte / 2][2 * column + byte % 2]))
}

#[cfg(test)]
mod tests {
    use hob_compute::PageSpec;
    use hob_testkit::rng::Rng;

    use super::super::{Head, Rows, append_sides};
    use super::*;

    #[test]
    fn a_turned_part_is_the_one_that_v_would_have() {
        let mut rng = Rng::new(7);
        for (format, head_dim, dims) in [
            (KvFormat::F16, 24, 16),
            (KvFormat::F16, 40, 36),
            (KvFormat::Bf16, 24, 24),
            (KvFormat::Q8, 96, 64),
            (KvFormat::Asym4, 96, 32),
            (KvFormat::Q4, 576, 512),
        ] {
            // Rotations mix the same blocks on both sides only where V has as many dimensions as K.
            let spec = PageSpec { k: format, v: format, ..PageSpec::f16(1, head_dim) };
            let x = rng.normal_vec(BLOCK_POSITIONS * head_dim, 1.0);
            let mut page = vec![0u8; spec.page_bytes()];
            append_sides::<false>(
                Head { spec: &spec, kv_head: 0, bytes: &mut page },
                Rows { k: &x, v: &x, at: 0 },
            );
            let [k, v] = spec.parts(0, 0).map(|part| &page[part]);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
                let mut all = vec![0u8; v.len()];
                turn(isa, format, k, (head_dim, head_dim), &mut all);
                assert!(all == v, "{format} {head_dim}");
                let narrow = PageSpec { k: format, v: format, ..PageSpec::f16(1, dims) };
                let mut part = vec![0u8; narrow.part_bytes(format)];
                turn(isa, format, k, (head_dim, dims), &mut part);
                for at in 0..BLOCK_POSITIONS {
                    let [narrow, wide] = [(&part[..], dims), (v, head_dim)].map(|(part, dim)| {
                        let mut out = vec![0u8; format.vector_bytes(dims)];
                        read_vector(format, part, (dim, at), &mut out);
                        out
                    });
                    assert_eq!(narrow, wide, "{format} {head_dim} {dims} position {at}");
                }
            }
        }
    }

    fn read_vector(format: KvFormat, part: &[u8], (dim, at): (usize, usize), out: &mut [u8]) {
        use super::super::lay::{self, Place, Side};
        let place = Place { dim, at };
        if !format.is_packed() {
            return lay::get_halves(Side::V, part, place, 0, out);
        }
        for (g, out) in out.chunks_mut(format.vector_bytes(KV_GROUP)).enumerate() {
            let group = lay::get_group(Side::V, format, part, place, g);
            // As many of the codes as there is room for tell vectors apart.
            let bytes = group.d.to_le_bytes().into_iter().chain(group.codes);
            out.iter_mut().zip(bytes).for_each(|(out, b)| *out = b);
        }
    }
}
