//! Speed and error of attention of many rows: `flash [heads,kv_heads,head_dim,format,position,rows ..]`, on the adapter
//! that `HOB_TEST_ADAPTER` names (0). It prints causal TFLOP/s: four operations for every dimension, head and pair of
//! positions of which one sees the other.

mod common;

use std::time::{Duration, Instant};

use hob_compute::{Attend, Buf, Compute, PAGE_POSITIONS, Page, PageSpec, Result, SeqRows};
use hob_gpu::{Gpu, GpuConfig};
use hob_quant::{KvFormat, decode_kv, encode_kv, hadamard};
use hob_testkit::rng::Rng;

/// How long a figure is measured, after as long a warm-up: clocks fall when little is done.
const SPAN: Duration = Duration::from_millis(400);

struct Shape {
    heads: usize,
    spec: PageSpec,
    position: usize,
    rows: usize,
}

fn shape(text: &str) -> Option<Shape> {
    let parts: Vec<&str> = text.split(',').collect();
    let [heads, kv_heads, head_dim, format, position, rows] = parts.as_slice() else { return None };
    let format: KvFormat = format.parse().ok()?;
    let spec = PageSpec {
        kv_heads: kv_heads.parse().ok()?,
        head_dim: head_dim.parse().ok()?,
        k: format,
        v: format,
        first: false,
        latent: None,
    };
    Some(Shape {
        heads: heads.parse().ok()?,
        spec,
        position: position.parse().ok()?,
        rows: rows.parse().ok()?,
    })
}

/// Pages of one content each for page 0 and for the others, and what they hold as numbers, rotated as stored:
/// `[position][kv_head][side][head_dim]`.
struct Content {
    image: Vec<u8>,
    values: Vec<f32>,
}

impl Content {
    fn new(spec: &PageSpec, seed: u64) -> Content {
        let (mut image, mut values, mut rng) = (Vec::new(), Vec::new(), Rng::new(seed));
        for at in 0..PAGE_POSITIONS {
            for _ in 0..spec.kv_heads {
                for format in [spec.k_format(at / 64), spec.v_format(at / 64)] {
                    let mut bytes = vec![0u8; format.vector_bytes(spec.head_dim)];
                    encode_kv(format, &rng.normal_vec(spec.head_dim, 1.0), &mut bytes);
                    let mut x = vec![0f32; spec.head_dim];
                    decode_kv(format, &bytes, &mut x);
                    values.extend(x);
                    image.extend(bytes);
                }
            }
        }
        Content { image, values }
    }
}

struct Bench {
    shape: Shape,
    contents: [Content; 2],
    table: Vec<Page>,
    /// `[rows, heads * head_dim]`
    queries: Vec<f32>,
    q: Buf,
    out: Buf,
}

impl Bench {
    fn new(gpu: &mut Gpu, shape: Shape) -> Result<Bench> {
        let Shape { heads, spec, position, rows } = shape;
        let contents = [spec.of_page(0), spec].map(|s| Content::new(&s, 3 + u64::from(s.first)));
        let count = (position + rows).div_ceil(PAGE_POSITIONS);
        let rest = gpu.alloc_pages(&spec, count)?;
        let first = if spec.has_first() { gpu.alloc_pages(&spec.of_page(0), 1)? } else { rest };
        let mut table: Vec<Page> = (0..count as u32).map(|index| Page { pool: rest, index }).collect();
        table[0].pool = first;
        for (index, page) in table.iter().enumerate() {
            gpu.write_positions(*page, 0..PAGE_POSITIONS, &contents[index.min(1)].image)?;
        }
        let queries = Rng::new(1).normal_vec(rows * heads * spec.head_dim, 1.0);
        let (q, out) = (gpu.alloc(rows, heads * spec.head_dim)?, gpu.alloc(rows, heads * spec.head_dim)?);
        gpu.upload(q, 0, &queries)?;
        Ok(Bench { shape, contents, table, queries, q, out })
    }

    fn attend(&self, gpu: &mut Gpu) -> Result<()> {
        let Shape { heads, spec, position, rows } = self.shape;
        gpu.attend(&Attend {
            q: self.q,
            out: self.out,
            heads,
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            scale: 1.0 / (spec.head_dim as f32).sqrt(),
            window: None,
            softcap: None,
            sinks: None,
            seqs: &[SeqRows { row: 0, rows, position, pages: &self.table }],
        })
    }

    /// The largest difference from f64 over some rows, relative to their root mean square.
    fn error(&self, gpu: &mut Gpu) -> Result<f64> {
        let Shape { heads, spec, rows, .. } = self.shape;
        let mut found = vec![0f32; rows * heads * spec.head_dim];
        self.attend(gpu)?;
        gpu.download(self.out, 0, &mut found)?;
        let (mut worst, mut square, mut count) = (0f64, 0f64, 0);
        for row in [0, 1, 15, 16, 17, rows / 3, rows / 2, rows - 2, rows - 1] {
            for head in [0, 1, heads / 2, heads - 1] {
                let at = (row * heads + head) * spec.head_dim;
                for (e, &f) in self.precise(row, head).iter().zip(&found[at..at + spec.head_dim]) {
                    let difference = (e - f64::from(f)).abs();
                    worst = if difference.is_nan() { f64::INFINITY } else { worst.max(difference) };
                    square += e * e;
                    count += 1;
                }
            }
        }
        Ok(worst / (square / f64::from(count)).sqrt())
    }

    fn precise(&self, row: usize, head: usize) -> Vec<f64> {
        let Shape { heads, spec, position, .. } = self.shape;
        let (d, kv) = (spec.head_dim, head / (heads / spec.kv_heads));
        let mut q = self.queries[(row * heads + head) * d..][..d].to_vec();
        if spec.k.is_rotated() {
            hadamard(&mut q);
        }
        let held = |p: usize, side: usize| {
            let at = ((p % PAGE_POSITIONS * spec.kv_heads + kv) * 2 + side) * d;
            &self.contents[(p / PAGE_POSITIONS).min(1)].values[at..at + d]
        };
        let dot =
            |p: usize| -> f64 { q.iter().zip(held(p, 0)).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum() };
        let scores: Vec<f64> = (0..=position + row).map(|p| dot(p) / (d as f64).sqrt()).collect();
        let most = scores.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
        let mut acc = vec![0f64; d];
        for (p, s) in scores.iter().enumerate() {
            let w = (s - most).exp() / sum;
            acc.iter_mut().zip(held(p, 1)).for_each(|(a, &v)| *a += w * f64::from(v));
        }
        if spec.v.is_rotated() {
            let mut turned: Vec<f32> = acc.iter().map(|&x| x as f32).collect();
            hadamard(&mut turned);
            acc = turned.into_iter().map(f64::from).collect();
        }
        acc
    }

    /// Seconds of one call.
    fn seconds(&self, gpu: &mut Gpu) -> Result<f64> {
        let mut one = [0f32];
        let mut calls = |gpu: &mut Gpu, span: Duration| -> Result<f64> {
            let (start, mut count) = (Instant::now(), 0);
            while start.elapsed() < span {
                (0..16).try_for_each(|_| self.attend(gpu))?;
                gpu.download(self.out, 0, &mut one)?;
                count += 16;
            }
            Ok(start.elapsed().as_secs_f64() / f64::from(count))
        };
        calls(gpu, SPAN)?;
        calls(gpu, SPAN)
    }
}

fn main() -> Result<()> {
    let adapter = common::adapter();
    let mut gpu = Gpu::open(&GpuConfig { adapter, ..GpuConfig::default() })?;
    println!("{}", gpu.info().adapter);
    for text in std::env::args().skip(1) {
        let Some(shape) = shape(&text) else {
            println!("expected heads,kv_heads,head_dim,format,position,rows, found '{text}'");
            continue;
        };
        let Shape { heads, spec, position, rows } = shape;
        let pairs = rows * position + rows * (rows + 1) / 2;
        let work = (4 * pairs * heads * spec.head_dim) as f64;
        let bench = Bench::new(&mut gpu, shape)?;
        let error = bench.error(&mut gpu)?;
        let seconds = bench.seconds(&mut gpu)?;
        let speed = work / seconds / 1e12;
        println!("{text}: {:.3} ms, {speed:.1} TFLOP/s, {error:.1e} from f64", seconds * 1e3);
    }
    Ok(())
}
