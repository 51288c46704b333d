//! `Machine`: what is here, stated and measured. Owns the probe of read bandwidth and its cache under `HOB_HOME`; it
//! must not know models.

use std::fmt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use hob_cpu::probe;
use serde::{Deserialize, Serialize};

use crate::facts::{CpuFacts, MemoryFacts, SysRoot};
use crate::gpus::Gpus;
use crate::tuning::TuningTable;
use crate::units::{show_bytes, show_figures};

/// File under `HOB_HOME` that holds the probes.
pub const CACHE_FILE: &str = "machine.json";
/// Probes kept: one per distinct set of facts (a container with fewer cores, another ISA).
const CACHE_ENTRIES: usize = 8;
/// Passes over the buffer per thread count; the best counts.
const PASSES: usize = 8;
/// CPUs' worth of work by others, beyond CPUs we leave idle, that spoils a measurement.
const BUSY_CPUS: f64 = 0.15;

/// Read bandwidth at one thread count: 10^9 bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReadRate {
    pub threads: usize,
    pub best_gb_per_s: f64,
    pub median_gb_per_s: f64,
    /// (best - worst) / best over the passes.
    pub spread: f64,
}

/// What was measured, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// Ascending thread counts, from 1 to the threads this process may use.
    pub read: Vec<ReadRate>,
    /// One-way time of a cache line between two threads; tells which of two bandwidth states a virtual machine is in.
    pub ping_pong_nanos: Option<f64>,
    /// CPUs' worth of work by others during the probe.
    pub others_cpus: Option<f64>,
    /// Whether that was enough to spoil the figures.
    pub busy: bool,
    /// Seconds since 1970.
    pub measured_unix: u64,
}

/// This computer, as a plan needs it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Version of hob that measured.
    pub hob: String,
    pub cpu: CpuFacts,
    /// Memory as it was when this value was made (never from the cache).
    pub memory: MemoryFacts,
    pub probe: Probe,
    /// Found by [`Machine::tuned`]; the kernels' defaults where there is none.
    #[serde(default)]
    pub tuning: Option<TuningTable>,
    /// Looked for by [`Machine::with_gpus`]; never from this cache.
    #[serde(default, skip_deserializing)]
    pub gpus: Gpus,
    /// What did not work about the cache, for people.
    #[serde(skip)]
    pub notes: Vec<String>,
}

/// What a prober found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    pub read: Vec<ReadRate>,
    pub ping_pong_nanos: Option<f64>,
    pub others_cpus: Option<f64>,
}

/// Measures; the real one calls `hob_cpu::probe`.
pub trait Prober {
    /// Reads a buffer of `bytes` with each number of `threads`.
    ///
    /// # Errors
    /// Why it could not be measured.
    fn measure(&mut self, threads: &[usize], bytes: usize) -> Result<Measured, String>;
}

struct CpuProber;

impl Prober for CpuProber {
    fn measure(&mut self, threads: &[usize], bytes: usize) -> Result<Measured, String> {
        let watch = probe::BusyWatch::start();
        let mut buffer = probe::ReadProbe::new(bytes).map_err(|e| e.to_string())?;
        let read = threads.iter().map(|&n| rate(n, &buffer.sample(n, PASSES))).collect();
        let ping_pong_nanos = probe::ping_pong_nanos();
        Ok(Measured { read, ping_pong_nanos, others_cpus: watch.other_cpus() })
    }
}

fn rate(threads: usize, sample: &probe::BandwidthSample) -> ReadRate {
    let worst = sample.passes.iter().map(|p| p.gb_per_s).fold(sample.best_gb_per_s, f64::min);
    ReadRate {
        threads,
        best_gb_per_s: sample.best_gb_per_s,
        median_gb_per_s: sample.median_gb_per_s,
        spread: 1.0 - worst / sample.best_gb_per_s.max(f64::MIN_POSITIVE),
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Cache {
    machines: Vec<Machine>,
}

impl Machine {
    /// The machine with its cached probe; measures (about a second) only when there is none for these facts.
    pub fn cached(home: &Path) -> Self {
        Self::obtain(&SysRoot::default(), home, false, &mut CpuProber)
    }

    /// Measures again and stores the result.
    pub fn refreshed(home: &Path) -> Self {
        Self::obtain(&SysRoot::default(), home, true, &mut CpuProber)
    }

    /// The machine with its GPUs.
    pub fn with_gpus(self, gpus: Gpus) -> Self {
        Self { gpus, ..self }
    }

    /// Keeps `tuning` with this machine's measurements.
    ///
    /// # Errors
    /// Why the cache could not be written.
    pub fn tuned(mut self, home: &Path, tuning: TuningTable) -> Result<Self, String> {
        let path = home.join(CACHE_FILE);
        let mut cache = load_cache(&path);
        self.tuning = Some(tuning);
        cache.machines.retain(|m| !m.matches(&self.cpu));
        cache.machines.insert(0, self.clone());
        cache.machines.truncate(CACHE_ENTRIES);
        save_cache(&path, &cache).map_err(|problem| format!("{}: {problem}", path.display()))?;
        Ok(self)
    }

    /// Whether [`Machine::cached`] would have to measure.
    pub fn is_cached(home: &Path) -> bool {
        let cpu = read_cpu(&SysRoot::default());
        load_cache(&home.join(CACHE_FILE)).machines.iter().any(|m| m.matches(&cpu))
    }

    /// As [`Machine::cached`], with the facts of `root` and any way of measuring.
    pub fn obtain(root: &SysRoot, home: &Path, refresh: bool, prober: &mut dyn Prober) -> Self {
        let cpu = read_cpu(root);
        let memory = MemoryFacts::read(root);
        let path = home.join(CACHE_FILE);
        let mut cache = load_cache(&path);
        let old = cache.machines.iter().position(|m| m.matches(&cpu)).map(|i| cache.machines.remove(i));
        if let Some(old) = &old
            && !refresh
        {
            return Self { cpu, memory, ..old.clone() };
        }
        let (probe, problem) = measure(&cpu, &memory, prober);
        let tuning = old.as_ref().and_then(|o| o.tuning.clone());
        let probe = match old {
            Some(old) if probe.busy || problem.is_some() => keep_better(old.probe, probe),
            _ => probe,
        };
        let hob = env!("CARGO_PKG_VERSION").to_string();
        let notes =
            problem.into_iter().map(|p| format!("read bandwidth could not be measured: {p}")).collect();
        let gpus = Gpus::default();
        let mut machine = Self { hob, cpu, memory, probe, tuning, gpus, notes };
        cache.machines.insert(0, machine.clone());
        cache.machines.truncate(CACHE_ENTRIES);
        if let Err(problem) = save_cache(&path, &cache) {
            machine.notes.push(format!(
                "the measurement could not be kept in {} ({problem}); it will be repeated at the next start",
                path.display()
            ));
        }
        machine
    }

    /// The facts a probe depends on; none of them changes at a reboot.
    fn matches(&self, cpu: &CpuFacts) -> bool {
        self.hob == env!("CARGO_PKG_VERSION")
            && self.cpu.model == cpu.model
            && self.cpu.isa == cpu.isa
            && self.cpu.threads == cpu.threads
            && self.cpu.cores == cpu.cores
            && self.cpu.logical == cpu.logical
            && !self.probe.read.is_empty()
    }

    /// Best read bandwidth with `threads` threads, in 10^9 bytes per second; between measured counts by interpolation.
    pub fn read_gb_per_s(&self, threads: usize) -> f64 {
        interpolate(&self.probe.read, threads, |r| r.best_gb_per_s)
    }

    /// The lower end of what the passes showed with `threads` threads.
    pub fn read_low_gb_per_s(&self, threads: usize) -> f64 {
        interpolate(&self.probe.read, threads, |r| r.best_gb_per_s * (1.0 - r.spread.clamp(0.0, 1.0)))
    }
}

fn read_cpu(root: &SysRoot) -> CpuFacts {
    let caches = probe::caches();
    let known = |bytes: usize| (bytes > 0).then_some(bytes as u64);
    CpuFacts {
        features: probe::isa_names().into_iter().map(str::to_string).collect(),
        l2_bytes: known(caches.l2_bytes),
        l3_bytes: known(caches.l3_bytes),
        ..CpuFacts::read(root, hob_cpu::available_threads(), hob_cpu::Isa::detect().name())
    }
}

/// Thread counts worth probing: every one up to 4, then doubling, and always the last.
fn thread_counts(threads: usize) -> Vec<usize> {
    let mut counts: Vec<usize> = (1..=threads.min(4)).collect();
    let mut n = 8;
    while n < threads {
        counts.push(n);
        n *= 2;
    }
    if counts.last() != Some(&threads) {
        counts.push(threads);
    }
    counts
}

/// Bytes to read: well beyond the last-level cache, and never more than an eighth of what is free.
fn probe_bytes(cpu: &CpuFacts, memory: &MemoryFacts) -> usize {
    const MIB: u64 = 1 << 20;
    let wanted = cpu.l3_bytes.unwrap_or(32 * MIB).saturating_mul(6).clamp(192 * MIB, 1024 * MIB);
    let room = memory.free().map_or(u64::MAX, |b| b.bytes / 8);
    wanted.min(room).max(16 * MIB) as usize
}

/// The probe, and why it holds nothing if it does.
fn measure(cpu: &CpuFacts, memory: &MemoryFacts, prober: &mut dyn Prober) -> (Probe, Option<String>) {
    let (found, problem) = match prober.measure(&thread_counts(cpu.threads), probe_bytes(cpu, memory)) {
        Ok(found) => (found, None),
        Err(problem) => (Measured::default(), Some(problem)),
    };
    // On a machine with idle CPUs left over, others take nothing from us until those run out.
    let spare = cpu.logical.saturating_sub(cpu.threads) as f64;
    let busy = found.others_cpus.is_some_and(|o| o > BUSY_CPUS + spare);
    let measured_unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let Measured { read, ping_pong_nanos, others_cpus } = found;
    (Probe { read, ping_pong_nanos, others_cpus, busy, measured_unix }, problem)
}

/// A probe under load never lowers what was measured before.
fn keep_better(old: Probe, new: Probe) -> Probe {
    let read = old
        .read
        .iter()
        .map(|o| match new.read.iter().find(|n| o.threads == n.threads) {
            Some(n) if n.best_gb_per_s > o.best_gb_per_s => *n,
            _ => *o,
        })
        .collect();
    Probe { read, busy: old.busy, ..new }
}

fn interpolate(rates: &[ReadRate], threads: usize, value: impl Fn(&ReadRate) -> f64) -> f64 {
    let above = rates.iter().find(|r| r.threads >= threads);
    let below = rates.iter().rev().find(|r| r.threads <= threads);
    match (below, above) {
        (Some(b), Some(a)) if a.threads == b.threads => value(a),
        (Some(b), Some(a)) => {
            let t = (threads - b.threads) as f64 / (a.threads - b.threads) as f64;
            value(b) + t * (value(a) - value(b))
        }
        (Some(one), None) | (None, Some(one)) => value(one),
        (None, None) => 0.0,
    }
}

/// A missing, damaged or foreign cache is an empty one.
fn load_cache(path: &Path) -> Cache {
    std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

fn save_cache(path: &Path, cache: &Cache) -> Result<(), String> {
    let bytes = serde_json::to_vec_pretty(cache).map_err(|e| e.to_string())?;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(|e| e.to_string())?;
    }
    hob_files::store::write_atomic(path, &bytes).map_err(|e| e.to_string())
}

impl fmt::Display for Machine {
    /// One line: `AMD EPYC, 2 cores, avx2, 21.3 GiB free of 23.5 GiB, reads 33.1 GB/s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpu = &self.cpu;
        let plural = if cpu.threads == 1 { "" } else { "s" };
        write!(f, "{}, {} thread{plural}, {}", cpu.model, cpu.threads, cpu.isa)?;
        match (self.memory.free(), self.memory.ceiling()) {
            (Some(free), Some(all)) => {
                write!(f, ", {} free of {}", show_bytes(free.bytes), show_bytes(all.bytes))?;
            }
            _ => write!(f, ", memory size unknown")?,
        }
        let best = self.probe.read.iter().map(|r| r.best_gb_per_s).fold(0.0, f64::max);
        write!(f, ", reads {} GB/s", show_figures(best))?;
        if self.probe.busy {
            write!(f, " (measured while busy)")?;
        }
        Ok(())
    }
}

impl Machine {
    /// Every fact, one per line, for `hob plan`.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: String| out.push_str(&format!("  {name:<18}{value}\n"));
        let cpu = &self.cpu;
        line("processor", cpu.model.clone());
        line("instructions", format!("kernels use {}; there are {}", cpu.isa, cpu.features.join(" ")));
        let nodes =
            if cpu.numa_nodes > 1 { format!(", {} NUMA nodes", cpu.numa_nodes) } else { String::new() };
        line("threads", format!("{} of {} ({} cores{nodes})", cpu.threads, cpu.logical, cpu.cores));
        let cache = |b: Option<u64>| b.map_or("unknown".to_string(), show_bytes);
        line("caches", format!("L2 {}, L3 {}", cache(cpu.l2_bytes), cache(cpu.l3_bytes)));
        match (self.memory.total_bytes, self.memory.available_bytes) {
            (Some(total), Some(free)) => {
                line("memory", format!("{} free of {}", show_bytes(free), show_bytes(total)))
            }
            _ => line("memory", "unknown here; give --ram SIZE".to_string()),
        }
        for limit in &self.memory.limits {
            let (all, used) = (show_bytes(limit.bytes), show_bytes(limit.used_bytes));
            line("memory limit", format!("{all}, {used} used: {}", limit.source));
        }
        line("huge pages", self.memory.huge_pages.clone().unwrap_or_else(|| "unknown".to_string()));
        for r in &self.probe.read {
            let plural = if r.threads == 1 { " " } else { "s" };
            line(
                if r.threads == 1 { "read bandwidth" } else { "" },
                format!(
                    "{:>3} thread{plural} {:>6} GB/s (median {}, spread {:.0} %)",
                    r.threads,
                    show_figures(r.best_gb_per_s),
                    show_figures(r.median_gb_per_s),
                    r.spread * 100.0
                ),
            );
        }
        if let Some(nanos) = self.probe.ping_pong_nanos {
            line("line transfer", format!("{nanos:.0} ns between two threads"));
        }
        let tuning = self.tuning.as_ref().map(TuningTable::summary);
        line(
            "tuning",
            tuning.unwrap_or_else(|| "built-in values; hob bench --tune measures this machine".into()),
        );
        for (i, gpu) in self.gpus.lines().into_iter().enumerate() {
            line(if i == 0 { "GPU" } else { "" }, gpu);
        }
        if self.probe.busy {
            let others = self.probe.others_cpus.unwrap_or(0.0);
            line(
                "busy",
                format!("yes: others used {others:.1} CPUs meanwhile; measure again with hob plan --refresh"),
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fake_root;

    /// Says `rate * threads` and counts how often it was asked.
    struct Fake {
        rate: f64,
        asked: usize,
        others: f64,
    }

    impl Prober for Fake {
        fn measure(&mut self, threads: &[usize], _bytes: usize) -> Result<Measured, String> {
            self.asked += 1;
            if self.rate == 0.0 {
                return Err("no memory".to_string());
            }
            let rate = |&threads: &usize| {
                let gb = self.rate * threads as f64;
                ReadRate { threads, best_gb_per_s: gb, median_gb_per_s: gb, spread: 0.1 }
            };
            let read = threads.iter().map(rate).collect();
            Ok(Measured { read, ping_pong_nanos: Some(50.0), others_cpus: Some(self.others) })
        }
    }

    fn files() -> Vec<(&'static str, &'static str)> {
        vec![("proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n")]
    }

    fn fake(rate: f64) -> Fake {
        Fake { rate, asked: 0, others: 0.0 }
    }

    #[test]
    fn a_cached_probe_is_not_repeated() {
        let dir = fake_root("machine-cache", &files());
        let root = SysRoot::new(dir.path());
        let home = dir.join("home");
        let mut prober = fake(10.0);
        let first = Machine::obtain(&root, &home, false, &mut prober);
        assert_eq!(prober.asked, 1);
        let second = Machine::obtain(&root, &home, false, &mut prober);
        assert_eq!(prober.asked, 1);
        assert_eq!(first, second);
        assert!(first.notes.is_empty());
        let third = Machine::obtain(&root, &home, true, &mut fake(20.0));
        assert_eq!(third.read_gb_per_s(1), 20.0);
        assert_eq!(Machine::obtain(&root, &home, false, &mut prober).read_gb_per_s(1), 20.0);
    }

    #[test]
    fn a_tuning_table_is_kept_and_survives_a_new_probe() {
        let dir = fake_root("machine-tuning", &files());
        let root = SysRoot::new(dir.path());
        let home = dir.join("home");
        let machine = Machine::obtain(&root, &home, false, &mut fake(10.0));
        assert!(machine.table().contains("hob bench --tune"));
        let table = TuningTable {
            prefetch_bytes: 1024,
            streamed_rows: 2,
            tasks_per_thread: 8,
            threads: 1,
            trials: Vec::new(),
            measured_unix: 1,
        };
        let tuned = machine.tuned(&home, table.clone()).expect("kept");
        assert!(tuned.table().contains("prefetch 1024 bytes"), "{}", tuned.table());
        for refresh in [false, true] {
            let again = Machine::obtain(&root, &home, refresh, &mut fake(12.0));
            assert_eq!(again.tuning, Some(table.clone()), "refresh {refresh}");
        }
    }

    #[test]
    fn memory_is_never_from_the_cache() {
        let dir = fake_root("machine-memory", &files());
        let root = SysRoot::new(dir.path());
        Machine::obtain(&root, dir.path(), false, &mut fake(10.0));
        std::fs::write(dir.join("proc/meminfo"), "MemTotal: 8388608 kB\nMemAvailable: 1024 kB\n")
            .expect("write");
        let now = Machine::obtain(&root, dir.path(), false, &mut fake(10.0));
        assert_eq!(now.memory.available_bytes, Some(1 << 20));
    }

    #[test]
    fn another_processor_or_version_measures_again() {
        let dir = fake_root("machine-other", &files());
        let root = SysRoot::new(dir.path());
        Machine::obtain(&root, dir.path(), false, &mut fake(10.0));
        std::fs::write(dir.join("proc/cpuinfo"), "model name : Another\n").expect("write");
        let mut prober = fake(30.0);
        assert_eq!(Machine::obtain(&root, dir.path(), false, &mut prober).read_gb_per_s(1), 30.0);
        // Both are kept: going back asks nobody.
        std::fs::remove_file(dir.join("proc/cpuinfo")).expect("remove");
        let mut prober = fake(40.0);
        assert_eq!(Machine::obtain(&root, dir.path(), false, &mut prober).read_gb_per_s(1), 10.0);
        assert_eq!(prober.asked, 0);
        let path = dir.join(CACHE_FILE);
        let old = std::fs::read_to_string(&path).expect("cache");
        let aged = old.replace(&format!("\"hob\": \"{}\"", env!("CARGO_PKG_VERSION")), "\"hob\": \"0.0.0\"");
        assert_ne!(old, aged);
        std::fs::write(&path, aged).expect("write");
        assert_eq!(Machine::obtain(&root, dir.path(), false, &mut prober).read_gb_per_s(1), 40.0);
    }

    #[test]
    fn a_damaged_cache_is_an_empty_one() {
        let dir = fake_root("machine-damaged", &files());
        std::fs::write(dir.join(CACHE_FILE), "{\"machines\": [{\"hob\": 3").expect("write");
        let mut prober = fake(10.0);
        Machine::obtain(&SysRoot::new(dir.path()), dir.path(), false, &mut prober);
        assert_eq!(prober.asked, 1);
    }

    #[test]
    fn a_home_that_cannot_be_written_is_a_note() {
        let dir = fake_root("machine-readonly", &files());
        let home = dir.join("proc/meminfo"); // a file where a folder should be
        let machine = Machine::obtain(&SysRoot::new(dir.path()), &home, false, &mut fake(10.0));
        assert_eq!(machine.notes.len(), 1);
        assert!(machine.notes[0].contains(CACHE_FILE), "{}", machine.notes[0]);
    }

    #[test]
    fn load_by_others_is_seen_and_lowers_nothing() {
        let dir = fake_root("machine-busy", &files());
        let root = SysRoot::new(dir.path());
        let quiet = Machine::obtain(&root, dir.path(), false, &mut fake(10.0));
        assert!(!quiet.probe.busy);
        let loaded = || Fake { others: 64.0, ..fake(4.0) };
        let again = Machine::obtain(&root, dir.path(), true, &mut loaded());
        assert_eq!(again.read_gb_per_s(1), 10.0);
        let first = Machine::obtain(&root, &dir.join("empty"), false, &mut loaded());
        assert!(first.probe.busy);
        assert!(first.to_string().contains("busy"), "{first}");
        assert!(first.table().contains("--refresh"));
    }

    #[test]
    fn no_memory_to_measure_with_is_a_note_and_keeps_what_was_known() {
        let dir = fake_root("machine-unmeasured", &files());
        let root = SysRoot::new(dir.path());
        let machine = Machine::obtain(&root, dir.path(), false, &mut fake(0.0));
        assert_eq!(machine.read_gb_per_s(1), 0.0);
        assert!(machine.notes[0].contains("no memory"), "{:?}", machine.notes);
        Machine::obtain(&root, dir.path(), false, &mut fake(10.0));
        assert_eq!(Machine::obtain(&root, dir.path(), true, &mut fake(0.0)).read_gb_per_s(1), 10.0);
    }

    #[test]
    fn counts_and_interpolation() {
        assert_eq!(thread_counts(1), [1]);
        assert_eq!(thread_counts(2), [1, 2]);
        assert_eq!(thread_counts(6), [1, 2, 3, 4, 6]);
        assert_eq!(thread_counts(32), [1, 2, 3, 4, 8, 16, 32]);
        let rate = |threads, gb| ReadRate { threads, best_gb_per_s: gb, median_gb_per_s: gb, spread: 0.5 };
        let rates = [rate(1, 10.0), rate(4, 40.0), rate(8, 44.0)];
        let at = |n| interpolate(&rates, n, |r| r.best_gb_per_s);
        assert_eq!((at(1), at(2), at(6), at(99)), (10.0, 20.0, 42.0, 44.0));
        assert_eq!(interpolate(&[], 3, |r| r.best_gb_per_s), 0.0);
    }
}
