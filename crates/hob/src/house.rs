//! From a name to a loaded engine: resolve, fetch, open, plan, load. What `run`, `chat` and `serve` share.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use hob_engine::{Engine, Figures, Runtime, RuntimeConfig};
use hob_files::ModelFile;
use hob_hub::{Hub, HubError, Resolved};
use hob_model::ModelInfo;
use hob_plan::{History, Machine, Observed, Plan, Subject, Wish};
use indicatif::ProgressBar;

use crate::args::LayoutArgs;
use crate::interrupt::Interrupt;
use crate::term::{self, LateBar, Unit};

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
    pub plan: Plan,
    pub machine: Machine,
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

    /// The plan of an opened model.
    pub fn plan(&self, machine: &Machine, opened: &Opened, wish: &Wish) -> Result<Plan> {
        let info = ModelInfo::read(&opened.file)?;
        let id = opened.file.model_id();
        let subject = Subject { name: &opened.name, id: &id, sizes: &info };
        Ok(Plan::make(machine, &subject, wish, &History::load(self.home())))
    }

    /// Opens, plans, shows the plan (unless `quiet`) and loads.
    ///
    /// # Errors
    /// The model is not there or not readable; the plan does not fit.
    pub fn load(&self, wanted: &str, wish: &Wish, quiet: bool) -> Result<Loaded> {
        let opened = self.open(wanted, true)?;
        let machine = self.machine();
        let plan = self.plan(&machine, &opened, wish)?;
        let layout = plan.accept()?.clone();
        if !quiet {
            term::note(plan.short().trim_end());
        }
        let runtime = Runtime::new(&RuntimeConfig { threads: Some(plan.threads), exact: false })?;
        let mut bar = LateBar::new("loading", Unit::Bytes);
        let engine = Engine::load(&runtime, opened.file, layout, &mut |done, total| bar.set(done, total))?;
        if let Some(warning) = engine.front().tokenizer().warning() {
            term::note(warning);
        }
        Ok(Loaded { engine, plan, machine })
    }

    /// Adds a run to the history that the next plan looks at. A history that cannot be written is a note.
    pub fn remember(&self, loaded: &Loaded, figures: &Figures) {
        let observed = Observed {
            start: figures.reused_tokens,
            prompt_tokens: figures.prompt_tokens.saturating_sub(figures.reused_tokens),
            prefill_seconds: figures.prefill_micros as f64 / 1e6,
            decode_tokens: figures.decode_steps,
            decode_seconds: figures.decode_micros as f64 / 1e6,
        };
        let run = observed.run(&loaded.machine, loaded.engine.info(), loaded.plan.threads);
        if let Err(problem) = History::record(self.home(), &loaded.plan.key(), run) {
            term::note(&problem.to_string());
        }
    }
}

/// What the flags say, as a wish.
pub fn wish(layout: &LayoutArgs) -> Wish {
    Wish { ctx_tokens: layout.ctx, threads: layout.threads, ram: layout.ram, ..Wish::default() }
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
