//! qwen3moe: Qwen3-30B-A3B, Qwen3-Coder and their kin.
//!
//! Attention as qwen3: h = x + Wo attn(rope(nq(Wq n1(x))), rope(nk(Wk n1(x))), Wv n1(x)). Then
//! x' = h + sum over the k most probable experts of p_e swiglu_e(n2(h)), p the softmax of Wr n2(h) over all experts,
//! divided by the sum of the chosen ones. Some layers may be dense; there is no shared expert.

use hob_compute::{Activation, Gating};

use super::{Architecture, Entry, llama};
use crate::blocks::{DenseStyle, FINAL_NORM, FfnNames, GqaStyle, HybridStyle, MoeNames, QkNorm};
use crate::config::{DenseShape, Key, Keys, RouterDefaults};
use crate::config::{dense, experts, same_layers, upper_windows};
use crate::needs::Needs;
use crate::{Config, ModelError, Naming, Result};

pub(super) const ENTRY: Entry = Entry {
    aliases: &["qwen3_moe"],
    computes: &["num_local_experts"],
    shape,
    ..Entry::new("qwen3moe", config, build)
};

const ROUTER: RouterDefaults = RouterDefaults { gating: Gating::Softmax, normalize: false, eps: 0.0 };

fn config(keys: &Keys) -> Result<Config> {
    let shared = Key { gguf: "expert_shared_feed_forward_length", hf: "shared_expert_intermediate_size" };
    keys.refuse([(shared, Some(0.0))])?;
    let mut config = dense(keys, &ENTRY)?;
    same_layers(&mut config, llama::biases(keys)?);
    upper_windows(keys, &mut config)?;
    let mixture = experts(keys, ROUTER, None)?;
    let sparse = sparse(keys, config.layers.len())?;
    for (layer, sparse) in config.layers.iter_mut().zip(sparse) {
        layer.experts = sparse.then(|| mixture.clone());
    }
    Ok(config)
}

/// Which layers are mixtures. A GGUF shows it by its routers; config.json says every how many, and which not.
pub(super) fn sparse(keys: &Keys, layers: usize) -> Result<Vec<bool>> {
    const STEP: Key = Key { gguf: "", hf: "decoder_sparse_step" };
    const DENSE: &str = "mlp_only_layers";
    if keys.naming() == Naming::Gguf {
        return Ok((0..layers).map(|i| keys.has_tensor(&format!("blk.{i}.ffn_gate_inp.weight"))).collect());
    }
    let step = keys.usize(STEP)?.unwrap_or(1);
    if step == 0 {
        return Err(ModelError::config(STEP.hf, "at least 1", 0));
    }
    let dense = match keys.json(DENSE).map(|v| (v, v.as_array())) {
        None => Vec::new(),
        Some((_, Some(list))) => list.iter().filter_map(|v| v.as_u64()).collect(),
        Some((other, None)) => return Err(ModelError::config(DENSE, "a list of layers", other)),
    };
    Ok((0..layers).map(|i| (i + 1).is_multiple_of(step) && !dense.contains(&(i as u64))).collect())
}

fn shape(config: &mut Config, shape: &DenseShape) {
    let mixture = shape.experts.map(|e| ROUTER.mixture(e));
    config.layers.iter_mut().for_each(|layer| layer.experts.clone_from(&mixture));
}

const STYLE: HybridStyle = HybridStyle {
    mixer_norms: DenseStyle::PRE_NORM.attention_norms,
    attention: GqaStyle { qk_norm: QkNorm::PerHead, ..GqaStyle::PLAIN },
    ffn_norms: DenseStyle::PRE_NORM.ffn_norms,
    ffn: FfnNames::USUAL,
    experts: MoeNames::USUAL,
    activation: Activation::Silu,
};

fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    STYLE.decoder(config, FINAL_NORM, needs)
}
