//! gpt-oss: gpt-oss-20b and 120b.
//!
//! h = x + Wo attn(rope(Wq n1(x) + bq), rope(Wk n1(x) + bk), Wv n1(x) + bv) + bo, where every head has a logit without a
//! value (a sink) in its softmax, and every other layer slides, from the first on. x' = h + sum over the k experts of the
//! largest Wr n2(h) + br, weighted by the softmax of these k: Wd (g / (1 + exp(-alpha g)) * (u + 1)) + bd,
//! g = Wg n2(h) + bg and u = Wu n2(h) + bu, g at most `limit` and u within it. The corners of YaRN are not rounded; GGUF
//! has no key for that. Checkpoints hold the experts in MXFP4, gate and up in turns.

use hob_compute::{Activation, Gating};

use super::{Architecture, Entry, llama};
use crate::blocks::{BranchNorms, DenseStyle, FINAL_NORM, FfnNames, GqaStyle, HybridStyle, MoeNames};
use crate::config::{Biases, Clamp, DenseShape, ExpertConfig, Key, Keys, RouterDefaults};
use crate::config::{dense, experts, same_layers, windows};
use crate::needs::{Name, Naming, Needs};
use crate::stacked::ExpertNames;
use crate::{Config, ModelError, Result, RopeScaling};

pub(super) const ENTRY: Entry = Entry {
    aliases: &["gpt_oss"],
    biases: Biases { qkv: true, out: true, ffn: false },
    computes: &["num_local_experts", "quantization_config"],
    shape,
    ..Entry::new("gpt-oss", config, build)
};

const ROUTER: RouterDefaults = RouterDefaults { gating: Gating::SoftmaxSelected, normalize: false, eps: 0.0 };
/// Of the published models.
const CLAMP: Clamp = Clamp { alpha: 1.702, limit: 7.0, plus_one: true };
const WINDOW: usize = 128;

fn config(keys: &Keys) -> Result<Config> {
    const BIASES: Key = Key { gguf: "", hf: "attention_bias" };
    const ALPHA: Key = Key { gguf: "", hf: "swiglu_alpha" };
    const LIMIT: Key = Key { gguf: "", hf: "swiglu_limit" };
    quantization(keys)?;
    let mut config = dense(keys, &ENTRY)?;
    let biases = match keys.naming() {
        Naming::Gguf => llama::biases(keys)?,
        Naming::HuggingFace => match keys.bool(BIASES)?.unwrap_or(true) {
            true => ENTRY.biases,
            false => Biases::default(),
        },
    };
    same_layers(&mut config, biases);
    windows(keys, &mut config, slides)?;
    if let (Naming::Gguf, RopeScaling::Yarn(yarn)) = (keys.naming(), &mut config.ropes[0].scaling) {
        yarn.truncate = false;
    }
    let (mut clamp, named) = (CLAMP, keys.naming() == Naming::HuggingFace);
    if named {
        clamp.alpha = keys.f64(ALPHA)?.map_or(clamp.alpha, |v| v as f32);
        clamp.limit = keys.f64(LIMIT)?.map_or(clamp.limit, |v| v as f32);
    }
    for layer in &mut config.layers {
        let mixture = experts(keys, ROUTER, Some(layer.ffn))?;
        layer.experts = Some(ExpertConfig { biased: true, clamp: Some(clamp), ..mixture });
    }
    Ok(config)
}

/// Checkpoints in MXFP4 say so; no other way of quantizing is read.
fn quantization(keys: &Keys) -> Result<()> {
    const KEY: &str = "quantization_config";
    let Some(found) = keys.json(KEY) else { return Ok(()) };
    match found.get("quant_method").and_then(|m| m.as_str()) {
        Some("mxfp4") => Ok(()),
        _ => Err(ModelError::config(KEY, "none, or one whose quant_method is mxfp4", found)),
    }
}

fn slides(i: usize) -> bool {
    i.is_multiple_of(2)
}

fn shape(config: &mut Config, shape: &DenseShape) {
    for (i, layer) in config.layers.iter_mut().enumerate() {
        layer.window = slides(i).then_some(shape.window.unwrap_or(WINDOW));
        let mixture = shape.experts.map(|e| ROUTER.mixture(e));
        layer.experts = mixture.map(|e| ExpertConfig { biased: true, clamp: Some(CLAMP), ..e });
    }
}

const EXPERTS: MoeNames = MoeNames {
    router: Name { gguf: "ffn_gate_inp", hf: "mlp.router" },
    gate: Some(ExpertNames { hf_turns: true, ..MoeNames::GATE }),
    up: ExpertNames { hf_turns: true, ..MoeNames::USUAL.up },
    down: ExpertNames { hf_turns: true, ..MoeNames::USUAL.down },
    ..MoeNames::USUAL
};

const STYLE: HybridStyle = HybridStyle {
    mixer_norms: DenseStyle::PRE_NORM.attention_norms,
    attention: GqaStyle {
        sinks: Some(Name { gguf: "attn_sinks.weight", hf: "self_attn.sinks" }),
        ..GqaStyle::PLAIN
    },
    ffn_norms: BranchNorms::pre(Name { gguf: "post_attention_norm", hf: "post_attention_layernorm" }),
    ffn: FfnNames::USUAL,
    experts: EXPERTS,
    activation: Activation::Silu,
};

fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    STYLE.decoder(config, FINAL_NORM, needs)
}
