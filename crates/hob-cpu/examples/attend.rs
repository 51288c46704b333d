//! Measures attention beside its floor: the longer of reading the KV once and of its multiply-adds at the core's peak.
//!
//! `cargo run --release -p hob-cpu --example attend -- [threads] [prefill|decode|all] [heads kv_heads head_dim depth [window]]`

use std::time::Instant;

use hob_compute::{AppendKv, Attend, Compute, ComputeError, PAGE_POSITIONS, Page, PageSpec, SeqRows};
use hob_cpu::probe::ReadProbe;
use hob_cpu::{Cpu, CpuConfig};

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

/// Multiply-adds per nanosecond of one core that works in registers only.
#[cfg(target_arch = "x86_64")]
fn peak() -> Option<f64> {
    use std::arch::x86_64::*;
    /// Rounds of 12 independent fma instructions.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn spin8(rounds: usize) -> f32 {
        let mut acc = [_mm256_set1_ps(1.0); 12];
        let (a, b) = (_mm256_set1_ps(std::hint::black_box(0.999)), _mm256_set1_ps(1e-3));
        for _ in 0..rounds {
            for acc in &mut acc {
                *acc = _mm256_fmadd_ps(*acc, a, b);
            }
        }
        _mm256_cvtss_f32(acc.into_iter().fold(_mm256_setzero_ps(), |s, a| _mm256_add_ps(s, a)))
    }
    #[target_feature(enable = "avx512f")]
    unsafe fn spin16(rounds: usize) -> f32 {
        let mut acc = [_mm512_set1_ps(1.0); 12];
        let (a, b) = (_mm512_set1_ps(std::hint::black_box(0.999)), _mm512_set1_ps(1e-3));
        for _ in 0..rounds {
            for acc in &mut acc {
                *acc = _mm512_fmadd_ps(*acc, a, b);
            }
        }
        _mm512_cvtss_f32(acc.into_iter().fold(_mm512_setzero_ps(), |s, a| _mm512_add_ps(s, a)))
    }
    if !is_x86_feature_detected!("avx2") || !is_x86_feature_detected!("fma") {
        return None;
    }
    let wide = is_x86_feature_detected!("avx512f");
    let rounds = 300_000;
    let seconds = best(20, || {
        // SAFETY: the features were detected.
        std::hint::black_box(unsafe { if wide { spin16(rounds) } else { spin8(rounds) } });
        Ok(())
    })
    .ok()?;
    Some(rounds as f64 * 12.0 * if wide { 16.0 } else { 8.0 } / seconds / 1e9)
}

#[cfg(not(target_arch = "x86_64"))]
fn peak() -> Option<f64> {
    None
}

#[derive(Copy, Clone)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
}

impl Shape {
    /// Multiply-adds of the last `rows` of `positions` positions.
    fn macs(&self, positions: usize, rows: usize) -> f64 {
        let seen = |p: usize| self.window.map_or(p, |w| w.min(p));
        let pairs: usize = (positions - rows + 1..=positions).map(seen).sum();
        (2 * pairs * self.heads * self.head_dim) as f64
    }

    /// Bytes of K and V that one row reads.
    fn bytes(&self, positions: usize) -> f64 {
        let seen = self.window.map_or(positions, |w| w.min(positions));
        (seen * self.kv_heads * self.head_dim * 4) as f64
    }
}

/// Fills `positions` positions, then attends with the last `rows` of them. Seconds of the attention alone.
fn measure(dev: &mut Cpu, shape: &Shape, positions: usize, rows: usize) -> Result<f64, ComputeError> {
    let Shape { heads, kv_heads, head_dim, window } = *shape;
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
    let (scale, softcap, sinks) = (0.1, None, None);
    let args = Attend { q, out, heads, kv_heads, head_dim, scale, window, softcap, sinks, seqs: &seqs };
    let macs = shape.macs(positions, rows);
    let runs = ((5e9 / macs) as usize).clamp(7, 5000);
    let seconds = best(runs, || dev.attend(&args))?;
    dev.free(q)?;
    dev.free(out)?;
    dev.free(kv)?;
    dev.free_pages(pool)?;
    Ok(seconds)
}

/// One line: time, rates, and how many times the floor that is. `read` in GB/s, of all threads.
fn line(
    dev: &mut Cpu,
    shape: &Shape,
    (positions, rows): (usize, usize),
    read: f64,
) -> Result<(), ComputeError> {
    // Beside each figure, because a shared machine's clock changes.
    let peak = peak().unwrap_or(f64::INFINITY) * dev.info().threads as f64;
    let seconds = measure(dev, shape, positions, rows)?;
    let (macs, bytes) = (shape.macs(positions, rows), shape.bytes(positions));
    let (compute, memory) = (macs / peak / 1e9, if rows == 1 { bytes / read / 1e9 } else { 0.0 });
    let floor = compute.max(memory);
    println!(
        "{} {:2}/{} x {:3}, {rows:3} rows to {positions:5}: {:9.1} us, {:5.1} GB/s, {:5.1} GMAC/s ({:3.0} % of peak), \
         {:.2} x floor {:.1} us ({})",
        if rows == 1 { "decode " } else { "prefill" },
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
        seconds * 1e6,
        bytes / seconds / 1e9,
        macs / seconds / 1e9,
        100.0 * compute / seconds,
        seconds / floor,
        floor * 1e6,
        if memory > compute { "memory" } else { "compute" },
    );
    Ok(())
}

fn main() -> Result<(), ComputeError> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize| args.get(i).and_then(|a| a.parse::<usize>().ok());
    let threads = number(0).unwrap_or(1);
    let wanted = |what: &str| args.get(1).is_none_or(|o| o == what || o == "all");
    let mut dev = Cpu::new(&CpuConfig { threads, pin: true, ..CpuConfig::default() })?;
    println!("{:?}", dev.info());
    let shape = |heads, kv_heads, head_dim, window| Shape { heads, kv_heads, head_dim, window };
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
        for &depth in depths.iter().filter(|d| (512..=8192).contains(*d) && wanted("prefill")) {
            line(&mut dev, shape, (depth, 512), read)?;
        }
        for &depth in depths.iter().filter(|_| wanted("decode")) {
            line(&mut dev, shape, (depth, 1), read)?;
        }
    }
    Ok(())
}
