//! Formats without a packed form: rows as in the file, decoded to int8 codes by 16 rows and a stretch of K where they are
//! multiplied, for all activation rows at once. It must not know how a format decodes.

use super::act::Packed;
use super::avx2::gemm::{HEIGHT, STRETCH, Scratch, tile_u7};
use super::avx2::tile::{BLOCKS, superblock};
use super::layout::Matrix;

/// `y[r * HEIGHT + i]` for up to [`HEIGHT`] weight rows from `first` on; the places of absent rows hold anything.
///
/// `next` is where this thread reads on; it is only ever prefetched, so any address will do.
///
/// # Safety
/// Needs AVX2, FMA and F16C; the matrix has a format that `avx2::tile::decodes` knows, `acts` its width, and `y` room for
/// `acts.rows * HEIGHT` floats.
pub(super) unsafe fn unit(
    matrix: &Matrix,
    (first, height): (usize, usize),
    next: *const u8,
    acts: Packed,
    scratch: &mut Scratch,
    y: &mut [f32],
) {
    let format = matrix.format();
    // Absent rows repeat the last one.
    let rows: [*const u8; HEIGHT] = std::array::from_fn(|i| matrix.row(first + i.min(height - 1)).as_ptr());
    let superblocks = matrix.cols() / format.block_len();
    let step = STRETCH / BLOCKS;
    let lines = (height * format.block_bytes()).div_ceil(64);
    for start in (0..superblocks).step_by(step) {
        let count = (superblocks - start).min(step);
        for (i, to) in scratch.blocks.as_chunks_mut::<BLOCKS>().0.iter_mut().take(count).enumerate() {
            let at = (start + i) * format.block_bytes();
            // The next unit's rows follow in memory: as many lines as are decoded now.
            for line in 0..lines {
                prefetch(next.wrapping_add(((start + i) * lines + line) * 64));
            }
            // SAFETY: every row has a superblock start + i.
            unsafe { superblock(format, &rows.map(|row| row.add(at)), to) };
        }
        // SAFETY: the caller's contract; the superblocks just decoded are count * BLOCKS blocks.
        unsafe { tile_u7(scratch, start * BLOCKS, count * BLOCKS, acts, y) };
    }
}

fn prefetch(at: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: a prefetch reads nothing that the program could see.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
}
