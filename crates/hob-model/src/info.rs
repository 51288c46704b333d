//! A model without its bytes: config, checked tensor table, and the one arithmetic of sizes built on them.
//!
//! The plan fills a layout from it, the runner allocates from it, the forecast reads it. It must not know devices.

use std::collections::HashSet;
use std::sync::Arc;

use hob_compute::{PAGE_POSITIONS, PageSpec, WeightKind};
use hob_files::{ModelFile, TensorInfo};
use hob_quant::{Format, KV_GROUP, KvFormat};

use crate::arch::{self, Architecture};
use crate::blocks::RING_SLACK;
use crate::config::{ROPE_TENSORS, is_output_scale};
use crate::needs::{Needs, Remembered, Rows, Scratch, entry_room};
use crate::placement::gpu_bytes;
use crate::source::FileTensors;
use crate::stacked;
use crate::state::{groups, snapshot_budget};
use crate::{
    Config, Footprint, Group, KvLayout, LayerState, Layout, Line, ModelError, Naming, Result, Slot,
    TensorSource, Values,
};

/// What is known of a model before any weight is read.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    pub config: Config,
    /// Tensors that the architecture does not read: a reason to doubt the result. Rotary tables are not counted.
    pub unexpected: Vec<String>,
    naming: Naming,
    slots: Vec<Slot>,
    /// Format of each slot.
    formats: Vec<Format>,
    pub(crate) scratch: Vec<Scratch>,
    pub(crate) remembered: Vec<Remembered>,
    states: Vec<LayerState>,
}

impl ModelInfo {
    /// Reads config and tensor table of a file.
    ///
    /// # Errors
    /// What [`Config::from_file`] and [`ModelInfo::new`] refuse.
    pub fn read(file: &Arc<ModelFile>) -> Result<Self> {
        Self::new(Config::from_file(file)?, &FileTensors(file.clone()))
    }

    /// Checks every tensor that `config` needs against `source`.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], [`ModelError::TensorShape`] or [`ModelError::TensorFormat`], naming the tensor.
    pub fn new(config: Config, source: &dyn TensorSource) -> Result<Self> {
        let naming = source.naming();
        let (arch, needs) = build(&config, naming)?;
        let formats =
            needs.slots.iter().map(|slot| check(slot, source, &config.arch)).collect::<Result<_>>()?;
        // A source may know a tensor by another name than the slot's.
        let names = needs.slots.iter().flat_map(|s| names_of(s, source));
        let used = names.filter_map(|name| source.tensor(name)).map(|t| t.name.as_str());
        let used: HashSet<&str> = used.collect();
        // What the config or the rotary tables have read.
        let rotary =
            |n: &str| ROPE_TENSORS.contains(&n) || n.ends_with(".rotary_emb.inv_freq") || is_output_scale(n);
        let names = source.tensors().iter().map(|t| t.name.as_str());
        let extra = names.filter(|&n| !used.contains(n) && !rotary(n) && !drafts(n, &config));
        let unexpected = extra.map(str::to_string).collect();
        let Needs { slots, scratch, remembered, .. } = needs;
        let states = arch.state_plan();
        Ok(ModelInfo { config, unexpected, naming, slots, formats, scratch, remembered, states })
    }

    /// The tensors a model of this config reads, in the order they are loaded: what a synthesizer must provide.
    ///
    /// # Errors
    /// An architecture that hob does not know.
    pub fn slots_of(config: &Config, naming: Naming) -> Result<Vec<Slot>> {
        Ok(build(config, naming)?.1.slots)
    }

    /// Tensors the model reads, with their formats.
    pub fn slots(&self) -> impl Iterator<Item = (&Slot, Format)> {
        self.slots.iter().zip(self.formats.iter().copied())
    }

    /// What each layer remembers.
    pub fn states(&self) -> &[LayerState] {
        &self.states
    }

    pub(crate) fn naming(&self) -> Naming {
        self.naming
    }

    /// Weights of all distinct tensors.
    pub fn parameters(&self) -> u64 {
        let mut seen = HashSet::new();
        let distinct = self.slots.iter().filter(|s| s.values != Values::Ones);
        let distinct = distinct.filter(|s| seen.insert((s.name.as_str(), s.first)));
        distinct.map(|s| s.rows as u64 * s.cols as u64).sum()
    }

    /// Memory by line under `layout`, of all devices together.
    pub fn footprint(&self, layout: &Layout) -> Footprint {
        let mut all = self.device_footprint(layout, 0);
        for device in 1..layout.placement.devices() {
            all.add(self.device_footprint(layout, device));
        }
        all
    }

    /// Memory by line under `layout` that device `device` holds.
    pub fn device_footprint(&self, layout: &Layout, device: usize) -> Footprint {
        let mut lines = Vec::new();
        let mut line = |name: String, bytes: u64| lines.push(Line { name, bytes });
        let here = || self.slots().filter(|(s, _)| self.device_of(s, &layout.placement) == device);
        let held = if device == 0 { device_bytes } else { gpu_bytes };
        let mut weights = 0;
        for group in Group::ALL {
            let bytes = here().filter(|(s, _)| s.group == group).map(|(s, f)| held(s, f)).sum();
            weights += bytes;
            let rare = matches!(group, Group::Experts | Group::Inputs);
            if bytes == 0 && (rare || layout.placement.devices() > 1) {
                continue;
            }
            line(group.title().to_string(), bytes);
        }
        let pages = self.page_lines(layout, device);
        let kv = pages.iter().map(|l| l.bytes).sum();
        pages.into_iter().for_each(|l| line(l.name, l.bytes));
        let mut state = self.device_state(layout, device);
        if state > 0 {
            line(format!("recurrent state{}, f32", times(layout)), state);
        }
        let records = self.device_records(layout, device);
        if records > 0 {
            line(format!("recurrent state: records of {} rows{}", layout.held_rows, times(layout)), records);
            state += records;
        }
        // Snapshots are kept by the host, wherever their layers are.
        let snapshots = if device == 0 { snapshot_budget(self, layout) } else { 0 };
        if snapshots > 0 {
            line("snapshots of recurrent state, f32".into(), snapshots);
            state += snapshots;
        }
        let rotary = self.config.ropes.iter().map(|r| r.rotary as u64 / 2 * 4).sum::<u64>();
        let scratch = rotary + self.device_scratch(layout, device);
        line(format!("activations: {} rows", layout.chunk_rows), scratch);
        let tables = here().filter(|(s, _)| s.kind == WeightKind::Table && device == 0);
        let mapped = tables.map(|(s, f)| file_bytes(s, f)).sum();
        Footprint { lines, weights, kv, state, scratch, total: weights + kv + state + scratch, mapped }
    }

    /// Bytes one decode step at `position` (0 for the first token) must move: every weight once, one row of the
    /// embedding, and K and V of the positions that each layer attends to.
    pub fn bytes_per_token(&self, position: usize, kv: &KvLayout) -> u64 {
        let weights = self.slots().map(|(slot, format)| self.step_bytes(slot, format));
        // What is remembered in fixed size is read and written.
        let fixed = self.remembered.iter().map(|r| r.step_bytes()).sum::<u64>();
        let states = fixed + self.scratch.iter().map(|s| state_step_bytes(s, position)).sum::<u64>();
        let kv = self.config.layers.iter().enumerate().map(|(i, layer)| {
            self.position_bytes(self.config.kv_layer(i), kv) * layer.visible(position) as u64
        });
        weights.sum::<u64>() + kv.sum::<u64>() + states
    }

    /// Bytes of a slot that one decode step reads.
    pub(crate) fn step_bytes(&self, slot: &Slot, format: Format) -> u64 {
        match slot.kind {
            WeightKind::Table => format.row_bytes(slot.cols).unwrap_or(0) as u64,
            WeightKind::Experts { count } => device_bytes(slot, format) / count.max(1) as u64 * used(slot),
            WeightKind::Matrix | WeightKind::Heads { .. } | WeightKind::Vector => device_bytes(slot, format),
        }
    }

    /// Bytes of K and V that one token adds, over all layers (the first block of a sequence, which stays in f16, not
    /// counted).
    pub fn kv_bytes_per_token(&self, kv: &KvLayout) -> u64 {
        (0..self.states.len()).map(|i| self.position_bytes(i, kv)).sum()
    }

    /// Bytes of a snapshot of recurrent state at `len` tokens: 0 for models that remember only K and V. Only entries of
    /// compressed attention grow with the length.
    pub fn snapshot_bytes(&self, len: usize) -> usize {
        let fixed = self.remembered.iter().map(|r| r.recurrence.state() * 4).sum::<usize>();
        fixed + self.state_buffers().map(|(_, state)| state.floats(len) * 4).sum::<usize>()
    }

    /// Positions that a sequence can go back wherever it is, beside what bounds its K and V and the rows that a recurrence
    /// holds: what rings keep more than rows see. `None` where there are no rings.
    pub fn rolls_back(&self) -> Option<usize> {
        let rings = self.states.iter().any(|state| matches!(state, LayerState::Compressed { .. }));
        rings.then_some(RING_SLACK)
    }

    /// The pages of a layer's state, if it has any.
    pub(crate) fn page_spec(&self, layer: usize, kv: &KvLayout) -> Option<PageSpec> {
        let LayerState::Kv { heads: kv_heads, dim: head_dim, latent } = self.states[layer] else {
            return None;
        };
        let crate::KvPair { k, v } = self.kv_pair(kv, layer);
        Some(PageSpec { kv_heads, head_dim, k, v, first: false, latent })
    }

    /// Bytes of K and V that one position adds to a layer.
    pub(crate) fn position_bytes(&self, layer: usize, kv: &KvLayout) -> u64 {
        self.page_spec(layer, kv).map_or(0, |spec| spec.page_bytes() as u64 / PAGE_POSITIONS as u64)
    }

    /// Multiply-accumulates of one decode step at `position`: the matrices, and attention over the positions each layer
    /// attends to.
    pub fn macs_per_token(&self, position: usize) -> u64 {
        let products = self.slots.iter().map(|s| match s.kind {
            WeightKind::Matrix | WeightKind::Heads { .. } => s.rows as u64 * s.cols as u64,
            WeightKind::Experts { count } => (s.rows / count.max(1)) as u64 * s.cols as u64 * used(s),
            WeightKind::Table | WeightKind::Vector => 0,
        });
        let mixing = self.config.layers.iter().map(|l| l.mixing_macs(self.config.dim, position));
        products.sum::<u64>() + mixing.sum::<u64>()
    }

    /// The formats that a layer with K and V gets: what `kv` wishes, but f16 where a vector is no whole number of groups,
    /// and at least 8 bits where a window keeps the layer small anyway. A latent is K and V at once: it gets the finer of
    /// the two wishes, or f16 where latent and rotated dimensions are not each in whole groups.
    pub fn kv_pair(&self, kv: &crate::KvLayout, layer: usize) -> crate::KvPair {
        let crate::KvPair { k, v } = kv.wished(layer);
        let config = &self.config.layers[layer];
        if let LayerState::Kv { heads, dim, latent: latent @ Some(_) } = self.states[layer] {
            let [of_k, of_v] = [k, v].map(|format| format.vector_bytes(KV_GROUP));
            let finer = if of_v > of_k { v } else { k };
            let spec = PageSpec { k: finer, v: finer, latent, ..PageSpec::f16(heads, dim) };
            let fits = finer.fits(dim) && spec.latent_fits();
            return crate::KvPair::both(if fits { finer } else { KvFormat::F16 });
        }
        let given = |format: KvFormat| match format {
            _ if !format.fits(config.head_dim) => KvFormat::F16,
            KvFormat::Q4 | KvFormat::Asym4 if config.window.is_some() => KvFormat::Q8,
            _ => format,
        };
        crate::KvPair { k: given(k), v: given(v) }
    }

    /// KV pages by what bounds them and by formats, then what cached prefixes may take beside the sequences.
    fn page_lines(&self, layout: &Layout, device: usize) -> Vec<Line> {
        let mut lines: Vec<Line> = Vec::new();
        let mut cached = 0u64;
        for mut group in groups(self, layout) {
            group.layers.retain(|&layer| layout.placement.layer(layer) == device);
            if group.layers.is_empty() {
                continue;
            }
            let (sequences, formats) = (times(layout), group.formats());
            let name = match group.window.filter(|_| group.slides(layout)) {
                Some(w) => format!("KV pages: window of {w} tokens{sequences}, {formats}"),
                None => format!("KV pages: {} tokens{sequences}, {formats}", layout.ctx_tokens),
            };
            let bytes = group.bytes(group.live(layout));
            cached = cached.saturating_add(group.bytes(group.cached(layout)));
            match lines.iter_mut().find(|l| l.name == name) {
                Some(line) => line.bytes = line.bytes.saturating_add(bytes),
                None => lines.push(Line { name, bytes }),
            }
        }
        if cached > 0 {
            let name = format!("KV pages: {} tokens of cached prefixes", layout.cached_tokens);
            lines.push(Line { name, bytes: cached });
        }
        lines
    }

    /// `[rows, width]` of every buffer, in the order they were declared, and the layer whose memory it is.
    pub(crate) fn buffer_shapes(&self, layout: &Layout) -> impl Iterator<Item = ([usize; 2], Option<usize>)> {
        self.scratch.iter().map(|s| ([buffer_rows(s.rows, layout), s.width], s.layer))
    }

    /// The buffers of recurrent state: which of [`ModelInfo::buffer_shapes`], and what they have of a sequence.
    pub(crate) fn state_buffers(&self) -> impl Iterator<Item = (usize, StateShape)> {
        let all = self.scratch.iter().enumerate().filter(|(_, s)| s.rows.remembers());
        all.map(|(i, s)| match s.rows {
            Rows::Entries { ratio, .. } => (i, StateShape { width: s.width, ratio: Some(ratio) }),
            _ => (i, StateShape { width: s.width, ratio: None }),
        })
    }

    /// Whether a layer remembers more than K and V, so that a sequence cannot be cut at any length.
    pub fn recurrent(&self) -> bool {
        self.holds() || self.scratch.iter().any(|s| s.rows.remembers())
    }

    /// Whether a layer has a state that goes back only within rows that were held.
    pub(crate) fn holds(&self) -> bool {
        !self.remembered.is_empty()
    }
}

/// What a buffer of recurrent state has of a sequence.
#[derive(Copy, Clone, Debug)]
pub(crate) struct StateShape {
    pub width: usize,
    /// Positions of a row; one row for all of them where there is none.
    pub ratio: Option<usize>,
}

impl StateShape {
    /// Rows of a sequence, in a layout of so many tokens.
    pub fn rows(&self, ctx_tokens: usize) -> usize {
        self.ratio.map_or(1, |ratio| entry_room(ctx_tokens, ratio))
    }

    /// Floats that mean something at `len` tokens: the first of a sequence's rows.
    pub fn floats(&self, len: usize) -> usize {
        self.width * self.ratio.map_or(1, |ratio| len / ratio)
    }
}

/// Bytes of a buffer that one decode step at `position` moves: what is remembered in fixed size is read and written.
pub(crate) fn state_step_bytes(scratch: &Scratch, position: usize) -> u64 {
    let width = 4 * scratch.width as u64;
    match scratch.rows {
        Rows::Sequences => 2 * width,
        Rows::Entries { ratio, read } => {
            let there = position / ratio.max(1);
            width * read.map_or(there, |read| read.min(there)) as u64
        }
        Rows::Chunk | Rows::Logits | Rows::Routed { .. } => 0,
    }
}

/// The architecture of a config, and what it declared.
pub(crate) fn build(config: &Config, naming: Naming) -> Result<(Box<dyn Architecture>, Needs)> {
    config.check()?;
    let mut needs = Needs::new(naming);
    let entry = arch::find(&config.arch, std::path::Path::new("(config)"))?;
    let arch = (entry.build)(config, &mut needs);
    Ok((arch, needs))
}

pub(crate) fn buffer_rows(rows: Rows, layout: &Layout) -> usize {
    match rows {
        Rows::Chunk => layout.chunk_rows,
        Rows::Logits => layout.logit_rows,
        Rows::Routed { top_k } => layout.chunk_rows.saturating_mul(top_k),
        Rows::Sequences => layout.sequences,
        Rows::Entries { ratio, .. } => layout.sequences.saturating_mul(entry_room(layout.ctx_tokens, ratio)),
    }
}

/// How often the layout has what a line counts.
fn times(layout: &Layout) -> String {
    if layout.sequences == 1 { String::new() } else { format!(" x {}", layout.sequences) }
}

/// Experts of a slot that one token reads.
pub(crate) fn used(slot: &Slot) -> u64 {
    slot.stacked.as_ref().map_or(0, |s| s.used as u64)
}

/// Whether a tensor belongs to a block that predicts further tokens.
fn drafts(name: &str, config: &Config) -> bool {
    let rest = name.strip_prefix("blk.").or_else(|| name.split_once("layers.").map(|(_, rest)| rest));
    let block = rest.and_then(|r| r.split_once('.')).and_then(|(n, _)| n.parse::<usize>().ok());
    let layers = config.layers.len();
    // Qwen's checkpoints count them apart.
    let apart = config.drafting > 0 && name.starts_with("mtp.");
    apart || block.is_some_and(|block| (layers..layers + config.drafting).contains(&block))
}

/// The tensors a slot reads from `source`.
fn names_of<'s>(slot: &'s Slot, source: &dyn TensorSource) -> Vec<&'s str> {
    match &slot.stacked {
        Some(stacked) => stacked::form(stacked, source).iter().map(|p| p.name.as_str()).collect(),
        None if slot.values == Values::Ones => Vec::new(),
        None => vec![slot.name.as_str()],
    }
}

/// Bytes in the file.
pub(crate) fn file_bytes(slot: &Slot, format: Format) -> u64 {
    format.row_bytes(slot.cols).unwrap_or(0) as u64 * slot.rows as u64
}

/// Bytes in device memory: packed matrices, vectors as f32, tables not at all. Every size of a weight on a device comes
/// from here; a device whose packing is larger than the file changes [`packed_bytes`].
fn device_bytes(slot: &Slot, format: Format) -> u64 {
    match slot.kind {
        WeightKind::Matrix => packed_bytes(format, slot.rows, slot.cols),
        // Each expert or head is packed by itself.
        WeightKind::Experts { count } | WeightKind::Heads { count } => {
            packed_bytes(format, slot.rows / count.max(1), slot.cols) * count as u64
        }
        WeightKind::Vector => slot.cols as u64 * 4,
        WeightKind::Table => 0,
    }
}

/// Bytes of a `[rows, cols]` matrix in the layout that products read.
fn packed_bytes(format: Format, rows: usize, cols: usize) -> u64 {
    let file = format.row_bytes(cols).unwrap_or(0) as u64 * rows as u64;
    hob_quant::packed_bytes(format, rows, cols).unwrap_or(file)
}

/// The tensor of a slot must be there, of the right shape, in a format that can be computed from.
fn check(slot: &Slot, source: &dyn TensorSource, arch: &str) -> Result<Format> {
    match &slot.stacked {
        Some(stacked) => stacked::check(stacked::form(stacked, source), source, |part| {
            check_tensor(&part.name, &part.shape, [part.rows, slot.cols], source, arch)
        }),
        None if slot.values == Values::Ones => Ok(Format::F32),
        None if matches!(slot.values, Values::Ids { .. }) => check_ids(slot, source, arch),
        None => check_tensor(&slot.name, &slot.shape, [slot.rows, slot.cols], source, arch),
    }
}

/// A table of ids may be of any type of integers; it is loaded as floats.
fn check_ids(slot: &Slot, source: &dyn TensorSource, arch: &str) -> Result<Format> {
    let name = slot.name.clone();
    let Some(tensor) = source.tensor(&name) else {
        let (rows, cols, arch) = (slot.rows, slot.cols, arch.to_string());
        return Err(ModelError::MissingTensor { name, rows, cols, arch });
    };
    if tensor.shape != slot.shape {
        let (expected, found) = (format!("{:?}", slot.shape), format!("{:?}", tensor.shape));
        return Err(ModelError::TensorShape { name, expected, found });
    }
    match tensor.format {
        Format::I8 | Format::I16 | Format::I32 | Format::I64 | Format::F32 => Ok(Format::F32),
        other => {
            let (expected, found) = ("integers".to_string(), other.to_string());
            Err(ModelError::TensorFormat { name, expected, found })
        }
    }
}

fn check_tensor(
    name: &str,
    shape: &[usize],
    [rows, cols]: [usize; 2],
    source: &dyn TensorSource,
    arch: &str,
) -> Result<Format> {
    let Some(tensor) = source.tensor(name) else {
        let (name, arch) = (name.to_string(), arch.to_string());
        return Err(match source.unreadable(&name) {
            Some(found) => wrong_format(name, source.naming(), found),
            None => ModelError::MissingTensor { name, rows, cols, arch },
        });
    };
    // Some converters store a matrix of one row as a vector.
    let row = matches!(shape, [1, cols] if tensor.shape == [*cols]);
    if tensor.shape != shape && !row {
        let (expected, found) = (format!("{shape:?}"), format!("{:?}", tensor.shape));
        return Err(ModelError::TensorShape { name: name.to_string(), expected, found });
    }
    check_format(tensor, source.naming())?;
    Ok(tensor.format)
}

/// safetensors hold weights as floats; a GGUF may hold any type that decodes.
fn check_format(tensor: &TensorInfo, naming: Naming) -> Result<()> {
    let computes = match naming {
        Naming::HuggingFace => matches!(tensor.format, Format::BF16 | Format::F16 | Format::F32),
        Naming::Gguf => tensor.format.can_decode(),
    };
    if computes { Ok(()) } else { Err(wrong_format(tensor.name.clone(), naming, tensor.format.name())) }
}

fn wrong_format(name: String, naming: Naming, found: &str) -> ModelError {
    let expected = match naming {
        Naming::HuggingFace => "BF16, F16 or F32",
        Naming::Gguf => "a type with a decoder",
    };
    ModelError::TensorFormat { name, expected: expected.into(), found: found.into() }
}
