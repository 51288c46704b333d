//! 4-bit K and V: `vpmaddubsw` of unsigned bytes with signed ones, 16-bit sums of at most 16 products a lane.
#![allow(
    clippy::needless_range_loop,
    reason = "iterators over arrays keep accumulators in memory; indices do not"
)]

use std::arch::x86_64::*;
use std::ops::Range;

use hob_compute::{BLOCK_POSITIONS, PAGE_POSITIONS};
use hob_quant::KV_GROUP;

use super::super::{ScoreArgs, WeighArgs};
use super::steps::{self, Steps, Words, split, split_codes};
use super::weights::{self, Weights};
use super::{Ahead, Buffer, DotBuffer, Dots, LANES, Sums, VECTORS, VGroup, add_sums, tiles, widen};

/// Words of a query's group.
const WORDS: usize = KV_GROUP / 4;
/// Bytes of a group's codes in a part.
const PACKED: usize = BLOCK_POSITIONS * KV_GROUP / 2;
/// Quads of positions.
const QUADS: usize = BLOCK_POSITIONS / 4;

/// # Safety
/// Needs AVX2, FMA, F16C; arguments that fit.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn scores_q4(args: &mut ScoreArgs) {
    // SAFETY: the caller's word.
    unsafe { scores::<true>(args) }
}

/// # Safety
/// As for [`scores_q4`].
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn scores_asym4(args: &mut ScoreArgs) {
    // SAFETY: the caller's word.
    unsafe { scores::<false>(args) }
}

/// # Safety
/// As for [`scores_q4`].
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn weigh_q4(args: &mut WeighArgs) {
    // SAFETY: the caller's word.
    unsafe { weigh::<true>(args) }
}

/// # Safety
/// As for [`scores_q4`].
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn weigh_asym4(args: &mut WeighArgs) {
    // SAFETY: the caller's word.
    unsafe { weigh::<false>(args) }
}

/// What the register tiles of a group's scores have in common.
struct Group {
    /// Of the first row: words, scale and sum, each `rows` apart.
    words: *const u32,
    scales: *const f32,
    sums: *const i32,
    rows: usize,
    /// 64 scales of K.
    d: *mut f32,
    /// 64 minima, of asym4 only.
    m: *mut f32,
    dots: Dots,
}

/// # Safety
/// As for [`scores_q4`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scores<const SIGNED: bool>(args: &mut ScoreArgs) {
    let (groups, rows) = (args.head_dim / KV_GROUP, args.rows);
    let each = groups * BLOCK_POSITIONS * 2;
    let codes = if SIGNED { each } else { 2 * each };
    let mut ahead = Ahead::new(args.ahead, groups * rows);
    let mut buffer = Buffer::<[u8; 2 * PACKED]>::new();
    let mut dots = DotBuffer::new();
    let (mut d, mut m) = (Buffer::<[f32; BLOCK_POSITIONS]>::new(), Buffer::<[f32; BLOCK_POSITIONS]>::new());
    let mut group = Group {
        words: args.words.as_ptr(),
        scales: args.scales.as_ptr(),
        sums: args.sums.as_ptr(),
        rows,
        d: d.at(),
        m: m.at(),
        dots: Dots {
            so_far: dots.at(),
            out: args.out.as_mut_ptr(),
            first: true,
            last: false,
            factor: args.factor,
        },
    };
    for g in 0..groups {
        // SAFETY: the arguments fit: group `g` of K, of the rows' queries, and all rows of `out`.
        unsafe {
            let packed = args.k.as_ptr().add(codes + g * PACKED);
            widen(args.k.as_ptr().add(2 * BLOCK_POSITIONS * g), group.d);
            if !SIGNED {
                widen(args.k.as_ptr().add(each + 2 * BLOCK_POSITIONS * g), group.m);
            }
            if rows > 3 {
                unpack_k(packed, buffer.at());
            }
            group.dots.first = g == 0;
            group.dots.last = g + 1 == groups;
            match rows {
                1 => score_rows::<1, 4, false, SIGNED>(&group, packed, 0..1, &mut ahead),
                2 => score_rows::<2, 4, false, SIGNED>(&group, packed, 0..2, &mut ahead),
                3 => score_rows::<3, 2, false, SIGNED>(&group, packed, 0..3, &mut ahead),
                _ => {
                    let [threes, twos, _] = tiles(rows);
                    score_rows::<3, 2, true, SIGNED>(&group, buffer.at(), threes, &mut ahead);
                    score_rows::<2, 4, true, SIGNED>(&group, buffer.at(), twos, &mut ahead);
                }
            }
            group.words = group.words.add(WORDS * rows);
            group.scales = group.scales.add(rows);
            group.sums = group.sums.add(rows);
        }
    }
}

/// Words of K: `[8 words, 64 positions, 4]`.
///
/// # Safety
/// Needs AVX2; a group's codes at `packed`, room for as many nibbles at `to`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack_k(packed: *const u8, to: *mut u8) {
    const ROW: usize = 4 * BLOCK_POSITIONS;
    for j in 0..WORDS / 2 {
        for at in (0..ROW).step_by(32) {
            // SAFETY: 32 of the group's bytes become 64 of the buffer's.
            unsafe {
                let n = split(_mm256_loadu_si256(packed.add(ROW * j + at).cast()));
                let to = to.add(ROW * 2 * j + at);
                _mm256_store_si256(to.cast(), n[0]);
                _mm256_store_si256(to.add(ROW).cast(), n[1]);
            }
        }
    }
}

/// # Safety
/// Needs AVX2; `8 * P` positions of K, the words of rows `r..r + R`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot<const R: usize, const P: usize, const UNPACKED: bool>(
    k: *const u8,
    group: &Group,
    r: usize,
) -> Sums<R, P> {
    let mut sums = [[_mm256_setzero_si256(); P]; R];
    // SAFETY: the caller's word.
    unsafe {
        let words = Words { at: group.words.add(r), apart: 4, step: 4 * group.rows };
        let k = Steps { at: k, step: 4 * BLOCK_POSITIONS, count: WORDS };
        if UNPACKED {
            steps::quads_of_k(&mut sums, words, k);
        } else {
            steps::nibbles_of_k(&mut sums, words, Steps { count: WORDS / 2, ..k });
        }
    }
    sums
}

/// Adds a group's products of some rows with the block's 64 positions to their dots, `R` rows at a time. Its K is
/// unpacked, or packed if there are just `R` rows. Not inlined: each kind of tile gets all registers.
///
/// # Safety
/// Needs AVX2 and FMA; the rows and the group's K are there.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn score_rows<const R: usize, const P: usize, const UNPACKED: bool, const SIGNED: bool>(
    group: &Group,
    k: *const u8,
    rows: Range<usize>,
    ahead: &mut Ahead,
) {
    for r in rows.step_by(R) {
        for at in (0..BLOCK_POSITIONS).step_by(LANES * P) {
            ahead.round();
            // SAFETY: the caller's word.
            unsafe {
                let sums = dot::<R, P, UNPACKED>(k.add(4 * at), group, r);
                add_dots::<R, P, UNPACKED, SIGNED>(&sums, group, (r, at));
            }
        }
    }
}

/// One for each kind of tile, so that each becomes part of it and its sums stay in registers.
///
/// # Safety
/// Needs AVX2 and FMA; the rows are there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_dots<const R: usize, const P: usize, const UNPACKED: bool, const SIGNED: bool>(
    sums: &Sums<R, P>,
    group: &Group,
    (row, at): (usize, usize),
) {
    let ones = _mm256_set1_epi16(1);
    for r in 0..R {
        // SAFETY: the caller's word.
        unsafe {
            let scale = _mm256_broadcast_ss(&*group.scales.add(row + r));
            let sum = _mm256_set1_epi32(*group.sums.add(row + r));
            let offset = _mm256_slli_epi32::<3>(sum);
            for p in 0..P {
                let at = at + LANES * p;
                let mut int = _mm256_madd_epi16(sums[r][p], ones);
                if SIGNED {
                    int = _mm256_sub_epi32(int, offset);
                }
                let d = _mm256_mul_ps(scale, _mm256_load_ps(group.d.add(at)));
                let mut dots = _mm256_fmadd_ps(_mm256_cvtepi32_ps(int), d, group.dots.load(row + r, at));
                if !SIGNED {
                    let m = _mm256_mul_ps(scale, _mm256_load_ps(group.m.add(at)));
                    dots = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), m, dots);
                }
                group.dots.store(row + r, at, dots);
            }
        }
    }
}

/// # Safety
/// As for [`scores_q4`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn weigh<const SIGNED: bool>(args: &mut WeighArgs) {
    let (groups, rows, dim) = (args.head_dim / KV_GROUP, args.rows, args.head_dim);
    let each = groups * BLOCK_POSITIONS * 2;
    let codes = if SIGNED { each } else { 2 * each };
    let mut ahead = Ahead::new(args.ahead, groups * rows.div_ceil(3));
    let mut weights = Weights::<BLOCK_POSITIONS>::new();
    let mut buffer = Buffer::<[u8; 2 * PACKED]>::new();
    let v = args.v.as_ptr();
    for first in (0..groups).step_by(weights::GROUPS) {
        let groups = (groups - first).min(weights::GROUPS);
        // SAFETY: the arguments fit: the groups of V, all rows of `p` and `acc`.
        unsafe {
            let scales = v.add(2 * BLOCK_POSITIONS * first);
            weights.fill::<255>(weights::From { p: args.p.as_ptr(), rows, scales, groups });
            for g in 0..groups {
                let packed = v.add(codes + 4 * KV_GROUP * (first + g));
                let acc = args.acc.as_mut_ptr().add(KV_GROUP * (first + g));
                let active = weights.active(g);
                if active > 3 {
                    unpack_v::<SIGNED>(packed, dim, buffer.at());
                }
                let group = VGroup { weights: &weights, group: g, acc, head_dim: dim };
                match active {
                    0 => {}
                    1 => weigh_rows::<1, 4, false, SIGNED>(&group, packed, 0..1, &mut ahead),
                    2 => weigh_rows::<2, 4, false, SIGNED>(&group, packed, 0..2, &mut ahead),
                    3 => weigh_rows::<3, 2, false, SIGNED>(&group, packed, 0..3, &mut ahead),
                    _ => {
                        let [threes, twos, _] = tiles(active);
                        weigh_rows::<3, 2, true, SIGNED>(&group, buffer.at(), threes, &mut ahead);
                        weigh_rows::<2, 4, true, SIGNED>(&group, buffer.at(), twos, &mut ahead);
                    }
                }
                if !SIGNED {
                    let minima = v.add(each + 2 * BLOCK_POSITIONS * (first + g));
                    add_minima(args.p, rows, minima, (acc, dim));
                }
            }
        }
    }
}

/// Quads of V: `[16 quads, 32 dimensions, 4]`.
///
/// # Safety
/// Needs AVX2; a group's codes at `packed`, quads `head_dim` apart; room for as many nibbles at `to`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack_v<const SIGNED: bool>(packed: *const u8, head_dim: usize, to: *mut u8) {
    const ROW: usize = 4 * KV_GROUP;
    for j in 0..QUADS / 2 {
        for at in (0..ROW).step_by(32) {
            // SAFETY: 32 of the group's bytes become 64 of the buffer's.
            unsafe {
                let bytes = _mm256_loadu_si256(packed.add(4 * head_dim * j + at).cast());
                let n = if SIGNED { split_codes(bytes) } else { split(bytes) };
                let to = to.add(ROW * 2 * j + at);
                _mm256_store_si256(to.cast(), n[0]);
                _mm256_store_si256(to.add(ROW).cast(), n[1]);
            }
        }
    }
}

/// Widens the 16-bit sums of 32 positions, unsigned where the codes are, and adds them to `sums`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_halves<const R: usize, const P: usize, const SIGNED: bool>(
    halves: &Sums<R, P>,
    sums: &mut Sums<R, P>,
) {
    for r in 0..R {
        for p in 0..P {
            let wide = if SIGNED {
                _mm256_madd_epi16(halves[r][p], _mm256_set1_epi16(1))
            } else {
                // Up to 16 * 255 * 15.
                let low = _mm256_blend_epi16::<0xAA>(halves[r][p], _mm256_setzero_si256());
                _mm256_add_epi32(low, _mm256_srli_epi32::<16>(halves[r][p]))
            };
            sums[r][p] = _mm256_add_epi32(sums[r][p], wide);
        }
    }
}

/// Adds a group of V, unpacked or packed, to the `acc` of some active rows, `R` at a time. Not inlined: each kind of tile
/// gets all registers.
///
/// # Safety
/// Needs AVX2 and FMA; the rows and the group's V are there.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn weigh_rows<const R: usize, const P: usize, const UNPACKED: bool, const SIGNED: bool>(
    group: &VGroup<BLOCK_POSITIONS>,
    v: *const u8,
    rows: Range<usize>,
    ahead: &mut Ahead,
) {
    let step = if UNPACKED { 4 * KV_GROUP } else { 4 * group.head_dim };
    for r in rows.step_by(R) {
        ahead.round();
        let rows = group.weights.rows::<R>(group.group, r);
        for p in (0..VECTORS).step_by(P) {
            // SAFETY: the caller's word.
            unsafe {
                let v = Steps { at: v.add(4 * LANES * p), step, count: QUADS / if UNPACKED { 2 } else { 4 } };
                let sums = sum::<R, P, UNPACKED, SIGNED>(v, &rows);
                add_sums(&sums, &rows, group.acc.add(LANES * p), group.head_dim);
            }
        }
    }
}

/// Sums over all positions; `v` are those of the first 32.
///
/// # Safety
/// Needs AVX2; the rows' words, and all of V's steps.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn sum<const R: usize, const P: usize, const UNPACKED: bool, const SIGNED: bool>(
    v: Steps,
    rows: &weights::Active<R>,
) -> Sums<R, P> {
    let mut sums = [[_mm256_setzero_si256(); P]; R];
    for half in 0..2 {
        let mut halves = [[_mm256_setzero_si256(); P]; R];
        let words = rows.words(half * QUADS / 2);
        // SAFETY: the caller's word.
        unsafe {
            let v = Steps { at: v.at.add(half * v.count * v.step), ..v };
            match (UNPACKED, SIGNED) {
                (true, _) => steps::quads_of_v(&mut halves, words, v),
                (false, true) => steps::codes_of_v(&mut halves, words, v),
                (false, false) => steps::nibbles_of_v(&mut halves, words, v),
            }
        }
        add_halves::<R, P, SIGNED>(&halves, &mut sums);
    }
    sums
}

/// Adds `sum(p * m)`, one chain over ascending positions, to a group's dimensions.
///
/// # Safety
/// Needs AVX2 and F16C; 64 f16 at `minima`; `acc` points to the group of row 0 of rows that lie `head_dim` apart.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_minima(p: &[f32], rows: usize, minima: *const u8, (acc, head_dim): (*mut f32, usize)) {
    let mut m = [0f32; BLOCK_POSITIONS];
    // SAFETY: the caller's word.
    unsafe { widen(minima, m.as_mut_ptr()) };
    for r in 0..rows {
        let p = &p[PAGE_POSITIONS * r..][..BLOCK_POSITIONS];
        let sum = p.iter().zip(&m).fold(0f32, |sum, (p, m)| p.mul_add(*m, sum));
        if sum != 0.0 {
            // SAFETY: the caller's word: row `r`.
            let acc = unsafe { std::slice::from_raw_parts_mut(acc.add(r * head_dim), KV_GROUP) };
            acc.iter_mut().for_each(|a| *a += sum);
        }
    }
}
