//! One loaded model and the requests that run on it: load, open sessions, submit, generate. The loop is in `step.rs`.
//!
//! It must not know how layers are computed or where a prompt came from.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hob_compute::{Buf, Draw, Map, Picked};
use hob_files::ModelFile;
use hob_model::{Batch, Layout, Model, ModelInfo};
use hob_text::{ChatTemplate, TemplateLimits, Tokenizer};

use crate::cache::{CacheConfig, Disk, Rates};
use crate::chains::Chains;
use crate::error::{EngineError, Result};
use crate::flight::Flying;
use crate::job::{Event, Finished, Job, JobId};
use crate::outcome::Outcome;
use crate::persist::snapshot_stride;
use crate::recall::Recalled;
use crate::request::{Cancel, Request};
use crate::runtime::Runtime;
use crate::sampler::{Need, Sampler, Scratch};
use crate::session::{Front, Session, Shared};
use crate::trace::{Trace, TraceSummary};

/// One loaded model with its tokenizer and template. Not shared between threads: whoever owns it steps it.
pub struct Engine {
    pub(crate) runtime: Arc<Runtime>,
    /// `None` only while being dropped.
    pub(crate) model: Option<Model>,
    pub(crate) front: Front,
    pub(crate) chunk_rows: usize,
    pub(crate) logit_rows: usize,
    pub(crate) jobs: Vec<Job>,
    /// Which decoding job comes first when not all fit into one batch.
    pub(crate) turn: usize,
    /// Whether batches are recorded before the one in front of them is settled: see [`crate::flight`].
    pub(crate) ahead: bool,
    /// Whether some layers let go of what leaves their window.
    pub(crate) windowed: bool,
    pub(crate) batch: Batch,
    pub(crate) draws: Vec<Draw>,
    /// The batch just recorded.
    pub(crate) recorded: Option<Flying>,
    pub(crate) flying: Option<Flying>,
    /// When the last batch in flight was settled.
    pub(crate) landed: Option<Instant>,
    /// Which of the runtime's picks was ours.
    pub(crate) own_pick: u64,
    /// Rows of logits that are read while the next batch overwrites them, `[2 * logit_rows, vocab]`: of batches in turns.
    pub(crate) aside: Option<Buf>,
    /// Which half of them was written last.
    pub(crate) half: usize,
    /// Set when the device was lost.
    pub(crate) lost: Option<EngineError>,
    pub(crate) trace: Option<Trace>,
    trace_report: Option<TraceReport>,
    pub(crate) picked: Picked,
    /// One row of logits on the host.
    pub(crate) row: Vec<f32>,
    pub(crate) scratch: Scratch,
    /// Where pages outlive the process, if anywhere.
    pub(crate) disk: Option<Disk>,
    pub(crate) rates: Rates,
    /// Positions between two kept states of a recurrent model.
    pub(crate) snapshot_stride: Option<usize>,
    next_job: u64,
}

type TraceReport = Box<dyn FnOnce(std::io::Result<TraceSummary>) + Send>;

/// A request that was not accepted, and the session that came with it.
pub struct Rejected {
    pub session: Session,
    pub error: EngineError,
}

impl Engine {
    /// Loads the weights and reserves everything the layout names. `progress(done, total)` counts bytes.
    ///
    /// # Errors
    /// What the file, tokenizer, model or device say. A chat template that cannot be used is not an error: the engine
    /// then has none.
    pub fn load(
        runtime: &Arc<Runtime>,
        file: Arc<ModelFile>,
        layout: Layout,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Engine> {
        let tokenizer = Tokenizer::from_model(&file)?;
        let model = Model::load(file, &mut **runtime.device(), &layout, progress)?;
        Ok(Self::with_model(runtime, tokenizer, model))
    }

    /// An engine on a model that was loaded on the runtime's device, under the layout it has now.
    pub(crate) fn with_model(runtime: &Arc<Runtime>, tokenizer: Tokenizer, model: Model) -> Engine {
        let template = ChatTemplate::for_tokenizer(&tokenizer, &TemplateLimits::default()).map_err(Arc::new);
        let layout = model.layout().clone();
        let vocab = model.info().config.vocab;
        let shared = Shared {
            tokenizer,
            template,
            vocab,
            ctx_tokens: layout.ctx_tokens,
            chains: Mutex::new(Chains::new()),
            released: Mutex::new(Vec::new()),
        };
        let rates = Rates::guess(model.info().bytes_per_token(0, &layout.kv));
        let snapshot_stride = snapshot_stride(&model);
        Engine {
            runtime: Arc::clone(runtime),
            front: Front(Arc::new(shared)),
            chunk_rows: layout.chunk_rows,
            logit_rows: layout.logit_rows,
            jobs: Vec::with_capacity(layout.sequences),
            turn: 0,
            ahead: runtime.info().asynchronous && (!model.info().recurrent() || layout.held_rows > 0),
            windowed: model.info().config.layers.iter().any(|layer| layer.window.is_some()),
            batch: Batch { rows: Vec::with_capacity(layout.chunk_rows) },
            draws: Vec::with_capacity(layout.logit_rows),
            recorded: None,
            flying: None,
            landed: None,
            own_pick: 0,
            aside: None,
            half: 0,
            lost: None,
            trace: None,
            trace_report: None,
            picked: Picked::default(),
            row: Vec::new(),
            scratch: Scratch::default(),
            disk: None,
            rates,
            snapshot_stride,
            model: Some(model),
            next_job: 0,
        }
    }

    /// Says what is kept beyond sequences and their pages in memory. A store on disk is opened, and what it knows of
    /// this model is found again by its text; a store that was there before is closed.
    ///
    /// # Errors
    /// When the store's folder cannot be used, or its thread not started; then nothing is kept on disk.
    pub fn set_cache(&mut self, config: &CacheConfig) -> Result<()> {
        self.disk = None;
        if let Some(rate) = config.prefill_tokens_per_second {
            self.rates.assume_prefill(rate);
        }
        let Some(disk) = &config.disk else { return Ok(()) };
        let disk = Disk::open(disk, config.queue_bytes, self.model().identity())?;
        for chain in disk.store.chains(&disk.identity) {
            self.front.chains().insert(&chain);
        }
        self.disk = Some(disk);
        Ok(())
    }

    /// Counters of the store on disk, if there is one.
    pub fn disk_stats(&self) -> Option<hob_model::disk::Stats> {
        self.disk.as_ref().map(|disk| disk.store.stats())
    }

    /// Waits until what was handed over for the disk is there; false if that takes longer than `wait`. Dropping the
    /// engine does this too.
    pub fn flush(&self, wait: Duration) -> bool {
        self.disk.as_ref().is_none_or(|disk| disk.writer.settle(wait))
    }

    /// Takes in a timeline of another time ([`Session::tokens`]), so that its text is replayed in these tokens.
    pub fn remember(&self, tokens: &[u32]) {
        self.front.chains().insert(tokens);
    }

    /// The part that needs no model, for other threads.
    pub fn front(&self) -> Front {
        self.front.clone()
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        self.front.tokenizer()
    }

    /// The model's chat template, if it has a usable one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.front.template()
    }

    /// What the model file says about the model.
    pub fn info(&self) -> &ModelInfo {
        self.model().info()
    }

    /// Positions a session may grow to.
    pub fn ctx_tokens(&self) -> usize {
        self.front.ctx_tokens()
    }

    /// Opens an empty session.
    ///
    /// # Errors
    /// When the layout's sequences are all taken, or the device was lost.
    pub fn session(&mut self) -> Result<Session> {
        self.check_device()?;
        let mut released =
            std::mem::take(&mut *self.front.0.released.lock().unwrap_or_else(PoisonError::into_inner));
        let model = self.model_mut();
        for sequence in released.drain(..) {
            // Only a stale id is refused, and ours are not stale.
            let _ = model.free_sequence(sequence);
        }
        let sequence = model.new_sequence()?;
        Ok(Session::new(self.front(), Some(sequence)))
    }

    /// Queues a request on a session; [`Engine::step`] makes it go on, [`Event::Done`] gives the session back.
    ///
    /// # Errors
    /// Whatever is wrong with the request: a field outside its range, a prompt that does not fit; that the device was
    /// lost. Nothing was run.
    pub fn submit(
        &mut self,
        mut session: Session,
        request: &Request,
        cancel: &Cancel,
    ) -> std::result::Result<JobId, Box<Rejected>> {
        let ours = Arc::ptr_eq(&session.front.0, &self.front.0) && session.sequence.is_some();
        let checked = if ours { self.admit(&mut session, request) } else { Err(EngineError::ForeignSession) };
        match checked {
            Ok(recalled) => {
                let id = JobId(self.next_job);
                self.next_job += 1;
                self.jobs.push(Job::new(id, session, recalled, request, cancel));
                Ok(id)
            }
            Err(error) => Err(Box::new(Rejected { session, error })),
        }
    }

    /// Checks a request and makes ready what it needs.
    fn admit(&mut self, session: &mut Session, request: &Request) -> Result<Recalled> {
        self.check_device()?;
        request.validate(self.front.vocab())?;
        let whole = Sampler::new(&request.sampling).need() == Need::Row;
        if whole && self.ahead && self.aside.is_none() {
            let device = &mut **self.runtime.device();
            let out = device.alloc(2 * self.logit_rows, self.front.vocab())?;
            self.aside = Some(out);
            // What a step does with it is made ready now.
            if device.rehearse(true) {
                let a = self.model().logits();
                let ready = device.map(&Map::CopyRow { a, from: 0, out, to: 0 });
                device.rehearse(false);
                ready?;
            }
        }
        self.recall(session, &request.prompt)
    }

    /// # Errors
    /// That the device was lost.
    fn check_device(&self) -> Result<()> {
        self.lost.clone().map_or(Ok(()), Err)
    }

    /// Runs one request to its end; text is handed to `on_text` as it comes.
    ///
    /// # Errors
    /// As [`Engine::submit`], and what goes wrong while running; [`EngineError::Busy`] while submitted jobs run.
    pub fn generate(
        &mut self,
        session: &mut Session,
        request: &Request,
        cancel: &Cancel,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<Outcome> {
        self.generate_events(session, request, cancel, &mut |event| {
            if let Event::Text(text) = event {
                on_text(text);
            }
        })
    }

    /// As [`Engine::generate`], with the progress of the prefill too; the sink sees no [`Event::Done`].
    ///
    /// # Errors
    /// As [`Engine::generate`].
    pub fn generate_events(
        &mut self,
        session: &mut Session,
        request: &Request,
        cancel: &Cancel,
        sink: &mut dyn FnMut(Event<'_>),
    ) -> Result<Outcome> {
        if !self.jobs.is_empty() {
            return Err(EngineError::Busy(self.jobs.len()));
        }
        let lent = std::mem::replace(session, Session::new(self.front(), None));
        let id = match self.submit(lent, request, cancel) {
            Ok(id) => id,
            Err(rejected) => {
                *session = rejected.session;
                return Err(rejected.error);
            }
        };
        let mut finished: Option<Box<Finished>> = None;
        // The caller's sink may panic: the session must come back even then.
        let ran = catch_unwind(AssertUnwindSafe(|| {
            while finished.is_none() {
                self.step(&mut |_, event| match event {
                    Event::Done(end) => finished = Some(end),
                    other => sink(other),
                });
            }
        }));
        match (ran, finished) {
            (Ok(()), Some(end)) => {
                *session = end.session;
                end.result
            }
            (Err(panic), end) => {
                let back = end.map(|e| e.session).or_else(|| self.take_job(id).map(|j| j.session));
                if let Some(back) = back {
                    *session = back;
                }
                resume_unwind(panic)
            }
            (Ok(()), None) => Err(EngineError::Internal("a job ended without a result".to_owned())),
        }
    }

    /// Writes a timeline of the steps from now on, and of the device's verbs if [`RuntimeConfig::profile`] was set. It ends
    /// with the engine; `report` then gets what it came to, or why it could not be written.
    ///
    /// [`RuntimeConfig::profile`]: crate::RuntimeConfig::profile
    pub fn set_trace(
        &mut self,
        trace: Trace,
        report: impl FnOnce(std::io::Result<TraceSummary>) + Send + 'static,
    ) {
        // What was done to load the model is not part of it.
        self.runtime.device().take_spans(&mut Vec::new());
        self.trace = Some(trace);
        self.trace_report = Some(Box::new(report));
    }

    /// Removes a job without finishing it.
    pub(crate) fn take_job(&mut self, id: JobId) -> Option<Job> {
        let index = self.jobs.iter().position(|j| j.id == id)?;
        let mut job = self.jobs.remove(index);
        self.cut_back(&mut job);
        Some(job)
    }

    pub(crate) fn model(&self) -> &Model {
        self.model.as_ref().expect("the model is there until the engine is dropped")
    }

    pub(crate) fn model_mut(&mut self) -> &mut Model {
        self.model.as_mut().expect("the model is there until the engine is dropped")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.land(&mut |_, _| {});
        for mut job in std::mem::take(&mut self.jobs) {
            self.cut_back(&mut job);
            self.keep_end(&mut job);
        }
        self.disk = None;
        let device = &mut **self.runtime.device();
        if let (Some(mut trace), Some(report)) = (self.trace.take(), self.trace_report.take()) {
            trace.collect(device);
            report(trace.finish());
        }
        // Nothing can be done about a device that will not take its memory back.
        if let Some(aside) = self.aside.take() {
            let _ = device.free(aside);
        }
        if let Some(model) = self.model.take() {
            let _ = model.unload(device);
        }
    }
}
