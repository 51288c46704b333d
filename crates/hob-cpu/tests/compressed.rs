//! Hyper-connections and compressed attention against the oracle, bit by bit; against themselves in other batches; and what
//! does not fit.

mod common;

use common::{buffer, classes, contents, cpu, same_bits};
use hob_compute::reference::Reference;
use hob_compute::{
    AttendEntries, Buf, Compress, CompressShape, Compute, Entries, HyperExpand, HyperMix, RopePairs,
    Rotation, Select, SlotRows, Weight, WeightKind, WeightSpec,
};
use hob_quant::Format;
use hob_testkit::rng::Rng;

fn values(seed: u64, n: usize) -> Vec<f32> {
    Rng::new(seed).normal_vec(n, 1.0)
}

fn filled(dev: &mut dyn Compute, _rows: usize, width: usize, data: &[f32]) -> Buf {
    buffer(dev, width, data)
}

fn vector(dev: &mut dyn Compute, data: Vec<f32>) -> Weight {
    let (kind, format, cols) = (WeightKind::Vector, Format::F32, data.len());
    let spec = WeightSpec { name: "vector".into(), kind, format, rows: 1, cols };
    let bytes = data.iter().flat_map(|v| v.to_le_bytes()).collect();
    dev.load(&spec, std::sync::Arc::new(common::Bytes { bytes, mapped: false })).unwrap()
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
fn compressed_attention_is_the_oracles() {
    for sizes in ALL {
        let expected = batches(&mut Reference::new(false), sizes);
        for (name, mut dev) in every() {
            same_bits(&format!("{name}, {sizes:?}"), &expected, &batches(dev.as_mut(), sizes));
        }
    }
}

#[test]
fn hyper_connections_are_the_oracles() {
    for (streams, dim, rows) in [(4, 64, 1), (4, 1000, 7), (1, 3, 2), (8, 130, 70), (2, 4096, 3)] {
        let expected = hyper(&mut Reference::new(false), streams, dim, rows);
        for (name, mut dev) in every() {
            let found = hyper(dev.as_mut(), streams, dim, rows);
            same_bits(&format!("{name}, {streams} streams of {dim}, {rows} rows"), &expected, &found);
        }
    }
}

/// Devices of every class, with one thread and several.
fn every() -> Vec<(String, Box<dyn Compute>)> {
    let of = |isa, threads| -> (String, Box<dyn Compute>) {
        (format!("{isa:?}, {threads} threads"), Box::new(cpu(isa, threads, false)))
    };
    classes().into_iter().flat_map(|isa| [1, 3].map(|threads| of(isa, threads))).collect()
}

/// One row after the other gives what all at once give, and going back a few positions is as never having been there.
#[test]
fn pieces_and_returns_do_not_change_a_bit() {
    for sizes in ALL {
        let mut dev = Reference::new(false);
        let whole = Layer::new(&mut dev, sizes);
        whole.run(&mut dev, &[seq(0, 120, 0, 1)]);
        let width = sizes.heads * sizes.dim;
        let expected = contents(&mut dev, whole.out, 120 * width);
        let layer = Layer::new(&mut dev, sizes);
        let mut position = 0;
        for (rows, back) in [(1, 0), (50, 3), (2, 1), (1, 0), (7, 2), (1, 1), (64, 3), (3, 0)] {
            let rows = rows.min(120 - position);
            layer.run(&mut dev, &[seq(position, rows, position, 2)]);
            let found = contents(&mut dev, layer.out, 120 * width);
            let span = position * width..(position + rows) * width;
            same_bits(
                &format!("{sizes:?}, {rows} rows at {position}"),
                &expected[span.clone()],
                &found[span],
            );
            position = position + rows - back;
        }
    }
}

/// Equal scores go to the lowest entries, whatever their number; what is no number comes last.
#[test]
fn ties_go_to_the_lowest() {
    let mut devices: Vec<Box<dyn Compute>> = vec![Box::new(Reference::new(false))];
    devices.extend(every().into_iter().map(|(_, dev)| dev));
    for dev in &mut devices {
        let dev = dev.as_mut();
        // Of 100 entries all but 7 and 90 score 0; 50 is no number.
        let mut keys = vec![-1f32; 100 * 4];
        keys[7 * 4..8 * 4].fill(1.0);
        keys[90 * 4..91 * 4].fill(2.0);
        keys[50 * 4] = f32::NAN;
        let entries = buffer(dev, 4, &keys);
        let (q, weights) = (buffer(dev, 4, &[1.0; 4]), buffer(dev, 1, &[1.0]));
        let out = dev.alloc(1, 5).unwrap();
        let seqs = &[seq(0, 1, 199, 0)];
        let (heads, scale, capacity, ratio) = (1, 1.0, 100, 2);
        dev.select(&Select { q, weights, heads, scale, entries, capacity, ratio, seqs, out }).unwrap();
        assert_eq!(contents(dev, out, 5), [0.0, 1.0, 2.0, 7.0, 90.0]);
        let seqs = &[seq(0, 1, 5, 0)];
        dev.select(&Select { q, weights, heads, scale, entries, capacity, ratio, seqs, out }).unwrap();
        assert_eq!(contents(dev, out, 5), [0.0, 1.0, 2.0, -1.0, -1.0]);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut devices: Vec<Box<dyn Compute>> = vec![Box::new(Reference::new(false))];
    devices.push(Box::new(cpu(classes()[0], 1, false)));
    for dev in &mut devices {
        let dev = dev.as_mut();
        let layer = Layer::new(dev, ALL[0]);
        let [kv, gate, ..] = layer.inputs;
        let &Layer { shape, bias, norm, rotation, recent, entries, .. } = &layer;
        let args = |shape, recent, seqs| {
            let eps = 1e-6;
            Compress { shape, kv, gate, bias, norm, eps, rotation, recent, entries, seqs }
        };
        let one = [seq(0, 1, 0, 0)];
        let (far, strange, long) = ([seq(0, 8, 396, 0)], [seq(0, 1, 0, 3)], [seq(129, 2, 0, 0)]);
        let error = |e: hob_compute::Result<()>, what: &str| {
            let message = e.expect_err(what).to_string();
            assert!(message.contains(what), "{what}: {message}");
        };
        error(dev.compress(&args(CompressShape { ratio: 0, ..shape }, recent, &one)), "positions");
        error(dev.compress(&args(CompressShape { dim: 40, ..shape }, recent, &one)), "width");
        error(dev.compress(&args(shape, layer.window, &one)), "ring");
        error(dev.compress(&args(shape, recent, &far)), "room for 101");
        error(dev.compress(&args(shape, recent, &strange)), "slot");
        error(dev.compress(&args(shape, recent, &long)), "rows");
        let x = dev.alloc(2, 12).unwrap();
        let y = dev.alloc(2, 4).unwrap();
        let expand = |streams| HyperExpand { y, rows: 2, streams, weights: None, x };
        dev.hyper_expand(&expand(3)).expect("3 streams of 4");
        error(dev.hyper_expand(&expand(2)), "width");
        error(dev.hyper_expand(&expand(9)), "streams");
    }
}
