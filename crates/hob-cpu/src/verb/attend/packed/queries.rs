//! A tile's queries as integers, interleaved for the kernels (see [`super`]).

use hob_quant::{KV_GROUP, KvFormat};

use super::dims_per_word;
use crate::verb::attend::tile::chunks;

/// Queries of a tile: `[rows, head_dim]` f32, rotated where K is.
#[derive(Copy, Clone)]
pub struct QueryRows<'a> {
    pub q: &'a [f32],
    pub rows: usize,
    pub head_dim: usize,
    /// Rows of a chunk.
    pub step: usize,
    /// K's format, a packed one.
    pub format: KvFormat,
}

/// The same, quantized. Chunks lie one after the other.
pub struct Queries<'a> {
    /// `[words per vector, rows]` of every chunk.
    pub words: &'a mut [u32],
    /// `[groups, rows]` of every chunk.
    pub scales: &'a mut [f32],
    /// `[groups, rows]` of every chunk.
    pub sums: &'a mut [i32],
}

impl<'a> Queries<'a> {
    /// Cuts memory of [`Queries::floats`] floats.
    pub fn new(memory: &'a mut [f32], rows: usize, head_dim: usize) -> Queries<'a> {
        let groups = rows * head_dim.div_ceil(KV_GROUP);
        let (scales, rest) = memory.split_at_mut(groups);
        let (sums, words) = rest.split_at_mut(groups);
        // SAFETY: u32 and i32 have the size and alignment of f32, and any bits are values of all three.
        let (sums, words) = unsafe { (sums.align_to_mut::<i32>().1, words.align_to_mut::<u32>().1) };
        Queries { words, scales, sums }
    }

    /// Words, scales and sums of a chunk.
    pub fn chunk(
        &self,
        format: KvFormat,
        head_dim: usize,
        first: usize,
        rows: usize,
    ) -> (&[u32], &[f32], &[i32]) {
        let (words, groups) = (head_dim / dims_per_word(format), head_dim / KV_GROUP);
        let of = |n: usize| first * n..(first + rows) * n;
        (&self.words[of(words)], &self.scales[of(groups)], &self.sums[of(groups)])
    }

    /// Floats, or as large, of all three for `rows` rows.
    pub fn floats(rows: usize, head_dim: usize) -> usize {
        rows * (head_dim / 2 + 2 * head_dim.div_ceil(KV_GROUP))
    }

    /// Quantizes all rows.
    #[inline(always)]
    pub fn fill(&mut self, from: QueryRows) {
        let QueryRows { q, rows, head_dim, step, format } = from;
        let most = if format == KvFormat::Q8 { 32767.0 } else { 127.0 };
        let (words, groups) = (head_dim / dims_per_word(format), head_dim / KV_GROUP);
        for (first, n) in chunks(rows, step) {
            for r in 0..n {
                let x = q[(first + r) * head_dim..][..head_dim].as_chunks::<KV_GROUP>().0;
                let words = &mut self.words[first * words + r..];
                for (g, x) in x.iter().enumerate() {
                    let (scale, codes) = group(x, most);
                    let at = first * groups + g * n + r;
                    self.scales[at] = scale;
                    self.sums[at] = codes.iter().map(|&c| i32::from(c)).sum();
                    interleave(format, &codes, &mut words[g * KV_GROUP / dims_per_word(format) * n..], n);
                }
            }
        }
    }
}

/// Writes a group's words `n` apart.
#[inline(always)]
fn interleave(format: KvFormat, codes: &[i16; KV_GROUP], words: &mut [u32], n: usize) {
    if format == KvFormat::Q8 {
        for (to, &[a, b]) in words.iter_mut().step_by(n).zip(codes.as_chunks().0) {
            *to = u32::from(a as u16) | u32::from(b as u16) << 16;
        }
    } else {
        for (to, &four) in words.iter_mut().step_by(n).zip(codes.as_chunks::<4>().0) {
            *to = u32::from_le_bytes(four.map(|c| c as u8));
        }
    }
}

/// Scale `largest / most` and codes `round_ties_even(x * (most / largest))` of a group, which are 0 where that factor or
/// the largest magnitude is not finite; a NaN counts as larger than any number.
#[inline(always)]
pub fn group(x: &[f32; KV_GROUP], most: f32) -> (f32, [i16; KV_GROUP]) {
    let mut lanes = [0u32; 8];
    for eight in x.as_chunks::<8>().0 {
        for (m, v) in lanes.iter_mut().zip(eight) {
            *m = (*m).max(v.to_bits() & 0x7FFF_FFFF);
        }
    }
    let largest = f32::from_bits(lanes.into_iter().fold(0, u32::max));
    let factor = most / largest;
    let mut codes = [0i16; KV_GROUP];
    if factor.is_finite() && largest.is_finite() {
        codes.iter_mut().zip(x).for_each(|(c, &v)| *c = super::round(v * factor) as i16);
    }
    (largest / most, codes)
}
