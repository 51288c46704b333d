//! Rotary parameters from both dialects of config.json and from GGUF. An unknown scaling is an error with its name.
//!
//! config.json: `rope_parameters` {rope_type, rope_theta, ..} (transformers 5; one such section per kind of layer where
//! kinds differ) or `rope_theta` and `rope_scaling` {rope_type or type, ..} (transformers 4). GGUF: `rope.freq_base`,
//! `rope.dimension_count`, `rope.scaling.*`, and the tensors `rope_freqs.weight`, in which converters bake llama3 scaling,
//! and `rope_factors_{short,long}.weight`.

use serde_json::Value as Json;

use super::keys::{Key, Keys, json_f64};
use super::{LongFactors, RopeConfig, RopeScaling, Yarn};
use crate::arch::Entry;
use crate::{ModelError, Naming, Result};

/// The base where a file does not name one: both formats say 10,000 (as in the RoFormer paper).
const DEFAULT_BASE: f64 = 10_000.0;

/// The GGUF tensor of frequency divisors.
pub(crate) const DIVISORS: &str = "rope_freqs.weight";
/// The GGUF tensor of LongRoPE's divisors within the original context.
pub(crate) const SHORT: &str = "rope_factors_short.weight";
/// The GGUF tensor of LongRoPE's divisors beyond it.
pub(crate) const LONG: &str = "rope_factors_long.weight";
/// All tensors that rotary tables may read.
pub(crate) const ROPE_TENSORS: [&str; 3] = [DIVISORS, SHORT, LONG];

const CTX_TRAIN: Key = Key { gguf: "context_length", hf: "max_position_embeddings" };
const KNOWN: &str = "default, linear, llama3, yarn, longrope or proportional";

/// Reads the rotary table of a model's layers, or of those that see all positions.
///
/// # Errors
/// [`ModelError::Config`] naming key and value.
pub(crate) fn rope(keys: &Keys, entry: &Entry, head_dim: usize) -> Result<RopeConfig> {
    match keys.naming() {
        Naming::Gguf => gguf(keys, entry, head_dim),
        Naming::HuggingFace => {
            let (name, params) = match keys.json("rope_parameters") {
                Some(p) if entry.nested_ropes && p.get("full_attention").is_some() => {
                    ("rope_parameters.full_attention", p.get("full_attention"))
                }
                Some(p) if entry.nested_ropes && p.get("main").is_some() => {
                    ("rope_parameters.main", p.get("main"))
                }
                Some(params) => ("rope_parameters", Some(params)),
                None => ("rope_scaling", keys.json("rope_scaling")),
            };
            hugging_face(&Section { keys, name, params }, entry, head_dim, DEFAULT_BASE)
        }
    }
}

/// Reads the rotary table of sliding layers, of `base` where the file names none. `own` is config.json's older key for
/// that base. Only the newer config.json can scale it.
///
/// # Errors
/// [`ModelError::Config`] naming key and value.
pub(crate) fn local_rope(
    keys: &Keys,
    entry: &Entry,
    head_dim: usize,
    own: &'static str,
    base: f64,
) -> Result<RopeConfig> {
    let named = keys.f64(Key { gguf: "rope.freq_base_swa", hf: own })?;
    let base = named.unwrap_or(base);
    match keys.json("rope_parameters").and_then(|p| p.get("sliding_attention")) {
        Some(params) => {
            let name = "rope_parameters.sliding_attention";
            hugging_face(&Section { keys, name, params: Some(params) }, entry, head_dim, base)
        }
        None => Ok(RopeConfig {
            base,
            rotary: head_dim,
            pairs: entry.pairs(keys.naming()),
            scaling: RopeScaling::None,
            magnitude: 1.0,
        }),
    }
}

/// Reads a further rotary table of the newer config.json, from section `name` of `rope_parameters`; none where there is no
/// such section.
///
/// # Errors
/// [`ModelError::Config`] naming key and value.
pub(crate) fn named_rope(
    keys: &Keys,
    entry: &Entry,
    head_dim: usize,
    name: &'static str,
) -> Result<Option<RopeConfig>> {
    let key = name.rsplit('.').next().unwrap_or(name);
    let Some(params) = keys.json("rope_parameters").and_then(|p| p.get(key)) else { return Ok(None) };
    let section = Section { keys, name, params: Some(params) };
    hugging_face(&section, entry, head_dim, DEFAULT_BASE).map(Some)
}

fn gguf(keys: &Keys, entry: &Entry, head_dim: usize) -> Result<RopeConfig> {
    const TYPE: Key = Key { gguf: "rope.scaling.type", hf: "" };
    const FACTOR: Key = Key { gguf: "rope.scaling.factor", hf: "" };
    const OLD_FACTOR: Key = Key { gguf: "rope.scale_linear", hf: "" };
    const MAGNITUDE: Key = Key { gguf: "rope.scaling.attn_factor", hf: "" };
    let kind = keys.str(TYPE)?;
    let factor = keys.f64(FACTOR)?.or(keys.f64(OLD_FACTOR)?).filter(|&f| f != 0.0);
    let (scaling, magnitude) = match kind.as_deref() {
        Some("yarn") => {
            let factor = positive(keys, FACTOR, factor)?.ok_or_else(|| missing(keys, FACTOR))?;
            gguf_yarn(keys, factor)?
        }
        None | Some("longrope") if keys.has_tensor(LONG) || kind.is_some() => {
            let original_ctx = original_ctx(keys)?;
            (RopeScaling::Long { factors: LongFactors::Tensors, original_ctx }, 1.0)
        }
        // Files without a type but with a factor are older than the type: linear.
        None | Some("linear") => match positive(keys, FACTOR, factor)?.filter(|&f| f != 1.0) {
            Some(factor) if !keys.has_tensor(DIVISORS) => (RopeScaling::Linear { factor }, 1.0),
            Some(factor) => {
                return Err(unknown(&keys.spell(FACTOR), &format!("1 beside {DIVISORS}"), factor));
            }
            None if keys.has_tensor(DIVISORS) => (RopeScaling::Divisors, 1.0),
            None => (RopeScaling::None, 1.0),
        },
        Some("none") if keys.has_tensor(DIVISORS) => (RopeScaling::Divisors, 1.0),
        Some("none") => (RopeScaling::None, 1.0),
        Some(other) => return Err(unknown(&keys.spell(TYPE), "none, linear, yarn or longrope", other)),
    };
    let own = positive(keys, MAGNITUDE, keys.f64(MAGNITUDE)?)?.unwrap_or(1.0);
    let base = keys.f64(Key { gguf: "rope.freq_base", hf: "" })?.unwrap_or(DEFAULT_BASE);
    let rotary = keys.usize(Key { gguf: "rope.dimension_count", hf: "" })?.unwrap_or(head_dim);
    let magnitude = (magnitude * own) as f32;
    Ok(RopeConfig { base, rotary, pairs: entry.gguf_pairs, scaling, magnitude })
}

/// GGUF's YaRN and its magnitude. Converters do not write whether the corners are rounded: they are.
fn gguf_yarn(keys: &Keys, factor: f64) -> Result<(RopeScaling, f64)> {
    const EXTRAPOLATION: Key = Key { gguf: "rope.scaling.yarn_ext_factor", hf: "" };
    let number = |gguf| {
        let key = Key { gguf, hf: "" };
        positive(keys, key, keys.f64(key)?)
    };
    keys.refuse([(EXTRAPOLATION, Some(1.0))])?;
    let magnitude = match (number("rope.scaling.yarn_attn_factor")?, log_multiplier(keys)?) {
        (Some(given), _) => given,
        (None, Some(all)) => yarn_scale(factor, 1.0) / yarn_scale(factor, all),
        (None, None) => yarn_scale(factor, 1.0),
    };
    let yarn = Yarn {
        factor,
        original_ctx: original_ctx(keys)?,
        beta_fast: number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
        beta_slow: number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        truncate: true,
    };
    Ok((RopeScaling::Yarn(yarn), magnitude))
}

/// `mscale_all_dim` as GGUF spells it; 0 counts as absent.
fn log_multiplier(keys: &Keys) -> Result<Option<f64>> {
    const KEY: Key = Key { gguf: "rope.scaling.yarn_log_multiplier", hf: "" };
    positive(keys, KEY, keys.f64(KEY)?.filter(|&v| v != 0.0))
}

/// Tokens of the context before it was stretched; the trained context where no key says so.
fn original_ctx(keys: &Keys) -> Result<f64> {
    const KEY: Key =
        Key { gguf: "rope.scaling.original_context_length", hf: "original_max_position_embeddings" };
    match positive(keys, KEY, keys.f64(KEY)?)? {
        Some(tokens) => Ok(tokens),
        None => Ok(keys.need(CTX_TRAIN, keys.usize(CTX_TRAIN)?)? as f64),
    }
}

/// What DeepSeek multiplies the scale of scores by where YaRN stretches: the square of [`yarn_scale`], weighted by
/// `mscale_all_dim`; 1 where the file has no such number. A GGUF stores a tenth of it, and its cosines and sines are not
/// multiplied by more than `rope.scaling.attn_factor`.
///
/// # Errors
/// [`ModelError::Config`] naming key and value.
pub(crate) fn latent_yarn(keys: &Keys, rope: &mut RopeConfig) -> Result<f32> {
    let RopeScaling::Yarn(Yarn { factor, .. }) = rope.scaling else { return Ok(1.0) };
    let weight = match keys.naming() {
        Naming::Gguf => {
            const MAGNITUDE: Key = Key { gguf: "rope.scaling.attn_factor", hf: "" };
            let weight = log_multiplier(keys)?.map(|tenth| 10.0 * tenth);
            if weight.is_some() {
                rope.magnitude = positive(keys, MAGNITUDE, keys.f64(MAGNITUDE)?)?.unwrap_or(1.0) as f32;
            }
            weight
        }
        Naming::HuggingFace => {
            let (name, params) = match keys.json("rope_parameters") {
                Some(params) => ("rope_parameters", Some(params)),
                None => ("rope_scaling", keys.json("rope_scaling")),
            };
            Section { keys, name, params }.number_or_none("mscale_all_dim")?
        }
    };
    Ok(weight.map_or(1.0, |weight| yarn_scale(factor, weight).powi(2)) as f32)
}

/// What YaRN multiplies cosines and sines by (Peng et al. 2023, section 3.4), weighted by `mscale`.
fn yarn_scale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// The part of a config.json that holds one table's parameters.
struct Section<'a> {
    keys: &'a Keys<'a>,
    name: &'static str,
    params: Option<&'a Json>,
}

impl Section<'_> {
    fn get(&self, name: &str) -> Option<&Json> {
        self.params.and_then(|p| p.get(name)).filter(|v| !v.is_null())
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match json_f64(&self.key(name), value)? {
            v if v.is_finite() && v > 0.0 => Ok(Some(v)),
            v => Err(ModelError::config(self.key(name), "a positive number", v)),
        }
    }

    /// A number of which 0 means none.
    fn number_or_none(&self, name: &str) -> Result<Option<f64>> {
        if self.get(name).and_then(Json::as_f64) == Some(0.0) { Ok(None) } else { self.number(name) }
    }

    fn need(&self, name: &str) -> Result<f64> {
        self.number(name)?.ok_or_else(|| ModelError::config(self.key(name), "a number", "nothing"))
    }

    fn original_ctx(&self) -> Result<f64> {
        match self.number("original_max_position_embeddings")? {
            Some(tokens) => Ok(tokens),
            None => original_ctx(self.keys),
        }
    }

    /// By how much the context is stretched, where no factor says so.
    fn stretch(&self, original_ctx: f64) -> Result<f64> {
        match self.number("factor")? {
            Some(factor) => Ok(factor),
            None => Ok(self.keys.need(CTX_TRAIN, self.keys.usize(CTX_TRAIN)?)? as f64 / original_ctx),
        }
    }

    /// `[pairs]` positive divisors.
    fn divisors(&self, name: &str, pairs: usize) -> Result<Vec<f32>> {
        let wrong = |found: &dyn ToString| {
            let expected = format!("{pairs} positive numbers, one per rotated pair");
            ModelError::config(self.key(name), expected, found.to_string())
        };
        let Some(value) = self.get(name) else { return Err(wrong(&"nothing")) };
        let list = value.as_array().ok_or_else(|| wrong(value))?;
        let numbers = list.iter().filter_map(Json::as_f64).filter(|v| v.is_finite() && *v > 0.0);
        let numbers: Vec<f32> = numbers.map(|v| v as f32).collect();
        if numbers.len() == list.len() && numbers.len() == pairs { Ok(numbers) } else { Err(wrong(value)) }
    }
}

fn hugging_face(section: &Section, entry: &Entry, head_dim: usize, base: f64) -> Result<RopeConfig> {
    const BASE: Key = Key { gguf: "", hf: "rope_theta" };
    const PARTIAL: Key = Key { gguf: "", hf: "partial_rotary_factor" };
    let base = match section.number("rope_theta")? {
        Some(base) => base,
        None => section.keys.f64(BASE)?.unwrap_or(base),
    };
    let partial = match section.number("partial_rotary_factor")? {
        Some(part) => part,
        None => section.keys.f64(PARTIAL)?.unwrap_or(1.0),
    };
    if !(partial > 0.0 && partial <= 1.0) {
        return Err(ModelError::config("partial_rotary_factor", "more than 0 and at most 1", partial));
    }
    // Here all of a head is paired, and the part says how many pairs rotate.
    let proportional = section.get("rope_type").is_some_and(|kind| kind.as_str() == Some("proportional"));
    if proportional {
        let pairs = (partial * head_dim as f64 / 2.0) as usize;
        if let Some(factor) = section.number("factor")?.filter(|&f| f != 1.0) {
            return Err(unknown(&section.key("factor"), "1 beside proportional", factor));
        }
        let scaling = RopeScaling::Proportional { pairs };
        return Ok(RopeConfig { base, rotary: head_dim, pairs: entry.hf_pairs, scaling, magnitude: 1.0 });
    }
    let rotary = (head_dim as f64 * partial) as usize;
    // Ministral 3 scales queries by the logarithm of their position.
    if let Some(beta) = section.get("llama_4_scaling_beta").filter(|v| v.as_f64() != Some(0.0)) {
        return Err(unknown(&section.key("llama_4_scaling_beta"), "none", beta));
    }
    let (scaling, magnitude) = hugging_face_scaling(section, rotary / 2)?;
    let pairs = entry.hf_pairs;
    Ok(RopeConfig { base, rotary, pairs, scaling, magnitude: magnitude as f32 })
}

/// The scaling of a section, and its magnitude.
fn hugging_face_scaling(section: &Section, pairs: usize) -> Result<(RopeScaling, f64)> {
    let kind = match section.get("rope_type").or_else(|| section.get("type")) {
        None if section.params.is_none_or(is_plain) => return Ok((RopeScaling::None, 1.0)),
        None => return Err(unknown(&section.key("rope_type"), KNOWN, "nothing")),
        Some(kind) => kind,
    };
    // Phi-3 called LongRoPE by two other names before.
    let long = section.get("long_factor").is_some();
    match kind.as_str() {
        Some("default") => Ok((RopeScaling::None, 1.0)),
        Some("linear") => Ok((RopeScaling::Linear { factor: section.need("factor")? }, 1.0)),
        Some("llama3") => Ok((llama3(section)?, 1.0)),
        Some("longrope" | "su") => longrope(section, pairs),
        Some("yarn") if long => longrope(section, pairs),
        Some("yarn") => yarn(section),
        _ => Err(unknown(&section.key("rope_type"), KNOWN, kind)),
    }
}

fn llama3(section: &Section) -> Result<RopeScaling> {
    let factor = section.need("factor")?;
    let low_freq_factor = section.need("low_freq_factor")?;
    let high_freq_factor = section.need("high_freq_factor")?;
    let original_ctx = section.need("original_max_position_embeddings")?;
    if low_freq_factor >= high_freq_factor {
        let key = section.key("high_freq_factor");
        return Err(ModelError::config(key, format!("more than {low_freq_factor}"), high_freq_factor));
    }
    Ok(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_ctx })
}

fn yarn(section: &Section) -> Result<(RopeScaling, f64)> {
    let original_ctx = section.original_ctx()?;
    let factor = section.stretch(original_ctx)?;
    let weights = (section.number("mscale")?, section.number("mscale_all_dim")?);
    let magnitude = match (section.number("attention_factor")?, weights) {
        (Some(given), _) => given,
        (None, (Some(one), Some(all))) => yarn_scale(factor, one) / yarn_scale(factor, all),
        (None, _) => yarn_scale(factor, 1.0),
    };
    let yarn = Yarn {
        factor,
        original_ctx,
        beta_fast: section.number("beta_fast")?.unwrap_or(32.0),
        beta_slow: section.number("beta_slow")?.unwrap_or(1.0),
        truncate: section.get("truncate").and_then(Json::as_bool).unwrap_or(true),
    };
    Ok((RopeScaling::Yarn(yarn), magnitude))
}

fn longrope(section: &Section, pairs: usize) -> Result<(RopeScaling, f64)> {
    let original_ctx = section.original_ctx()?;
    let short = section.divisors("short_factor", pairs)?;
    let long = section.divisors("long_factor", pairs)?;
    let stretch = section.stretch(original_ctx)?;
    let magnitude = match section.number("attention_factor")? {
        Some(given) => given,
        None if stretch <= 1.0 => 1.0,
        None => (1.0 + stretch.ln() / original_ctx.ln()).sqrt(),
    };
    Ok((RopeScaling::Long { factors: LongFactors::Given { short, long }, original_ctx }, magnitude))
}

/// Whether parameters without a type name nothing but the base.
fn is_plain(params: &Json) -> bool {
    params.as_object().is_some_and(|p| p.keys().all(|k| k == "rope_theta" || k == "partial_rotary_factor"))
}

/// A number that must be positive if it is there.
fn positive(keys: &Keys, key: Key, value: Option<f64>) -> Result<Option<f64>> {
    match value.filter(|v| !(v.is_finite() && *v > 0.0)) {
        Some(wrong) => Err(ModelError::config(keys.spell(key), "a positive number", wrong)),
        None => Ok(value),
    }
}

fn missing(keys: &Keys, key: Key) -> ModelError {
    ModelError::config(keys.spell(key), "a number", "nothing")
}

fn unknown(key: &str, known: &str, found: impl ToString) -> ModelError {
    ModelError::config(key, format!("{known} (hob does not compute others yet)"), found)
}
