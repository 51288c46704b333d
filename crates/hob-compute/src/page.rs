//! Where the values of a KV page lie.
//!
//! A page holds its KV heads one after the other; a head has four blocks of 64 positions; a block has a part for K, then
//! one for V. What a part looks like depends on its format; `groups` is `head_dim / 32`, little-endian throughout:
//!
//! | format | K part | V part |
//! |---|---|---|
//! | f16, bf16 | `[head_dim, 64]` values | `[64, head_dim]` values |
//! | q8 | `[groups, 64]` f16 scales, `[head_dim / 2, 64, 2]` i8 | `[groups, 64]` f16 scales, `[32, head_dim, 2]` i8: pairs of positions |
//! | q4 | `[groups, 64]` f16 scales, `[groups, 4, 64, 4]` bytes: byte `(g, j, position, i)` has dimension `32 g + 8 j + i` in its low and `32 g + 8 j + 4 + i` in its high nibble | `[groups, 64]` f16 scales, `[8, head_dim, 4]` bytes: byte `(j, dimension, i)` has position `8 j + i` in its low and `8 j + 4 + i` in its high nibble |
//! | asym4 | as q4, with `[groups, 64]` f16 minima behind the scales | as q4, likewise |
//!
//! Where V is a part of K ([`PageSpec::latent`]) there is no part for V: its values are those of K's first dimensions.
//!
//! A nibble of q4 is the code plus 8; one of asym4 is the code. On an exact device everything is f32 in the f16 layout.

use std::ops::Range;

use hob_quant::KvFormat;

use crate::{BLOCK_POSITIONS, PAGE_POSITIONS, PageSpec};

impl PageSpec {
    /// Whether page 0 of a sequence comes from a pool of its own, with [`PageSpec::first`].
    pub fn has_first(&self) -> bool {
        self.k.is_packed() || self.v.is_packed()
    }

    /// The spec of page `index` of a sequence whose pages are like this one.
    pub fn of_page(&self, index: usize) -> PageSpec {
        PageSpec { first: index == 0 && self.has_first(), ..*self }
    }

    /// Format of K in block `block` (0..4).
    pub fn k_format(&self, block: usize) -> KvFormat {
        if self.first && block == 0 { KvFormat::F16 } else { self.k }
    }

    /// Dimensions of V.
    pub fn value_dim(&self) -> usize {
        self.latent.unwrap_or(self.head_dim)
    }

    /// Whether V can be a part of K: in K's format, in whole groups and whole blocks of [`hob_quant::hadamard`].
    pub fn latent_fits(&self) -> bool {
        let whole = |dims: usize| {
            let mixed = !self.k.is_rotated() || dims.is_multiple_of(self.mixed_dims());
            (1..=self.head_dim).contains(&dims) && self.k.fits(dims) && mixed
        };
        self.k == self.v && self.latent.is_none_or(whole)
    }

    /// What is stored of a position and KV head: K, and V unless it is a part of K.
    pub fn stored_vectors(&self) -> usize {
        if self.latent.is_some() { 1 } else { 2 }
    }

    /// Values that are stored of a position, of all KV heads.
    pub fn position_values(&self) -> usize {
        self.kv_heads * self.head_dim * self.stored_vectors()
    }

    /// Dimensions that [`hob_quant::hadamard`] mixes in a vector of K: V, as a part of it, is mixed in blocks of as many.
    pub fn mixed_dims(&self) -> usize {
        1 << self.head_dim.trailing_zeros()
    }

    /// Format of V in block `block` (0..4).
    pub fn v_format(&self, block: usize) -> KvFormat {
        if self.first && block == 0 { KvFormat::F16 } else { self.v }
    }

    /// Bytes of one page.
    pub fn page_bytes(&self) -> usize {
        self.kv_heads * self.head_bytes()
    }

    /// Bytes of one KV head within a page.
    pub fn head_bytes(&self) -> usize {
        self.before(PAGE_POSITIONS / BLOCK_POSITIONS)
    }

    /// Bytes of the blocks in front of block `block` of one KV head: all but block 0 are alike.
    fn before(&self, block: usize) -> usize {
        if block == 0 { 0 } else { self.block_bytes(0) + (block - 1) * self.block_bytes(1) }
    }

    /// Bytes of block `block` of one KV head: its K part, then its V part.
    pub fn block_bytes(&self, block: usize) -> usize {
        self.part_bytes(self.k_format(block)) + self.v_bytes(block)
    }

    /// Bytes of the V part of a block.
    fn v_bytes(&self, block: usize) -> usize {
        if self.latent.is_some() { 0 } else { self.part_bytes(self.v_format(block)) }
    }

    /// Bytes of the K part or V part of a block that is stored in `format`.
    pub fn part_bytes(&self, format: KvFormat) -> usize {
        BLOCK_POSITIONS * format.vector_bytes(self.head_dim)
    }

    /// Where the K part and the V part of a block of one KV head lie within the page; a V that is a part of K has none of
    /// its own.
    pub fn parts(&self, kv_head: usize, block: usize) -> [Range<usize>; 2] {
        let k = kv_head * self.head_bytes() + self.before(block);
        let v = k + self.part_bytes(self.k_format(block));
        [k..v, v..v + self.v_bytes(block)]
    }

    /// Bytes of the vectors of all KV heads at position `at` (0..256) of a page.
    pub fn position_bytes(&self, at: usize) -> usize {
        let block = at / BLOCK_POSITIONS;
        self.kv_heads * self.block_bytes(block) / BLOCK_POSITIONS
    }

    /// Bytes of an image of positions `range`.
    pub fn image_bytes(&self, range: Range<usize>) -> usize {
        range.map(|at| self.position_bytes(at)).sum()
    }

    /// Where K of a KV head at position `at` lies in the image of a whole page; V follows it.
    pub fn image_at(&self, at: usize, kv_head: usize) -> usize {
        self.image_bytes(0..at) + self.position_bytes(at) / self.kv_heads * kv_head
    }

    /// Where the values of positions `range` lie in a page of an exact device, in the order of
    /// [`crate::Compute::read_positions`].
    pub fn values_of(&self, range: Range<usize>) -> impl Iterator<Item = usize> {
        let spec = *self;
        let heads = range.flat_map(move |at| (0..spec.kv_heads).map(move |head| (at, head)));
        heads.flat_map(move |(at, head)| {
            let k = (0..spec.head_dim).map(move |dim| spec.k_at(head, at, dim));
            let v = if spec.latent.is_some() { 0 } else { spec.head_dim };
            k.chain((0..v).map(move |dim| spec.v_at(head, at, dim)))
        })
    }

    /// f16 values of one page; `None` on overflow.
    pub fn page_values(&self) -> Option<usize> {
        self.kv_heads.checked_mul(self.head_dim)?.checked_mul(self.stored_vectors() * PAGE_POSITIONS)
    }

    /// f16 values of one KV head within a page.
    pub fn head_values(&self) -> usize {
        self.stored_vectors() * PAGE_POSITIONS * self.head_dim
    }

    /// First value of K block `block` of a KV head: `[head_dim, 64]`. V of the block, `[64, head_dim]`, follows it.
    pub fn k_block(&self, kv_head: usize, block: usize) -> usize {
        kv_head * self.head_values() + block * self.stored_vectors() * BLOCK_POSITIONS * self.head_dim
    }

    /// Index of K of position `at` (0..256) within a page, dimension `dim`.
    pub fn k_at(&self, kv_head: usize, at: usize, dim: usize) -> usize {
        self.k_block(kv_head, at / BLOCK_POSITIONS) + dim * BLOCK_POSITIONS + at % BLOCK_POSITIONS
    }

    /// Index of V of position `at` (0..256) within a page, dimension `dim`.
    pub fn v_at(&self, kv_head: usize, at: usize, dim: usize) -> usize {
        if self.latent.is_some() {
            return self.k_at(kv_head, at, dim);
        }
        let row = BLOCK_POSITIONS + at % BLOCK_POSITIONS;
        self.k_block(kv_head, at / BLOCK_POSITIONS) + row * self.head_dim + dim
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k_and_v_of_all_heads_fill_a_page_exactly_once() {
        let spec = PageSpec::f16(3, 5);
        let mut seen = vec![0u8; spec.page_values().unwrap()];
        for head in 0..spec.kv_heads {
            for at in 0..PAGE_POSITIONS {
                for dim in 0..spec.head_dim {
                    seen[spec.k_at(head, at, dim)] += 1;
                    seen[spec.v_at(head, at, dim)] += 1;
                }
            }
        }
        assert!(seen.iter().all(|&n| n == 1));
        assert_eq!(spec.page_bytes(), seen.len() * 2);
    }

    #[test]
    fn a_v_within_k_takes_no_room() {
        let spec = PageSpec { latent: Some(64), ..PageSpec::f16(2, 96) };
        assert_eq!(spec.page_bytes() * 2, PageSpec::f16(2, 96).page_bytes());
        let mut seen = vec![0u8; spec.page_values().unwrap()];
        spec.values_of(0..PAGE_POSITIONS).for_each(|at| seen[at] += 1);
        assert!(seen.iter().all(|&n| n == 1));
        assert_eq!((spec.v_at(1, 200, 63), spec.value_dim()), (spec.k_at(1, 200, 63), 64));
        assert_eq!(spec.mixed_dims(), 32);
    }

    #[test]
    fn parts_of_every_format_fill_a_page_exactly_once() {
        let kinds = [
            (KvFormat::Q8, KvFormat::Q4, None),
            (KvFormat::Asym4, KvFormat::F16, None),
            (KvFormat::Q4, KvFormat::Q4, Some(32)),
        ];
        for (k, v, latent) in kinds {
            for first in [false, true] {
                let spec = PageSpec { kv_heads: 3, head_dim: 64, k, v, first, latent };
                let mut at = 0;
                for head in 0..spec.kv_heads {
                    for part in (0..4).flat_map(|block| spec.parts(head, block)) {
                        assert_eq!(part.start, at);
                        at = part.end;
                    }
                }
                assert_eq!(spec.page_bytes(), at);
                assert_eq!(spec.image_bytes(0..PAGE_POSITIONS), at);
                for p in [0, 1, 63, 64, 255] {
                    let head = spec.position_bytes(p) / 3;
                    assert_eq!(spec.image_at(p, 2), spec.image_bytes(0..p + 1) - head, "{spec:?} at {p}");
                }
                assert_eq!((0..PAGE_POSITIONS).map(|p| spec.position_bytes(p)).sum::<usize>(), at);
            }
        }
    }
}
