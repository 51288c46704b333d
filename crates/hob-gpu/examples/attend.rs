//! Measures attention of one new row (normed, rotated, stored and attended to): microseconds of a call, the gap between
//! dispatches included, and bytes of K and V per second.
//!
//! `HOB_TEST_ADAPTER` picks the adapter. Arguments, each with commas, `-` for the default: formats, contexts, query heads,
//! and cuts: `short:LANES` (of contexts within a page) or `split:LANES:BLOCKS:WORKGROUPS`.

mod common;

use std::time::{Duration, Instant};

use hob_compute::{
    Attend, AttendNew, Buf, Compute, HeadNorm, PAGE_POSITIONS, Page, PageSpec, Pool, RopePairs, Rotation,
    SeqRows, Weight,
};
use hob_gpu::{AttentionRule, Gpu, GpuConfig};
use hob_quant::KvFormat;

/// Milliseconds until the clocks are warm, and of timing.
const WARM: u64 = 100;
const TIMED: u64 = 40;
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
    weight: Weight,
    warm: [Buf; 3],
    context: usize,
}

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

impl Bench {
    fn new(mut dev: Gpu, heads: usize, (k, v): (KvFormat, KvFormat), context: usize) -> Fallible<Bench> {
        let spec = PageSpec { kv_heads: KV_HEADS, head_dim: HEAD_DIM, k, v, first: false, latent: None };
        let pages = context.div_ceil(PAGE_POSITIONS);
        let most = list(5, &[64], |text| text.parse().ok())[0];
        let count = AROUND.div_ceil(spec.page_bytes() * pages).clamp(1, most);
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
        let weight = common::vector(&mut dev, 1.0, HEAD_DIM)?;
        let warm = [dev.alloc(4096, 4096)?, dev.alloc(4096, 4096)?, dev.alloc(4096, 4096)?];
        let mut bench = Bench { dev, heads, spec, layers, first, q, k, v, out, freqs, weight, warm, context };
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
    fn attend(&mut self, layer: usize) -> Fallible<()> {
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
        let rotation = Rotation { freqs: self.freqs, pairs: RopePairs::Half, magnitude: 1.0 };
        Ok(self.dev.attend_new(&AttendNew {
            attend,
            k: self.k,
            v: self.v,
            norms: Some([self.heads, KV_HEADS].map(|groups| HeadNorm {
                weight: self.weight,
                groups,
                eps: 1e-6,
            })),
            rotation: Some(rotation),
            positions: &[position as u32],
        })?)
    }

    /// Calls for `millis` milliseconds: seconds of each, the best of several lots.
    fn calls(&mut self, millis: u64, count: usize) -> Fallible<f64> {
        let (mut done, mut seconds) = (0, f64::MAX);
        let begin = Instant::now();
        let mut out = [0f32; 1];
        while done < 3 * count || begin.elapsed() < Duration::from_millis(millis) {
            let start = Instant::now();
            for i in 0..count {
                self.attend(done + i)?;
            }
            self.dev.download(self.out, 0, &mut out)?;
            done += count;
            seconds = seconds.min(start.elapsed().as_secs_f64() / count as f64);
        }
        assert!(out[0].is_finite());
        Ok(seconds)
    }

    /// Keeps all of the device busy, so that its clocks rise.
    fn warm(&mut self) -> Fallible<()> {
        let (q, k, out) = (self.warm[0], self.warm[1], self.warm[2]);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(WARM) {
            for _ in 0..40 {
                self.dev.map(&hob_compute::Map::Add { a: q, b: k, out, rows: 4096 })?;
            }
            self.dev.download(out, 0, &mut [0f32; 1])?;
        }
        Ok(())
    }

    /// Seconds of one call.
    fn time(&mut self) -> Fallible<f64> {
        self.warm()?;
        let count = (AROUND as f64 / self.bytes()).ceil().clamp(60.0, 600.0) as usize;
        self.calls(TIMED, count)
    }

    fn free(mut self) -> Fallible<Gpu> {
        for layer in &self.layers {
            self.dev.free_pages(layer.pool)?;
        }
        if self.spec.has_first() {
            self.dev.free_pages(self.first)?;
        }
        for buf in [self.q, self.k, self.v, self.out, self.freqs].into_iter().chain(self.warm) {
            self.dev.free(buf)?;
        }
        self.dev.unload(self.weight)?;
        Ok(self.dev)
    }
}

fn list<T: Clone>(at: usize, default: &[T], read: impl Fn(&str) -> Option<T>) -> Vec<T> {
    match std::env::args().nth(at) {
        Some(text) if text != "-" => text.split(',').filter_map(read).collect(),
        _ => default.to_vec(),
    }
}

/// A cut as the command line names it.
fn cut(text: &str) -> Option<AttentionRule> {
    let mut words = text.split(':');
    let (name, usual) = (words.next()?, AttentionRule::default());
    let numbers: Vec<usize> = words.map_while(|word| word.parse().ok()).collect();
    match (name, &numbers[..]) {
        ("short", [short_lanes]) => Some(AttentionRule { short_lanes: *short_lanes, ..usual }),
        ("split", [lanes, blocks, workgroups]) => Some(AttentionRule {
            lanes: *lanes,
            blocks: *blocks,
            packed_blocks: *blocks,
            workgroups: *workgroups,
            most_short: 0,
            ..usual
        }),
        _ => None,
    }
}

fn main() -> Fallible<()> {
    let adapter = common::adapter();
    let formats = list(1, &[KvFormat::F16, KvFormat::Q8, KvFormat::Q4], |text| text.parse().ok());
    let contexts = list(2, &[1, 128, 512, 1024, 4096, 32768, 131072], |text| text.parse().ok());
    let heads = list(3, &[32, 64], |text| text.parse().ok());
    let cuts = list(4, &["-"], |text| Some(Box::leak(text.to_string().into_boxed_str()) as &str));
    let mut dev = Gpu::open(&GpuConfig { adapter, ..GpuConfig::default() })?;
    println!("{}", dev.info().adapter);
    for &heads in &heads {
        for &format in &formats {
            for &context in &contexts {
                let mut bench = Bench::new(dev, heads, (format, format), context)?;
                print!("{heads} heads {format} {context}:");
                for text in &cuts {
                    bench.dev.tune_attention(cut(text).unwrap_or_default());
                    let begin = Instant::now();
                    bench.attend(0)?;
                    let made = begin.elapsed().as_secs_f64();
                    let seconds = bench.time()?;
                    let micros = seconds * 1e6;
                    print!(
                        " {text} {micros:.1} ({:.0} GB/s, made in {made:.2} s)",
                        bench.bytes() / micros / 1e3
                    );
                    std::io::Write::flush(&mut std::io::stdout())?;
                }
                println!();
                dev = bench.free()?;
            }
        }
    }
    Ok(())
}
