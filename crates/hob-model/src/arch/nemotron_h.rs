//! nemotron_h and nemotron_h_moe: Nemotron-H and Nemotron 3, every layer of which is one sublayer of four kinds.
//!
//! x += f(n(x)), where f is a selective state space as in mamba2, attention whose positions are not encoded,
//! Wd relu(Wu x)^2, or a mixture of such blocks: experts by sigmoid plus a bias for the selection, weights divided by
//! their sum and scaled, in larger models between projections to a narrower width and back, beside a shared expert.

use hob_compute::{Activation, Gating, SsmShape};
use serde_json::Value as Json;

use super::{Architecture, Entry};
use crate::blocks::{BranchNorms, FINAL_NORM, FfnNames, GqaNames, GqaStyle, HybridStyle, MoeNames};
use crate::config::{
    DenseShape, ExpertConfig, Key, Keys, LayerConfig, Mixer, RouterDefaults, SsmConfig, SsmKeys,
    attention_scale,
};
use crate::config::{drafting, experts, frame, ssm};
use crate::needs::{Name, Needs};
use crate::stacked::ExpertNames;
use crate::{Config, ModelError, Naming, Result};

pub(super) const ENTRY: Entry = Entry {
    activation: Activation::ReluSquared,
    defaults: &[("layer_norm_epsilon", 1e-5)],
    shape,
    ..Entry::new("nemotron_h", config, build)
};

pub(super) const MOE: Entry =
    Entry { computes: &["num_local_experts"], ..Entry { name: "nemotron_h_moe", ..ENTRY } };

const NAMES: SsmKeys =
    SsmKeys { heads: "mamba_num_heads", head_dim: "mamba_head_dim", state_dim: "ssm_state_size" };
const ROUTER: RouterDefaults = RouterDefaults { gating: Gating::Sigmoid, normalize: true, eps: 1e-20 };
const PATTERN: &str = "hybrid_override_pattern";
const TYPES: &str = "layers_block_type";
const FFN: Key = Key { gguf: "feed_forward_length", hf: "intermediate_size" };
const KV_HEADS: Key = Key { gguf: "attention.head_count_kv", hf: "num_key_value_heads" };

#[derive(Copy, Clone, PartialEq, Eq)]
enum Kind {
    Ssm,
    Attention,
    Mlp,
    Experts,
}

fn config(keys: &Keys) -> Result<Config> {
    let hf = |hf| (Key { gguf: "", hf }, Some(0.0));
    keys.refuse(["attention_bias", "mlp_bias", "use_bias", "mamba_proj_bias"].map(hf))?;
    for (key, wanted) in [("mlp_hidden_act", "relu2"), ("mamba_hidden_act", "silu")] {
        match keys.json(key) {
            Some(found) if found != wanted => return Err(ModelError::config(key, wanted, found)),
            _ => (),
        }
    }
    let kinds = kinds(keys)?;
    let first = |kind| kinds.iter().position(|&k| k == kind);
    let ssm = first(Kind::Ssm).map(|layer| ssm(keys, NAMES, layer)).transpose()?;
    let attention = first(Kind::Attention).map(|_| attention(keys)).transpose()?;
    let mixture = first(Kind::Experts).map(|layer| mixture(keys, layer)).transpose()?;
    let ffn = keys.per_layer(FFN, kinds.len())?;
    // Hugging Face has one name for both.
    let entry = if mixture.is_some() { &MOE } else { &ENTRY };
    let mut config = frame(keys, entry, |i| {
        Ok(match (kinds[i], ssm, attention, &mixture) {
            (Kind::Ssm, Some(ssm), ..) => LayerConfig::single(Mixer::Ssm(ssm)),
            (Kind::Attention, _, Some(heads), _) => heads_of(keys, (i, kinds.len()), heads)?,
            (Kind::Experts, .., Some(mixture)) => {
                LayerConfig { experts: Some(mixture.clone()), ..LayerConfig::single(Mixer::None) }
            }
            _ => {
                let ffn = keys.need(FFN, ffn.as_ref().map(|ffn| ffn[i]))?;
                LayerConfig { ffn, ..LayerConfig::single(Mixer::None) }
            }
        })
    })?;
    drafting(keys, &mut config)?;
    Ok(config)
}

/// What each layer is.
fn kinds(keys: &Keys) -> Result<Vec<Kind>> {
    const LAYERS: Key = Key { gguf: "block_count", hf: "num_hidden_layers" };
    let count = keys.need(LAYERS, keys.usize(LAYERS)?)?;
    let kinds = spelled(keys, count)?;
    match kinds.len() == count {
        true => Ok(kinds),
        false => Err(ModelError::config(
            keys.spell(LAYERS),
            format!("{}, one for each kind of layer", kinds.len()),
            count,
        )),
    }
}

/// A config.json says it in letters or in words, a GGUF by the sizes that each of its `count` layers has.
fn spelled(keys: &Keys, count: usize) -> Result<Vec<Kind>> {
    if keys.naming() == Naming::Gguf {
        let kv_heads = keys.need(KV_HEADS, keys.per_layer(KV_HEADS, count)?)?;
        let ffn = keys.need(FFN, keys.per_layer(FFN, count)?)?;
        let kind = |(i, (kv_heads, ffn)): (usize, (usize, usize))| match (kv_heads, ffn) {
            (1.., _) => Kind::Attention,
            (0, 0) => Kind::Ssm,
            _ if keys.has_tensor(&format!("blk.{i}.ffn_gate_inp.weight")) => Kind::Experts,
            _ => Kind::Mlp,
        };
        return Ok(kv_heads.into_iter().zip(ffn).enumerate().map(kind).collect());
    }
    if let Some(pattern) = keys.json(PATTERN) {
        let expected = "letters: M, *, - and E (state space, attention, feed-forward, experts)";
        let letter = |c| match c {
            'M' => Ok(Kind::Ssm),
            '*' => Ok(Kind::Attention),
            '-' => Ok(Kind::Mlp),
            'E' => Ok(Kind::Experts),
            other => Err(ModelError::config(PATTERN, expected, format!("'{other}'"))),
        };
        let letters = pattern.as_str().ok_or_else(|| ModelError::config(PATTERN, expected, pattern))?;
        return letters.chars().map(letter).collect();
    }
    let word = |v: &Json| match v.as_str() {
        Some("mamba") => Ok(Kind::Ssm),
        Some("attention") => Ok(Kind::Attention),
        Some("mlp") => Ok(Kind::Mlp),
        Some("moe") => Ok(Kind::Experts),
        _ => Err(ModelError::config(TYPES, "mamba, attention, mlp or moe", v)),
    };
    match keys.json(TYPES).and_then(Json::as_array) {
        Some(words) => words.iter().map(word).collect(),
        None => Err(ModelError::config(PATTERN, "the kinds of layers", "nothing")),
    }
}

/// Query heads and their dimensions.
fn attention(keys: &Keys) -> Result<(usize, usize)> {
    const HEADS: Key = Key { gguf: "attention.head_count", hf: "num_attention_heads" };
    const HEAD_DIM: Key = Key { gguf: "attention.key_length", hf: "head_dim" };
    let need = |key| keys.need(key, keys.usize(key)?);
    Ok((need(HEADS)?, need(HEAD_DIM)?))
}

/// Layer `i` of `count`, which attends.
fn heads_of(
    keys: &Keys,
    (i, count): (usize, usize),
    (heads, head_dim): (usize, usize),
) -> Result<LayerConfig> {
    let kv_heads = keys.need(KV_HEADS, keys.per_layer(KV_HEADS, count)?)?[i];
    let scale = attention_scale(head_dim);
    Ok(LayerConfig { heads, kv_heads, head_dim, scale, ..LayerConfig::single(Mixer::Attention) })
}

/// The mixture that layers share; `layer` is one of them.
fn mixture(keys: &Keys, layer: usize) -> Result<ExpertConfig> {
    const SHARED: Key =
        Key { gguf: "expert_shared_feed_forward_length", hf: "moe_shared_expert_intermediate_size" };
    const LATENT: Key = Key { gguf: "", hf: "moe_latent_size" };
    let shared = keys.usize(SHARED)?.filter(|&width| width > 0);
    let (bias, latent) = match keys.naming() {
        Naming::HuggingFace => (true, keys.usize(LATENT)?),
        Naming::Gguf => (
            keys.has_tensor(&format!("blk.{layer}.exp_probs_b.bias")),
            keys.tensor_shape(&format!("blk.{layer}.ffn_latent_down.weight")).map(|[rows, _]| rows),
        ),
    };
    Ok(ExpertConfig { bias, shared, latent, ..experts(keys, ROUTER, None)? })
}

/// Kinds in turn as in Nemotron 3 Nano, with its heads: a state space and a feed-forward block or a mixture, and attention
/// before every sixth layer.
fn shape(config: &mut Config, given: &DenseShape) {
    let shape = SsmShape { heads: 64, head_dim: 64, state_dim: 128, groups: 8 };
    let ssm = SsmConfig { shape, taps: 4, conv_bias: true, limit: [0.0, f32::INFINITY] };
    let mixture =
        given.experts.map(|e| ExpertConfig { bias: true, shared: Some(2 * e.ff), ..ROUTER.mixture(e) });
    config.ropes.clear();
    for (i, layer) in config.layers.iter_mut().enumerate() {
        *layer = match i % 6 {
            5 => LayerConfig { mixer: Mixer::Attention, rope: None, ffn: 0, single: true, ..layer.clone() },
            0 | 2 | 4 => LayerConfig::single(Mixer::Ssm(ssm)),
            _ => {
                let ffn = if mixture.is_some() { 0 } else { given.ffn };
                LayerConfig { ffn, experts: mixture.clone(), ..LayerConfig::single(Mixer::None) }
            }
        };
    }
}

/// The one norm of a layer.
const NORM: BranchNorms = BranchNorms::pre(Name { gguf: "attn_norm", hf: "norm" });

/// Of mamba2 too.
pub(super) const STYLE: HybridStyle = HybridStyle {
    mixer_norms: NORM,
    attention: GqaStyle {
        names: GqaNames {
            q: Name { gguf: "attn_q", hf: "mixer.q_proj" },
            k: Name { gguf: "attn_k", hf: "mixer.k_proj" },
            v: Name { gguf: "attn_v", hf: "mixer.v_proj" },
            out: Name { gguf: "attn_output", hf: "mixer.o_proj" },
            ..GqaNames::USUAL
        },
        ..GqaStyle::PLAIN
    },
    ffn_norms: NORM,
    ffn: FfnNames {
        gate: None,
        up: Name { gguf: "ffn_up", hf: "mixer.up_proj" },
        down: Name { gguf: "ffn_down", hf: "mixer.down_proj" },
        ..FfnNames::USUAL
    },
    experts: MoeNames {
        router: Name { gguf: "ffn_gate_inp", hf: "mixer.gate" },
        bias: Name { gguf: "exp_probs_b.bias", hf: "mixer.gate.e_score_correction_bias" },
        gate: None,
        up: ExpertNames {
            gguf: "ffn_up_exps",
            hf_each: "mixer.experts.{}.up_proj",
            hf_stacked: "mixer.experts.up_proj",
            gguf_fused: None,
            hf_turns: false,
        },
        down: ExpertNames {
            gguf: "ffn_down_exps",
            hf_each: "mixer.experts.{}.down_proj",
            hf_stacked: "mixer.experts.down_proj",
            gguf_fused: None,
            hf_turns: false,
        },
        latent: [
            Name { gguf: "ffn_latent_down", hf: "mixer.fc1_latent_proj" },
            Name { gguf: "ffn_latent_up", hf: "mixer.fc2_latent_proj" },
        ],
        shared: FfnNames {
            gate: None,
            up: Name { gguf: "ffn_up_shexp", hf: "mixer.shared_experts.up_proj" },
            down: Name { gguf: "ffn_down_shexp", hf: "mixer.shared_experts.down_proj" },
            ..FfnNames::USUAL
        },
        ..MoeNames::USUAL
    },
    activation: Activation::ReluSquared,
};

fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    STYLE.decoder(config, FINAL_NORM, needs)
}
