//! Measures the machine as kernels see it: read bandwidth, core-to-core latency, caches, other processes.
//!
//! Figures are samples: the same machine gives others a second later, so whoever compares measures both sides at once.

use std::hint::{black_box, spin_loop};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hob_compute::Result;

use crate::affinity::{allowed_cpus, pin_to_nth};
use crate::arena::HugeVec;
use crate::isa::Isa;
use crate::pool::Pool;

/// Threads worth starting: the affinity mask, limited by the whole CPUs of the cgroup's quota (v1 and v2), at least 1.
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// One read of the whole buffer.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct Pass {
    pub micros: f64,
    pub gb_per_s: f64,
}

/// Several passes by the same threads.
#[derive(Clone, Debug, PartialEq)]
pub struct BandwidthSample {
    pub threads: usize,
    pub bytes: usize,
    pub best_gb_per_s: f64,
    pub median_gb_per_s: f64,
    /// (best - worst) / median
    pub spread: f64,
    /// In order of measurement.
    pub passes: Vec<Pass>,
}

/// A buffer in huge-page memory, kept so that each further pass is quick.
pub struct ReadProbe {
    buffer: HugeVec<u8>,
    pool: Pool,
    isa: Isa,
}

impl ReadProbe {
    /// A buffer of at least 1 MiB, touched so that it is memory and not a promise. Use more than the caches hold.
    ///
    /// # Errors
    /// No memory.
    pub fn new(bytes: usize) -> Result<ReadProbe> {
        let mut buffer = HugeVec::zeroed(bytes.max(1 << 20).next_multiple_of(4096))?;
        buffer.iter_mut().step_by(64).enumerate().for_each(|(i, b)| *b = i as u8);
        Ok(ReadProbe { buffer, pool: Pool::new(1, false), isa: Isa::detect() })
    }

    pub fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Reads the buffer once with `threads` threads, each its own contiguous share.
    pub fn pass(&mut self, threads: usize) -> Pass {
        if self.pool.threads() != threads.max(1) {
            self.pool = Pool::new(threads, true);
        }
        self.pool.run(&|_| ());
        let (threads, start) = (self.pool.threads(), Instant::now());
        let lines = self.buffer.len() / 64;
        self.pool.run(&|t| {
            let share = lines * t / threads * 64..lines * (t + 1) / threads * 64;
            black_box(read(self.isa, &self.buffer[share]));
        });
        let seconds = start.elapsed().as_secs_f64().max(1e-9);
        Pass { micros: seconds * 1e6, gb_per_s: self.buffer.len() as f64 / seconds / 1e9 }
    }

    /// `passes` passes, at least one.
    pub fn sample(&mut self, threads: usize, passes: usize) -> BandwidthSample {
        let passes: Vec<Pass> = (0..passes.max(1)).map(|_| self.pass(threads)).collect();
        summarize(self.pool.threads(), self.buffer.len(), passes)
    }
}

fn summarize(threads: usize, bytes: usize, passes: Vec<Pass>) -> BandwidthSample {
    let mut sorted: Vec<f64> = passes.iter().map(|p| p.gb_per_s).collect();
    sorted.sort_by(f64::total_cmp);
    let (worst, median) = (sorted[0], sorted[sorted.len() / 2]);
    let best = sorted[sorted.len() - 1];
    BandwidthSample {
        threads,
        bytes,
        best_gb_per_s: best,
        median_gb_per_s: median,
        spread: (best - worst) / median,
        passes,
    }
}

/// Read bandwidth of `threads` threads over a fresh buffer of `bytes`.
///
/// # Errors
/// No memory.
pub fn read_bandwidth(threads: usize, bytes: usize, passes: usize) -> Result<BandwidthSample> {
    Ok(ReadProbe::new(bytes)?.sample(threads, passes))
}

/// Combines all bytes, so that none of the reads can be left out.
fn read(isa: Isa, bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: the ISA class was detected.
        return unsafe { read_avx2(bytes) };
    }
    let _ = isa;
    let mut sums = [0u64; 8];
    for line in bytes.chunks_exact(64) {
        for (sum, word) in sums.iter_mut().zip(line.chunks_exact(8)) {
            *sum ^= word.iter().fold(0, |w, &b| w << 8 | u64::from(b));
        }
    }
    sums.iter().fold(0, |a, s| a ^ s)
}

/// # Safety
/// Needs AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn read_avx2(bytes: &[u8]) -> u64 {
    use std::arch::x86_64::*;
    let mut sums = [_mm256_setzero_si256(); 8];
    for chunk in bytes.chunks_exact(256) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: 8 x 32 bytes of a 256-byte chunk.
            let v = unsafe { _mm256_loadu_si256(chunk.as_ptr().add(32 * i).cast()) };
            *sum = _mm256_xor_si256(*sum, v);
        }
    }
    let all = sums.into_iter().fold(_mm256_setzero_si256(), |a, s| _mm256_xor_si256(a, s));
    _mm256_extract_epi64::<0>(all) as u64 ^ _mm256_extract_epi64::<3>(all) as u64
}

/// Nanoseconds for a cache line to travel from one core to another: the best of several batches of round trips
/// between two pinned threads, halved. `None` where two CPUs are not to be had or do not run at once.
pub fn ping_pong_nanos() -> Option<f64> {
    const ROUNDS: u32 = 1000;
    const BATCHES: u32 = 20;
    const PATIENCE: Duration = Duration::from_millis(200);
    if allowed_cpus().len() < 2 {
        return None;
    }
    let (ball, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin_to_nth(1);
            while !stop.load(Ordering::Relaxed) {
                let now = ball.load(Ordering::Acquire);
                if now % 2 == 1 {
                    ball.store(now.wrapping_add(1), Ordering::Release);
                } else {
                    spin_loop();
                }
            }
        });
        let player = scope.spawn(|| {
            pin_to_nth(0);
            let deadline = Instant::now() + PATIENCE;
            let mut best: Option<f64> = None;
            'batches: for batch in 0..BATCHES {
                let start = Instant::now();
                for round in 0..ROUNDS {
                    let serve = 2 * (batch * ROUNDS + round);
                    ball.store(serve + 1, Ordering::Release);
                    let mut spins = 0u32;
                    while ball.load(Ordering::Acquire) != serve + 2 {
                        spin_loop();
                        spins += 1;
                        if spins.is_multiple_of(4096) && Instant::now() > deadline {
                            break 'batches;
                        }
                    }
                }
                let nanos = start.elapsed().as_nanos() as f64 / f64::from(2 * ROUNDS);
                best = Some(best.map_or(nanos, |b| b.min(nanos)));
            }
            best
        });
        let best = player.join();
        stop.store(true, Ordering::Relaxed);
        best.ok().flatten()
    })
}

/// Watches how much CPU time other processes (and, on a virtual machine, other guests) use meanwhile.
pub struct BusyWatch {
    start: Option<(Usage, Instant)>,
}

/// CPU seconds: of the whole machine without idling, and of this process.
#[derive(Copy, Clone, Debug, PartialEq)]
struct Usage {
    machine: f64,
    own: f64,
}

impl BusyWatch {
    pub fn start() -> BusyWatch {
        BusyWatch { start: usage().map(|u| (u, Instant::now())) }
    }

    /// CPUs that others kept busy since the start, on average. `None` where the system does not say, or within
    /// 50 milliseconds of the start: the counters tick in hundredths of a second.
    pub fn other_cpus(&self) -> Option<f64> {
        let (before, at) = self.start?;
        let seconds = at.elapsed().as_secs_f64();
        let now = usage().filter(|_| seconds >= 0.05)?;
        Some(((now.machine - before.machine - (now.own - before.own)) / seconds).max(0.0))
    }
}

#[cfg(target_os = "linux")]
fn usage() -> Option<Usage> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    // SAFETY: no arguments but a constant.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let machine = busy_ticks(&stat)? as f64 / if ticks > 0 { ticks as f64 } else { 100.0 };
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills `time`.
    let ok = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) } == 0;
    ok.then_some(Usage { machine, own: time.tv_sec as f64 + time.tv_nsec as f64 / 1e9 })
}

#[cfg(not(target_os = "linux"))]
fn usage() -> Option<Usage> {
    None
}

/// user + nice + system + irq + softirq + steal of the first line of `/proc/stat`; guest time is part of user time.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|l| l.strip_prefix("cpu "))?;
    let field: Vec<u64> = line.split_whitespace().map_while(|f| f.parse().ok()).collect();
    if field.len() < 4 {
        return None;
    }
    Some(field.iter().enumerate().take(8).filter(|(i, _)| !matches!(i, 3 | 4)).map(|(_, v)| v).sum())
}

/// Instruction sets that matter here and that this CPU has, by their usual names.
pub fn isa_names() -> Vec<&'static str> {
    #[allow(unused_mut, reason = "other architectures have no list yet")]
    let mut names = Vec::new();
    #[allow(unused_macros, reason = "as above")]
    macro_rules! probe {
        ($detected:ident: $($name:tt)*) => {$(
            if std::arch::$detected!($name) {
                names.push($name);
            }
        )*};
    }
    #[cfg(target_arch = "x86_64")]
    probe!(is_x86_feature_detected: "sse4.2" "avx" "avx2" "fma" "f16c" "avxvnni" "avx512f" "avx512bw" "avx512vnni"
        "avx512vbmi" "avx512bf16" "avx512fp16");
    #[cfg(target_arch = "aarch64")]
    probe!(is_aarch64_feature_detected: "neon" "fp16" "dotprod" "i8mm" "bf16" "sve" "sve2");
    names
}

/// Data caches of the first CPU, in bytes; 0 where unknown. L1 and L2 are per core, L3 as one core sees it.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Caches {
    pub l1_bytes: usize,
    pub l2_bytes: usize,
    pub l3_bytes: usize,
}

/// Reads `/sys`; all zero on systems without it.
pub fn caches() -> Caches {
    caches_in(Path::new("/sys/devices/system/cpu/cpu0/cache"))
}

fn caches_in(dir: &Path) -> Caches {
    let mut found = Caches::default();
    for index in 0..8 {
        let dir = dir.join(format!("index{index}"));
        let text = |name: &str| std::fs::read_to_string(dir.join(name)).ok().map(|t| t.trim().to_owned());
        let (Some(level), Some(kind), Some(size)) = (text("level"), text("type"), text("size")) else {
            continue;
        };
        let Some(bytes) = parse_size(&size).filter(|_| kind != "Instruction") else { continue };
        match level.as_str() {
            "1" => found.l1_bytes = bytes,
            "2" => found.l2_bytes = bytes,
            "3" => found.l3_bytes = bytes,
            _ => {}
        }
    }
    found
}

/// `512K`, `32M` or plain bytes.
fn parse_size(text: &str) -> Option<usize> {
    let digits = text.trim_end_matches(['K', 'M', 'G']);
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return None,
    };
    digits.parse::<usize>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_read() {
        let mut bytes = vec![0u8; 4096];
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            let zero = read(isa, &bytes);
            // Bytes of the first and the last register of the first and the last chunk.
            for at in [0, 31, 224, 4096 - 256, 4096 - 1] {
                bytes[at] = 1;
                assert_ne!(read(isa, &bytes), zero, "{isa}: byte {at}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn a_sample_summarizes_its_passes() {
        let pass = |gb_per_s| Pass { micros: 1.0, gb_per_s };
        let sample = summarize(2, 64, vec![pass(10.0), pass(40.0), pass(20.0)]);
        assert_eq!((sample.best_gb_per_s, sample.median_gb_per_s, sample.spread), (40.0, 20.0, 1.5));
    }

    #[test]
    fn passes_are_positive_for_any_thread_count() {
        let mut probe = ReadProbe::new(1 << 20).unwrap();
        for threads in [1, 2, 3, 1] {
            let pass = probe.pass(threads);
            assert!(pass.gb_per_s > 0.0 && pass.micros > 0.0);
        }
        assert_eq!(probe.sample(2, 0).passes.len(), 1);
    }

    #[test]
    fn proc_stat_counts_all_but_idle_and_guest_time() {
        let stat = "cpu  100 1 20 5000 7 3 4 5 60 70\ncpu0 1 1 1 1\n";
        assert_eq!(busy_ticks(stat), Some(133));
        assert_eq!(busy_ticks("cpu  1 2\n"), None);
        assert_eq!(busy_ticks("intr 5\n"), None);
    }

    #[test]
    fn cache_sizes_are_parsed() {
        assert_eq!(parse_size("512K"), Some(512 << 10));
        assert_eq!(parse_size("32M"), Some(32 << 20));
        assert_eq!(parse_size("64"), Some(64));
        assert_eq!(parse_size("x"), None);
        assert_eq!(parse_size("99999999999999999999G"), None);
        assert_eq!(caches_in(Path::new("/nowhere")), Caches::default());
    }

    #[test]
    fn there_is_always_a_thread() {
        assert!(available_threads() >= 1);
    }

    #[test]
    fn ping_pong_is_positive_or_absent() {
        match ping_pong_nanos() {
            Some(nanos) => assert!(nanos > 0.0),
            None => eprintln!("skipped: fewer than two CPUs ran at once"),
        }
    }

    #[test]
    fn a_watch_needs_time_to_say_anything() {
        let watch = BusyWatch::start();
        assert_eq!(watch.other_cpus(), None);
    }
}
