//! deepseek2: DeepSeek-V2 and V2-Lite, V3 and R1, Kimi-K2, GLM-4.7-Flash and their kin.
//!
//! h = x + Wo latent_attention(n1(x)), see [`crate::blocks`]: every head's query is made from the stream, or from a normed
//! compression of it, and only its last dimensions rotate, in neighboring pairs. The first layers are dense:
//! x' = h + swiglu(n2(h)). In all others x' = h + s * sum over chosen experts of w_e swiglu_e(n2(h)) + swiglu_shared(n2(h)).
//! V2 chooses by softmax, within the groups whose best expert is best if there are groups, and does not normalize; V3 by
//! sigmoid plus a bias, within the groups whose two best are best, and normalizes. Scores are scaled by
//! (nope + rotary)^-1/2 and the square of YaRN's scale. Blocks behind the layers, which predict further tokens, are not
//! read.

use hob_compute::{Activation, Gating, GroupScore, RopePairs};

use super::{Architecture, Entry};
use crate::blocks::{BranchNorms, DenseStyle, FINAL_NORM, FfnNames, GqaStyle, HybridStyle, MoeNames};
use crate::config::{DenseShape, ExpertConfig, Key, Keys, LatentConfig, RouterDefaults, attention_scale};
use crate::config::{dense, drafting, experts, latent_yarn, rope, shared_experts};
use crate::needs::{Name, Naming, Needs};
use crate::{Config, Mixer, ModelError, Result};

pub(super) const ENTRY: Entry = Entry {
    aliases: &["deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe_lite"],
    gguf_pairs: RopePairs::Interleaved,
    hf_pairs: RopePairs::Interleaved,
    computes: &["num_local_experts", "v_head_dim"],
    shape,
    ..Entry::new("deepseek2", config, build)
};

const fn router(gating: Gating) -> RouterDefaults {
    RouterDefaults { gating, normalize: matches!(gating, Gating::Sigmoid), eps: 1e-20 }
}

fn config(keys: &Keys) -> Result<Config> {
    const BIASES: Key = Key { gguf: "", hf: "attention_bias" };
    const EVERY: Key = Key { gguf: "", hf: "moe_layer_freq" };
    const INTERLEAVED: Key = Key { gguf: "", hf: "rope_interleave" };
    keys.refuse([(BIASES, Some(0.0)), (EVERY, Some(1.0))])?;
    let mut config = dense(keys, &ENTRY)?;
    drafting(keys, &mut config)?;
    let latent = latent(keys)?;
    let mut table = rope(keys, &ENTRY, latent.rotary)?;
    if keys.naming() == Naming::HuggingFace && !keys.bool(INTERLEAVED)?.unwrap_or(true) {
        table.pairs = RopePairs::Half;
    }
    if table.rotary != latent.rotary {
        let (key, expected) = ("rotated dimensions", format!("all {} of them", latent.rotary));
        return Err(ModelError::config(key, expected, table.rotary));
    }
    let stretch = latent_yarn(keys, &mut table)?;
    config.ropes = vec![table];
    attend(&mut config, latent, stretch);
    let first = dense_layers(keys, config.layers.len())?;
    if first < config.layers.len() {
        let mixture = mixture(keys)?;
        for (i, layer) in config.layers.iter_mut().enumerate().skip(first) {
            let bias = match keys.naming() {
                Naming::Gguf => keys.has_tensor(&format!("blk.{i}.exp_probs_b.bias")),
                Naming::HuggingFace => mixture.bias,
            };
            layer.experts = Some(ExpertConfig { bias, ..mixture.clone() });
        }
    }
    Ok(config)
}

/// Gives all layers this attention.
fn attend(config: &mut Config, latent: LatentConfig, stretch: f32) {
    for layer in &mut config.layers {
        layer.mixer = Mixer::Latent(latent);
        (layer.kv_heads, layer.head_dim) = (1, latent.width());
        layer.scale = attention_scale(latent.nope + latent.rotary) * stretch;
    }
}

fn latent(keys: &Keys) -> Result<LatentConfig> {
    const Q_RANK: Key = Key { gguf: "attention.q_lora_rank", hf: "q_lora_rank" };
    const RANK: Key = Key { gguf: "attention.kv_lora_rank", hf: "kv_lora_rank" };
    const ROTARY: Key = Key { gguf: "rope.dimension_count", hf: "qk_rope_head_dim" };
    const NOPE: Key = Key { gguf: "", hf: "qk_nope_head_dim" };
    // Files older than the absorbed form have the head's own dimensions under the usual keys; 0 is no dimension.
    const KEY: Key = Key { gguf: "attention.key_length_mla", hf: "" };
    const OLD_KEY: Key = Key { gguf: "attention.key_length", hf: "" };
    const VALUE: Key = Key { gguf: "attention.value_length_mla", hf: "v_head_dim" };
    const OLD_VALUE: Key = Key { gguf: "attention.value_length", hf: "v_head_dim" };
    let rank = keys.need(RANK, keys.usize(RANK)?)?;
    let rotary = keys.need(ROTARY, keys.usize(ROTARY)?)?;
    let (nope, value) = match keys.naming() {
        Naming::HuggingFace => (keys.need(NOPE, keys.usize(NOPE)?)?, keys.need(VALUE, keys.usize(VALUE)?)?),
        Naming::Gguf => {
            let own = |key| Ok::<_, ModelError>(keys.usize(key)?.filter(|&length| length > 0));
            let key = if own(KEY)?.is_some() { KEY } else { OLD_KEY };
            let length = keys.need(KEY, own(key)?)?;
            let nope = length.checked_sub(rotary).filter(|&nope| nope > 0).ok_or_else(|| {
                let expected = format!("more than the {rotary} rotated dimensions");
                ModelError::config(keys.spell(key), expected, length)
            })?;
            (nope, keys.need(VALUE, own(VALUE)?.or(own(OLD_VALUE)?))?)
        }
    };
    // A file says 0, or nothing, where queries are made from the stream.
    let q_rank = keys.usize(Q_RANK)?.filter(|&rank| rank > 0);
    Ok(LatentConfig { q_rank, rank, nope, rotary, value })
}

/// Layers before the first mixture.
fn dense_layers(keys: &Keys, layers: usize) -> Result<usize> {
    const DENSE: Key = Key { gguf: "leading_dense_block_count", hf: "first_k_dense_replace" };
    let first = keys.need(DENSE, keys.usize(DENSE)?)?;
    if first <= layers {
        return Ok(first);
    }
    Err(ModelError::config(keys.spell(DENSE), format!("at most the {layers} layers"), first))
}

/// The mixture of all layers that have one; in a GGUF without the bias, which is by layer there.
fn mixture(keys: &Keys) -> Result<ExpertConfig> {
    const SCORING: Key = Key { gguf: "", hf: "scoring_func" };
    const METHOD: Key = Key { gguf: "", hf: "topk_method" };
    const NORMALIZE: Key = Key { gguf: "expert_weights_norm", hf: "norm_topk_prob" };
    // GGUF files name the function, older ones are of V2. What transformers 5 writes does not: there it is the model's.
    let gating = match keys.str(SCORING)?.as_deref() {
        Some("softmax") => Gating::Softmax,
        Some("sigmoid") => Gating::Sigmoid,
        None if matches!(keys.arch(), "deepseek2" | "deepseek_v2") => Gating::Softmax,
        None => Gating::Sigmoid,
        Some(other) => return Err(ModelError::config(SCORING.hf, "softmax or sigmoid", other)),
    };
    let mut mixture = ExpertConfig { shared: shared_experts(keys)?, ..experts(keys, router(gating), None)? };
    mixture.bias = mixture.routing.gating == Gating::Sigmoid;
    if keys.naming() == Naming::Gguf && keys.bool(NORMALIZE)?.is_none() {
        mixture.routing.normalize = None;
    }
    let method = keys.str(METHOD)?;
    match (method.as_deref(), &mut mixture.routing.groups) {
        (None, _) => {}
        (Some("greedy"), groups) => {
            *groups = None;
            mixture.bias = false;
        }
        (Some("group_limited_greedy"), groups) => {
            groups.iter_mut().for_each(|groups| groups.score = GroupScore::Best);
            mixture.bias = false;
        }
        (Some("noaux_tc"), groups) => {
            groups.iter_mut().for_each(|groups| groups.score = GroupScore::BestTwo);
            mixture.bias = true;
        }
        (Some(other), _) => {
            let expected = "greedy, group_limited_greedy or noaux_tc";
            return Err(ModelError::config(METHOD.hf, expected, other));
        }
    }
    Ok(mixture)
}

/// One dense layer, and two shared experts of an expert's width: as V2-Lite.
fn shape(config: &mut Config, shape: &DenseShape) {
    let Some(latent) = shape.latent else { return };
    config.ropes[0].rotary = latent.rotary;
    attend(config, latent, 1.0);
    let defaults = RouterDefaults { normalize: false, ..router(Gating::Softmax) };
    let mixture = shape.experts.map(|e| {
        let mut mixture = defaults.mixture(e);
        mixture.routing.normalize = None;
        ExpertConfig { shared: Some(2 * e.ff), ..mixture }
    });
    config.layers.iter_mut().skip(1).for_each(|layer| layer.experts.clone_from(&mixture));
}

const STYLE: HybridStyle = HybridStyle {
    mixer_norms: DenseStyle::PRE_NORM.attention_norms,
    attention: GqaStyle::PLAIN,
    ffn_norms: BranchNorms::pre(Name { gguf: "ffn_norm", hf: "post_attention_layernorm" }),
    ffn: FfnNames::USUAL,
    experts: MoeNames::USUAL,
    activation: Activation::Silu,
};

fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    STYLE.decoder(config, FINAL_NORM, needs)
}
