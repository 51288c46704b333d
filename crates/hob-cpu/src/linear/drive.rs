//! Walks the units of a job: which rows, which kernel, which thread.

use std::cell::RefCell;

use hob_compute::{Activation, Combine};

use super::act::{Packed, SendPtr, Source};
use super::combine::{Block, Target, gated, store};
use super::float::{self, Rows};
use super::layout::{Kind, Matrix};
use super::shape::LANES;
use super::{Job, MAX_PRODUCTS, Tuning, portable, tuning};
use crate::isa::Isa;
use crate::pool::{Pool, Shares};

/// Per-thread working memory, kept between calls so that a decode step allocates nothing.
#[derive(Default)]
struct Work {
    y: Vec<f32>,
    /// Products of 16 weight rows, where units are taller than the kernel makes them.
    #[cfg(target_arch = "x86_64")]
    group: Vec<f32>,
    #[cfg(target_arch = "x86_64")]
    avx2: Option<Box<super::avx2::gemm::Scratch>>,
    #[cfg(target_arch = "x86_64")]
    narrow: Option<Box<super::vnni::narrow::Scratch>>,
    #[cfg(target_arch = "x86_64")]
    wide: Option<Box<super::vnni::wide::Scratch>>,
}

thread_local! {
    static WORK: RefCell<Work> = RefCell::new(Work::default());
}

/// The parts of a product that units need, free of the job's borrows.
#[derive(Clone, Copy)]
struct Product<'a> {
    matrix: &'a Matrix,
    bias: Option<&'a [f32]>,
    out: SendPtr<f32>,
    /// First unit of this product in the job's numbering.
    first_unit: usize,
}

/// Rows of a matrix, and where the thread's reading goes on after them.
#[derive(Clone, Copy)]
pub(super) struct Rowed<'a> {
    pub matrix: &'a Matrix,
    pub row: usize,
    pub height: usize,
    pub next: *const u8,
}

/// Everything a unit reads.
struct Ctx<'a> {
    isa: Isa,
    tuning: Tuning,
    rows: usize,
    height: usize,
    packed: Option<Packed<'a>>,
    x: Rows<'a>,
    combine: Combine,
}

pub(super) fn run(pool: &Pool, isa: Isa, job: Job) {
    let Job { x, x_stride, rows, cache, first_row, products, combine } = job;
    let cols = products[0].matrix.cols();
    let int8 = products.iter().any(|p| p.matrix.kind() != Kind::Float);
    let source = Source { x, stride: x_stride, rows, cols, first_row };
    let packed = int8.then(|| cache.derive(pool, isa, source));
    let tuning = tuning();
    let outputs = products.iter().map(|p| p.matrix.rows()).sum::<usize>();
    let height = height(isa, rows, outputs.div_ceil(tuning.spread.max(1) * pool.threads()), &tuning);
    let ctx = Ctx { isa, tuning, rows, height, packed, x: Rows { x, stride: x_stride, rows }, combine };
    let mut list: [Option<Product>; MAX_PRODUCTS] = [None; MAX_PRODUCTS];
    let mut units = 0;
    let split = !matches!(combine, Combine::Gated(_));
    for (slot, p) in list.iter_mut().zip(products.iter_mut()) {
        *slot = Some(Product {
            matrix: p.matrix,
            bias: p.bias,
            out: SendPtr(p.out.as_mut_ptr()),
            first_unit: units,
        });
        // Gate and up share one numbering: a unit computes both.
        if split {
            units += p.matrix.rows().div_ceil(height);
        }
    }
    if !split {
        units = products[0].matrix.rows().div_ceil(height);
    }
    let shares = Shares::new(units, pool.threads());
    pool.run(&|thread| {
        WORK.with_borrow_mut(|work| {
            shares.each(thread, |range| range.for_each(|u| ctx.unit(&list, u, work)))
        });
    });
}

/// Whether `rows` activation rows are multiplied while the packed weights stream by; for more, stretches of the weights
/// are unpacked first.
fn streams(isa: Isa, rows: usize, tuning: &Tuning) -> bool {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx2 {
        return rows <= tuning.few.min(super::avx2::few::ROWS);
    }
    let _ = isa;
    rows <= tuning.few_wide
}

/// Weight rows per unit. Streaming: about `share`, enough units to share out, but long stretches. Otherwise: what the
/// kernels unpack at a time.
fn height(isa: Isa, rows: usize, share: usize, tuning: &Tuning) -> usize {
    match (streams(isa, rows, tuning), isa) {
        (true, _) | (false, Isa::Scalar) => share.clamp(LANES, 8 * LANES) / LANES * LANES,
        (false, Isa::Avx512) => 2 * LANES,
        (false, _) => LANES,
    }
}

impl Ctx<'_> {
    fn unit(&self, list: &[Option<Product>; MAX_PRODUCTS], unit: usize, work: &mut Work) {
        let need = 2 * self.rows * self.height;
        if work.y.len() < need {
            work.y.resize(need, 0.0);
        }
        let mut y = std::mem::take(&mut work.y);
        let (first, second) = y.split_at_mut(self.rows * self.height);
        if let (Combine::Gated(activation), Some(gate), Some(up)) = (self.combine, list[0], list[1]) {
            self.gate(activation, [gate, up], unit, (first, second), work);
        } else if let Some(p) = list.iter().flatten().rev().find(|p| p.first_unit <= unit) {
            let row = (unit - p.first_unit) * self.height;
            let height = self.height.min(p.matrix.rows() - row);
            self.products(
                Rowed { matrix: p.matrix, row, height, next: p.matrix.group_at(row + self.height) },
                first,
                work,
            );
            let bias = p.bias.map(|b| &b[row..row + height]);
            let target = Target { out: p.out.get(), width: p.matrix.rows(), col: row };
            // SAFETY: `check` made `out` hold all rows; units own disjoint columns.
            unsafe { store(self.block(first, height), bias, self.combine == Combine::Add, target) };
        }
        work.y = y;
    }

    fn gate(
        &self,
        activation: Activation,
        pair: [Product; 2],
        unit: usize,
        y: (&mut [f32], &mut [f32]),
        work: &mut Work,
    ) {
        let row = unit * self.height;
        let height = self.height.min(pair[0].matrix.rows() - row);
        let [gate, up] = pair.map(|p| p.matrix);
        // Reading alternates between the two matrices.
        self.products(Rowed { matrix: gate, row, height, next: up.group_at(row) }, y.0, work);
        self.products(Rowed { matrix: up, row, height, next: gate.group_at(row + self.height) }, y.1, work);
        let biases = pair.map(|p| p.bias.map(|b| &b[row..row + height]));
        let target = Target { out: pair[0].out.get(), width: pair[0].matrix.rows(), col: row };
        let blocks = [self.block(y.0, height), self.block(y.1, height)];
        // SAFETY: as in `unit`.
        unsafe { gated(self.isa, blocks, biases, activation, target) };
    }

    fn block<'b>(&self, y: &'b [f32], height: usize) -> Block<'b> {
        Block { y, rows: self.rows, height, stride: self.height }
    }

    /// `y[r * self.height + i]` for the rows `at`.
    fn products(&self, at: Rowed, y: &mut [f32], work: &mut Work) {
        let Rowed { matrix, row, height, .. } = at;
        match (matrix.kind(), self.packed) {
            (Kind::Native, Some(acts)) => portable::native(matrix, row, height, acts, y, self.height),
            #[cfg(target_arch = "x86_64")]
            (Kind::Tile, Some(acts)) => self.tile(at, acts, y, work),
            #[cfg(target_arch = "x86_64")]
            (Kind::Interleaved, Some(acts)) if self.isa >= Isa::AvxVnni => self.vnni(at, acts, y, work),
            #[cfg(target_arch = "x86_64")]
            (Kind::Interleaved, Some(acts)) => self.avx2(at, acts, y, work),
            _ => float::unit(self.isa, matrix, row, self.x, y, (height, self.height)),
        }
        let _ = work;
    }

    #[cfg(target_arch = "x86_64")]
    fn avx2(&self, at: Rowed, acts: Packed, y: &mut [f32], work: &mut Work) {
        use super::avx2::{few, gemm};
        let Rowed { matrix, row, height, next } = at;
        let groups = row / LANES..(row + height).div_ceil(LANES);
        for (i, g) in groups.clone().enumerate() {
            let next = if g + 1 < groups.end { matrix.group_at((g + 1) * LANES) } else { next };
            let group = matrix.group(g);
            let y = &mut y[i * LANES..];
            // SAFETY: the matrix was interleaved because AVX2 was detected; groups and tiles cover the same K, and `y`
            // holds `rows` rows of whole groups: of one, where it is not streamed.
            unsafe {
                if streams(Isa::Avx2, self.rows, &self.tuning) {
                    let stream = few::Stream { group, next };
                    few::group(matrix.format(), stream, self.tuning.ahead, acts.tile(0), y, self.height);
                    continue;
                }
                let scratch = work.avx2.get_or_insert_with(gemm::Scratch::new);
                gemm::unit(matrix.format(), group, next, acts, scratch, y);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn tile(&self, at: Rowed, acts: Packed, y: &mut [f32], work: &mut Work) {
        let Rowed { matrix, row, height, next } = at;
        let scratch = work.avx2.get_or_insert_with(super::avx2::gemm::Scratch::new);
        let need = self.rows * LANES;
        if work.group.len() < need {
            work.group.resize(need, 0.0);
        }
        for i in (0..height).step_by(LANES) {
            let rows = (row + i, (height - i).min(LANES));
            let next = if i + LANES < height { matrix.group_at(row + i + LANES) } else { next };
            // SAFETY: the matrix is of this kind because AVX2 was detected and knows its format; `group` has room for
            // `rows` rows of one unit.
            unsafe { super::tile::unit(matrix, rows, next, acts, scratch, &mut work.group) };
            for (to, from) in y.chunks_mut(self.height).zip(work.group.chunks_exact(LANES)).take(self.rows) {
                to[i..i + rows.1].copy_from_slice(&from[..rows.1]);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn vnni(&self, at: Rowed, acts: Packed, y: &mut [f32], work: &mut Work) {
        use super::avx2::few::Stream;
        use super::vnni::{narrow, wide};
        let Rowed { matrix, row, height, next } = at;
        let (format, groups) = (matrix.format(), row / LANES..(row + height).div_ceil(LANES));
        // SAFETY: the matrix was interleaved, and Q8_0 biased, because the class was detected; groups and tiles cover the
        // same K, and `y` holds `rows` rows of whole groups.
        unsafe {
            let unit = if self.isa == Isa::Avx512 { wide::HEIGHT } else { narrow::HEIGHT };
            if self.height == unit && !streams(self.isa, self.rows, &self.tuning) {
                let second = if groups.len() > 1 { matrix.group(groups.start + 1) } else { &[] };
                let groups = [matrix.group(groups.start), second];
                return if self.isa == Isa::Avx512 {
                    wide::gemm(format, groups, acts, work.wide.get_or_insert_with(wide::Scratch::new), y)
                } else {
                    narrow::gemm(
                        format,
                        groups,
                        acts,
                        work.narrow.get_or_insert_with(narrow::Scratch::new),
                        y,
                    )
                };
            }
            for (i, g) in groups.clone().enumerate() {
                let next = if g + 1 < groups.end { matrix.group_at((g + 1) * LANES) } else { next };
                let stream = Stream { group: matrix.group(g), next };
                for tile in acts.tiles() {
                    let y = &mut y[tile.row * self.height + i * LANES..];
                    if self.isa == Isa::Avx512 {
                        wide::few(format, stream, self.tuning.ahead, tile, y, self.height);
                    } else {
                        narrow::few(format, stream, self.tuning.ahead, tile, y, self.height);
                    }
                }
            }
        }
    }
}

/// Activation rows as products read them, for callers that walk units of their own.
#[derive(Clone, Copy)]
pub(super) struct Acts<'a> {
    /// Needed unless all matrices are of the float family.
    pub packed: Option<Packed<'a>>,
    /// The same rows; `x.x` is read for the float family only.
    pub x: Rows<'a>,
}

/// Weight rows that one [`tile`] takes, of a stretch of `stretch` (a multiple of [`LANES`]).
pub(super) fn tile_height(isa: Isa, rows: usize, stretch: usize) -> usize {
    let tuning = tuning();
    if streams(isa, rows, &tuning) { stretch } else { height(isa, rows, 0, &tuning) }
}

/// `y[r * stride + i]` for weight rows `at`, at most [`tile_height`] of them; `stride` is exactly that height, and `y`
/// holds `acts.x.rows` rows of it.
pub(super) fn tile(isa: Isa, at: Rowed, acts: Acts, y: &mut [f32], stride: usize) {
    let Acts { packed, x } = acts;
    let tuning = tuning();
    let ctx = Ctx { isa, tuning, rows: x.rows, height: stride, packed, x, combine: Combine::Store };
    WORK.with_borrow_mut(|work| ctx.products(at, y, work));
}
