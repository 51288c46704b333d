//! Which device has which part of a model, and what that costs: bytes held and read by device, and the rows that cross
//! between devices. It must not know devices but by their number.

use hob_compute::{Recurrence, WeightKind};
use hob_quant::Format;

use crate::config::{LayerConfig, Mixer};
use crate::info::{buffer_rows, file_bytes, state_step_bytes, used};
use crate::needs::{Group, Rows, Section};
use crate::{Layout, ModelInfo, Slot};

/// Which of the devices behind the one that a model is loaded on has what (see [`hob_compute::Compute::place`]); 0 is the
/// CPU. The default puts all there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Placement {
    /// Device of each layer: its weights, K and V, recurrent state. Layers beyond the list: 0.
    pub layers: Vec<usize>,
    /// Device of each layer's routed experts. Layers beyond the list: as the layer.
    pub experts: Vec<usize>,
    /// Device of the embedding table.
    pub embed: usize,
    /// Device of the head, and so of sampling.
    pub head: usize,
}

impl Placement {
    /// All of `layers` layers on one device.
    pub fn whole(layers: usize, device: usize) -> Placement {
        Placement { layers: vec![device; layers], experts: Vec::new(), embed: device, head: device }
    }

    pub fn layer(&self, layer: usize) -> usize {
        self.layers.get(layer).copied().unwrap_or(0)
    }

    pub fn experts(&self, layer: usize) -> usize {
        self.experts.get(layer).copied().unwrap_or_else(|| self.layer(layer))
    }

    /// Devices there must be.
    pub fn devices(&self) -> usize {
        let parts = self.layers.iter().chain(&self.experts).chain([&self.embed, &self.head]);
        parts.max().map_or(1, |most| most + 1)
    }
}

/// Rows of a step that change the device: of each batch row, `floats` values in `buffers` buffers.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Crossing {
    pub from: usize,
    pub to: usize,
    pub buffers: usize,
    pub floats: usize,
}

impl ModelInfo {
    /// Device that has a slot's weight under `placement`.
    pub fn device_of(&self, slot: &Slot, placement: &Placement) -> usize {
        match (slot.section, slot.kind) {
            // A row of a huge table per token: not worth a GPU's memory.
            (Section::Embedding, WeightKind::Table) if slot.group == Group::Inputs => 0,
            (Section::Embedding, _) => placement.embed,
            (Section::Head, _) => placement.head,
            (Section::Layer(layer), WeightKind::Experts { .. }) => placement.experts(layer),
            (Section::Layer(layer), _) => placement.layer(layer),
        }
    }

    /// Bytes that device `device` must move for one decode step at `position`: its part of
    /// [`ModelInfo::bytes_per_token`].
    pub fn device_bytes_per_token(&self, position: usize, layout: &Layout, device: usize) -> u64 {
        let placement = &layout.placement;
        let here = self.slots().filter(|(slot, _)| self.device_of(slot, placement) == device);
        let weights = here.map(|(slot, format)| self.step_bytes(slot, format));
        let fixed = self.remembered.iter().filter(|r| placement.layer(r.layer) == device);
        let states = self.scratch.iter().filter(|s| s.layer.map_or(0, |l| placement.layer(l)) == device);
        let layers = self.config.layers.iter().enumerate().filter(|(i, _)| placement.layer(*i) == device);
        let kv = layers.map(|(i, l)| {
            self.position_bytes(self.config.kv_layer(i), &layout.kv) * l.visible(position) as u64
        });
        let fixed = fixed.map(|r| r.step_bytes()).sum::<u64>();
        let states = fixed + states.map(|s| state_step_bytes(s, position)).sum::<u64>();
        weights.sum::<u64>() + kv.sum::<u64>() + states
    }

    /// Multiply-accumulates of one token at `position` that device `device` does.
    pub fn device_macs_per_token(&self, position: usize, placement: &Placement, device: usize) -> u64 {
        let here = self.slots().filter(|(slot, _)| self.device_of(slot, placement) == device);
        let products = here.map(|(slot, _)| match slot.kind {
            WeightKind::Matrix | WeightKind::Heads { .. } => slot.rows as u64 * slot.cols as u64,
            WeightKind::Experts { count } => {
                (slot.rows / count.max(1)) as u64 * slot.cols as u64 * used(slot)
            }
            WeightKind::Table | WeightKind::Vector => 0,
        });
        let layers = self.config.layers.iter().enumerate().filter(|(i, _)| placement.layer(*i) == device);
        let mixing = layers.map(|(_, l)| l.mixing_macs(self.config.dim, position));
        products.sum::<u64>() + mixing.sum::<u64>()
    }

    /// Of [`ModelInfo::device_bytes_per_token`], those of routed experts.
    pub fn device_expert_bytes_per_token(&self, placement: &Placement, device: usize) -> u64 {
        let here = self.slots().filter(|(slot, _)| self.device_of(slot, placement) == device);
        let experts = here.filter(|(slot, _)| matches!(slot.kind, WeightKind::Experts { .. }));
        experts.map(|(slot, format)| self.step_bytes(slot, format)).sum()
    }

    /// Of [`ModelInfo::device_macs_per_token`], those of routed experts.
    pub fn device_expert_macs_per_token(&self, placement: &Placement, device: usize) -> u64 {
        let here = self.slots().filter(|(slot, _)| self.device_of(slot, placement) == device);
        let macs = |(slot, _): (&Slot, Format)| match slot.kind {
            WeightKind::Experts { count } => {
                (slot.rows / count.max(1)) as u64 * slot.cols as u64 * used(slot)
            }
            _ => 0,
        };
        here.map(macs).sum()
    }

    /// Stages of a decode step that device `device` does in its layers, each of which waits for the one before: what a
    /// GPU spends a dispatch on.
    pub fn device_stages(&self, placement: &Placement, device: usize) -> usize {
        let stages = |(i, layer): (usize, &LayerConfig)| {
            let here = placement.layer(i) == device;
            // q, k and v; attention; what is added to the stream. Latents and the state of a recurrent layer take more.
            let mixes = match layer.mixer {
                Mixer::Attention => 3,
                Mixer::None => 0,
                _ => 5,
            };
            let Some(experts) = &layer.experts else {
                let block = if layer.single && layer.mixer != Mixer::None { 0 } else { 2 };
                return if here { mixes + block } else { 0 };
            };
            let mixed = placement.experts(i) == device;
            // Gate and up, and down; those of the expert that all rows pass, and its sum; the norms, where no product
            // takes them along.
            let shared = if experts.shared.is_some() { 4 } else { 0 };
            let apart = if mixed && shared == 0 { 0 } else { 2 };
            let routed = if mixed { 2 } else { 0 };
            if here { mixes + 1 + shared + apart + routed } else { routed }
        };
        self.config.layers.iter().enumerate().map(stages).sum()
    }

    /// Where the rows of a step change the device, in the order of the step.
    pub fn crossings(&self, placement: &Placement) -> Vec<Crossing> {
        let (dim, layers) = (self.config.stream_width(), &self.config.layers);
        let inputs = self.config.layer_input.map_or(0, |width| width * layers.len());
        let mut way = Way { found: Vec::new(), at: placement.embed, inputs, informed: vec![placement.embed] };
        if inputs > 0 && placement.embed != 0 {
            way.add(0, placement.embed, 1, inputs);
        }
        for (i, layer) in layers.iter().enumerate() {
            let (here, kv) = (placement.layer(i), placement.layer(self.config.kv_layer(i)));
            way.go(here, 1, dim);
            if kv != here {
                let heads = layer.heads * layer.head_dim;
                way.add(here, kv, 1, heads);
                way.add(kv, here, 1, heads);
            }
            if let Some(experts) = &layer.experts {
                // The normed rows, what was routed, and the residual stream, if the experts add to it.
                let (stream, routed) = (usize::from(!experts.aside), 2 * experts.routing.top_k);
                way.go(placement.experts(i), 2 + stream, (1 + stream) * dim + routed);
                if experts.aside || experts.shared.is_some() {
                    way.go(here, 1, dim);
                }
            }
            way.inform(here);
        }
        way.go(placement.head, 1, dim);
        way.found
    }

    /// Bytes of K and V of the largest pool that one layer gets under `layout`: what a device must bind in one piece.
    pub fn largest_pool_bytes(&self, layout: &Layout) -> u64 {
        let one = |group: crate::state::Group| {
            let (live, cached) = (group.live(layout), group.cached(layout));
            let first = group.spec_of(0).page_bytes() as u64 * (live.first + cached.first) as u64;
            first.max(group.spec.page_bytes() as u64 * live.rest.saturating_add(cached.rest) as u64)
        };
        crate::state::groups(self, layout).into_iter().map(one).max().unwrap_or(0)
    }

    /// Activation bytes of device `device`.
    pub(crate) fn device_scratch(&self, layout: &Layout, device: usize) -> u64 {
        let (placement, layers) = (&layout.placement, 0..self.config.layers.len());
        let computes = layers.clone().any(|i| placement.layer(i) == device);
        let mixes =
            layers.clone().any(|i| self.config.layers[i].experts.is_some() && placement.experts(i) == device);
        let head = placement.head == device;
        let here = |s: &&crate::needs::Scratch| match s.rows {
            Rows::Sequences | Rows::Entries { .. } => false,
            Rows::Logits => head,
            Rows::Routed { .. } => mixes,
            // What crosses is no wider than the stream.
            Rows::Chunk => computes || ((mixes || head) && s.width <= self.config.stream_width()),
        };
        let floats: u64 = self
            .scratch
            .iter()
            .filter(here)
            .map(|s| buffer_rows(s.rows, layout) as u64 * s.width as u64)
            .sum();
        // A GPU keeps the half-precision form of what its matrix units read beside the rows.
        if device == 0 { floats * 4 } else { floats * 6 }
    }

    /// Bytes of recurrent state of device `device`.
    pub(crate) fn device_state(&self, layout: &Layout, device: usize) -> u64 {
        let states = self.scratch.iter().filter(|s| s.rows.remembers());
        let here = states.filter(|s| s.layer.map_or(0, |l| layout.placement.layer(l)) == device);
        let positional: u64 = here.map(|s| buffer_rows(s.rows, layout) as u64 * s.width as u64 * 4).sum();
        self.of_sequences(layout, device, |recurrence| recurrence.state()).saturating_add(positional)
    }

    /// Bytes of the records of rows that may be taken back, of device `device`.
    pub(crate) fn device_records(&self, layout: &Layout, device: usize) -> u64 {
        self.of_sequences(layout, device, |recurrence| recurrence.record().saturating_mul(layout.held_rows))
    }

    /// Bytes of `floats` of every state of device `device`, for all sequences.
    fn of_sequences(&self, layout: &Layout, device: usize, floats: impl Fn(&Recurrence) -> usize) -> u64 {
        let here = self.remembered.iter().filter(|r| layout.placement.layer(r.layer) == device);
        let each = here.map(|r| (floats(&r.recurrence) as u64).saturating_mul(4));
        each.fold(0, u64::saturating_add).saturating_mul(layout.sequences as u64)
    }
}

/// A step on its way through the devices.
struct Way {
    found: Vec<Crossing>,
    /// Where the residual stream is.
    at: usize,
    /// Floats of the inputs of all layers, and the devices that have them.
    inputs: usize,
    informed: Vec<usize>,
}

impl Way {
    fn add(&mut self, from: usize, to: usize, buffers: usize, floats: usize) {
        self.found.push(Crossing { from, to, buffers, floats });
    }

    fn go(&mut self, to: usize, buffers: usize, floats: usize) {
        if self.at != to {
            self.add(self.at, to, buffers, floats);
            self.at = to;
        }
    }

    /// Brings the inputs of layers to a device that has none yet.
    fn inform(&mut self, to: usize) {
        if self.inputs > 0 && !self.informed.contains(&to) {
            let from = self.informed.iter().copied().min().unwrap_or(to);
            self.add(from, to, 1, self.inputs);
            self.informed.push(to);
        }
    }
}

/// Bytes of a slot on a GPU: weights keep the density they have in the file, those of formats without kernels there become
/// f16, and tables are held too.
pub(crate) fn gpu_bytes(slot: &Slot, format: Format) -> u64 {
    match slot.kind {
        WeightKind::Vector => slot.cols as u64 * 4,
        _ if kept_packed(format) => file_bytes(slot, format),
        _ => slot.rows as u64 * slot.cols as u64 * 2,
    }
}

/// Formats that a GPU computes from as they are.
fn kept_packed(format: Format) -> bool {
    use Format::*;
    matches!(
        format,
        Q4_0 | Q4_1
            | Q5_0
            | Q5_1
            | Q8_0
            | Q2K
            | Q3K
            | Q4K
            | Q5K
            | Q6K
            | IQ4NL
            | IQ4XS
            | MXFP4
            | F16
            | BF16
            | F32
    )
}
