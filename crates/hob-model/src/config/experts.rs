//! The keys that mixtures of experts share.

use hob_compute::{Gating, Routing};

use super::ExpertConfig;
use super::keys::{Key, Keys};
use crate::{ModelError, Naming, Result};

const COUNT: Key = Key { gguf: "expert_count", hf: "num_experts" };
const LOCAL_COUNT: Key = Key { gguf: "expert_count", hf: "num_local_experts" };
const USED: Key = Key { gguf: "expert_used_count", hf: "num_experts_per_tok" };
const FF: Key = Key { gguf: "expert_feed_forward_length", hf: "moe_intermediate_size" };
const GATING: Key = Key { gguf: "expert_gating_func", hf: "" };
const NORMALIZE: Key = Key { gguf: "expert_weights_norm", hf: "norm_topk_prob" };
const SCALE: Key = Key { gguf: "expert_weights_scale", hf: "routed_scaling_factor" };

/// What is true of an architecture's router where its files do not say otherwise.
#[derive(Copy, Clone, Debug)]
pub(crate) struct RouterDefaults {
    pub gating: Gating,
    /// Whether weights are normalized where a config.json does not say so. A GGUF without the key always normalizes.
    pub normalize: bool,
    /// Added to the sum by which weights are divided.
    pub eps: f32,
}

/// Reads the mixture that an architecture's layers share; without selection bias.
///
/// # Errors
/// [`ModelError::Config`] naming the key.
pub(crate) fn experts(keys: &Keys, defaults: RouterDefaults) -> Result<ExpertConfig> {
    let count = match keys.usize(COUNT)? {
        Some(count) => Some(count),
        None => keys.usize(LOCAL_COUNT)?,
    };
    let gating = match keys.usize(GATING)?.filter(|_| keys.naming() == Naming::Gguf) {
        None | Some(0) => defaults.gating,
        Some(1) => Gating::Softmax,
        Some(2) => Gating::Sigmoid,
        Some(3) => Gating::SoftmaxSelected,
        Some(4) => Gating::SqrtSoftplus,
        Some(other) => {
            return Err(ModelError::config(keys.spell(GATING), "a gating function of 1..=4", other));
        }
    };
    let normalize = match keys.naming() {
        Naming::Gguf => keys.bool(NORMALIZE)?.unwrap_or(true),
        Naming::HuggingFace => keys.bool(NORMALIZE)?.unwrap_or(defaults.normalize),
    };
    Ok(ExpertConfig {
        count: keys.need(COUNT, count)?,
        ff: keys.need(FF, keys.usize(FF)?)?,
        routing: Routing {
            top_k: keys.need(USED, keys.usize(USED)?)?,
            gating,
            normalize: normalize.then_some(defaults.eps),
            // Converters write 0 for "none".
            scale: keys.f64(SCALE)?.filter(|&s| s != 0.0).unwrap_or(1.0) as f32,
            groups: None,
        },
        bias: false,
    })
}
