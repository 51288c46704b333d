//! Norms folded into the product before them: as the oracle has the verbs one by one, whoever reads what they leave.

mod common;
#[path = "common/weights.rs"]
mod weights;

use common::{buffer, contents, distance, gpu, reference, values};
use hob_compute::*;
use hob_gpu::{FewCut, Gpu};
use hob_quant::Format;
use weights::{load, vector};

/// Products of few rows have a form with subgroups and one without; nothing else changes them.
const FORMS: [&str; 2] = ["", "subgroups,f16,dot,coop"];
/// Width of the input, of the stream, of what reads the norm.
const COLS: usize = 160;
const DIM: usize = 192;
const WIDE: usize = 96;
/// Rows of every buffer.
const ROWS: usize = 20;

/// A piece of a decoder: `h += o x + b`, `n = norm(h)`, and products of `n`.
struct Piece {
    rows: usize,
    eps: f32,
    /// What is asked of the device between the product and the norm.
    apart: bool,
    o: Weight,
    bias: Weight,
    norm: Weight,
    three: [Weight; 3],
    pair: [Weight; 2],
    x: Buf,
    h: Buf,
    n: Buf,
    outs: [Buf; 3],
    hidden: Buf,
}

impl Piece {
    fn new(dev: &mut dyn Compute, h: &[f32]) -> Piece {
        let mut piece = Piece {
            rows: 1,
            eps: 1e-6,
            apart: false,
            o: load(dev, Format::Q4_0, 1, DIM, COLS),
            bias: vector(dev, 2, DIM),
            norm: vector(dev, 3, DIM),
            three: [Format::Q4_1, Format::Q8_0, Format::F16].map(|format| load(dev, format, 4, WIDE, DIM)),
            pair: [Format::Q4_0, Format::Q5_1].map(|format| load(dev, format, 5, WIDE, DIM)),
            x: buffer(dev, ROWS, COLS, &values(6, ROWS * COLS)),
            h: buffer(dev, ROWS, DIM, h),
            n: dev.alloc(ROWS, DIM).unwrap(),
            outs: [(); 3].map(|()| dev.alloc(ROWS, WIDE).unwrap()),
            hidden: dev.alloc(ROWS, WIDE).unwrap(),
        };
        // A norm is folded once its output was seen to be multiplied.
        piece.norm(dev).unwrap();
        piece.gated(dev).unwrap();
        piece.apart = false;
        piece
    }

    fn add(&self, dev: &mut dyn Compute) -> Result<()> {
        let products = &[Product { weight: self.o, bias: Some(self.bias), out: self.h }];
        let rows = self.rows;
        dev.linear(&Linear { x: self.x, first_row: 0, rows, products, combine: Combine::Add })
    }

    fn norm(&self, dev: &mut dyn Compute) -> Result<()> {
        let &Piece { rows, eps, norm, h, n, .. } = self;
        dev.norm(&Norm { x: h, rows, groups: 1, weight: norm, eps, out: n })
    }

    fn fold(&self, dev: &mut dyn Compute) {
        self.add(dev).unwrap();
        if self.apart {
            dev.download_all(&[], &mut []).unwrap();
        }
        self.norm(dev).unwrap();
    }

    fn three(&self, dev: &mut dyn Compute, first_row: usize, rows: usize) -> Result<()> {
        let product = |i: usize| Product { weight: self.three[i], bias: None, out: self.outs[i] };
        let products = &[product(0), product(1), product(2)];
        dev.linear(&Linear { x: self.n, first_row, rows, products, combine: Combine::Store })
    }

    fn gated(&self, dev: &mut dyn Compute) -> Result<()> {
        let products = &self.pair.map(|weight| Product { weight, bias: None, out: self.hidden });
        let (rows, combine) = (self.rows, Combine::Gated(Activation::Silu));
        dev.linear(&Linear { x: self.n, first_row: 0, rows, products, combine })
    }

    /// h, the three products, and the gated pair.
    fn contents(&self, dev: &mut dyn Compute) -> Vec<Vec<f32>> {
        let mut all = vec![contents(dev, self.h, self.rows * DIM)];
        all.extend(self.outs.map(|out| contents(dev, out, self.rows * WIDE)));
        all.push(contents(dev, self.hidden, self.rows * WIDE));
        all
    }

    fn run(&self, dev: &mut dyn Compute) -> Vec<Vec<f32>> {
        self.fold(dev);
        self.three(dev, 0, self.rows).unwrap();
        self.gated(dev).unwrap();
        self.contents(dev)
    }
}

fn assert_near(expected: &[Vec<f32>], found: &[Vec<f32>], most: f64, what: &str) {
    for (i, (expected, found)) in expected.iter().zip(found).enumerate() {
        let apart = distance(expected, found);
        assert!(apart < most, "{what}, result {i}: {apart}");
    }
}

/// Work on the oracle and on a device, given what the stream holds at first: its results are `most` apart.
fn equal(most: f64, what: &str, work: impl Fn(&mut dyn Compute, &[f32]) -> Vec<Vec<f32>>) {
    let Some(mut dev) = gpu(false, "") else { return };
    let start = values(7, ROWS * DIM);
    assert_near(&work(&mut reference(false), &start), &work(&mut dev, &start), most, what);
}

/// Dispatches of some work.
fn dispatches(dev: &mut Gpu, work: impl FnOnce(&mut Gpu)) -> u64 {
    let before = dev.counters().dispatches;
    work(dev);
    dev.counters().dispatches - before
}

#[test]
fn every_class_of_rows_equals_the_oracle() {
    for off in FORMS {
        let Some(mut dev) = gpu(false, off) else { return };
        let mut oracle = reference(false);
        let start = values(7, ROWS * DIM);
        let (mut expected, mut found) = (Piece::new(&mut oracle, &start), Piece::new(&mut dev, &start));
        for rows in if off.is_empty() { &[1, 2, 3, 16][..] } else { &[1, 3] } {
            let rows = *rows;
            (expected.rows, found.rows) = (rows, rows);
            let (expected, found) = (expected.run(&mut oracle), found.run(&mut dev));
            assert_near(&expected, &found, 2e-3, &format!("{rows} rows, without '{off}'"));
        }
    }
}

/// Large devices cut products as no software adapter does by its own rule.
#[test]
fn the_cuts_of_large_devices_equal_the_oracle() {
    let Some(mut dev) = gpu(false, "") else { return };
    let mut oracle = reference(false);
    let start = values(7, ROWS * DIM);
    let (mut expected, mut found) = (Piece::new(&mut oracle, &start), Piece::new(&mut dev, &start));
    for (rows, lanes, team, each) in [(1, 512, 128, 8), (1, 1024, 32, 1), (2, 512, 64, 4), (4, 1024, 64, 2)] {
        if lanes > dev.facts().group_lanes {
            continue;
        }
        dev.want_few_cut(Some(FewCut { lanes, team, rows: each, batch: each })).unwrap();
        (expected.rows, found.rows) = (rows, rows);
        let (expected, found) = (expected.run(&mut oracle), found.run(&mut dev));
        assert_near(&expected, &found, 2e-3, &format!("{rows} rows, {lanes}/{team} x {each}"));
    }
}

/// What the norm is folded into leaves h bit for bit; only a dispatch is saved.
#[test]
fn a_fold_saves_a_dispatch_and_changes_nothing_else_of_the_product() {
    let Some(mut dev) = gpu(false, "") else { return };
    let start = values(7, ROWS * DIM);
    for rows in [1, 4] {
        let mut piece = Piece::new(&mut dev, &start);
        piece.rows = rows;
        // The first makes the form of its input.
        piece.fold(&mut dev);
        dev.upload(piece.h, 0, &start).unwrap();
        let folded = dispatches(&mut dev, |dev| piece.fold(dev));
        let one = contents(&mut dev, piece.h, ROWS * DIM);
        dev.upload(piece.h, 0, &start).unwrap();
        piece.apart = true;
        let plain = dispatches(&mut dev, |dev| piece.fold(dev));
        assert_eq!(plain, folded + 1, "{rows} rows");
        let other = contents(&mut dev, piece.h, ROWS * DIM);
        assert!(one.iter().zip(&other).all(|(a, b)| a.to_bits() == b.to_bits()), "{rows} rows");
    }
}

/// Whoever reads the rows otherwise gets those of a plain norm.
#[test]
fn other_readers_get_finished_rows() {
    equal(2e-3, "other readers", |dev, start| {
        let mut piece = Piece::new(dev, start);
        piece.rows = 3;
        let (n, mut all) = (piece.n, Vec::new());
        // A download, and a product after it.
        piece.fold(dev);
        all.push(contents(dev, n, 3 * DIM));
        piece.gated(dev).unwrap();
        all.push(contents(dev, piece.hidden, 3 * WIDE));
        // Elementwise work into and from the rows.
        piece.fold(dev);
        let other = buffer(dev, ROWS, DIM, start);
        dev.map(&Map::Add { a: n, b: other, out: other, rows: 3 }).unwrap();
        dev.map(&Map::CopyRow { a: other, from: 0, out: n, to: 1 }).unwrap();
        all.push(contents(dev, n, 3 * DIM));
        // Part of the rows; more rows than were normed.
        piece.fold(dev);
        piece.three(dev, 1, 2).unwrap();
        all.push(contents(dev, piece.outs[1], 2 * WIDE));
        piece.three(dev, 2, 4).unwrap();
        all.push(contents(dev, piece.outs[0], WIDE));
        // A norm of the norm, as a head's groups and into itself.
        piece.fold(dev);
        let small = vector(dev, 9, DIM / 2);
        dev.norm(&Norm { x: n, rows: 3, groups: 2, weight: small, eps: 1e-6, out: n }).unwrap();
        all.push(contents(dev, n, 3 * DIM));
        // As attention's v: K and V go to pages.
        piece.fold(dev);
        let spec = PageSpec {
            kv_heads: 3,
            head_dim: 64,
            k: hob_quant::KvFormat::F16,
            v: hob_quant::KvFormat::F16,
            first: false,
            latent: None,
        };
        let pool = dev.alloc_pages(&spec, 1).unwrap();
        let seqs = &[SeqRows { row: 0, rows: 3, position: 0, pages: &[Page { pool, index: 0 }] }];
        dev.append_kv(&AppendKv { k: n, v: n, seqs }).unwrap();
        let (heads, scale) = (3, 0.1);
        let attend = Attend {
            q: n,
            out: other,
            heads,
            kv_heads: 3,
            head_dim: 64,
            scale,
            window: None,
            softcap: None,
            sinks: None,
            seqs,
        };
        dev.attend(&attend).unwrap();
        all.push(contents(dev, other, 3 * DIM));
        all
    });
}

/// Rows that a later norm does not reach keep what the earlier one gave them.
#[test]
fn fewer_rows_leave_the_others_as_they_were() {
    equal(1e-3, "rows of two norms", |dev, start| {
        let mut piece = Piece::new(dev, start);
        let mut all = Vec::new();
        for apart in [false, true] {
            piece.apart = false;
            (piece.rows, piece.eps) = (4, 1e-6);
            piece.fold(dev);
            piece.apart = apart;
            (piece.rows, piece.eps) = (1, 0.5);
            piece.fold(dev);
            all.push(contents(dev, piece.n, 4 * DIM));
        }
        all
    });
}

/// What is held is done before anything that could see it undone.
#[test]
fn a_product_without_its_norm_is_done_all_the_same() {
    equal(2e-3, "alone", |dev, start| {
        let piece = Piece::new(dev, start);
        let mut all = Vec::new();
        piece.add(dev).unwrap();
        all.push(contents(dev, piece.h, DIM));
        // Two in a row, and a norm of another width, which is refused.
        piece.add(dev).unwrap();
        piece.add(dev).unwrap();
        let narrow = vector(dev, 9, DIM / 2);
        let Piece { h, n, .. } = piece;
        let refused = dev.norm(&Norm { x: h, rows: 1, groups: 1, weight: narrow, eps: 1e-6, out: n });
        assert!(matches!(refused, Err(ComputeError::Shape { .. })));
        all.push(contents(dev, h, DIM));
        // A norm of fewer or more rows than were added, in groups, in place.
        for (rows, groups, weight, out) in
            [(2, 1, piece.norm, n), (1, 2, narrow, n), (1, 1, piece.norm, h), (1, 1, piece.norm, piece.h)]
        {
            piece.add(dev).unwrap();
            dev.norm(&Norm { x: h, rows, groups, weight, eps: 1e-6, out }).unwrap();
            all.push(contents(dev, n, 2 * DIM));
            all.push(contents(dev, h, DIM));
        }
        // Two norms of one h.
        piece.fold(dev);
        let second = dev.alloc(ROWS, DIM).unwrap();
        dev.norm(&Norm { x: h, rows: 1, groups: 1, weight: piece.norm, eps: 0.25, out: second }).unwrap();
        piece.gated(dev).unwrap();
        all.push(contents(dev, piece.hidden, WIDE));
        all.push(contents(dev, second, DIM));
        // Its input and weight go away before anybody looks.
        piece.add(dev).unwrap();
        dev.free(piece.x).unwrap();
        dev.unload(piece.o).unwrap();
        all.push(contents(dev, h, DIM));
        all
    });
}

/// h goes away, or changes, while what was normed of it is still read.
#[test]
fn what_was_normed_does_not_hang_on_its_source() {
    equal(2e-3, "of what is gone", |dev, start| {
        let piece = Piece::new(dev, start);
        piece.fold(dev);
        piece.add(dev).unwrap();
        piece.gated(dev).unwrap();
        dev.free(piece.h).unwrap();
        piece.three(dev, 0, 1).unwrap();
        let mut all: Vec<_> = piece.outs.map(|out| contents(dev, out, WIDE)).to_vec();
        all.push(contents(dev, piece.hidden, WIDE));
        all
    });
}

/// A product of rows that lack their factor may be folded itself.
#[test]
fn a_fold_reads_what_another_left() {
    equal(2e-3, "one after the other", |dev, start| {
        let mut piece = Piece::new(dev, start);
        piece.rows = 3;
        let second = load(dev, Format::Q8_0, 8, DIM, DIM);
        let (g, m) = (buffer(dev, ROWS, DIM, start), dev.alloc(ROWS, DIM).unwrap());
        let of_m = Piece { h: g, n: m, ..piece };
        of_m.norm(dev).unwrap();
        of_m.gated(dev).unwrap();
        piece.fold(dev);
        let products = &[Product { weight: second, bias: None, out: g }];
        dev.linear(&Linear { x: piece.n, first_row: 0, rows: 3, products, combine: Combine::Add }).unwrap();
        of_m.norm(dev).unwrap();
        of_m.gated(dev).unwrap();
        vec![contents(dev, g, 3 * DIM), contents(dev, of_m.hidden, 3 * WIDE)]
    });
}

#[test]
fn zeros_huge_and_tiny_rows_equal_the_oracle_and_what_is_no_number_stays_in_its_row() {
    let Some(mut dev) = gpu(false, "") else { return };
    let mut oracle = reference(false);
    let mut start = values(7, ROWS * DIM);
    // Row 0 huge, row 1 tiny (only its bias counts), row 2 with an infinite number, row 3 with what is none.
    start[..DIM].iter_mut().for_each(|v| *v *= 1e15);
    start[DIM..2 * DIM].iter_mut().for_each(|v| *v *= 1e-20);
    start[2 * DIM + 5] = f32::INFINITY;
    start[3 * DIM + 100] = f32::NAN;
    for eps in [1e-6, 1e3] {
        let mut results = Vec::new();
        for dev in [&mut oracle as &mut dyn Compute, &mut dev] {
            let mut piece = Piece::new(dev, &start);
            (piece.rows, piece.eps) = (4, eps);
            results.push(piece.run(dev));
        }
        for (i, (expected, found)) in results[0].iter().zip(&results[1]).enumerate() {
            let width = expected.len() / 4;
            for row in 0..2 {
                let span = row * width..(row + 1) * width;
                let apart = distance(&expected[span.clone()], &found[span]);
                assert!(apart < 2e-3, "result {i}, row {row}, eps {eps}: {apart}");
            }
            let spoilt = |row: usize| found[row * width..(row + 1) * width].iter().any(|v| !v.is_finite());
            assert!(spoilt(2) && spoilt(3), "result {i}");
        }
    }
}

/// A stream of zeros gives zeros, not what a division by nothing gives.
#[test]
fn a_row_of_zeros_stays_one() {
    let Some(mut dev) = gpu(false, "") else { return };
    let piece = Piece::new(&mut dev, &vec![0.0; ROWS * DIM]);
    let zeros = vec![0.0; DIM];
    let minus: Vec<f32> = values(2, DIM).iter().map(|b| -b).collect();
    dev.upload(piece.x, 0, &vec![0.0; COLS]).unwrap();
    dev.upload(piece.h, 0, &minus).unwrap();
    let found = piece.run(&mut dev);
    assert_eq!(found[0], zeros, "its bias makes it so");
    assert!(found[1..].iter().flatten().all(|v| *v == 0.0));
    assert_eq!(contents(&mut dev, piece.n, DIM), zeros);
}
