//! Walks the units of a job: which rows, which kernel, which thread.

use std::cell::RefCell;

use hob_compute::{Activation, Combine};
use hob_quant::Format;

use super::act::{Packed, SendPtr, Source};
use super::combine::{Block, Target, gated, store};
use super::float::{self, Rows};
use super::layout::{Kind, LANES, Matrix};
use super::{Job, MAX_PRODUCTS, portable};
use crate::isa::Isa;
use crate::pool::{Pool, Shares};

/// Up to this many activation rows the packed weights are streamed; above, a tile is unpacked once for all rows.
pub const FEW: usize = 8;

/// Per-thread working memory, kept between calls so that a decode step allocates nothing.
#[derive(Default)]
struct Work {
    y: Vec<f32>,
    #[cfg(target_arch = "x86_64")]
    avx2: Option<Box<super::avx2::gemm::Scratch>>,
    #[cfg(target_arch = "x86_64")]
    avx512: Option<Box<super::avx512::gemm::Scratch>>,
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
struct Rowed<'a> {
    matrix: &'a Matrix,
    row: usize,
    height: usize,
    next: *const u8,
}

/// Everything a unit reads.
struct Ctx<'a> {
    isa: Isa,
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
    let height = height(isa, rows, products.iter().map(|p| p.matrix.rows()).sum::<usize>(), pool.threads());
    let ctx = Ctx { isa, rows, height, packed, x: Rows { x, stride: x_stride, rows }, combine };
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

/// Weight rows per unit. Few activation rows: enough units to share out, otherwise long stretches of one stream.
fn height(isa: Isa, rows: usize, outputs: usize, threads: usize) -> usize {
    match (rows > FEW, isa) {
        (true, Isa::Avx512) => 32,
        (true, _) => LANES,
        (false, _) => (outputs / (threads * 16)).clamp(LANES, 8 * LANES) / LANES * LANES,
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
            (Kind::Native, Some(acts)) => {
                for tile in acts.tiles() {
                    portable::native(matrix, row, height, tile, y, self.height);
                }
            }
            #[cfg(target_arch = "x86_64")]
            (Kind::Interleaved, Some(acts)) if self.isa == Isa::Avx512 => self.avx512(at, acts, y, work),
            #[cfg(target_arch = "x86_64")]
            (Kind::Interleaved, Some(acts)) => self.avx2(at, acts, y, work),
            _ => float::unit(self.isa, matrix, row, self.x, y, (height, self.height)),
        }
        let _ = work;
    }

    #[cfg(target_arch = "x86_64")]
    fn avx2(&self, at: Rowed, acts: Packed, y: &mut [f32], work: &mut Work) {
        use super::avx2::{Q4_0, Q4_1, Q8_0, few, gemm};
        let Rowed { matrix, row, height, next } = at;
        let groups = row / LANES..(row + height).div_ceil(LANES);
        // SAFETY: the matrix was interleaved because AVX2 was detected; groups and tiles cover the same K, and `y` holds
        // `rows` rows of whole groups.
        unsafe {
            if self.rows > FEW {
                let scratch = work.avx2.get_or_insert_with(gemm::Scratch::new);
                let group = matrix.group(groups.start);
                return match matrix.format() {
                    Format::Q4_0 => gemm::unit::<Q4_0>(group, acts, scratch, y),
                    Format::Q4_1 => gemm::unit::<Q4_1>(group, acts, scratch, y),
                    _ => gemm::unit::<Q8_0>(group, acts, scratch, y),
                };
            }
            for (i, g) in groups.clone().enumerate() {
                let next = if g + 1 < groups.end { matrix.group_at((g + 1) * LANES) } else { next };
                let stream = few::Stream { group: matrix.group(g), next };
                for tile in acts.tiles() {
                    let y = &mut y[tile.row * self.height + i * LANES..];
                    match matrix.format() {
                        Format::Q4_0 => few::group::<Q4_0>(stream, tile, y, self.height),
                        Format::Q4_1 => few::group::<Q4_1>(stream, tile, y, self.height),
                        _ => few::group::<Q8_0>(stream, tile, y, self.height),
                    }
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn avx512(&self, at: Rowed, acts: Packed, y: &mut [f32], work: &mut Work) {
        use super::avx2::{Q4_0, Q4_1, Q8_0};
        use super::avx512::{few, gemm};
        let Rowed { matrix, row, height, .. } = at;
        let groups = row / LANES..(row + height).div_ceil(LANES);
        // SAFETY: the matrix was packed for 16 lanes because AVX-512 was detected; groups and tiles cover the same K,
        // and `y` holds `rows` rows of whole groups.
        unsafe {
            if self.rows > FEW {
                let second = if groups.len() > 1 { matrix.group(groups.start + 1) } else { &[] };
                let groups = [matrix.group(groups.start), second];
                let scratch = work.avx512.get_or_insert_with(gemm::Scratch::new);
                return match matrix.format() {
                    Format::Q4_0 => gemm::unit::<Q4_0>(groups, acts, scratch, y),
                    Format::Q4_1 => gemm::unit::<Q4_1>(groups, acts, scratch, y),
                    _ => gemm::unit::<Q8_0>(groups, acts, scratch, y),
                };
            }
            for (i, g) in groups.enumerate() {
                let group = matrix.group(g);
                for tile in acts.tiles() {
                    let y = &mut y[tile.row * self.height + i * LANES..];
                    match matrix.format() {
                        Format::Q4_0 => few::group::<Q4_0>(group, tile, y, self.height),
                        Format::Q4_1 => few::group::<Q4_1>(group, tile, y, self.height),
                        _ => few::group::<Q8_0>(group, tile, y, self.height),
                    }
                }
            }
        }
    }
}
