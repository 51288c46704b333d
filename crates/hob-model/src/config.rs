//! The shape of a model, read from GGUF metadata or a Hugging Face config.json and validated before any arithmetic.
//!
//! What differs between layers is an array from the start. It must not know tensors' bytes or devices.

mod compressed;
mod dense;
mod experts;
mod keys;
mod rope;
mod ssm;
mod windows;

pub(crate) use compressed::compressed;
pub use compressed::{CompressedConfig, EntryConfig, IndexConfig, StreamConfig};
pub(crate) use dense::{dense, drafting, frame, same_layers, scale, softcap};
pub(crate) use experts::{RouterDefaults, expert_count, experts, shared_experts};
pub(crate) use keys::{Key, Keys};
pub(crate) use rope::{DIVISORS, LONG, ROPE_TENSORS, SHORT, latent_yarn, local_rope, rope};
pub(crate) use ssm::{SsmKeys, ssm};
pub(crate) use windows::{upper_windows, windows};

use hob_compute::check::{mixture, recurrent};
use hob_compute::{DeltaShape, RopePairs, Routing, SsmShape};
use hob_files::ModelFile;

use crate::arch;
use crate::{ModelError, Result};

/// Whether a tensor holds a [`LayerConfig::output_scale`], which the config reads.
pub(crate) fn is_output_scale(tensor: &str) -> bool {
    tensor.ends_with(".layer_output_scale.weight") || tensor.ends_with(".layer_scalar")
}

/// How a layer mixes positions.
#[derive(Copy, Clone, Debug, PartialEq)]
pub enum Mixer {
    /// Grouped-query attention over all earlier positions.
    Attention,
    /// Attention to a latent that K and V of all heads are made from (DeepSeek-V2); the layer has one KV head, the latent
    /// with what is rotated behind it.
    Latent(LatentConfig),
    /// Attention to a window and to entries that blocks of positions are compressed to (DeepSeek V4); one KV head.
    Compressed(CompressedConfig),
    /// A gated causal convolution over the last `taps` positions (LFM2); heads and rotary table do not matter.
    ShortConv { taps: usize },
    /// A gated delta rule behind a short convolution (Qwen3-Next); heads and rotary table do not matter.
    DeltaNet(DeltaConfig),
    /// A selective state space behind a short convolution (Mamba-2); heads and rotary table do not matter.
    Ssm(SsmConfig),
    /// Not at all: the layer is a feed-forward block or a mixture.
    None,
}

/// A layer's selective state space.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct SsmConfig {
    pub shape: SsmShape,
    /// Positions of the convolution.
    pub taps: usize,
    /// Whether the convolution adds a bias.
    pub conv_bias: bool,
    /// Between which steps stay, the second perhaps infinite.
    pub limit: [f32; 2],
}

/// A layer's latent attention, in dimensions.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct LatentConfig {
    /// Of what queries are made from; `None` where that is the stream itself.
    pub q_rank: Option<usize>,
    /// Of the latent.
    pub rank: usize,
    /// Of a head's query and key that meet through the latent.
    pub nope: usize,
    /// Of a head's query, and of the key that all heads share, that are rotated.
    pub rotary: usize,
    /// Of a head's value.
    pub value: usize,
}

impl LatentConfig {
    /// Dimensions of what is remembered of a position.
    pub fn width(&self) -> usize {
        self.rank + self.rotary
    }

    fn check(&self, heads: usize, key: &impl Fn(&str) -> String) -> Result<()> {
        size(&key("q_lora_rank"), self.q_rank.unwrap_or(1))?;
        size(&key("kv_lora_rank"), self.rank)?;
        size(&key("qk_nope_head_dim"), self.nope)?;
        size(&key("qk_rope_head_dim"), self.rotary)?;
        size(&key("v_head_dim"), self.value)?;
        let widest = self.rank.max(self.value) + self.nope + self.rotary;
        size(&key("heads * dimensions of a head"), heads.saturating_mul(widest))
    }
}

/// A layer's gated delta rule.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct DeltaConfig {
    pub shape: DeltaShape,
    /// Positions of the convolution.
    pub taps: usize,
    pub stored: DeltaStored,
}

/// How the matrices before a delta rule are stored.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum DeltaStored {
    /// A matrix for q, k and v, and one each for the gate z, beta and decay (Qwen3.5).
    Apart,
    /// Key head by key head: q, k, and the v and z of its value heads; and likewise beta and decay (Qwen3-Next, whose
    /// GGUF files store q, k, v and z as [`DeltaStored::Apart`]).
    ByKeyHead,
}

/// A layer's mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertConfig {
    pub count: usize,
    /// Width of an expert's hidden layer.
    pub ff: usize,
    pub routing: Routing,
    /// Whether a bias is added for the selection.
    pub bias: bool,
    /// Width of the hidden layer of the expert that every row passes beside its own, if there is one.
    pub shared: Option<usize>,
    /// Whether the router and the experts add bias vectors.
    pub biased: bool,
    /// Whether the experts' sum is normed before it joins the residual stream, and so made beside it.
    pub aside: bool,
    /// The bounds of the gate of gpt-oss and DeepSeek V4, which then stands in for the architecture's activation.
    pub clamp: Option<Clamp>,
    /// Width of what experts read and give, if it is not that of the residual stream: projections lead there and back.
    pub latent: Option<usize>,
    /// Whether a table names the experts of every token, and the router only weighs them.
    pub hashed: bool,
}

/// The parameters of [`hob_compute::Activation::ClampedSwiglu`].
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct Clamp {
    pub alpha: f32,
    pub limit: f32,
    pub plus_one: bool,
}

/// The mixture of every layer, for [`DenseShape`].
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpertShape {
    pub count: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Width of an expert's hidden layer.
    pub ff: usize,
}

/// Which projections of a layer add a bias vector.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    pub qkv: bool,
    pub out: bool,
    pub ffn: bool,
}

/// Which matrices of a layer are stored as one, in rows: q, k, v; gate, up.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Fused {
    pub qkv: bool,
    pub gate_up: bool,
}

/// Where a layer's V comes from.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum ValueSource {
    /// A projection of its own.
    Own,
    /// The projection that K is normed and rotated from.
    Keys,
    /// With K, from what an earlier layer remembers; this one remembers nothing.
    Layer(usize),
}

/// A sigmoid gate between attention and its output matrix.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum OutputGate {
    None,
    /// For every value one, by rows that stand behind those of every head of q (Qwen3-Next).
    Values,
    /// For every head one, by a matrix of its own (LFM3).
    Heads,
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
    /// What scores are multiplied by; mostly `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Positions attended to, the row's own included; `None` is all of them.
    pub window: Option<usize>,
    /// Index into [`Config::ropes`]; `None` where positions are not encoded.
    pub rope: Option<usize>,
    /// Width of the feed-forward hidden layer.
    pub ffn: usize,
    /// Whether the layer is one sublayer: a mixer, a feed-forward block or a mixture.
    pub single: bool,
    pub biases: Biases,
    pub fused: Fused,
    /// The sigmoid gate that what is attended to passes.
    pub gate: OutputGate,
    /// Whether q and k are normed head by head, in architectures that leave it to the file.
    pub head_norms: bool,
    /// Where V comes from.
    pub values: ValueSource,
    /// What the residual stream is multiplied by after the layer.
    pub output_scale: f32,
    /// Instead of one feed-forward block.
    pub experts: Option<ExpertConfig>,
}

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// All frequencies divided by `factor` (position interpolation).
    Linear {
        factor: f64,
    },
    /// Frequencies by wavelength: kept, divided by `factor`, or blended between the two (Llama 3.1).
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_ctx: f64,
    },
    /// Frequencies by turns within the original context: kept, divided, or blended (YaRN).
    Yarn(Yarn),
    /// One set of divisors while the context is at most `original_ctx` tokens, another beyond (LongRoPE). The context
    /// is what the layout reserves, so that all positions of a sequence agree.
    Long {
        factors: LongFactors,
        original_ctx: f64,
    },
    /// Only the first `pairs` rotate, though frequencies are those of all of them (Gemma 4).
    Proportional {
        pairs: usize,
    },
    /// Frequencies are divided by the GGUF tensor `rope_freqs.weight`, `[rotary / 2]`.
    Divisors,
}

/// The parameters of YaRN (Peng et al. 2023).
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    pub factor: f64,
    pub original_ctx: f64,
    /// Turns within the original context above which a pair is kept.
    pub beta_fast: f64,
    /// Turns below which a pair is divided by `factor`.
    pub beta_slow: f64,
    /// Whether the two corners are rounded outwards to whole pairs.
    pub truncate: bool,
}

/// Where the divisors of LongRoPE stand.
#[derive(Clone, Debug, PartialEq)]
pub enum LongFactors {
    /// In the config, `[rotary / 2]` each.
    Given { short: Vec<f32>, long: Vec<f32> },
    /// In the GGUF tensors `rope_factors_short.weight` and `rope_factors_long.weight`.
    Tensors,
}

/// One table of rotary frequencies.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    pub base: f64,
    /// Dimensions of a head that rotate, from the first; even.
    pub rotary: usize,
    pub pairs: RopePairs,
    pub scaling: RopeScaling,
    /// What cosines and sines are multiplied by.
    pub magnitude: f32,
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
    /// Blocks behind the layers that predict further tokens; they are not read.
    pub drafting: usize,
    pub ropes: Vec<RopeConfig>,
    /// Tokens of context the model was trained for.
    pub ctx_train: usize,
    pub rms_eps: f32,
    /// Whether the head's matrix is the embedding table.
    pub tied: bool,
    /// What the embedding is multiplied by.
    pub embedding_scale: f32,
    /// Width of what every layer is told of the token itself, in models that do (Gemma's E models).
    pub layer_input: Option<usize>,
    /// How many streams the residual stream is, and how they are mixed, in models where it is more than one.
    pub streams: Option<StreamConfig>,
    /// What every sublayer's output is multiplied by before it joins the residual stream.
    pub residual_scale: f32,
    /// What logits are multiplied by.
    pub logit_scale: f32,
    /// Logits become `cap * tanh(logit / cap)`.
    pub logit_softcap: Option<f32>,
}

/// A dense decoder whose layers are all alike, but for what its architecture does differently from layer to layer:
/// what [`Config::dense`] needs to know. The fields after `tied` may be left at their defaults.
#[derive(Clone, Debug, Default, PartialEq)]
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
    /// 1e-5 if not given.
    pub rms_eps: Option<f32>,
    /// Positions that the architecture's sliding layers attend to; its usual number if not given. Ignored where no layer
    /// slides.
    pub window: Option<usize>,
    /// Rotary base of sliding layers that have a table of their own.
    pub local_rope_base: Option<f64>,
    /// For architectures whose layers are mixtures.
    pub experts: Option<ExpertShape>,
    /// For architectures that attend to a latent; heads of the shape do not count then but for their number.
    pub latent: Option<LatentConfig>,
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
        let mut keys = Keys::new(file)?;
        let entry = arch::find(keys.arch(), file.path())?;
        keys.set_defaults(entry.defaults);
        let config = (entry.config)(&keys)?;
        config.check()?;
        windows::check_kinds(&keys, &config)?;
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
            magnitude: 1.0,
        };
        let layer = LayerConfig {
            mixer: Mixer::Attention,
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            scale: attention_scale(shape.head_dim),
            softcap: None,
            window: None,
            rope: Some(0),
            ffn: shape.ffn,
            single: false,
            biases: entry.biases,
            fused: Fused::default(),
            gate: OutputGate::None,
            head_norms: false,
            values: ValueSource::Own,
            output_scale: 1.0,
            experts: None,
        };
        let mut config = Config {
            arch: entry.name.to_string(),
            vocab: shape.vocab,
            dim: shape.dim,
            layers: vec![layer; shape.layers.min(Self::MAX_LAYERS + 1)],
            drafting: 0,
            ropes: vec![rope],
            ctx_train: shape.ctx_train,
            rms_eps: shape.rms_eps.unwrap_or(1e-5),
            tied: shape.tied,
            embedding_scale: 1.0,
            layer_input: None,
            streams: None,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_softcap: None,
        };
        (entry.shape)(&mut config, shape);
        experts_fit(&config, shape)?;
        latent_fits(&config, shape)?;
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
        let scales = [
            ("embedding_scale", self.embedding_scale),
            ("residual_scale", self.residual_scale),
            ("logit_scale", self.logit_scale),
        ];
        for (key, value) in scales {
            if !(value.is_finite() && value != 0.0) {
                return Err(ModelError::config(key, "a number other than 0", value));
            }
        }
        cap("logit_softcap", self.logit_softcap)?;
        if let Some(width) = self.layer_input {
            size("layer_input * layers", width.saturating_mul(self.layers.len()))?;
        }
        if let Some(streams) = &self.streams {
            streams.check(self.dim)?;
        }
        (0..self.layers.len()).try_for_each(|i| self.check_source(i))?;
        self.layers.iter().enumerate().try_for_each(|(i, layer)| layer.check(i, self.ropes.as_slice()))
    }
}

impl DeltaConfig {
    fn check(&self, key: &impl Fn(&str) -> String) -> Result<()> {
        let shape = &self.shape;
        size(&key("key heads"), shape.key_heads)?;
        size(&key("value heads"), shape.value_heads)?;
        if let Err(e) = recurrent::delta_shape(shape) {
            return Err(ModelError::config(key("delta rule"), "heads that the delta rule can have", e));
        }
        size(&key("q, k and v"), shape.channels())?;
        size(&key("delta state"), shape.state())
    }
}

impl SsmConfig {
    fn check(&self, key: &impl Fn(&str) -> String) -> Result<()> {
        let shape = &self.shape;
        size(&key("state space heads"), shape.heads)?;
        let fits = recurrent::ssm_shape(shape).and(recurrent::ssm_limit(self.limit));
        if let Err(e) = fits {
            return Err(ModelError::config(
                key("state space"),
                "heads and steps that a state space can have",
                e,
            ));
        }
        size(&key("x, B and C"), shape.channels())?;
        size(&key("state of the state space"), shape.state())
    }
}

impl Config {
    /// A layer that attends to what another remembers must fit it.
    fn check_source(&self, i: usize) -> Result<()> {
        let layer = &self.layers[i];
        let ValueSource::Layer(from) = layer.values else { return Ok(()) };
        let expected = || format!("an earlier layer with K and V, heads and window like layer {i}");
        let fits = |source: &LayerConfig| {
            let own = !matches!(source.values, ValueSource::Layer(_)) && source.mixer == Mixer::Attention;
            let heads = (source.kv_heads, source.head_dim) == (layer.kv_heads, layer.head_dim);
            own && heads && source.window == layer.window && source.rope == layer.rope
        };
        match self.layers[..i].get(from).is_some_and(fits) {
            true => Ok(()),
            false => Err(ModelError::config(format!("layer {i}: K and V of layer"), expected(), from)),
        }
    }

    /// The layer whose K and V layer `i` attends to.
    pub(crate) fn kv_layer(&self, i: usize) -> usize {
        match self.layers[i].values {
            ValueSource::Layer(from) => from,
            ValueSource::Own | ValueSource::Keys => i,
        }
    }
}

/// `1 / sqrt(head_dim)`: what attention scores are multiplied by where nothing else is said.
pub(crate) fn attention_scale(head_dim: usize) -> f32 {
    1.0 / (head_dim as f32).sqrt()
}

impl Config {
    /// Floats of a row of the residual stream.
    pub fn stream_width(&self) -> usize {
        self.streams.map_or(1, |s| s.count) * self.dim
    }
}

impl LayerConfig {
    /// A layer of one sublayer, which attends to nothing and has no other sizes yet.
    pub(crate) fn single(mixer: Mixer) -> Self {
        LayerConfig {
            mixer,
            heads: 0,
            kv_heads: 0,
            head_dim: 0,
            scale: 1.0,
            softcap: None,
            window: None,
            rope: None,
            ffn: 0,
            single: true,
            biases: Biases::default(),
            fused: Fused::default(),
            gate: OutputGate::None,
            head_norms: false,
            values: ValueSource::Own,
            output_scale: 1.0,
            experts: None,
        }
    }

    /// Floats of K, and of V unless it is a part of K, of one position.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Positions a row at `position` attends to, its own included.
    pub(crate) fn visible(&self, position: usize) -> usize {
        self.window.map_or(position + 1, |w| w.min(position + 1))
    }

    /// Multiply-accumulates of mixing the row at `position` with those before it, beside the matrices; `dim` is the width
    /// of the residual stream.
    pub(crate) fn mixing_macs(&self, dim: usize, position: usize) -> u64 {
        let macs = match self.mixer {
            Mixer::Attention => 2 * self.heads * self.head_dim * self.visible(position),
            Mixer::Latent(latent) => self.heads * (latent.width() + latent.rank) * self.visible(position),
            Mixer::Compressed(compressed) => compressed.mixing_macs(self, position),
            Mixer::ShortConv { taps } => dim * taps,
            // The state times k, times q, and its update.
            Mixer::DeltaNet(delta) => 3 * delta.shape.state() + delta.shape.channels() * delta.taps,
            // Its update and its product with C.
            Mixer::Ssm(ssm) => 2 * ssm.shape.state() + ssm.shape.channels() * ssm.taps,
            Mixer::None => 0,
        };
        macs as u64
    }

    /// A layer has a mixer and a feed-forward block or a mixture, or exactly one of them.
    fn check_sublayers(&self, key: &impl Fn(&str) -> String) -> Result<()> {
        let mixes = self.mixer != Mixer::None;
        let sublayers = [mixes, self.ffn > 0, self.experts.is_some()].iter().filter(|&&has| has).count();
        match self.single {
            true if sublayers != 1 => {
                let expected = "a mixer, a feed-forward block or a mixture";
                Err(ModelError::config(key("sublayers"), expected, sublayers))
            }
            true if self.ffn == 0 => Ok(()),
            false if !mixes => {
                Err(ModelError::config(key("mixer"), "one beside the feed-forward block", "none"))
            }
            _ => size(&key("ffn"), self.ffn),
        }
    }

    fn check(&self, i: usize, ropes: &[RopeConfig]) -> Result<()> {
        let key = |name: &str| format!("layer {i}: {name}");
        self.check_sublayers(&key)?;
        if let Some(experts) = &self.experts {
            size(&key("expert ffn"), experts.ff)?;
            size(&key("expert_count * expert ffn"), experts.count.saturating_mul(experts.ff))?;
            if let Some(latent) = experts.latent {
                size(&key("width of experts"), latent)?;
            }
            if let Some(shared) = experts.shared {
                size(&key("shared expert ffn"), shared)?;
            }
            if let Some(Clamp { alpha, limit, .. }) = experts.clamp {
                cap(&key("swiglu_alpha"), Some(alpha))?;
                cap(&key("swiglu_limit"), Some(limit))?;
            }
            if let Err(e) = mixture::rule(&experts.routing, experts.count) {
                return Err(ModelError::config(key("experts"), "a rule that a router can follow", e));
            }
        }
        let taps = match self.mixer {
            Mixer::Attention => None,
            Mixer::Latent(latent) => {
                latent.check(self.heads, &key)?;
                None
            }
            Mixer::Compressed(compressed) => {
                let rotary = self.rope.and_then(|r| ropes.get(r)).map_or(0, |r| r.rotary);
                compressed.check(self, rotary, &key)?;
                None
            }
            Mixer::ShortConv { taps } => Some(taps),
            Mixer::DeltaNet(delta) => {
                delta.check(&key)?;
                Some(delta.taps)
            }
            Mixer::Ssm(ssm) => {
                ssm.check(&key)?;
                Some(ssm.taps)
            }
            Mixer::None => return Ok(()),
        };
        match taps {
            Some(taps) if (2..=256).contains(&taps) => return Ok(()),
            Some(taps) => {
                return Err(ModelError::config(key("taps"), "2..=256 positions of a convolution", taps));
            }
            None => {}
        }
        size(&key("heads"), self.heads)?;
        size(&key("kv_heads"), self.kv_heads)?;
        size(&key("head_dim"), self.head_dim)?;
        size(&key("heads * head_dim"), self.heads * self.head_dim)?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a divisor of the {} query heads", self.heads);
            return Err(ModelError::config(key("kv_heads"), expected, self.kv_heads));
        }
        if !(self.output_scale.is_finite() && self.output_scale != 0.0) {
            return Err(ModelError::config(key("output_scale"), "a number other than 0", self.output_scale));
        }
        if self.window == Some(0) {
            return Err(ModelError::config(key("window"), "at least 1 position", 0));
        }
        if !(self.scale.is_finite() && self.scale > 0.0) {
            return Err(ModelError::config(key("scale"), "a positive number", self.scale));
        }
        cap(&key("softcap"), self.softcap)?;
        if self.gate != OutputGate::None && self.values != ValueSource::Own {
            return Err(ModelError::config(
                key("output gate"),
                "a layer with K and V of its own",
                "another's",
            ));
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
        if !(rope.magnitude.is_finite() && rope.magnitude > 0.0) {
            return Err(ModelError::config(key("rope magnitude"), "a positive number", rope.magnitude));
        }
        Ok(())
    }
}

/// A shape with experts is for an architecture with experts, and the other way round.
fn experts_fit(config: &Config, shape: &DenseShape) -> Result<()> {
    let mixture = config.layers.iter().any(|l| l.experts.is_some());
    match (shape.experts, mixture) {
        (Some(experts), false) => {
            let expected = format!("none: layers of {} are no mixtures", config.arch);
            Err(ModelError::config("experts", expected, format!("{experts:?}")))
        }
        _ => Ok(()),
    }
}

/// A shape with a latent is for an architecture that attends to one, and the other way round.
fn latent_fits(config: &Config, shape: &DenseShape) -> Result<()> {
    let latent = config.layers.iter().any(|l| matches!(l.mixer, Mixer::Latent(_)));
    if latent == shape.latent.is_some() {
        return Ok(());
    }
    let expected = format!("{} for {}", if latent { "sizes" } else { "none" }, config.arch);
    Err(ModelError::config("latent", expected, format!("{:?}", shape.latent)))
}

fn cap(key: &str, cap: Option<f32>) -> Result<()> {
    match cap.filter(|c| !(c.is_finite() && *c > 0.0)) {
        Some(wrong) => Err(ModelError::config(key, "a positive number", wrong)),
        None => Ok(()),
    }
}

fn size(key: &str, value: usize) -> Result<()> {
    if (1..=Config::MAX_WIDTH).contains(&value) {
        return Ok(());
    }
    Err(ModelError::config(key, format!("a size of 1..={}", Config::MAX_WIDTH), value))
}
