//! `Plan`: what will be done on this machine for this wish. Owns the choice of threads and context and the verdict;
//! every size comes from [`Sizes`], that is, from `hob_model::ModelInfo`.

use hob_model::{Footprint, KvLayout, KvPair, LayerState, Layout, ModelInfo};
use serde::Serialize;

use crate::budget::Budget;
use crate::context::{Context, FormatLimit, Room};
use crate::disk::DiskPlan;
use crate::error::PlanError;
use crate::forecast::{Forecast, forecast};
use crate::history::{History, Key};
use crate::kv::KvNoise;
use crate::kv_plan::KvPlan;
use crate::machine::Machine;
use crate::wish::Wish;

/// What a plan asks of a model. Implemented by `ModelInfo`; tests put known sizes in its place.
pub trait Sizes {
    fn footprint(&self, layout: &Layout) -> Footprint;
    /// Bytes one decode step reads at this position.
    fn bytes_per_token(&self, position: usize, kv: &KvLayout) -> u64;
    /// Bytes of K and V that one token adds.
    fn kv_bytes_per_token(&self, kv: &KvLayout) -> u64;
    /// What layer `layer` gets when `kv` is wished for; `None` for a layer without K and V.
    fn kv_pair(&self, kv: &KvLayout, layer: usize) -> Option<KvPair>;
    /// Multiply-adds of one token at this position.
    fn macs_per_token(&self, position: usize) -> u64;
    fn parameters(&self) -> u64;
    fn ctx_train(&self) -> usize;
    fn layers(&self) -> usize;
}

impl Sizes for ModelInfo {
    fn footprint(&self, layout: &Layout) -> Footprint {
        self.footprint(layout)
    }

    fn bytes_per_token(&self, position: usize, kv: &KvLayout) -> u64 {
        self.bytes_per_token(position, kv)
    }

    fn kv_bytes_per_token(&self, kv: &KvLayout) -> u64 {
        self.kv_bytes_per_token(kv)
    }

    fn kv_pair(&self, kv: &KvLayout, layer: usize) -> Option<KvPair> {
        let has_kv = matches!(self.states().get(layer), Some(LayerState::Kv { .. }));
        has_kv.then(|| self.kv_pair(kv, layer))
    }

    fn macs_per_token(&self, position: usize) -> u64 {
        self.macs_per_token(position)
    }

    fn parameters(&self) -> u64 {
        self.parameters()
    }

    fn ctx_train(&self) -> usize {
        self.config.ctx_train
    }

    fn layers(&self) -> usize {
        self.config.layers.len()
    }
}

/// A model whose K and V are kept in given formats, as the forecast reads it.
#[derive(Clone, Copy)]
pub struct Kept<'a> {
    pub sizes: &'a dyn Sizes,
    pub kv: &'a KvLayout,
}

impl Kept<'_> {
    /// Bytes one decode step reads at this position.
    pub fn bytes_per_token(&self, position: usize) -> u64 {
        self.sizes.bytes_per_token(position, self.kv)
    }

    /// Multiply-adds of one token at this position.
    pub fn macs_per_token(&self, position: usize) -> u64 {
        self.sizes.macs_per_token(position)
    }

    pub fn layers(&self) -> usize {
        self.sizes.layers()
    }
}

/// The model a plan is for.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// For people.
    pub name: &'a str,
    /// `ModelFile::model_id`, for history.
    pub id: &'a str,
    pub sizes: &'a dyn Sizes,
    /// What every KV format does to it, once measured.
    pub noise: Option<&'a KvNoise>,
}

/// One line of the memory table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryLine {
    pub name: String,
    pub bytes: u64,
}

/// What will be done, with memory and speed by line.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    pub model: String,
    pub model_id: String,
    pub isa: String,
    pub threads: usize,
    pub context: Context,
    pub kv: KvPlan,
    /// What each KV format would allow, best first.
    pub formats: Vec<FormatLimit>,
    pub sequences: usize,
    pub chunk_rows: usize,
    pub memory: Vec<MemoryLine>,
    pub weights_bytes: u64,
    pub kv_bytes: u64,
    /// Tokens of earlier conversations whose K and V stay in memory, counted in `kv_bytes`.
    pub cached_tokens: usize,
    pub scratch_bytes: u64,
    pub total_bytes: u64,
    /// Mapped tables: page cache that the system may drop, not in the total.
    pub mapped_bytes: u64,
    pub budget: Budget,
    /// Where K and V survive the process; `None` while nobody asked.
    pub disk: Option<DiskPlan>,
    pub fits: bool,
    pub forecast: Forecast,
    /// Why each choice was made, and what the alternative costs.
    pub reasons: Vec<String>,
    pub warnings: Vec<String>,
    #[serde(skip)]
    pub layout: Layout,
    #[serde(skip)]
    refusal: Option<PlanError>,
}

impl Plan {
    /// Decides. A wish that cannot be met still gives a plan, with the refusal inside: see [`Plan::accept`].
    pub fn make(machine: &Machine, model: &Subject<'_>, wish: &Wish, history: &History) -> Self {
        let mut notes = Notes::default();
        let budget = if wish.on_paper { Budget::on_paper } else { Budget::of };
        let (budget, warning) = budget(&machine.memory, wish.ram);
        notes.warnings.extend(warning);
        let threads = choose_threads(machine, wish, &mut notes);
        let (kv, kv_layout) = KvPlan::choose(model, wish.kv, &mut notes);
        let shape = Layout {
            ctx_tokens: 0,
            sequences: wish.sequences.max(1),
            chunk_rows: wish.chunk_rows.unwrap_or(Layout::CHUNK_ROWS).max(1),
            logit_rows: wish.sequences.max(1),
            kv: kv_layout,
            threads,
            ..Layout::new(1)
        };
        let key = Key { model: model.id.to_string(), isa: machine.cpu.isa.clone(), threads };
        let past = history.find(&key);
        let room = Room { sizes: model.sizes, shape: &shape, budget: &budget };
        let context = room.choose(wish, &mut notes);
        let formats = room.formats(machine, past);
        room.advise(&context, &formats, &mut notes);
        let cached_tokens = room.cache(&context, wish.conversations);
        let layout = Layout { ctx_tokens: context.tokens, cached_tokens, ..shape.clone() };
        let footprint = model.sizes.footprint(&layout);
        if !budget.holds(footprint.total) {
            notes.refuse(room.refusal(&layout, &context, &formats));
        }
        notes.warnings.extend(machine.notes.iter().cloned());
        let kept = Kept { sizes: model.sizes, kv: &layout.kv };
        Self {
            model: model.name.to_string(),
            model_id: model.id.to_string(),
            isa: machine.cpu.isa.clone(),
            threads,
            forecast: forecast(machine, kept, threads, context.tokens, past),
            context,
            kv,
            formats,
            sequences: layout.sequences,
            chunk_rows: layout.chunk_rows,
            memory: footprint
                .lines
                .iter()
                .map(|l| MemoryLine { name: l.name.clone(), bytes: l.bytes })
                .collect(),
            weights_bytes: footprint.weights,
            kv_bytes: footprint.kv,
            cached_tokens,
            scratch_bytes: footprint.scratch,
            total_bytes: footprint.total,
            mapped_bytes: footprint.mapped,
            fits: notes.refusal.is_none(),
            budget,
            disk: None,
            reasons: notes.reasons,
            warnings: notes.warnings,
            layout,
            refusal: notes.refusal,
        }
    }

    /// The layout to load with.
    ///
    /// # Errors
    /// Why the wish cannot be met, with both numbers and the way out.
    pub fn accept(&self) -> Result<&Layout, PlanError> {
        match &self.refusal {
            Some(refusal) => Err(refusal.clone()),
            None => Ok(&self.layout),
        }
    }

    /// Key under which runs of this plan are remembered.
    pub fn key(&self) -> Key {
        Key { model: self.model_id.clone(), isa: self.isa.clone(), threads: self.threads }
    }
}

/// Reasons and warnings as they come up; the first refusal counts.
#[derive(Default)]
pub(crate) struct Notes {
    pub reasons: Vec<String>,
    pub warnings: Vec<String>,
    refusal: Option<PlanError>,
}

impl Notes {
    pub fn refuse(&mut self, error: PlanError) {
        self.refusal.get_or_insert(error);
    }
}

fn choose_threads(machine: &Machine, wish: &Wish, notes: &mut Notes) -> usize {
    let cpu = &machine.cpu;
    let chosen = match wish.threads {
        Some(0) => {
            notes.refuse(PlanError::NoThreads { available: cpu.threads });
            1
        }
        Some(n) => {
            notes.reasons.push(format!("{n} threads: asked for"));
            if n > cpu.threads {
                notes.warnings.push(format!(
                    "{n} threads on {} available: they will wait for each other at every layer; use --threads {}",
                    cpu.threads, cpu.cores
                ));
            }
            n
        }
        // Fewer threads than cores would slow prompts down, however many decode needs.
        None if machine
            .tuning
            .as_ref()
            .is_some_and(|t| t.threads > cpu.cores && t.threads <= cpu.threads) =>
        {
            let tuned = machine.tuning.as_ref().map_or(cpu.cores, |t| t.threads);
            notes.reasons.push(format!("{tuned} threads: fastest when this machine was tuned"));
            tuned
        }
        None => {
            let smt =
                if cpu.cores < cpu.threads { " (a second thread per core shares its units)" } else { "" };
            notes.reasons.push(format!("{} threads: one per usable core{smt}", cpu.cores));
            cpu.cores
        }
    };
    if chosen > 1 {
        let (one, all) = (machine.read_gb_per_s(1), machine.read_gb_per_s(chosen));
        if all < one * 1.05 {
            notes.reasons.push(format!(
                "more threads read no faster here ({one:.1} GB/s with 1, {all:.1} with {chosen}): they help prompts only"
            ));
        }
    }
    chosen
}
