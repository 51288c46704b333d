//! Facts the operating system states: CPU, cores, caches, memory. Owns parsing of Linux's `/proc` and `/sys`; what is
//! not stated there is `None`. It must not measure anything and must not know models.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::limits::{self, MemoryLimit};

/// Where the kernel's pseudo files lie: `/`, or a folder in tests.
#[derive(Clone, Debug)]
pub struct SysRoot(PathBuf);

impl Default for SysRoot {
    fn default() -> Self {
        Self(PathBuf::from("/"))
    }
}

impl SysRoot {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.0.join(file.trim_start_matches('/'))
    }

    /// The file's text; `None` where it does not exist or is not text.
    pub fn read(&self, file: &str) -> Option<String> {
        std::fs::read_to_string(self.path(file)).ok()
    }

    /// A file that holds one number; `None` for `max` and the like.
    pub fn number(&self, file: &str) -> Option<u64> {
        self.read(file)?.trim().parse().ok()
    }
}

/// The processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuFacts {
    pub model: String,
    /// Instruction set class the kernels use, for example `avx2`.
    pub isa: String,
    /// Instruction sets that matter and that are there.
    pub features: Vec<String>,
    /// Threads this process may use: affinity and cgroup quota counted.
    pub threads: usize,
    /// Physical cores among them (two SMT siblings are one).
    pub cores: usize,
    /// Online logical CPUs of the machine.
    pub logical: usize,
    pub numa_nodes: usize,
    /// L2 of one core.
    pub l2_bytes: Option<u64>,
    /// L3 that the first core sees.
    pub l3_bytes: Option<u64>,
}

/// Memory now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFacts {
    pub total_bytes: Option<u64>,
    /// What can be had now without swapping (`MemAvailable`).
    pub available_bytes: Option<u64>,
    /// Limits below the machine's own: cgroup, ulimit.
    pub limits: Vec<MemoryLimit>,
    /// Transparent huge pages: `always`, `madvise`, `never`.
    pub huge_pages: Option<String>,
}

/// The tightest bound on memory and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    pub bytes: u64,
    pub source: String,
}

impl MemoryFacts {
    /// Reads memory and its limits as they are now.
    pub fn read(root: &SysRoot) -> Self {
        let info = root.read("proc/meminfo").unwrap_or_default();
        Self {
            total_bytes: meminfo(&info, "MemTotal:"),
            available_bytes: meminfo(&info, "MemAvailable:"),
            limits: limits::read(root),
            huge_pages: root
                .read("sys/kernel/mm/transparent_hugepage/enabled")
                .and_then(|t| Some(t.split_once('[')?.1.split_once(']')?.0.to_string())),
        }
    }

    /// What a new program can have now: the least of free memory and the room left under every limit.
    pub fn free(&self) -> Option<Bound> {
        let machine =
            self.available_bytes.map(|bytes| Bound { bytes, source: "free memory of this machine".into() });
        let limits =
            self.limits.iter().map(|l| Bound { bytes: l.room_bytes(), source: l.source.to_string() });
        machine.into_iter().chain(limits).min_by_key(|b| b.bytes)
    }

    /// The most there could be with everything else closed: the least of total memory and the limits.
    pub fn ceiling(&self) -> Option<Bound> {
        let machine = self.total_bytes.map(|bytes| Bound { bytes, source: "memory of this machine".into() });
        let limits = self.limits.iter().map(|l| Bound { bytes: l.bytes, source: l.source.to_string() });
        machine.into_iter().chain(limits).min_by_key(|b| b.bytes)
    }
}

impl CpuFacts {
    /// Reads what `root` states; `threads` and `isa` come from the crate that runs the kernels, which also knows features
    /// and caches (left empty here).
    pub fn read(root: &SysRoot, threads: usize, isa: &str) -> Self {
        let info = root.read("proc/cpuinfo").unwrap_or_default();
        let allowed = allowed_cpus(root);
        let online = root.read("sys/devices/system/cpu/online").map_or(0, |t| parse_list(&t).len());
        let cores = physical_cores(root, &allowed);
        Self {
            model: cpu_model(&info),
            isa: isa.to_string(),
            features: Vec::new(),
            threads: threads.max(1),
            cores: if cores == 0 { threads.max(1) } else { cores.min(threads.max(1)) },
            logical: online.max(allowed.len()).max(threads),
            numa_nodes: numa_nodes(root),
            l2_bytes: None,
            l3_bytes: None,
        }
    }
}

fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

fn cpu_model(info: &str) -> String {
    let field = |name: &str| {
        info.lines()
            .filter_map(|l| l.split_once(':'))
            .find(|(k, _)| k.trim() == name)
            .map(|(_, v)| v.trim().to_string())
            .filter(|v| !v.is_empty())
    };
    field("model name").or_else(|| field("Hardware")).or_else(|| field("Model")).unwrap_or_else(|| {
        match (field("CPU implementer"), field("CPU part")) {
            (Some(maker), Some(part)) => format!("{} {maker}:{part}", std::env::consts::ARCH),
            _ => std::env::consts::ARCH.to_string(),
        }
    })
}

/// CPUs this process may run on, by affinity; empty when unknown.
fn allowed_cpus(root: &SysRoot) -> Vec<usize> {
    let status = root.read("proc/self/status").unwrap_or_default();
    status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).map(parse_list).unwrap_or_default()
}

/// `0-3,8` as numbers; a malformed part is left out.
pub(crate) fn parse_list(text: &str) -> Vec<usize> {
    /// More CPUs than any machine: keeps a malformed list from growing without bound.
    const MOST: usize = 1 << 16;
    let mut out = Vec::new();
    for part in text.trim().split(',') {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(low), Ok(high)) = (low.trim().parse::<usize>(), high.trim().parse::<usize>()) {
            out.extend((low..=high.min(MOST)).take(MOST));
        }
    }
    out
}

/// Cores under `cpus`, counting SMT siblings once; 0 when the topology is not stated.
fn physical_cores(root: &SysRoot, cpus: &[usize]) -> usize {
    let mut groups: Vec<Vec<usize>> = cpus
        .iter()
        .filter_map(|n| {
            let text = root.read(&format!("sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list"))?;
            Some(parse_list(&text))
        })
        .collect();
    groups.sort();
    groups.dedup();
    groups.len()
}

fn numa_nodes(root: &SysRoot) -> usize {
    root.read("sys/devices/system/node/online").map_or(1, |t| parse_list(&t).len().max(1))
}

/// The most memory this process has held so far (`VmHWM`); `None` where the system does not say.
pub fn peak_bytes() -> Option<u64> {
    meminfo(&SysRoot::default().read("proc/self/status")?, "VmHWM:")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fake_root;

    #[test]
    fn a_machine_with_smt_and_affinity() {
        let dir = fake_root(
            "facts-smt",
            &[
                ("proc/cpuinfo", "processor : 0\nmodel name\t: Imaginary 9000\nprocessor : 1\n"),
                ("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-1,4\n"),
                ("sys/devices/system/cpu/online", "0-7\n"),
                ("sys/devices/system/node/online", "0-1\n"),
                ("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0-1\n"),
                ("sys/devices/system/cpu/cpu1/topology/thread_siblings_list", "0-1\n"),
                ("sys/devices/system/cpu/cpu4/topology/thread_siblings_list", "4,5\n"),
            ],
        );
        let cpu = CpuFacts::read(&SysRoot::new(dir.path()), 3, "avx2");
        assert_eq!(cpu.model, "Imaginary 9000");
        assert_eq!((cpu.threads, cpu.cores, cpu.logical, cpu.numa_nodes), (3, 2, 8, 2));
    }

    #[test]
    fn a_machine_that_says_nothing() {
        let dir = fake_root("facts-none", &[]);
        let root = SysRoot::new(dir.path());
        let cpu = CpuFacts::read(&root, 4, "scalar");
        assert_eq!((cpu.threads, cpu.cores, cpu.logical, cpu.numa_nodes), (4, 4, 4, 1));
        assert_eq!(cpu.model, std::env::consts::ARCH);
        let memory = MemoryFacts::read(&root);
        assert_eq!((memory.total_bytes, memory.free(), memory.ceiling()), (None, None, None));
    }

    #[test]
    fn the_tightest_limit_is_named() {
        let dir = fake_root(
            "facts-limit",
            &[
                ("proc/meminfo", "MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 4194304 kB\n"),
                ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
                ("proc/self/cgroup", "0::/box\n"),
                ("proc/self/mountinfo", "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
                ("sys/fs/cgroup/box/memory.max", "1073741824\n"),
                ("sys/fs/cgroup/box/memory.current", "536870912\n"),
                ("sys/fs/cgroup/box/memory.stat", "anon 1\ninactive_file 268435456\nactive_file 5\n"),
            ],
        );
        let memory = MemoryFacts::read(&SysRoot::new(dir.path()));
        assert_eq!(memory.huge_pages.as_deref(), Some("madvise"));
        let free = memory.free().expect("free");
        assert_eq!(free.bytes, 768 << 20);
        assert!(free.source.contains("cgroup"), "{}", free.source);
        assert_eq!(memory.ceiling().expect("ceiling").bytes, 1 << 30);
    }

    #[test]
    fn lists_of_cpus() {
        assert_eq!(parse_list("0-3,8\n"), [0, 1, 2, 3, 8]);
        assert_eq!(parse_list(""), Vec::<usize>::new());
        assert_eq!(parse_list("3-1,x,7"), [7]);
        assert!(parse_list("0-18446744073709551615").len() <= 1 << 17);
    }
}
