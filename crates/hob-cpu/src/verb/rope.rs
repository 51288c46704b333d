//! Rotary position embedding: a table of cosines and sines per step, and the rotation of heads.

use hob_compute::RopePairs;
use hob_compute::reference::rows;

use super::{Parts, each_rows};
use crate::isa::Isa;
use crate::pool::Pool;

/// What a table was made for. `freqs` is the version of the frequency buffer: unique to its contents.
#[derive(Copy, Clone, PartialEq)]
struct Key {
    freqs: u64,
    magnitude: u32,
    back: bool,
}

/// Cosines and sines of the positions of one step, `[rows, pairs]` each.
#[derive(Default)]
struct Table {
    key: Option<Key>,
    positions: Vec<u32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// The last two tables: all layers, q and k of a step share one; models that alternate two frequency sets keep both.
#[derive(Default)]
pub struct Tables {
    tables: [Table; 2],
    /// The table to replace next.
    oldest: usize,
}

/// Frequencies and what identifies them.
#[derive(Copy, Clone)]
pub struct Freqs<'a> {
    pub values: &'a [f32],
    pub version: u64,
    pub magnitude: f32,
    /// By negative angles.
    pub back: bool,
}

/// A table in use.
#[derive(Copy, Clone)]
pub struct Angles<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    pairs: usize,
}

impl Tables {
    /// The table of `positions`, computed if it is not at hand.
    pub fn get(&mut self, pool: &Pool, freqs: Freqs, positions: &[u32]) -> Angles<'_> {
        let key = Key { freqs: freqs.version, magnitude: freqs.magnitude.to_bits(), back: freqs.back };
        let found = self.tables.iter().position(|t| t.key == Some(key) && t.positions == positions);
        let at = found.unwrap_or(self.oldest);
        self.oldest = 1 - at;
        let table = &mut self.tables[at];
        if found.is_none() {
            table.fill(pool, freqs, positions);
            table.key = Some(key);
        }
        Angles { cos: &table.cos, sin: &table.sin, pairs: freqs.values.len() }
    }
}

impl Table {
    fn fill(&mut self, pool: &Pool, freqs: Freqs, positions: &[u32]) {
        let pairs = freqs.values.len();
        self.key = None;
        self.positions.clear();
        self.positions.extend_from_slice(positions);
        self.cos.resize(positions.len() * pairs, 0.0);
        self.sin.resize(positions.len() * pairs, 0.0);
        let (cos, sin) = (Parts::new(&mut self.cos), Parts::new(&mut self.sin));
        // A sine costs as much as dozens of other operations: count it so when sharing rows out.
        each_rows(pool, positions.len(), pairs * 32, &|range| {
            for r in range {
                let span = r * pairs..(r + 1) * pairs;
                // SAFETY: rows are disjoint.
                let (cos, sin) = unsafe { (cos.part(span.clone()), sin.part(span)) };
                for ((c, s), &freq) in cos.iter_mut().zip(sin).zip(freqs.values) {
                    (*c, *s) = rows::rope_angle(positions[r], freq, freqs.magnitude);
                    *s = if freqs.back { -*s } else { *s };
                }
            }
        });
    }
}

/// Rotates `2 * pairs` dimensions of every head of `x`, `[rows, heads * head_dim]`; `shape` is `(heads, head_dim, first
/// of them)`.
pub fn rope(
    pool: &Pool,
    isa: Isa,
    x: &mut [f32],
    shape: (usize, usize, usize),
    angles: Angles,
    pairs: RopePairs,
) {
    let (heads, head_dim, first) = shape;
    let width = heads * head_dim;
    let n = angles.pairs;
    let (rows, parts) = (x.len() / width.max(1), Parts::new(x));
    each_rows(pool, rows, width, &|range| {
        for r in range {
            // SAFETY: rows are disjoint.
            let row = unsafe { parts.part(r * width..(r + 1) * width) };
            let (cos, sin) = (&angles.cos[r * n..(r + 1) * n], &angles.sin[r * n..(r + 1) * n]);
            row.chunks_exact_mut(head_dim).for_each(|head| rotate(isa, &mut head[first..], cos, sin, pairs));
        }
    });
}

/// Rotates one head.
pub fn rotate(isa: Isa, head: &mut [f32], cos: &[f32], sin: &[f32], pairs: RopePairs) {
    assert!(cos.len() == sin.len() && 2 * cos.len() <= head.len());
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: the ISA class was detected; the lengths were just checked.
        return unsafe {
            match pairs {
                RopePairs::Half => avx2::half(head, cos, sin),
                RopePairs::Interleaved => avx2::interleaved(head, cos, sin),
            }
        };
    }
    let _ = isa;
    rows::rotate_head(head, cos, sin, pairs);
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use hob_compute::reference::rows::rotate_pair;

    /// # Safety
    /// Needs AVX2 and FMA; `head` holds two floats for each of `cos` and `sin`.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn half(head: &mut [f32], cos: &[f32], sin: &[f32]) {
        let n = cos.len();
        let p = head.as_mut_ptr();
        for i in (0..n / 8 * 8).step_by(8) {
            // SAFETY: i + 8 <= n and the head holds 2 n floats.
            unsafe {
                let (c, s) = (_mm256_loadu_ps(cos.as_ptr().add(i)), _mm256_loadu_ps(sin.as_ptr().add(i)));
                let (a, b) = (_mm256_loadu_ps(p.add(i)), _mm256_loadu_ps(p.add(n + i)));
                _mm256_storeu_ps(p.add(i), _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
                _mm256_storeu_ps(p.add(n + i), _mm256_fmadd_ps(b, c, _mm256_mul_ps(a, s)));
            }
        }
        for i in n / 8 * 8..n {
            (head[i], head[i + n]) = rotate_pair(head[i], head[i + n], cos[i], sin[i]);
        }
    }

    /// # Safety
    /// As [`half`].
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn interleaved(head: &mut [f32], cos: &[f32], sin: &[f32]) {
        let n = cos.len();
        let p = head.as_mut_ptr();
        let twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
        for i in (0..n / 4 * 4).step_by(4) {
            // SAFETY: i + 4 <= n and the head holds 2 n floats.
            unsafe {
                let spread = |q: *const f32| {
                    _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(q.add(i))), twice)
                };
                let (c, s) = (spread(cos.as_ptr()), spread(sin.as_ptr()));
                let x = _mm256_loadu_ps(p.add(2 * i));
                let swapped = _mm256_mul_ps(_mm256_permute_ps::<0b10_11_00_01>(x), s);
                _mm256_storeu_ps(p.add(2 * i), _mm256_fmaddsub_ps(x, c, swapped));
            }
        }
        for i in n / 4 * 4..n {
            (head[2 * i], head[2 * i + 1]) = rotate_pair(head[2 * i], head[2 * i + 1], cos[i], sin[i]);
        }
    }
}
