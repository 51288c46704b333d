//! 8-bit K and V: `vpmaddwd` of pairs of i16, sums in 32 bits.
#![allow(
    clippy::needless_range_loop,
    reason = "iterators over arrays keep accumulators in memory; indices do not"
)]

use std::arch::x86_64::*;
use std::ops::Range;

use hob_compute::BLOCK_POSITIONS;
use hob_quant::KV_GROUP;

use super::super::{ScoreArgs, WeighArgs};
use super::steps::{self, Steps, Words};
use super::weights::{self, Weights};
use super::{Ahead, Buffer, DotBuffer, Dots, LANES, Sums, VECTORS, VGroup, add_sums, tiles, widen};

/// Words of a query's group.
const WORDS: usize = KV_GROUP / 2;
/// Bytes of a group's codes in a part.
const PACKED: usize = BLOCK_POSITIONS * KV_GROUP;
/// Pairs of positions.
const PAIRS: usize = BLOCK_POSITIONS / 2;

/// What the register tiles of a group's scores have in common.
struct Group {
    /// Of the first row: words and scale, each `rows` apart.
    words: *const u32,
    scales: *const f32,
    rows: usize,
    /// 64 scales of K.
    d: *mut f32,
    dots: Dots,
}

/// # Safety
/// Needs AVX2, FMA, F16C; arguments that fit.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn scores(args: &mut ScoreArgs) {
    let (groups, rows) = (args.head_dim / KV_GROUP, args.rows);
    let mut ahead = Ahead::new(args.ahead, groups * rows);
    let mut dots = DotBuffer::new();
    let mut d = Buffer::<[f32; BLOCK_POSITIONS]>::new();
    let codes = groups * BLOCK_POSITIONS * 2;
    let (so_far, out) = (dots.at(), args.out.as_mut_ptr());
    let mut group = Group {
        words: args.words.as_ptr(),
        scales: args.scales.as_ptr(),
        rows,
        d: d.at(),
        dots: Dots { so_far, out, first: true, last: false, factor: args.factor },
    };
    for g in 0..groups {
        group.dots.first = g == 0;
        group.dots.last = g + 1 == groups;
        // SAFETY: the arguments fit: group `g` of K, of the rows' queries, and all rows of `out`.
        unsafe {
            let k = args.k.as_ptr().add(codes + g * PACKED);
            widen(args.k.as_ptr().add(2 * BLOCK_POSITIONS * g), group.d);
            let [threes, twos, one] = tiles(rows);
            score_rows::<3, 2>(&group, k, threes, &mut ahead);
            score_rows::<2, 4>(&group, k, twos, &mut ahead);
            score_rows::<1, 4>(&group, k, one, &mut ahead);
            group.words = group.words.add(WORDS * rows);
            group.scales = group.scales.add(rows);
        }
    }
}

/// Adds a group's products of some rows with the block's 64 positions to their dots, `R` rows at a time. Not inlined:
/// each kind of tile gets all registers.
///
/// # Safety
/// Needs AVX2 and FMA; the rows and the group's K are there.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn score_rows<const R: usize, const P: usize>(
    group: &Group,
    k: *const u8,
    rows: Range<usize>,
    ahead: &mut Ahead,
) {
    for r in rows.step_by(R) {
        for at in (0..BLOCK_POSITIONS).step_by(LANES * P) {
            ahead.round();
            let mut sums = [[_mm256_setzero_si256(); P]; R];
            // SAFETY: the caller's word.
            unsafe {
                let words = Words { at: group.words.add(r), apart: 4, step: 4 * group.rows };
                let k = Steps { at: k.add(2 * at), step: 2 * BLOCK_POSITIONS, count: WORDS };
                steps::pairs(&mut sums, words, k);
                add_dots(&sums, group, (r, at));
            }
        }
    }
}

/// # Safety
/// Needs AVX2 and FMA; the rows are there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_dots<const R: usize, const P: usize>(
    sums: &Sums<R, P>,
    group: &Group,
    (row, at): (usize, usize),
) {
    for r in 0..R {
        // SAFETY: the caller's word.
        unsafe {
            let scale = _mm256_broadcast_ss(&*group.scales.add(row + r));
            for p in 0..P {
                let at = at + LANES * p;
                let d = _mm256_mul_ps(scale, _mm256_load_ps(group.d.add(at)));
                let int = _mm256_cvtepi32_ps(sums[r][p]);
                group.dots.store(row + r, at, _mm256_fmadd_ps(int, d, group.dots.load(row + r, at)));
            }
        }
    }
}

/// # Safety
/// As for [`scores`].
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn weigh(args: &mut WeighArgs) {
    let (groups, rows, head_dim) = (args.head_dim / KV_GROUP, args.rows, args.head_dim);
    let mut ahead = Ahead::new(args.ahead, groups * rows.div_ceil(3));
    let mut weights = Weights::<{ 2 * BLOCK_POSITIONS }>::new();
    let v = args.v.as_ptr();
    let codes = groups * BLOCK_POSITIONS * 2;
    for first in (0..groups).step_by(weights::GROUPS) {
        let groups = (groups - first).min(weights::GROUPS);
        // SAFETY: the arguments fit: the groups of V, all rows of `p` and `acc`.
        unsafe {
            let scales = v.add(2 * BLOCK_POSITIONS * first);
            weights.fill::<32767>(weights::From { p: args.p.as_ptr(), rows, scales, groups });
            for g in 0..groups {
                let v = v.add(codes + 2 * KV_GROUP * (first + g));
                let acc = args.acc.as_mut_ptr().add(KV_GROUP * (first + g));
                let [threes, twos, one] = tiles(weights.active(g));
                let group = VGroup { weights: &weights, group: g, acc, head_dim };
                weigh_rows::<3, 2>(&group, v, threes, &mut ahead);
                weigh_rows::<2, 4>(&group, v, twos, &mut ahead);
                weigh_rows::<1, 4>(&group, v, one, &mut ahead);
            }
        }
    }
}

/// Adds a group of V to the `acc` of some active rows, `R` at a time. Not inlined: each kind of tile gets all registers.
///
/// # Safety
/// Needs AVX2 and FMA; the rows and the group's V are there.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn weigh_rows<const R: usize, const P: usize>(
    group: &VGroup<{ 2 * BLOCK_POSITIONS }>,
    v: *const u8,
    rows: Range<usize>,
    ahead: &mut Ahead,
) {
    for r in rows.step_by(R) {
        ahead.round();
        let rows = group.weights.rows::<R>(group.group, r);
        for p in (0..VECTORS).step_by(P) {
            let mut sums = [[_mm256_setzero_si256(); P]; R];
            // SAFETY: the caller's word.
            unsafe {
                let v = Steps { at: v.add(2 * LANES * p), step: 2 * group.head_dim, count: PAIRS };
                steps::pairs(&mut sums, rows.words(0), v);
                add_sums(&sums, &rows, group.acc.add(LANES * p), group.head_dim);
            }
        }
    }
}
