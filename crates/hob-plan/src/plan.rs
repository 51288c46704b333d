//! `Plan`: what will be done on this machine for this wish. Owns the choice of threads and context and the verdict;
//! every size comes from [`Sizes`], that is, from `hob_model::ModelInfo`.

use hob_model::{Crossing, Footprint, KvLayout, KvPair, LayerState, Layout, ModelInfo, Placement};
use serde::Serialize;

use crate::budget::Budget;
use crate::context::{Context, FormatLimit, Room};
use crate::disk::DiskPlan;
use crate::error::PlanError;
use crate::forecast::{Forecast, forecast};
use crate::gpus::GpuFacts;
use crate::history::{History, Key};
use crate::kv::KvNoise;
use crate::kv_plan::KvPlan;
use crate::machine::Machine;
use crate::placing::{GpuPlan, Placer};
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
    /// What device `device` of `layout.placement` holds.
    fn device_footprint(&self, layout: &Layout, device: usize) -> Footprint;
    /// Bytes that device `device` reads in one decode step at this position.
    fn device_bytes_per_token(&self, position: usize, layout: &Layout, device: usize) -> u64;
    /// Multiply-adds of one token that device `device` does.
    fn device_macs_per_token(&self, position: usize, placement: &Placement, device: usize) -> u64;
    /// Of [`Sizes::device_bytes_per_token`], those of routed experts.
    fn device_expert_bytes_per_token(&self, placement: &Placement, device: usize) -> u64;
    /// Of [`Sizes::device_macs_per_token`], those of routed experts.
    fn device_expert_macs_per_token(&self, placement: &Placement, device: usize) -> u64;
    /// Stages of a decode step, one behind the other, that device `device` does in its layers.
    fn device_stages(&self, placement: &Placement, device: usize) -> usize;
    /// Where the rows of a step change the device.
    fn crossings(&self, placement: &Placement) -> Vec<Crossing>;
    /// Bytes of the largest pool of pages.
    fn largest_pool_bytes(&self, layout: &Layout) -> u64;
    /// Whether any layer routes rows to experts.
    fn has_experts(&self) -> bool;
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

    fn device_footprint(&self, layout: &Layout, device: usize) -> Footprint {
        self.device_footprint(layout, device)
    }

    fn device_bytes_per_token(&self, position: usize, layout: &Layout, device: usize) -> u64 {
        self.device_bytes_per_token(position, layout, device)
    }

    fn device_macs_per_token(&self, position: usize, placement: &Placement, device: usize) -> u64 {
        self.device_macs_per_token(position, placement, device)
    }

    fn device_expert_bytes_per_token(&self, placement: &Placement, device: usize) -> u64 {
        self.device_expert_bytes_per_token(placement, device)
    }

    fn device_expert_macs_per_token(&self, placement: &Placement, device: usize) -> u64 {
        self.device_expert_macs_per_token(placement, device)
    }

    fn device_stages(&self, placement: &Placement, device: usize) -> usize {
        self.device_stages(placement, device)
    }

    fn crossings(&self, placement: &Placement) -> Vec<Crossing> {
        self.crossings(placement)
    }

    fn largest_pool_bytes(&self, layout: &Layout) -> u64 {
        self.largest_pool_bytes(layout)
    }

    fn has_experts(&self) -> bool {
        self.config.layers.iter().any(|l| l.experts.is_some())
    }
}

/// A model under a layout, as the forecast reads it: formats of K and V, and what lies on which device.
#[derive(Clone, Copy)]
pub struct Kept<'a> {
    pub sizes: &'a dyn Sizes,
    pub layout: &'a Layout,
    /// Device 1 of the layout's placement.
    pub gpu: Option<&'a GpuFacts>,
}

impl Kept<'_> {
    /// Bytes one decode step reads at this position.
    pub fn bytes_per_token(&self, position: usize) -> u64 {
        self.sizes.bytes_per_token(position, &self.layout.kv)
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
    /// What a GPU holds; `memory`, `total_bytes` and `budget` are the CPU's. `None`: all is on the CPU.
    pub gpu: Option<GpuPlan>,
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
        let placer = Placer::of(machine, model.sizes, &budget, wish, &mut notes);
        let (shape, total) = match &placer {
            Some(placer) => placer.place(machine, &shape, wish, &mut notes),
            None => (shape, budget.clone()),
        };
        let room = Room { sizes: model.sizes, shape: &shape, budget: &total, placer: placer.as_ref() };
        let context = room.choose(wish, &mut notes);
        let cached_tokens = room.cache(&context, wish.conversations);
        let layout = Layout { ctx_tokens: context.tokens, cached_tokens, ..shape.clone() };
        let gpu = placer.as_ref().filter(|_| layout.placement.devices() > 1).map(|p| p.plan(&layout));
        let isa = machine.cpu.isa.clone();
        let key = Key { model: model.id.to_string(), isa: computes(&isa, gpu.as_ref()), threads };
        let past = history.find(&key);
        let formats = room.formats(machine, past);
        room.advise(&context, &formats, &mut notes);
        if !room.holds(&layout) {
            notes.refuse(room.refusal(&layout, &context, &formats));
        }
        notes.warnings.extend(machine.notes.iter().cloned());
        let all = model.sizes.footprint(&layout);
        let own = model.sizes.device_footprint(&layout, 0);
        let kept = Kept { sizes: model.sizes, layout: &layout, gpu: machine.gpus.gpu() };
        let line = |l: &hob_model::Line| MemoryLine { name: l.name.clone(), bytes: l.bytes };
        Self {
            model: model.name.to_string(),
            model_id: model.id.to_string(),
            isa,
            threads,
            forecast: forecast(machine, kept, threads, context.tokens, past),
            context,
            kv,
            formats,
            sequences: layout.sequences,
            chunk_rows: layout.chunk_rows,
            memory: own.lines.iter().map(line).collect(),
            weights_bytes: all.weights,
            kv_bytes: all.kv,
            cached_tokens,
            scratch_bytes: all.scratch,
            total_bytes: own.total,
            mapped_bytes: all.mapped,
            fits: notes.refusal.is_none(),
            budget,
            gpu,
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
        let isa = computes(&self.isa, self.gpu.as_ref());
        Key { model: self.model_id.clone(), isa, threads: self.threads }
    }
}

/// What computes, as history tells runs apart: instructions, and what part a GPU has.
fn computes(isa: &str, gpu: Option<&GpuPlan>) -> String {
    match gpu {
        Some(gpu) => format!("{isa} + {}: {}", gpu.adapter, gpu.parts()),
        None => isa.to_string(),
    }
}

/// Reasons and warnings as they come up; the first refusal counts.
#[derive(Clone, Default)]
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
