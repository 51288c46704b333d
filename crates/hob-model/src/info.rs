//! A model without its bytes: config, checked tensor table, and the one arithmetic of sizes built on them.
//!
//! The plan fills a layout from it, the runner allocates from it, the forecast reads it. It must not know devices.

use std::collections::HashSet;
use std::sync::Arc;

use hob_compute::{PAGE_POSITIONS, PageSpec, WeightKind};
use hob_files::{ModelFile, TensorInfo};
use hob_quant::Format;

use crate::arch::{self, Architecture};
use crate::config::ROPE_TENSORS;
use crate::needs::{Needs, Rows};
use crate::source::FileTensors;
use crate::stacked;
use crate::{
    Config, Footprint, Group, LayerState, Layout, Line, ModelError, Naming, Result, Slot, TensorSource,
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
    scratch: Vec<(Rows, usize)>,
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
        let rotary = |n: &str| ROPE_TENSORS.contains(&n) || n.ends_with(".rotary_emb.inv_freq");
        let names = source.tensors().iter().map(|t| t.name.as_str());
        let extra = names.filter(|&n| !used.contains(n) && !rotary(n));
        let unexpected = extra.map(str::to_string).collect();
        let scratch = needs.scratch.iter().map(|s| (s.rows, s.width)).collect();
        let states = arch.state_plan();
        Ok(ModelInfo { config, unexpected, naming, slots: needs.slots, formats, scratch, states })
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
        let distinct = self.slots.iter().filter(|s| seen.insert((s.name.as_str(), s.first)));
        distinct.map(|s| s.rows as u64 * s.cols as u64).sum()
    }

    /// Memory by line under `layout`.
    pub fn footprint(&self, layout: &Layout) -> Footprint {
        let mut lines = Vec::new();
        let mut line = |name: String, bytes: u64| lines.push(Line { name, bytes });
        let mut weights = 0;
        for group in Group::ALL {
            let bytes = self.slots().filter(|(s, _)| s.group == group).map(|(s, f)| device_bytes(s, f)).sum();
            weights += bytes;
            if bytes == 0 && group == Group::Experts {
                continue;
            }
            line(group.title().to_string(), bytes);
        }
        let kv = self.page_needs(layout).iter().map(|(spec, n)| spec.page_bytes() as u64 * *n as u64).sum();
        let sequences =
            if layout.sequences == 1 { String::new() } else { format!(" x {}", layout.sequences) };
        line(format!("KV pages: {} tokens{sequences}, f16", layout.ctx_tokens), kv);
        let state = self.state_shapes(layout).map(|[rows, width]| rows as u64 * width as u64 * 4).sum();
        if state > 0 {
            line(format!("recurrent state{sequences}, f32"), state);
        }
        let rotary = self.config.ropes.iter().map(|r| r.rotary as u64 / 2 * 4).sum::<u64>();
        let scratch = rotary
            + self.scratch_shapes(layout).map(|[rows, width]| rows as u64 * width as u64 * 4).sum::<u64>();
        line(format!("activations: {} rows", layout.chunk_rows), scratch);
        let tables = self.slots().filter(|(s, _)| s.kind == WeightKind::Table);
        let mapped = tables.map(|(s, f)| file_bytes(s, f)).sum();
        Footprint { lines, weights, kv, state, scratch, total: weights + kv + state + scratch, mapped }
    }

    /// Bytes one decode step at `position` (0 for the first token) must move: every weight once, one row of the
    /// embedding, and K and V of the positions that each layer attends to.
    pub fn bytes_per_token(&self, position: usize) -> u64 {
        let weights = self.slots().map(|(slot, format)| match slot.kind {
            WeightKind::Table => format.row_bytes(slot.cols).unwrap_or(0) as u64,
            WeightKind::Experts { count } => device_bytes(slot, format) / count.max(1) as u64 * used(slot),
            WeightKind::Matrix | WeightKind::Vector => device_bytes(slot, format),
        });
        // What is remembered in fixed size is read and written.
        let states = self.scratch.iter().filter(|(rows, _)| *rows == Rows::Sequences);
        let states = states.map(|&(_, width)| 2 * 4 * width as u64).sum::<u64>();
        let kv = self
            .states
            .iter()
            .zip(&self.config.layers)
            .map(|(&state, layer)| position_bytes(state) * layer.visible(position) as u64);
        weights.sum::<u64>() + kv.sum::<u64>() + states
    }

    /// Bytes of K and V that one token adds, over all layers.
    pub fn kv_bytes_per_token(&self) -> u64 {
        self.states.iter().map(|&state| position_bytes(state)).sum()
    }

    /// Multiply-accumulates of one decode step at `position`: the matrices, and attention over the positions each layer
    /// attends to.
    pub fn macs_per_token(&self, position: usize) -> u64 {
        let products = self.slots.iter().map(|s| match s.kind {
            WeightKind::Matrix => s.rows as u64 * s.cols as u64,
            WeightKind::Experts { count } => (s.rows / count.max(1)) as u64 * s.cols as u64 * used(s),
            WeightKind::Table | WeightKind::Vector => 0,
        });
        let attention =
            self.config.layers.iter().map(|l| (l.heads * l.head_dim * l.visible(position)) as u64);
        products.sum::<u64>() + 2 * attention.sum::<u64>()
    }

    /// Pages of each distinct shape, in order of first use.
    pub(crate) fn page_needs(&self, layout: &Layout) -> Vec<(PageSpec, usize)> {
        let per_layer = layout.sequences.saturating_mul(layout.pages_per_sequence());
        let mut needs: Vec<(PageSpec, usize)> = Vec::new();
        for spec in self.states.iter().filter_map(|&s| page_spec(s)) {
            match needs.iter_mut().find(|(found, _)| *found == spec) {
                Some((_, count)) => *count = count.saturating_add(per_layer),
                None => needs.push((spec, per_layer)),
            }
        }
        needs
    }

    /// `[rows, width]` of every buffer, in the order they were declared.
    pub(crate) fn buffer_shapes(&self, layout: &Layout) -> impl Iterator<Item = [usize; 2]> {
        self.scratch.iter().map(|&(rows, width)| [buffer_rows(rows, layout), width])
    }

    /// `[rows, width]` of every activation buffer.
    fn scratch_shapes(&self, layout: &Layout) -> impl Iterator<Item = [usize; 2]> {
        let scratch = self.scratch.iter().filter(|(rows, _)| *rows != Rows::Sequences);
        scratch.map(|&(rows, width)| [buffer_rows(rows, layout), width])
    }

    /// `[rows, width]` of every buffer of recurrent state.
    fn state_shapes(&self, layout: &Layout) -> impl Iterator<Item = [usize; 2]> {
        let states = self.scratch.iter().filter(|(rows, _)| *rows == Rows::Sequences);
        states.map(|&(rows, width)| [buffer_rows(rows, layout), width])
    }

    /// Whether a layer remembers more than K and V, so that a sequence cannot be cut at any length.
    pub fn recurrent(&self) -> bool {
        self.states.iter().any(|s| !matches!(s, LayerState::Kv { .. }))
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

fn buffer_rows(rows: Rows, layout: &Layout) -> usize {
    match rows {
        Rows::Chunk => layout.chunk_rows,
        Rows::Logits => layout.logit_rows,
        Rows::Routed { top_k } => layout.chunk_rows.saturating_mul(top_k),
        Rows::Sequences => layout.sequences,
    }
}

/// The pages of a layer's state, if it has any.
pub(crate) fn page_spec(state: LayerState) -> Option<PageSpec> {
    match state {
        LayerState::Kv { heads, dim } => Some(PageSpec { kv_heads: heads, head_dim: dim }),
        LayerState::Conv { .. } => None,
    }
}

/// Bytes of K and V that one position adds to a layer.
fn position_bytes(state: LayerState) -> u64 {
    page_spec(state).map_or(0, |spec| spec.page_bytes() as u64 / PAGE_POSITIONS as u64)
}

/// Experts of a slot that one token reads.
fn used(slot: &Slot) -> u64 {
    slot.stacked.as_ref().map_or(0, |s| s.used as u64)
}

/// The tensors a slot reads from `source`.
fn names_of<'s>(slot: &'s Slot, source: &dyn TensorSource) -> Vec<&'s str> {
    match &slot.stacked {
        Some(stacked) => stacked::form(stacked, source).iter().map(|p| p.name.as_str()).collect(),
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
        // Each expert is packed by itself.
        WeightKind::Experts { count } => {
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
        None => check_tensor(&slot.name, &slot.shape, [slot.rows, slot.cols], source, arch),
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
    if tensor.shape != shape {
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
