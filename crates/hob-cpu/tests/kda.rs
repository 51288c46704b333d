//! The delta rule whose state fades by channel of the key: the oracle's bits in both forms, and the same text in any batches.

mod common;

use common::{buffer, classes, contents, cpu, same_bits, weight};
use hob_compute::reference::Reference;
use hob_compute::{
    Commit, Compute, ComputeError, DeltaNet, DeltaShape, KeyHeads, Memory, SlotRows, WeightKind,
};
use hob_quant::Format;
use hob_testkit::rng::Rng;

const SLOTS: usize = 2;

fn seq(row: usize, rows: usize, position: usize, slot: usize) -> SlotRows {
    SlotRows::new(row, rows, position, slot)
}

/// Runs batches, each of a prompt's rows, one after the other: outputs, then the state. `decays` of a head.
fn run(
    dev: &mut dyn Compute,
    (shape, decays): (DeltaShape, usize),
    batches: &[Vec<SlotRows>],
) -> Result<Vec<f32>, ComputeError> {
    let heads = shape.value_heads;
    let mut vector = |seed, len| weight(dev, seed, WeightKind::Vector, Format::F32, 1, len);
    let (bias, norm) = (vector(2, heads * decays), vector(3, shape.value_dim));
    // From heads that keep most to heads that keep nothing.
    let rates: Vec<u8> = (0..heads).flat_map(|h| (-0.05 - 30.0 * h as f32).to_le_bytes()).collect();
    let (name, kind, format) = ("rate".into(), WeightKind::Vector, Format::F32);
    let spec = hob_compute::WeightSpec { name, kind, format, rows: 1, cols: heads };
    let rate = dev.load(&spec, std::sync::Arc::new(common::Bytes { bytes: rates, mapped: true }))?;
    let state = buffer(dev, shape.state(), &Rng::new(7).normal_vec(SLOTS * shape.state(), 1.0));
    let memory = Memory::plain(state);
    let widths = [shape.channels(), shape.width(), heads, heads * shape.key_dim];
    let text = [1, 2, 3, 4].map(|i: usize| Rng::new(i as u64).normal_vec(300 * widths[i - 1], 1.0));
    let mut all = Vec::new();
    for seqs in batches {
        let rows = seqs.iter().map(|s| s.row + s.rows).max().unwrap_or(0);
        // Row by row of the batch: what the text has at its position.
        let mut inputs = [0, 1, 2, 3].map(|i| vec![0f32; rows * widths[i]]);
        for (i, input) in inputs.iter_mut().enumerate() {
            for seq in seqs {
                let (to, from) = (seq.row * widths[i], seq.position * widths[i]);
                let len = seq.rows * widths[i];
                input[to..to + len].copy_from_slice(&text[i][from..from + len]);
            }
        }
        let [qkv, z, beta, decay] = [0, 1, 2, 3].map(|i| buffer(dev, widths[i], &inputs[i]));
        let (out, eps) = (dev.alloc(rows, shape.width())?, 1e-6);
        dev.delta_net(&DeltaNet { shape, qkv, z, beta, decay, rate, bias, norm, eps, memory, seqs, out })?;
        all.extend(contents(dev, out, rows * shape.width()));
    }
    all.extend(contents(dev, state, SLOTS * shape.state()));
    Ok(all)
}

fn shapes() -> [DeltaShape; 3] {
    let shape = |key_heads, value_heads, key_dim, value_dim, sharing| DeltaShape {
        key_heads,
        value_heads,
        key_dim,
        value_dim,
        sharing,
    };
    [
        shape(2, 2, 16, 32, KeyHeads::Grouped),
        shape(1, 2, 128, 48, KeyHeads::Tiled),
        shape(3, 3, 48, 16, KeyHeads::Grouped),
    ]
}

#[test]
fn channels_that_fade_by_themselves_are_the_oracles() {
    let batches = [
        vec![seq(0, 100, 0, 1)],
        vec![seq(0, 1, 0, 0), seq(1, 7, 100, 1)],
        vec![seq(0, 45, 1, 0), seq(47, 21, 107, 1)],
    ];
    for shape in shapes() {
        let of = |dev: &mut dyn Compute| run(dev, (shape, shape.key_dim), &batches).expect("it runs");
        let expected = of(&mut Reference::new(false));
        assert!(expected.iter().all(|x| x.is_finite()));
        for isa in classes() {
            for threads in [1, 3] {
                let found = of(&mut cpu(isa, threads, false));
                same_bits(&format!("{shape:?}, {isa}, {threads} threads"), &expected, &found);
            }
        }
    }
}

/// Cut at multiples of a chunk: the same bits. Cut anywhere: within rounding, also row by row.
#[test]
fn batches_of_a_prompt_change_nothing() {
    const ROWS: usize = 150;
    for shape in shapes() {
        let cut = |step: usize| -> Vec<f32> {
            let batches: Vec<_> =
                (0..ROWS).step_by(step).map(|at| vec![seq(0, step.min(ROWS - at), at, 0)]).collect();
            run(&mut cpu(classes()[0], 2, false), (shape, shape.key_dim), &batches).expect("it runs")
        };
        let whole = cut(ROWS);
        let scale = whole[..ROWS * shape.width()].iter().fold(0f32, |m, x| m.max(x.abs()));
        for step in [64, 128, 1, 7, 50] {
            let found = cut(step);
            if step.is_multiple_of(DeltaNet::CHUNK) {
                same_bits(&format!("{shape:?}, batches of {step}"), &whole, &found);
            }
            let pairs = whole[..ROWS * shape.width()].iter().zip(&found);
            let apart = pairs.map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(apart < 3e-5 * scale, "{shape:?}, batches of {step}: {apart} of {scale}");
        }
    }
}

#[test]
fn a_bias_of_another_width_is_an_error() {
    let batches = [vec![seq(0, 4, 0, 1)]];
    for dev in [&mut Reference::new(false) as &mut dyn Compute, &mut cpu(classes()[0], 1, false)] {
        let error = run(dev, (shapes()[0], 1), &batches).expect_err("a bias for each head only");
        assert!(error.to_string().contains("a bias"), "{error}");
    }
}

#[test]
fn rows_that_are_held_are_an_error() {
    let batches = [vec![SlotRows { commit: Commit::Hold, ..seq(0, 1, 7, 1) }]];
    let shape = shapes()[0];
    for dev in [&mut Reference::new(false) as &mut dyn Compute, &mut cpu(classes()[0], 1, false)] {
        let error = run(dev, (shape, shape.key_dim), &batches).expect_err("records have one decay of a head");
        assert!(error.to_string().contains("held rows at position 7"), "{error}");
    }
}
