//! Measures the selective state space in the shape of Nemotron 3 Nano (64 heads of 64 x 128 in 8 groups): a prompt in one
//! call per layer, and token by token through all layers as decoding goes, so that every state comes from memory.
//!
//! `cargo run --release -p hob-cpu --example ssm [threads [layers [prompt]]]`

use std::sync::Arc;
use std::time::Instant;

use hob_compute::{
    Buf, ByteSource, Compute, ComputeError, Memory, SlotRows, SsmScan, SsmShape, Weight, WeightKind,
    WeightSpec,
};
use hob_cpu::{Cpu, CpuConfig};
use hob_quant::Format;

const SHAPE: SsmShape = SsmShape { heads: 64, head_dim: 64, state_dim: 128, groups: 8 };

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
    dev: Cpu,
    vectors: [Weight; 4],
    /// x, B and C; z; dt; the output.
    bufs: [Buf; 4],
    states: Vec<Buf>,
}

impl Bench {
    fn new(threads: usize, layers: usize, rows: usize) -> Result<Bench, ComputeError> {
        let mut dev = Cpu::new(&CpuConfig { threads, ..CpuConfig::default() })?;
        let mut vector = |value: f32, cols: usize| {
            let (kind, format) = (WeightKind::Vector, Format::F32);
            let spec = WeightSpec { name: "vector".into(), kind, format, rows: 1, cols };
            dev.load(&spec, Arc::new(Same(value, 4 * cols as u64)))
        };
        let heads = SHAPE.heads;
        let vectors =
            [vector(-0.1, heads)?, vector(-1.0, heads)?, vector(1.0, heads)?, vector(1.0, SHAPE.width())?];
        let mut bufs = Vec::new();
        for width in [SHAPE.channels(), SHAPE.width(), heads, SHAPE.width()] {
            let buf = dev.alloc(rows, width)?;
            let noise = |i: usize| ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 8e6 - 1.0;
            dev.upload(buf, 0, &(0..rows * width).map(noise).collect::<Vec<_>>())?;
            bufs.push(buf);
        }
        let states = (0..layers).map(|_| dev.alloc(1, SHAPE.state())).collect::<Result<_, _>>()?;
        let bufs = bufs.try_into().map_err(|_| ComputeError::shape("ssm", "4 buffers", "others"))?;
        Ok(Bench { dev, vectors, bufs, states })
    }

    fn run(&mut self, layer: usize, rows: usize, position: usize) -> Result<(), ComputeError> {
        let ([rate, bias, skip, norm], [xbc, z, dt, out]) = (self.vectors, self.bufs);
        let (state, seqs) = (self.states[layer], &[SlotRows::new(0, rows, position, 0)]);
        self.dev.ssm_scan(&SsmScan {
            shape: SHAPE,
            xbc,
            z,
            dt,
            rate,
            bias,
            skip,
            norm,
            eps: 1e-5,
            limit: [0.0, f32::INFINITY],
            memory: Memory::plain(state),
            seqs,
            out,
        })
    }
}

fn main() -> Result<(), ComputeError> {
    let args: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let (threads, layers) = (args.first().copied().unwrap_or(0), args.get(1).copied().unwrap_or(23));
    let prompt = args.get(2).copied().unwrap_or(4096);
    let mut bench = Bench::new(threads, layers, prompt)?;
    for layers in [1, layers] {
        // The least of some repetitions: others may be at work here.
        let mut best = [f64::INFINITY; 2];
        for _ in 0..5 {
            let start = Instant::now();
            (0..layers.min(4)).try_for_each(|layer| bench.run(layer, prompt, 0))?;
            best[0] = best[0].min(start.elapsed().as_secs_f64() / (layers.min(4) * prompt) as f64);
            let (start, tokens) = (Instant::now(), 128.max(600 / layers));
            for at in 0..tokens {
                (0..layers).try_for_each(|layer| bench.run(layer, 1, prompt + at))?;
            }
            best[1] = best[1].min(start.elapsed().as_secs_f64() / (layers * tokens) as f64);
        }
        let [chunked, recurrent] = best.map(|s| s * 1e6);
        let traffic = 2.0 * 4.0 * SHAPE.state() as f64 / recurrent / 1e3;
        println!(
            "{layers} layers: {chunked:.1} us a token and layer in one go, {recurrent:.1} one by one ({:.1}x; {traffic:.1} GB/s of state)",
            recurrent / chunked
        );
    }
    Ok(())
}
