//! granite: Granite 3.x and 4, dense.
//!
//! llama with four multipliers: x = e * embedding; h = x + r * Wo attn(rope(Wq n1(x)), rope(Wk n1(x)), Wv n1(x)), scores
//! multiplied by a; x' = h + r * swiglu(n2(h)); logits = W n(x') / l. GGUF files pair rotated dimensions (2i, 2i+1).

use hob_compute::RopePairs;

use super::{Architecture, Entry, llama};
use crate::blocks::DenseStyle;
use crate::config::{Key, Keys, dense, same_layers, scale};
use crate::needs::Needs;
use crate::{Config, Result};

pub(super) const ENTRY: Entry = Entry {
    gguf_pairs: RopePairs::Interleaved,
    computes: &["attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"],
    ..Entry::new("granite", config, build)
};

fn config(keys: &Keys) -> Result<Config> {
    const SCORES: Key = Key { gguf: "attention.scale", hf: "attention_multiplier" };
    const EMBEDDING: Key = Key { gguf: "embedding_scale", hf: "embedding_multiplier" };
    const RESIDUAL: Key = Key { gguf: "residual_scale", hf: "residual_multiplier" };
    const LOGITS: Key = Key { gguf: "logit_scale", hf: "logits_scaling" };
    const ROTATES: Key = Key { gguf: "rope.scaling.finetuned", hf: "" };
    let mut config = dense(keys, &ENTRY)?;
    same_layers(&mut config, llama::biases(keys)?);
    config.embedding_scale = scale(keys, EMBEDDING)?;
    config.residual_scale = scale(keys, RESIDUAL)?;
    config.logit_scale = 1.0 / scale(keys, LOGITS)?;
    let scores = keys.f64(SCORES)?.filter(|&v| v != 0.0);
    // GGUF files without positions say so with a key that elsewhere means something else.
    let rotates = keys.bool(ROTATES)?.unwrap_or(true);
    for layer in &mut config.layers {
        layer.scale = scores.map_or(layer.scale, |v| v as f32);
        layer.rope = layer.rope.filter(|_| rotates);
    }
    Ok(config)
}

fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    DenseStyle::PRE_NORM.decoder(config, needs)
}
