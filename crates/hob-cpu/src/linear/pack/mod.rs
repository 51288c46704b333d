//! Packing: rows of blocks as files have them, 16 at a time, into the planes and headers of [`Shape`]. It must not know
//! matrices, threads or kernels.
//!
//! Each format says how 32 codes of a block are read, as eight dwords of four codes (step t), and which scale bytes go
//! into the header; the rest is common. All bit work is done four codes at a time in dwords.

mod sources;

use hob_quant::Format;

use super::shape::{LANES, Planes, Shape};

/// One format's file block.
trait Source {
    const FORMAT: Format;
    const SHAPE: Shape = match Shape::of(Self::FORMAT) {
        Some(shape) => shape,
        None => panic!("only packed formats are packed"),
    };

    /// The unsigned codes of block `s` of 32 weights: byte j of dword t is code 4t + j.
    fn codes(b: &[u8], s: usize) -> [u32; 8];

    /// Writes the header bytes that file block `b` gives row `r`. `half` counts the file's blocks in the superblock.
    fn header(b: &[u8], half: usize, r: usize, head: &mut [u8]);
}

/// Packs up to 16 rows into one group, which is zero where a row or a block is absent.
///
/// `rows` holds whole rows of `row_bytes`, `group` the bytes of [`Shape::group_bytes`]. `bias` stores Q8_0 codes + 128.
/// False when the format is not packed.
pub fn group(format: Format, rows: &[u8], row_bytes: usize, group: &mut [u8], bias: bool) -> bool {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has AVX2.
        return unsafe { group_avx2(format, rows, row_bytes, group, bias) };
    }
    any(format, rows, row_bytes, group, bias)
}

/// The same loops, compiled for AVX2.
///
/// # Safety
/// Needs AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2")]
unsafe fn group_avx2(format: Format, rows: &[u8], row_bytes: usize, group: &mut [u8], bias: bool) -> bool {
    any(format, rows, row_bytes, group, bias)
}

#[inline(always)]
fn any(format: Format, rows: &[u8], row_bytes: usize, group: &mut [u8], bias: bool) -> bool {
    let pack = (rows, row_bytes, group);
    match format {
        Format::Q4_0 => fill::<sources::Q4_0>(pack, 0),
        Format::Q4_1 => fill::<sources::Q4_1>(pack, 0),
        Format::Q5_0 => fill::<sources::Q5_0>(pack, 0),
        Format::Q5_1 => fill::<sources::Q5_1>(pack, 0),
        Format::Q8_0 => fill::<sources::Q8_0>(pack, if bias { 0x8080_8080 } else { 0 }),
        Format::IQ4NL => fill::<sources::Iq4Nl>(pack, 0),
        Format::MXFP4 => fill::<sources::Mxfp4>(pack, 0),
        Format::Q2K => fill::<sources::Q2K>(pack, 0),
        Format::Q3K => fill::<sources::Q3K>(pack, 0),
        Format::Q4K => fill::<sources::Q4K>(pack, 0),
        Format::Q5K => fill::<sources::Q5K>(pack, 0),
        Format::Q6K => fill::<sources::Q6K>(pack, 0),
        Format::IQ4XS => fill::<sources::Iq4Xs>(pack, 0),
        _ => return false,
    }
    true
}

#[inline(always)]
fn fill<S: Source>((rows, row_bytes, group): (&[u8], usize, &mut [u8]), flip: u32) {
    let shape = S::SHAPE;
    let block_bytes = S::FORMAT.block_bytes();
    // Blocks of 32 in one block of the file, and blocks of the file in one superblock.
    let subs = S::FORMAT.block_len() / 32;
    let parts = shape.blocks() / subs;
    for (i, sup) in group.chunks_exact_mut(shape.bytes()).enumerate() {
        let (head, codes) = sup.split_at_mut(shape.header.bytes());
        let codes = &mut codes[..shape.blocks() * shape.planes.bytes()];
        for (r, row) in rows.chunks_exact(row_bytes).take(LANES).enumerate() {
            for part in 0..parts {
                let at = (i * parts + part) * block_bytes;
                let Some(block) = row.get(at..at + block_bytes) else { continue };
                S::header(block, part, r, head);
                for s in 0..subs {
                    let bytes = shape.planes.bytes();
                    let out = &mut codes[(part * subs + s) * bytes..][..bytes];
                    put(shape.planes, S::codes(block, s).map(|c| c ^ flip), r, out);
                }
            }
        }
    }
}

/// Writes the codes of row `r` into the planes of one block.
#[inline(always)]
fn put(planes: Planes, w: [u32; 8], r: usize, out: &mut [u8]) {
    let chunks = out.as_chunks_mut::<64>().0;
    let mut put = |chunk: usize, value: u32| {
        chunks[chunk].as_chunks_mut::<4>().0[r % LANES] = value.to_le_bytes();
    };
    let nibble = |c: usize| w[c] & 0x0f0f_0f0f | (w[c + 4] & 0x0f0f_0f0f) << 4;
    let bit = |shift: u32| (0..8).fold(0, |all, t| all | (w[t] >> shift & 0x0101_0101) << t);
    let pair = |u: usize, shift: u32| {
        (0..4).fold(0, |all, i| all | (w[4 * u + i] >> shift & 0x0303_0303) << (2 * i))
    };
    match planes {
        Planes::Bytes => (0..8).for_each(|t| put(t, w[t])),
        Planes::Nibbles => (0..4).for_each(|c| put(c, nibble(c))),
        Planes::NibblesBit => {
            (0..4).for_each(|c| put(c, nibble(c)));
            put(4, bit(4));
        }
        Planes::NibblesPair => {
            (0..4).for_each(|c| put(c, nibble(c)));
            (0..2).for_each(|u| put(4 + u, pair(u, 4)));
        }
        Planes::Triples => {
            let tops = w[6] | w[7] << 3;
            (0..3).for_each(|u| put(u, w[2 * u] | w[2 * u + 1] << 3 | (tops >> (2 * u) & 0x0303_0303) << 6));
        }
        Planes::Pair => (0..2).for_each(|u| put(u, pair(u, 0))),
    }
}

#[cfg(test)]
mod tests;
