//! The int8 form of a buffer of activations, packed for the kernels.
//!
//! Rows are grouped in tiles of [`TILE`] (the last tile may be smaller, n rows). A tile stores, block after block of 32
//! values: n x 32 codes, n scales (f32), n pairs of sums (two i16: of codes 0..16 and of 16..32), n scaled sums of all
//! 32 (f32): one small sequential stream per tile.
//! The number of blocks is even: weights are packed in pairs of blocks.

use std::ops::Range;

use hob_compute::act::{BLOCK, TINY};

use crate::isa::Isa;
use crate::pool::Pool;

/// Activation rows per tile.
pub const TILE: usize = 4;

/// Bytes of one block of a tile of `n` rows.
pub const fn block_bytes(n: usize) -> usize {
    n * (BLOCK + 12)
}

/// Number of blocks a row of `cols` values is padded to.
pub fn padded_blocks(cols: usize) -> usize {
    cols.div_ceil(BLOCK).next_multiple_of(2)
}

/// The derived form of one buffer, kept until the buffer is written.
#[derive(Default)]
pub struct ActCache {
    /// 64-byte aligned storage, in units that keep f32 aligned.
    packed: Vec<Line>,
    /// (first row, rows, cols) of what `packed` holds.
    key: Option<(usize, usize, usize)>,
}

/// Packed rows that belong to no buffer.
#[derive(Default)]
pub(super) struct Store(Vec<Line>);

impl Store {
    /// `len` bytes of room; contents as they were left.
    pub fn bytes(&mut self, len: usize) -> &mut [u8] {
        let lines = len.div_ceil(64);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0; 64]));
        }
        bytes_of(&mut self.0, len)
    }
}

/// Bytes of one packed row of `cols` values, whatever tile it is in.
pub(super) fn row_bytes(cols: usize) -> usize {
    bytes_for(1, padded_blocks(cols))
}

/// Packs `rows` rows, `row(i)` each, as the tiles of `out`, [`row_bytes`] per row.
pub(super) fn pack_rows<'x>(isa: Isa, rows: usize, row: impl Fn(usize) -> &'x [f32], out: &mut [u8]) {
    let per_row = out.len() / rows.max(1);
    for (t, tile) in out.chunks_mut(TILE * per_row).enumerate() {
        let n = (rows - t * TILE).min(TILE);
        (0..n).for_each(|r| pack_row(isa, row(t * TILE + r), tile, n, r));
    }
}

/// Makes tiles of rows that were packed one by one: `one(i)` is row i as a tile of its own.
pub(super) fn gather_rows<'x>(rows: usize, one: impl Fn(usize) -> &'x [u8], out: &mut [u8]) {
    let per_row = out.len() / rows.max(1);
    for (t, tile) in out.chunks_mut(TILE * per_row).enumerate() {
        let n = (rows - t * TILE).min(TILE);
        for r in 0..n {
            let blocks = one(t * TILE + r).chunks_exact(block_bytes(1));
            for (from, to) in blocks.zip(tile.chunks_exact_mut(block_bytes(n))) {
                to[r * BLOCK..(r + 1) * BLOCK].copy_from_slice(&from[..BLOCK]);
                // Behind the codes stand fields of 4 bytes, each for all rows of the tile.
                for (field, value) in from[BLOCK..].chunks_exact(4).enumerate() {
                    to[n * BLOCK + 4 * (field * n + r)..][..4].copy_from_slice(value);
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A borrowed packed activation.
#[derive(Clone, Copy)]
pub struct Packed<'a> {
    pub bytes: &'a [u8],
    pub rows: usize,
    pub blocks: usize,
}

/// One tile: `n` rows.
#[derive(Clone, Copy)]
pub struct Tile<'a> {
    pub bytes: &'a [u8],
    pub n: usize,
    /// Index of the tile's first row.
    pub row: usize,
}

impl ActCache {
    /// Must be called by whoever writes the buffer.
    pub fn invalidate(&mut self) {
        self.key = None;
    }

    /// Reserves room for `rows` rows of `cols`, so that later calls allocate nothing.
    pub fn reserve(&mut self, rows: usize, cols: usize) {
        let lines = bytes_for(rows, padded_blocks(cols)).div_ceil(64);
        if self.packed.len() < lines {
            self.packed.resize(lines, Line([0; 64]));
        }
    }

    /// The packed form of `rows` rows of `x`, computed if it is not the one at hand.
    pub(super) fn derive(&mut self, pool: &Pool, isa: Isa, src: Source) -> Packed<'_> {
        let key = (src.first_row, src.rows, src.cols);
        let blocks = padded_blocks(src.cols);
        let len = bytes_for(src.rows, blocks);
        self.reserve(src.rows, src.cols);
        let bytes = bytes_of(&mut self.packed, len);
        if self.key != Some(key) {
            self.key = Some(key);
            let tiles = src.rows.div_ceil(TILE);
            if src.rows * src.cols < 1 << 14 {
                pack_tiles(isa, src, bytes, 0..tiles);
            } else {
                let base = SendPtr(bytes.as_mut_ptr());
                let threads = pool.threads();
                pool.run(&|t| {
                    let range = tiles * t / threads..tiles * (t + 1) / threads;
                    let full = TILE * block_bytes(1) * blocks;
                    let start = range.start * full;
                    let end = (range.end * full).min(len);
                    // SAFETY: tiles are disjoint ranges of `bytes`, which outlives the run.
                    let part = unsafe { std::slice::from_raw_parts_mut(base.get().add(start), end - start) };
                    pack_tiles(isa, src, part, range);
                });
            }
        }
        Packed { bytes, rows: src.rows, blocks }
    }
}

/// Rows to quantise.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub x: &'a [f32],
    pub stride: usize,
    pub rows: usize,
    pub cols: usize,
    pub first_row: usize,
}

/// A raw pointer that may cross to the pool's threads; each use says why the accesses are disjoint.
#[derive(Clone, Copy)]
pub(super) struct SendPtr<T>(pub *mut T);
// SAFETY: the pointer itself is just a number; every dereference states its own reason.
unsafe impl<T> Send for SendPtr<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SendPtr<T> {}
impl<T> SendPtr<T> {
    pub fn get(&self) -> *mut T {
        self.0
    }
}

fn bytes_for(rows: usize, blocks: usize) -> usize {
    rows * block_bytes(1) * blocks
}

fn bytes_of(lines: &mut [Line], len: usize) -> &mut [u8] {
    assert!(len <= lines.len() * 64);
    // SAFETY: `Line` is 64 plain bytes; the length was just checked.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), len) }
}

impl<'a> Packed<'a> {
    /// `bytes` as [`pack_rows`] or [`gather_rows`] filled them.
    pub(super) fn of(bytes: &'a [u8], rows: usize, cols: usize) -> Self {
        Packed { bytes, rows, blocks: padded_blocks(cols) }
    }

    pub fn tiles(self) -> impl Iterator<Item = Tile<'a>> {
        (0..self.rows.div_ceil(TILE)).map(move |i| self.tile(i))
    }

    pub fn tile(self, index: usize) -> Tile<'a> {
        let row = index * TILE;
        let n = (self.rows - row).min(TILE);
        let start = bytes_for(row, self.blocks);
        Tile { bytes: &self.bytes[start..start + bytes_for(n, self.blocks)], n, row }
    }
}

fn pack_tiles(isa: Isa, src: Source, out: &mut [u8], tiles: Range<usize>) {
    let blocks = padded_blocks(src.cols);
    let first = tiles.start * TILE;
    for tile in tiles {
        let row0 = tile * TILE;
        let n = (src.rows - row0).min(TILE);
        let start = bytes_for(row0 - first, blocks);
        let part = &mut out[start..start + bytes_for(n, blocks)];
        for r in 0..n {
            let row = &src.x[(row0 + r) * src.stride..][..src.cols];
            pack_row(isa, row, part, n, r);
        }
    }
}

/// Quantises one row into slot `r` of a tile of `n`.
fn pack_row(isa: Isa, row: &[f32], tile: &mut [u8], n: usize, r: usize) {
    let stride = block_bytes(n);
    for (b, block) in tile.chunks_exact_mut(stride).enumerate() {
        let from = (b * BLOCK).min(row.len());
        let values = &row[from..(from + BLOCK).min(row.len())];
        let mut padded = [0f32; BLOCK];
        let values: &[f32; BLOCK] = match values.try_into() {
            Ok(full) => full,
            Err(_) => {
                padded[..values.len()].copy_from_slice(values);
                &padded
            }
        };
        let codes: &mut [u8; BLOCK] =
            (&mut block[r * BLOCK..(r + 1) * BLOCK]).try_into().expect("a block has 32 codes");
        let (d, [low, high]) = quantize(isa, values, codes);
        let tail = n * BLOCK;
        block[tail + 4 * r..][..4].copy_from_slice(&d.to_le_bytes());
        block[tail + 4 * (n + r)..][..2].copy_from_slice(&low.to_le_bytes());
        block[tail + 4 * (n + r) + 2..][..2].copy_from_slice(&high.to_le_bytes());
        let scaled = d * (i32::from(low) + i32::from(high)) as f32;
        block[tail + 4 * (2 * n + r)..][..4].copy_from_slice(&scaled.to_le_bytes());
    }
}

fn quantize(isa: Isa, x: &[f32; BLOCK], codes: &mut [u8; BLOCK]) -> (f32, [i16; 2]) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: the ISA class was detected on this CPU.
        return unsafe { super::avx2::quantize_block(x, codes) };
    }
    let _ = isa;
    let block = hob_compute::act::quantize_block(x);
    for (c, q) in codes.iter_mut().zip(block.q) {
        *c = q as u8;
    }
    (block.d, block.sums)
}

/// Both sums of a pair, read from a tile as one dword.
#[inline(always)]
pub(super) const fn sum_of(pair: i32) -> i32 {
    (pair as i16) as i32 + (pair >> 16)
}

/// Reciprocal and scale of a block's largest magnitude.
#[inline(always)]
pub(super) fn scales(amax: f32) -> (f32, f32) {
    if amax > TINY { (amax / 127.0, 127.0 / amax) } else { (0.0, 0.0) }
}
