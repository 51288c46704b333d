//! Walks the tiles of activation rows and the blocks of a stretch of K. It must not know formats.

use std::arch::x86_64::*;
use std::ops::Range;

use super::blocks::{At, Frame, block};
use super::{Block, HEIGHT, STRETCH, Scratch};
use crate::linear::act::{Packed, TILE, block_bytes};
use crate::linear::shape::Shape;

/// Where the codes of a stretch lie.
#[derive(Clone, Copy)]
pub struct Codes {
    /// Those of the first block; null for those of the scratch.
    at: *const u8,
    /// From one block to the next.
    step: usize,
    /// Blocks until a header is to be skipped, and its bytes.
    per: usize,
    gap: usize,
}

impl Codes {
    /// In the scratch.
    pub const UNPACKED: Codes =
        Codes { at: std::ptr::null(), step: size_of::<Block>(), per: usize::MAX, gap: 0 };

    /// In the packed layout; a stretch begins with a superblock, whose first code is `at`.
    pub fn packed(at: *const u8, shape: Shape) -> Codes {
        Codes { at, step: shape.planes.bytes(), per: shape.blocks(), gap: shape.header.bytes() }
    }
}

/// What to prefetch while the first tile goes through a stretch.
#[derive(Clone, Copy)]
pub struct Ahead {
    /// Where the first block's share begins.
    from: *const u8,
    /// Bytes per block, superblock headers shared out; and how many times three cache lines that is.
    step: usize,
    threes: usize,
    /// From here on reading goes on elsewhere.
    end: *const u8,
    next: *const u8,
}

impl Ahead {
    pub const NONE: Ahead = {
        let null = std::ptr::null();
        Ahead { from: null, step: 0, threes: 0, end: null, next: null }
    };

    /// For the stretch that begins with block `start` of a group; `distance` bytes ahead of it, or not at all for 0.
    pub fn new(shape: Shape, group: &[u8], next: *const u8, (start, distance): (usize, usize)) -> Ahead {
        if distance == 0 {
            return Ahead::NONE;
        }
        let step = shape.bytes() / shape.blocks();
        // The next stretch is unpacked before the tiles go through it.
        let at = (start + STRETCH / 2) * step + distance;
        let Range { start, end } = group.as_ptr_range();
        let beyond = (at + 1).saturating_sub(group.len());
        let (from, end) =
            if beyond > 0 { (next.wrapping_add(beyond - 1), NEVER) } else { (start.wrapping_add(at), end) };
        Ahead { from, step, threes: step.div_ceil(3 * 64), end, next }
    }

    /// The part of a tile of activations that belongs to the stretch from block `start`.
    fn tile(acts: Packed, index: usize, start: usize) -> Ahead {
        let step = block_bytes(TILE);
        let from = acts.bytes.as_ptr().wrapping_add((index * acts.blocks + start) * step);
        Ahead { from, step, threes: step.div_ceil(3 * 64), end: NEVER, next: from }
    }

    #[inline(always)]
    fn prefetch(&mut self) {
        for threes in 0..self.threes {
            for line in 3 * threes..3 * threes + 3 {
                // SAFETY: prefetching changes nothing and never faults.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(self.from.wrapping_add(64 * line).cast()) };
            }
        }
        self.from = self.from.wrapping_add(self.step);
        if self.from >= self.end {
            (self.from, self.end) = (self.next, NEVER);
        }
    }
}

/// The last address: nothing lies there.
const NEVER: *const u8 = std::ptr::without_provenance(usize::MAX);

/// Bytes of activations from which on they are prefetched, tile by tile: about what an L2 cache keeps beside weights.
const FAR: usize = 256 << 10;

/// All activation rows by the blocks `range` of K, the first of which is the scratch's first: products of class `C`, set
/// when the range begins at 0 and added to `y[r * HEIGHT + i]` otherwise.
///
/// # Safety
/// Needs AVX2, FMA and F16C. The scratch, and the packed layout if codes are there, hold what class `C` reads of as many
/// blocks; `y` has `acts.rows * HEIGHT` floats, `acts` all blocks.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn tiles<const C: u8>(
    (codes, mut ahead): (Codes, Ahead),
    offset: i16,
    scratch: &mut Scratch,
    range: Range<usize>,
    acts: Packed,
    y: &mut [f32],
) {
    let blocks = scratch.blocks.as_ptr();
    let codes = Codes { at: if codes.at.is_null() { blocks.cast() } else { codes.at }, ..codes };
    let stretch = Stretch { codes, blocks, count: range.len() };
    let frame = &mut scratch.frame;
    frame.offset = [offset; 16];
    for tile in acts.tiles() {
        let y = &mut y[tile.row * HEIGHT..(tile.row + tile.n) * HEIGHT];
        let acc = &mut frame.acc[..y.len()];
        if range.start == 0 {
            acc.fill(0.0);
        } else {
            acc.copy_from_slice(y);
        }
        // SAFETY: the tile has n rows of all blocks, `acc` room for them.
        unsafe {
            let x = tile.bytes.as_ptr().add(range.start * block_bytes(tile.n));
            match tile.n {
                1 => stretch.tile::<C, 1>(ahead, x, frame),
                2 => stretch.tile::<C, 2>(ahead, x, frame),
                3 => stretch.tile::<C, 3>(ahead, x, frame),
                _ => stretch.tile::<C, 4>(ahead, x, frame),
            }
        }
        y.copy_from_slice(&frame.acc[..y.len()]);
        ahead = if acts.bytes.len() > FAR {
            Ahead::tile(acts, tile.row / TILE + 2, range.start)
        } else {
            Ahead::NONE
        };
    }
}

/// The weights of a stretch.
struct Stretch {
    codes: Codes,
    blocks: *const Block,
    count: usize,
}

impl Stretch {
    /// Adds the products of one tile of N rows.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn tile<const C: u8, const N: usize>(
        &self,
        mut ahead: Ahead,
        mut x: *const u8,
        frame: *mut Frame,
    ) {
        let mut codes = self.codes.at;
        let mut left = self.codes.per;
        for i in 0..self.count {
            ahead.prefetch();
            // SAFETY: block i of the scratch, of the tile and of the codes exists.
            unsafe {
                block::<C, N>(At { codes, block: self.blocks.add(i), x, frame });
                x = x.add(block_bytes(N));
            }
            codes = codes.wrapping_add(self.codes.step);
            left -= 1;
            if left == 0 {
                (codes, left) = (codes.wrapping_add(self.codes.gap), self.codes.per);
            }
        }
    }
}
