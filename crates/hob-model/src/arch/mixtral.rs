//! mixtral: Mixtral 8x7B and 8x22B. GGUF files of theirs, and of other mixtures of llamas, are of architecture llama.
//!
//! h = x + Wo attn(rope(Wq n1(x)), rope(Wk n1(x)), Wv n1(x)); x' = h + sum over the k most probable experts of
//! p_e swiglu_e(n2(h)), p the softmax of Wr n2(h) over all experts, divided by the sum of the chosen ones. Where the
//! config names a sliding window all layers slide.

use hob_compute::{Activation, Gating, RopePairs};

use super::{Architecture, Entry, llama};
use crate::blocks::{DenseStyle, FINAL_NORM, FfnNames, HybridStyle, MoeNames};
use crate::config::{DenseShape, Keys, RouterDefaults};
use crate::config::{dense, expert_count, experts, same_layers, windows};
use crate::needs::{Name, Needs};
use crate::stacked::ExpertNames;
use crate::{Config, Result};

pub(super) const ENTRY: Entry = Entry {
    gguf_pairs: RopePairs::Interleaved,
    computes: &["num_local_experts"],
    shape,
    ..Entry::new("mixtral", config, build)
};

const ROUTER: RouterDefaults = RouterDefaults { gating: Gating::Softmax, normalize: true, eps: 0.0 };

fn config(keys: &Keys) -> Result<Config> {
    let mut config = dense(keys, &ENTRY)?;
    same_layers(&mut config, llama::biases(keys)?);
    windows(keys, &mut config, |_| true)?;
    mixtures(keys, &mut config)?;
    Ok(config)
}

/// Makes every layer a mixture if the file names experts.
pub(super) fn mixtures(keys: &Keys, config: &mut Config) -> Result<()> {
    if expert_count(keys)?.is_none() {
        return Ok(());
    }
    for layer in &mut config.layers {
        layer.experts = Some(experts(keys, ROUTER, Some(layer.ffn))?);
    }
    Ok(())
}

pub(super) fn shape(config: &mut Config, shape: &DenseShape) {
    let mixture = shape.experts.map(|e| ROUTER.mixture(e));
    config.layers.iter_mut().for_each(|layer| layer.experts.clone_from(&mixture));
}

const EXPERTS: MoeNames = MoeNames {
    router: Name { gguf: "ffn_gate_inp", hf: "block_sparse_moe.gate" },
    gate: Some(ExpertNames {
        gguf: "ffn_gate_exps",
        hf_each: "block_sparse_moe.experts.{}.w1",
        hf_stacked: "mlp.experts.gate_up_proj",
        gguf_fused: Some("ffn_gate_up_exps"),
        hf_turns: false,
    }),
    up: ExpertNames {
        gguf: "ffn_up_exps",
        hf_each: "block_sparse_moe.experts.{}.w3",
        hf_stacked: "mlp.experts.gate_up_proj",
        gguf_fused: Some("ffn_gate_up_exps"),
        hf_turns: false,
    },
    down: ExpertNames {
        gguf: "ffn_down_exps",
        hf_each: "block_sparse_moe.experts.{}.w2",
        hf_stacked: "mlp.experts.down_proj",
        gguf_fused: None,
        hf_turns: false,
    },
    ..MoeNames::USUAL
};

const STYLE: HybridStyle = HybridStyle {
    mixer_norms: DenseStyle::PRE_NORM.attention_norms,
    attention: DenseStyle::PRE_NORM.attention,
    ffn_norms: DenseStyle::PRE_NORM.ffn_norms,
    ffn: FfnNames::USUAL,
    experts: EXPERTS,
    activation: Activation::Silu,
};

pub(super) fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    STYLE.decoder(config, FINAL_NORM, needs)
}
