//! The registry of architectures and what each of them must offer. One architecture is one file below `arch/` and one
//! line here. It must not know where weights lie or which device computes.

mod llama;
mod qwen2;

use std::path::Path;

use hob_compute::RopePairs;

use crate::blocks::Step;
use crate::config::{Biases, Keys};
use crate::needs::Needs;
use crate::{Config, ModelError, Result};

/// What one layer remembers of a sequence.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum LayerState {
    /// K and V of every position, `[heads, dim]` each.
    Kv { heads: usize, dim: usize },
}

/// A model's forward pass, in pieces that the runner strings together.
pub(crate) trait Architecture: Send {
    /// Tokens of the batch to the residual stream.
    fn embed(&self, step: &mut Step) -> Result<()>;
    /// Layer `i` of the residual stream, in place.
    fn layer(&self, i: usize, step: &mut Step) -> Result<()>;
    /// The residual stream's wanted rows to logits.
    fn head(&self, step: &mut Step) -> Result<()>;
    /// What each layer remembers.
    fn state_plan(&self) -> Vec<LayerState>;
    /// The buffer `head` fills, `[logit_rows, vocab]`.
    fn logits(&self) -> crate::needs::BufId;
}

/// One line of the registry.
pub(crate) struct Entry {
    /// `general.architecture` of a GGUF and `model_type` of a config.json.
    pub name: &'static str,
    /// How its GGUF files pair rotated dimensions; Hugging Face checkpoints pair halves.
    pub gguf_pairs: RopePairs,
    /// The biases it always has.
    pub biases: Biases,
    pub config: fn(&Keys) -> Result<Config>,
    pub build: fn(&Config, &mut Needs) -> Box<dyn Architecture>,
}

const REGISTRY: &[Entry] = &[llama::ENTRY, qwen2::ENTRY];

/// Names of the architectures that run.
pub fn known_architectures() -> impl Iterator<Item = &'static str> {
    REGISTRY.iter().map(|e| e.name)
}

/// # Errors
/// [`ModelError::UnknownArchitecture`] with the names that are known; `path` is for the message.
pub(crate) fn find(name: &str, path: &Path) -> Result<&'static Entry> {
    REGISTRY.iter().find(|e| e.name == name).ok_or_else(|| ModelError::UnknownArchitecture {
        found: name.to_string(),
        known: known_architectures().collect::<Vec<_>>().join(", "),
        path: path.to_path_buf(),
    })
}
