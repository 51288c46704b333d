//! From a name to a loaded engine: resolve, fetch, open, plan, load. What `run`, `chat` and `serve` share.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use hob_compute::ComputeError;
use hob_engine::{
    CALIBRATION_TOKENS, CacheConfig, Calibration, Engine, Figures, Runtime, RuntimeConfig, RuntimeGpu, Trace,
    TraceSummary, load_measured,
};
use hob_files::ModelFile;
use hob_gpu::GpuConfig;
use hob_hub::{Hub, HubError, Resolved};
use hob_model::ModelInfo;
use hob_plan::{
    Adapter, CACHE_DIR, DiskPlan, DiskWish, GpuWish, Gpus, History, Kept, KvBasis, KvNoise, Machine,
    Observed, Plan, RealGpus, Subject, SysRoot, Wish,
};
use indicatif::ProgressBar;

use crate::args::{DEFAULT_MODEL, DiskArgs, GpuArgs, LayoutArgs, ModelArgs};
use crate::exit;
use crate::interrupt::Interrupt;
use crate::term::{self, LateBar, Unit};

/// Earlier conversations whose prefixes `hob chat` keeps in spare memory: the one before a `/clear` or an edit.
pub const CHAT_CONVERSATIONS: usize = 1;
/// The same of `hob serve`: clients switch between some.
pub const SERVE_CONVERSATIONS: usize = 4;

/// Folder under the home for compiled kernels of GPUs.
const KERNELS_DIR: &str = "kernels";

/// What every command starts from.
pub struct House {
    pub hub: Hub,
    pub interrupt: Interrupt,
    pub started: Instant,
}

/// An opened model file.
pub struct Opened {
    pub name: String,
    pub path: PathBuf,
    pub file: Arc<ModelFile>,
}

/// A model ready to answer, and the plan it was loaded by.
pub struct Loaded {
    pub engine: Engine,
    /// What finds this model again from any folder.
    pub source: String,
    pub plan: Plan,
    pub machine: Machine,
}

/// What a command asks of a model.
pub struct Ask<'a> {
    pub model: String,
    pub args: &'a ModelArgs,
    /// Earlier conversations worth spare memory.
    pub conversations: usize,
    pub quiet: bool,
    /// Where a timeline goes, if one is wanted.
    pub profile: Option<&'a Path>,
}

impl House {
    /// # Errors
    /// No home folder is known (neither `HOB_HOME` nor `HOME`).
    pub fn new(started: Instant) -> Result<Self> {
        let hub = Hub::new(hob_hub::default_home()?);
        Ok(Self { hub, interrupt: Interrupt::install(), started })
    }

    pub fn home(&self) -> &Path {
        self.hub.home()
    }

    /// The machine; says so when it has to measure.
    pub fn machine(&self) -> Machine {
        if !Machine::is_cached(self.home()) {
            term::note("measuring this machine's memory bandwidth (about a second, once)");
        }
        let machine = Machine::cached(self.home());
        if let Some(tuning) = &machine.tuning {
            tuning.apply();
        }
        machine
    }

    /// The machine with the GPUs that the flags allow; says so when it has to measure one.
    pub fn machine_with(&self, gpu: &GpuArgs, refresh: bool) -> Machine {
        let machine = if refresh { Machine::refreshed(self.home()) } else { self.machine() };
        let gpus = match gpu.gpu {
            GpuWish::Off => Gpus::off("--gpu off"),
            wish => {
                let adapter = match (&gpu.more.adapter, wish) {
                    (Some(adapter), _) => adapter.clone(),
                    (None, _) => Adapter::Any,
                };
                let mut prober = RealGpus::new(self.gpu_config(0), &|name| {
                    term::note(&format!("measuring {name} (a few seconds, once)"));
                });
                Gpus::find(&SysRoot::default(), self.home(), &adapter, refresh, &mut prober)
            }
        };
        machine.with_gpus(gpus)
    }

    /// How a GPU is opened: without the features that `HOB_GPU_OFF` names, its kernels kept under the home.
    pub fn gpu_config(&self, adapter: usize) -> GpuConfig {
        let off = std::env::var("HOB_GPU_OFF").unwrap_or_default();
        GpuConfig { adapter, off, exact: false, cache: Some(self.home().join(KERNELS_DIR)) }
    }

    /// The devices of a plan.
    ///
    /// # Errors
    /// What the devices say when they cannot start.
    fn runtime(&self, plan: &Plan, profile: bool) -> Result<Arc<Runtime>> {
        let gpu =
            plan.gpu.as_ref().map(|g| RuntimeGpu { config: self.gpu_config(g.index), alone: g.whole() });
        Ok(Runtime::new(&RuntimeConfig { threads: Some(plan.threads), exact: false, profile, gpu })?)
    }

    /// Finds a model that is on this disk; `fetch` downloads it if the catalogue knows it.
    pub fn open(&self, wanted: &str, fetch: bool) -> Result<Opened> {
        let (name, path) = match self.hub.resolve(wanted)? {
            Resolved::Local(local) => (local.name, local.path),
            Resolved::Download(entry) if fetch => (entry.name.to_string(), self.pull(entry)?),
            Resolved::Hub(place) if fetch => (place.to_string(), self.pull_from_hub(&place)?),
            Resolved::Hub(place) => {
                let name = place.to_string();
                return Err(HubError::NotInstalled { name })
                    .context(format!("fetch it first: hob pull {place}"));
            }
            Resolved::Download(entry) => {
                let name = entry.name.to_string();
                return Err(HubError::NotInstalled { name })
                    .with_context(|| format!("fetch it first: hob pull {}", entry.name));
            }
        };
        let file = ModelFile::open(&path)?;
        Ok(Opened { name, path, file: Arc::new(file) })
    }

    /// Downloads with a bar and a Ctrl-C that keeps what has come.
    pub fn pull(&self, entry: &hob_hub::Entry) -> Result<PathBuf> {
        let graceful = self.interrupt.graceful();
        let size = hob_plan::units::show_bytes(entry.bytes());
        term::note(&format!("fetching {} ({size}, {}): {}", entry.name, entry.license, entry.description));
        let mut progress = PullBar { bar: term::bar("", Unit::Bytes) };
        let path = self.hub.pull(entry, &mut progress, &graceful.flag());
        progress.bar.finish_and_clear();
        Ok(path?)
    }

    /// As [`House::pull`], for a place on the hub.
    pub fn pull_from_hub(&self, place: &hob_hub::HubName) -> Result<PathBuf> {
        let graceful = self.interrupt.graceful();
        term::note(&format!("fetching {place}"));
        let mut progress = PullBar { bar: term::bar("", Unit::Bytes) };
        let path = self.hub.pull_from_hub(place, &mut progress, &graceful.flag());
        progress.bar.finish_and_clear();
        Ok(path?)
    }

    /// The plan of an opened model, with the noise of its KV if that was measured.
    pub fn plan(&self, machine: &Machine, opened: &Opened, wish: &Wish) -> Result<Plan> {
        let noise = KvNoise::load(self.home(), &opened.file.model_id());
        self.plan_with(machine, opened, wish, noise.as_ref())
    }

    fn plan_with(
        &self,
        machine: &Machine,
        opened: &Opened,
        wish: &Wish,
        noise: Option<&KvNoise>,
    ) -> Result<Plan> {
        let info = ModelInfo::read(&opened.file)?;
        let id = opened.file.model_id();
        let subject = Subject { name: &opened.name, id: &id, sizes: &info, noise };
        Ok(Plan::make(machine, &subject, wish, &History::load(self.home())))
    }

    /// Where KV of earlier conversations lies on disk, and how much.
    pub fn disk(&self, args: &DiskArgs) -> DiskPlan {
        let dir = args.cache_dir.clone().unwrap_or_else(|| self.home().join(CACHE_DIR));
        DiskPlan::of(&dir, args.cache_disk.as_ref().unwrap_or(&DiskWish::Auto))
    }

    /// Opens, plans, shows the plan (unless `quiet`) and loads. A model whose KV noise is not known yet is measured on the
    /// way, with its weights loaded once.
    ///
    /// # Errors
    /// The model is not there or not readable; the plan does not fit.
    pub fn load(&self, ask: &Ask<'_>) -> Result<Loaded> {
        let trace = ask.profile.map(timeline).transpose()?;
        let opened = self.open(&ask.model, true)?;
        let machine = self.machine_with(&ask.args.gpu, false);
        let wish = Wish { conversations: ask.conversations, ..wish(&ask.args.layout, &ask.args.gpu) };
        let plan = self.plan(&machine, &opened, &wish)?;
        plan.accept()?;
        let on_gpu = plan.gpu.as_ref().map(|gpu| gpu.adapter.clone());
        let loaded = self.load_planned(ask, &opened, &machine, &wish, plan);
        let (mut engine, mut plan) = match (loaded, on_gpu) {
            (Err(problem), Some(adapter)) if of_gpu(&problem) => {
                term::note(&format!(
                    "{adapter} cannot be used: {}; going on with the CPU alone",
                    exit::message(&problem)
                ));
                let wish = Wish { gpu: GpuWish::Off, experts_on: None, ..wish };
                let plan = self.plan(&machine, &opened, &wish)?;
                plan.accept()?;
                self.load_planned(ask, &opened, &machine, &wish, plan)?
            }
            (loaded, _) => loaded?,
        };
        if let Some(warning) = engine.front().tokenizer().warning() {
            term::note(warning);
        }
        if !ask.args.no_cache {
            self.attach_disk(&ask.args.disk, &mut engine, &mut plan);
        }
        if let (Some(trace), Some(path)) = (trace, ask.profile) {
            let (path, quiet) = (path.to_path_buf(), ask.quiet);
            engine.set_trace(trace, move |result| show_timeline(&path, result, quiet));
        }
        let source = source(&ask.model, &opened);
        Ok(Loaded { engine, source, plan, machine })
    }

    /// Starts the devices of a plan and loads; gives the plan that the KV noise, if it had to be measured, made of it.
    fn load_planned(
        &self,
        ask: &Ask<'_>,
        opened: &Opened,
        machine: &Machine,
        wish: &Wish,
        mut plan: Plan,
    ) -> Result<(Engine, Plan)> {
        let runtime = self.runtime(&plan, ask.profile.is_some())?;
        let mut bar = LateBar::new("loading", Unit::Bytes);
        let mut progress = |done, total| bar.set(done, total);
        let measures = plan.kv.basis == KvBasis::Assumed;
        if !ask.quiet {
            term::note(if measures { measuring(&plan) } else { plan.short() }.trim_end());
        }
        let engine = if measures {
            let placement = plan.layout.placement.clone();
            let wish = Wish { placed: Some(placement.clone()), ..wish.clone() };
            load_measured(&runtime, &opened.file, &placement, &mut progress, |found| {
                let noise = self.keep_noise(opened, found)?;
                plan = self.plan_with(machine, opened, &wish, Some(&noise))?;
                Ok::<_, anyhow::Error>(plan.accept()?.clone())
            })?
        } else {
            Engine::load(&runtime, Arc::clone(&opened.file), plan.accept()?.clone(), &mut progress)?
        };
        bar.clear();
        if measures && !ask.quiet {
            term::note(plan.short().trim_end());
        }
        Ok((engine, plan))
    }

    /// Keeps what was measured of a model's KV for every later plan. A home that cannot be written is a note.
    fn keep_noise(&self, opened: &Opened, found: &Calibration) -> Result<KvNoise> {
        let info = ModelInfo::read(&opened.file)?;
        let (tokens, seconds) = (found.tokens, found.seconds);
        let noise = KvNoise::new(opened.file.model_id(), &info, tokens, seconds, found.layers.clone());
        if let Err(problem) = noise.save(self.home()) {
            term::note(&problem.to_string());
        }
        Ok(noise)
    }

    /// Lets the engine keep KV on disk. A disk that cannot be used costs speed later, so it is a note.
    fn attach_disk(&self, args: &DiskArgs, engine: &mut Engine, plan: &mut Plan) {
        let disk = self.disk(args);
        let config = CacheConfig {
            disk: disk.config(),
            prefill_tokens_per_second: Some(plan.forecast.prefill.p50).filter(|&rate| rate > 0.0),
            ..CacheConfig::default()
        };
        match engine.set_cache(&config) {
            Ok(()) => plan.disk = Some(disk),
            Err(problem) => term::note(&format!("nothing is kept on disk: {problem}")),
        }
    }

    /// Adds a run to the history that the next plan looks at. A history that cannot be written is a note.
    pub fn remember(&self, loaded: &Loaded, figures: &Figures) {
        let observed = Observed {
            start: figures.cached_tokens(),
            prompt_tokens: figures.prompt_tokens.saturating_sub(figures.cached_tokens()),
            prefill_seconds: figures.prefill_micros as f64 / 1e6,
            decode_tokens: figures.decode_steps,
            decode_seconds: figures.decode_micros as f64 / 1e6,
        };
        let gpu = loaded.machine.gpus.gpu();
        let kept = Kept { sizes: loaded.engine.info(), layout: &loaded.plan.layout, gpu };
        let run = observed.run(&loaded.machine, kept, loaded.plan.threads);
        if let Err(problem) = History::record(self.home(), &loaded.plan.key(), run) {
            term::note(&problem.to_string());
        }
    }
}

/// Whether a GPU is to blame, so that the CPU alone may do.
fn of_gpu(error: &anyhow::Error) -> bool {
    let blames = |e: &ComputeError| {
        matches!(e, ComputeError::Device { .. } | ComputeError::Lost { .. } | ComputeError::Memory { .. })
    };
    error.chain().any(|cause| cause.downcast_ref().is_some_and(blames))
}

/// Begins a timeline; whether its file can be written is known before anything is loaded.
///
/// # Errors
/// The file cannot be written.
fn timeline(path: &Path) -> Result<Trace> {
    Trace::create(path).with_context(|| format!("writing the timeline to {}", path.display()))
}

/// Says what a timeline came to.
pub fn show_timeline(path: &Path, result: std::io::Result<TraceSummary>, quiet: bool) {
    match result {
        Ok(_) if quiet => {}
        Ok(summary) => {
            term::note(&format!("{summary}\ntimeline in {}: open it at ui.perfetto.dev", path.display()));
        }
        Err(problem) => term::note(&format!("the timeline in {} is cut off: {problem}", path.display())),
    }
}

/// What finds a model again from any folder and whatever the default becomes: its path, or its name.
fn source(wanted: &str, opened: &Opened) -> String {
    if Path::new(wanted).exists() {
        let path = std::path::absolute(wanted).unwrap_or_else(|_| opened.path.clone());
        return path.display().to_string();
    }
    if wanted == DEFAULT_MODEL { opened.name.clone() } else { wanted.to_string() }
}

/// What the first load of a model says about its measurement.
fn measuring(plan: &Plan) -> String {
    let rate = plan.forecast.prefill.p50;
    // The formats are tried beside the forward pass: about as long again.
    let seconds = if rate > 0.0 { 2.0 * CALIBRATION_TOKENS as f64 / rate } else { 1.0 };
    let about = if seconds < 1.5 { "about a second".to_string() } else { format!("about {seconds:.0} s") };
    format!("measuring which KV formats {} takes ({about}, once; --kv q8 leaves it out)", plan.model)
}

/// What the flags say, as a wish.
pub fn wish(layout: &LayoutArgs, gpu: &GpuArgs) -> Wish {
    Wish {
        gpu: gpu.gpu,
        experts_on: gpu.more.experts_on,
        vram: gpu.more.vram,
        adapter_named: gpu.more.adapter.is_some(),
        ctx_tokens: layout.ctx,
        threads: layout.threads,
        ram: layout.ram,
        kv: layout.kv,
        ..Wish::default()
    }
}

struct PullBar {
    bar: ProgressBar,
}

impl hob_hub::Progress for PullBar {
    fn phase(&mut self, what: &str) {
        self.bar.reset();
        self.bar.set_message(what.to_string());
    }

    fn bytes(&mut self, done: u64, total: Option<u64>) {
        term::move_bar(&self.bar, Unit::Bytes, done, total);
    }
}
