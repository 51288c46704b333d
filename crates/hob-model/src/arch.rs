//! The registry of architectures and what each of them must offer. One architecture is one file below `arch/` and one
//! line here. It must not know where weights lie or which device computes.

mod deepseek2;
mod deepseek4;
mod gemma2;
mod gemma3;
mod gemma4;
mod glm4;
mod glm4_moe;
mod gpt_oss;
mod granite;
mod lfm2;
mod lfm3;
mod llama;
mod mamba2;
mod mistral;
mod mixtral;
mod nemotron_h;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_5;
mod qwen3_moe;
mod smollm3;

use std::path::Path;

use hob_compute::{Activation, DeltaShape, RopePairs, SsmShape};

use crate::blocks::Step;
use crate::config::{Biases, DenseShape, Fused, Keys};
use crate::needs::Needs;
use crate::{Config, ModelError, Naming, Result};

/// What one layer remembers of a sequence.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum LayerState {
    /// K and V of every position, `[heads, dim]` each; `Some(n)`: V is the first `n` dimensions of K, stored once.
    Kv { heads: usize, dim: usize, latent: Option<usize> },
    /// Nothing of its own: it reads the K and V of an earlier layer.
    Shared { layer: usize },
    /// K, which is V too, of the last `window` positions; and, with a `ratio`, an entry of `dim` and one of `index_dim` (0 for
    /// none) for every so many positions.
    Compressed { window: usize, dim: usize, ratio: Option<usize>, index_dim: usize },
    /// The last `taps - 1` inputs of a causal convolution, `channels` each.
    Conv { channels: usize, taps: usize },
    /// The state of a gated delta rule, and the last `taps - 1` inputs of the convolution before it.
    Delta { shape: DeltaShape, taps: usize },
    /// The state of a selective state space, and the last `taps - 1` inputs of the convolution before it.
    Ssm { shape: SsmShape, taps: usize },
    /// Nothing: it does not look at other positions.
    None,
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

/// One line of the registry. What an architecture does like llama it takes from [`Entry::new`].
pub(crate) struct Entry {
    /// `general.architecture` of a GGUF and `model_type` of a config.json.
    pub name: &'static str,
    /// Other `model_type`s of its checkpoints.
    pub aliases: &'static [&'static str],
    /// How its GGUF files pair rotated dimensions.
    pub gguf_pairs: RopePairs,
    /// How its Hugging Face checkpoints pair them.
    pub hf_pairs: RopePairs,
    /// The biases it always has.
    pub biases: Biases,
    /// Of the feed-forward gate.
    pub activation: Activation,
    /// The matrices that its Hugging Face checkpoints fuse.
    pub fused: Fused,
    /// Whether a config.json that does not say so ties the head to the embedding.
    pub tied: bool,
    /// Whether its config.json may have rotary parameters per kind of layer.
    pub nested_ropes: bool,
    /// Keys (as config.json spells them) that change the forward pass of most dense decoders and that its config reads.
    pub computes: &'static [&'static str],
    /// What its config.json may leave out, and the number that counts then.
    pub defaults: &'static [(&'static str, f64)],
    pub config: fn(&Keys) -> Result<Config>,
    pub build: fn(&Config, &mut Needs) -> Box<dyn Architecture>,
    /// Completes [`Config::dense`]: windows, tables and scales that go with the architecture.
    pub shape: fn(&mut Config, &DenseShape),
}

type ConfigOf = fn(&Keys) -> Result<Config>;
type Build = fn(&Config, &mut Needs) -> Box<dyn Architecture>;

impl Entry {
    /// As llama, but with rotated halves in GGUF files too.
    pub(crate) const fn new(name: &'static str, config: ConfigOf, build: Build) -> Self {
        Entry {
            name,
            aliases: &[],
            gguf_pairs: RopePairs::Half,
            hf_pairs: RopePairs::Half,
            biases: Biases { qkv: false, out: false, ffn: false },
            activation: Activation::Silu,
            fused: Fused { qkv: false, gate_up: false },
            tied: false,
            nested_ropes: false,
            computes: &[],
            defaults: &[],
            config,
            build,
            shape: |_, _| (),
        }
    }

    /// How files of this naming pair rotated dimensions.
    pub(crate) fn pairs(&self, naming: Naming) -> RopePairs {
        match naming {
            Naming::Gguf => self.gguf_pairs,
            Naming::HuggingFace => self.hf_pairs,
        }
    }
}

const REGISTRY: &[Entry] = &[
    llama::ENTRY,
    qwen2::ENTRY,
    qwen3::ENTRY,
    gemma2::ENTRY,
    gemma3::ENTRY,
    gemma4::ENTRY,
    smollm3::ENTRY,
    mistral::ENTRY,
    phi3::ENTRY,
    olmo2::ENTRY,
    granite::ENTRY,
    glm4::ENTRY,
    qwen3_moe::ENTRY,
    mixtral::ENTRY,
    glm4_moe::ENTRY,
    deepseek2::ENTRY,
    deepseek4::ENTRY,
    gpt_oss::ENTRY,
    lfm2::ENTRY,
    lfm2::MOE,
    lfm3::ENTRY,
    qwen3_5::DENSE,
    qwen3_5::MOE,
    qwen3_5::NEXT,
    mamba2::ENTRY,
    nemotron_h::ENTRY,
    nemotron_h::MOE,
];

/// Names of the architectures that run.
pub fn known_architectures() -> impl Iterator<Item = &'static str> {
    REGISTRY.iter().map(|e| e.name)
}

/// # Errors
/// [`ModelError::UnknownArchitecture`] with the names that are known; `path` is for the message.
pub(crate) fn find(name: &str, path: &Path) -> Result<&'static Entry> {
    REGISTRY.iter().find(|e| e.name == name || e.aliases.contains(&name)).ok_or_else(|| {
        ModelError::UnknownArchitecture {
            found: name.to_string(),
            known: known_architectures().collect::<Vec<_>>().join(", "),
            path: path.to_path_buf(),
        }
    })
}
