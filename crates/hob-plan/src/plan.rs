//! `Plan`: what will be done on this machine for this wish. Owns the choice of threads and context and the verdict;
//! every size comes from [`Sizes`], that is, from `hob_model::ModelInfo`.

use hob_model::{Footprint, Layout, ModelInfo};
use serde::Serialize;

use crate::budget::Budget;
use crate::error::PlanError;
use crate::forecast::{Forecast, forecast};
use crate::history::{History, Key};
use crate::machine::Machine;
use crate::units::{show_bytes, show_count};
use crate::wish::Wish;

/// Contexts tried, largest first, when the user names none: the first whose KV takes at most [`KV_SHARE`] of the budget.
const CTX_DEFAULTS: [usize; 3] = [32_768, 16_384, 8_192];
/// Share of the budget that a context nobody asked for may take.
const KV_SHARE: f64 = 0.25;
/// A model is refused when not even this context fits.
const CTX_LEAST: usize = 512;

/// What a plan asks of a model. Implemented by `ModelInfo`; tests put known sizes in its place.
pub trait Sizes {
    fn footprint(&self, layout: &Layout) -> Footprint;
    /// Bytes one decode step reads at this position.
    fn bytes_per_token(&self, position: usize) -> u64;
    /// Multiply-adds of one token at this position.
    fn macs_per_token(&self, position: usize) -> u64;
    fn ctx_train(&self) -> usize;
    fn layers(&self) -> usize;
}

impl Sizes for ModelInfo {
    fn footprint(&self, layout: &Layout) -> Footprint {
        self.footprint(layout)
    }

    fn bytes_per_token(&self, position: usize) -> u64 {
        self.bytes_per_token(position)
    }

    fn macs_per_token(&self, position: usize) -> u64 {
        self.macs_per_token(position)
    }

    fn ctx_train(&self) -> usize {
        self.config.ctx_train
    }

    fn layers(&self) -> usize {
        self.config.layers.len()
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
}

/// One line of the memory table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryLine {
    pub name: String,
    pub bytes: u64,
}

/// The planned context and its bounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Context {
    pub tokens: usize,
    pub trained_tokens: usize,
    /// The most that fits in memory, at most the trained context; 0 when not even the weights fit.
    pub fits_tokens: usize,
    /// Whether the user named it.
    pub asked: bool,
}

/// What will be done, with memory and speed by line.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    pub model: String,
    pub model_id: String,
    pub isa: String,
    pub threads: usize,
    pub context: Context,
    pub sequences: usize,
    pub chunk_rows: usize,
    pub memory: Vec<MemoryLine>,
    pub weights_bytes: u64,
    pub kv_bytes: u64,
    pub scratch_bytes: u64,
    pub total_bytes: u64,
    /// Mapped tables: page cache that the system may drop, not in the total.
    pub mapped_bytes: u64,
    pub budget: Budget,
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
        let (budget, warning) = Budget::of(&machine.memory, wish.ram);
        notes.warnings.extend(warning);
        let threads = choose_threads(machine, wish, &mut notes);
        let shape = Layout {
            ctx_tokens: 0,
            sequences: wish.sequences.max(1),
            chunk_rows: wish.chunk_rows.unwrap_or(Layout::CHUNK_ROWS).max(1),
            logit_rows: wish.sequences.max(1),
            threads,
        };
        let context = choose_context(model.sizes, &shape, &budget, wish, &mut notes);
        let layout = Layout { ctx_tokens: context.tokens, ..shape };
        let footprint = model.sizes.footprint(&layout);
        if !budget.holds(footprint.total) {
            notes.refuse(does_not_fit(model.sizes, &layout, &context, &budget));
        }
        let key = Key { model: model.id.to_string(), isa: machine.cpu.isa.clone(), threads };
        let past = history.find(&key);
        notes.warnings.extend(machine.notes.iter().cloned());
        Self {
            model: model.name.to_string(),
            model_id: model.id.to_string(),
            isa: machine.cpu.isa.clone(),
            threads,
            forecast: forecast(machine, model.sizes, threads, context.tokens, past),
            context,
            sequences: layout.sequences,
            chunk_rows: layout.chunk_rows,
            memory: footprint
                .lines
                .iter()
                .map(|l| MemoryLine { name: l.name.clone(), bytes: l.bytes })
                .collect(),
            weights_bytes: footprint.weights,
            kv_bytes: footprint.kv,
            scratch_bytes: footprint.scratch,
            total_bytes: footprint.total,
            mapped_bytes: footprint.mapped,
            fits: notes.refusal.is_none(),
            budget,
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
struct Notes {
    reasons: Vec<String>,
    warnings: Vec<String>,
    refusal: Option<PlanError>,
}

impl Notes {
    fn refuse(&mut self, error: PlanError) {
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

fn choose_context(
    sizes: &dyn Sizes,
    shape: &Layout,
    budget: &Budget,
    wish: &Wish,
    notes: &mut Notes,
) -> Context {
    let trained = sizes.ctx_train().max(1);
    let at = |tokens: usize| sizes.footprint(&Layout { ctx_tokens: tokens, ..shape.clone() });
    let fits = largest(trained, |n| budget.holds(at(n).total));
    let context = |tokens, asked| Context { tokens, trained_tokens: trained, fits_tokens: fits, asked };
    if let Some(asked) = wish.ctx_tokens {
        if asked == 0 {
            notes.refuse(PlanError::NoContext { trained });
        }
        if asked > trained {
            notes.refuse(PlanError::ContextBeyondTraining { asked, trained });
        }
        notes.reasons.push(format!("context {}: asked for", show_count(asked as u64)));
        return context(asked.max(1), true);
    }
    let cheap = |n: usize| budget.bytes.is_none_or(|b| at(n).kv as f64 <= b as f64 * KV_SHARE);
    let wanted =
        CTX_DEFAULTS.into_iter().find(|&n| cheap(n.min(trained))).unwrap_or(CTX_DEFAULTS[2]).min(trained);
    let tokens = wanted.min(fits.max(CTX_LEAST.min(trained)));
    let why = if tokens == trained {
        "all the model was trained for".to_string()
    } else if tokens < wanted {
        "all that fits in memory".to_string()
    } else {
        let more = at(fits.max(tokens)).total.saturating_sub(at(tokens).total);
        let most = if fits > tokens {
            format!("; --ctx {fits} is possible and takes {} more", show_bytes(more))
        } else {
            String::new()
        };
        format!("a default whose KV takes at most a quarter of the memory{most}")
    };
    notes.reasons.push(format!("context {}: {why}", show_count(tokens as u64)));
    context(tokens, false)
}

/// Largest `n` in `1..=most` that `fits` (monotone), in whole pages of 256 unless it is `most`; 0 if none does.
fn largest(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    const PAGE: usize = 256;
    if fits(most) {
        return most;
    }
    let (mut low, mut high) = (0, most.div_ceil(PAGE));
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle * PAGE) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low * PAGE
}

fn does_not_fit(sizes: &dyn Sizes, layout: &Layout, context: &Context, budget: &Budget) -> PlanError {
    let limit_bytes = budget.bytes.unwrap_or(u64::MAX);
    let source_of_limit = budget.source.clone();
    let least = CTX_LEAST.min(context.trained_tokens).min(context.tokens);
    if context.fits_tokens >= least {
        return PlanError::ContextDoesNotFit {
            asked: context.tokens,
            fits: context.fits_tokens,
            needs_bytes: sizes.footprint(layout).total,
            limit_bytes,
            source_of_limit,
        };
    }
    let needs_bytes = sizes.footprint(&Layout { ctx_tokens: least, ..layout.clone() }).total;
    PlanError::ModelDoesNotFit { needs_bytes, ctx_tokens: least, limit_bytes, source_of_limit }
}
