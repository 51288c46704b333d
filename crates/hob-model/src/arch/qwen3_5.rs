//! qwen35, qwen35moe and qwen3next: Qwen3.5, Qwen3.6 and Qwen3-Next, three of four layers of which are Gated DeltaNets.
//!
//! x += op(n1(x)); x += ffn(n2(x)), norms zero-centred. op is Wo norm(delta(silu(conv(Wqkv n)), Wb n, Wa n)) * silu(Wz n),
//! or in every fourth layer Wo (attn(rope(nq(Wq n)), rope(nk(Wk n)), Wv n) * sigmoid(Wg n)), where a quarter of every
//! head rotates. ffn is swiglu; or, in the mixtures, the k most probable experts by a softmax, divided by their sum, and
//! a shared expert times sigmoid(w . n). Positions of images are not read. A block that predicts further tokens (MTP) is
//! known and left alone.

use hob_compute::{Activation, DeltaShape, Gating, KeyHeads};

use super::{Architecture, Entry, qwen3_moe};
use crate::blocks::{BranchNorms, DenseStyle, FINAL_NORM, FfnNames, GqaStyle, HybridStyle, MoeNames, QkNorm};
use crate::config::{
    DeltaConfig, DeltaStored, DenseShape, ExpertConfig, Fused, Key, Keys, Mixer, OutputGate, RouterDefaults,
};
use crate::config::{dense, drafting, experts};
use crate::needs::{Name, Needs};
use crate::{Config, ModelError, Naming, Result};

pub(super) const DENSE: Entry = Entry {
    aliases: &["qwen3_5_text", "qwen3_5"],
    defaults: DEFAULTS,
    shape,
    ..Entry::new("qwen35", config, build)
};

pub(super) const MOE: Entry = Entry {
    aliases: &["qwen3_5_moe_text", "qwen3_5_moe"],
    computes: &["num_local_experts"],
    defaults: DEFAULTS,
    shape: moe_shape,
    ..Entry::new("qwen35moe", moe_config, build)
};

pub(super) const NEXT: Entry = Entry {
    aliases: &["qwen3_next"],
    computes: &["num_local_experts"],
    defaults: DEFAULTS,
    shape: moe_shape,
    ..Entry::new("qwen3next", next_config, build)
};

const DEFAULTS: &[(&str, f64)] = &[("partial_rotary_factor", 0.25)];
const ROUTER: RouterDefaults = RouterDefaults { gating: Gating::Softmax, normalize: true, eps: 0.0 };
/// Every how many layers attention comes.
const INTERVAL: usize = 4;

fn config(keys: &Keys) -> Result<Config> {
    common(keys, &DENSE, DeltaStored::Apart)
}

fn moe_config(keys: &Keys) -> Result<Config> {
    mixtures(keys, common(keys, &MOE, DeltaStored::Apart)?)
}

fn next_config(keys: &Keys) -> Result<Config> {
    mixtures(keys, common(keys, &NEXT, DeltaStored::ByKeyHead)?)
}

/// What all three share: gated attention where the file says so, delta rules elsewhere.
fn common(keys: &Keys, entry: &Entry, stored: DeltaStored) -> Result<Config> {
    let hf = |hf, neutral| (Key { gguf: "", hf }, Some(neutral));
    keys.refuse([hf("attention_bias", 0.0), hf("attn_output_gate", 1.0)])?;
    let mut config = dense(keys, entry)?;
    drafting(keys, &mut config)?;
    let delta = delta(keys, stored)?;
    let recurrent = recurrent(keys, &config)?;
    for (layer, recurrent) in config.layers.iter_mut().zip(recurrent) {
        // What looks like fused q, k and v is a delta rule's.
        layer.fused = Fused::default();
        layer.gate = OutputGate::Values;
        if recurrent {
            layer.mixer = Mixer::DeltaNet(delta);
        }
    }
    Ok(config)
}

/// The heads of the delta rules.
fn delta(keys: &Keys, stored: DeltaStored) -> Result<DeltaConfig> {
    const TAPS: Key = Key { gguf: "ssm.conv_kernel", hf: "linear_conv_kernel_dim" };
    const KEY_HEADS: Key = Key { gguf: "ssm.group_count", hf: "linear_num_key_heads" };
    const VALUE_HEADS: Key = Key { gguf: "ssm.time_step_rank", hf: "linear_num_value_heads" };
    const KEY_DIM: Key = Key { gguf: "ssm.state_size", hf: "linear_key_head_dim" };
    const VALUE_DIM: Key = Key { gguf: "ssm.inner_size", hf: "linear_value_head_dim" };
    let need = |key| keys.need(key, keys.usize(key)?);
    let (value_heads, value_dim) = (need(VALUE_HEADS)?, need(VALUE_DIM)?);
    // A GGUF names the width of all heads together.
    let value_dim = match keys.naming() {
        Naming::HuggingFace => value_dim,
        Naming::Gguf => match value_dim.checked_div(value_heads) {
            Some(dim) if dim * value_heads == value_dim => dim,
            _ => {
                let expected = format!("a multiple of the {value_heads} heads");
                return Err(ModelError::config(keys.spell(VALUE_DIM), expected, value_dim));
            }
        },
    };
    let sharing = match (keys.naming(), stored) {
        // The converter reorders value heads, in the later family only.
        (Naming::Gguf, DeltaStored::Apart) => KeyHeads::Tiled,
        _ => KeyHeads::Grouped,
    };
    let shape =
        DeltaShape { key_heads: need(KEY_HEADS)?, value_heads, key_dim: need(KEY_DIM)?, value_dim, sharing };
    Ok(DeltaConfig { shape, taps: need(TAPS)?, stored })
}

/// Which layers are delta rules.
fn recurrent(keys: &Keys, config: &Config) -> Result<Vec<bool>> {
    const EVERY: Key = Key { gguf: "full_attention_interval", hf: "full_attention_interval" };
    const FLAGS: Key = Key { gguf: "attention.recurrent_layers", hf: "" };
    const TYPES: &str = "layer_types";
    let layers = config.layers.len();
    // The list may count the blocks that predict further tokens.
    if let Some(flags) = keys.flags(FLAGS, layers).or_else(|_| keys.flags(FLAGS, layers + config.drafting))? {
        return Ok(flags);
    }
    if let Some(types) = keys.json(TYPES) {
        let kind = |v: &serde_json::Value| match v.as_str() {
            Some("linear_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => Err(ModelError::config(TYPES, "linear_attention or full_attention", v)),
        };
        let expected = || ModelError::config(TYPES, format!("a list of {layers} kinds"), types);
        let kinds = types.as_array().filter(|kinds| kinds.len() == layers);
        return kinds.ok_or_else(expected)?.iter().map(kind).collect();
    }
    match keys.usize(EVERY)?.unwrap_or(INTERVAL) {
        0 => Err(ModelError::config(keys.spell(EVERY), "at least 1", 0)),
        every => Ok((1..=layers).map(|i| !i.is_multiple_of(every)).collect()),
    }
}

fn mixtures(keys: &Keys, mut config: Config) -> Result<Config> {
    const SHARED: Key =
        Key { gguf: "expert_shared_feed_forward_length", hf: "shared_expert_intermediate_size" };
    let shared = keys.usize(SHARED)?.filter(|&width| width > 0);
    let mixture = ExpertConfig { shared, ..experts(keys, ROUTER, None)? };
    let sparse = qwen3_moe::sparse(keys, config.layers.len())?;
    for (layer, sparse) in config.layers.iter_mut().zip(sparse) {
        layer.experts = sparse.then(|| mixture.clone());
    }
    Ok(config)
}

/// Heads as in Qwen3.5-35B-A3B.
fn shape(config: &mut Config, given: &DenseShape) {
    let sharing = if config.arch == NEXT.name { KeyHeads::Grouped } else { KeyHeads::Tiled };
    let stored = if config.arch == NEXT.name { DeltaStored::ByKeyHead } else { DeltaStored::Apart };
    let shape = DeltaShape { key_heads: 16, value_heads: 32, key_dim: 128, value_dim: 128, sharing };
    config.ropes[0].rotary = given.head_dim / 4;
    for (i, layer) in config.layers.iter_mut().enumerate() {
        layer.gate = OutputGate::Values;
        if !(i + 1).is_multiple_of(INTERVAL) {
            layer.mixer = Mixer::DeltaNet(DeltaConfig { shape, taps: 4, stored });
        }
    }
}

/// As [`shape`], with a shared expert of an expert's width.
fn moe_shape(config: &mut Config, given: &DenseShape) {
    shape(config, given);
    let mixture = given.experts.map(|e| ExpertConfig { shared: Some(e.ff), ..ROUTER.mixture(e) });
    config.layers.iter_mut().for_each(|layer| layer.experts.clone_from(&mixture));
}

const STYLE: HybridStyle = HybridStyle {
    mixer_norms: DenseStyle::PRE_NORM.attention_norms,
    attention: GqaStyle { qk_norm: QkNorm::PerHead, ..GqaStyle::PLAIN },
    ffn_norms: BranchNorms::pre(Name { gguf: "post_attention_norm", hf: "post_attention_layernorm" }),
    ffn: FfnNames::USUAL,
    experts: MoeNames {
        shared: FfnNames {
            gate: Some(Name { gguf: "ffn_gate_shexp", hf: "mlp.shared_expert.gate_proj" }),
            up: Name { gguf: "ffn_up_shexp", hf: "mlp.shared_expert.up_proj" },
            gate_up: Name { gguf: "ffn_up_shexp", hf: "mlp.shared_expert.gate_up_proj" },
            down: Name { gguf: "ffn_down_shexp", hf: "mlp.shared_expert.down_proj" },
        },
        shared_gate: Some(Name { gguf: "ffn_gate_inp_shexp", hf: "mlp.shared_expert_gate" }),
        ..MoeNames::USUAL
    },
    activation: Activation::Silu,
};

fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    needs.zero_centred_norms();
    STYLE.decoder(config, FINAL_NORM, needs)
}
