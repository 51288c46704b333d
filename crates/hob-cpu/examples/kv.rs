//! Measures KV of every format beside f16: appending, saving and restoring positions, and one row of attention.
//!
//! `cargo run --release -p hob-cpu --example kv -- [threads] [heads kv_heads head_dim depth]`

use std::time::Instant;

use hob_compute::{AppendKv, Attend, Buf, Compute, ComputeError, PAGE_POSITIONS, Page, PageSpec, SeqRows};
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

struct Bench {
    dev: Cpu,
    heads: usize,
    spec: PageSpec,
    depth: usize,
}

impl Bench {
    fn pages(&mut self) -> Result<Vec<Page>, ComputeError> {
        let count = self.depth.div_ceil(PAGE_POSITIONS);
        let rest = self.dev.alloc_pages(&self.spec, count)?;
        let first = self.dev.alloc_pages(&self.spec.of_page(0), 1)?;
        let page = |i| if i == 0 { Page { pool: first, index: 0 } } else { Page { pool: rest, index: i } };
        Ok((0..count as u32).map(page).collect())
    }

    /// `rows` rows of made-up values.
    fn rows(&mut self, rows: usize, width: usize) -> Result<Buf, ComputeError> {
        let values: Vec<f32> = (0..rows * width).map(|i| ((i * 7919) % 1000) as f32 * 2e-3 - 1.0).collect();
        let buf = self.dev.alloc(rows, width)?;
        self.dev.upload(buf, 0, &values)?;
        Ok(buf)
    }

    fn line(&mut self) -> Result<(), ComputeError> {
        let (PageSpec { kv_heads, head_dim, k, v, .. }, depth) = (self.spec, self.depth);
        let (pages, width) = (self.pages()?, kv_heads * head_dim);
        let kv = self.rows(PAGE_POSITIONS, width)?;
        let fill = |dev: &mut Cpu, position: usize, rows: usize| {
            let seqs = [SeqRows { row: 0, rows, position, pages: &pages }];
            dev.append_kv(&AppendKv { k: kv, v: kv, seqs: &seqs })
        };
        for position in (0..depth).step_by(PAGE_POSITIONS) {
            fill(&mut self.dev, position, PAGE_POSITIONS.min(depth - position))?;
        }
        let last = depth / PAGE_POSITIONS * PAGE_POSITIONS - PAGE_POSITIONS;
        let many = best(30, || fill(&mut self.dev, last, PAGE_POSITIONS))?;
        let one = best(300, || (0..16).try_for_each(|i| fill(&mut self.dev, last + i, 1)))?;
        let (mut image, page) = (Vec::new(), pages[last / PAGE_POSITIONS]);
        let save = best(30, || {
            image.clear();
            self.dev.read_positions(page, 0..PAGE_POSITIONS, &mut image)
        })?;
        let restore = best(30, || self.dev.write_positions(page, 0..PAGE_POSITIONS, &image))?;
        let heads = self.heads;
        let q = self.rows(PAGE_POSITIONS, heads * head_dim)?;
        let out = self.dev.alloc(PAGE_POSITIONS, heads * head_dim)?;
        let mut attend = |rows: usize, runs: usize| {
            let seqs = [SeqRows { row: 0, rows, position: depth - rows, pages: &pages }];
            let (scale, window, softcap, sinks) = (0.1, None, None, None);
            let args =
                Attend { q, out, heads, kv_heads, head_dim, scale, window, softcap, sinks, seqs: &seqs };
            best(runs, || self.dev.attend(&args))
        };
        let (decode, prefill) = (attend(1, 200)?, attend(PAGE_POSITIONS, 5)?);
        let vectors = |seconds: f64, rows: usize| seconds * 1e9 / (rows * kv_heads) as f64;
        let rate = |seconds: f64| image.len() as f64 / seconds / 1e9;
        println!(
            "{:>11}: append {:6.1} ns a token and KV head (one token {:6.1}); save {:5.2} GB/s, restore {:5.2} GB/s; \
             attend {:8.1} us, 256 rows {:8.2} ms",
            format!("{k}/{v}"),
            vectors(many, PAGE_POSITIONS),
            vectors(one, 16),
            rate(save),
            rate(restore),
            decode * 1e6,
            prefill * 1e3,
        );
        [kv, q, out].into_iter().try_for_each(|buf| self.dev.free(buf))?;
        self.dev.free_pages(pages[0].pool)?;
        self.dev.free_pages(page.pool)
    }
}

fn main() -> Result<(), ComputeError> {
    let args: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let number = |i: usize, or: usize| args.get(i).copied().unwrap_or(or);
    let threads = number(0, 1);
    let dev = Cpu::new(&CpuConfig { threads, pin: threads > 1, ..CpuConfig::default() })?;
    println!("{:?}", dev.info());
    let (heads, kv_heads, head_dim, depth) =
        (number(1, 32), number(2, 8), number(3, 128), number(4, 4096).max(512));
    let mut bench = Bench { dev, heads, spec: PageSpec::f16(kv_heads, head_dim), depth };
    for (k, v) in [
        (KvFormat::F16, KvFormat::F16),
        (KvFormat::Bf16, KvFormat::Bf16),
        (KvFormat::Q8, KvFormat::Q8),
        (KvFormat::Q8, KvFormat::Q4),
        (KvFormat::Q4, KvFormat::Q4),
        (KvFormat::Asym4, KvFormat::Asym4),
    ] {
        bench.spec = PageSpec { k, v, ..bench.spec };
        bench.line()?;
    }
    Ok(())
}
