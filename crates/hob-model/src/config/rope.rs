//! Rotary parameters from both dialects of config.json and from GGUF. An unknown scaling is an error with its name.
//!
//! config.json: `rope_parameters` {rope_type, rope_theta, ..} (transformers 5) or `rope_theta` and `rope_scaling`
//! {rope_type or type, ..} (transformers 4). GGUF: `rope.freq_base`, `rope.dimension_count`, `rope.scaling.*`, and the
//! tensor `rope_freqs.weight`, in which converters bake llama3 scaling.

use hob_compute::RopePairs;
use serde_json::Value as Json;

use super::keys::{Key, Keys, json_f64};
use super::{RopeConfig, RopeScaling};
use crate::{ModelError, Naming, Result};

/// The base where a file does not name one: both formats say 10,000 (as in the RoFormer paper).
const DEFAULT_BASE: f64 = 10_000.0;

/// The GGUF tensor of frequency divisors.
pub(crate) const DIVISORS: &str = "rope_freqs.weight";

/// Reads the one rotary table of a model whose layers are all alike. `gguf_pairs` is the pairing of the architecture's
/// GGUF files; Hugging Face checkpoints pair halves.
///
/// # Errors
/// [`ModelError::Config`] naming key and value.
pub(crate) fn rope(keys: &Keys, head_dim: usize, gguf_pairs: RopePairs) -> Result<RopeConfig> {
    match keys.naming() {
        Naming::Gguf => gguf(keys, head_dim, gguf_pairs),
        Naming::HuggingFace => hugging_face(keys, head_dim),
    }
}

fn gguf(keys: &Keys, head_dim: usize, pairs: RopePairs) -> Result<RopeConfig> {
    const TYPE: Key = Key { gguf: "rope.scaling.type", hf: "" };
    let kind = keys.str(TYPE)?;
    if let Some(kind) = kind.filter(|k| k != "none") {
        return Err(unknown(&keys.spell(TYPE), "none", kind));
    }
    let only_neutral = [
        (Key { gguf: "rope.scale_linear", hf: "" }, Some(1.0)),
        (Key { gguf: "rope.scaling.factor", hf: "" }, Some(1.0)),
        (Key { gguf: "rope.scaling.attn_factor", hf: "" }, Some(1.0)),
    ];
    keys.refuse(&only_neutral)?;
    let base = keys.f64(Key { gguf: "rope.freq_base", hf: "" })?.unwrap_or(DEFAULT_BASE);
    let rotary = keys.usize(Key { gguf: "rope.dimension_count", hf: "" })?.unwrap_or(head_dim);
    let scaling = if keys.has_tensor(DIVISORS) { RopeScaling::Divisors } else { RopeScaling::None };
    Ok(RopeConfig { base, rotary, pairs, scaling })
}

fn hugging_face(keys: &Keys, head_dim: usize) -> Result<RopeConfig> {
    let (section, params) = match keys.json("rope_parameters") {
        Some(params) => ("rope_parameters", Some(params)),
        None => ("rope_scaling", keys.json("rope_scaling")),
    };
    let get = |name: &str| params.and_then(|p| p.get(name)).filter(|v| !v.is_null());
    let base = match get("rope_theta").or_else(|| keys.json("rope_theta")) {
        Some(v) => json_f64("rope_theta", v)?,
        None => DEFAULT_BASE,
    };
    let partial = get("partial_rotary_factor").or_else(|| keys.json("partial_rotary_factor"));
    if let Some(v) = partial.filter(|v| v.as_f64() != Some(1.0)) {
        return Err(unknown("partial_rotary_factor", "1", v));
    }
    let number = |name: &str| -> Result<f64> {
        let key = format!("{section}.{name}");
        let value = get(name).ok_or_else(|| ModelError::config(&key, "a number", "nothing"))?;
        match json_f64(&key, value)? {
            v if v.is_finite() && v > 0.0 => Ok(v),
            v => Err(ModelError::config(&key, "a positive number", v)),
        }
    };
    let scaling = match get("rope_type").or_else(|| get("type")) {
        None if params.is_none_or(is_plain) => RopeScaling::None,
        None => return Err(unknown(&format!("{section}.rope_type"), "default or llama3", "nothing")),
        Some(Json::String(kind)) if kind == "default" => RopeScaling::None,
        Some(Json::String(kind)) if kind == "llama3" => RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_ctx: number("original_max_position_embeddings")?,
        },
        Some(other) => return Err(unknown(&format!("{section}.rope_type"), "default or llama3", other)),
    };
    if let RopeScaling::Llama3 { low_freq_factor, high_freq_factor, .. } = scaling
        && low_freq_factor >= high_freq_factor
    {
        let key = format!("{section}.high_freq_factor");
        return Err(ModelError::config(key, format!("more than {low_freq_factor}"), high_freq_factor));
    }
    Ok(RopeConfig { base, rotary: head_dim, pairs: RopePairs::Half, scaling })
}

/// Whether parameters without a type name nothing but the base.
fn is_plain(params: &Json) -> bool {
    params.as_object().is_some_and(|p| p.keys().all(|k| k == "rope_theta" || k == "partial_rotary_factor"))
}

fn unknown(key: &str, known: &str, found: impl ToString) -> ModelError {
    ModelError::config(key, format!("{known} (hob does not compute others yet)"), found)
}
