//! Speed of `linear` on many rows: formats x shapes x rows, in TFLOP/s.
//!
//! `gemm [FORMAT,.. [OUTPUTSxINPUTS,.. [ROWS,..]]]`; a shape that ends in `g` is a gated pair of that many outputs each,
//! one in `a` adds to what is there. Beside it the largest difference from the plain kernel in f32.
//! The adapter is `HOB_TEST_ADAPTER` or the first. Weights are rotated over more than 200 MB so that no cache serves
//! them; the clocks are warm; a time is the best of three runs of many calls between two waits.

mod common;

use std::time::Instant;

use hob_compute::{Activation, Buf, Combine, Compute, Linear, Product, Result, Weight};
use hob_gpu::{Gpu, GpuConfig};
use hob_quant::Format;

/// Bytes over which weights are rotated.
const ROTATED: u64 = 200 << 20;
/// Seconds of the same work before it is timed, and of a timed run.
const WARM: f64 = 0.4;
const RUN: f64 = 0.15;

#[derive(Clone, Copy)]
struct Shape {
    outputs: usize,
    inputs: usize,
    gated: bool,
    add: bool,
}

impl Shape {
    fn parse(text: &str) -> Option<Shape> {
        let (text, gated) = text.strip_suffix('g').map_or((text, false), |t| (t, true));
        let (text, add) = text.strip_suffix('a').map_or((text, false), |t| (t, true));
        let (outputs, inputs) = text.split_once('x')?;
        Some(Shape { outputs: outputs.parse().ok()?, inputs: inputs.parse().ok()?, gated, add })
    }
}

/// Runs `calls` calls, each with the next weights; seconds from the first call to the last result.
fn run(
    gpu: &mut Gpu,
    weights: &[Weight],
    (x, out): (Buf, Buf),
    rows: usize,
    shape: Shape,
    calls: usize,
) -> Result<f64> {
    let start = Instant::now();
    for i in 0..calls {
        let products =
            [0, 1].map(|p| Product { weight: weights[(2 * i + p) % weights.len()], bias: None, out });
        let (products, combine) = match shape.gated {
            true => (&products[..], Combine::Gated(Activation::Silu)),
            false => (&products[..1], if shape.add { Combine::Add } else { Combine::Store }),
        };
        gpu.linear(&Linear { x, first_row: 0, rows, products, combine })?;
    }
    gpu.download(out, 0, &mut [0.0])?;
    Ok(start.elapsed().as_secs_f64())
}

fn values(rows: usize, inputs: usize) -> Vec<f32> {
    (0..rows * inputs).map(|i| (i * 7919 % 255) as f32 / 127.0 - 1.0).collect()
}

/// The first product, from zeros.
fn contents(gpu: &mut Gpu, weights: &[Weight], rows: usize, shape: Shape) -> Result<Vec<f32>> {
    let Shape { outputs, inputs, .. } = shape;
    let (x, out) = (gpu.alloc(rows, inputs)?, gpu.alloc(rows, outputs)?);
    gpu.upload(x, 0, &values(rows, inputs))?;
    run(gpu, weights, (x, out), rows, shape, 1)?;
    let mut y = vec![0.0; rows * outputs];
    gpu.download(out, 0, &mut y)?;
    [x, out].into_iter().try_for_each(|buf| gpu.free(buf))?;
    Ok(y)
}

fn load(gpu: &mut Gpu, format: Format, shape: Shape, count: u64) -> Result<Vec<Weight>> {
    let Shape { outputs, inputs, .. } = shape;
    let bytes = (outputs * format.row_bytes(inputs).expect("whole blocks")) as u64;
    let count = if count > 0 { count } else { ROTATED.div_ceil(bytes).max(2).next_multiple_of(2) };
    (0..count).map(|_| common::matrix(gpu, format, outputs, inputs)).collect()
}

/// Rows that are compared with the plain kernel.
const COMPARED: usize = 130;

/// The largest difference from the plain kernel, relative to the root mean square, of rows enough for every tile.
fn error([gpu, plain]: [&mut Gpu; 2], format: Format, shape: Shape, weights: &[Weight]) -> Result<f64> {
    let others = load(plain, format, shape, 2)?;
    let expected = contents(plain, &others, COMPARED, shape)?;
    others.into_iter().try_for_each(|w| plain.unload(w))?;
    let square: f64 = expected.iter().map(|v| f64::from(*v).powi(2)).sum();
    let found = contents(gpu, weights, COMPARED, shape)?;
    let worst = expected.iter().zip(&found).map(|(e, f)| f64::from(e - f).abs()).fold(0.0, f64::max);
    Ok(worst / (square / expected.len() as f64).sqrt())
}

fn bench([gpu, plain]: [&mut Gpu; 2], format: Format, shape: Shape, all_rows: &[usize]) -> Result<()> {
    let Shape { outputs, inputs, gated, .. } = shape;
    let weights = load(gpu, format, shape, 0)?;
    let start = Instant::now();
    contents(gpu, &weights, COMPARED, shape)?;
    let first = start.elapsed().as_secs_f64();
    let error = error([gpu, plain], format, shape, &weights)?;
    let pair = if gated { " pair" } else { "" };
    println!("{format} {outputs}x{inputs}{pair}: error {error:.1e}, the first call took {first:.2} s");
    for &rows in all_rows {
        let (x, out) = (gpu.alloc(rows, inputs)?, gpu.alloc(rows, outputs)?);
        gpu.upload(x, 0, &values(rows, inputs))?;
        run(gpu, &weights, (x, out), rows, shape, 1)?;
        let each = run(gpu, &weights, (x, out), rows, shape, 4)? / 4.0;
        let calls = ((RUN / each) as usize).clamp(2, 2000);
        let warm = Instant::now();
        while warm.elapsed().as_secs_f64() < WARM {
            run(gpu, &weights, (x, out), rows, shape, calls)?;
        }
        let mut best = f64::MAX;
        for _ in 0..3 {
            best = best.min(run(gpu, &weights, (x, out), rows, shape, calls)? / calls as f64);
        }
        let flops = 2.0 * (rows * outputs * inputs) as f64 * if gated { 2.0 } else { 1.0 };
        println!("  rows {rows}: {:.1} TFLOP/s, {:.0} us", flops / best / 1e12, best * 1e6);
        [x, out].into_iter().try_for_each(|buf| gpu.free(buf))?;
    }
    weights.into_iter().try_for_each(|w| gpu.unload(w))
}

fn list<T>(arg: Option<String>, default: &str, parse: impl Fn(&str) -> Option<T>) -> Vec<T> {
    let text = arg.unwrap_or(default.into());
    text.split(',').map(|t| parse(t).unwrap_or_else(|| panic!("what is '{t}'?"))).collect()
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let formats = list(args.next(), "Q4_0,Q4_K", Format::from_name);
    let shapes = "4096x4096,12288x4096g,4096x12288,8192x8192,28672x8192g,8192x28672";
    let shapes = list(args.next(), shapes, Shape::parse);
    let rows: Vec<usize> = list(args.next(), "32,64,128,512,1024,2048", |t| t.parse().ok());
    let adapter = common::adapter();
    let mut gpu = Gpu::open(&GpuConfig { adapter, ..Default::default() })?;
    let mut plain = Gpu::open(&GpuConfig { adapter, exact: true, ..Default::default() })?;
    println!("{}", gpu.info().adapter);
    for format in formats {
        for &shape in &shapes {
            bench([&mut gpu, &mut plain], format, shape, &rows)?;
        }
    }
    Ok(())
}
