//! The keys every dense decoder shares: widths, heads, context, norm epsilon, head tying.
//!
//! It must not know what a single architecture adds; that stands in the architecture's file.

use hob_compute::RopePairs;
use serde_json::Value as Json;

use super::keys::{Key, Keys};
use super::rope::rope;
use super::{Biases, Config, LayerConfig, Mixer};
use crate::{ModelError, Naming, Result};

const VOCAB: Key = Key { gguf: "vocab_size", hf: "vocab_size" };
const DIM: Key = Key { gguf: "embedding_length", hf: "hidden_size" };
const LAYERS: Key = Key { gguf: "block_count", hf: "num_hidden_layers" };
const FFN: Key = Key { gguf: "feed_forward_length", hf: "intermediate_size" };
const HEADS: Key = Key { gguf: "attention.head_count", hf: "num_attention_heads" };
const KV_HEADS: Key = Key { gguf: "attention.head_count_kv", hf: "num_key_value_heads" };
const HEAD_DIM: Key = Key { gguf: "attention.key_length", hf: "head_dim" };
const VALUE_DIM: Key = Key { gguf: "attention.value_length", hf: "v_head_dim" };
const CTX_TRAIN: Key = Key { gguf: "context_length", hf: "max_position_embeddings" };
const RMS_EPS: Key = Key { gguf: "attention.layer_norm_rms_epsilon", hf: "rms_norm_eps" };

/// Keys that change the forward pass of a dense decoder and are not computed: each with its neutral value.
const FOREIGN: &[(Key, Option<f64>)] = &[
    (Key { gguf: "expert_count", hf: "num_local_experts" }, Some(0.0)),
    (Key { gguf: "attention.scale", hf: "attention_multiplier" }, None),
    (Key { gguf: "attention.clamp_kqv", hf: "clip_qkv" }, Some(0.0)),
    (Key { gguf: "attention.max_alibi_bias", hf: "alibi" }, Some(0.0)),
    (Key { gguf: "attn_logit_softcapping", hf: "attn_logit_softcapping" }, Some(0.0)),
    (Key { gguf: "final_logit_softcapping", hf: "final_logit_softcapping" }, Some(0.0)),
    (Key { gguf: "logit_scale", hf: "logits_scaling" }, Some(1.0)),
    (Key { gguf: "residual_scale", hf: "residual_multiplier" }, Some(1.0)),
    (Key { gguf: "embedding_scale", hf: "embedding_multiplier" }, Some(1.0)),
    (Key { gguf: "quantization_config", hf: "quantization_config" }, None),
];

/// Reads what all dense decoders share; every layer is alike, without biases or windows.
/// `gguf_pairs` is the rotary pairing of the architecture's GGUF files.
///
/// # Errors
/// [`ModelError::Config`] naming the key.
pub(crate) fn dense(keys: &Keys, name: &str, gguf_pairs: RopePairs) -> Result<Config> {
    keys.refuse(FOREIGN)?;
    activation(keys)?;
    let dim = keys.need(DIM, keys.usize(DIM)?)?;
    let count = keys.need(LAYERS, keys.usize(LAYERS)?)?;
    if count > Config::MAX_LAYERS {
        return Err(ModelError::config(keys.spell(LAYERS), format!("at most {}", Config::MAX_LAYERS), count));
    }
    let heads = keys.need(HEADS, keys.per_layer(HEADS, count)?)?;
    let kv_heads = keys.per_layer(KV_HEADS, count)?.unwrap_or_else(|| heads.clone());
    let ffn = keys.need(FFN, keys.per_layer(FFN, count)?)?;
    let Some(&first) = heads.first().filter(|&&h| h > 0) else {
        return Err(ModelError::config(keys.spell(HEADS), "at least one head in at least one layer", 0));
    };
    let head_dim = match keys.usize(HEAD_DIM)? {
        Some(d) => d,
        None if dim.is_multiple_of(first) => dim / first,
        None => return Err(ModelError::config(keys.spell(DIM), format!("a multiple of {first} heads"), dim)),
    };
    if let Some(v) = keys.usize(VALUE_DIM)?.filter(|&v| v != head_dim) {
        return Err(ModelError::config(keys.spell(VALUE_DIM), format!("the key length {head_dim}"), v));
    }
    let layers = (0..count).map(|i| LayerConfig {
        mixer: Mixer::Attention,
        heads: heads[i],
        kv_heads: kv_heads[i],
        head_dim,
        window: None,
        rope: Some(0),
        ffn: ffn[i],
        biases: Biases::default(),
    });
    Ok(Config {
        arch: name.to_string(),
        vocab: vocab(keys)?,
        dim,
        layers: layers.collect(),
        ropes: vec![rope(keys, head_dim, gguf_pairs)?],
        ctx_train: keys.need(CTX_TRAIN, keys.usize(CTX_TRAIN)?)?,
        rms_eps: keys.need(RMS_EPS, keys.f64(RMS_EPS)?)? as f32,
        tied: tied(keys)?,
    })
}

/// Sets the same biases in every layer.
pub(crate) fn same_layers(config: &mut Config, biases: Biases) {
    config.layers.iter_mut().for_each(|layer| layer.biases = biases);
}

/// Rows of the embedding table; the key, where the format has it, must agree.
fn vocab(keys: &Keys) -> Result<usize> {
    let table = match keys.naming() {
        Naming::Gguf => "token_embd.weight",
        Naming::HuggingFace => "model.embed_tokens.weight",
    };
    let rows = keys.tensor_shape(table).map(|[rows, _]| rows);
    match (keys.usize(VOCAB)?, rows) {
        (Some(vocab), Some(rows)) if vocab != rows => {
            Err(ModelError::config(keys.spell(VOCAB), format!("{rows}, the rows of {table}"), vocab))
        }
        (Some(vocab), _) => Ok(vocab),
        (None, Some(rows)) if keys.naming() == Naming::Gguf => Ok(rows),
        _ => keys.need(VOCAB, None),
    }
}

/// GGUF files leave `output.weight` out when the head is tied; config.json says so (false where the key is absent).
fn tied(keys: &Keys) -> Result<bool> {
    match keys.naming() {
        Naming::Gguf => Ok(!keys.has_tensor("output.weight")),
        Naming::HuggingFace => Ok(keys.bool(Key { gguf: "", hf: "tie_word_embeddings" })?.unwrap_or(false)),
    }
}

/// The feed-forward activation must be SiLU; GGUF files of these architectures do not name one.
fn activation(keys: &Keys) -> Result<()> {
    match keys.json("hidden_act") {
        None => Ok(()),
        Some(Json::String(name)) if name == "silu" || name == "swish" => Ok(()),
        Some(other) => Err(ModelError::config(
            "hidden_act",
            "silu (hob does not compute others for this architecture)",
            other,
        )),
    }
}
