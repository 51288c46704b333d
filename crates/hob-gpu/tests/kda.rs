//! The delta rule whose state fades by channel of the key, against the oracle in both forms.

mod common;

use common::floats::vector;
use common::{TIERS, buffer, contents, distance, gpu, reference, values};
use hob_compute::{Compute, DeltaNet, DeltaShape, KeyHeads, Memory, SlotRows};

const ROWS: usize = 120;
const SLOTS: usize = 2;

fn run(dev: &mut dyn Compute, shape: DeltaShape) -> Vec<Vec<f32>> {
    let heads = shape.value_heads;
    // From heads that keep most to heads that keep nothing.
    let rates = (0..heads).map(|h| -0.02 - 40.0 * h as f32).collect();
    let [rate, bias, norm] =
        [rates, values(1, heads * shape.key_dim), values(2, shape.value_dim)].map(|v| vector(dev, &v));
    let mut seed = 2;
    let [qkv, z, beta, decay] =
        [shape.channels(), shape.width(), heads, heads * shape.key_dim].map(|width| {
            seed += 1;
            buffer(dev, ROWS, width, &values(seed, ROWS * width))
        });
    let state = buffer(dev, SLOTS, shape.state(), &values(9, SLOTS * shape.state()));
    let memory = Memory::plain(state);
    let (out, eps) = (dev.alloc(ROWS, shape.width()).expect("room"), 1e-6);
    let seq = SlotRows::new;
    let mut all = Vec::new();
    for seqs in [
        vec![seq(0, 3, 0, 1), seq(5, 1, 700, 0)],
        vec![seq(1, 90, 3, 1), seq(101, 1, 701, 0)],
        vec![seq(0, 64, 0, 0), seq(64, 1, 93, 1)],
    ] {
        let seqs = &seqs;
        dev.delta_net(&DeltaNet { shape, qkv, z, beta, decay, rate, bias, norm, eps, memory, seqs, out })
            .expect("it runs");
        all.push(contents(dev, out, ROWS * shape.width()));
        all.push(contents(dev, state, SLOTS * shape.state()));
    }
    all
}

#[test]
fn channels_that_fade_by_themselves_equal_the_oracle() {
    for (key_dim, value_dim, off) in [(128, 32, TIERS[0]), (16, 48, TIERS[3])] {
        let shape =
            DeltaShape { key_heads: 1, value_heads: 2, key_dim, value_dim, sharing: KeyHeads::Grouped };
        let expected = run(&mut reference(false), shape);
        assert!(expected.iter().flatten().all(|x| x.is_finite()));
        let Some(mut dev) = gpu(false, off) else { return };
        for (i, (expected, found)) in expected.iter().zip(run(&mut dev, shape)).enumerate() {
            let apart = distance(expected, &found);
            assert!(apart < 2e-4, "{shape:?}, without '{off}', result {i}: {apart}");
        }
    }
}
