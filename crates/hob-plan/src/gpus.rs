//! The GPUs of this machine, stated and measured. Owns the cache of their rates under `HOB_HOME`, keyed by adapter and
//! driver; it must not know models, nor how a GPU is driven.

mod real;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::facts::SysRoot;
use crate::units::{show_bytes, show_figures};
pub use real::RealGpus;

/// File under `HOB_HOME` that holds the rates.
pub const GPU_CACHE_FILE: &str = "gpus.json";
/// Adapters kept.
const CACHE_ENTRIES: usize = 8;

/// What was measured of a GPU. Rates are 10^9 bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuRates {
    /// A kernel that only reads.
    pub read_gb_per_s: f64,
    /// 10^12 operations per second of the best matrix kernel, two for each multiply-add.
    pub tflops: f64,
    /// From a submit to its result at the host.
    pub round_trip_micros: f64,
    /// One product of decode behind another that it waits for, beside the bytes it reads.
    pub dispatch_micros: f64,
    pub upload_gb_per_s: f64,
    pub download_gb_per_s: f64,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuFacts {
    /// Index that `--adapter` takes.
    pub index: usize,
    pub name: String,
    pub backend: String,
    pub driver: String,
    /// Features in use.
    pub tier: String,
    /// Shares the machine's memory.
    pub integrated: bool,
    /// A CPU in disguise.
    pub software: bool,
    pub memory_bytes: Option<u64>,
    /// Free as this value was made; never from the cache.
    pub free_bytes: Option<u64>,
    /// Largest piece that a kernel can see.
    pub binding_bytes: u64,
    /// `None`: not measured, see [`GpuFacts::problem`].
    pub rates: Option<GpuRates>,
    /// Why it was not measured, or cannot be opened.
    pub problem: Option<String>,
}

impl GpuFacts {
    /// Names the adapter as figures do: what it is and by whose driver.
    pub fn label(&self) -> String {
        format!("{} ({}, {})", self.name, self.backend, self.driver)
    }

    fn key(&self) -> [&str; 5] {
        [env!("CARGO_PKG_VERSION"), &self.name, &self.backend, &self.driver, &self.tier]
    }

    /// One line for `hob plan`.
    pub fn line(&self) -> String {
        let kind = match (self.software, self.integrated) {
            (true, _) => ", software: never chosen by itself",
            (_, true) => ", shares the machine's memory",
            _ => "",
        };
        let memory = match (self.free_bytes, self.memory_bytes) {
            (Some(free), Some(all)) => format!(", {} free of {}", show_bytes(free), show_bytes(all)),
            (None, Some(all)) => format!(", {}", show_bytes(all)),
            _ => String::new(),
        };
        let rates = match (&self.rates, &self.problem) {
            (Some(r), _) => format!(
                ", reads {} GB/s, {} TFLOP/s, round trip {} us",
                show_figures(r.read_gb_per_s),
                show_figures(r.tflops),
                show_figures(r.round_trip_micros)
            ),
            (None, Some(problem)) => format!(", not measured: {problem}"),
            (None, None) => String::new(),
        };
        format!("{}: {}{kind}{memory}{rates}", self.index, self.label())
    }
}

/// Finds and measures GPUs; the real one asks `hob_gpu`.
pub trait GpuProber {
    /// Every adapter, without rates.
    fn adapters(&mut self) -> Vec<GpuFacts>;
    /// Measures adapter `index` (a second or two).
    ///
    /// # Errors
    /// Why it could not be measured.
    fn measure(&mut self, index: usize) -> Result<GpuRates, String>;
}

/// Which GPUs are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Adapter {
    /// The first that is no software.
    #[default]
    Any,
    Index(usize),
    /// Part of a name, in any case.
    Name(String),
}

impl Adapter {
    /// Reads what `--adapter` takes.
    ///
    /// # Errors
    /// An empty name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        match (text.is_empty(), text.parse()) {
            (true, _) => Err("give the number of an adapter, or a part of its name".into()),
            (_, Ok(index)) => Ok(Self::Index(index)),
            _ => Ok(Self::Name(text.to_string())),
        }
    }

    fn means(&self, gpu: &GpuFacts) -> bool {
        match self {
            Self::Any => !gpu.software,
            Self::Index(index) => gpu.index == *index,
            Self::Name(name) => gpu.name.to_lowercase().contains(&name.to_lowercase()),
        }
    }
}

/// What is known of GPUs here.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Gpus {
    pub all: Vec<GpuFacts>,
    /// Index in `all` of the one to use.
    pub chosen: Option<usize>,
    /// Why there is none to use.
    pub none: Option<String>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Cached {
    key: Vec<String>,
    rates: GpuRates,
    measured_unix: u64,
}

impl Gpus {
    /// Nothing was looked for.
    pub fn off(why: &str) -> Self {
        Self { none: Some(why.to_string()), ..Self::default() }
    }

    /// Finds the GPUs and chooses one; measures it if that was never done here with this driver. Where the system has no
    /// device node of a GPU, and none is asked for by name, no driver is even loaded.
    pub fn find(
        root: &SysRoot,
        home: &Path,
        wanted: &Adapter,
        refresh: bool,
        prober: &mut dyn GpuProber,
    ) -> Self {
        if *wanted == Adapter::Any && !may_have_gpu(root) {
            return Self::off("this machine shows no graphics device");
        }
        let mut all = prober.adapters();
        let Some(chosen) = all.iter().position(|gpu| wanted.means(gpu)) else {
            let none = match (all.as_slice(), wanted) {
                ([], _) => "no driver for Vulkan, Metal or DX12 shows an adapter".to_string(),
                (_, Adapter::Any) => "only software adapters, which are slower than hob's own kernels".into(),
                (some, _) => {
                    let names: Vec<String> = some.iter().map(|g| format!("{} {}", g.index, g.name)).collect();
                    format!("--adapter names none of: {}", names.join(", "))
                }
            };
            return Self { all, chosen: None, none: Some(none) };
        };
        let path = home.join(GPU_CACHE_FILE);
        let mut cache: Vec<Cached> =
            std::fs::read(&path).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
        let gpu = &mut all[chosen];
        let known = cache.iter().position(|c| c.key == gpu.key());
        match known.filter(|_| !refresh) {
            Some(at) => gpu.rates = Some(cache[at].rates),
            None => match prober.measure(gpu.index) {
                Ok(rates) => {
                    gpu.rates = Some(rates);
                    cache.retain(|c| c.key != gpu.key());
                    let key = gpu.key().map(str::to_string).to_vec();
                    let measured_unix =
                        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
                    cache.insert(0, Cached { key, rates, measured_unix });
                    cache.truncate(CACHE_ENTRIES);
                    // A home that cannot be written costs the next start a measurement.
                    let _ = serde_json::to_vec_pretty(&cache)
                        .map(|bytes| hob_files::store::write_atomic(&path, &bytes));
                }
                Err(problem) => gpu.problem = Some(problem),
            },
        }
        Self { all, chosen: Some(chosen), none: None }
    }

    /// Whether [`Gpus::find`] would load drivers.
    pub fn may_be_here() -> bool {
        may_have_gpu(&SysRoot::default())
    }

    /// The one to use.
    pub fn gpu(&self) -> Option<&GpuFacts> {
        self.all.get(self.chosen?)
    }

    /// The line or lines of `hob plan`.
    pub fn lines(&self) -> Vec<String> {
        match &self.none {
            Some(why) => vec![format!("no GPU: {why}")],
            None => self.all.iter().map(GpuFacts::line).collect(),
        }
    }
}

/// Whether the system shows the device node of a GPU. Elsewhere than on Linux the driver is asked.
fn may_have_gpu(root: &SysRoot) -> bool {
    if !cfg!(target_os = "linux") {
        return true;
    }
    let any = |dir: &str, starts: &str| {
        let entries = std::fs::read_dir(root.path(dir)).into_iter().flatten().flatten();
        entries.into_iter().any(|e| e.file_name().to_string_lossy().starts_with(starts))
    };
    // Render nodes; NVIDIA's own, which containers get without the former; the one of Windows' Linux.
    any("dev/dri", "renderD") || any("dev", "nvidia") || root.path("dev/dxg").exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fake_root;

    pub(crate) const RATES: GpuRates = GpuRates {
        read_gb_per_s: 3000.0,
        tflops: 200.0,
        round_trip_micros: 75.0,
        dispatch_micros: 2.4,
        upload_gb_per_s: 14.0,
        download_gb_per_s: 20.0,
    };

    fn gpu(index: usize, name: &str, software: bool) -> GpuFacts {
        GpuFacts {
            index,
            name: name.into(),
            backend: "Vulkan".into(),
            driver: "1.2".into(),
            tier: "all".into(),
            integrated: false,
            software,
            memory_bytes: Some(80 << 30),
            free_bytes: Some(79 << 30),
            binding_bytes: 2 << 30,
            rates: None,
            problem: None,
        }
    }

    struct Fake {
        all: Vec<GpuFacts>,
        looked: usize,
        measured: Vec<usize>,
        fails: bool,
    }

    impl GpuProber for Fake {
        fn adapters(&mut self) -> Vec<GpuFacts> {
            self.looked += 1;
            self.all.clone()
        }

        fn measure(&mut self, index: usize) -> Result<GpuRates, String> {
            self.measured.push(index);
            if self.fails { Err("the driver refused".into()) } else { Ok(RATES) }
        }
    }

    fn fake(all: Vec<GpuFacts>) -> Fake {
        Fake { all, looked: 0, measured: vec![], fails: false }
    }

    #[test]
    fn a_machine_without_device_nodes_loads_no_driver() {
        let dir = fake_root("gpus-none", &[("dev/null", "")]);
        let mut prober = fake(vec![gpu(0, "Card", false)]);
        let root = SysRoot::new(dir.path());
        let found = Gpus::find(&root, dir.path(), &Adapter::Any, false, &mut prober);
        if cfg!(target_os = "linux") {
            assert_eq!((prober.looked, found.gpu()), (0, None));
            assert_eq!(found.lines().len(), 1);
            assert!(found.lines()[0].starts_with("no GPU: "), "{:?}", found.lines());
        }
        // Asked for by number, it is looked for all the same.
        let found = Gpus::find(&root, dir.path(), &Adapter::Index(0), false, &mut prober);
        assert_eq!((prober.looked, found.chosen), (1, Some(0)));
    }

    #[test]
    fn rates_are_measured_once_for_each_driver() {
        let dir = fake_root("gpus-cache", &[("dev/nvidia0", "")]);
        let root = SysRoot::new(dir.path());
        let mut prober = fake(vec![gpu(0, "Card", false), gpu(1, "llvmpipe", true)]);
        let find = |prober: &mut Fake, refresh| {
            Gpus::find(&root, dir.path(), &Adapter::Any, refresh, prober).gpu().and_then(|g| g.rates)
        };
        assert_eq!(find(&mut prober, false), Some(RATES));
        assert_eq!(find(&mut prober, false), Some(RATES));
        assert_eq!(prober.measured, [0]);
        find(&mut prober, true);
        assert_eq!(prober.measured, [0, 0]);
        prober.all[0].driver = "1.3".into();
        find(&mut prober, false);
        assert_eq!(prober.measured, [0, 0, 0]);
        std::fs::write(dir.join(GPU_CACHE_FILE), "[{").expect("write");
        assert_eq!(find(&mut prober, false), Some(RATES));
    }

    #[test]
    fn software_is_taken_only_by_name_and_what_fails_says_why() {
        let dir = fake_root("gpus-software", &[("dev/dri/renderD128", "")]);
        let root = SysRoot::new(dir.path());
        let mut prober = fake(vec![gpu(0, "llvmpipe (LLVM)", true)]);
        let found = Gpus::find(&root, dir.path(), &Adapter::Any, false, &mut prober);
        assert!(found.gpu().is_none() && found.lines()[0].contains("software"), "{:?}", found.lines());
        let wanted = Adapter::parse("LLVMpipe").expect("a name");
        prober.fails = true;
        let found = Gpus::find(&root, dir.path(), &wanted, false, &mut prober);
        let gpu = found.gpu().expect("found by name");
        assert!(gpu.rates.is_none() && gpu.line().contains("the driver refused"), "{}", gpu.line());
        let none = Gpus::find(&root, dir.path(), &Adapter::Index(7), false, &mut prober);
        assert!(none.none.as_ref().is_some_and(|why| why.contains("llvmpipe")), "{none:?}");
        assert!(Adapter::parse(" ").is_err());
    }
}
