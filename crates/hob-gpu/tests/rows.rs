//! Norms and elementwise work against the oracle.

mod common;

use common::floats::vector;
use common::{TIERS, buffer, contents, distance, gpu, reference, values};
use hob_compute::{
    Activation, Compute, ComputeError, ConvForm, Map, Memory, Norm, Rope, RopePairs, ShortConv, SlotRows,
};

#[test]
fn map_equals_the_oracle_also_in_place_and_on_many_rows() {
    for off in TIERS {
        let Some(mut dev) = gpu(false, off) else { return };
        let mut oracle = reference(false);
        for (rows, width) in [(1, 3), (2, 256), (7, 1000), (300, 700)] {
            let (a, b) = (values(1, rows * width), values(2, rows * width));
            let mut results = Vec::new();
            for dev in [&mut oracle as &mut dyn hob_compute::Compute, &mut dev] {
                let (x, y) = (buffer(dev, rows, width, &a), buffer(dev, rows, width, &b));
                let out = dev.alloc(rows, width).unwrap();
                dev.map(&Map::Add { a: x, b: y, out, rows }).unwrap();
                dev.map(&Map::Add { a: x, b: out, out: x, rows }).unwrap();
                dev.map(&Map::Softcap { a: out, cap: 1.5, out: y, rows }).unwrap();
                dev.map(&Map::Scale { a: y, factor: 0.3, out: y, rows }).unwrap();
                dev.map(&Map::Add { a: y, b: y, out: y, rows }).unwrap();
                let wide = buffer(dev, rows, width + 4, &values(3, rows * (width + 4)));
                for (a, activation) in [(x, Activation::GeluTanh), (out, Activation::Silu)] {
                    dev.map(&Map::Gate { a, b: wide, first: 3, activation, out, rows }).unwrap();
                }
                dev.map(&Map::CopyRow { a: x, from: rows - 1, out, to: 0 }).unwrap();
                results.push([x, y, out].map(|buf| contents(dev, buf, rows * width)));
            }
            for (of, (expected, found)) in
                ["x", "y", "out"].into_iter().zip(results[0].iter().zip(&results[1]))
            {
                let square: f32 = expected.iter().map(|v| v * v).sum();
                let scale = (square / expected.len() as f32).sqrt();
                for (e, f) in expected.iter().zip(found) {
                    // The largest of many products is far above the mean square: a unit in its last place as well.
                    let most = 1e-5 * scale + 3e-7 * e.abs();
                    assert!((e - f).abs() <= most, "{of} of {rows} x {width} without '{off}': {f}, not {e}");
                }
            }
        }
    }
}

/// Runs `work` on the oracle and on a GPU of every tier and gives what it returned, the oracle's first.
fn both(
    exact: bool,
    mut work: impl FnMut(&mut dyn Compute, &str) -> Vec<f32>,
    mut check: impl FnMut(&str, &[f32], &[f32]),
) {
    for off in TIERS {
        let Some(mut dev) = gpu(exact, off) else { return };
        let expected = work(&mut reference(exact), off);
        let found = work(&mut dev, off);
        check(off, &expected, &found);
    }
}

#[test]
fn norms_equal_the_oracle_for_any_rows_groups_and_widths() {
    let shapes = [
        (1, 1, 8192),
        (1, 1, 4096),
        (3, 1, 2560),
        (16, 1, 96),
        (40, 1, 100),
        (2, 3, 37),
        (5, 8, 128),
        (33, 1, 7),
    ];
    let run = |dev: &mut dyn Compute, _: &str| {
        let mut all = Vec::new();
        for (rows, groups, cols) in shapes {
            let width = groups * cols;
            let weight = vector(dev, &values(5, cols));
            let x = buffer(dev, rows + 1, width, &values(rows as u64, (rows + 1) * width));
            let out = dev.alloc(rows + 1, width).unwrap();
            dev.norm(&Norm { x, rows, groups, weight, eps: 1e-6, out }).unwrap();
            dev.norm(&Norm { x, rows, groups, weight, eps: 1e-3, out: x }).unwrap();
            all.extend(contents(dev, out, (rows + 1) * width));
            all.extend(contents(dev, x, (rows + 1) * width));
        }
        all
    };
    both(false, run, |off, expected, found| {
        let mut at = 0;
        for (rows, groups, cols) in shapes {
            for what in ["out", "in place"] {
                let len = (rows + 1) * groups * cols;
                let apart = distance(&expected[at..at + len], &found[at..at + len]);
                assert!(apart < 2e-6, "{rows} x {groups} x {cols} {what}, without '{off}': {apart}");
                at += len;
            }
        }
    });
}

#[test]
fn norms_of_more_groups_than_a_grid_has_columns() {
    let Some(mut dev) = gpu(false, "") else { return };
    let (rows, groups, cols) = (2100, 32, 4);
    let data = values(1, rows * groups * cols);
    let mut results = Vec::new();
    for dev in [&mut reference(false) as &mut dyn Compute, &mut dev] {
        let weight = vector(dev, &[1.0, 2.0, 0.5, -1.0]);
        let x = buffer(dev, rows, groups * cols, &data);
        dev.norm(&Norm { x, rows, groups, weight, eps: 1e-6, out: x }).unwrap();
        results.push(contents(dev, x, data.len()));
    }
    assert!(distance(&results[0], &results[1]) < 2e-6);
}

#[test]
fn a_row_that_is_no_number_stays_so_and_alone() {
    let Some(mut dev) = gpu(false, "") else { return };
    let weight = vector(&mut dev, &[1.0; 64]);
    let mut data = values(3, 3 * 64);
    data[70] = f32::NAN;
    let x = buffer(&mut dev, 3, 64, &data);
    dev.norm(&Norm { x, rows: 3, groups: 1, weight, eps: 1e-6, out: x }).unwrap();
    let found = contents(&mut dev, x, 192);
    assert!(found[64..128].iter().all(|v| v.is_nan()));
    assert!(found[..64].iter().chain(&found[128..]).all(|v| v.is_finite()));
}

#[test]
fn rotations_equal_the_oracle_at_every_position() {
    let positions = [0, 1, 5, 4095, 131_071, 999_983, 1_048_575];
    for (heads, head_dim, rotary) in [(1, 2, 2), (3, 64, 64), (5, 128, 64), (32, 128, 128), (2, 34, 22)] {
        let freqs: Vec<f32> =
            (0..rotary / 2).map(|i| 1e6f64.powf(-2.0 * i as f64 / rotary as f64) as f32).collect();
        let data = values(7, positions.len() * heads * head_dim);
        let run = |dev: &mut dyn Compute, _: &str| {
            let mut all = Vec::new();
            for (pairs, magnitude) in [(RopePairs::Half, 1.0), (RopePairs::Interleaved, 1.25)] {
                let x = buffer(dev, positions.len(), heads * head_dim, &data);
                let freqs = buffer(dev, 1, freqs.len(), &freqs);
                dev.rope(&Rope {
                    x,
                    first: 0,
                    back: false,
                    heads,
                    head_dim,
                    positions: &positions,
                    freqs,
                    pairs,
                    magnitude,
                })
                .unwrap();
                all.extend(contents(dev, x, data.len()));
            }
            all
        };
        both(false, run, |off, expected, found| {
            let apart = distance(expected, found);
            assert!(apart < 2e-6, "{heads} x {head_dim}, {rotary} rotated, without '{off}': {apart}");
        });
    }
}

#[test]
fn short_convolutions_equal_the_oracle_over_several_calls() {
    let (dim, slots) = (70, 4);
    for taps in [2, 3, 4, 20] {
        let run = |dev: &mut dyn Compute, _: &str| {
            let weight = vector(dev, &values(1, dim * taps));
            let state = buffer(dev, slots, (taps - 1) * dim, &values(2, slots * (taps - 1) * dim));
            let bcu = buffer(dev, 60, 3 * dim, &values(3, 180 * dim));
            let out = dev.alloc(60, dim).unwrap();
            let seq = |row, rows, position, slot| SlotRows::new(row, rows, position, slot);
            let mut all = Vec::new();
            for seqs in [
                vec![seq(0, 1, 0, 2), seq(1, 2, 7, 0)],
                vec![seq(0, 0, 3, 1), seq(3, 40, 1, 2), seq(50, 1, 9, 0)],
                vec![seq(0, 60, 41, 2)],
                vec![seq(0, 17, 0, 3), seq(20, 3, 2, 1)],
            ] {
                dev.short_conv(&ShortConv {
                    form: ConvForm::Gated,
                    x: bcu,
                    taps: weight,
                    bias: None,
                    memory: Memory::plain(state),
                    seqs: &seqs,
                    out,
                })
                .unwrap();
                all.extend(contents(dev, out, 60 * dim));
                all.extend(contents(dev, state, slots * (taps - 1) * dim));
            }
            all
        };
        both(false, run, |off, expected, found| {
            let apart = distance(expected, found);
            assert!(apart < 2e-6, "{taps} taps, without '{off}': {apart}");
        });
    }
}

#[test]
fn what_does_not_meet_is_refused() {
    let Some(mut dev) = gpu(false, "") else { return };
    let weight = vector(&mut dev, &[1.0; 8]);
    let x = buffer(&mut dev, 2, 8, &[1.0; 16]);
    let wide = dev.alloc(2, 16).unwrap();
    let norm = |x, rows, out| Norm { x, rows, groups: 1, weight, eps: 1e-6, out };
    for args in [norm(x, 3, x), norm(wide, 1, x), norm(x, 1, wide)] {
        assert!(matches!(dev.norm(&args), Err(ComputeError::Shape { .. })));
    }
    let freqs = buffer(&mut dev, 1, 5, &[1.0; 5]);
    let rope = Rope {
        x,
        first: 0,
        back: false,
        heads: 1,
        head_dim: 8,
        positions: &[1],
        freqs,
        pairs: RopePairs::Half,
        magnitude: 1.0,
    };
    assert!(matches!(dev.rope(&rope), Err(ComputeError::Shape { .. })));
    dev.free(x).unwrap();
    assert!(matches!(dev.norm(&norm(x, 1, x)), Err(ComputeError::Handle { .. })));
}
