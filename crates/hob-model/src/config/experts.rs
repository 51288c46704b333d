//! The keys that mixtures of experts share.

use hob_compute::{Gating, GroupScore, Groups, Routing};

use super::keys::{Key, Keys};
use super::{Config, ExpertConfig, ExpertShape};
use crate::{ModelError, Naming, Result};

/// The same facts under the names that families of checkpoints have for them.
const COUNTS: [Key; 3] = [
    Key { gguf: "expert_count", hf: "num_experts" },
    Key { gguf: "expert_count", hf: "num_local_experts" },
    Key { gguf: "expert_count", hf: "n_routed_experts" },
];
const USED: [Key; 2] = [
    Key { gguf: "expert_used_count", hf: "num_experts_per_tok" },
    Key { gguf: "expert_used_count", hf: "top_k_experts" },
];
const FF: Key = Key { gguf: "expert_feed_forward_length", hf: "moe_intermediate_size" };
const GATING: Key = Key { gguf: "expert_gating_func", hf: "" };
const NORMALIZE: Key = Key { gguf: "expert_weights_norm", hf: "norm_topk_prob" };
const SCALE: Key = Key { gguf: "expert_weights_scale", hf: "routed_scaling_factor" };
const GROUPS: Key = Key { gguf: "expert_group_count", hf: "n_group" };
const KEPT: Key = Key { gguf: "expert_group_used_count", hf: "topk_group" };

/// What is true of an architecture's router where its files do not say otherwise.
#[derive(Copy, Clone, Debug)]
pub(crate) struct RouterDefaults {
    pub gating: Gating,
    /// Whether weights are normalized where a config.json does not say so. A GGUF without the key always normalizes.
    pub normalize: bool,
    /// Added to the sum by which weights are divided.
    pub eps: f32,
}

impl RouterDefaults {
    /// The mixture of a GGUF that says nothing of its router, as a synthesized one; without selection bias or shared
    /// expert.
    pub fn mixture(self, shape: ExpertShape) -> ExpertConfig {
        let ExpertShape { count, top_k, ff } = shape;
        let normalize = (self.gating != Gating::SoftmaxSelected).then_some(self.eps);
        let routing = Routing { top_k, gating: self.gating, normalize, scale: 1.0, groups: None };
        ExpertConfig {
            count,
            ff,
            routing,
            bias: false,
            shared: None,
            biased: false,
            aside: false,
            clamp: None,
            latent: None,
            hashed: false,
        }
    }
}

/// The number of experts a file names; none and 0 are a model without.
///
/// # Errors
/// [`ModelError::Config`] naming the key.
pub(crate) fn expert_count(keys: &Keys) -> Result<Option<usize>> {
    Ok(first(keys, &COUNTS)?.filter(|&count| count > 0))
}

fn first(keys: &Keys, names: &[Key]) -> Result<Option<usize>> {
    for &key in names {
        if let Some(value) = keys.usize(key)? {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// Which groups of experts stay. One group is none; a GGUF says 0 for what it does not say.
fn groups(keys: &Keys, gating: Gating) -> Result<Option<Groups>> {
    let count = match keys.usize(GROUPS)? {
        Some(0) if keys.naming() == Naming::HuggingFace => {
            return Err(ModelError::config(keys.spell(GROUPS), "at least 1 group of experts", 0));
        }
        None | Some(0 | 1) => return Ok(None),
        Some(count) => count,
    };
    let top = keys.need(KEPT, keys.usize(KEPT)?)?;
    let score = if gating == Gating::Softmax { GroupScore::Best } else { GroupScore::BestTwo };
    Ok(Some(Groups { count, top, score }))
}

/// Width of the shared experts, which are stored as one.
///
/// # Errors
/// [`ModelError::Config`] when together they are wider than any layer.
pub(crate) fn shared_experts(keys: &Keys) -> Result<Option<usize>> {
    const COUNT: Key = Key { gguf: "expert_shared_count", hf: "n_shared_experts" };
    let count = keys.usize(COUNT)?.unwrap_or(0);
    let ff = keys.need(FF, keys.usize(FF)?)?;
    match ff.checked_mul(count) {
        Some(0) => Ok(None),
        Some(width) if width <= Config::MAX_WIDTH => Ok(Some(width)),
        _ => Err(ModelError::config(keys.spell(COUNT), "a number of experts that fits memory", count)),
    }
}

/// Reads the mixture that an architecture's layers share; without selection bias or shared expert. `ffn` is the width of the feed-forward
/// block, which counts where no key names that of the experts.
///
/// # Errors
/// [`ModelError::Config`] naming the key.
pub(crate) fn experts(keys: &Keys, defaults: RouterDefaults, ffn: Option<usize>) -> Result<ExpertConfig> {
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
        count: keys.need(COUNTS[0], first(keys, &COUNTS)?)?,
        ff: keys.need(FF, keys.usize(FF)?.or(ffn))?,
        routing: Routing {
            top_k: keys.need(USED[0], first(keys, &USED)?)?,
            gating,
            // What is a softmax of the selected ones sums to 1.
            normalize: (normalize && gating != Gating::SoftmaxSelected).then_some(defaults.eps),
            // Converters write 0 for "none".
            scale: keys.f64(SCALE)?.filter(|&s| s != 0.0).unwrap_or(1.0) as f32,
            groups: groups(keys, gating)?,
        },
        bias: false,
        shared: None,
        biased: false,
        aside: false,
        clamp: None,
        latent: None,
        hashed: false,
    })
}
