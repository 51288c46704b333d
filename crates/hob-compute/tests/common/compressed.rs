//! Compressed attention and hyper-connections on any device, whose state begins with anything. Included by the tests of every
//! device.

use hob_compute::*;
use hob_testkit::rng::Rng;

use super::vector;

pub fn values(seed: u64, n: usize) -> Vec<f32> {
    Rng::new(seed).normal_vec(n, 1.0)
}

pub fn filled(dev: &mut dyn Compute, rows: usize, width: usize, data: &[f32]) -> Buf {
    let buf = dev.alloc(rows, width).expect("room");
    dev.upload(buf, 0, data).expect("it fits");
    buf
}

/// Sizes of a layer.
#[derive(Copy, Clone, Debug)]
pub struct Sizes {
    ratio: usize,
    overlapped: bool,
    pub dim: usize,
    pub heads: usize,
    window: usize,
    /// Of the indexer, which a layer without overlap does not have.
    index: [usize; 3],
    rotary: usize,
}

pub const ALL: [Sizes; 3] = [
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
pub struct Layer {
    sizes: Sizes,
    pub shape: CompressShape,
    pub bias: Weight,
    pub norm: Weight,
    sinks: Weight,
    pub rotation: Rotation,
    pub recent: Buf,
    pub entries: Buf,
    pub window: Buf,
    /// kv, gate, q, own kv, q of the indexer, its weights.
    pub inputs: [Buf; 6],
    chosen: Buf,
    pub out: Buf,
}

impl Layer {
    pub fn new(dev: &mut dyn Compute, sizes: Sizes) -> Layer {
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
            bias: vector(dev, &values(1, ratio * width)),
            norm: vector(dev, &values(2, dim)),
            sinks: vector(dev, &values(3, heads)),
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
    pub fn run(&self, dev: &mut dyn Compute, seqs: &[SlotRows]) -> Vec<f32> {
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

pub fn seq(row: usize, rows: usize, position: usize, slot: usize) -> SlotRows {
    SlotRows::new(row, rows, position, slot)
}

/// Sequences that begin, go on, and end at any place of a block, alone and together.
const BATCHES: [&[(usize, usize, usize, usize)]; 4] = [
    &[(0, 61, 0, 2), (61, 3, 0, 0)],
    &[(0, 1, 61, 2), (1, 1, 3, 0), (2, 128, 0, 1)],
    &[(5, 7, 62, 2), (20, 40, 4, 0)],
    &[(0, 1, 69, 2), (1, 1, 44, 0), (2, 1, 128, 1)],
];

pub fn batches(dev: &mut dyn Compute, sizes: Sizes) -> Vec<f32> {
    let layer = Layer::new(dev, sizes);
    let batches = BATCHES.iter().map(|batch| batch.iter().map(|&(a, b, c, d)| seq(a, b, c, d)).collect());
    batches.flat_map(|seqs: Vec<SlotRows>| layer.run(dev, &seqs)).collect()
}

/// Streams mixed and spread, with weights and without.
pub fn hyper(dev: &mut dyn Compute, streams: usize, dim: usize, rows: usize) -> Vec<f32> {
    let mut any = |seed, width: usize| filled(dev, rows + 1, width, &values(seed, (rows + 1) * width));
    let (wide, each) = (streams * (2 + streams), streams * (1 + streams));
    let (x, y, logits, few) = (any(1, streams * dim), any(2, dim), any(3, wide), any(4, streams));
    let (out, weights) = (any(5, dim), any(6, each));
    let [base, scale] = [values(7, wide), values(8, 3)].map(|v| vector(dev, &v));
    let [head_base, head_scale] = [values(9, streams), values(10, 1)].map(|v| vector(dev, &v));
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
