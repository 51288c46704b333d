//! Product kernels by format, shape and rows: `cargo bench -p hob-cpu --bench linear [-- threads]`.
//!
//! Prints GB/s of weight bytes and GMAC/s, best of 7. Compare figures of one run only: shared machines drift; `hob bench`
//! has the read limit beside each sample.

use std::time::Instant;

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
            *b = (s as u8) & 0x3b;
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

fn main() {
    let threads = std::env::args().filter_map(|a| a.parse().ok()).next().unwrap_or(1);
    let isa = Isa::detect();
    let pool = Pool::new(threads, true);
    let arena = Arena::new();
    println!("{isa}, {threads} threads");
    for format in [Format::Q4_0, Format::Q4_1, Format::Q8_0, Format::F16, Format::F32] {
        for (cols, rows) in [(2048usize, 65536usize), (576, 1536), (1536, 576)] {
            let bytes = (rows * format.row_bytes(cols).unwrap()) as u64;
            let spec = WeightSpec { name: "bench".into(), kind: WeightKind::Matrix, format, rows, cols };
            let ctx = LoadCtx { isa, exact: false, pool: &pool, arena: &arena };
            let m = Matrix::load(&spec, &Noise(bytes), &ctx).unwrap();
            let x: Vec<f32> = (0..512 * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
            let mut out = vec![0f32; 512 * rows.min(1536)];
            for n in [1usize, 2, 4, 8, 512] {
                if n > 8 && rows > 1536 || out.len() < n * rows {
                    continue;
                }
                let reps = (50_000_000 / (rows * cols)).max(1);
                let mut cache = ActCache::default();
                let secs = time(|| {
                    for _ in 0..reps {
                        cache.invalidate();
                        let job = Job {
                            x: &x,
                            x_stride: cols,
                            rows: n,
                            cache: &mut cache,
                            first_row: 0,
                            products: &mut [ProductJob { matrix: &m, bias: None, out: &mut out }],
                            combine: Combine::Store,
                        };
                        run(&pool, isa, job).unwrap();
                    }
                }) / reps as f64;
                println!(
                    "{format:>5} {rows}x{cols} n={n:<3} {:8.1} GB/s {:8.1} GMAC/s",
                    bytes as f64 / secs / 1e9,
                    (rows * cols * n) as f64 / secs / 1e9
                );
            }
        }
    }
}
