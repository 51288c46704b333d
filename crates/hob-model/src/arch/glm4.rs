//! glm4: GLM-4-0414 9B and 32B, dense.
//!
//! h = x + n2(Wo attn(rope(Wq n1(x) + bq), rope(Wk n1(x) + bk), Wv n1(x) + bv)); x' = h + n4(Wd(silu(g) * u)),
//! [g; u] = Wgu n3(h); logits = W n(x'). Half of every head rotates, in pairs (2i, 2i+1) in both formats.

use hob_compute::RopePairs;

use super::{Architecture, Entry, llama};
use crate::blocks::{BranchNorms, DenseStyle};
use crate::config::{Biases, Fused, Key, Keys, dense, same_layers};
use crate::needs::{Name, Naming, Needs};
use crate::{Config, Result};

pub(super) const ENTRY: Entry = Entry {
    gguf_pairs: RopePairs::Interleaved,
    hf_pairs: RopePairs::Interleaved,
    biases: Biases { qkv: true, out: false, ffn: false },
    fused: Fused { qkv: false, gate_up: true },
    defaults: &[("partial_rotary_factor", 0.5)],
    ..Entry::new("glm4", config, build)
};

fn config(keys: &Keys) -> Result<Config> {
    const BIAS: Key = Key { gguf: "", hf: "attention_bias" };
    let mut config = dense(keys, &ENTRY)?;
    // Blocks that predict tokens ahead would be counted as layers, and multimodal files pair halves.
    keys.refuse([
        (Key { gguf: "nextn_predict_layers", hf: "" }, Some(0.0)),
        (Key { gguf: "rope.dimension_sections", hf: "" }, None),
    ])?;
    let biases = match keys.naming() {
        Naming::Gguf => llama::biases(keys)?,
        Naming::HuggingFace => Biases { qkv: keys.bool(BIAS)?.unwrap_or(true), ..Biases::default() },
    };
    same_layers(&mut config, biases);
    Ok(config)
}

fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    let style = DenseStyle {
        attention_norms: BranchNorms::both(
            Name { gguf: "attn_norm", hf: "input_layernorm" },
            Name { gguf: "post_attention_norm", hf: "post_self_attn_layernorm" },
        ),
        ffn_norms: BranchNorms::both(
            Name { gguf: "ffn_norm", hf: "post_attention_layernorm" },
            Name { gguf: "post_ffw_norm", hf: "post_mlp_layernorm" },
        ),
        ..DenseStyle::PRE_NORM
    };
    style.decoder(config, needs)
}
