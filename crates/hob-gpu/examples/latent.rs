//! Speed of attention to pages that store V within K, and of products head by head, on the adapter that `HOB_TEST_ADAPTER`
//! names (0): `latent heads,head_dim,dims,format,position,rows ..` or `heads,out_width,in_width,format,rows`. It prints
//! microseconds of a call; of attention also GB/s of pages and causal TFLOP/s, two operations for every product.

mod common;

use std::time::{Duration, Instant};

use hob_compute::*;
use hob_gpu::{Gpu, GpuConfig};
use hob_quant::{Format, KvFormat};
use hob_testkit::rng::Rng;

/// How long a figure is measured, after as long a warm-up: clocks fall when little is done.
const SPAN: Duration = Duration::from_millis(400);
/// Bytes of pages that calls take in turn, so that no cache has them.
const TURNS_BYTES: usize = 256 << 20;

/// Seconds of one of the calls `work(gpu, n)`.
fn seconds(gpu: &mut Gpu, out: Buf, mut work: impl FnMut(&mut Gpu, usize) -> Result<()>) -> Result<f64> {
    let (mut one, mut last) = ([0f32], 0.0);
    for _ in 0..2 {
        let (start, mut count) = (Instant::now(), 0);
        while start.elapsed() < SPAN {
            (0..16).try_for_each(|n| work(gpu, count + n))?;
            gpu.download(out, 0, &mut one)?;
            count += 16;
        }
        last = start.elapsed().as_secs_f64() / count as f64;
    }
    Ok(last)
}

fn attention(gpu: &mut Gpu, sizes: [usize; 5], format: KvFormat) -> Result<()> {
    let [heads, head_dim, dims, position, rows] = sizes;
    let spec = PageSpec { k: format, v: format, latent: Some(dims), ..PageSpec::f16(1, head_dim) };
    let count = (position + rows).div_ceil(PAGE_POSITIONS);
    let turns = (TURNS_BYTES / (count * spec.page_bytes())).clamp(1, 64);
    let rest = gpu.alloc_pages(&spec, count * turns)?;
    let first = if spec.has_first() { gpu.alloc_pages(&spec.of_page(0), 1)? } else { rest };
    let (k, mut rng) = (gpu.alloc(PAGE_POSITIONS, head_dim)?, Rng::new(1));
    gpu.upload(k, 0, &rng.normal_vec(PAGE_POSITIONS * head_dim, 1.0))?;
    let page = |index: usize| match index % count {
        0 if first != rest => Page { pool: first, index: 0 },
        _ => Page { pool: rest, index: index as u32 },
    };
    let tables: Vec<Vec<Page>> =
        (0..turns).map(|t| (0..count).map(|i| page(t * count + i)).collect()).collect();
    for table in &tables {
        for index in 0..count {
            let seq =
                SeqRows { row: 0, rows: PAGE_POSITIONS, position: index * PAGE_POSITIONS, pages: table };
            gpu.append_kv(&AppendKv { k, v: k, seqs: &[seq] })?;
        }
    }
    let (q, out) = (gpu.alloc(rows, heads * head_dim)?, gpu.alloc(rows, heads * dims)?);
    gpu.upload(q, 0, &rng.normal_vec(rows * heads * head_dim, 1.0))?;
    let time = seconds(gpu, out, |gpu, n| {
        gpu.attend(&Attend {
            q,
            out,
            heads,
            kv_heads: 1,
            head_dim,
            scale: 0.05,
            window: None,
            softcap: None,
            sinks: None,
            seqs: &[SeqRows { row: 0, rows, position, pages: &tables[n % turns] }],
        })
    })?;
    let pairs = rows * position + rows * (rows + 1) / 2;
    let work = (2 * pairs * heads * (head_dim + dims)) as f64;
    let bytes = ((position + rows) * spec.page_bytes() / PAGE_POSITIONS) as f64;
    println!(
        "{heads} x {head_dim}/{dims} {format}, {rows} rows at {position}: {:.1} us, {:.0} GB/s, {:.2} TFLOP/s",
        time * 1e6,
        bytes / time / 1e9,
        work / time / 1e12
    );
    [q, out, k].into_iter().try_for_each(|buf| gpu.free(buf))?;
    gpu.free_pages(rest)?;
    if first != rest { gpu.free_pages(first) } else { Ok(()) }
}

fn products(gpu: &mut Gpu, [count, out_width, cols, rows]: [usize; 4], format: Format) -> Result<()> {
    let kind = WeightKind::Heads { count };
    let spec = WeightSpec { name: "w".into(), kind, format, rows: count * out_width, cols };
    let bytes = spec.file_bytes().unwrap_or(0);
    let turns = (TURNS_BYTES as u64 / bytes.max(1)).clamp(1, 64) as usize;
    let mut load = |_| common::noise(gpu, kind, format, count * out_width, cols).map(|(weight, _)| weight);
    let weights: Vec<Weight> = (0..turns).map(&mut load).collect::<Result<_>>()?;
    let (x, out) = (gpu.alloc(rows, count * cols)?, gpu.alloc(rows, count * out_width)?);
    let time = seconds(gpu, out, |gpu, n| gpu.heads(&Heads { x, rows, weight: weights[n % turns], out }))?;
    let work = (2 * rows * count * out_width * cols) as f64;
    println!(
        "{count} heads {out_width} x {cols} {format}, {rows} rows: {:.1} us, {:.0} GB/s, {:.2} TFLOP/s",
        time * 1e6,
        bytes as f64 / time / 1e9,
        work / time / 1e12
    );
    weights.into_iter().try_for_each(|w| gpu.unload(w))?;
    [x, out].into_iter().try_for_each(|buf| gpu.free(buf))
}

fn main() -> Result<()> {
    let mut gpu = Gpu::open(&GpuConfig { adapter: common::adapter(), ..GpuConfig::default() })?;
    println!("{}", gpu.info().adapter);
    for text in std::env::args().skip(1) {
        let parts: Vec<&str> = text.split(',').collect();
        let numbers: Vec<usize> = parts.iter().filter_map(|part| part.parse().ok()).collect();
        let name = parts.get(3).copied().unwrap_or_default();
        match (numbers.as_slice(), name.parse::<KvFormat>(), Format::from_name(name)) {
            (&[a, b, c, d, e], Ok(format), _) => attention(&mut gpu, [a, b, c, d, e], format)?,
            (&[a, b, c, d], _, Some(format)) => products(&mut gpu, [a, b, c, d], format)?,
            _ => println!("expected heads,head_dim,dims,format,position,rows, found '{text}'"),
        }
    }
    Ok(())
}
