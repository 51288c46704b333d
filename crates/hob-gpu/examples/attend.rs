//! Measures attention of one row over long contexts: bytes of K and V per second, beside what a plain reading of as many
//! bytes gets in the same run.
//!
//! `HOB_TEST_ADAPTER` picks the adapter. Arguments: formats, contexts, lanes and workgroups to try, each with commas; `-`
//! is the default.

use std::time::{Duration, Instant};

use hob_compute::{
    Attend, AttendNew, Buf, Compute, PAGE_POSITIONS, Page, PageSpec, Pool, RopePairs, Rotation, SeqRows,
};
use hob_gpu::{Gpu, GpuConfig};
use hob_quant::KvFormat;

const HEAD_DIM: usize = 128;
const KV_HEADS: usize = 8;
/// Bytes that one timing goes through, so that no cache serves the next round.
const AROUND: usize = 256 << 20;

struct Layer {
    pool: Pool,
    pages: Vec<Page>,
}

struct Bench {
    dev: Gpu,
    heads: usize,
    spec: PageSpec,
    layers: Vec<Layer>,
    first: Pool,
    q: Buf,
    k: Buf,
    v: Buf,
    out: Buf,
    freqs: Buf,
    context: usize,
}

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

impl Bench {
    fn new(mut dev: Gpu, heads: usize, (k, v): (KvFormat, KvFormat), context: usize) -> Fallible<Bench> {
        let spec = PageSpec { kv_heads: KV_HEADS, head_dim: HEAD_DIM, k, v, first: false };
        let pages = context.div_ceil(PAGE_POSITIONS);
        let count = AROUND.div_ceil(spec.page_bytes() * pages).clamp(1, 64);
        let first = match spec.has_first() {
            true => Some(dev.alloc_pages(&spec.of_page(0), 1)?),
            false => None,
        };
        let mut layers = Vec::new();
        for _ in 0..count {
            let pool = dev.alloc_pages(&spec, pages)?;
            let page = |index: usize| match (index, first) {
                (0, Some(first)) => Page { pool: first, index: 0 },
                _ => Page { pool, index: (index * 7 % pages) as u32 },
            };
            let permuted = !pages.is_multiple_of(7);
            let plain = |index: usize| match (index, first) {
                (0, Some(first)) => Page { pool: first, index: 0 },
                _ => Page { pool, index: index as u32 },
            };
            let pages = (0..pages).map(|i| if permuted { page(i) } else { plain(i) }).collect();
            layers.push(Layer { pool, pages });
        }
        let width = KV_HEADS * HEAD_DIM;
        let q = dev.alloc(1, heads * HEAD_DIM)?;
        let out = dev.alloc(1, heads * HEAD_DIM)?;
        let (k, v) = (dev.alloc(PAGE_POSITIONS, width)?, dev.alloc(PAGE_POSITIONS, width)?);
        let noise = |n: usize| (0..n).map(|i| ((i * 7919 % 1009) as f32 / 504.5) - 1.0).collect::<Vec<f32>>();
        dev.upload(q, 0, &noise(heads * HEAD_DIM))?;
        dev.upload(k, 0, &noise(PAGE_POSITIONS * width))?;
        dev.upload(v, 0, &noise(PAGE_POSITIONS * width))?;
        let freqs = dev.alloc(1, HEAD_DIM / 2)?;
        let freq = |i: usize| 10000f32.powf(-(i as f32) / 64.0);
        dev.upload(freqs, 0, &(0..HEAD_DIM / 2).map(freq).collect::<Vec<_>>())?;
        let first = first.unwrap_or(layers[0].pool);
        let mut bench = Bench { dev, heads, spec, layers, first, q, k, v, out, freqs, context };
        bench.fill()?;
        Ok(bench)
    }

    /// Writes something into every page.
    fn fill(&mut self) -> Fallible<()> {
        for layer in &self.layers {
            for index in 0..layer.pages.len() {
                let seq = SeqRows {
                    row: 0,
                    rows: PAGE_POSITIONS,
                    position: index * PAGE_POSITIONS,
                    pages: &layer.pages,
                };
                let (k, v) = (self.k, self.v);
                self.dev.append_kv(&hob_compute::AppendKv { k, v, seqs: &[seq] })?;
            }
        }
        Ok(())
    }

    fn bytes(&self) -> f64 {
        (self.spec.page_bytes() / PAGE_POSITIONS * self.context) as f64
    }

    /// Records attention of the last position in layer `layer`.
    fn attend(&mut self, layer: usize, fused: bool) -> Fallible<()> {
        let pages = &self.layers[layer % self.layers.len()].pages;
        let position = self.context - 1;
        let seqs = [SeqRows { row: 0, rows: 1, position, pages }];
        let attend = Attend {
            q: self.q,
            out: self.out,
            heads: self.heads,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            scale: 0.088,
            window: None,
            softcap: None,
            sinks: None,
            seqs: &seqs,
        };
        if !fused {
            return Ok(self.dev.attend(&attend)?);
        }
        let rotation = Rotation { freqs: self.freqs, pairs: RopePairs::Half, magnitude: 1.0 };
        Ok(self.dev.attend_new(&AttendNew {
            attend,
            k: self.k,
            v: self.v,
            norms: None,
            rotation: Some(rotation),
            positions: &[position as u32],
        })?)
    }

    /// Seconds of one call.
    fn time(&mut self, fused: bool) -> Fallible<f64> {
        let mut done = 0;
        let mut seconds = f64::MAX;
        let begin = Instant::now();
        let mut out = [0f32; 1];
        // The first rounds warm the clocks.
        for round in 0.. {
            let start = Instant::now();
            let count = (AROUND as f64 / self.bytes()).ceil().clamp(40.0, 400.0) as usize;
            for i in 0..count {
                self.attend(done + i, fused)?;
            }
            self.dev.download(self.out, 0, &mut out)?;
            done += count;
            let each = start.elapsed().as_secs_f64() / count as f64;
            if begin.elapsed() > Duration::from_millis(350) {
                seconds = seconds.min(each);
            }
            if begin.elapsed() > Duration::from_millis(650) && round > 2 {
                break;
            }
        }
        assert!(out[0].is_finite());
        Ok(seconds)
    }

    fn free(mut self) -> Fallible<Gpu> {
        for layer in &self.layers {
            self.dev.free_pages(layer.pool)?;
        }
        if self.spec.has_first() {
            self.dev.free_pages(self.first)?;
        }
        for buf in [self.q, self.k, self.v, self.out, self.freqs] {
            self.dev.free(buf)?;
        }
        Ok(self.dev)
    }
}

fn list<T: Clone>(at: usize, default: &[T], read: impl Fn(&str) -> Option<T>) -> Vec<T> {
    match std::env::args().nth(at) {
        Some(text) if text != "-" => text.split(',').filter_map(read).collect(),
        _ => default.to_vec(),
    }
}

fn main() -> Fallible<()> {
    let adapter = std::env::var("HOB_TEST_ADAPTER").ok().and_then(|v| v.parse().ok()).unwrap_or(0);
    let formats = list(1, &[KvFormat::F16, KvFormat::Q8, KvFormat::Q4], |text| text.parse().ok());
    let contexts = list(2, &[4096, 32768, 131072], |text| text.parse().ok());
    let lanes = list(3, &[128], |text| text.parse().ok());
    let workgroups = list(4, &[1024], |text| text.parse().ok());
    let heads = list(5, &[64], |text| text.parse().ok());
    let mut dev = Gpu::open(&GpuConfig { adapter, ..GpuConfig::default() })?;
    println!("{}", dev.info().adapter);
    for &heads in &heads {
        for &format in &formats {
            for &context in &contexts {
                let mut bench = Bench::new(dev, heads, (format, format), context)?;
                for &lanes in &lanes {
                    for &workgroups in &workgroups {
                        bench.dev.tune_attention(Some((lanes, workgroups)));
                        let both = [bench.time(false)?, bench.time(true)?];
                        let [plain, fused] = both.map(|s| s * 1e6);
                        println!(
                            "{format} {heads} heads {context}: lanes {lanes} workgroups {workgroups}: attend {plain:.1} us \
                             ({:.0} GB/s), attend_new {fused:.1} us ({:.0} GB/s)",
                            bench.bytes() / plain / 1e3,
                            bench.bytes() / fused / 1e3,
                        );
                    }
                }
                dev = bench.free()?;
            }
        }
    }
    Ok(())
}
