//! What remembers in fixed size, against the oracle: the gated delta rule and the selective state space in both forms,
//! plain convolutions, and gates, over several calls on every tier.

mod common;

use std::sync::Arc;

use common::floats::vector;
use common::{TIERS, buffer, contents, distance, gpu, reference, values};
use hob_compute::{
    Activation, Buf, Combine, Compute, ComputeError, ConvForm, DeltaNet, DeltaShape, KeyHeads, Linear, Map,
    Memory, Product, ShortConv, SlotRows, SsmScan, SsmShape, Weight, WeightKind, WeightSpec,
};
use hob_quant::Format;

fn seq(row: usize, rows: usize, position: usize, slot: usize) -> SlotRows {
    SlotRows::new(row, rows, position, slot)
}

/// A layer's delta rule on a device; slots begin with anything.
struct Delta {
    shape: DeltaShape,
    vectors: [Weight; 3],
    inputs: [Buf; 4],
    state: Buf,
    out: Buf,
}

const ROWS: usize = 150;
const SLOTS: usize = 3;

impl Delta {
    fn new(dev: &mut dyn Compute, shape: DeltaShape) -> Delta {
        let heads = shape.value_heads;
        let rates = (0..heads).map(|h| -0.02 - 0.9 * h as f32).collect();
        let vectors = [rates, values(1, heads), values(2, shape.value_dim)].map(|v| vector(dev, &v));
        let mut seed = 2;
        let inputs = [shape.channels(), shape.width(), heads, heads].map(|width| {
            seed += 1;
            buffer(dev, ROWS, width, &values(seed, ROWS * width))
        });
        let state = buffer(dev, SLOTS, shape.state(), &values(9, SLOTS * shape.state()));
        let out = dev.alloc(ROWS, shape.width()).expect("room");
        Delta { shape, vectors, inputs, state, out }
    }

    fn run(&self, dev: &mut dyn Compute, seqs: &[SlotRows]) -> Result<(), ComputeError> {
        let &Delta { shape, vectors: [rate, bias, norm], inputs: [qkv, z, beta, decay], state, out } = self;
        let (eps, memory) = (1e-6, Memory::plain(state));
        dev.delta_net(&DeltaNet { shape, qkv, z, beta, decay, rate, bias, norm, eps, memory, seqs, out })
    }
}

#[test]
fn the_delta_rule_equals_the_oracle_in_both_forms() {
    let shape = |key_heads, value_heads, key_dim, value_dim, sharing| DeltaShape {
        key_heads,
        value_heads,
        key_dim,
        value_dim,
        sharing,
    };
    let batches = [
        // Row by row, several sequences, one of which begins; then many rows, ragged at both ends, beside few; a slot
        // that begins anew while another goes on; a sequence without rows.
        vec![seq(0, 3, 0, 1), seq(5, 1, 700, 2)],
        vec![seq(1, 100, 3, 1), seq(101, 1, 701, 2), seq(103, 40, 0, 0)],
        vec![seq(0, 1, 40, 0), seq(1, 15, 103, 1), seq(20, 0, 702, 2)],
        vec![seq(0, 64, 0, 2), seq(64, 70, 118, 1)],
    ];
    for shape in [
        shape(1, 2, 128, 128, KeyHeads::Tiled),
        shape(2, 4, 16, 16, KeyHeads::Grouped),
        shape(1, 3, 48, 32, KeyHeads::Grouped),
        shape(1, 1, 256, 48, KeyHeads::Tiled),
    ] {
        let run = |dev: &mut dyn Compute| {
            let delta = Delta::new(dev, shape);
            let mut all = Vec::new();
            for seqs in &batches {
                delta.run(dev, seqs).unwrap();
                all.push(contents(dev, delta.out, ROWS * shape.width()));
                all.push(contents(dev, delta.state, SLOTS * shape.state()));
            }
            all
        };
        let expected = run(&mut reference(false));
        // The kernels ask for no feature.
        for off in [TIERS[0], TIERS[3]] {
            let Some(mut dev) = gpu(false, off) else { return };
            for (i, (expected, found)) in expected.iter().zip(run(&mut dev)).enumerate() {
                let apart = distance(expected, &found);
                assert!(apart < 2e-4, "{shape:?}, without '{off}', result {i}: {apart}");
            }
        }
    }
}

/// A prompt in one go, which is chunked, and row by row, which is not.
#[test]
fn both_forms_of_a_prompt_agree() {
    let shape =
        DeltaShape { key_heads: 1, value_heads: 2, key_dim: 32, value_dim: 32, sharing: KeyHeads::Grouped };
    let Some(mut dev) = gpu(false, "") else { return };
    let delta = Delta::new(&mut dev, shape);
    delta.run(&mut dev, &[seq(0, 100, 0, 0)]).unwrap();
    let whole = contents(&mut dev, delta.out, 100 * shape.width());
    (0..100).for_each(|i| delta.run(&mut dev, &[seq(i, 1, i, 1)]).unwrap());
    let single = contents(&mut dev, delta.out, 100 * shape.width());
    let apart = distance(&whole, &single);
    assert!(apart < 5e-5, "{apart}");
}

#[test]
fn plain_convolutions_and_gates_equal_the_oracle() {
    let (dim, slots, taps) = (70, 3, 4);
    let run = |dev: &mut dyn Compute| {
        let (weight, bias) = (vector(dev, &values(1, dim * taps)), vector(dev, &values(5, dim)));
        let state = buffer(dev, slots, (taps - 1) * dim, &values(2, slots * (taps - 1) * dim));
        let x = buffer(dev, 60, dim, &values(3, 60 * dim));
        let out = dev.alloc(60, dim).unwrap();
        let mut all = Vec::new();
        for seqs in [vec![seq(0, 1, 0, 2), seq(1, 2, 7, 0)], vec![seq(3, 40, 1, 2), seq(50, 1, 9, 0)]] {
            for bias in [None, Some(bias)] {
                let (form, memory, seqs) = (ConvForm::Silu, Memory::plain(state), &seqs);
                dev.short_conv(&ShortConv { form, x, taps: weight, bias, memory, seqs, out }).unwrap();
                all.extend(contents(dev, out, 60 * dim));
                all.extend(contents(dev, state, slots * (taps - 1) * dim));
            }
        }
        for width in [dim, dim / 2, 1] {
            let gate = buffer(dev, 60, width, &values(4, 60 * width));
            for (a, add) in [(x, true), (x, false), (out, false)] {
                dev.map(&Map::SigmoidGate { a, gate, out, add, rows: 59 }).unwrap();
                all.extend(contents(dev, out, 60 * dim));
            }
        }
        all
    };
    let expected = run(&mut reference(false));
    for off in TIERS {
        let Some(mut dev) = gpu(false, off) else { return };
        let apart = distance(&expected, &run(&mut dev));
        assert!(apart < 5e-6, "without '{off}': {apart}");
    }
}

/// A layer's state space on a device; slots begin with anything.
struct Ssm {
    shape: SsmShape,
    limit: [f32; 2],
    vectors: [Weight; 4],
    inputs: [Buf; 3],
    state: Buf,
    out: Buf,
}

impl Ssm {
    fn new(dev: &mut dyn Compute, shape: SsmShape, limit: [f32; 2]) -> Ssm {
        let heads = shape.heads;
        // From heads that forget little to heads whose state underflows.
        let rates = (0..heads).map(|h| -0.02 - 9.0 * (h * h) as f32).collect();
        let vectors = [rates, values(1, heads), values(2, heads), values(3, shape.width())];
        let vectors = vectors.map(|v| vector(dev, &v));
        let mut seed = 3;
        let inputs = [shape.channels(), shape.width(), heads].map(|width| {
            seed += 1;
            buffer(dev, ROWS, width, &values(seed, ROWS * width))
        });
        let state = buffer(dev, SLOTS, shape.state(), &values(9, SLOTS * shape.state()));
        let out = dev.alloc(ROWS, shape.width()).expect("room");
        Ssm { shape, limit, vectors, inputs, state, out }
    }

    fn run(&self, dev: &mut dyn Compute, seqs: &[SlotRows]) -> Result<(), ComputeError> {
        let &Ssm { shape, limit, vectors: [rate, bias, skip, norm], inputs: [xbc, z, dt], state, out } = self;
        let eps = 1e-5;
        dev.ssm_scan(&SsmScan {
            shape,
            xbc,
            z,
            dt,
            rate,
            bias,
            skip,
            norm,
            eps,
            limit,
            memory: Memory::plain(state),
            seqs,
            out,
        })
    }
}

#[test]
fn state_spaces_equal_the_oracle_in_both_forms() {
    let shape = |heads, head_dim, state_dim, groups| SsmShape { heads, head_dim, state_dim, groups };
    let batches = [
        vec![seq(0, 3, 0, 1), seq(5, 1, 700, 2)],
        vec![seq(1, 100, 3, 1), seq(101, 1, 701, 2), seq(103, 40, 0, 0)],
        vec![seq(0, 1, 40, 0), seq(1, 15, 103, 1), seq(20, 0, 702, 2)],
        vec![seq(0, 64, 0, 2), seq(64, 70, 118, 1)],
    ];
    for (shape, limit) in [
        (shape(4, 64, 128, 2), [0.0, f32::INFINITY]),
        (shape(3, 16, 48, 1), [0.1, 0.7]),
        // More heads of a group than share a table.
        (shape(11, 48, 16, 1), [0.0, f32::INFINITY]),
        (shape(2, 32, 256, 2), [0.0, f32::INFINITY]),
    ] {
        let run = |dev: &mut dyn Compute| {
            let ssm = Ssm::new(dev, shape, limit);
            let mut all = Vec::new();
            for seqs in &batches {
                ssm.run(dev, seqs).unwrap();
                all.push(contents(dev, ssm.out, ROWS * shape.width()));
                all.push(contents(dev, ssm.state, SLOTS * shape.state()));
            }
            all
        };
        let expected = run(&mut reference(false));
        assert!(expected.iter().flatten().all(|x| x.is_finite()));
        // The kernels ask for no feature.
        for off in if shape.heads == 3 { vec![TIERS[0], TIERS[3]] } else { vec![TIERS[0]] } {
            let Some(mut dev) = gpu(false, off) else { return };
            for (i, (expected, found)) in expected.iter().zip(run(&mut dev)).enumerate() {
                let apart = distance(expected, &found);
                assert!(apart < 5e-5, "{shape:?}, without '{off}', result {i}: {apart}");
            }
        }
    }
}

/// A product asks for the int8 form of a state space's output, which is then written with it.
#[test]
fn the_int8_form_of_an_output_is_that_of_its_rows() {
    let shape = SsmShape { heads: 40, head_dim: 64, state_dim: 16, groups: 2 };
    let run = |dev: &mut dyn Compute| {
        let ssm = Ssm::new(dev, shape, [0.0, f32::INFINITY]);
        let bytes: Vec<u8> = values(20, 64 * shape.width() / 32)
            .iter()
            .flat_map(|_| [0x00, 0x2c].into_iter().chain((0..32).map(|i| (i * 7 % 50) as u8)))
            .collect();
        let (kind, format, cols) = (WeightKind::Matrix, Format::Q8_0, shape.width());
        let spec = WeightSpec { name: "matrix".into(), kind, format, rows: 64, cols };
        let weight = dev.load(&spec, Arc::new(bytes)).expect("a matrix loads");
        let out = dev.alloc(ROWS, 64).unwrap();
        let mut all = Vec::new();
        // The first product makes the form, the second finds it written.
        for turn in 0..2 {
            ssm.run(dev, &[seq(0, 2, 2 * turn, 0), seq(2, 1, turn, 1)]).unwrap();
            let products = &[Product { weight, bias: None, out }];
            let combine = Combine::Store;
            dev.linear(&Linear { x: ssm.out, first_row: 0, rows: 3, products, combine }).unwrap();
            all.push(contents(dev, out, 3 * 64));
        }
        all
    };
    let expected = run(&mut reference(false));
    let Some(mut dev) = gpu(false, "") else { return };
    for (expected, found) in expected.iter().zip(run(&mut dev)) {
        let apart = distance(expected, &found);
        assert!(apart < 2e-3, "{apart}");
    }
}

#[test]
fn activations_equal_the_oracle() {
    let run = |dev: &mut dyn Compute| {
        let (a, out) = (buffer(dev, 60, 70, &values(1, 60 * 70)), dev.alloc(60, 70).unwrap());
        let mut all = Vec::new();
        let clamped = Activation::ClampedSwiglu { alpha: 1.7, limit: 0.5, plus_one: true };
        for activation in [Activation::Silu, Activation::GeluTanh, clamped, Activation::ReluSquared] {
            dev.map(&Map::Activate { a, activation, out, rows: 59 }).unwrap();
            all.extend(contents(dev, out, 60 * 70));
            dev.map(&Map::Activate { a: out, activation, out, rows: 30 }).unwrap();
            all.extend(contents(dev, out, 60 * 70));
        }
        all
    };
    let expected = run(&mut reference(false));
    let Some(mut dev) = gpu(false, "") else { return };
    let apart = distance(&expected, &run(&mut dev));
    assert!(apart < 5e-6, "{apart}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(mut dev) = gpu(false, "") else { return };
    let shape =
        DeltaShape { key_heads: 1, value_heads: 2, key_dim: 16, value_dim: 16, sharing: KeyHeads::Grouped };
    let delta = Delta::new(&mut dev, shape);
    for seqs in
        [vec![seq(0, 1, 0, SLOTS)], vec![seq(0, 1, 0, 0), seq(1, 1, 0, 0)], vec![seq(0, ROWS + 1, 0, 0)]]
    {
        assert!(matches!(delta.run(&mut dev, &seqs), Err(ComputeError::Shape { .. })), "{seqs:?}");
    }
    let wide = Delta { shape: DeltaShape { key_dim: 20, ..shape }, ..delta };
    assert!(matches!(wide.run(&mut dev, &[]), Err(ComputeError::Shape { .. })));
    let shape = SsmShape { heads: 4, head_dim: 16, state_dim: 16, groups: 2 };
    let ssm = Ssm::new(&mut dev, shape, [0.0, f32::INFINITY]);
    let wrong = Ssm { shape: SsmShape { groups: 3, ..shape }, ..ssm };
    assert!(matches!(wrong.run(&mut dev, &[]), Err(ComputeError::Shape { .. })));
}
