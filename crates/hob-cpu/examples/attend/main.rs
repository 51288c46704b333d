//! Measures attention over K and V in any format beside its floor: the longer of reading the KV once and of its
//! multiply-adds at the core's peak for that kind of product. With `--dequantize` also beside decoding the whole cache to
//! f32 and attending to that.
//!
//! `cargo run --release -p hob-cpu --example attend -- [threads] [prefill|decode|all] [heads kv_heads head_dim depth [window]]
//! [--kv f16,q8,q4,q8/q4] [--latent DIMS] [--dequantize]`. With `--latent` V is the first so many dimensions of K.

#[cfg(target_arch = "x86_64")]
mod dequantize;
mod peak;

use std::time::Instant;

use hob_compute::{
    AppendKv, Attend, Buf, Compute, ComputeError, PAGE_POSITIONS, Page, PageSpec, Pool, SeqRows,
};
use hob_cpu::probe::ReadProbe;
use hob_cpu::{Cpu, CpuConfig};
use hob_quant::KvFormat;

/// Fastest of several runs, in seconds: the one that a busy machine disturbed least.
fn best(runs: usize, mut work: impl FnMut() -> Result<(), ComputeError>) -> Result<f64, ComputeError> {
    let mut best = f64::INFINITY;
    for _ in 0..runs {
        let start = Instant::now();
        work()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

#[derive(Copy, Clone)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    /// Of K and of V.
    kv: [KvFormat; 2],
    /// Dimensions of a V that is a part of K.
    latent: Option<usize>,
}

impl Shape {
    fn spec(&self) -> PageSpec {
        let [k, v] = self.kv;
        let Shape { kv_heads, head_dim, latent, .. } = *self;
        PageSpec { kv_heads, head_dim, k, v, first: false, latent }
    }

    /// Multiply-adds of the last `rows` of `positions` positions.
    fn macs(&self, positions: usize, rows: usize) -> f64 {
        let seen = |p: usize| self.window.map_or(p, |w| w.min(p));
        let pairs: usize = (positions - rows + 1..=positions).map(seen).sum();
        (pairs * self.heads * (self.head_dim + self.spec().value_dim())) as f64
    }

    /// Bytes of K and V that one row reads.
    fn bytes(&self, positions: usize) -> f64 {
        let seen = self.window.map_or(positions, |w| w.min(positions));
        (seen * self.spec().position_bytes(PAGE_POSITIONS - 1)) as f64
    }

    /// Multiply-adds per nanosecond of one core in registers, half of them with K and half with V.
    fn peak(&self) -> f64 {
        let [k, v] = self.kv.map(|f| peak::peak(f).unwrap_or(f64::INFINITY));
        2.0 / (1.0 / k + 1.0 / v)
    }
}

/// A sequence in pages.
struct Sequence {
    pools: Vec<Pool>,
    pages: Vec<Page>,
    q: Buf,
    out: Buf,
}

/// Queries of all rows.
fn queries(shape: &Shape, rows: usize) -> Vec<f32> {
    (0..rows * shape.heads * shape.head_dim).map(|i| ((i * 7727) % 1000) as f32 * 1e-3 - 0.5).collect()
}

const SCALE: f32 = 0.1;

impl Sequence {
    /// Fills `positions` positions; the last `rows` of them will attend.
    fn new(dev: &mut Cpu, shape: &Shape, positions: usize, rows: usize) -> Result<Sequence, ComputeError> {
        let (spec, width) = (shape.spec(), shape.kv_heads * shape.head_dim);
        let count = positions.div_ceil(PAGE_POSITIONS);
        let rest = dev.alloc_pages(&spec, count)?;
        let mut pages: Vec<Page> = (0..count as u32).map(|index| Page { pool: rest, index }).collect();
        let mut pools = vec![rest];
        if spec.has_first() {
            let pool = dev.alloc_pages(&spec.of_page(0), 1)?;
            pages[0] = Page { pool, index: 0 };
            pools.push(pool);
        }
        let values: Vec<f32> = (0..256 * width).map(|i| ((i * 7919) % 1000) as f32 * 2e-3 - 1.0).collect();
        let kv = dev.alloc(256, width)?;
        dev.upload(kv, 0, &values)?;
        for position in (0..positions).step_by(256) {
            let seqs = [SeqRows { row: 0, rows: 256.min(positions - position), position, pages: &pages }];
            dev.append_kv(&AppendKv { k: kv, v: kv, seqs: &seqs })?;
        }
        dev.free(kv)?;
        let width = shape.heads * shape.head_dim;
        let (q, out) = (dev.alloc(rows, width)?, dev.alloc(rows, shape.heads * spec.value_dim())?);
        dev.upload(q, 0, &queries(shape, rows))?;
        Ok(Sequence { pools, pages, q, out })
    }

    /// Seconds of the attention alone.
    fn attend(
        &self,
        dev: &mut Cpu,
        shape: &Shape,
        positions: usize,
        rows: usize,
    ) -> Result<f64, ComputeError> {
        let Shape { heads, kv_heads, head_dim, window, .. } = *shape;
        let seqs = [SeqRows { row: 0, rows, position: positions - rows, pages: &self.pages }];
        let (scale, softcap, sinks, q, out) = (SCALE, None, None, self.q, self.out);
        let args = Attend { q, out, heads, kv_heads, head_dim, scale, window, softcap, sinks, seqs: &seqs };
        let runs = ((5e9 / shape.macs(positions, rows)) as usize).clamp(7, 5000);
        best(runs, || dev.attend(&args))
    }

    fn free(self, dev: &mut Cpu) -> Result<(), ComputeError> {
        dev.free(self.q)?;
        dev.free(self.out)?;
        self.pools.into_iter().try_for_each(|pool| dev.free_pages(pool))
    }

    /// Seconds of decoding the cache to f32 and attending to that, if it is available, and how far the result is from ours.
    #[cfg(target_arch = "x86_64")]
    fn dequantize(&self, dev: &mut Cpu, shape: &Shape, positions: usize) -> Result<(f64, f32), ComputeError> {
        let spec = shape.spec();
        let mut cache = dequantize::Cache {
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            formats: Vec::new(),
            image: Vec::new(),
            wide: vec![1.0; 2 * positions * shape.kv_heads * shape.head_dim],
        };
        for (index, &page) in self.pages.iter().enumerate() {
            let here = PAGE_POSITIONS.min(positions - index * PAGE_POSITIONS);
            dev.read_positions(page, 0..here, &mut cache.image)?;
            let spec = spec.of_page(index);
            let formats = (0..here).map(|at| at / hob_compute::BLOCK_POSITIONS);
            cache.formats.extend(formats.map(|block| [spec.k_format(block), spec.v_format(block)]));
        }
        let mut q = queries(shape, 1);
        for q in q.chunks_exact_mut(shape.head_dim) {
            if shape.kv[0].is_rotated() {
                hob_quant::hadamard(q);
            }
            q.iter_mut().for_each(|x| *x *= SCALE * std::f32::consts::LOG2_E);
        }
        let pool = hob_cpu::pool::Pool::new(dev.info().threads, true);
        let mut out = vec![0f32; q.len()];
        let seconds = best(5, || {
            // SAFETY: the caller asked whether it is available.
            unsafe { cache.attend(&pool, &q, &mut out) };
            Ok(())
        })?;
        if shape.kv[1].is_rotated() {
            out.chunks_exact_mut(shape.head_dim).for_each(hob_quant::hadamard);
        }
        let mut ours = vec![0f32; q.len()];
        dev.download(self.out, 0, &mut ours)?;
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
        let apart = norm(&mut out.iter().zip(&ours).map(|(a, b)| a - b)) / norm(&mut ours.iter().copied());
        Ok((seconds, apart))
    }
}

/// One line: time, rates, and how many times the floor that is. `read` in GB/s, of all threads.
fn line(
    dev: &mut Cpu,
    shape: &Shape,
    (positions, rows): (usize, usize),
    read: f64,
    dequantize: bool,
) -> Result<(), ComputeError> {
    // Beside each figure, because a shared machine's clock changes.
    let peak = shape.peak() * dev.info().threads as f64;
    let sequence = Sequence::new(dev, shape, positions, rows)?;
    let seconds = sequence.attend(dev, shape, positions, rows)?;
    let (macs, bytes) = (shape.macs(positions, rows), shape.bytes(positions));
    let (compute, memory) = (macs / peak / 1e9, if rows == 1 { bytes / read / 1e9 } else { 0.0 });
    let floor = compute.max(memory);
    println!(
        "{} {:2}/{} x {:3} {:>5}/{:5} {rows:3} rows to {positions:6}: {:9.1} us, {:5.1} GB/s, {:5.1} GMAC/s ({:3.0} % of \
         peak), {:.2} x floor {:.1} us ({})",
        if rows == 1 { "decode " } else { "prefill" },
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
        shape.kv[0],
        shape.kv[1],
        seconds * 1e6,
        bytes / seconds / 1e9,
        macs / seconds / 1e9,
        100.0 * compute / seconds,
        seconds / floor,
        floor * 1e6,
        if memory > compute { "memory" } else { "compute" },
    );
    #[cfg(target_arch = "x86_64")]
    if dequantize && rows == 1 && shape.window.is_none() && shape.latent.is_none() && dequantize::available()
    {
        let (then, apart) = sequence.dequantize(dev, shape, positions)?;
        println!(
            "        decoded to f32, then attended to: {:9.1} us, {:.1} times as long; results {apart:.1e} apart",
            then * 1e6,
            then / seconds
        );
    }
    let _ = dequantize;
    sequence.free(dev)
}

/// The formats of `--kv`.
fn formats(list: &str) -> Result<Vec<[KvFormat; 2]>, String> {
    let one = |name: &str| name.parse::<KvFormat>();
    let pair = |name: &str| {
        let (k, v) = name.split_once('/').unwrap_or((name, name));
        Ok([one(k)?, one(v)?])
    };
    list.split(',').map(pair).collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let dequantize = args.iter().any(|a| a == "--dequantize");
    args.retain(|a| a != "--dequantize");
    let mut kv = vec![[KvFormat::F16; 2]];
    if let Some(at) = args.iter().position(|a| a == "--kv") {
        kv = formats(args.get(at + 1).ok_or("--kv wants formats, for example f16,q8,q8/q4")?)?;
        args.drain(at..at + 2);
    }
    let mut latent = None;
    if let Some(at) = args.iter().position(|a| a == "--latent") {
        latent = Some(args.get(at + 1).ok_or("--latent wants dimensions, for example 512")?.parse()?);
        args.drain(at..at + 2);
    }
    let number = |i: usize| args.get(i).and_then(|a| a.parse::<usize>().ok());
    let threads = number(0).unwrap_or(1);
    let wanted = |what: &str| args.get(1).is_none_or(|o| o == what || o == "all");
    let mut dev = Cpu::new(&CpuConfig { threads, pin: true, ..CpuConfig::default() })?;
    println!("{:?}", dev.info());
    let shape = |heads, kv_heads, head_dim, window| {
        let kv = kv[0];
        Shape { heads, kv_heads, head_dim, window, kv, latent }
    };
    let mut shapes = vec![
        shape(9, 3, 64, None),
        shape(4, 1, 256, None),
        shape(14, 2, 64, None),
        shape(16, 8, 128, None),
        shape(32, 8, 128, None),
        shape(64, 8, 128, None),
    ];
    let mut depths = vec![512, 2048, 8192, 32768];
    if let (Some(heads), Some(kv_heads), Some(head_dim), Some(depth)) =
        (number(2), number(3), number(4), number(5))
    {
        shapes = vec![shape(heads, kv_heads, head_dim, number(6))];
        depths = vec![depth];
    }
    for shape in &shapes {
        let read = ReadProbe::new(256 << 20)?.sample(threads, 5).median_gb_per_s;
        println!("read {read:.1} GB/s");
        let prefills = depths.iter().filter(|d| (512..=8192).contains(*d) && wanted("prefill"));
        let decodes = depths.iter().filter(|_| wanted("decode"));
        for (&depth, rows) in prefills.map(|d| (d, 512)).chain(decodes.map(|d| (d, 1))) {
            for &kv in &kv {
                line(&mut dev, &Shape { kv, ..*shape }, (depth, rows), read, dequantize)?;
            }
        }
    }
    Ok(())
}
