//! Time of `linear` on few rows: formats x shapes x rows, against what a plain reading kernel would allow.
//!
//! `gemv [FORMAT,.. [ROWSxCOLS,.. [COLUMNS,.. [gated]]]]`; the adapter is `HOB_TEST_ADAPTER` or the first. Weights are rotated
//! over more than 300 MB so that no cache serves them; a time is that of many calls between two waits.

use std::sync::Arc;
use std::time::Instant;

use hob_compute::{
    Activation, Buf, ByteSource, Combine, Compute, Linear, Product, Result, Weight, WeightKind, WeightSpec,
};
use hob_gpu::{Gpu, GpuConfig};
use hob_quant::Format;

/// Bytes over which weights are rotated.
const ROTATED: u64 = 300 << 20;

/// Any codes under scales that are numbers.
struct Random {
    bytes: u64,
}

impl ByteSource for Random {
    fn len(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let mut state = (offset + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        for bytes in buf.chunks_mut(4) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Bits 14 and 6 clear: an f16 here is below 2.
            let word = (state >> 32) as u32 & 0xBFBF_BFBF;
            bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
        }
        Ok(())
    }
}

struct Shape {
    format: Format,
    rows: usize,
    cols: usize,
}

fn load(gpu: &mut Gpu, shape: &Shape) -> Result<(Vec<Weight>, u64)> {
    let &Shape { format, rows, cols } = shape;
    let spec = WeightSpec { name: "w".into(), kind: WeightKind::Matrix, format, rows, cols };
    let bytes = spec.file_bytes().unwrap_or(u64::MAX);
    let count = ROTATED.div_ceil(bytes).max(2);
    let weights = (0..count).map(|_| gpu.load(&spec, Arc::new(Random { bytes }))).collect::<Result<_>>()?;
    Ok((weights, bytes))
}

/// Runs each weight in turn, `calls` times in all; seconds from the first call to the last result.
fn run(
    gpu: &mut Gpu,
    weights: &[Weight],
    (x, out): (Buf, Buf),
    (columns, calls, gated): (usize, usize, bool),
) -> Result<f64> {
    let start = Instant::now();
    for i in 0..calls {
        let product = |i: usize| Product { weight: weights[i % weights.len()], bias: None, out };
        let (pair, combine) = ([product(2 * i), product(2 * i + 1)], Combine::Gated(Activation::Silu));
        let (products, combine) = if gated { (&pair[..], combine) } else { (&pair[..1], Combine::Store) };
        gpu.linear(&Linear { x, first_row: 0, rows: columns, products, combine })?;
    }
    gpu.download(out, 0, &mut [0.0])?;
    Ok(start.elapsed().as_secs_f64())
}

fn list<T>(arg: Option<String>, default: &str, parse: impl Fn(&str) -> Option<T>) -> Vec<T> {
    let text = arg.unwrap_or(default.into());
    text.split(',').map(|t| parse(t).unwrap_or_else(|| panic!("what is '{t}'?"))).collect()
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let formats = list(args.next(), "Q4_0,Q4_K,Q6_K,Q8_0,F16", Format::from_name);
    let shapes = list(args.next(), "28672x8192,8192x8192,4096x4096", |t| {
        let (rows, cols) = t.split_once('x')?;
        Some((rows.parse().ok()?, cols.parse().ok()?))
    });
    let columns: Vec<usize> = list(args.next(), "1,2,4,8,16", |t| t.parse().ok());
    let adapter = std::env::var("HOB_TEST_ADAPTER").ok().and_then(|v| v.parse().ok()).unwrap_or(0);
    let mut gpu = Gpu::open(&GpuConfig { adapter, ..GpuConfig::default() })?;
    let read = gpu.probe()?.read_gb_per_s;
    println!(
        "{}; a reading kernel: {read:.0} GB/s; each: rows, time, GB/s, share of that",
        gpu.info().adapter
    );
    let gated = args.next().is_some_and(|a| a == "gated");
    for &format in &formats {
        for &(rows, cols) in &shapes {
            let (weights, bytes) = load(&mut gpu, &Shape { format, rows, cols })?;
            let bytes = if gated { 2 * bytes } else { bytes };
            let (x, out) = (gpu.alloc(16, cols)?, gpu.alloc(16, rows)?);
            let values: Vec<f32> = (0..16 * cols).map(|i| ((i * 7919) % 1009) as f32 / 504.0 - 1.0).collect();
            gpu.upload(x, 0, &values)?;
            print!("{format:6} {rows:6} x {cols:6}");
            for &columns in &columns {
                let mut time = |calls| run(&mut gpu, &weights, (x, out), (columns, calls, gated));
                // Clocks fall while kernels are compiled: the same work first, for long enough to raise them.
                let warm = time(256)? / 256.0;
                let calls = ((0.25 / warm) as usize).clamp(64, 40_000);
                let warm = time(calls)? / calls as f64;
                let calls = ((0.1 / warm) as usize).clamp(64, 40_000);
                let best = time(calls)?.min(time(calls)?) / calls as f64;
                let rate = bytes as f64 / best / 1e9;
                print!(" | {columns:2}: {:6.1} us {rate:5.0} {:3.0} %", best * 1e6, 100.0 * rate / read);
            }
            println!();
            for weight in weights {
                gpu.unload(weight)?;
            }
            gpu.free(x)?;
            gpu.free(out)?;
        }
    }
    Ok(())
}
