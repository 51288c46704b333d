//! The shape of a model, read from GGUF metadata or a Hugging Face config.json and validated before any arithmetic.
//!
//! What differs between layers is an array from the start. It must not know tensors' bytes or devices.

mod dense;
mod keys;
mod rope;

pub(crate) use dense::{dense, same_layers};
pub(crate) use keys::{Key, Keys};
pub(crate) use rope::DIVISORS;

use hob_compute::RopePairs;
use hob_files::ModelFile;

use crate::arch;
use crate::{ModelError, Result};

/// How a layer mixes positions.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Mixer {
    /// Grouped-query attention over all earlier positions.
    Attention,
}

/// Which projections of a layer add a bias vector.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    pub qkv: bool,
    pub out: bool,
    pub ffn: bool,
}

/// The shape of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerConfig {
    pub mixer: Mixer,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Positions attended to, the row's own included; `None` is all of them.
    pub window: Option<usize>,
    /// Index into [`Config::ropes`]; `None` where positions are not encoded.
    pub rope: Option<usize>,
    /// Width of the feed-forward hidden layer.
    pub ffn: usize,
    pub biases: Biases,
}

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// Frequencies by wavelength: kept, divided by `factor`, or blended between the two (Llama 3.1).
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_ctx: f64,
    },
    /// Frequencies are divided by the GGUF tensor `rope_freqs.weight`, `[rotary / 2]`.
    Divisors,
}

/// One table of rotary frequencies.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    pub base: f64,
    /// Dimensions of a head that rotate, from the first; even.
    pub rotary: usize,
    pub pairs: RopePairs,
    pub scaling: RopeScaling,
}

/// The shape of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The registry's name of the architecture, for example `llama`.
    pub arch: String,
    /// Rows of the embedding table, and logits per position.
    pub vocab: usize,
    /// Width of the residual stream.
    pub dim: usize,
    pub layers: Vec<LayerConfig>,
    pub ropes: Vec<RopeConfig>,
    /// Tokens of context the model was trained for.
    pub ctx_train: usize,
    pub rms_eps: f32,
    /// Whether the head's matrix is the embedding table.
    pub tied: bool,
}

/// A dense decoder whose layers are all alike: what [`Config::dense`] needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct DenseShape {
    pub vocab: usize,
    pub dim: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ffn: usize,
    pub ctx_train: usize,
    pub rope_base: f64,
    pub tied: bool,
}

impl Config {
    /// Most layers of a model: far above any that exists (the largest open ones have about 130), and small enough that
    /// a hostile count costs nothing.
    pub const MAX_LAYERS: usize = 4096;
    /// Largest width, head count or vocabulary, so that products of two stay exact in 64 bits.
    pub const MAX_WIDTH: usize = 1 << 24;

    /// Reads and validates the config of a model file.
    ///
    /// # Errors
    /// [`ModelError::UnknownArchitecture`], or [`ModelError::Config`] naming the key that is missing, malformed or asks
    /// for something hob does not compute.
    pub fn from_file(file: &ModelFile) -> Result<Self> {
        let keys = Keys::new(file)?;
        let config = (arch::find(keys.arch(), file.path())?.config)(&keys)?;
        config.check()?;
        Ok(config)
    }

    /// A model of `arch` with GGUF conventions and no weights yet: for synthesis and tests.
    ///
    /// # Errors
    /// As [`Config::from_file`], for an architecture that hob does not know or a shape that does not fit together.
    pub fn dense(arch: &str, shape: &DenseShape) -> Result<Self> {
        let entry = arch::find(arch, std::path::Path::new("(synthesized)"))?;
        let rope = RopeConfig {
            base: shape.rope_base,
            rotary: shape.head_dim,
            pairs: entry.gguf_pairs,
            scaling: RopeScaling::None,
        };
        let layer = LayerConfig {
            mixer: Mixer::Attention,
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            window: None,
            rope: Some(0),
            ffn: shape.ffn,
            biases: entry.biases,
        };
        let config = Config {
            arch: entry.name.to_string(),
            vocab: shape.vocab,
            dim: shape.dim,
            layers: vec![layer; shape.layers.min(Self::MAX_LAYERS + 1)],
            ropes: vec![rope],
            ctx_train: shape.ctx_train,
            rms_eps: 1e-5,
            tied: shape.tied,
        };
        config.check()?;
        Ok(config)
    }

    /// Every size non-zero and bounded, heads in whole groups, rotary dimensions within a head.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the field.
    pub(crate) fn check(&self) -> Result<()> {
        size("vocab", self.vocab)?;
        size("dim", self.dim)?;
        if self.layers.is_empty() || self.layers.len() > Self::MAX_LAYERS {
            let expected = format!("1..={} layers", Self::MAX_LAYERS);
            return Err(ModelError::config("layers", expected, self.layers.len()));
        }
        if !(self.rms_eps.is_finite() && self.rms_eps > 0.0) {
            return Err(ModelError::config("rms_eps", "a small positive number", self.rms_eps));
        }
        self.layers.iter().enumerate().try_for_each(|(i, layer)| layer.check(i, self.ropes.as_slice()))
    }
}

impl LayerConfig {
    fn check(&self, i: usize, ropes: &[RopeConfig]) -> Result<()> {
        let key = |name: &str| format!("layer {i}: {name}");
        size(&key("heads"), self.heads)?;
        size(&key("kv_heads"), self.kv_heads)?;
        size(&key("head_dim"), self.head_dim)?;
        size(&key("ffn"), self.ffn)?;
        size(&key("heads * head_dim"), self.heads * self.head_dim)?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a divisor of the {} query heads", self.heads);
            return Err(ModelError::config(key("kv_heads"), expected, self.kv_heads));
        }
        if self.window == Some(0) {
            return Err(ModelError::config(key("window"), "at least 1 position", 0));
        }
        let Some(at) = self.rope else { return Ok(()) };
        let Some(rope) = ropes.get(at) else {
            return Err(ModelError::config(key("rope"), format!("a table below {}", ropes.len()), at));
        };
        if rope.rotary == 0 || rope.rotary % 2 != 0 || rope.rotary > self.head_dim {
            let expected = format!("an even number of rotated dimensions, at most {}", self.head_dim);
            return Err(ModelError::config(key("rotary"), expected, rope.rotary));
        }
        if !(rope.base.is_finite() && rope.base > 1.0) {
            return Err(ModelError::config(key("rope base"), "a number above 1", rope.base));
        }
        Ok(())
    }
}

fn size(key: &str, value: usize) -> Result<()> {
    if (1..=Config::MAX_WIDTH).contains(&value) {
        return Ok(());
    }
    Err(ModelError::config(key, format!("a size of 1..={}", Config::MAX_WIDTH), value))
}
