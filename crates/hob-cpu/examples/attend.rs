//! Measures attention: prefill in GFLOP/s beside the core's own FMA peak, decode in GB/s beside a plain read of memory.
//!
//! `cargo run --release -p hob-cpu --example attend [threads [prefill|decode]]`

use std::time::Instant;

use hob_compute::{AppendKv, Attend, Compute, ComputeError, PAGE_POSITIONS, Page, PageSpec, SeqRows};
use hob_cpu::probe::ReadProbe;
use hob_cpu::{Cpu, CpuConfig};

/// Fastest of several runs, in seconds.
fn best(runs: usize, mut work: impl FnMut() -> Result<(), ComputeError>) -> Result<f64, ComputeError> {
    let mut best = f64::INFINITY;
    for _ in 0..runs {
        let start = Instant::now();
        work()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// GFLOP/s of one core multiplying and adding registers only.
#[cfg(target_arch = "x86_64")]
fn peak_gflops() -> Option<f64> {
    use std::arch::x86_64::*;
    #[target_feature(enable = "avx2,fma")]
    unsafe fn spin(rounds: usize) -> f32 {
        let mut acc = [_mm256_set1_ps(1.0); 12];
        let (a, b) = (_mm256_set1_ps(std::hint::black_box(0.999)), _mm256_set1_ps(1e-3));
        for _ in 0..rounds {
            for acc in &mut acc {
                *acc = _mm256_fmadd_ps(*acc, a, b);
            }
        }
        let sum = acc.into_iter().fold(_mm256_setzero_ps(), |s, a| _mm256_add_ps(s, a));
        _mm256_cvtss_f32(sum)
    }
    if !is_x86_feature_detected!("avx2") || !is_x86_feature_detected!("fma") {
        return None;
    }
    let rounds = 2_000_000;
    let seconds = best(5, || {
        // SAFETY: AVX2 and FMA were detected.
        std::hint::black_box(unsafe { spin(rounds) });
        Ok(())
    })
    .ok()?;
    Some(rounds as f64 * 12.0 * 16.0 / seconds / 1e9)
}

#[cfg(not(target_arch = "x86_64"))]
fn peak_gflops() -> Option<f64> {
    None
}

struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// Fills `positions` positions, then attends with the last `rows` of them. Seconds of the attention alone.
fn measure(dev: &mut Cpu, shape: &Shape, positions: usize, rows: usize) -> Result<f64, ComputeError> {
    let Shape { heads, kv_heads, head_dim } = *shape;
    let spec = PageSpec { kv_heads, head_dim };
    let count = positions.div_ceil(PAGE_POSITIONS);
    let pool = dev.alloc_pages(&spec, count)?;
    let pages: Vec<Page> = (0..count as u32).map(|index| Page { pool, index }).collect();
    let width = kv_heads * head_dim;
    let values: Vec<f32> = (0..256 * width).map(|i| ((i * 7919) % 1000) as f32 * 2e-3 - 1.0).collect();
    let kv = dev.alloc(256, width)?;
    dev.upload(kv, 0, &values)?;
    for position in (0..positions).step_by(256) {
        let seqs = [SeqRows { row: 0, rows: 256.min(positions - position), position, pages: &pages }];
        dev.append_kv(&AppendKv { k: kv, v: kv, seqs: &seqs })?;
    }
    let (q, out) = (dev.alloc(rows, heads * head_dim)?, dev.alloc(rows, heads * head_dim)?);
    dev.upload(q, 0, &vec![0.25; rows * heads * head_dim])?;
    let seqs = [SeqRows { row: 0, rows, position: positions - rows, pages: &pages }];
    let args = Attend {
        q,
        out,
        heads,
        kv_heads,
        head_dim,
        scale: 0.1,
        window: None,
        softcap: None,
        sinks: None,
        seqs: &seqs,
    };
    let seconds = best(if rows == 1 { 50 } else { 7 }, || dev.attend(&args))?;
    dev.free(q)?;
    dev.free(out)?;
    dev.free(kv)?;
    dev.free_pages(pool)?;
    Ok(seconds)
}

fn main() -> Result<(), ComputeError> {
    let threads = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(1);
    let only = std::env::args().nth(2);
    let wanted = |what: &str| only.as_deref().is_none_or(|o| o == what);
    let mut dev = Cpu::new(&CpuConfig { threads, pin: true, ..CpuConfig::default() })?;
    println!("{:?}", dev.info());
    let shapes = [
        Shape { heads: 9, kv_heads: 3, head_dim: 64 },
        Shape { heads: 16, kv_heads: 8, head_dim: 128 },
        Shape { heads: 32, kv_heads: 8, head_dim: 128 },
        Shape { heads: 64, kv_heads: 8, head_dim: 128 },
    ];
    for shape in &shapes {
        let Shape { heads, kv_heads, head_dim } = *shape;
        for (positions, rows) in
            [(512, 512), (2048, 512), (8192, 512)].into_iter().filter(|_| wanted("prefill"))
        {
            let seconds = measure(&mut dev, shape, positions, rows)?;
            let seen: usize = (positions - rows + 1..=positions).sum();
            let gflops = (4 * seen * heads * head_dim) as f64 / seconds / 1e9;
            // Beside each figure, because a shared machine's clock changes.
            let peak = peak_gflops();
            let share = peak.map_or(0.0, |p| 100.0 * gflops / p / threads as f64);
            println!(
                "prefill {heads:2}/{kv_heads} x {head_dim:3}: {rows} rows to {positions:5}: {:8.2} ms {gflops:6.1} GFLOP/s, \
                 {share:3.0} % of {:.1} per core",
                seconds * 1e3,
                peak.unwrap_or(0.0)
            );
        }
        for positions in [200, 2048, 8192, 32768].into_iter().filter(|_| wanted("decode")) {
            let seconds = measure(&mut dev, shape, positions, 1)?;
            let bytes = positions * kv_heads * head_dim * 4;
            println!(
                "decode  {heads:2}/{kv_heads} x {head_dim:3}: {positions:5} positions: {:8.1} us {:5.1} GB/s",
                seconds * 1e6,
                bytes as f64 / seconds / 1e9
            );
        }
        let pass = ReadProbe::new(256 << 20)?.sample(threads, 5);
        println!("read {:.1} GB/s (spread {:.2})", pass.median_gb_per_s, pass.spread);
    }
    Ok(())
}
