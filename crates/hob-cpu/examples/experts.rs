//! Measures one layer's mixture in the shape of Qwen3-30B-A3B (128 experts of 768, 8 per row, width 2048), in turn with
//! a `linear` that reads as many bytes: the two should take the same time while rows are few.
//!
//! `cargo run --release -p hob-cpu --example experts [threads [rows [experts|linear|both [format]]]]`

use std::sync::Arc;
use std::time::{Duration, Instant};

use hob_compute::{
    Activation, Buf, ByteSource, Combine, Compute, ComputeError, Experts, Linear, Product, Weight,
    WeightKind, WeightSpec,
};
use hob_cpu::{Cpu, CpuConfig};
use hob_quant::Format;

const COUNT: usize = 128;
const TOP_K: usize = 8;
const DIM: usize = 2048;
const FF: usize = 768;
/// Matrices of the `linear`, so that none stays in a cache.
const TURNS: usize = 8;

/// Random bytes whose scales, wherever they stand, stay small: the exponents' upper bits are cleared.
struct Noise {
    len: u64,
    seed: u64,
}

impl ByteSource for Noise {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        for (i, b) in buf.iter_mut().enumerate() {
            let x = (offset + i as u64).wrapping_add(self.seed << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            *b = (x >> 56) as u8 & 0x3f;
        }
        Ok(())
    }
}

fn load(
    dev: &mut Cpu,
    format: Format,
    kind: WeightKind,
    [rows, cols]: [usize; 2],
) -> Result<Weight, ComputeError> {
    let spec = WeightSpec { name: "noise".into(), kind, format, rows, cols };
    let len = spec.file_bytes().unwrap_or(0);
    dev.load(&spec, Arc::new(Noise { len, seed: rows as u64 }))
}

struct Bench {
    dev: Cpu,
    rows: usize,
    x: Buf,
    routes: Buf,
    hidden: Buf,
    out: Buf,
    wide: Buf,
    experts: [Weight; 3],
    matrices: Vec<Weight>,
    turn: usize,
}

impl Bench {
    fn new(threads: usize, rows: usize, format: Format) -> Result<Bench, ComputeError> {
        let mut dev = Cpu::new(&CpuConfig { threads, ..CpuConfig::default() })?;
        let stack = WeightKind::Experts { count: COUNT };
        let gate = load(&mut dev, format, stack, [COUNT * FF, DIM])?;
        let up = load(&mut dev, format, stack, [COUNT * FF, DIM])?;
        let down = load(&mut dev, format, stack, [COUNT * DIM, FF])?;
        let height = TOP_K * 3 * FF;
        let one = |_| load(&mut dev, format, WeightKind::Matrix, [height, DIM]);
        let matrices = (0..TURNS).map(one).collect::<Result<_, _>>()?;
        let x = dev.alloc(rows, DIM)?;
        let values: Vec<f32> = (0..rows * DIM).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
        dev.upload(x, 0, &values)?;
        let (routes, hidden) = (dev.alloc(rows, 2 * TOP_K)?, dev.alloc(rows * TOP_K, FF)?);
        let (out, wide) = (dev.alloc(rows, DIM)?, dev.alloc(rows, height)?);
        let experts = [gate, up, down];
        Ok(Bench { dev, rows, x, routes, hidden, out, wide, experts, matrices, turn: 0 })
    }

    /// Other experts in every turn.
    fn experts(&mut self) -> Result<(), ComputeError> {
        self.turn += 1;
        for r in 0..self.rows {
            let id = |i: usize| (self.turn * 37 + r * 11 + i * 16) % COUNT;
            let mut ids: Vec<usize> = (0..TOP_K).map(id).collect();
            ids.sort_unstable();
            let route: Vec<f32> = ids.iter().map(|&e| e as f32).chain([0.125; TOP_K]).collect();
            self.dev.upload(self.routes, r, &route)?;
        }
        let [gate, up, down] = self.experts;
        let &mut Bench { rows, x, routes, hidden, out, .. } = self;
        let (top_k, activation, add) = (TOP_K, Activation::Silu, false);
        let (gate, biases) = (Some(gate), None);
        let args = Experts { x, rows, routes, top_k, gate, up, down, biases, activation, hidden, out, add };
        self.dev.experts(&args)
    }

    fn linear(&mut self) -> Result<(), ComputeError> {
        self.turn += 1;
        let weight = self.matrices[self.turn % TURNS];
        let products = [Product { weight, bias: None, out: self.wide }];
        let (x, rows, combine) = (self.x, self.rows, Combine::Store);
        self.dev.linear(&Linear { x, first_row: 0, rows, products: &products, combine })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, or: usize| args.get(i).map_or(Ok(or), |a| a.parse());
    let (threads, rows) = (number(0, 1)?, number(1, 1)?);
    let what = args.get(2).map_or("both", String::as_str);
    let format = args.get(3).map_or(Some(Format::Q4_0), |name| Format::from_name(name));
    let mut bench = Bench::new(threads, rows, format.ok_or("no such format")?)?;
    let mut best = [Duration::MAX; 2];
    for round in 0..if rows > 16 { 6 } else { 100 } {
        for (i, name) in
            ["experts", "linear"].into_iter().enumerate().filter(|(_, n)| what == "both" || what == *n)
        {
            let start = Instant::now();
            if name == "experts" {
                bench.experts()?
            } else {
                bench.linear()?
            }
            // The first rounds touch scratch for the first time.
            if round > 1 {
                best[i] = best[i].min(start.elapsed());
            }
        }
    }
    let macs = (rows * TOP_K * 3 * FF * DIM) as f64;
    for (best, name) in best.into_iter().zip(["experts", "linear"]).filter(|(b, _)| *b < Duration::MAX) {
        let gmacs = macs / best.as_secs_f64() / 1e9;
        println!("{name}: {:.0} us, {gmacs:.1} GMAC/s", best.as_secs_f64() * 1e6);
    }
    Ok(())
}
