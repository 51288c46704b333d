//! The keys that selective state spaces (Mamba-2) share.

use hob_compute::SsmShape;
use serde_json::Value as Json;

use super::SsmConfig;
use super::keys::{Key, Keys, json_f64};
use crate::{ModelError, Naming, Result};

const TAPS: Key = Key { gguf: "ssm.conv_kernel", hf: "conv_kernel" };
const GROUPS: Key = Key { gguf: "ssm.group_count", hf: "n_groups" };
const INNER: Key = Key { gguf: "ssm.inner_size", hf: "" };
const CONV_BIAS: Key = Key { gguf: "", hf: "use_conv_bias" };
/// Least and largest step; a GGUF has no such key.
const LIMIT: &str = "time_step_limit";

/// What families of checkpoints call the same facts.
#[derive(Copy, Clone, Debug)]
pub(crate) struct SsmKeys {
    pub heads: &'static str,
    pub head_dim: &'static str,
    pub state_dim: &'static str,
}

/// Reads the state space that an architecture's layers share; `layer` is one that has it.
///
/// # Errors
/// [`ModelError::Config`] naming the key.
pub(crate) fn ssm(keys: &Keys, names: SsmKeys, layer: usize) -> Result<SsmConfig> {
    let need = |key| keys.need(key, keys.usize(key)?);
    let heads = need(Key { gguf: "ssm.time_step_rank", hf: names.heads })?;
    let head_dim = match keys.naming() {
        Naming::HuggingFace => need(Key { gguf: "", hf: names.head_dim })?,
        // A GGUF names the width of all heads together.
        Naming::Gguf => {
            let inner = need(INNER)?;
            match inner.checked_div(heads) {
                Some(dim) if dim * heads == inner => dim,
                _ => {
                    let expected = format!("a multiple of the {heads} heads");
                    return Err(ModelError::config(keys.spell(INNER), expected, inner));
                }
            }
        }
    };
    let state_dim = need(Key { gguf: "ssm.state_size", hf: names.state_dim })?;
    let groups = keys.usize(GROUPS)?.unwrap_or(1);
    let conv_bias = match keys.naming() {
        Naming::Gguf => keys.has_tensor(&format!("blk.{layer}.ssm_conv1d.bias")),
        Naming::HuggingFace => keys.bool(CONV_BIAS)?.unwrap_or(true),
    };
    let shape = SsmShape { heads, head_dim, state_dim, groups };
    Ok(SsmConfig { shape, taps: need(TAPS)?, conv_bias, limit: limit(keys)? })
}

/// Between which steps stay; by default any that softplus gives.
fn limit(keys: &Keys) -> Result<[f32; 2]> {
    let Some(given) = keys.json(LIMIT) else { return Ok([0.0, f32::INFINITY]) };
    match given.as_array().map(Vec::as_slice) {
        Some([least, most]) => Ok([bound(least)?, bound(most)?]),
        _ => Err(ModelError::config(LIMIT, "two numbers", given)),
    }
}

/// A number, or infinity as it is written where JSON has none.
fn bound(value: &Json) -> Result<f32> {
    let named = value.get("__float__").unwrap_or(value);
    match named.as_str() {
        Some("Infinity" | "inf") => Ok(f32::INFINITY),
        _ => Ok(json_f64(LIMIT, value)? as f32),
    }
}
