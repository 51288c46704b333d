//! Hyper-connections and compressed attention against the oracle. Their kernels are the same on every tier.

mod common;
#[path = "../../hob-compute/tests/common/compressed.rs"]
mod layer;

use common::floats::vector;
use common::{contents, distance, gpu, reference, values};
use hob_compute::*;
use layer::{ALL, batches, filled, hyper, seq};

#[test]
fn compressed_attention_equals_the_oracle() {
    for sizes in ALL {
        let expected = batches(&mut reference(false), sizes);
        for off in ["", "subgroups,f16,dot,coop"] {
            let Some(mut dev) = gpu(false, off) else { return };
            let apart = distance(&expected, &batches(&mut dev, sizes));
            println!("{sizes:?} without '{off}': {apart:.1e}");
            assert!(apart < 2e-5, "{sizes:?} without '{off}': {apart}");
        }
    }
}

#[test]
fn hyper_connections_equal_the_oracle() {
    for (streams, dim, rows) in [(4, 64, 1), (8, 1000, 7), (1, 3, 2)] {
        let expected = hyper(&mut reference(false), streams, dim, rows);
        for off in ["", "subgroups,f16,dot,coop"] {
            let Some(mut dev) = gpu(false, off) else { return };
            let apart = distance(&expected, &hyper(&mut dev, streams, dim, rows));
            assert!(apart < 5e-6, "{streams} streams of {dim} without '{off}': {apart}");
        }
    }
}

/// Thousands of entries, most of which score the same.
#[test]
fn the_selected_are_the_oracles_and_ties_go_to_the_lowest() {
    const ENTRIES: usize = 5000;
    let (heads, dim, top_k, rows) = (20, 32, 300, 20);
    let run = |dev: &mut dyn Compute| {
        // Few different keys, so that most scores are met many times.
        let kinds = values(1, 40 * dim);
        let keys: Vec<f32> = (0..ENTRIES).flat_map(|e| kinds[e * 7 % 40 * dim..][..dim].to_vec()).collect();
        let entries = filled(dev, ENTRIES, dim, &keys);
        let q = filled(dev, rows, heads * dim, &values(2, rows * heads * dim));
        let weights = filled(dev, rows, heads, &values(3, rows * heads));
        let out = dev.alloc(rows, top_k).unwrap();
        let seqs = &[seq(0, rows, 2 * ENTRIES - 2 * rows, 0)];
        let (scale, capacity, ratio) = (0.1, ENTRIES, 2);
        dev.select(&Select { q, weights, heads, scale, entries, capacity, ratio, seqs, out }).unwrap();
        contents(dev, out, rows * top_k)
    };
    let expected = run(&mut reference(false));
    for off in ["", "subgroups,f16,dot,coop"] {
        let Some(mut dev) = gpu(false, off) else { return };
        let found = run(&mut dev);
        for (row, (f, e)) in found.chunks(top_k).zip(expected.chunks(top_k)).enumerate() {
            assert!(f.is_sorted() && f.iter().all(|&id| id >= 0.0), "row {row}: {f:?}");
            // Kinds whose scores differ by less than rounding may change places, as whole kinds.
            let kinds = |ids: &[f32]| {
                let mut kinds: Vec<usize> = ids.iter().map(|&id| id as usize * 7 % 40).collect();
                kinds.sort_unstable();
                kinds
            };
            assert_eq!(kinds(f), kinds(e), "row {row} without '{off}'");
            assert_eq!(f, e, "row {row} without '{off}'");
        }
    }
}

#[test]
fn rotations_of_the_last_dimensions_and_back_equal_the_oracle() {
    let (heads, head_dim, rows) = (3, 80, 5);
    let run = |dev: &mut dyn Compute| {
        let x = filled(dev, rows, heads * head_dim, &values(1, rows * heads * head_dim));
        let freqs = filled(dev, 1, 16, &values(2, 16).iter().map(|f| f.abs()).collect::<Vec<_>>());
        let mut all = Vec::new();
        for back in [false, true] {
            for pairs in [RopePairs::Half, RopePairs::Interleaved] {
                let positions = &[0, 7, 5000, 131_071, 1];
                let (first, magnitude) = (48, 1.0);
                let args = Rope { x, heads, head_dim, first, back, positions, freqs, pairs, magnitude };
                dev.rope(&args).unwrap();
                all.extend(contents(dev, x, rows * heads * head_dim));
            }
        }
        all
    };
    let expected = run(&mut reference(false));
    // Back, by the same angles in the other order of pairs: what was there at first.
    let Some(mut dev) = gpu(false, "") else { return };
    let apart = distance(&expected, &run(&mut dev));
    assert!(apart < 5e-6, "{apart}");
}

#[test]
fn routes_to_given_experts_equal_the_oracle() {
    let (experts, rows, top_k) = (40, 7, 6);
    let run = |dev: &mut dyn Compute| {
        let logits = filled(dev, rows, experts, &values(1, rows * experts));
        let ids: Vec<f32> = (0..rows * top_k).map(|i| (i * 17 % experts) as f32).collect();
        let chosen = Some(filled(dev, rows, top_k, &ids));
        let out = dev.alloc(rows, 2 * top_k).unwrap();
        let (gating, normalize) = (Gating::SqrtSoftplus, Some(1e-20));
        let rule = Routing { top_k, gating, normalize, scale: 1.5, groups: None };
        dev.route(&Route { logits, rows, rule, bias: None, scales: None, chosen, out }).unwrap();
        contents(dev, out, rows * 2 * top_k)
    };
    let expected = run(&mut reference(false));
    let Some(mut dev) = gpu(false, "") else { return };
    let apart = distance(&expected, &run(&mut dev));
    assert!(apart < 5e-6, "{apart}");
}
