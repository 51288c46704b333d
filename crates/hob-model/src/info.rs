//! A model without its bytes: config, checked tensor table, and the one arithmetic of sizes built on them.
//!
//! The plan fills a layout from it, the runner allocates from it, the forecast reads it. It must not know devices.

use std::collections::HashSet;
use std::sync::Arc;

use hob_compute::{PAGE_POSITIONS, PageSpec, WeightKind};
use hob_files::{ModelFile, TensorInfo};
use hob_quant::Format;

use crate::arch::{self, Architecture};
use crate::config::DIVISORS;
use crate::needs::{Needs, Rows};
use crate::source::FileTensors;
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
        let used: HashSet<&str> = needs.slots.iter().map(|s| s.name.as_str()).collect();
        let names = source.tensors().iter().map(|t| t.name.as_str());
        let extra =
            names.filter(|&n| !used.contains(n) && n != DIVISORS && !n.ends_with(".rotary_emb.inv_freq"));
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
        let distinct = self.slots.iter().filter(|s| seen.insert(s.name.as_str()));
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
            line(group.title().to_string(), bytes);
        }
        let kv = self.page_needs(layout).iter().map(|(spec, n)| spec.page_bytes() as u64 * *n as u64).sum();
        let sequences =
            if layout.sequences == 1 { String::new() } else { format!(" x {}", layout.sequences) };
        line(format!("KV pages: {} tokens{sequences}, f16", layout.ctx_tokens), kv);
        let rotary = self.config.ropes.iter().map(|r| r.rotary as u64 / 2 * 4).sum::<u64>();
        let scratch = rotary
            + self.scratch_shapes(layout).map(|[rows, width]| rows as u64 * width as u64 * 4).sum::<u64>();
        line(format!("activations: {} rows", layout.chunk_rows), scratch);
        let tables = self.slots().filter(|(s, _)| s.kind == WeightKind::Table);
        let mapped = tables.map(|(s, f)| file_bytes(s, f)).sum();
        Footprint { lines, weights, kv, scratch, total: weights + kv + scratch, mapped }
    }

    /// Bytes one decode step at `position` (0 for the first token) must move: every weight once, one row of the
    /// embedding, and K and V of all positions up to this one.
    pub fn bytes_per_token(&self, position: usize) -> u64 {
        let weights = self.slots().map(|(slot, format)| match slot.kind {
            WeightKind::Table => format.row_bytes(slot.cols).unwrap_or(0) as u64,
            WeightKind::Matrix | WeightKind::Vector => device_bytes(slot, format),
        });
        weights.sum::<u64>() + self.kv_bytes_per_token() * (position as u64 + 1)
    }

    /// Bytes of K and V that one token adds, over all layers.
    pub fn kv_bytes_per_token(&self) -> u64 {
        self.states.iter().map(|&state| page_spec(state).page_bytes() as u64 / PAGE_POSITIONS as u64).sum()
    }

    /// Multiply-accumulates of one decode step at `position`: the matrices, and attention over the positions up to it.
    pub fn macs_per_token(&self, position: usize) -> u64 {
        let matrices = self.slots.iter().filter(|s| s.kind == WeightKind::Matrix);
        let products: u64 = matrices.map(|s| s.rows as u64 * s.cols as u64).sum();
        let widths = self.config.layers.iter().map(|l| (l.heads * l.head_dim) as u64);
        products + 2 * widths.sum::<u64>() * (position as u64 + 1)
    }

    /// Pages of each distinct shape, in order of first use.
    pub(crate) fn page_needs(&self, layout: &Layout) -> Vec<(PageSpec, usize)> {
        let per_layer = layout.sequences.saturating_mul(layout.pages_per_sequence());
        let mut needs: Vec<(PageSpec, usize)> = Vec::new();
        for spec in self.states.iter().map(|&s| page_spec(s)) {
            match needs.iter_mut().find(|(found, _)| *found == spec) {
                Some((_, count)) => *count = count.saturating_add(per_layer),
                None => needs.push((spec, per_layer)),
            }
        }
        needs
    }

    /// `[rows, width]` of every activation buffer.
    pub(crate) fn scratch_shapes(&self, layout: &Layout) -> impl Iterator<Item = [usize; 2]> {
        let (chunk, logits) = (layout.chunk_rows, layout.logit_rows);
        self.scratch.iter().map(move |&(rows, width)| match rows {
            Rows::Chunk => [chunk, width],
            Rows::Logits => [logits, width],
        })
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

/// The pages of a layer's state.
pub(crate) fn page_spec(state: LayerState) -> PageSpec {
    let LayerState::Kv { heads, dim } = state;
    PageSpec { kv_heads: heads, head_dim: dim }
}

/// Bytes in the file.
pub(crate) fn file_bytes(slot: &Slot, format: Format) -> u64 {
    format.row_bytes(slot.cols).unwrap_or(0) as u64 * slot.rows as u64
}

/// Bytes in device memory: packed matrices as the file has them, vectors as f32, tables not at all.
fn device_bytes(slot: &Slot, format: Format) -> u64 {
    match slot.kind {
        WeightKind::Matrix => file_bytes(slot, format),
        WeightKind::Vector => slot.cols as u64 * 4,
        WeightKind::Table => 0,
    }
}

/// The tensor of a slot must be there, of the right shape, in a format that can be computed from.
fn check(slot: &Slot, source: &dyn TensorSource, arch: &str) -> Result<Format> {
    let Some(tensor) = source.tensor(&slot.name) else {
        let (name, arch) = (slot.name.clone(), arch.to_string());
        return Err(match source.unreadable(&name) {
            Some(found) => wrong_format(name, source.naming(), found),
            None => ModelError::MissingTensor { name, rows: slot.rows, cols: slot.cols, arch },
        });
    };
    let wanted: &[usize] =
        if slot.kind == WeightKind::Vector { &[slot.cols] } else { &[slot.rows, slot.cols] };
    if tensor.shape != wanted {
        let (expected, found) = (format!("{wanted:?}"), format!("{:?}", tensor.shape));
        return Err(ModelError::TensorShape { name: slot.name.clone(), expected, found });
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
