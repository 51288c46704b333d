//! Which device gets what: the choice among all on the GPU, routed experts in memory, as many layers as fit, or none.
//! Owns the reserve of GPU memory and the order of preference; sizes come from [`Sizes`], speeds from the forecast.

use hob_model::{Layout, Placement};
use serde::Serialize;

use crate::budget::Budget;
use crate::context::Room;
use crate::error::PlanError;
use crate::forecast::Decode;
use crate::gpus::{GpuFacts, GpuRates};
use crate::machine::Machine;
use crate::plan::{Kept, MemoryLine, Notes, Sizes};
use crate::units::{show_bytes, show_figures};
use crate::wish::{ExpertsOn, GpuWish, Wish};

/// GPU memory left to the driver, other programs and what kernels need beside the model: the larger of the two.
const RESERVE_BYTES: u64 = 512 << 20;
const RESERVE_SHARE: u64 = 20;
/// Rows of a prefill step where all is on a GPU: its matrix units want more than a CPU.
pub(crate) const GPU_CHUNK_ROWS: usize = 2048;
/// A context below this, where the model was trained for more, is worth splitting the model for.
const CTX_OF_USE: usize = 8192;
/// A GPU is used unasked where that makes decode at least so much faster.
const WORTH: f64 = 1.05;

/// What a GPU will hold.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GpuPlan {
    /// As `--adapter` takes it.
    pub index: usize,
    pub adapter: String,
    pub tier: String,
    /// Layers whose attention and KV are there, of how many.
    pub layers: usize,
    pub of_layers: usize,
    /// Layers whose routed experts are there; `None` for a model without.
    pub expert_layers: Option<usize>,
    pub embedding: bool,
    pub head: bool,
    pub memory: Vec<MemoryLine>,
    pub total_bytes: u64,
    pub budget: Budget,
    pub rates: Option<GpuRates>,
    /// Bytes of one decode step at position 0 that it reads.
    pub bytes_per_token: u64,
    /// Round trips between devices in a step.
    pub crossings: usize,
}

impl GpuPlan {
    /// `80 of 80 layers, head` and so on.
    pub fn parts(&self) -> String {
        let mut parts = vec![format!("{} of {} layers", self.layers, self.of_layers)];
        if let Some(n) = self.expert_layers {
            parts.push(match n {
                0 => "routed experts in memory".to_string(),
                n if n == self.layers => "their experts".to_string(),
                n => format!("the experts of {n}"),
            });
        }
        parts.extend(self.embedding.then(|| "embedding".to_string()));
        parts.extend(self.head.then(|| "head".to_string()));
        parts.join(", ")
    }

    /// Whether the CPU has nothing to compute.
    pub fn whole(&self) -> bool {
        self.layers == self.of_layers
            && self.embedding
            && self.head
            && self.expert_layers.is_none_or(|n| n == self.layers)
    }
}

/// The GPU a plan may use.
pub(crate) struct Placer<'a> {
    pub gpu: &'a GpuFacts,
    pub budget: Budget,
    pub sizes: &'a dyn Sizes,
    /// Memory of the CPU.
    pub ram: &'a Budget,
}

impl<'a> Placer<'a> {
    /// The GPU that `wish` allows, if any. What was asked for and is not there is refused or noted.
    pub fn of(
        machine: &'a Machine,
        sizes: &'a dyn Sizes,
        ram: &'a Budget,
        wish: &Wish,
        notes: &mut Notes,
    ) -> Option<Self> {
        if wish.experts_on == Some(ExpertsOn::Disk) {
            notes.refuse(PlanError::ExpertsOnDisk);
        }
        if wish.gpu == GpuWish::Off {
            return None;
        }
        let Some(gpu) = machine.gpus.gpu() else {
            let why = machine.gpus.none.clone().unwrap_or_else(|| "none was looked for".into());
            if matches!(wish.gpu, GpuWish::Layers(n) if n > 0) || wish.experts_on == Some(ExpertsOn::Gpu) {
                notes.refuse(PlanError::NoGpu { why });
            }
            return None;
        };
        if wish.gpu == GpuWish::Auto && (gpu.software || gpu.rates.is_none()) && !wish.adapter_named {
            return None;
        }
        let whole = gpu.memory_bytes.or(gpu.free_bytes).unwrap_or(0);
        let free = gpu.free_bytes.or(gpu.memory_bytes).unwrap_or(0);
        let budget = match wish.vram {
            Some(asked) => {
                let bytes = asked.of(whole);
                // On paper any card may be planned for.
                let bytes = if wish.on_paper || free == 0 { bytes } else { bytes.min(free) };
                Budget { bytes: Some(bytes), source: "--vram".into(), reserve_bytes: 0 }
            }
            None => {
                let reserve = RESERVE_BYTES.max(whole / RESERVE_SHARE).min(free);
                let source = format!("free on {}", gpu.name);
                Budget { bytes: Some(free - reserve), source, reserve_bytes: reserve }
            }
        };
        Some(Self { gpu, budget, sizes, ram })
    }

    /// Whether `layout` fits the GPU.
    pub fn holds(&self, layout: &Layout) -> bool {
        self.budget.holds(self.sizes.device_footprint(layout, 1).total)
            && self.sizes.largest_pool_bytes(layout) <= self.gpu.binding_bytes
    }

    /// `shape` with its placement, and the memory that its context may be chosen from. All on the GPU where that leaves room
    /// for a context that is of use; else whatever goes best beside the CPU.
    pub fn place(
        &self,
        machine: &Machine,
        shape: &Layout,
        wish: &Wish,
        notes: &mut Notes,
    ) -> (Layout, Budget) {
        let both = match (self.ram.bytes, self.budget.bytes) {
            (Some(ram), Some(vram)) => Some(ram.saturating_add(vram)),
            _ => None,
        };
        let reserve_bytes = self.ram.reserve_bytes + self.budget.reserve_bytes;
        let both = Budget { bytes: both, source: format!("memory and {}", self.gpu.name), reserve_bytes };
        if let Some(placement) = &wish.placed {
            let shape = self.shaped(shape, placement.clone(), wish);
            let whole = shape.placement == Placement::whole(self.sizes.layers(), 1);
            let alone = *placement == Placement::default();
            let budget = if alone {
                self.ram
            } else if whole {
                &self.budget
            } else {
                &both
            };
            return (shape, budget.clone());
        }
        let may_be_whole = match wish.gpu {
            GpuWish::Layers(n) => n >= self.sizes.layers(),
            _ => true,
        } && wish.experts_on != Some(ExpertsOn::Cpu);
        if may_be_whole {
            let whole = self.shaped(shape, Placement::whole(self.sizes.layers(), 1), wish);
            let room = Room { sizes: self.sizes, shape: &whole, budget: &self.budget, placer: Some(self) };
            let context = room.choose(wish, &mut Notes::default());
            let least = CTX_OF_USE.min(context.trained_tokens);
            let layout = Layout { ctx_tokens: context.tokens, ..whole.clone() };
            let fits = self.holds(&layout) && (context.asked || context.tokens >= least);
            if fits && self.choose(machine, &layout, wish, notes).as_ref() == Some(&whole.placement) {
                notes.reasons.push("all on the GPU: weights, KV and activations fit there".into());
                return (whole, self.budget.clone());
            }
            if fits && wish.gpu == GpuWish::Auto {
                // Not worth it.
                return (shape.clone(), self.ram.clone());
            }
        }
        let room = Room { sizes: self.sizes, shape, budget: &both, placer: None };
        let context = room.choose(wish, &mut Notes::default());
        let layout = Layout { ctx_tokens: context.tokens, ..shape.clone() };
        match self.choose(machine, &layout, wish, notes) {
            Some(placement) => {
                let shape = self.shaped(shape, placement, wish);
                let parts = self.plan(&Layout { ctx_tokens: context.tokens, ..shape.clone() }).parts();
                let vram = show_bytes(self.budget.bytes.unwrap_or(0));
                notes.reasons.push(format!("{parts} on the GPU: what its {vram} hold"));
                (shape, both)
            }
            None => (shape.clone(), self.ram.clone()),
        }
    }

    fn shaped(&self, shape: &Layout, placement: Placement, wish: &Wish) -> Layout {
        let whole = placement == Placement::whole(self.sizes.layers(), 1);
        let chunk_rows = wish.chunk_rows.filter(|&n| n > 0);
        let chunk_rows = chunk_rows.unwrap_or(if whole { GPU_CHUNK_ROWS } else { shape.chunk_rows });
        // A GPU that has all is handed rows before their tokens are known: see `hob_engine`'s flight.
        let held_rows = shape.held_rows.max(usize::from(whole));
        Layout { placement, chunk_rows, held_rows, ..shape.clone() }
    }

    /// The best placement for a layout whose context is chosen; `None` keeps all on the CPU.
    fn choose(
        &self,
        machine: &Machine,
        layout: &Layout,
        wish: &Wish,
        notes: &mut Notes,
    ) -> Option<Placement> {
        if let GpuWish::Layers(n) = wish.gpu {
            return self.asked(layout, n, wish, notes);
        }
        let speed = |placement: &Placement| self.speed(machine, layout, placement);
        let cpu = speed(&Placement::default());
        let fits = |p: &Placement| {
            let layout = self.shaped(layout, p.clone(), wish);
            self.holds(&layout) && self.ram.holds(self.sizes.device_footprint(&layout, 0).total)
        };
        let mut best: Option<(f64, Placement)> = None;
        for placement in self.candidates(layout, wish) {
            let speed = speed(&placement);
            if fits(&placement) && best.as_ref().is_none_or(|(most, _)| speed > *most) {
                best = Some((speed, placement));
            }
        }
        let Some((speed, placement)) = best else {
            let needs = Layout { placement: self.last_layers(1, wish), ..layout.clone() };
            let needs = self.sizes.device_footprint(&needs, 1).total;
            notes.reasons.push(format!(
                "all on the CPU: not even one layer fits the GPU ({} needed, {} to use)",
                show_bytes(needs),
                show_bytes(self.budget.bytes.unwrap_or(0))
            ));
            return None;
        };
        let fits_cpu = self.ram.holds(self.sizes.footprint(layout).total);
        if fits_cpu && speed < cpu * WORTH && wish.experts_on.is_none() && !wish.adapter_named {
            notes.reasons.push(format!(
                "all on the CPU: the GPU would make {} tok/s of {}",
                show_figures(speed),
                show_figures(cpu)
            ));
            return None;
        }
        Some(placement)
    }

    /// What may be best, and what must do: whole, whole but experts (all, or of the first layers), the last layers.
    fn candidates(&self, layout: &Layout, wish: &Wish) -> Vec<Placement> {
        let layers = self.sizes.layers();
        let whole = Placement::whole(layers, 1);
        let holds = |p: &Placement| self.holds(&Layout { placement: p.clone(), ..layout.clone() });
        let mut found = Vec::new();
        let with_experts = |on: usize| {
            let experts = (0..layers).map(|i| usize::from(i >= layers - on)).collect();
            Placement { experts, embed: 0, ..whole.clone() }
        };
        if self.sizes.has_experts() && wish.experts_on != Some(ExpertsOn::Gpu) {
            found.push(with_experts(0));
            if wish.experts_on == Some(ExpertsOn::Cpu) {
                return found;
            }
            found.push(with_experts(most(layers, |n| holds(&with_experts(n)))));
        }
        found.push(Placement { embed: 0, ..whole.clone() });
        match most(layers, |n| holds(&self.last_layers(n, wish))) {
            0 => {}
            n => found.push(self.last_layers(n, wish)),
        }
        // First: of equals the first is taken.
        found.insert(0, whole);
        found
    }

    /// The last `n` layers and the head.
    fn last_layers(&self, n: usize, wish: &Wish) -> Placement {
        let layers = self.sizes.layers();
        if n >= layers && wish.experts_on != Some(ExpertsOn::Cpu) {
            return Placement::whole(layers, 1);
        }
        let n = n.min(layers);
        let on = (0..layers).map(|i| usize::from(i >= layers - n)).collect();
        let experts = if wish.experts_on == Some(ExpertsOn::Cpu) { vec![0; layers] } else { Vec::new() };
        Placement { layers: on, experts, embed: 0, head: usize::from(n > 0) }
    }

    /// What `--gpu N` says, refused where it does not fit.
    fn asked(&self, layout: &Layout, n: usize, wish: &Wish, notes: &mut Notes) -> Option<Placement> {
        if n == 0 {
            return None;
        }
        let placement = self.last_layers(n, wish);
        let layout = Layout { placement: placement.clone(), ..layout.clone() };
        if !self.holds(&layout) {
            let fits = most(self.sizes.layers(), |n| {
                self.holds(&Layout { placement: self.last_layers(n, wish), ..layout.clone() })
            });
            notes.refuse(PlanError::GpuDoesNotFit {
                layers: n.min(self.sizes.layers()),
                fits,
                needs_bytes: self.sizes.device_footprint(&layout, 1).total,
                limit_bytes: self.budget.bytes.unwrap_or(0),
                source_of_limit: self.budget.source.clone(),
            });
        }
        notes.reasons.push(format!("{} layers on the GPU: asked for", n.min(self.sizes.layers())));
        Some(placement)
    }

    /// Tokens per second at position 0.
    fn speed(&self, machine: &Machine, layout: &Layout, placement: &Placement) -> f64 {
        let layout = Layout { placement: placement.clone(), ..layout.clone() };
        let gpu = (*placement != Placement::default()).then_some(self.gpu);
        let kept = Kept { sizes: self.sizes, layout: &layout, gpu };
        Decode::new(machine, kept, layout.threads, None).at(kept, 0).p50
    }

    /// What the GPU holds under a placed layout.
    pub fn plan(&self, layout: &Layout) -> GpuPlan {
        let (placement, layers) = (&layout.placement, self.sizes.layers());
        let footprint = self.sizes.device_footprint(layout, 1);
        let on = |of: &dyn Fn(usize) -> usize| (0..layers).filter(|&i| of(i) == 1).count();
        let line = |l: hob_model::Line| MemoryLine { name: l.name, bytes: l.bytes };
        GpuPlan {
            index: self.gpu.index,
            adapter: self.gpu.label(),
            tier: self.gpu.tier.clone(),
            layers: on(&|i| placement.layer(i)),
            of_layers: layers,
            expert_layers: self.sizes.has_experts().then(|| on(&|i| placement.experts(i))),
            embedding: placement.embed == 1,
            head: placement.head == 1,
            total_bytes: footprint.total,
            memory: footprint.lines.into_iter().map(line).collect(),
            budget: self.budget.clone(),
            rates: self.gpu.rates,
            bytes_per_token: self.sizes.device_bytes_per_token(0, layout, 1),
            crossings: self.sizes.crossings(placement).len(),
        }
    }
}

/// The largest `n` of `0..=most` that `holds` (monotone); 0 if none does.
fn most(most: usize, holds: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if holds(middle) { low = middle } else { high = middle - 1 }
    }
    low
}
