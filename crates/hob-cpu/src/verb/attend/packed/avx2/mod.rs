//! Packed kernels of 8 lanes.
//!
//! A register tile is three rows by two vectors or two rows by four, so that every unpacked vector and every broadcast
//! word is used more than once. With more than three rows a group of nibbles is unpacked once into a buffer in the L1
//! cache; with fewer the tile unpacks what it loads, as it does with bytes, whose widening is as cheap as a
//! load.
#![allow(
    clippy::needless_range_loop,
    reason = "iterators over arrays keep accumulators in memory; indices do not"
)]

mod bytes;
mod nibbles;
mod steps;
#[cfg(test)]
mod tests;
mod weights;

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use hob_compute::{BLOCK_POSITIONS, PAGE_POSITIONS};
use hob_quant::KV_GROUP;

use super::{Kernels, MOST_ROWS, Queries, QueryRows};

/// For AVX2 with FMA and F16C.
pub static AVX2: Kernels = Kernels {
    rows: MOST_ROWS,
    quantize,
    scores_q8: bytes::scores,
    scores_q4: nibbles::scores_q4,
    scores_asym4: nibbles::scores_asym4,
    weigh_q8: bytes::weigh,
    weigh_q4: nibbles::weigh_q4,
    weigh_asym4: nibbles::weigh_asym4,
};

/// The plain loops, compiled for AVX2.
///
/// # Safety
/// Needs AVX2, FMA, F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn quantize(queries: &mut Queries, from: QueryRows) {
    queries.fill(from);
}

/// f32 values of a vector.
const LANES: usize = 8;
/// Vectors of a group's dimensions.
const VECTORS: usize = KV_GROUP / LANES;

/// Dots of a chunk: `[rows, 64]`.
type DotBuffer = Buffer<[[f32; BLOCK_POSITIONS]; MOST_ROWS]>;

/// Sums of a register tile of `R` rows and `P` vectors.
type Sums<const R: usize, const P: usize> = [[__m256i; P]; R];

/// Rows cut into register tiles of three, of two and of one: a tile of one is the slowest, so that three rows are one
/// tile.
fn tiles(rows: usize) -> [Range<usize>; 3] {
    let threes = if rows > 1 { 3 * (rows % 2) } else { 0 };
    let twos = threes + (rows - threes) / 2 * 2;
    [0..threes, threes..twos, twos..rows]
}

/// Working memory of a kernel on its stack. Not cleared first: that would take as long as the work itself. Aligned,
/// because vectors that lie in two cache lines take twice as long.
#[repr(align(64))]
struct Buffer<T>(MaybeUninit<T>);

impl<T> Buffer<T> {
    fn new() -> Self {
        Buffer(MaybeUninit::uninit())
    }

    /// Its first element.
    fn at<E>(&mut self) -> *mut E {
        self.0.as_mut_ptr().cast()
    }

    fn read<E>(&self) -> *const E {
        self.0.as_ptr().cast()
    }
}

/// Spreads the prefetch of what is read next over the rounds of a kernel: a core has too few miss buffers to ask for
/// all of it in one burst.
struct Ahead {
    at: *const i8,
    end: *const i8,
    /// Lines per round.
    lines: usize,
}

impl Ahead {
    fn new(next: &[u8], rounds: usize) -> Ahead {
        let at = next.as_ptr_range();
        let lines = next.len().div_ceil(64).div_ceil(rounds.max(1));
        Ahead { at: at.start.cast(), end: at.end.cast(), lines }
    }

    /// Asks for one round's part.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn round(&mut self) {
        if self.at < self.end {
            for line in 0..self.lines {
                _mm_prefetch::<_MM_HINT_T0>(self.at.wrapping_add(64 * line));
            }
            self.at = self.at.wrapping_add(64 * self.lines);
        }
    }
}

/// The f32 values of 64 f16.
///
/// # Safety
/// Needs AVX2 and F16C; 64 f16 at `from`, room for 64 floats at `to`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn widen(from: *const u8, to: *mut f32) {
    for i in (0..BLOCK_POSITIONS).step_by(LANES) {
        // SAFETY: the caller's word.
        unsafe {
            let halves = _mm_loadu_si128(from.add(2 * i).cast());
            _mm256_storeu_ps(to.add(i), _mm256_cvtph_ps(halves));
        }
    }
}

/// Where the dots of a chunk go, and a group's place in their chain.
struct Dots {
    /// Dots so far: `[rows, 64]`. Rows of `out` lie a multiple of 1 KiB apart, where loads would wait for stores that
    /// merely look alike.
    so_far: *mut f32,
    /// Row `r` at `out + 256 * r`.
    out: *mut f32,
    first: bool,
    last: bool,
    factor: f32,
}

impl Dots {
    /// Eight dots of row `r` from position `at` on, before this group.
    ///
    /// # Safety
    /// Needs AVX2; the row is there.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(&self, r: usize, at: usize) -> __m256 {
        if self.first {
            return _mm256_setzero_ps();
        }
        // SAFETY: the caller's word.
        unsafe { _mm256_load_ps(self.so_far.add(BLOCK_POSITIONS * r + at)) }
    }

    /// # Safety
    /// As for [`Dots::load`].
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn store(&self, r: usize, at: usize, dots: __m256) {
        // SAFETY: the caller's word.
        unsafe {
            if self.last {
                let dots = _mm256_mul_ps(dots, _mm256_set1_ps(self.factor));
                _mm256_storeu_ps(self.out.add(PAGE_POSITIONS * r + at), dots);
            } else {
                _mm256_store_ps(self.so_far.add(BLOCK_POSITIONS * r + at), dots);
            }
        }
    }
}

/// A group of V and its weights.
struct VGroup<'a, const BYTES: usize> {
    weights: &'a weights::Weights<BYTES>,
    group: usize,
    /// The group of row 0, of rows `head_dim` apart.
    acc: *mut f32,
    head_dim: usize,
}

/// `acc = fma(sum, unit, acc)` for `8 * P` dimensions of `R` weighted rows.
///
/// # Safety
/// Needs AVX2 and FMA; `acc` points to the group of row 0 of rows `head_dim` apart, and all `rows` are there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_sums<const R: usize, const P: usize>(
    sums: &Sums<R, P>,
    rows: &weights::Active<R>,
    acc: *mut f32,
    head_dim: usize,
) {
    for r in 0..R {
        let unit = _mm256_set1_ps(rows.unit[r]);
        for p in 0..P {
            // SAFETY: the caller's word.
            unsafe {
                let to = acc.add(rows.row[r] * head_dim + LANES * p);
                let sum = _mm256_cvtepi32_ps(sums[r][p]);
                _mm256_storeu_ps(to, _mm256_fmadd_ps(sum, unit, _mm256_loadu_ps(to)));
            }
        }
    }
}
