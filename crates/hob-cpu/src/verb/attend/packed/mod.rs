//! Kernels on packed KV: queries and weights become integers, products are exact integer sums.
//!
//! Owns the operands' packing and the choice of kernels; it knows blocks, not pages, masks or threads. The rules of every
//! number stand in [`hob_compute::reference::attention`]; kernels repeat them per element, and integer sums are exact, so
//! every form gives the same bits. A page's walk calls a kernel once per block of 64 positions and *chunk*: up to
//! [`Kernels::rows`] query rows that share the KV head, so that a block is read from memory once for all of them.
//!
//! # How operands are packed
//! A **K or V part** is as `hob_compute`'s `page.rs` says, little-endian, 64-byte aligned. `groups` is `head_dim / 32`.
//!
//! **Queries** are quantized once per tile, before its pages are walked ([`Queries`]). For q8 a word (u32) holds two i16,
//! dimensions `2 w` (low half) and `2 w + 1`; for q4 and asym4 four i8, dimensions `4 w ..= 4 w + 3` from the low byte up:
//! what one 32-bit broadcast has to deliver to a multiply of pairs (`pmaddwd`, `dpwssd`) or quads (`pmaddubsw`, `dpbusd`)
//! with K, whose nibbles are the unsigned operand. A chunk's words lie `[words per vector, rows]`, its scales and sums
//! `[groups, rows]`. `sums` are the sums of a group's codes: `sum(q * (nibble - 8)) = sum(q * nibble) - 8 * sum(q)`.
//!
//! **Weights** are made by the kernel from `p` and the scales of V: 64 per row and group, in order of positions. V's part
//! holds pairs of positions (q8, for i16 weights) or quads (4 bit, for u8 weights, which are the unsigned operand beside
//! `nibble - 8`), so that again 32-bit broadcasts of neighboring weights meet V with dimensions in lanes. `p` is 0 at
//! positions that a row does not see, and all scales in a page are finite, so kernels need no masks. A group whose largest
//! `x = p * d` is 0, or so small that the factor overflows, is skipped.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;
mod queries;
#[cfg(all(test, unix))]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vnni;

use hob_compute::BLOCK_POSITIONS;
use hob_quant::{KV_GROUP, KvFormat};

use crate::isa::Isa;
pub use queries::{Queries, QueryRows};

/// Most rows of a chunk of any kernel.
pub const MOST_ROWS: usize = 24;

/// One K part against a chunk of quantized queries.
pub struct ScoreArgs<'a> {
    /// K part of a block, [`part_bytes`] long.
    pub k: &'a [u8],
    pub head_dim: usize,
    /// Rows of the chunk, `1..=Kernels::rows`.
    pub rows: usize,
    /// `[head_dim / 2, rows]` (q8) or `[head_dim / 4, rows]`
    pub words: &'a [u32],
    /// `[groups, rows]`
    pub scales: &'a [f32],
    /// `[groups, rows]`
    pub sums: &'a [i32],
    /// What `dot` is multiplied by before it is stored.
    pub factor: f32,
    /// The 64 scores of row `r` start at `256 * r`. All are written, whoever sees them.
    pub out: &'a mut [f32],
    /// What will be read next: the kernel may prefetch it, spread over its rounds.
    pub ahead: &'a [u8],
}

/// One V part weighted by a chunk of rows.
pub struct WeighArgs<'a> {
    /// V part of a block, [`part_bytes`] long.
    pub v: &'a [u8],
    pub head_dim: usize,
    /// Rows of the chunk, `1..=Kernels::rows`.
    pub rows: usize,
    /// The 64 weights of row `r` start at `256 * r`: finite or NaN, not negative, 0 where the row sees nothing.
    pub p: &'a [f32],
    /// `[rows, head_dim]`, added to.
    pub acc: &'a mut [f32],
    /// What will be read next: the kernel may prefetch it, spread over its rounds.
    pub ahead: &'a [u8],
}

impl ScoreArgs<'_> {
    /// Whether all slices are as long as a kernel for `format` will read and write: checked where a kernel starts, so
    /// that its raw loads need no other argument.
    pub fn fit(&self, format: KvFormat) -> bool {
        let (rows, dim) = (self.rows, self.head_dim);
        (1..=MOST_ROWS).contains(&rows)
            && dim.is_multiple_of(KV_GROUP)
            && self.k.len() == part_bytes(format, dim)
            && self.words.len() >= rows * dim / dims_per_word(format)
            && self.scales.len() >= rows * (dim / KV_GROUP)
            && self.sums.len() >= rows * (dim / KV_GROUP)
            && self.out.len() >= (rows - 1) * hob_compute::PAGE_POSITIONS + BLOCK_POSITIONS
    }
}

impl WeighArgs<'_> {
    /// As [`ScoreArgs::fit`].
    pub fn fit(&self, format: KvFormat) -> bool {
        let (rows, dim) = (self.rows, self.head_dim);
        (1..=MOST_ROWS).contains(&rows)
            && dim.is_multiple_of(KV_GROUP)
            && self.v.len() == part_bytes(format, dim)
            && self.p.len() >= (rows - 1) * hob_compute::PAGE_POSITIONS + BLOCK_POSITIONS
            && self.acc.len() >= rows * dim
    }
}

/// Bytes of a K or V part.
pub fn part_bytes(format: KvFormat, head_dim: usize) -> usize {
    BLOCK_POSITIONS * format.vector_bytes(head_dim)
}

/// Dimensions of a query in one word.
pub fn dims_per_word(format: KvFormat) -> usize {
    if format == KvFormat::Q8 { 2 } else { 4 }
}

/// `x` rounded to an integer, ties to even; below 2^22 in magnitude. Without a conversion, which would test for more.
#[inline(always)]
fn round(x: f32) -> i32 {
    const ROUND: f32 = 12_582_912.0;
    (x + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32
}

/// The packed kernels of one ISA. All are unsafe: they need the ISA that they were chosen for, and arguments that fit.
pub struct Kernels {
    /// Most rows of a chunk, at most [`MOST_ROWS`].
    pub rows: usize,
    /// [`Queries::fill`]
    pub quantize: unsafe fn(&mut Queries, QueryRows),
    pub scores_q8: unsafe fn(&mut ScoreArgs),
    pub scores_q4: unsafe fn(&mut ScoreArgs),
    pub scores_asym4: unsafe fn(&mut ScoreArgs),
    pub weigh_q8: unsafe fn(&mut WeighArgs),
    pub weigh_q4: unsafe fn(&mut WeighArgs),
    pub weigh_asym4: unsafe fn(&mut WeighArgs),
}

impl Kernels {
    /// The kernels of an ISA class that this CPU has.
    pub fn choose(isa: Isa) -> &'static Kernels {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &avx2::AVX2,
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => &vnni::narrow::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &vnni::wide::KERNELS,
            _ => &portable::BASE,
        }
    }

    /// Scores of a K part in a packed format.
    ///
    /// # Safety
    /// Needs the ISA these kernels were chosen for.
    pub unsafe fn scores(&self, format: KvFormat, args: &mut ScoreArgs) {
        assert!(args.fit(format), "operands of {format} scores");
        // SAFETY: the operands fit; the ISA is the caller's word.
        unsafe {
            match format {
                KvFormat::Q8 => (self.scores_q8)(args),
                KvFormat::Q4 => (self.scores_q4)(args),
                KvFormat::Asym4 => (self.scores_asym4)(args),
                KvFormat::F16 | KvFormat::Bf16 => unreachable!("{format} is not packed"),
            }
        }
    }

    /// Adds a V part in a packed format.
    ///
    /// # Safety
    /// Needs the ISA these kernels were chosen for.
    pub unsafe fn weigh(&self, format: KvFormat, args: &mut WeighArgs) {
        assert!(args.fit(format), "operands of {format} weights");
        // SAFETY: the operands fit; the ISA is the caller's word.
        unsafe {
            match format {
                KvFormat::Q8 => (self.weigh_q8)(args),
                KvFormat::Q4 => (self.weigh_q4)(args),
                KvFormat::Asym4 => (self.weigh_asym4)(args),
                KvFormat::F16 | KvFormat::Bf16 => unreachable!("{format} is not packed"),
            }
        }
    }
}
