//! glm4moe: GLM-4.5, 4.6 and 4.7, and their Air versions.
//!
//! h = x + Wo attn(rope(nq(Wq n1(x) + bq)), rope(nk(Wk n1(x) + bk)), Wv n1(x) + bv), where the larger models norm every
//! head of q and k; half of every head rotates. The first layers are dense: x' = h + swiglu(n2(h)). In all others
//! x' = h + s * sum over chosen experts of w_e swiglu_e(n2(h)) + swiglu_shared(n2(h)): the k experts of the largest
//! p + b, p the sigmoid of Wr n2(h), within the best groups of experts; w is p over the sum of the chosen ones, s a
//! constant. Blocks behind the layers, which predict further tokens, are not read.

use hob_compute::{Activation, Gating};

use super::{Architecture, Entry, llama};
use crate::blocks::{BranchNorms, DenseStyle, FINAL_NORM, FfnNames, GqaStyle, HybridStyle, MoeNames, QkNorm};
use crate::config::{Biases, DenseShape, ExpertConfig, Key, Keys, RouterDefaults};
use crate::config::{dense, drafting, experts, same_layers, shared_experts};
use crate::needs::{Name, Naming, Needs};
use crate::{Config, Result};

pub(super) const ENTRY: Entry = Entry {
    aliases: &["glm4_moe"],
    biases: Biases { qkv: true, out: false, ffn: false },
    computes: &["num_local_experts"],
    defaults: &[("partial_rotary_factor", 0.5)],
    shape,
    ..Entry::new("glm4moe", config, build)
};

const ROUTER: RouterDefaults = RouterDefaults { gating: Gating::Sigmoid, normalize: true, eps: 1e-20 };

fn config(keys: &Keys) -> Result<Config> {
    const DENSE: Key = Key { gguf: "leading_dense_block_count", hf: "first_k_dense_replace" };
    const NORMS: Key = Key { gguf: "", hf: "use_qk_norm" };
    const BIASES: Key = Key { gguf: "", hf: "attention_bias" };
    let mut config = dense(keys, &ENTRY)?;
    drafting(keys, &mut config)?;
    // Multimodal files rotate by three positions.
    keys.refuse([(Key { gguf: "rope.dimension_sections", hf: "" }, None)])?;
    let (biases, head_norms) = match keys.naming() {
        Naming::Gguf => (llama::biases(keys)?, keys.has_tensor("blk.0.attn_q_norm.weight")),
        Naming::HuggingFace => (
            Biases { qkv: keys.bool(BIASES)?.unwrap_or(false), ..Biases::default() },
            keys.bool(NORMS)?.unwrap_or(false),
        ),
    };
    same_layers(&mut config, biases);
    config.layers.iter_mut().for_each(|layer| layer.head_norms = head_norms);
    let first = keys.need(DENSE, keys.usize(DENSE)?)?;
    let mixture = ExpertConfig { shared: shared_experts(keys)?, ..experts(keys, ROUTER, None)? };
    for (i, layer) in config.layers.iter_mut().enumerate().skip(first) {
        let bias = match keys.naming() {
            Naming::Gguf => keys.has_tensor(&format!("blk.{i}.exp_probs_b.bias")),
            Naming::HuggingFace => true,
        };
        layer.experts = Some(ExpertConfig { bias, ..mixture.clone() });
    }
    Ok(config)
}

/// One dense layer, no norms of heads, and a shared expert of an expert's width: as the Air versions.
fn shape(config: &mut Config, shape: &DenseShape) {
    config.ropes[0].rotary = shape.head_dim / 2;
    let mixture = shape.experts.map(|e| ExpertConfig { bias: true, shared: Some(e.ff), ..ROUTER.mixture(e) });
    config.layers.iter_mut().skip(1).for_each(|layer| layer.experts.clone_from(&mixture));
}

const STYLE: HybridStyle = HybridStyle {
    mixer_norms: DenseStyle::PRE_NORM.attention_norms,
    attention: GqaStyle { qk_norm: QkNorm::AsConfigured, ..GqaStyle::PLAIN },
    ffn_norms: BranchNorms::pre(Name { gguf: "post_attention_norm", hf: "post_attention_layernorm" }),
    ffn: FfnNames::USUAL,
    experts: MoeNames::USUAL,
    activation: Activation::Silu,
};

fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    STYLE.decoder(config, FINAL_NORM, needs)
}
