//! Row verbs against the oracle, bit by bit: norm, rope, embed, map, pick, linear.

mod common;

use common::{agree, buffer, contents, random, weight};
use hob_compute::{
    Activation, Combine, Compute, Embed, Linear, Map, Norm, Pick, Picked, Product, Rope, RopePairs, Token,
    WeightKind,
};
use hob_quant::Format;
use hob_testkit::rng::Rng;

#[test]
fn norm_of_any_width() {
    for (rows, groups, cols) in [(1, 1, 576), (5, 9, 64), (3, 2, 80), (2, 1, 7), (1, 3, 17), (40, 1, 2048)] {
        agree(&format!("norm {rows} x {groups} x {cols}"), false, |dev| {
            let x = random(dev, 1, rows + 1, groups * cols);
            let out = dev.alloc(rows, groups * cols).unwrap();
            let weight = weight(dev, 2, WeightKind::Vector, Format::F32, 1, cols);
            dev.norm(&Norm { x, rows, groups, weight, eps: 1e-5, out }).unwrap();
            let mut all = contents(dev, out, rows * groups * cols);
            dev.norm(&Norm { x, rows, groups, weight, eps: 1e-6, out: x }).unwrap();
            all.extend(contents(dev, x, (rows + 1) * groups * cols));
            all
        });
    }
}

#[test]
fn rope_of_both_pairings_whole_and_partial() {
    for pairs in [RopePairs::Half, RopePairs::Interleaved] {
        for (heads, head_dim, rotary) in
            [(3, 64, 64), (1, 16, 16), (2, 80, 80), (4, 128, 128), (2, 80, 20), (5, 6, 6)]
        {
            agree(&format!("rope {pairs:?} {heads} x {head_dim}, {rotary} rotated"), false, |dev| {
                let positions: Vec<u32> = [0, 1, 2, 63, 255, 256, 4095, 131_071, 1_000_003].into();
                let q = random(dev, 3, positions.len(), heads * head_dim);
                let freqs: Vec<f32> =
                    (0..rotary / 2).map(|i| 1e4f32.powf(-2.0 * i as f32 / rotary as f32)).collect();
                let freqs = buffer(dev, rotary / 2, &freqs);
                let rope = Rope {
                    x: q,
                    first: 0,
                    back: false,
                    heads,
                    head_dim,
                    positions: &positions,
                    freqs,
                    pairs,
                    magnitude: 1.0,
                };
                dev.rope(&rope).unwrap();
                // A second call turns further and may use the table at hand; another magnitude may not.
                dev.rope(&rope).unwrap();
                dev.rope(&Rope { magnitude: 1.1, ..rope }).unwrap();
                dev.rope(&Rope { positions: &positions[3..5], ..rope }).unwrap();
                contents(dev, q, 9 * heads * head_dim)
            });
        }
    }
}

#[test]
fn rope_notices_new_frequencies_in_the_same_buffer() {
    agree("rope with frequencies uploaded again", false, |dev| {
        let x = random(dev, 4, 2, 16);
        let freqs = buffer(dev, 8, &[0.5; 8]);
        let rope = Rope {
            x,
            first: 0,
            back: false,
            heads: 1,
            head_dim: 16,
            positions: &[7, 8],
            freqs,
            pairs: RopePairs::Half,
            magnitude: 1.0,
        };
        dev.rope(&rope).unwrap();
        dev.upload(freqs, 0, &[0.25; 8]).unwrap();
        dev.rope(&rope).unwrap();
        contents(dev, x, 32)
    });
}

#[test]
fn rope_turns_by_the_angle() {
    for isa in common::classes() {
        let mut dev = common::cpu(isa, 1, false);
        let x = buffer(&mut dev, 4, &[1.0, 0.0, 0.0, 1.0]);
        let freqs = buffer(&mut dev, 2, &[0.5, 0.1]);
        let positions = &[3];
        let rope = Rope {
            x,
            first: 0,
            back: false,
            heads: 1,
            head_dim: 4,
            positions,
            freqs,
            pairs: RopePairs::Half,
            magnitude: 2.0,
        };
        dev.rope(&rope).unwrap();
        // Pairs (0, 2) by 1.5 and (1, 3) by 0.3, twice as long.
        let expected = [2.0 * 1.5f32.cos(), -2.0 * 0.3f32.sin(), 2.0 * 1.5f32.sin(), 2.0 * 0.3f32.cos()];
        for (e, f) in expected.iter().zip(contents(&mut dev, x, 4)) {
            assert!((e - f).abs() < 1e-6, "{isa}: expected {e}, found {f}");
        }
    }
}

#[test]
fn embed_of_host_tokens_and_of_picked_ones() {
    for (format, seed) in
        [(Format::F32, 6), (Format::F16, 7), (Format::BF16, 8), (Format::Q8_0, 9), (Format::Q4_0, 10)]
    {
        agree(&format!("embed {format}"), false, |dev| {
            let table = weight(dev, seed, WeightKind::Table, format, 50, 96);
            let out = dev.alloc(4, 96).unwrap();
            let logits = random(dev, 11, 2, 50);
            dev.pick(&Pick { logits, rows: 2, k: 3, draws: &[] }).unwrap();
            let tokens = [Token::Host(0), Token::Device(1), Token::Host(49), Token::Device(0)];
            dev.embed(&Embed { table, tokens: &tokens, out, scale: 1.0 }).unwrap();
            let mut all = contents(dev, out, 4 * 96);
            dev.embed(&Embed { table, tokens: &tokens[..3], out, scale: 12.5 }).unwrap();
            all.extend(contents(dev, out, 4 * 96));
            all
        });
    }
}

#[test]
fn embed_of_many_rows() {
    agree("embed of 300 rows", false, |dev| {
        let table = weight(dev, 12, WeightKind::Table, Format::Q8_0, 500, 128);
        let mut rng = Rng::new(13);
        let tokens: Vec<Token> = (0..300).map(|_| Token::Host(rng.below(500) as u32)).collect();
        let out = dev.alloc(300, 128).unwrap();
        dev.embed(&Embed { table, tokens: &tokens, out, scale: 0.5 }).unwrap();
        contents(dev, out, 300 * 128)
    });
}

#[test]
fn map_with_every_pattern_of_shared_operands() {
    for (rows, width) in [(1, 5), (3, 64), (40, 1000)] {
        agree(&format!("map {rows} x {width}"), false, |dev| {
            let (a, b) = (random(dev, 14, rows, width), random(dev, 15, rows, width));
            let out = dev.alloc(rows, width).unwrap();
            let mut all = Vec::new();
            for (x, y, to) in [(a, b, out), (a, a, out), (out, b, out), (a, out, out), (out, out, out)] {
                dev.map(&Map::Add { a: x, b: y, out: to, rows }).unwrap();
                all.extend(contents(dev, to, rows * width));
            }
            dev.map(&Map::Scale { a, factor: 0.3, out, rows }).unwrap();
            all.extend(contents(dev, out, rows * width));
            dev.map(&Map::Scale { a, factor: -1.7, out: a, rows }).unwrap();
            dev.map(&Map::Softcap { a, cap: 0.7, out, rows }).unwrap();
            all.extend(contents(dev, out, rows * width));
            dev.map(&Map::Softcap { a: out, cap: 30.0, out, rows }).unwrap();
            all.extend(contents(dev, out, rows * width));
            let (first, wide) = (3, random(dev, 16, rows, width + 4));
            for (a, activation) in [(a, Activation::GeluTanh), (out, Activation::Silu)] {
                dev.map(&Map::Gate { a, b: wide, first, activation, out, rows }).unwrap();
                all.extend(contents(dev, out, rows * width));
            }
            dev.map(&Map::CopyRow { a, from: rows - 1, out: a, to: 0 }).unwrap();
            dev.map(&Map::CopyRow { a, from: 0, out: b, to: rows - 1 }).unwrap();
            all.extend(contents(dev, a, rows * width));
            all.extend(contents(dev, b, rows * width));
            all
        });
    }
}

/// Picks and returns ids, logits and log-sum-exp as floats.
fn picks(dev: &mut dyn Compute, vocab: usize, logits: &[f32], k: usize) -> Vec<f32> {
    let rows = logits.len() / vocab;
    let logits = buffer(dev, vocab, logits);
    dev.pick(&Pick { logits, rows, k, draws: &[] }).unwrap();
    let ticket = dev.submit().unwrap();
    let mut out = Picked::default();
    dev.picked(ticket, &mut out).unwrap();
    assert_eq!(
        (out.k, out.tokens.len(), out.logits.len(), out.log_sum_exp.len()),
        (k, rows * k, rows * k, rows)
    );
    let mut all: Vec<f32> = out.tokens.iter().map(|&t| t as f32).collect();
    all.extend(out.logits);
    all.extend(out.log_sum_exp);
    all
}

#[test]
fn pick_of_any_k_and_vocabulary() {
    for (rows, vocab) in [(1, 1), (2, 15), (3, 256), (1, 257), (2, 5000), (1, 50_003)] {
        for k in [1, 2, 40, 256] {
            if k > vocab {
                continue;
            }
            let logits = Rng::new(16).normal_vec(rows * vocab, 4.0);
            agree(&format!("pick {k} of {rows} x {vocab}"), false, |dev| picks(dev, vocab, &logits, k));
        }
    }
}

#[test]
fn pick_breaks_ties_by_the_lowest_id() {
    let mut rng = Rng::new(17);
    let few: Vec<f32> = (0..9000).map(|_| rng.below(4) as f32 - 2.0).collect();
    let zeros: Vec<f32> = (0..9000).map(|i| if i % 3 == 0 { -0.0 } else { 0.0 }).collect();
    for (name, logits) in [("four values", few), ("one value", vec![1.5; 9000]), ("signed zeros", zeros)] {
        for k in [1, 7, 256] {
            agree(&format!("{k} of {name}"), false, |dev| picks(dev, 9000, &logits, k));
        }
    }
}

#[test]
fn pick_treats_nan_as_minus_infinity() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let mut mixed = Rng::new(18).normal_vec(700, 3.0);
    mixed[0] = nan;
    mixed[31] = nan;
    mixed[32] = -inf;
    mixed[699] = nan;
    let mut one_inf = mixed.clone();
    one_inf[500] = inf;
    for (name, logits) in [
        ("mixed", mixed),
        ("plus infinity", one_inf),
        ("all NaN", vec![nan; 700]),
        ("all -inf", vec![-inf; 700]),
    ] {
        for k in [1, 3, 256] {
            agree(&format!("{k} of {name}"), false, |dev| picks(dev, 700, &logits, k));
        }
    }
    let found = picks(&mut common::cpu(hob_cpu::Isa::best(), 1, false), 3, &[nan, 1.0, nan], 1);
    assert_eq!(found[..2], [1.0, 1.0]);
    assert!((found[2] - 1.0).abs() < 1e-6);
}

#[test]
fn picks_of_one_ticket_come_in_the_order_of_recording() {
    let mut dev = common::cpu(hob_cpu::Isa::best(), 2, false);
    let a = buffer(&mut dev, 4, &[0.0, 3.0, 1.0, 2.0]);
    let b = buffer(&mut dev, 4, &[9.0, 3.0, 1.0, 2.0]);
    dev.pick(&Pick { logits: a, rows: 1, k: 2, draws: &[] }).unwrap();
    dev.pick(&Pick { logits: b, rows: 1, k: 2, draws: &[] }).unwrap();
    let ticket = dev.submit().unwrap();
    let mut out = Picked::default();
    dev.picked(ticket, &mut out).unwrap();
    assert_eq!(out.tokens, [1, 3, 0, 1]);
    assert!(dev.picked(ticket, &mut out).is_err());
}

fn linears(
    dev: &mut dyn Compute,
    format: Format,
    rows: usize,
    (cols, heights): (usize, [usize; 2]),
) -> Vec<f32> {
    let x = random(dev, 20, rows + 2, cols);
    let mut all = Vec::new();
    let [h0, h1] = heights;
    let (w0, w1) = (
        weight(dev, 21, WeightKind::Matrix, format, h0, cols),
        weight(dev, 22, WeightKind::Matrix, Format::F16, h1, cols),
    );
    let bias = weight(dev, 23, WeightKind::Vector, Format::F32, 1, h0);
    let (o0, o1) = (dev.alloc(rows, h0).unwrap(), dev.alloc(rows, h1).unwrap());
    let products =
        [Product { weight: w0, bias: Some(bias), out: o0 }, Product { weight: w1, bias: None, out: o1 }];
    for (first_row, combine) in [(0, Combine::Store), (2, Combine::Add), (1, Combine::Store)] {
        dev.linear(&Linear { x, first_row, rows, products: &products, combine }).unwrap();
        all.extend(contents(dev, o0, rows * h0));
        all.extend(contents(dev, o1, rows * h1));
    }
    let up = weight(dev, 24, WeightKind::Matrix, format, h0, cols);
    for (activation, spare) in [(Activation::Silu, o0), (Activation::GeluTanh, o1)] {
        let gated = [products[0], Product { weight: up, bias: None, out: spare }];
        let combine = Combine::Gated(activation);
        dev.linear(&Linear { x, first_row: 0, rows, products: &gated, combine }).unwrap();
        all.extend(contents(dev, o0, rows * h0));
        all.extend(contents(dev, o1, rows * h1));
    }
    all
}

#[test]
fn linear_of_mixed_formats_with_bias_and_gate() {
    use Format::{BF16, F16, F32, Q4_0, Q4_1, Q5_0, Q8_0};
    for format in [Q4_0, Q4_1, Q8_0, F16, BF16, F32, Q5_0] {
        for (rows, shape) in [(1, (96, [24, 17])), (3, (64, [16, 40])), (13, (160, [35, 8]))] {
            for exact in [false, true] {
                let what = format!("linear {format} {rows} rows {shape:?} exact {exact}");
                agree(&what, exact, |dev| linears(dev, format, rows, shape));
            }
        }
    }
}

#[test]
fn a_written_buffer_loses_its_int8_form() {
    agree("linear after every kind of write", false, |dev| {
        let x = random(dev, 25, 1, 64);
        let other = random(dev, 26, 1, 64);
        let table = weight(dev, 27, WeightKind::Table, Format::F32, 3, 64);
        let w = weight(dev, 28, WeightKind::Matrix, Format::Q8_0, 16, 64);
        let square = weight(dev, 29, WeightKind::Matrix, Format::Q8_0, 64, 64);
        let scale = weight(dev, 30, WeightKind::Vector, Format::F32, 1, 64);
        let freqs = buffer(dev, 32, &[0.3; 32]);
        let out = dev.alloc(1, 16).unwrap();
        let mut all = Vec::new();
        let mut product = |dev: &mut dyn Compute| {
            let products = [Product { weight: w, bias: None, out }];
            dev.linear(&Linear { x, first_row: 0, rows: 1, products: &products, combine: Combine::Store })
                .unwrap();
            all.extend(contents(dev, out, 16));
        };
        product(dev);
        dev.upload(x, 0, &[0.7; 5]).unwrap();
        product(dev);
        dev.norm(&Norm { x, rows: 1, groups: 1, weight: scale, eps: 1e-5, out: x }).unwrap();
        product(dev);
        let pairs = RopePairs::Half;
        dev.rope(&Rope {
            x,
            first: 0,
            back: false,
            heads: 1,
            head_dim: 64,
            positions: &[9],
            freqs,
            pairs,
            magnitude: 1.0,
        })
        .unwrap();
        product(dev);
        dev.map(&Map::Add { a: x, b: other, out: x, rows: 1 }).unwrap();
        product(dev);
        dev.map(&Map::Scale { a: x, factor: 3.0, out: x, rows: 1 }).unwrap();
        product(dev);
        dev.map(&Map::CopyRow { a: other, from: 0, out: x, to: 0 }).unwrap();
        product(dev);
        dev.embed(&Embed { table, tokens: &[Token::Host(2)], out: x, scale: 1.0 }).unwrap();
        product(dev);
        let products = [Product { weight: square, bias: None, out: x }];
        dev.linear(&Linear { x: other, first_row: 0, rows: 1, products: &products, combine: Combine::Add })
            .unwrap();
        product(dev);
        all
    });
}
