//! Hyper-connections and compressed attention against the oracle. Their kernels are the same on every tier.

mod common;

use std::sync::Arc;

use common::{contents, distance, gpu, reference, values};
use hob_compute::{
    AttendEntries, Buf, ByteSource, Compress, CompressShape, Compute, Entries, Gating, HyperExpand, HyperMix,
    Rope, RopePairs, Rotation, Route, Routing, Select, SlotRows, Weight, WeightKind, WeightSpec,
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

fn filled(dev: &mut dyn Compute, rows: usize, width: usize, data: &[f32]) -> Buf {
    common::buffer(dev, rows, width, data)
}

fn vector(dev: &mut dyn Compute, data: Vec<f32>) -> Weight {
    let (kind, format, cols) = (WeightKind::Vector, Format::F32, data.len());
    let spec = WeightSpec { name: "vector".into(), kind, format, rows: 1, cols };
    dev.load(&spec, Arc::new(Floats(data))).expect("a vector loads")
}

/// Sizes of a layer.
#[derive(Copy, Clone, Debug)]
struct Sizes {
    ratio: usize,
    overlapped: bool,
    dim: usize,
    heads: usize,
    window: usize,
    /// Of the indexer, which a layer without overlap does not have.
    index: [usize; 3],
    rotary: usize,
}

const ALL: [Sizes; 3] = [
    Sizes { ratio: 4, overlapped: true, dim: 48, heads: 6, window: 20, index: [18, 40, 5], rotary: 16 },
    Sizes { ratio: 32, overlapped: false, dim: 300, heads: 3, window: 9, index: [0; 3], rotary: 64 },
    Sizes { ratio: 2, overlapped: true, dim: 32, heads: 9, window: 70, index: [3, 130, 64], rotary: 32 },
];

const SLOTS: usize = 3;
const ROWS: usize = 130;
/// Entries of a sequence.
fn capacity(sizes: &Sizes) -> usize {
    400 / sizes.ratio
}

/// A layer on a device, whose state begins with anything.
struct Layer {
    sizes: Sizes,
    shape: CompressShape,
    bias: Weight,
    norm: Weight,
    sinks: Weight,
    rotation: Rotation,
    recent: Buf,
    entries: Buf,
    window: Buf,
    /// kv, gate, q, own kv, q of the indexer, its weights.
    inputs: [Buf; 6],
    chosen: Buf,
    out: Buf,
}

impl Layer {
    fn new(dev: &mut dyn Compute, sizes: Sizes) -> Layer {
        let Sizes { ratio, overlapped, dim, heads, window, index, rotary } = sizes;
        let shape = CompressShape { ratio, overlapped, dim };
        let width = shape.width();
        let (slack, [index_heads, _, top_k]) = (3, index);
        let any = |dev: &mut dyn Compute, seed, rows: usize, width: usize| {
            filled(dev, rows, width, &values(seed, rows * width))
        };
        let ring = (shape.span() + slack) * 2 * width;
        let widths = [width, width, heads * dim, dim, index_heads.max(1) * dim, index_heads.max(1)];
        let mut seed = 20;
        let inputs = widths.map(|width| {
            seed += 1;
            any(dev, seed, ROWS, width)
        });
        let frequencies: Vec<f32> = (0..rotary / 2).map(|i| 1.0 / (1.5 + i as f32)).collect();
        let freqs = filled(dev, 1, rotary / 2, &frequencies);
        Layer {
            sizes,
            shape,
            bias: vector(dev, values(1, ratio * width)),
            norm: vector(dev, values(2, dim)),
            sinks: vector(dev, values(3, heads)),
            rotation: Rotation { freqs, pairs: RopePairs::Interleaved, magnitude: 1.0 },
            recent: any(dev, 10, SLOTS, ring),
            entries: any(dev, 11, SLOTS * capacity(&sizes), dim),
            window: any(dev, 12, SLOTS, (window + slack) * dim),
            inputs,
            chosen: dev.alloc(ROWS, top_k.max(1)).unwrap(),
            out: dev.alloc(ROWS, heads * dim).unwrap(),
        }
    }

    /// Rows of some sequences; gives what is attended to, what was selected, and the entries.
    fn run(&self, dev: &mut dyn Compute, seqs: &[SlotRows]) -> Vec<f32> {
        let Sizes { ratio, dim, heads, window, index: [index_heads, _, top_k], .. } = self.sizes;
        let [kv, gate, q, own, index_q, weights] = self.inputs;
        let &Layer { shape, bias, norm, rotation, recent, entries, .. } = self;
        let eps = 1e-6;
        dev.compress(&Compress { shape, kv, gate, bias, norm, eps, rotation, recent, entries, seqs })
            .unwrap();
        let mut found = Vec::new();
        let mut chosen = None;
        if index_heads > 0 {
            let (capacity, out) = (capacity(&self.sizes), self.chosen);
            // Entries are as wide here as an indexer's own would be.
            let (heads, scale) = (index_heads, 0.1);
            dev.select(&Select { q: index_q, weights, heads, scale, entries, capacity, ratio, seqs, out })
                .unwrap();
            chosen = Some(out);
            for seq in seqs {
                let mut rows = vec![0f32; seq.rows * top_k];
                dev.download(out, seq.row, &mut rows).unwrap();
                found.extend(rows);
            }
        }
        dev.attend_entries(&AttendEntries {
            q,
            kv: own,
            heads,
            head_dim: dim,
            scale: 1.0 / (dim as f32).sqrt(),
            window,
            sinks: self.sinks,
            recent: self.window,
            entries: Some(Entries { entries, ratio, chosen }),
            seqs,
            out: self.out,
        })
        .unwrap();
        for seq in seqs {
            let mut rows = vec![0f32; seq.rows * heads * dim];
            dev.download(self.out, seq.row, &mut rows).unwrap();
            found.extend(rows);
            let made = (seq.position + seq.rows) / ratio;
            let mut rows = vec![0f32; made * dim];
            if made > 0 {
                dev.download(entries, seq.slot * capacity(&self.sizes), &mut rows).unwrap();
            }
            found.extend(rows);
        }
        found
    }
}

fn seq(row: usize, rows: usize, position: usize, slot: usize) -> SlotRows {
    SlotRows::new(row, rows, position, slot)
}

/// Sequences that begin, go on, and end at any place of a block, alone and together.
const BATCHES: [&[(usize, usize, usize, usize)]; 4] = [
    &[(0, 61, 0, 2), (61, 3, 0, 0)],
    &[(0, 1, 61, 2), (1, 1, 3, 0), (2, 128, 0, 1)],
    &[(5, 7, 62, 2), (20, 40, 4, 0)],
    &[(0, 1, 69, 2), (1, 1, 44, 0), (2, 1, 128, 1)],
];

fn batches(dev: &mut dyn Compute, sizes: Sizes) -> Vec<f32> {
    let layer = Layer::new(dev, sizes);
    let batches = BATCHES.iter().map(|batch| batch.iter().map(|&(a, b, c, d)| seq(a, b, c, d)).collect());
    batches.flat_map(|seqs: Vec<SlotRows>| layer.run(dev, &seqs)).collect()
}

/// Streams mixed and spread, with weights and without.
fn hyper(dev: &mut dyn Compute, streams: usize, dim: usize, rows: usize) -> Vec<f32> {
    let mut any = |seed, width: usize| filled(dev, rows + 1, width, &values(seed, (rows + 1) * width));
    let (wide, each) = (streams * (2 + streams), streams * (1 + streams));
    let (x, y, logits, few) = (any(1, streams * dim), any(2, dim), any(3, wide), any(4, streams));
    let (out, weights) = (any(5, dim), any(6, each));
    let [base, scale] = [values(7, wide), values(8, 3)].map(|v| vector(dev, v));
    let [head_base, head_scale] = [values(9, streams), values(10, 1)].map(|v| vector(dev, v));
    let (eps, iterations) = (1e-6, 20);
    let mut found = Vec::new();
    let mut take = |dev: &mut dyn Compute, buf, width: usize| {
        let mut all = vec![0f32; (rows + 1) * width];
        dev.download(buf, 0, &mut all).unwrap();
        found.extend(all);
    };
    let mix =
        HyperMix { x, rows, streams, logits, base, scale, eps, iterations, out, weights: Some(weights) };
    dev.hyper_mix(&mix).unwrap();
    take(dev, out, dim);
    take(dev, weights, each);
    dev.hyper_expand(&HyperExpand { y, rows, streams, weights: Some(weights), x }).unwrap();
    take(dev, x, streams * dim);
    let (logits, base, scale, weights) = (few, head_base, head_scale, None);
    dev.hyper_mix(&HyperMix { logits, base, scale, weights, ..mix }).unwrap();
    take(dev, out, dim);
    dev.hyper_expand(&HyperExpand { y, rows, streams, weights: None, x }).unwrap();
    take(dev, x, streams * dim);
    found
}

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
