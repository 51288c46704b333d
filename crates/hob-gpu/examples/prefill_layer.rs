//! One layer of a prefill, verb by verb as the model runner calls them: `prefill_layer [SHAPE,.. [FORMAT,.. [ROWS,..
//! [KV [TOKENS]]]]]`, with shapes `8b` and `70b`, rows of a chunk, the format of K and V, and the length of the prompt.
//!
//! Prints milliseconds of a layer for the whole prompt: as one run between two waits, then by kernel from timestamps
//! (which keep dispatches apart, so that their sum is more). The adapter is `HOB_TEST_ADAPTER` or the first.

mod common;

use std::collections::BTreeMap;
use std::time::Instant;

use hob_compute::*;
use hob_gpu::{Gpu, GpuConfig};
use hob_quant::{Format, KvFormat};

/// Seconds of the same work before it is timed.
const WARM: f64 = 0.4;
/// Layers with weights of their own.
const LAYERS: usize = 2;

#[derive(Copy, Clone)]
struct Shape {
    name: &'static str,
    dim: usize,
    ffn: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    head_norms: bool,
}

const SHAPES: [Shape; 2] = [
    Shape { name: "8b", dim: 4096, ffn: 12288, heads: 32, kv_heads: 8, head_dim: 128, head_norms: true },
    Shape { name: "70b", dim: 8192, ffn: 28672, heads: 64, kv_heads: 8, head_dim: 128, head_norms: false },
];

struct Layer {
    norms: [Weight; 2],
    head_norms: Option<[Weight; 2]>,
    q: Weight,
    k: Weight,
    v: Weight,
    o: Weight,
    gate: Weight,
    up: Weight,
    down: Weight,
}

struct Bufs {
    h: Buf,
    normed: Buf,
    q: Buf,
    k: Buf,
    v: Buf,
    mixed: Buf,
    hidden: Buf,
    freqs: Buf,
}

struct Model {
    shape: Shape,
    layers: Vec<Layer>,
    bufs: Bufs,
    pages: Vec<Page>,
    positions: Vec<u32>,
    rows: usize,
}

fn weight(gpu: &mut Gpu, format: Format, rows: usize, cols: usize) -> Result<Weight> {
    if rows == 1 { common::vector(gpu, 1.0, cols) } else { common::matrix(gpu, format, rows, cols) }
}

impl Layer {
    fn new(gpu: &mut Gpu, s: &Shape, format: Format) -> Result<Layer> {
        let (wide, narrow) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        let head_norms = match s.head_norms {
            true => {
                Some([weight(gpu, Format::F32, 1, s.head_dim)?, weight(gpu, Format::F32, 1, s.head_dim)?])
            }
            false => None,
        };
        Ok(Layer {
            norms: [weight(gpu, Format::F32, 1, s.dim)?, weight(gpu, Format::F32, 1, s.dim)?],
            head_norms,
            q: weight(gpu, format, wide, s.dim)?,
            k: weight(gpu, format, narrow, s.dim)?,
            v: weight(gpu, format, narrow, s.dim)?,
            o: weight(gpu, format, s.dim, wide)?,
            gate: weight(gpu, format, s.ffn, s.dim)?,
            up: weight(gpu, format, s.ffn, s.dim)?,
            down: weight(gpu, format, s.dim, s.ffn)?,
        })
    }
}

impl Model {
    fn new(
        gpu: &mut Gpu,
        shape: Shape,
        format: Format,
        rows: usize,
        kv: KvFormat,
        tokens: usize,
    ) -> Result<Model> {
        let Shape { dim, ffn, heads, kv_heads, head_dim, .. } = shape;
        let layers = (0..LAYERS).map(|_| Layer::new(gpu, &shape, format)).collect::<Result<_>>()?;
        let spec = PageSpec { kv_heads, head_dim, k: kv, v: kv, first: false, latent: None };
        let count = tokens.div_ceil(PAGE_POSITIONS);
        let rest = gpu.alloc_pages(&spec, count)?;
        let mut pages: Vec<Page> = (0..count as u32).map(|index| Page { pool: rest, index }).collect();
        if spec.has_first() {
            pages[0].pool = gpu.alloc_pages(&spec.of_page(0), 1)?;
        }
        let mut buf = |width| gpu.alloc(rows, width);
        let (h, normed, hidden) = (buf(dim)?, buf(dim)?, buf(ffn)?);
        let (q, mixed, k, v) = (
            buf(heads * head_dim)?,
            buf(heads * head_dim)?,
            buf(kv_heads * head_dim)?,
            buf(kv_heads * head_dim)?,
        );
        let freqs = gpu.alloc(1, head_dim / 2)?;
        let angles: Vec<f32> =
            (0..head_dim / 2).map(|i| 1e6f32.powf(-(2.0 * i as f32) / head_dim as f32)).collect();
        gpu.upload(freqs, 0, &angles)?;
        let values: Vec<f32> = (0..rows * dim).map(|i| (i * 7919 % 255) as f32 / 127.0 - 1.0).collect();
        gpu.upload(h, 0, &values)?;
        let bufs = Bufs { h, normed, q, k, v, mixed, hidden, freqs };
        Ok(Model { shape, layers, bufs, pages, positions: (0..tokens as u32).collect(), rows })
    }

    fn layer(&self, gpu: &mut Gpu, layer: &Layer, position: usize) -> Result<()> {
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        let (b, rows, eps) = (&self.bufs, self.rows, 1e-6);
        let product = |weight, out| Product { weight, bias: None, out };
        let linear = |gpu: &mut Gpu, x, products: &[Product], combine| {
            gpu.linear(&Linear { x, first_row: 0, rows, products, combine })
        };
        gpu.norm(&Norm { x: b.h, rows, groups: 1, weight: layer.norms[0], eps, out: b.normed })?;
        let qkv = [product(layer.q, b.q), product(layer.k, b.k), product(layer.v, b.v)];
        linear(gpu, b.normed, &qkv, Combine::Store)?;
        let seqs = [SeqRows { row: 0, rows, position, pages: &self.pages }];
        let scale = 1.0 / (head_dim as f32).sqrt();
        let attend = Attend {
            q: b.q,
            out: b.mixed,
            heads,
            kv_heads,
            head_dim,
            scale,
            window: None,
            softcap: None,
            sinks: None,
            seqs: &seqs,
        };
        let norm = |weight, groups| HeadNorm { weight, groups, eps };
        gpu.attend_new(&AttendNew {
            attend,
            k: b.k,
            v: b.v,
            norms: layer.head_norms.map(|[q, k]| [norm(q, heads), norm(k, kv_heads)]),
            rotation: Some(Rotation { freqs: b.freqs, pairs: RopePairs::Half, magnitude: 1.0 }),
            positions: &self.positions[position..position + rows],
        })?;
        linear(gpu, b.mixed, &[product(layer.o, b.h)], Combine::Add)?;
        gpu.norm(&Norm { x: b.h, rows, groups: 1, weight: layer.norms[1], eps, out: b.normed })?;
        let gated = [product(layer.gate, b.hidden), product(layer.up, b.hidden)];
        linear(gpu, b.normed, &gated, Combine::Gated(Activation::Silu))?;
        linear(gpu, b.hidden, &[product(layer.down, b.h)], Combine::Add)
    }

    /// All layers over the whole prompt, chunk by chunk.
    fn prompt(&self, gpu: &mut Gpu) -> Result<()> {
        for position in (0..self.positions.len()).step_by(self.rows) {
            self.layers.iter().try_for_each(|layer| self.layer(gpu, layer, position))?;
        }
        Ok(())
    }

    fn wait(&self, gpu: &mut Gpu) -> Result<()> {
        gpu.download(self.bufs.h, 0, &mut [0.0])
    }

    fn flops(&self) -> f64 {
        let Shape { dim, ffn, heads, kv_heads, head_dim, .. } = self.shape;
        let tokens = self.positions.len();
        let weights = dim * (2 * heads + 2 * kv_heads) * head_dim + 3 * dim * ffn;
        2.0 * (tokens * weights) as f64 + 2.0 * (tokens * tokens * heads * head_dim) as f64
    }

    fn free(self, gpu: &mut Gpu) -> Result<()> {
        let b = self.bufs;
        [b.h, b.normed, b.q, b.k, b.v, b.mixed, b.hidden, b.freqs]
            .into_iter()
            .try_for_each(|x| gpu.free(x))?;
        for l in self.layers {
            let all = [l.q, l.k, l.v, l.o, l.gate, l.up, l.down].into_iter().chain(l.norms);
            all.chain(l.head_norms.into_iter().flatten()).try_for_each(|w| gpu.unload(w))?;
        }
        let mut pools: Vec<Pool> = self.pages.iter().map(|p| p.pool).collect();
        pools.dedup();
        pools.into_iter().try_for_each(|pool| gpu.free_pages(pool))
    }
}

fn bench(gpu: &mut Gpu, model: &Model, what: &str) -> Result<()> {
    gpu.rehearse(true);
    model.prompt(gpu)?;
    model.prompt(gpu)?;
    gpu.rehearse(false);
    let warm = Instant::now();
    while warm.elapsed().as_secs_f64() < WARM {
        model.prompt(gpu)?;
        model.wait(gpu)?;
    }
    let mut best = f64::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        model.prompt(gpu)?;
        model.wait(gpu)?;
        best = best.min(start.elapsed().as_secs_f64() / LAYERS as f64);
    }
    let (tokens, rate) = (model.positions.len(), model.flops() / best / 1e12);
    println!("{what}: {:.3} ms per layer for {tokens} tokens, {rate:.1} TFLOP/s", best * 1e3);
    let mut spans = Vec::new();
    if !gpu.profile(true) {
        println!("  no timestamps here");
        return Ok(());
    }
    const RUNS: usize = 4;
    for _ in 0..RUNS {
        model.prompt(gpu)?;
        model.wait(gpu)?;
    }
    gpu.take_spans(&mut spans);
    gpu.profile(false);
    // By verb, kernel and bytes: products of different shapes apart.
    let mut by: BTreeMap<(&str, String, u64), (usize, u64)> = BTreeMap::new();
    for span in &spans {
        let entry = by.entry((span.verb, span.detail.to_string(), span.bytes)).or_default();
        *entry = (entry.0 + 1, entry.1 + span.nanos);
    }
    for ((verb, kernel, bytes), (count, nanos)) in by {
        let (each, all) = (nanos as f64 / count as f64, nanos as f64 / (RUNS * LAYERS) as f64);
        println!(
            "  {verb:10} {kernel:14} {:7.1} MB {:4} x {:8.1} us = {:.3} ms, {:.0} GB/s",
            bytes as f64 / 1e6,
            count / (RUNS * LAYERS),
            each / 1e3,
            all / 1e6,
            bytes as f64 / each
        );
    }
    Ok(())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |i: usize, default: &str| args.get(i).map_or(default, String::as_str).to_string();
    let tokens: usize = arg(4, "4096").parse().expect("a number of tokens");
    let kv: KvFormat = arg(3, "f16").parse().expect("a format of K and V");
    let adapter = common::adapter();
    let mut gpu = Gpu::open(&GpuConfig { adapter, ..Default::default() })?;
    println!("{}", gpu.info().adapter);
    for name in arg(0, "8b,70b").split(',') {
        let shape = *SHAPES.iter().find(|s| s.name == name).expect("a shape: 8b or 70b");
        for format in arg(1, "Q4_0").split(',') {
            let known = Format::from_name(format).expect("a format of weights");
            for rows in arg(2, "1024,4096").split(',') {
                let rows: usize = rows.parse().expect("rows of a chunk");
                let model = Model::new(&mut gpu, shape, known, rows, kv, tokens)?;
                bench(&mut gpu, &model, &format!("{name} {format} in chunks of {rows}"))?;
                model.free(&mut gpu)?;
            }
        }
    }
    Ok(())
}
