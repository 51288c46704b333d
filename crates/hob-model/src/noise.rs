//! How much each way of storing K and V would disturb attention, layer by layer: the figures, and their measurement on a
//! prompt. It must not know which figure is acceptable.

mod figures;
mod hooked;
mod observer;
mod rounded;

use hob_compute::{Compute, Token};
use hob_quant::KvFormat;
use serde::{Deserialize, Serialize};

use crate::{Batch, KvLayout, LayerState, Model, Result, Row};
use hooked::Hooked;
use observer::Observer;
use rounded::Rounded;

/// The formats whose noise is measured.
pub const MEASURED: [KvFormat; 3] = [KvFormat::Q8, KvFormat::Q4, KvFormat::Asym4];

/// One layer with K and V, as a calibration prompt saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerNoise {
    /// Index among all layers of the model.
    pub layer: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    pub softcap: Option<f32>,
    /// Positions attended to; `None` is all of them.
    pub window: Option<usize>,
    /// Root mean square of the Euclidean norm of the queries of each KV head's group, `[kv_heads]`.
    pub q_norm: Vec<f32>,
    /// The same of K, `[kv_heads]`.
    pub k_norm: Vec<f32>,
    /// One entry per packed format that vectors of `head_dim` fit into; empty where none does.
    pub formats: Vec<FormatNoise>,
}

/// What one format does to a layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FormatNoise {
    #[serde(with = "by_name")]
    pub format: KvFormat,
    /// Root mean square error of K relative to K.
    pub k_error: f32,
    /// The same of V.
    pub v_error: f32,
    /// Predicted standard deviation of a logit's error, `scale |q| |k| k_error / sqrt(head_dim)`, in nats; the root
    /// mean square over KV heads.
    pub predicted: f32,
    /// The same measured on the prompt's own queries and keys. A shift of all logits of a query does not count: the
    /// softmax does not see it.
    pub measured: f32,
    /// Mean KL divergence of the attention weights with this K from the exact ones, in nats.
    pub attention_kl: f32,
    /// Root mean square error of attention's output with this K, relative to the output.
    pub k_output: f32,
    /// The same with this V.
    pub v_output: f32,
}

impl LayerNoise {
    /// What `format` does here; `None` where vectors do not fit it, or where it was not measured.
    pub fn of(&self, format: KvFormat) -> Option<&FormatNoise> {
        self.formats.iter().find(|f| f.format == format)
    }
}

/// Feeds `tokens` to a fresh sequence of `model` in one step, and watches what its layers do. The layout must hold a
/// sequence and a chunk of that many tokens; formats of its own disturb what is measured, so it should be f16.
///
/// # Errors
/// No tokens, or more than one step takes; what the model and device say.
pub fn measure(model: &mut Model, dev: &mut dyn Compute, tokens: &[u32]) -> Result<Vec<LayerNoise>> {
    let sequence = model.new_sequence()?;
    let rows = tokens.iter().zip(0..).map(|(&token, position)| Row {
        sequence,
        position,
        token: Token::Host(token),
        logits: false,
        draft: false,
    });
    let batch = Batch { rows: rows.collect() };
    let layers = model.info().states().iter().zip(0..);
    let layers = layers.filter(|(state, _)| matches!(state, LayerState::Kv { .. })).map(|(_, i)| i);
    let layers: Vec<usize> = layers.collect();
    let mut observer = Hooked { dev, hook: Observer::new(layers) };
    let result = model.step(&mut observer, &batch);
    let found = observer.hook.found;
    model.free_sequence(sequence)?;
    result.map(|_| found)
}

/// As [`Model::step`], but K and V go through the codecs of `kv` before they are cached, whatever the layout keeps. On an
/// exact device nothing else rounds: what differs is what the formats cost.
///
/// # Errors
/// As [`Model::step`].
pub fn step_rounded(model: &mut Model, dev: &mut dyn Compute, batch: &Batch, kv: &KvLayout) -> Result<usize> {
    let mut rounded = Hooked { hook: Rounded::new(model.info(), kv), dev };
    let result = model.step(&mut rounded, batch);
    let Hooked { dev, hook } = rounded;
    hook.release(dev)?;
    result
}

/// Formats by the name that flags use.
mod by_name {
    use hob_quant::KvFormat;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(format: &KvFormat, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(format.name())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<KvFormat, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}
