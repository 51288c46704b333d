//! llama: Llama 2 and 3.x, SmolLM2, and many derivatives; in GGUF files, mixtures of them as well (see mixtral).
//!
//! h = x + Wo attn(rope(Wq n1(x)), rope(Wk n1(x)), Wv n1(x)); x' = h + swiglu(n2(h)); logits = W n(x').
//! Biases where the config asks for them; the head is tied in small models. GGUF files pair rotated dimensions
//! (2i, 2i+1) because their converter permutes the rows of q and k; Hugging Face checkpoints pair halves.

use hob_compute::RopePairs;

use super::{Architecture, Entry, mixtral};
use crate::blocks::DenseStyle;
use crate::config::{Biases, Key, Keys, dense, same_layers};
use crate::needs::{Naming, Needs};
use crate::{Config, Result};

pub(super) const ENTRY: Entry = Entry {
    gguf_pairs: RopePairs::Interleaved,
    computes: &["num_local_experts"],
    shape: mixtral::shape,
    ..Entry::new("llama", config, build)
};

fn config(keys: &Keys) -> Result<Config> {
    let mut config = dense(keys, &ENTRY)?;
    same_layers(&mut config, biases(keys)?);
    mixtral::mixtures(keys, &mut config)?;
    Ok(config)
}

/// config.json has a switch for all attention and one for all feed-forward biases; a GGUF just has the tensors.
pub(super) fn biases(keys: &Keys) -> Result<Biases> {
    if keys.naming() == Naming::Gguf {
        let has = |tensor| keys.has_tensor(tensor);
        return Ok(Biases {
            qkv: has("blk.0.attn_q.bias") || has("blk.0.attn_qkv.bias"),
            out: has("blk.0.attn_output.bias"),
            ffn: has("blk.0.ffn_down.bias"),
        });
    }
    let attention = keys.bool(Key { gguf: "", hf: "attention_bias" })?.unwrap_or(false);
    let ffn = keys.bool(Key { gguf: "", hf: "mlp_bias" })?.unwrap_or(false);
    Ok(Biases { qkv: attention, out: attention, ffn })
}

pub(super) fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    match config.layers.iter().any(|layer| layer.experts.is_some()) {
        true => mixtral::build(config, needs),
        false => DenseStyle::PRE_NORM.decoder(config, needs),
    }
}
