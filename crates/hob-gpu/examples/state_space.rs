//! Measures the selective state space in the shape of Nemotron 3 Nano (64 heads of 64 x 128 in 8 groups), 46 layers in turn,
//! so that states come from memory: decoding of some sequences, prompts in one go, and where the time goes.
//!
//! `HOB_TEST_ADAPTER` picks the adapter. Arguments: seconds per measurement, rows of prompts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use hob_compute::{
    Buf, ByteSource, Compute, Memory, SlotRows, SsmScan, SsmShape, Weight, WeightKind, WeightSpec,
};
use hob_gpu::{Gpu, GpuConfig};
use hob_quant::Format;

const SHAPE: SsmShape = SsmShape { heads: 64, head_dim: 64, state_dim: 128, groups: 8 };
const LAYERS: usize = 46;
const SLOTS: usize = 16;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// One value, over and over.
struct Same(f32, u64);

impl ByteSource for Same {
    fn len(&self) -> u64 {
        self.1
    }

    fn read_at(&self, _: u64, buf: &mut [u8]) -> std::io::Result<()> {
        buf.as_chunks_mut::<4>().0.iter_mut().for_each(|b| *b = self.0.to_le_bytes());
        Ok(())
    }
}

struct Bench {
    dev: Gpu,
    vectors: [Weight; 4],
    /// x, B and C; z; dt; the output.
    bufs: [Buf; 4],
    states: Vec<Buf>,
}

impl Bench {
    fn new(mut dev: Gpu, rows: usize) -> Fallible<Bench> {
        let heads = SHAPE.heads;
        let mut vectors = Vec::new();
        for (value, cols) in [(-0.1, heads), (-1.0, heads), (1.0, heads), (1.0, SHAPE.width())] {
            let (kind, format) = (WeightKind::Vector, Format::F32);
            let spec = WeightSpec { name: "vector".into(), kind, format, rows: 1, cols };
            vectors.push(dev.load(&spec, Arc::new(Same(value, 4 * cols as u64)))?);
        }
        let mut bufs = Vec::new();
        for width in [SHAPE.channels(), SHAPE.width(), heads, SHAPE.width()] {
            let buf = dev.alloc(rows, width)?;
            let noise = |i: usize| ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 8e6 - 1.0;
            dev.upload(buf, 0, &(0..rows * width).map(noise).collect::<Vec<_>>())?;
            bufs.push(buf);
        }
        let states = (0..LAYERS).map(|_| dev.alloc(SLOTS, SHAPE.state())).collect::<Result<_, _>>()?;
        let vectors = vectors.try_into().map_err(|_| "four vectors")?;
        let bufs = bufs.try_into().map_err(|_| "four buffers")?;
        Ok(Bench { dev, vectors, bufs, states })
    }

    fn run(&mut self, layer: usize, seqs: &[SlotRows]) -> Fallible<()> {
        let ([rate, bias, skip, norm], [xbc, z, dt, out]) = (self.vectors, self.bufs);
        let (state, shape, eps, limit) = (self.states[layer % LAYERS], SHAPE, 1e-5, [0.0, f32::INFINITY]);
        let args = SsmScan {
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
        };
        Ok(self.dev.ssm_scan(&args)?)
    }

    /// Microseconds of a layer; the clocks are warm when the best round is counted.
    fn time(&mut self, seconds: f64, seqs: &[SlotRows]) -> Fallible<f64> {
        let (begin, mut best, mut one) = (Instant::now(), f64::INFINITY, [0f32]);
        while begin.elapsed().as_secs_f64() < seconds {
            let start = Instant::now();
            let rounds = 2 * LAYERS;
            (0..rounds).try_for_each(|layer| self.run(layer, seqs))?;
            self.dev.download(self.bufs[3], 0, &mut one)?;
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
        self.dev.download(self.bufs[3], 0, &mut [0f32])?;
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
    let adapter = std::env::var("HOB_TEST_ADAPTER").ok().and_then(|v| v.parse().ok()).unwrap_or(0);
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
