//! lfm2 and lfm2moe: LFM2 and LFM2.5, most of whose layers mix positions by a short convolution.
//!
//! x += op(n1(x)); x += ffn(n2(x)). op is Wo (C * conv(B * u)) with [B | C | u] = Wi n1(x), the convolution depthwise
//! over 3 positions, or in some layers attention with normed heads of q and k. ffn is swiglu; in lfm2moe all but the
//! first layers are mixtures: experts by sigmoid plus a bias for the selection, weights divided by their sum.

use hob_compute::{Activation, Gating};

use super::{Architecture, Entry};
use crate::blocks::{BranchNorms, FfnNames, GqaNames, GqaStyle, HybridStyle, MoeNames, QkNorm};
use crate::config::{DenseShape, ExpertConfig, Key, Keys, Mixer, RouterDefaults, dense, experts};
use crate::needs::{Name, Needs};
use crate::stacked::ExpertNames;
use crate::{Config, ModelError, Naming, Result};

pub(super) const ENTRY: Entry = Entry {
    tied: true,
    defaults: &[("rope_theta", 1_000_000.0), ("norm_eps", 1e-5)],
    shape,
    ..Entry::new("lfm2", config, build)
};

pub(super) const MOE: Entry = Entry {
    aliases: &["lfm2_moe"],
    tied: true,
    computes: &["num_local_experts"],
    defaults: &[("rope_theta", 1_000_000.0), ("norm_eps", 1e-5)],
    shape: moe_shape,
    ..Entry::new("lfm2moe", moe_config, build)
};

const ROUTER: RouterDefaults = RouterDefaults { gating: Gating::Sigmoid, normalize: true, eps: 1e-6 };

fn config(keys: &Keys) -> Result<Config> {
    let mut config = common(keys, &ENTRY)?;
    let ffn = hidden_width(keys, config.layers[0].ffn)?;
    if keys.naming() == Naming::HuggingFace {
        config.layers.iter_mut().for_each(|layer| layer.ffn = ffn);
    }
    Ok(config)
}

fn moe_config(keys: &Keys) -> Result<Config> {
    const DENSE: Key = Key { gguf: "leading_dense_block_count", hf: "num_dense_layers" };
    const BIAS: Key = Key { gguf: "", hf: "use_expert_bias" };
    let mut config = common(keys, &MOE)?;
    let first = keys.usize(DENSE)?.unwrap_or(0);
    let mixture = experts(keys, ROUTER, None)?;
    let biased = keys.bool(BIAS)?.unwrap_or(true);
    for (i, layer) in config.layers.iter_mut().enumerate().skip(first) {
        let bias = match keys.naming() {
            Naming::Gguf => keys.has_tensor(&format!("blk.{i}.exp_probs_b.bias")),
            Naming::HuggingFace => biased,
        };
        layer.experts = Some(ExpertConfig { bias, ..mixture.clone() });
    }
    Ok(config)
}

/// What both share: attention where the config says so, convolutions elsewhere.
fn common(keys: &Keys, entry: &Entry) -> Result<Config> {
    const TAPS: Key = Key { gguf: "shortconv.l_cache", hf: "conv_L_cache" };
    const TIED: Key = Key { gguf: "", hf: "tie_embedding" };
    keys.refuse([(Key { gguf: "shortconv.bias", hf: "conv_bias" }, Some(0.0))])?;
    let mut config = dense(keys, entry)?;
    if keys.naming() == Naming::HuggingFace && keys.json("tie_word_embeddings").is_none() {
        config.tied = keys.bool(TIED)?.unwrap_or(config.tied);
    }
    let taps = keys.need(TAPS, keys.usize(TAPS)?)?;
    let attends = attends(keys, &config)?;
    for (layer, attends) in config.layers.iter_mut().zip(attends) {
        if !attends {
            layer.mixer = Mixer::ShortConv { taps };
        }
    }
    Ok(config)
}

/// Which layers are attention. A GGUF gives the others no KV heads.
fn attends(keys: &Keys, config: &Config) -> Result<Vec<bool>> {
    const TYPES: &str = "layer_types";
    const ATTENTION: &str = "full_attn_idxs";
    let layers = &config.layers;
    if keys.naming() == Naming::Gguf {
        return Ok(layers.iter().map(|l| l.kv_heads > 0).collect());
    }
    if let Some(types) = keys.json(TYPES) {
        let kinds = types.as_array().filter(|kinds| kinds.len() == layers.len());
        let kind = |v: &serde_json::Value| match v.as_str() {
            Some("conv") => Ok(false),
            Some("full_attention") => Ok(true),
            _ => Err(ModelError::config(TYPES, "conv or full_attention", v)),
        };
        let expected = || ModelError::config(TYPES, format!("a list of {} kinds", layers.len()), types);
        return kinds.ok_or_else(expected)?.iter().map(kind).collect();
    }
    let Some(list) = keys.json(ATTENTION).and_then(|v| v.as_array()) else {
        return Ok(vec![true; layers.len()]);
    };
    let attends = |i: usize| list.iter().any(|v| v.as_u64() == Some(i as u64));
    Ok((0..layers.len()).map(attends).collect())
}

/// The width that config.json means: two thirds of what it says, times a multiplier, rounded up, unless it says not to.
fn hidden_width(keys: &Keys, given: usize) -> Result<usize> {
    let key = |hf| Key { gguf: "", hf };
    let given = keys.usize(key("block_ff_dim"))?.unwrap_or(given);
    if keys.naming() == Naming::Gguf || !keys.bool(key("block_auto_adjust_ff_dim"))?.unwrap_or(true) {
        return Ok(given);
    }
    let multiplier = keys.f64(key("block_ffn_dim_multiplier"))?.unwrap_or(1.0);
    let multiple = keys.usize(key("block_multiple_of"))?.unwrap_or(256);
    if multiple == 0 || given > Config::MAX_WIDTH || !(multiplier.is_finite() && multiplier > 0.0) {
        let found = format!("{given}, {multiplier}, {multiple}");
        return Err(ModelError::config("block_*", "a width, a multiplier and a multiple above 0", found));
    }
    // `as` truncates like the reference's int().
    Ok(((multiplier * (2 * given / 3) as f64) as usize).div_ceil(multiple).saturating_mul(multiple))
}

/// Two convolutions, then attention, and so on.
fn shape(config: &mut Config, _: &DenseShape) {
    for (_, layer) in config.layers.iter_mut().enumerate().filter(|(i, _)| i % 3 != 2) {
        layer.mixer = Mixer::ShortConv { taps: 3 };
    }
}

/// As [`shape`], two dense layers and then mixtures.
fn moe_shape(config: &mut Config, given: &DenseShape) {
    shape(config, given);
    let mixture = given.experts.map(|e| ExpertConfig { bias: true, ..ROUTER.mixture(e) });
    config.layers.iter_mut().skip(2).for_each(|layer| layer.experts.clone_from(&mixture));
}

const EXPERTS: MoeNames = MoeNames {
    router: Name { gguf: "ffn_gate_inp", hf: "feed_forward.gate" },
    bias: Name { gguf: "exp_probs_b.bias", hf: "feed_forward.expert_bias" },
    gate: Some(ExpertNames {
        gguf: "ffn_gate_exps",
        hf_each: "feed_forward.experts.{}.w1",
        hf_stacked: "feed_forward.experts.gate_up_proj",
        gguf_fused: Some("ffn_gate_up_exps"),
        hf_turns: false,
    }),
    up: ExpertNames {
        gguf: "ffn_up_exps",
        hf_each: "feed_forward.experts.{}.w3",
        hf_stacked: "feed_forward.experts.gate_up_proj",
        gguf_fused: Some("ffn_gate_up_exps"),
        hf_turns: false,
    },
    down: ExpertNames {
        gguf: "ffn_down_exps",
        hf_each: "feed_forward.experts.{}.w2",
        hf_stacked: "feed_forward.experts.down_proj",
        gguf_fused: None,
        hf_turns: false,
    },
    ..MoeNames::USUAL
};

pub(super) const STYLE: HybridStyle = HybridStyle {
    mixer_norms: BranchNorms::pre(Name { gguf: "attn_norm", hf: "operator_norm" }),
    attention: GqaStyle {
        names: GqaNames {
            out: Name { gguf: "attn_output", hf: "self_attn.out_proj" },
            q_norm: Name { gguf: "attn_q_norm", hf: "self_attn.q_layernorm" },
            k_norm: Name { gguf: "attn_k_norm", hf: "self_attn.k_layernorm" },
            ..GqaNames::USUAL
        },
        qk_norm: QkNorm::PerHead,
        sinks: None,
        v_norm: false,
    },
    ffn_norms: BranchNorms::pre(Name { gguf: "ffn_norm", hf: "ffn_norm" }),
    ffn: FfnNames {
        gate: Some(Name { gguf: "ffn_gate", hf: "feed_forward.w1" }),
        up: Name { gguf: "ffn_up", hf: "feed_forward.w3" },
        down: Name { gguf: "ffn_down", hf: "feed_forward.w2" },
        ..FfnNames::USUAL
    },
    experts: EXPERTS,
    activation: Activation::Silu,
};

/// The norm before the head.
pub(super) const FINAL_NORM: Name = Name { gguf: "token_embd_norm", hf: "model.embedding_norm" };

fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    STYLE.decoder(config, FINAL_NORM, needs)
}
