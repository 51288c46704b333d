//! What remembers in fixed size, against the oracle: the gated delta rule in both forms, plain convolutions, and gates,
//! over several calls on every tier.

mod common;

use std::sync::Arc;

use common::{TIERS, buffer, contents, distance, gpu, reference, values};
use hob_compute::{
    Buf, ByteSource, Compute, ComputeError, ConvForm, DeltaNet, DeltaShape, KeyHeads, Map, ShortConv,
    SlotRows, Weight, WeightKind, WeightSpec,
};
use hob_quant::Format;

struct Floats(Vec<f32>);

impl ByteSource for Floats {
    fn len(&self) -> u64 {
        4 * self.0.len() as u64
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|v| v.to_le_bytes()).collect();
        buf.copy_from_slice(&bytes[offset as usize..][..buf.len()]);
        Ok(())
    }
}

fn vector(dev: &mut dyn Compute, data: Vec<f32>) -> Weight {
    let (kind, format, cols) = (WeightKind::Vector, Format::F32, data.len());
    let spec = WeightSpec { name: "vector".into(), kind, format, rows: 1, cols };
    dev.load(&spec, Arc::new(Floats(data))).expect("a vector loads")
}

fn seq(row: usize, rows: usize, position: usize, slot: usize) -> SlotRows {
    SlotRows { row, rows, position, slot }
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
        let vectors = [rates, values(1, heads), values(2, shape.value_dim)].map(|v| vector(dev, v));
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
        dev.delta_net(&DeltaNet { shape, qkv, z, beta, decay, rate, bias, norm, eps: 1e-6, state, seqs, out })
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
        let weight = vector(dev, values(1, dim * taps));
        let state = buffer(dev, slots, (taps - 1) * dim, &values(2, slots * (taps - 1) * dim));
        let x = buffer(dev, 60, dim, &values(3, 60 * dim));
        let out = dev.alloc(60, dim).unwrap();
        let mut all = Vec::new();
        for seqs in [vec![seq(0, 1, 0, 2), seq(1, 2, 7, 0)], vec![seq(3, 40, 1, 2), seq(50, 1, 9, 0)]] {
            dev.short_conv(&ShortConv { form: ConvForm::Silu, x, taps: weight, state, seqs: &seqs, out })
                .unwrap();
            all.extend(contents(dev, out, 60 * dim));
            all.extend(contents(dev, state, slots * (taps - 1) * dim));
        }
        for width in [dim, 1] {
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
}
