//! Short convolutions of both forms, the gated delta rule and the selective state space against the oracle, bit by bit,
//! and against themselves in other batches.

mod common;

use common::{buffer, classes, contents, cpu, same_bits, weight};
use hob_compute::reference::Reference;
use hob_compute::{
    Activation, Buf, Compute, ComputeError, ConvForm, DeltaNet, DeltaShape, KeyHeads, Map, Memory, ShortConv,
    SlotRows, SsmScan, SsmShape, Weight, WeightKind,
};
use hob_quant::Format;
use hob_testkit::rng::Rng;

const SLOTS: usize = 3;

fn seq(row: usize, rows: usize, position: usize, slot: usize) -> SlotRows {
    SlotRows::new(row, rows, position, slot)
}

fn shape(
    key_heads: usize,
    value_heads: usize,
    key_dim: usize,
    value_dim: usize,
    sharing: KeyHeads,
) -> DeltaShape {
    DeltaShape { key_heads, value_heads, key_dim, value_dim, sharing }
}

/// A device with one layer's delta rule and some slots, which begin with anything.
struct Delta {
    dev: Box<dyn Compute>,
    shape: DeltaShape,
    rate: Weight,
    bias: Weight,
    norm: Weight,
    state: Buf,
}

/// Rows of q, k, v, then z, beta, decay.
type Inputs = [Vec<f32>; 4];

fn inputs(seed: u64, shape: &DeltaShape, rows: usize) -> Inputs {
    let mut rng = Rng::new(seed);
    [shape.channels(), shape.width(), shape.value_heads, shape.value_heads]
        .map(|w| rng.normal_vec(rows * w, 1.0))
}

fn rows_of(inputs: &Inputs, shape: &DeltaShape, range: std::ops::Range<usize>) -> Inputs {
    let widths = [shape.channels(), shape.width(), shape.value_heads, shape.value_heads];
    let mut parts = inputs.clone();
    for (part, width) in parts.iter_mut().zip(widths) {
        *part = part[range.start * width..range.end * width].to_vec();
    }
    parts
}

impl Delta {
    fn new(mut dev: impl Compute + 'static, shape: DeltaShape) -> Self {
        let heads = shape.value_heads;
        let mut vector = |seed, len| weight(&mut dev, seed, WeightKind::Vector, Format::F32, 1, len);
        let (bias, norm) = (vector(2, heads), vector(3, shape.value_dim));
        let rates: Vec<u8> = (0..heads).flat_map(|h| (-0.05 - 0.7 * h as f32).to_le_bytes()).collect();
        let spec = hob_compute::WeightSpec {
            name: "rate".into(),
            kind: WeightKind::Vector,
            format: Format::F32,
            rows: 1,
            cols: heads,
        };
        let rate =
            dev.load(&spec, std::sync::Arc::new(common::Bytes { bytes: rates, mapped: true })).unwrap();
        let state = buffer(&mut dev, shape.state(), &Rng::new(7).normal_vec(SLOTS * shape.state(), 1.0));
        Delta { dev: Box::new(dev), shape, rate, bias, norm, state }
    }

    fn run(&mut self, inputs: &Inputs, seqs: &[SlotRows]) -> Result<Vec<f32>, ComputeError> {
        let (shape, dev) = (self.shape, self.dev.as_mut());
        let rows = inputs[2].len() / shape.value_heads;
        let qkv = buffer(dev, shape.channels(), &inputs[0]);
        let z = buffer(dev, shape.width(), &inputs[1]);
        let [beta, decay] = [&inputs[2], &inputs[3]].map(|x| buffer(dev, shape.value_heads, x));
        let out = dev.alloc(rows, shape.width())?;
        let &mut Delta { rate, bias, norm, state, .. } = self;
        let dev = self.dev.as_mut();
        dev.delta_net(&DeltaNet {
            shape,
            qkv,
            z,
            beta,
            decay,
            rate,
            bias,
            norm,
            eps: 1e-6,
            memory: Memory::plain(state),
            seqs,
            out,
        })?;
        Ok(contents(dev, out, rows * shape.width()))
    }

    fn state(&mut self) -> Vec<f32> {
        contents(self.dev.as_mut(), self.state, SLOTS * self.shape.state())
    }
}

#[test]
fn the_delta_rule_is_the_oracles_also_in_ragged_batches() {
    let batches = [
        vec![seq(0, 150, 0, 1)],
        vec![seq(0, 1, 0, 0), seq(1, 7, 150, 1), seq(8, 20, 0, 2)],
        vec![seq(0, 1, 1, 0), seq(1, 1, 157, 1), seq(2, 45, 20, 2)],
        // A gap in the rows, a slot that starts anew, a sequence without rows.
        vec![seq(1, 17, 0, 1), seq(20, 0, 3, 2), seq(21, 63, 2, 0)],
    ];
    for shape in [
        shape(2, 4, 16, 16, KeyHeads::Grouped),
        shape(2, 4, 32, 16, KeyHeads::Tiled),
        shape(3, 3, 16, 48, KeyHeads::Grouped),
        shape(1, 2, 128, 128, KeyHeads::Tiled),
    ] {
        let scenario = |mut dev: Delta| {
            let mut all = Vec::new();
            for (i, seqs) in batches.iter().enumerate() {
                let rows = seqs.iter().map(|s| s.row + s.rows).max().unwrap();
                all.extend(dev.run(&inputs(i as u64, &shape, rows), seqs).unwrap());
                all.extend(dev.state());
            }
            all
        };
        let expected = scenario(Delta::new(Reference::new(false), shape));
        assert!(expected.iter().all(|x| x.is_finite()));
        for isa in classes() {
            for threads in [1, 3] {
                let found = scenario(Delta::new(cpu(isa, threads, false), shape));
                same_bits(&format!("{shape:?}, {isa}, {threads} threads"), &expected, &found);
            }
        }
    }
}

/// Cut at multiples of a chunk: the same bits. Cut anywhere: within rounding, also row by row.
#[test]
fn batches_of_a_prompt_change_nothing() {
    const ROWS: usize = 200;
    let shape = shape(2, 4, 32, 32, KeyHeads::Grouped);
    let inputs = inputs(1, &shape, ROWS);
    for isa in classes() {
        let whole = Delta::new(cpu(isa, 2, false), shape).run(&inputs, &[seq(0, ROWS, 0, 2)]).unwrap();
        let scale = whole.iter().fold(0f32, |m, x| m.max(x.abs()));
        for step in [64, 128, 1, 7, 50, 199] {
            let (mut dev, mut cut) = (Delta::new(cpu(isa, 2, false), shape), Vec::new());
            for at in (0..ROWS).step_by(step) {
                let rows = step.min(ROWS - at);
                let part = rows_of(&inputs, &shape, at..at + rows);
                cut.extend(dev.run(&part, &[seq(0, rows, at, 2)]).unwrap());
            }
            if step.is_multiple_of(DeltaNet::CHUNK) {
                same_bits(&format!("{isa}, batches of {step}"), &whole, &cut);
            }
            let apart = whole.iter().zip(&cut).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(apart < 2e-5 * scale, "{isa}, batches of {step}: {apart} of {scale}");
        }
    }
}

#[test]
fn plain_convolutions_are_the_oracles() {
    const DIM: usize = 72;
    let batches = [
        vec![seq(0, 1, 0, 0), seq(1, 7, 300, 1), seq(8, 30, 0, 2)],
        vec![seq(0, 1, 1, 0), seq(1, 1, 307, 1), seq(3, 2, 30, 2)],
    ];
    for count in [2, 4] {
        let scenario = |dev: &mut dyn Compute| {
            let taps = weight(dev, 6, WeightKind::Vector, Format::F32, 1, DIM * count);
            let bias = weight(dev, 8, WeightKind::Vector, Format::F32, 1, DIM);
            let state =
                buffer(dev, DIM * (count - 1), &Rng::new(7).normal_vec(SLOTS * DIM * (count - 1), 1.0));
            let mut all = Vec::new();
            for (i, seqs) in batches.iter().enumerate() {
                let x = buffer(dev, DIM, &Rng::new(i as u64).normal_vec(40 * DIM, 2.0));
                let out = dev.alloc(40, DIM).unwrap();
                for bias in [None, Some(bias)] {
                    let (form, memory) = (ConvForm::Silu, Memory::plain(state));
                    dev.short_conv(&ShortConv { form, x, taps, bias, memory, seqs, out }).unwrap();
                    all.extend(contents(dev, out, 40 * DIM));
                }
                all.extend(contents(dev, state, SLOTS * DIM * (count - 1)));
            }
            all
        };
        common::agree(&format!("{count} taps"), false, scenario);
    }
}

#[test]
fn gates_are_the_oracles() {
    for (rows, width) in [(1, 16), (3, 1), (70, 100), (300, 130)] {
        for each in [1, width, if width % 5 == 0 { width / 5 } else { 1 }] {
            common::agree(&format!("{rows} x {width}, a gate for {each}"), false, |dev| {
                let normal = |seed, n| Rng::new(seed).normal_vec(n, 3.0);
                let a = buffer(dev, width, &normal(1, rows * width));
                let columns = width / each;
                let gate = buffer(dev, columns, &normal(2, rows * columns));
                let out = buffer(dev, width, &normal(3, rows * width));
                let mut all = Vec::new();
                for (a, add) in [(a, true), (a, false), (out, false)] {
                    dev.map(&Map::SigmoidGate { a, gate, out, add, rows }).unwrap();
                    all.extend(contents(dev, out, rows * width));
                }
                all
            });
        }
    }
}

/// A device with one layer's state space and some slots, which begin with anything.
struct Ssm {
    dev: Box<dyn Compute>,
    shape: SsmShape,
    limit: [f32; 2],
    /// Rate, bias, skip, norm.
    vectors: [Weight; 4],
    state: Buf,
}

/// Rows of x, B and C, then z, then dt.
fn ssm_inputs(seed: u64, shape: &SsmShape, rows: usize) -> [Vec<f32>; 3] {
    let mut rng = Rng::new(seed);
    [shape.channels(), shape.width(), shape.heads].map(|w| rng.normal_vec(rows * w, 1.0))
}

impl Ssm {
    fn new(mut dev: impl Compute + 'static, shape: SsmShape, limit: [f32; 2]) -> Self {
        let heads = shape.heads;
        // From heads that forget little to heads whose state underflows.
        let rates = (0..heads).flat_map(|h| (-0.05 - 9.0 * (h * h) as f32).to_le_bytes()).collect();
        let (kind, format) = (WeightKind::Vector, Format::F32);
        let spec = hob_compute::WeightSpec { name: "rate".into(), kind, format, rows: 1, cols: heads };
        let bytes = common::Bytes { bytes: rates, mapped: true };
        let rate = dev.load(&spec, std::sync::Arc::new(bytes)).unwrap();
        let mut vector = |seed, len| weight(&mut dev, seed, kind, format, 1, len);
        let vectors = [rate, vector(2, heads), vector(3, heads), vector(4, shape.width())];
        let state = buffer(&mut dev, shape.state(), &Rng::new(7).normal_vec(SLOTS * shape.state(), 1.0));
        Ssm { dev: Box::new(dev), shape, limit, vectors, state }
    }

    fn run(&mut self, inputs: &[Vec<f32>; 3], seqs: &[SlotRows]) -> Result<Vec<f32>, ComputeError> {
        let &mut Ssm { shape, limit, vectors: [rate, bias, skip, norm], state, .. } = self;
        let dev = self.dev.as_mut();
        let rows = inputs[2].len() / shape.heads;
        let xbc = buffer(dev, shape.channels(), &inputs[0]);
        let (z, dt) = (buffer(dev, shape.width(), &inputs[1]), buffer(dev, shape.heads, &inputs[2]));
        let (out, eps) = (dev.alloc(rows, shape.width())?, 1e-5);
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
        })?;
        Ok(contents(dev, out, rows * shape.width()))
    }

    fn state(&mut self) -> Vec<f32> {
        contents(self.dev.as_mut(), self.state, SLOTS * self.shape.state())
    }
}

const FREE: [f32; 2] = [0.0, f32::INFINITY];

#[test]
fn state_spaces_are_the_oracles_also_in_ragged_batches() {
    let batches = [
        vec![seq(0, 150, 0, 1)],
        vec![seq(0, 1, 0, 0), seq(1, 7, 150, 1), seq(8, 20, 0, 2)],
        vec![seq(0, 1, 1, 0), seq(1, 1, 157, 1), seq(2, 45, 20, 2)],
        // A gap in the rows, a slot that starts anew, a sequence without rows.
        vec![seq(1, 17, 0, 1), seq(20, 0, 3, 2), seq(21, 63, 2, 0)],
    ];
    let shape = |heads, head_dim, state_dim, groups| SsmShape { heads, head_dim, state_dim, groups };
    for (shape, limit) in [
        (shape(4, 16, 32, 2), FREE),
        (shape(3, 48, 16, 3), [0.1, 0.7]),
        (shape(6, 64, 128, 2), FREE),
        (shape(7, 32, 48, 1), FREE),
    ] {
        let scenario = |mut dev: Ssm| {
            let mut all = Vec::new();
            for (i, seqs) in batches.iter().enumerate() {
                let rows = seqs.iter().map(|s| s.row + s.rows).max().unwrap();
                all.extend(dev.run(&ssm_inputs(i as u64, &shape, rows), seqs).unwrap());
                all.extend(dev.state());
            }
            all
        };
        let expected = scenario(Ssm::new(Reference::new(false), shape, limit));
        assert!(expected.iter().all(|x| x.is_finite()));
        for isa in classes() {
            for threads in [1, 3] {
                let found = scenario(Ssm::new(cpu(isa, threads, false), shape, limit));
                same_bits(&format!("{shape:?}, {isa}, {threads} threads"), &expected, &found);
            }
        }
    }
}

/// Cut at multiples of a chunk: the same bits. Cut anywhere: within rounding, also row by row.
#[test]
fn batches_of_a_prompt_change_nothing_in_a_state_space() {
    const ROWS: usize = 200;
    let shape = SsmShape { heads: 4, head_dim: 32, state_dim: 64, groups: 2 };
    let inputs = ssm_inputs(1, &shape, ROWS);
    let widths = [shape.channels(), shape.width(), shape.heads];
    for isa in classes() {
        let whole = Ssm::new(cpu(isa, 2, false), shape, FREE).run(&inputs, &[seq(0, ROWS, 0, 2)]).unwrap();
        let scale = whole.iter().fold(0f32, |m, x| m.max(x.abs()));
        for step in [64, 128, 1, 7, 50, 199] {
            let (mut dev, mut cut) = (Ssm::new(cpu(isa, 2, false), shape, FREE), Vec::new());
            for at in (0..ROWS).step_by(step) {
                let rows = step.min(ROWS - at);
                let part = [0, 1, 2].map(|i| inputs[i][at * widths[i]..(at + rows) * widths[i]].to_vec());
                cut.extend(dev.run(&part, &[seq(0, rows, at, 2)]).unwrap());
            }
            if step.is_multiple_of(DeltaNet::CHUNK) {
                same_bits(&format!("{isa}, batches of {step}"), &whole, &cut);
            }
            let apart = whole.iter().zip(&cut).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(apart < 1e-5 * scale, "{isa}, batches of {step}: {apart} of {scale}");
        }
    }
}

#[test]
fn activations_are_the_oracles() {
    let clamped = Activation::ClampedSwiglu { alpha: 1.7, limit: 0.5, plus_one: true };
    for activation in [Activation::Silu, Activation::GeluTanh, clamped, Activation::ReluSquared] {
        common::agree(&format!("{activation:?}"), false, |dev| {
            let mut data = Rng::new(1).normal_vec(40 * 600, 3.0);
            data[..4].copy_from_slice(&[f32::NAN, -0.0, f32::INFINITY, f32::NEG_INFINITY]);
            let (a, out) = (buffer(dev, 600, &data), dev.alloc(40, 600).unwrap());
            dev.map(&Map::Activate { a, activation, out, rows: 39 }).unwrap();
            dev.map(&Map::Activate { a, activation, out: a, rows: 2 }).unwrap();
            let mut all = contents(dev, out, 40 * 600);
            all.extend(contents(dev, a, 40 * 600));
            // Which NaN it is, is not promised.
            all.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = f32::NAN);
            all
        });
    }
}

/// Runs on the oracle and the CPU, which must refuse alike.
fn refused(what: &str, shape: DeltaShape, seqs: &[SlotRows]) {
    let messages = [true, false].map(|oracle| {
        let mut dev = match oracle {
            true => Delta::new(Reference::new(false), shape),
            false => Delta::new(cpu(classes()[0], 1, false), shape),
        };
        dev.run(&inputs(1, &shape, 4), seqs).expect_err(what).to_string()
    });
    assert_eq!(messages[0], messages[1], "{what}");
}

#[test]
fn what_does_not_fit_is_an_error() {
    let fits = shape(2, 4, 16, 16, KeyHeads::Grouped);
    refused("heads in no groups", shape(3, 4, 16, 16, KeyHeads::Grouped), &[]);
    refused("a dimension between lanes", shape(2, 4, 24, 16, KeyHeads::Tiled), &[]);
    refused("a dimension too large", shape(1, 1, 16, 272, KeyHeads::Tiled), &[]);
    refused("a slot too many", fits, &[seq(0, 1, 0, SLOTS)]);
    refused("a slot twice", fits, &[seq(0, 1, 0, 0), seq(1, 1, 0, 0)]);
    refused("rows beyond the batch", fits, &[seq(0, 5, 0, 0)]);
    refused("rows that overlap", fits, &[seq(0, 2, 0, 0), seq(1, 1, 0, 1)]);
    let refused = |what: &str, shape: SsmShape, limit: [f32; 2], seqs: &[SlotRows]| {
        let messages = [true, false].map(|oracle| {
            let mut dev = match oracle {
                true => Ssm::new(Reference::new(false), shape, limit),
                false => Ssm::new(cpu(classes()[0], 1, false), shape, limit),
            };
            dev.run(&ssm_inputs(1, &shape, 4), seqs).expect_err(what).to_string()
        });
        assert_eq!(messages[0], messages[1], "{what}");
    };
    let fits = SsmShape { heads: 4, head_dim: 16, state_dim: 16, groups: 2 };
    refused("heads in no groups", SsmShape { groups: 3, ..fits }, FREE, &[]);
    refused("a dimension between lanes", SsmShape { head_dim: 24, ..fits }, FREE, &[]);
    refused("a state too large", SsmShape { state_dim: 272, ..fits }, FREE, &[]);
    refused("steps that grow the state", fits, [-1.0, 1.0], &[]);
    refused("no step", fits, [1.0, 0.5], &[]);
    refused("no number", fits, [0.0, f32::NAN], &[]);
    refused("a slot too many", fits, FREE, &[seq(0, 1, 0, SLOTS)]);
    refused("rows beyond the batch", fits, FREE, &[seq(0, 5, 0, 0)]);
    // The gate of a map is no operand of its own.
    for device in [&mut Reference::new(false) as &mut dyn Compute, &mut cpu(classes()[0], 1, false)] {
        let [a, gate] = [4, 3].map(|width| device.alloc(2, width).unwrap());
        device
            .map(&Map::SigmoidGate { a, gate, out: a, add: false, rows: 2 })
            .expect_err("a gate of another width");
        device.map(&Map::SigmoidGate { a, gate: a, out: a, add: false, rows: 2 }).expect_err("its own gate");
    }
}
