//! Three activation rows and more: 16 weight rows unpacked once for a stretch of K, then used for every tile of rows.
//!
//! Owns the unpacked form ([`Scratch`]), the choice of a kernel class per format and the loops; `unpack` fills the scratch
//! from the packed layout, `blocks` multiplies. Whoever decodes to signed codes himself fills the scratch and calls
//! [`tile_u7`].

mod blocks;
mod stretch;
#[cfg(test)]
mod tests;
mod unpack;

use hob_quant::Format;

use crate::linear::act::Packed;
use crate::linear::shape::{Header, Planes, Shape};
use blocks::Frame;
use stretch::{Ahead, Codes, tiles};

/// Weight rows per unit: one interleaved group.
pub const HEIGHT: usize = 16;
/// Blocks of 32 columns unpacked at a time: 13 KiB, which leaves more than half of a 32 KiB L1 cache to activations.
pub const STRETCH: usize = 16;

/// One unpacked block: 32 columns of 16 weight rows. The offsets are known to `blocks`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Block {
    /// `[8 steps of 4 columns][16 rows][4]`: dword r of step t holds columns 4t..4t + 3 of row r.
    pub codes: [u8; 512],
    pub d: [f32; HEIGHT],
    /// Factor of the minima.
    pub m: [f32; HEIGHT],
    /// Integer sub-scales, every one twice for `vpmaddwd`: `[columns 0..16, 16..32][16 rows][2]`.
    pub s: [[[i16; 2]; HEIGHT]; 2],
    /// `[16 rows][2 halves]`: offset times sub-scale, or (Q2_K) the integer minimum.
    pub o: [[i16; 2]; HEIGHT],
    /// Of signed codes, for the class that wants them.
    magnitudes: [u8; 512],
}

/// Unpacked weights of one stretch.
#[repr(C, align(64))]
pub struct Scratch {
    pub blocks: [Block; STRETCH],
    frame: Frame,
}

impl Scratch {
    pub fn new() -> Box<Scratch> {
        let block = Block {
            codes: [0; 512],
            d: [0.0; HEIGHT],
            m: [0.0; HEIGHT],
            s: [[[0; 2]; HEIGHT]; 2],
            o: [[0; 2]; HEIGHT],
            magnitudes: [0; 512],
        };
        Box::new(Scratch { blocks: [block; STRETCH], frame: Frame::NEW })
    }
}

/// Products of decoded weights with all activation rows: `y[r * HEIGHT + i]` over the blocks `start..start + blocks` of K,
/// set when `start` is 0 and added to otherwise.
///
/// `scratch.blocks[..blocks]` holds codes of -64..=63 stored as code + 64, `d`, and sub-scales `s` within +-511 (1 where
/// there are none). Signed codes of 8 bits would cost half as much again.
///
/// # Safety
/// Needs AVX2, FMA and F16C. `blocks <= STRETCH`, `start + blocks <= acts.blocks`, and `y` has `acts.rows * HEIGHT` floats.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn tile_u7(scratch: &mut Scratch, start: usize, blocks: usize, acts: Packed, y: &mut [f32]) {
    debug_assert!(blocks <= STRETCH && start + blocks <= acts.blocks && y.len() >= acts.rows * HEIGHT);
    for block in &mut scratch.blocks[..blocks] {
        let [first, second] = &block.s;
        for ((o, first), second) in block.o.iter_mut().zip(first).zip(second) {
            *o = [64 * first[0], 64 * second[0]];
        }
    }
    // SAFETY: the caller's contract.
    unsafe {
        tiles::<{ blocks::U7_SCALED }>(
            (Codes::UNPACKED, Ahead::NONE),
            0,
            scratch,
            start..start + blocks,
            acts,
            y,
        )
    }
}

/// Products of one packed group with all activation rows: `y[r * HEIGHT + i]`.
///
/// `next` is where this thread reads on after the group; it is only ever prefetched, so any address will do.
///
/// # Safety
/// Needs AVX2, FMA and F16C. The group holds whole superblocks of `format` for all blocks of the activation, and `y` has
/// `acts.rows * HEIGHT` floats.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn unit(
    format: Format,
    group: &[u8],
    next: *const u8,
    acts: Packed,
    scratch: &mut Scratch,
    y: &mut [f32],
) {
    debug_assert!(y.len() >= acts.rows * HEIGHT);
    let work = Work { group, next, acts, scratch, y };
    // Few tiles: taking codes apart in registers costs less than storing them for later.
    let direct = acts.rows <= DIRECT;
    macro_rules! go {
        ($format:ident, $class:ident) => {
            walk::<{ index(Format::$format) }, { blocks::$class }>(work)
        };
    }
    // SAFETY: the caller's contract.
    unsafe {
        match format {
            Format::Q4_0 if direct => go!(Q4_0, N4_OFFSET),
            Format::Q4_0 => go!(Q4_0, U4_OFFSET),
            Format::Q4_1 if direct => go!(Q4_1, N4_MINIMUM),
            Format::Q4_1 => go!(Q4_1, U4_MINIMUM),
            Format::Q4K if direct => go!(Q4K, N4_MINIMUM),
            Format::Q4K => go!(Q4K, U4_MINIMUM),
            Format::Q5_0 => go!(Q5_0, U5_OFFSET),
            Format::Q5_1 => go!(Q5_1, U5_MINIMUM),
            Format::Q5K => go!(Q5K, U5_MINIMUM),
            Format::MXFP4 => go!(MXFP4, U5_OFFSET),
            Format::Q8_0 if direct => go!(Q8_0, S8),
            Format::Q8_0 => go!(Q8_0, S8_SPLIT),
            Format::IQ4NL if direct => go!(IQ4NL, S8),
            Format::IQ4NL => go!(IQ4NL, S8_SPLIT),
            Format::IQ4XS if direct => go!(IQ4XS, S8),
            Format::IQ4XS => go!(IQ4XS, S8_SPLIT),
            Format::Q6K => go!(Q6K, U6_SCALED),
            Format::Q3K => go!(Q3K, U3_SCALED),
            Format::Q2K => go!(Q2K, U3_MINIMA),
            _ => unreachable!("{format} is never interleaved"),
        }
    }
}

/// Up to this many activation rows, nibbles and signed codes are taken apart at every use.
const DIRECT: usize = 12;

/// Up to this many activation rows, memory is likely to be slower than the sums.
const STREAMED: usize = 8;

/// The levels of IQ4_NL and IQ4_XS.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// Doubled E2M1 values plus 12.
const E2M1: [i8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

/// What a stored code exceeds the code by once it is unpacked.
const fn offset(format: Format) -> i16 {
    match format {
        Format::MXFP4 => 12,
        _ => shape(format).offset as i16,
    }
}

const fn shape(format: Format) -> Shape {
    Shape::of(format).expect("an interleaved format")
}

/// Const parameters of kernels cannot be formats, only their places in the list of all.
const fn index(format: Format) -> usize {
    let mut i = 0;
    while Format::ALL[i] as usize != format as usize {
        i += 1;
    }
    i
}

/// What a unit works on.
struct Work<'a> {
    group: &'a [u8],
    next: *const u8,
    acts: Packed<'a>,
    scratch: &'a mut Scratch,
    y: &'a mut [f32],
}

/// Whether codes are multiplied as they lie in the packed layout.
const fn packed_codes(planes: Planes, class: u8) -> bool {
    matches!(planes, Planes::Bytes) || matches!(class, blocks::N4_OFFSET | blocks::N4_MINIMUM)
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn walk<const F: usize, const C: u8>(work: Work) {
    let Work { group, next, acts, scratch, y } = work;
    let shape = const { shape(Format::ALL[F]) };
    // Short stretches where the weights come from memory, so that reading never pauses for long.
    let stretch = if acts.rows <= STREAMED { STRETCH / 2 } else { STRETCH };
    let distance = crate::linear::tuning().ahead;
    let mut start = 0;
    while start < acts.blocks {
        let end = (start + stretch).min(acts.blocks);
        for b in start..end {
            // SAFETY: superblocks of all blocks exist in the group.
            unsafe { fill::<F, C>(group.as_ptr(), b, &mut scratch.blocks[b - start]) };
        }
        let codes = if packed_codes(shape.planes, C) {
            Codes::packed(group[codes_at(shape, start)..].as_ptr(), shape)
        } else {
            Codes::UNPACKED
        };
        let offset = const { offset(Format::ALL[F]) };
        let ahead = Ahead::new(shape, group, next, (start, distance));
        // SAFETY: as above; the tiles hold all blocks.
        unsafe { tiles::<C>((codes, ahead), offset, scratch, start..end, acts, y) };
        start = end;
    }
}

/// Offset of the codes of block `b` in a group.
#[inline(always)]
const fn codes_at(shape: Shape, b: usize) -> usize {
    b / shape.blocks() * shape.bytes() + shape.header.bytes() + b % shape.blocks() * shape.planes.bytes()
}

/// Unpacks block `b` of a group.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn fill<const F: usize, const C: u8>(group: *const u8, b: usize, to: &mut Block) {
    let shape = const { shape(Format::ALL[F]) };
    let i = b % shape.blocks();
    // SAFETY: the caller has whole superblocks of the format's shape.
    unsafe {
        let sup = group.add(b / shape.blocks() * shape.bytes());
        match shape.header {
            Header::Scales => unpack::scales_of_two::<false>(sup, i, to),
            Header::ScalesMinima => unpack::scales_of_two::<true>(sup, i, to),
            Header::Exponents => unpack::scales_of_exponents(sup, i, to),
            Header::Signed => unpack::scales_of_eight(sup, i, to),
            Header::Minima => unpack::scales_and_minima_of_eight(sup, i, to),
            Header::Pairs => unpack::sub_scales(sup, i, const { offset(Format::ALL[F]) }, to),
            Header::PairsMinima => unpack::sub_scales_and_minima(sup, i, to),
        }
        let split = C == blocks::S8_SPLIT;
        if packed_codes(shape.planes, C) && !split {
            return;
        }
        let from = group.add(codes_at(shape, b));
        match (shape.planes, Format::ALL[F]) {
            (Planes::Nibbles, Format::MXFP4) => unpack::looked_up::<false>(from, &E2M1, to),
            (Planes::Nibbles, Format::IQ4NL | Format::IQ4XS) if split => {
                unpack::looked_up::<true>(from, &IQ4, to);
            }
            (Planes::Nibbles, Format::IQ4NL | Format::IQ4XS) => unpack::looked_up::<false>(from, &IQ4, to),
            (Planes::Nibbles, _) => unpack::nibbles::<0>(from, to),
            (Planes::NibblesBit, _) => unpack::nibbles::<1>(from, to),
            (Planes::NibblesPair, _) => unpack::nibbles::<2>(from, to),
            (Planes::Triples, _) => unpack::triples(from, to),
            (Planes::Pair, _) => unpack::pairs(from, to),
            (Planes::Bytes, _) => unpack::magnitudes(from, to),
        }
    }
}
