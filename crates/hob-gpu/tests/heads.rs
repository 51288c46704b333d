//! Norms and rotations of the heads of many new rows, which one kernel does at once where it can, against the oracle.

mod common;
#[path = "common/world.rs"]
mod world;

use common::floats::vector;
use common::{buffer, distance, gpu, reference, values};
use hob_compute::{Compute, HeadNorm, RopePairs, Rotation};
use hob_quant::KvFormat;
use world::{Of, World};

/// Rows of two sequences, behind others.
const RUNS: [(usize, std::ops::Range<usize>); 2] = [(0, 40..59), (1, 0..21)];

/// Attention of the new rows and what their pages hold, on a device.
fn new_rows(dev: &mut dyn Compute, of: Of, pairs: RopePairs, rotated: usize) -> (Vec<f32>, Vec<u8>) {
    let world = World::new(dev, of, &[59, 21]);
    world.append(dev, &[(0, 0..40)]);
    let norm = |dev: &mut dyn Compute, seed, groups| HeadNorm {
        weight: vector(dev, &values(seed, of.head_dim)),
        groups,
        eps: 1e-6,
    };
    let norms = Some([norm(dev, 9, of.heads), norm(dev, 11, of.kv_heads)]);
    let freqs: Vec<f32> = (0..rotated / 2).map(|i| 10f32.powf(-(i as f32) / 8.0)).collect();
    let freqs = buffer(dev, 1, freqs.len(), &freqs);
    let out = world.attend_new(dev, &RUNS, norms, Some(Rotation { freqs, pairs, magnitude: 1.1 }));
    (out, [world.images(dev, 0, 59), world.images(dev, 1, 21)].concat().concat())
}

#[test]
fn heads_of_many_new_rows_are_normed_rotated_stored_and_attended_to() {
    for (heads, kv_heads, head_dim, rotated, pairs) in [
        (10, 5, 64, 64, RopePairs::Half),
        (3, 3, 128, 128, RopePairs::Interleaved),
        (4, 2, 32, 32, RopePairs::Half),
        (4, 2, 96, 96, RopePairs::Half),
        (4, 2, 64, 32, RopePairs::Interleaved),
    ] {
        let of = Of::new(heads, kv_heads, head_dim, KvFormat::F16, KvFormat::F16);
        let Some(mut dev) = gpu(true, "") else { return };
        let (expected, stored) = new_rows(&mut reference(true), of, pairs, rotated);
        let (found, images) = new_rows(&mut dev, of, pairs, rotated);
        let away = distance(&expected, &found);
        assert!(away < 2e-5, "{heads} heads of {head_dim}, {rotated} rotated, {pairs:?}: {away}");
        // The last bits of a rotated value, one byte of four, may round the other way.
        let differ = stored.iter().zip(&images).filter(|(a, b)| a != b).count();
        assert!(stored.len() == images.len() && differ <= stored.len() / 10, "{differ} of {}", stored.len());
    }
}
