//! Products of few rows against the oracle, in every format and form.

mod common;
#[path = "common/weights.rs"]
mod weights;

use common::{buffer, contents, distance, gpu, reference, values};
use hob_compute::{Activation, Buf, Combine, Compute, Linear, Product};
use hob_gpu::FewCut;
use hob_quant::Format;
use weights::{PACKED, load, vector};

/// Products of few rows have a form with subgroups and one without; nothing else changes them.
const FORMS: [&str; 2] = ["", "subgroups,f16,dot,coop"];

/// What the device made of one product of `x_rows` rows from `first_row` on.
struct Case {
    format: Format,
    height: usize,
    cols: usize,
    first_row: usize,
    rows: usize,
}

fn product(dev: &mut dyn Compute, case: &Case, x: &[f32]) -> Vec<f32> {
    let w = load(dev, case.format, 7, case.height, case.cols);
    let x = buffer(dev, case.first_row + case.rows, case.cols, x);
    let out = dev.alloc(case.rows, case.height).unwrap();
    let products = [Product { weight: w, bias: None, out }];
    let (first_row, rows) = (case.first_row, case.rows);
    dev.linear(&Linear { x, first_row, rows, products: &products, combine: Combine::Store }).unwrap();
    let y = contents(dev, out, case.rows * case.height);
    dev.unload(w).unwrap();
    [x, out].into_iter().for_each(|b| dev.free(b).unwrap());
    y
}

/// Every format in some of five cases.
fn every_format(exact: bool, off: &str) {
    let Some(mut dev) = gpu(exact, off) else { return };
    for (i, format) in PACKED.into_iter().chain([Format::IQ3XXS, Format::TQ2_0]).enumerate() {
        let decoded = !PACKED.contains(&format);
        let mut oracle = reference(exact || decoded);
        let long = format.block_len().max(32);
        let cases = [
            (1, long, 0, 1),
            (37, 3 * long, 0, 2),
            (70, 5 * long, 2, 3),
            (9, long, 0, 5),
            (33, 7 * long, 1, 16),
        ];
        // A software adapter takes a third of a second for a kernel, so every format has two or three of the cases.
        for case in &[i, i + 2 + i % 2, i + 3][if off.is_empty() { 0..2 } else { 2..3 }] {
            let (height, cols, first_row, rows) = cases[case % 5];
            let case = Case { format, height, cols, first_row, rows };
            let x = values(3 + cols as u64, (first_row + rows) * cols);
            let (expected, found) = (product(&mut oracle, &case, &x), product(&mut dev, &case, &x));
            let most = if decoded {
                1e-3
            } else if exact {
                2e-5
            } else {
                2e-3
            };
            let d = distance(&expected, &found);
            assert!(d < most, "{format} {height} x {cols}, {rows} rows, exact {exact}, without '{off}': {d}");
        }
    }
}

#[test]
fn every_format_equals_the_oracle_on_few_rows_of_odd_shapes() {
    for off in FORMS {
        every_format(false, off);
    }
}

#[test]
fn an_exact_device_keeps_activations_in_f32() {
    every_format(true, "");
    every_format(true, "subgroups,f16,dot,coop");
}

#[test]
fn floats_have_rows_of_any_width() {
    let Some(mut dev) = gpu(false, "") else { return };
    let mut oracle = reference(false);
    for format in [Format::F32, Format::F16, Format::BF16] {
        for cols in [1, 3, 4, 30, 33, 36, 71, 130] {
            let case = Case { format, height: 5, cols, first_row: 1, rows: 2 };
            let x = values(5, 3 * cols);
            let d = distance(&product(&mut oracle, &case, &x), &product(&mut dev, &case, &x));
            assert!(d < 2e-5, "{format} of {cols} columns: {d}");
        }
    }
}

/// Three products of mixed formats, some with a bias; twice, with what is there already in between.
fn mixed(dev: &mut dyn Compute, rows: usize, combine: Combine) -> Vec<Vec<f32>> {
    let cols = 768;
    let heights = [96, 33, 40, 7, 65];
    let formats = [Format::Q4K, Format::Q6K, Format::F16, Format::Q8_0, Format::Q4_0];
    let x = buffer(dev, rows, cols, &values(1, rows * cols));
    let mut products = Vec::new();
    for (i, (format, height)) in formats.into_iter().zip(heights).enumerate() {
        let out = buffer(dev, rows, height, &values(20 + i as u64, rows * height));
        let bias = (i % 2 == 1).then(|| vector(dev, 40 + i as u64, height));
        products.push(Product { weight: load(dev, format, 60 + i as u64, height, cols), bias, out });
    }
    dev.linear(&Linear { x, first_row: 0, rows, products: &products, combine }).unwrap();
    products.iter().zip(heights).map(|(p, h)| contents(dev, p.out, rows * h)).collect()
}

#[test]
fn products_of_mixed_formats_run_together_stored_and_added() {
    for off in FORMS {
        let Some(mut dev) = gpu(false, off) else { return };
        let mut oracle = reference(false);
        for rows in [1, 3, 8] {
            for combine in [Combine::Store, Combine::Add] {
                let (expected, found) = (mixed(&mut oracle, rows, combine), mixed(&mut dev, rows, combine));
                for (i, (e, f)) in expected.iter().zip(&found).enumerate() {
                    let d = distance(e, f);
                    assert!(d < 2e-3, "product {i}, {rows} rows, {combine:?}, without '{off}': {d}");
                }
            }
        }
    }
}

/// Gate and up into a hidden buffer, then down: the hidden rows, and what a reader of them gets.
fn gated(dev: &mut dyn Compute, formats: [Format; 3], rows: usize, act: Activation) -> [Vec<f32>; 2] {
    let (cols, hidden, height) = (512, if formats[2].block_len() == 256 { 768 } else { 352 }, 48);
    let x = buffer(dev, rows, cols, &values(1, rows * cols));
    let [gate, up] = [(formats[0], 2), (formats[1], 3)].map(|(f, seed)| load(dev, f, seed, hidden, cols));
    let bias = vector(dev, 9, hidden);
    let down = load(dev, formats[2], 4, height, hidden);
    let (h, out) = (dev.alloc(rows, hidden).unwrap(), dev.alloc(rows, height).unwrap());
    let pair =
        [Product { weight: gate, bias: Some(bias), out: h }, Product { weight: up, bias: None, out: h }];
    let last = [Product { weight: down, bias: None, out }];
    // The second time the reader's form exists, so that the writer has to write it.
    for _ in 0..2 {
        dev.linear(&Linear { x, first_row: 0, rows, products: &pair, combine: Combine::Gated(act) }).unwrap();
        dev.linear(&Linear { x: h, first_row: 0, rows, products: &last, combine: Combine::Store }).unwrap();
    }
    [contents(dev, h, rows * hidden), contents(dev, out, rows * height)]
}

#[test]
fn gate_and_up_meet_in_one_output_and_in_the_form_its_reader_wants() {
    use Format::*;
    for (turn, off) in FORMS.into_iter().enumerate() {
        let Some(mut dev) = gpu(false, off) else { return };
        let mut oracle = reference(false);
        for (i, (formats, act)) in [
            ([Q4K, Q4K, Q6K], Activation::Silu),
            ([Q8_0, Q4_0, Q4_0], Activation::GeluTanh),
            ([F16, Q5_1, F32], Activation::Silu),
        ]
        .into_iter()
        .enumerate()
        {
            for rows in [[1, 7], [2, 16], [1, 3]][(i + turn) % 3] {
                let expected = gated(&mut oracle, formats, rows, act);
                let found = gated(&mut dev, formats, rows, act);
                for (e, f) in expected.iter().zip(&found) {
                    let d = distance(e, f);
                    assert!(d < 4e-3, "{formats:?}, {act:?}, {rows} rows, without '{off}': {d}");
                }
            }
        }
    }
}

#[test]
fn activations_that_are_not_finite_show_and_spoil_no_other_row() {
    for off in ["", "subgroups,f16,dot,coop"] {
        let Some(mut dev) = gpu(false, off) else { return };
        let mut oracle = reference(false);
        for format in [Format::Q4_0, Format::Q4K, Format::F16] {
            let case = Case { format, height: 40, cols: 512, first_row: 0, rows: 5 };
            let mut x = values(3, 5 * 512);
            x[7] = f32::NAN;
            x[512 + 300] = f32::INFINITY;
            x[2 * 512..3 * 512].fill(0.0);
            x[3 * 512..4 * 512].fill(1e-33);
            let (e, f) = (product(&mut oracle, &case, &x), product(&mut dev, &case, &x));
            for (row, (e, f)) in e.chunks(40).zip(f.chunks(40)).enumerate() {
                if row < 2 {
                    assert!(f.iter().all(|f| !f.is_finite()), "{format}: row {row} must show what it read");
                } else {
                    assert!(distance(e, f) < 2e-3, "{format}: row {row}");
                }
            }
        }
    }
}

/// Cuts with every kind of loop: whole turns, lanes without work, several rounds of rows, sums of eight.
const CUTS: [FewCut; 7] = [
    FewCut { lanes: 64, team: 8, rows: 1, batch: 1 },
    FewCut { lanes: 128, team: 16, rows: 2, batch: 2 },
    FewCut { lanes: 512, team: 16, rows: 1, batch: 1 },
    FewCut { lanes: 64, team: 64, rows: 1, batch: 1 },
    FewCut { lanes: 256, team: 32, rows: 2, batch: 2 },
    FewCut { lanes: 32, team: 32, rows: 4, batch: 4 },
    FewCut { lanes: 64, team: 32, rows: 8, batch: 2 },
];

#[test]
fn every_cut_gives_the_same_whatever_is_left_over() {
    // 33, 60, 3 and 296 blocks of 32; heights that fill no workgroup.
    let shapes =
        [(Format::Q4_0, 37, 1056), (Format::Q8_0, 70, 1920), (Format::F16, 9, 96), (Format::Q6K, 5, 9472)];
    for off in FORMS {
        let Some(mut dev) = gpu(false, off) else { return };
        let mut oracle = reference(false);
        for (i, cut) in CUTS.into_iter().enumerate() {
            for (j, rows) in [(i, 1), (i + 1, [2, 3, 8][i % 3])] {
                let (format, height, cols) = shapes[j % 4];
                let case = Case { format, height, cols, first_row: 1, rows };
                let x = values(cols as u64, (1 + rows) * cols);
                dev.want_few_cut(Some(cut)).unwrap();
                let d = distance(&product(&mut oracle, &case, &x), &product(&mut dev, &case, &x));
                assert!(d < 2e-3, "{format} {height} x {cols}, {rows} rows, {cut:?}, without '{off}': {d}");
                assert_eq!(dev.last_few_cut(), Some(cut));
            }
            let [e, f] = [&mut oracle as &mut dyn Compute, &mut dev]
                .map(|dev| gated(dev, [Format::Q4K, Format::Q4_0, Format::Q4_0], 1, Activation::Silu));
            for (e, f) in e.iter().zip(&f) {
                let d = distance(e, f);
                assert!(d < 4e-3, "gate and up, {cut:?}, without '{off}': {d}");
            }
        }
    }
}

#[test]
fn cuts_that_no_device_can_run_are_refused() {
    let Some(mut dev) = gpu(false, "") else { return };
    let cut = CUTS[0];
    for wrong in [
        FewCut { lanes: 96, ..cut },
        FewCut { lanes: 1 << 20, ..cut },
        FewCut { team: 4, ..cut },
        FewCut { team: 128, ..cut },
        FewCut { rows: 3, ..cut },
        FewCut { rows: 32, ..cut },
        FewCut { rows: 4, batch: 8, ..cut },
    ] {
        let text = dev.want_few_cut(Some(wrong)).unwrap_err().to_string();
        assert!(text.contains("powers of two"), "{text}");
    }
}

fn refused(dev: &mut dyn Compute, x: Buf, rows: usize, products: &[Product], combine: Combine) -> String {
    dev.linear(&Linear { x, first_row: 0, rows, products, combine }).unwrap_err().to_string()
}

#[test]
fn shapes_that_do_not_meet_are_refused() {
    let Some(mut dev) = gpu(false, "") else { return };
    let dev: &mut dyn Compute = &mut dev;
    let w = load(dev, Format::Q4_0, 1, 8, 64);
    let taller = load(dev, Format::Q4_0, 1, 9, 64);
    let bias = vector(dev, 1, 7);
    let (x, narrow) = (dev.alloc(2, 64).unwrap(), dev.alloc(2, 32).unwrap());
    let (out, wide) = (dev.alloc(2, 8).unwrap(), dev.alloc(2, 9).unwrap());
    let p = Product { weight: w, bias: None, out };
    let gated = Combine::Gated(Activation::Silu);
    for (x, rows, products, combine) in [
        (narrow, 1, vec![p], Combine::Store),
        (x, 3, vec![p], Combine::Store),
        (x, 1, vec![], Combine::Store),
        (x, 1, vec![Product { out: wide, ..p }], Combine::Add),
        (x, 1, vec![Product { bias: Some(bias), ..p }], Combine::Store),
        (x, 1, vec![Product { weight: bias, ..p }], Combine::Store),
        (x, 1, vec![Product { out: x, ..p }], Combine::Store),
        (x, 1, vec![p], gated),
        (x, 1, vec![p, Product { weight: taller, ..p }], gated),
    ] {
        let text = refused(dev, x, rows, &products, combine);
        assert!(text.contains("expected"), "{text}");
    }
}

/// Products that touch what the second product behind them reads: the same results, nothing made once it was rehearsed, and
/// nothing left of a weight that is gone.
#[test]
fn touching_what_comes_next_changes_nothing() {
    let Some(mut dev) = gpu(false, "") else { return };
    let x = values(5, 64);
    let mut results = Vec::new();
    for ahead in [false, true] {
        dev.look_ahead(ahead);
        let a = buffer(&mut dev, 1, 64, &x);
        let outs = [dev.alloc(1, 64).unwrap(), dev.alloc(1, 64).unwrap()];
        let mut weights: Vec<_> = (0..6).map(|seed| load(&mut dev, Format::Q4_0, seed, 64, 64)).collect();
        let step = |dev: &mut hob_gpu::Gpu, weights: &[hob_compute::Weight]| {
            // Gate and up, which touch, and then the others.
            let product = |i: usize, out: usize| Product { weight: weights[i], bias: None, out: outs[out] };
            let gated = [product(0, 0), product(1, 0)];
            let combine = Combine::Gated(Activation::Silu);
            dev.linear(&Linear { x: a, first_row: 0, rows: 1, products: &gated, combine }).unwrap();
            for i in 2..weights.len() {
                let (from, products) = (outs[i % 2], [product(i, 1 - i % 2)]);
                let combine = Combine::Store;
                dev.linear(&Linear { x: from, first_row: 0, rows: 1, products: &products, combine }).unwrap();
            }
        };
        dev.rehearse(true);
        (0..2).for_each(|_| step(&mut dev, &weights));
        dev.rehearse(false);
        let before = dev.counters();
        step(&mut dev, &weights);
        results.push(contents(&mut dev, outs[0], 64));
        let after = dev.counters();
        assert_eq!((after.kernels, after.groups), (before.kernels, before.groups), "ahead {ahead}");
        // Its buffer may be another's from now on.
        dev.unload(weights.pop().unwrap()).unwrap();
        weights.push(load(&mut dev, Format::Q4_0, 5, 64, 64));
        step(&mut dev, &weights);
        results.push(contents(&mut dev, outs[0], 64));
        weights.into_iter().for_each(|w| dev.unload(w).unwrap());
    }
    assert!(results.iter().all(|r| *r == results[0]));
}
