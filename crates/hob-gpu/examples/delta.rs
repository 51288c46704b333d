//! Measures the gated delta rule in the shape of Qwen3.5-35B-A3B (16 key heads, 32 value heads of 128), 30 layers in turn,
//! so that states come from memory: decoding of some sequences, prompts in one go, and where the time goes.
//!
//! `HOB_TEST_ADAPTER` picks the adapter. Arguments: seconds per measurement, rows of prompts.

mod common;

use std::collections::BTreeMap;
use std::time::Instant;

use hob_compute::{Buf, Compute, DeltaNet, DeltaShape, KeyHeads, Memory, SlotRows, Weight};
use hob_gpu::{Gpu, GpuConfig};

const SHAPE: DeltaShape =
    DeltaShape { key_heads: 16, value_heads: 32, key_dim: 128, value_dim: 128, sharing: KeyHeads::Tiled };
const LAYERS: usize = 30;
const SLOTS: usize = 16;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

struct Bench {
    dev: Gpu,
    vectors: [Weight; 3],
    /// q, k and v; z; beta; decay; the output.
    bufs: [Buf; 5],
    states: Vec<Buf>,
}

impl Bench {
    fn new(mut dev: Gpu, rows: usize) -> Fallible<Bench> {
        let heads = SHAPE.value_heads;
        let mut vectors = Vec::new();
        for (value, cols) in [(-0.1, heads), (-1.0, heads), (1.0, SHAPE.value_dim)] {
            vectors.push(common::vector(&mut dev, value, cols)?);
        }
        let mut bufs = Vec::new();
        for width in [SHAPE.channels(), SHAPE.width(), heads, heads, SHAPE.width()] {
            let buf = dev.alloc(rows, width)?;
            let noise = |i: usize| ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 8e6 - 1.0;
            dev.upload(buf, 0, &(0..rows * width).map(noise).collect::<Vec<_>>())?;
            bufs.push(buf);
        }
        let states = (0..LAYERS).map(|_| dev.alloc(SLOTS, SHAPE.state())).collect::<Result<_, _>>()?;
        let vectors = vectors.try_into().map_err(|_| "three vectors")?;
        let bufs = bufs.try_into().map_err(|_| "five buffers")?;
        Ok(Bench { dev, vectors, bufs, states })
    }

    fn run(&mut self, layer: usize, seqs: &[SlotRows]) -> Fallible<()> {
        let ([rate, bias, norm], [qkv, z, beta, decay, out]) = (self.vectors, self.bufs);
        let (state, shape, eps) = (self.states[layer % LAYERS], SHAPE, 1e-6);
        Ok(self.dev.delta_net(&DeltaNet {
            shape,
            qkv,
            z,
            beta,
            decay,
            rate,
            bias,
            norm,
            eps,
            memory: Memory::plain(state),
            seqs,
            out,
        })?)
    }

    /// Microseconds of a layer; the clocks are warm when the best round is counted.
    fn time(&mut self, seconds: f64, seqs: &[SlotRows]) -> Fallible<f64> {
        let (begin, mut best, mut one) = (Instant::now(), f64::INFINITY, [0f32]);
        while begin.elapsed().as_secs_f64() < seconds {
            let start = Instant::now();
            let rounds = 2 * LAYERS;
            (0..rounds).try_for_each(|layer| self.run(layer, seqs))?;
            self.dev.download(self.bufs[4], 0, &mut one)?;
            best = best.min(start.elapsed().as_secs_f64() / rounds as f64);
        }
        Ok(best * 1e6)
    }

    /// Microseconds of a layer by kernel.
    fn parts(&mut self, seqs: &[SlotRows]) -> Fallible<String> {
        if !self.dev.profile(true) {
            return Ok("no timestamps".into());
        }
        (0..LAYERS).try_for_each(|layer| self.run(layer, seqs))?;
        self.dev.download(self.bufs[4], 0, &mut [0f32])?;
        let (mut spans, mut sums) = (Vec::new(), BTreeMap::new());
        self.dev.take_spans(&mut spans);
        for span in &spans {
            *sums.entry(span.detail.to_string()).or_insert(0.0) += span.nanos as f64 / 1e3;
        }
        self.dev.profile(false);
        let one = |(name, us): (&String, &f64)| format!("{name} {:.1}", us / LAYERS as f64);
        Ok(sums.iter().map(one).collect::<Vec<_>>().join(", "))
    }
}

fn main() -> Fallible<()> {
    let mut args = std::env::args().skip(1);
    let seconds: f64 = args.next().map_or(Ok(1.5), |s| s.parse())?;
    let prompts: Vec<usize> = match args.next() {
        Some(list) => list.split(',').map(str::parse).collect::<Result<_, _>>()?,
        None => vec![64, 512, 2048, 4096],
    };
    let adapter = common::adapter();
    let dev = Gpu::open(&GpuConfig { adapter, ..GpuConfig::default() })?;
    println!("{}", dev.facts().name);
    let most = prompts.iter().copied().max().unwrap_or(64).max(SLOTS);
    let mut bench = Bench::new(dev, most)?;
    for sequences in [1, 4, SLOTS] {
        let seqs: Vec<_> = (0..sequences).map(|s| SlotRows::new(s, 1, 100, s)).collect();
        let us = bench.time(seconds, &seqs)?;
        let bytes = (sequences * 2 * 4 * SHAPE.state()) as f64;
        println!(
            "1 row of {sequences}: {us:.2} us, {:.0} GB/s of state; {}",
            bytes / us / 1e3,
            bench.parts(&seqs)?
        );
    }
    for rows in prompts {
        let seqs = [SlotRows::new(0, rows, 0, 0)];
        let us = bench.time(seconds, &seqs)?;
        println!("{rows} rows: {us:.1} us, {:.3} a row; {}", us / rows as f64, bench.parts(&seqs)?);
    }
    Ok(())
}
