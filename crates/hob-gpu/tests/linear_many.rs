//! Products of many rows against the oracle: every format, odd shapes, all that may happen to a product.

mod common;
#[path = "common/weights.rs"]
mod weights;

use common::{TIERS, buffer, contents, distance, gpu, reference, values};
use hob_compute::{Activation, Combine, Compute, Linear, Product};
use hob_quant::Format;
use weights::{PACKED, load, vector};

/// Largest distance from the oracle: f16 products on cooperative matrices, int8 and f32 ones elsewhere.
fn tolerance(exact: bool) -> f64 {
    if exact { 2e-5 } else { 5e-3 }
}

/// Distance from the nearer of both oracles: activations are int8 in one and f32 in the other, and which the device takes
/// is its own choice.
fn nearer(exact: bool, found: &[f32], mut oracle: impl FnMut(&mut dyn Compute) -> Vec<f32>) -> f64 {
    let near = distance(&oracle(&mut reference(true)), found);
    if exact || near < tolerance(false) {
        near
    } else {
        near.min(distance(&oracle(&mut reference(false)), found))
    }
}

fn product(dev: &mut dyn Compute, format: Format, shape: [usize; 4], x: &[f32]) -> Vec<f32> {
    let [height, cols, first_row, rows] = shape;
    let weight = load(dev, format, 7, height, cols);
    let x = buffer(dev, first_row + rows, cols, x);
    let out = dev.alloc(rows, height).unwrap();
    let products = [Product { weight, bias: None, out }];
    dev.linear(&Linear { x, first_row, rows, products: &products, combine: Combine::Store }).unwrap();
    let y = contents(dev, out, rows * height);
    dev.unload(weight).unwrap();
    [x, out].into_iter().for_each(|b| dev.free(b).unwrap());
    y
}

fn formats(exact: bool, off: &str, all: &[Format], shapes: &[[usize; 4]]) {
    let Some(mut dev) = gpu(exact, off) else { return };
    for (&format, [height, blocks, first_row, rows]) in
        all.iter().flat_map(|f| shapes.iter().map(move |s| (f, *s)))
    {
        let cols = blocks * format.block_len().max(32);
        let x = values(3 + blocks as u64, (first_row + rows) * cols);
        let shape = [height, cols, first_row, rows];
        let found = product(&mut dev, format, shape, &x);
        let d = nearer(exact, &found, |oracle| product(oracle, format, shape, &x));
        assert!(d < tolerance(exact), "{format} {shape:?} exact {exact} without '{off}': {d}");
    }
}

/// Outputs, blocks of the format, first row, rows.
const SHAPES: [[usize; 4]; 3] = [[3, 1, 0, 17], [67, 3, 5, 64], [131, 1, 1, 130]];

#[test]
fn every_format_equals_the_oracle_on_odd_shapes() {
    formats(false, "", &PACKED, &SHAPES);
}

#[test]
fn every_format_equals_the_oracle_in_exact_mode() {
    formats(true, "", &PACKED, &SHAPES[1..2]);
}

#[test]
fn lower_tiers_equal_the_oracle() {
    for off in &TIERS[1..] {
        formats(false, off, &[Format::Q4_0, Format::Q6K], &SHAPES[..2]);
    }
}

/// Several products with biases, in three combinations, of a width that fills no tile.
fn combined(
    dev: &mut dyn Compute,
    formats: [Format; 2],
    combine: Combine,
    rows: usize,
    bias: bool,
) -> Vec<Vec<f32>> {
    let (cols, heights) = (512, if matches!(combine, Combine::Gated(_)) { [70, 70] } else { [130, 35] });
    let x = buffer(dev, rows + 2, cols, &values(11, (rows + 2) * cols));
    let products = [0, 1].map(|i| {
        let out = buffer(dev, rows + 1, heights[i], &values(20 + i as u64, (rows + 1) * heights[i]));
        Product {
            weight: load(dev, formats[i], 30 + i as u64, heights[i], cols),
            bias: bias.then(|| vector(dev, 40 + i as u64, heights[i])),
            out,
        }
    });
    dev.linear(&Linear { x, first_row: 2, rows, products: &products, combine }).unwrap();
    // The row behind the last is nobody's.
    products.iter().zip(heights).map(|(p, h)| contents(dev, p.out, (rows + 1) * h)).collect()
}

#[test]
fn stored_added_and_gated_products_equal_the_oracle_and_touch_nothing_else() {
    let pairs = [[Format::Q4_0; 2], [Format::Q4K, Format::Q6K], [Format::F16, Format::Q8_0]];
    let combines = [
        (Combine::Store, 33, true),
        (Combine::Add, 129, false),
        (Combine::Gated(Activation::Silu), 100, true),
        (Combine::Gated(Activation::GeluTanh), 65, false),
    ];
    for (off, pairs) in [("", &pairs[..]), ("dot,coop", &pairs[1..2])] {
        let Some(mut dev) = gpu(false, off) else { return };
        for (&pair, (combine, rows, bias)) in pairs.iter().flat_map(|p| combines.map(|c| (p, c))) {
            let found = combined(&mut dev, pair, combine, rows, bias);
            for (i, found) in found.iter().enumerate() {
                let d =
                    nearer(false, found, |oracle| combined(oracle, pair, combine, rows, bias).swap_remove(i));
                assert!(d < tolerance(false), "{pair:?} {combine:?} {rows} rows without '{off}': {d}");
            }
        }
    }
}

/// `down(gated(x))` twice, the second time with the forms that the first asked for.
#[test]
fn a_product_of_products_is_the_same_when_forms_are_written_at_once() {
    let Some(mut dev) = gpu(false, "") else { return };
    let (rows, cols, inner) = (75, 256, 160);
    let weights = [(inner, cols), (inner, cols), (cols, inner)];
    let weights: Vec<_> =
        weights.iter().zip(1..).map(|(&(n, k), seed)| load(&mut dev, Format::Q8_0, seed, n, k)).collect();
    let x = buffer(&mut dev, rows, cols, &values(9, rows * cols));
    let (hidden, out) = (dev.alloc(rows, inner).unwrap(), dev.alloc(rows, cols).unwrap());
    let product = |weight, out| Product { weight, bias: None, out };
    let mut twice = Vec::new();
    for _ in 0..2 {
        let up = [product(weights[0], hidden), product(weights[1], hidden)];
        let combine = Combine::Gated(Activation::Silu);
        dev.linear(&Linear { x, first_row: 0, rows, products: &up, combine }).unwrap();
        let down = [product(weights[2], out)];
        dev.linear(&Linear { x: hidden, first_row: 0, rows, products: &down, combine: Combine::Store })
            .unwrap();
        twice.push(contents(&mut dev, out, rows * cols));
    }
    assert!(twice[0].iter().any(|v| *v != 0.0));
    assert!(distance(&twice[0], &twice[1]) < 1e-6);
}

#[test]
fn what_is_no_number_stays_in_its_row_and_huge_values_stay_finite() {
    for off in ["", "dot,coop"] {
        let Some(mut dev) = gpu(false, off) else { return };
        let (rows, cols, height) = (70, 96, 40);
        let mut x = values(5, rows * cols);
        x[3 * cols + 7] = f32::NAN;
        x[40 * cols] = f32::INFINITY;
        x[66 * cols + 95] = 1e5;
        let found = product(&mut dev, Format::Q4_0, [height, cols, 0, rows], &x);
        x[3 * cols + 7] = 0.0;
        x[40 * cols] = 0.0;
        let clean = product(&mut dev, Format::Q4_0, [height, cols, 0, rows], &x);
        for r in 0..rows {
            let (dirty, clean) = (&found[r * height..][..height], &clean[r * height..][..height]);
            match r {
                3 => assert!(dirty.iter().all(|v| v.is_nan()), "row {r} hides its NaN"),
                40 => assert!(dirty.iter().any(|v| !v.is_finite()), "row {r} hides its infinity"),
                _ => assert!(dirty == clean && clean.iter().all(|v| v.is_finite()), "row {r}"),
            }
        }
    }
}
