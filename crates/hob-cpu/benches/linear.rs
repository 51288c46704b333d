//! Product kernels by format, shape and rows: `cargo bench -p hob-cpu --bench linear [-- threads] [formats]`.
//!
//! Prints GB/s of packed weights and GMAC/s, best of 7. Compare figures of one run only: shared machines drift; `hob
//! bench` has the read limit beside each sample.

use std::time::Instant;

use hob_compute::act::uses_int8;
use hob_compute::{ByteSource, Combine, WeightKind, WeightSpec};
use hob_cpu::Isa;
use hob_cpu::arena::Arena;
use hob_cpu::linear::{ActCache, Job, LoadCtx, Matrix, ProductJob, run};
use hob_cpu::pool::Pool;
use hob_quant::Format;

struct Noise(u64);

impl ByteSource for Noise {
    fn len(&self) -> u64 {
        self.0
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let mut s = offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for b in buf.iter_mut() {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            // Scales, wherever a format keeps them: finite, and far from subnormal.
            *b = (s as u8) & 0x3b | 0x48;
        }
        Ok(())
    }
}

fn time(mut work: impl FnMut()) -> f64 {
    work();
    let mut best = f64::MAX;
    for _ in 0..7 {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// Everything with a kernel of its own; the others are decoded to f32.
fn formats() -> Vec<Format> {
    let named: Vec<Format> = std::env::args().filter_map(|a| Format::from_name(&a)).collect();
    if !named.is_empty() {
        return named;
    }
    let float = [Format::F16, Format::BF16, Format::F32];
    Format::ALL.iter().copied().filter(|&f| uses_int8(f) || float.contains(&f)).collect()
}

fn main() {
    let threads = std::env::args().filter_map(|a| a.parse().ok()).next().unwrap_or(1);
    let isa = Isa::detect();
    let pool = Pool::new(threads, true);
    println!("{isa}, {threads} threads");
    for format in formats() {
        // Larger than every cache; and of the size of a layer, where prefill is measured.
        for (cols, rows) in [(2048usize, 65536usize), (1536, 1536)] {
            let arena = Arena::new();
            let bytes = (rows * format.row_bytes(cols).unwrap()) as u64;
            let spec = WeightSpec { name: "bench".into(), kind: WeightKind::Matrix, format, rows, cols };
            let ctx = LoadCtx { isa, exact: false, pool: &pool, arena: &arena };
            let m = Matrix::load(&spec, &Noise(bytes), &ctx).unwrap();
            let most = if rows > 1536 { 8 } else { 512 };
            let x: Vec<f32> = (0..most * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
            let mut out = vec![0f32; most * rows];
            for n in [1usize, 2, 3, 4, 8, 512].into_iter().filter(|&n| n <= most) {
                let secs = one(&pool, isa, &m, (n, &x), &mut out);
                println!(
                    "{format:>8} {rows}x{cols} n={n:<3} {:8.1} GB/s {:8.1} GMAC/s",
                    m.bytes() as f64 / secs / 1e9,
                    (rows * cols * n) as f64 / secs / 1e9
                );
            }
        }
    }
}

/// Seconds of one product of `n` rows.
fn one(pool: &Pool, isa: Isa, m: &Matrix, (n, x): (usize, &[f32]), out: &mut [f32]) -> f64 {
    let reps = (50_000_000 / (m.rows() * m.cols() * n)).max(1);
    let mut cache = ActCache::default();
    time(|| {
        for _ in 0..reps {
            cache.invalidate();
            let job = Job {
                x,
                x_stride: m.cols(),
                rows: n,
                cache: &mut cache,
                first_row: 0,
                products: &mut [ProductJob { matrix: m, bias: None, out }],
                combine: Combine::Store,
            };
            run(pool, isa, job).unwrap();
        }
    }) / reps as f64
}
