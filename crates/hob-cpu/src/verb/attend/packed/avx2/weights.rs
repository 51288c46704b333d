//! Weights of V: `p` times the scales of V as integers, for all rows of a chunk and up to four groups at a time, so
//! that the latencies of maxima and divisions overlap.
#![allow(
    clippy::needless_range_loop,
    reason = "iterators over arrays keep vectors in memory; indices do not"
)]

use std::arch::x86_64::*;

use hob_compute::{BLOCK_POSITIONS, PAGE_POSITIONS};

use super::super::MOST_ROWS;
use super::steps::Words;
use super::{Buffer, LANES, widen};

/// Groups weighted together.
pub const GROUPS: usize = 4;

/// Vectors of a row's weights before they are packed.
const VECTORS: usize = BLOCK_POSITIONS / LANES;

/// Weights of the rows that are not skipped, `BYTES` per row: 64 u8, or 64 i16.
pub struct Weights<const BYTES: usize> {
    /// Of every group the active rows, one after the other.
    packed: Buffer<[[[u8; BYTES]; MOST_ROWS]; GROUPS]>,
    unit: Buffer<[[f32; MOST_ROWS]; GROUPS]>,
    row: Buffer<[[u8; MOST_ROWS]; GROUPS]>,
    /// Active rows of every group.
    active: [usize; GROUPS],
}

/// `R` weighted rows of one group.
pub struct Active<const R: usize> {
    /// Words of the first row's weights; the next row's lie `apart` bytes behind.
    at: *const u32,
    apart: usize,
    /// What one of the weights is worth.
    pub unit: [f32; R],
    /// Rows of the chunk.
    pub row: [usize; R],
}

impl<const R: usize> Active<R> {
    /// The rows' weights from word `i` on.
    #[inline]
    pub fn words(&self, i: usize) -> Words {
        Words { at: self.at.wrapping_add(i), apart: self.apart, step: 4 }
    }
}

/// `p` of some rows and the scales of some groups.
#[derive(Copy, Clone)]
pub struct From {
    /// Row `r` at `p + 256 * r`.
    pub p: *const f32,
    pub rows: usize,
    /// 64 f16 per group.
    pub scales: *const u8,
    pub groups: usize,
}

impl<const BYTES: usize> Weights<BYTES> {
    pub fn new() -> Self {
        Weights { packed: Buffer::new(), unit: Buffer::new(), row: Buffer::new(), active: [0; GROUPS] }
    }

    pub fn active(&self, group: usize) -> usize {
        self.active[group]
    }

    /// The active rows `first..first + R` of a group.
    #[inline]
    pub fn rows<const R: usize>(&self, group: usize, first: usize) -> Active<R> {
        assert!(group < GROUPS && first + R <= self.active[group]);
        let at = group * MOST_ROWS + first;
        // SAFETY: `fill` wrote the active rows, and these are among them.
        let (unit, row) = unsafe {
            let (unit, row) = (self.unit.read::<f32>().add(at), self.row.read::<u8>().add(at));
            (unit.cast::<[f32; R]>().read(), row.cast::<[u8; R]>().read())
        };
        let at = self.packed.read::<u8>().wrapping_add(at * BYTES).cast();
        Active { at, apart: BYTES, unit, row: row.map(usize::from) }
    }

    /// Weighs all rows, the largest weight of each being `MOST`. In two passes over the rows, because a row's maxima and
    /// quotients take long, but those of all rows together hardly longer.
    ///
    /// # Safety
    /// Needs AVX2, FMA, F16C, and all operands that `from` promises.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn fill<const MOST: i32>(&mut self, from: From) {
        assert!(from.rows <= MOST_ROWS && from.groups <= GROUPS);
        let mut d = Buffer::<[[f32; BLOCK_POSITIONS]; GROUPS]>::new();
        let d = d.at::<f32>();
        let mut quotients = Buffer::<[[[f32; GROUPS]; 2]; MOST_ROWS]>::new();
        let quotients = quotients.at::<[[f32; GROUPS]; 2]>();
        let most = _mm_set1_ps(MOST as f32);
        self.active = [0; GROUPS];
        // SAFETY: rows and groups as just checked; never more active rows than rows.
        unsafe {
            for g in 0..from.groups {
                widen(from.scales.add(2 * BLOCK_POSITIONS * g), d.add(BLOCK_POSITIONS * g));
            }
            for r in 0..from.rows {
                let m = maxima(&load(from.p.add(PAGE_POSITIONS * r)), d, from.groups);
                let to = quotients.add(r).cast::<f32>();
                _mm_storeu_ps(to, _mm_div_ps(most, m));
                _mm_storeu_ps(to.add(GROUPS), _mm_div_ps(m, most));
            }
            for r in 0..from.rows {
                let p = load(from.p.add(PAGE_POSITIONS * r));
                let [factor, unit] = *quotients.add(r);
                for g in 0..from.groups {
                    let n = g * MOST_ROWS + self.active[g];
                    // The next active row overwrites a skipped one; a branch would be worse.
                    *self.unit.at::<f32>().add(n) = unit[g];
                    *self.row.at::<u8>().add(n) = r as u8;
                    let to = self.packed.at::<u8>().add(n * BYTES);
                    pack::<BYTES>(&p, d.add(BLOCK_POSITIONS * g), factor[g], to);
                    self.active[g] += usize::from(factor[g].is_finite());
                }
            }
        }
    }
}

/// 64 floats.
type Row = [__m256; VECTORS];

/// # Safety
/// Needs AVX2; 64 floats at `p`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load(p: *const f32) -> Row {
    let mut row = [_mm256_setzero_ps(); VECTORS];
    for i in 0..VECTORS {
        // SAFETY: the caller's word.
        row[i] = unsafe { _mm256_loadu_ps(p.add(LANES * i)) };
    }
    row
}

/// The largest `p * d` of every group in its lane, 0 in the lanes of absent groups.
///
/// # Safety
/// Needs AVX2; 64 floats of every group at `d`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn maxima(p: &Row, d: *const f32, groups: usize) -> __m128 {
    let mut most = [_mm256_setzero_ps(); GROUPS];
    for g in 0..groups {
        let mut m = [_mm256_setzero_ps(); 2];
        for i in 0..VECTORS {
            // SAFETY: the caller's word.
            let d = unsafe { _mm256_load_ps(d.add(g * BLOCK_POSITIONS + LANES * i)) };
            // The second operand wins against NaN.
            m[i % 2] = _mm256_max_ps(_mm256_mul_ps(p[i], d), m[i % 2]);
        }
        most[g] = _mm256_max_ps(m[0], m[1]);
    }
    let halves = |a, b| _mm256_max_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let (a, b) = (halves(most[0], most[1]), halves(most[2], most[3]));
    let m = _mm256_max_ps(_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xEE>(a, b));
    _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps::<1>(m))
}

/// `round_ties_even(p * d * factor)` as u8 or i16.
///
/// # Safety
/// Needs AVX2; 64 floats at `d`, room for `BYTES` bytes at `to`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pack<const BYTES: usize>(p: &Row, d: *const f32, factor: f32, to: *mut u8) {
    let factor = _mm256_set1_ps(factor);
    let mut halves = [_mm256_setzero_si256(); VECTORS / 2];
    // SAFETY: the caller's word; BYTES is 64 or 128.
    unsafe {
        for i in 0..VECTORS / 2 {
            let mut w = [_mm256_setzero_si256(); 2];
            for j in 0..2 {
                let x = _mm256_mul_ps(p[2 * i + j], _mm256_load_ps(d.add(LANES * (2 * i + j))));
                w[j] = _mm256_cvtps_epi32(_mm256_mul_ps(x, factor));
            }
            halves[i] = _mm256_packs_epi32(w[0], w[1]);
        }
        if BYTES == BLOCK_POSITIONS {
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            for i in 0..2 {
                let bytes = _mm256_packus_epi16(halves[2 * i], halves[2 * i + 1]);
                let bytes = _mm256_permutevar8x32_epi32(bytes, order);
                _mm256_storeu_si256(to.add(32 * i).cast(), bytes);
            }
        } else {
            for i in 0..VECTORS / 2 {
                let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(halves[i]);
                _mm256_storeu_si256(to.add(32 * i).cast(), words);
            }
        }
    }
}
