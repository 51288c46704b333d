//! The keys every dense decoder shares: widths, heads, context, norm epsilon, head tying.
//!
//! It must not know what a single architecture adds; that stands in the architecture's file.

use hob_compute::Activation;
use serde_json::Value as Json;

use super::keys::{Key, Keys};
use super::rope::rope;
use super::{Biases, Config, Fused, LayerConfig, Mixer, OutputGate, ValueSource, attention_scale};
use crate::arch::Entry;
use crate::{ModelError, Naming, Result};

const VOCAB: Key = Key { gguf: "vocab_size", hf: "vocab_size" };
const DIM: Key = Key { gguf: "embedding_length", hf: "hidden_size" };
const LAYERS: Key = Key { gguf: "block_count", hf: "num_hidden_layers" };
const FFN: Key = Key { gguf: "feed_forward_length", hf: "intermediate_size" };
const EXPERT_FFN: Key = Key { gguf: "expert_feed_forward_length", hf: "moe_intermediate_size" };
const HEADS: Key = Key { gguf: "attention.head_count", hf: "num_attention_heads" };
const KV_HEADS: Key = Key { gguf: "attention.head_count_kv", hf: "num_key_value_heads" };
const HEAD_DIM: Key = Key { gguf: "attention.key_length", hf: "head_dim" };
const VALUE_DIM: Key = Key { gguf: "attention.value_length", hf: "v_head_dim" };
const CTX_TRAIN: Key = Key { gguf: "context_length", hf: "max_position_embeddings" };
/// The same fact under all its names.
const EPS: [Key; 3] = [
    Key { gguf: "attention.layer_norm_rms_epsilon", hf: "rms_norm_eps" },
    Key { gguf: "attention.layer_norm_epsilon", hf: "norm_eps" },
    Key { gguf: "attention.layer_norm_epsilon", hf: "layer_norm_epsilon" },
];

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
    (Key { gguf: "attention.temperature_scale", hf: "attn_temperature_tuning" }, Some(0.0)),
    (Key { gguf: "use_bidirectional_attention", hf: "use_bidirectional_attention" }, Some(0.0)),
    (Key { gguf: "quantization_config", hf: "quantization_config" }, None),
];

/// Reads what all dense decoders share; every layer is alike, without biases or windows, and nothing is scaled or capped.
/// Keys that `entry` computes itself are left to its own reader.
///
/// # Errors
/// [`ModelError::Config`] naming the key.
pub(crate) fn dense(keys: &Keys, entry: &Entry) -> Result<Config> {
    let count = layer_count(keys)?;
    let dim = keys.need(DIM, keys.usize(DIM)?)?;
    let heads = keys.need(HEADS, keys.per_layer(HEADS, count)?)?;
    let kv_heads = keys.per_layer(KV_HEADS, count)?.unwrap_or_else(|| heads.clone());
    // Where all layers are mixtures, a file may name the width of their experts only.
    let ffn = match keys.per_layer(FFN, count)? {
        Some(ffn) => ffn,
        None => keys.need(FFN, keys.per_layer(EXPERT_FFN, count)?)?,
    };
    let Some(&first) = heads.first().filter(|&&h| h > 0) else {
        return Err(ModelError::config(keys.spell(HEADS), "at least one head in at least one layer", 0));
    };
    // Of an architecture that reads the sizes of its heads itself.
    let own_heads = entry.computes.contains(&VALUE_DIM.hf);
    let head_dim = match keys.usize(HEAD_DIM)? {
        Some(d) => d,
        None if dim.is_multiple_of(first) || own_heads => dim / first,
        None => return Err(ModelError::config(keys.spell(DIM), format!("a multiple of {first} heads"), dim)),
    };
    if let Some(v) = keys.usize(VALUE_DIM)?.filter(|&v| v != head_dim && !own_heads) {
        return Err(ModelError::config(keys.spell(VALUE_DIM), format!("the key length {head_dim}"), v));
    }
    let fused = fused(keys, entry);
    let config = frame(keys, entry, |i| {
        Ok(LayerConfig {
            mixer: Mixer::Attention,
            heads: heads[i],
            kv_heads: kv_heads[i],
            head_dim,
            scale: attention_scale(head_dim),
            softcap: None,
            window: None,
            rope: Some(0),
            ffn: ffn[i],
            single: false,
            biases: Biases::default(),
            fused,
            gate: OutputGate::None,
            head_norms: false,
            values: ValueSource::Own,
            output_scale: 1.0,
            experts: None,
        })
    })?;
    Ok(Config { ropes: vec![rope(keys, entry, head_dim)?], ..config })
}

/// Reads what all decoders share, whatever their layers are: `layer(i)` is called for each. No table rotates; nothing is
/// scaled or capped. Keys that `entry` computes itself are left to its own reader.
///
/// # Errors
/// [`ModelError::Config`] naming the key, or what `layer` says.
pub(crate) fn frame(
    keys: &Keys,
    entry: &Entry,
    layer: impl FnMut(usize) -> Result<LayerConfig>,
) -> Result<Config> {
    keys.refuse(FOREIGN.iter().copied().filter(|(key, _)| !entry.computes.contains(&key.hf)))?;
    activation(keys, entry.activation)?;
    let mut eps = None;
    for key in EPS {
        eps = eps.or(keys.f64(key)?);
    }
    Ok(Config {
        arch: entry.name.to_string(),
        vocab: vocab(keys)?,
        dim: keys.need(DIM, keys.usize(DIM)?)?,
        layers: (0..layer_count(keys)?).map(layer).collect::<Result<_>>()?,
        drafting: 0,
        ropes: Vec::new(),
        ctx_train: keys.need(CTX_TRAIN, keys.usize(CTX_TRAIN)?)?,
        rms_eps: keys.need(EPS[0], eps)? as f32,
        tied: tied(keys, entry)?,
        embedding_scale: 1.0,
        layer_input: None,
        streams: None,
        residual_scale: 1.0,
        logit_scale: 1.0,
        logit_softcap: None,
    })
}

/// The number of layers, of which none is read before it is known to be sane.
fn layer_count(keys: &Keys) -> Result<usize> {
    let count = keys.need(LAYERS, keys.usize(LAYERS)?)?;
    match count > Config::MAX_LAYERS {
        true => Err(ModelError::config(keys.spell(LAYERS), format!("at most {}", Config::MAX_LAYERS), count)),
        false => Ok(count),
    }
}

/// Takes the blocks that predict further tokens (MTP) off the layers. A GGUF counts them among its blocks, a config.json
/// does not.
///
/// # Errors
/// [`ModelError::Config`] when no layer would be left.
pub(crate) fn drafting(keys: &Keys, config: &mut Config) -> Result<()> {
    const DRAFTING: Key = Key { gguf: "nextn_predict_layers", hf: "num_nextn_predict_layers" };
    const MTP: Key = Key { gguf: DRAFTING.gguf, hf: "mtp_num_hidden_layers" };
    config.drafting = keys.usize(DRAFTING)?.or(keys.usize(MTP)?).unwrap_or(0);
    if keys.naming() == Naming::Gguf {
        let count = config.layers.len();
        let Some(left) = count.checked_sub(config.drafting).filter(|&left| left > 0) else {
            let expected = format!("fewer than the {count} blocks");
            return Err(ModelError::config(keys.spell(DRAFTING), expected, config.drafting));
        };
        config.layers.truncate(left);
    }
    Ok(())
}

/// A multiplier that changes nothing where the file does not name it.
///
/// # Errors
/// [`ModelError::Config`] when it is no number.
pub(crate) fn scale(keys: &Keys, key: Key) -> Result<f32> {
    Ok(keys.f64(key)?.unwrap_or(1.0) as f32)
}

/// A cap of logits or scores; 0 counts as none.
///
/// # Errors
/// [`ModelError::Config`] when it is no number.
pub(crate) fn softcap(keys: &Keys, key: Key) -> Result<Option<f32>> {
    Ok(keys.f64(key)?.filter(|&v| v != 0.0).map(|v| v as f32))
}

/// Hugging Face checkpoints fuse what their architecture's code does; a GGUF shows it by its tensors' names.
fn fused(keys: &Keys, entry: &Entry) -> Fused {
    match keys.naming() {
        Naming::HuggingFace => entry.fused,
        Naming::Gguf => Fused {
            qkv: keys.has_tensor("blk.0.attn_qkv.weight"),
            gate_up: entry.fused.gate_up && !keys.has_tensor("blk.0.ffn_gate.weight"),
        },
    }
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

/// GGUF files leave `output.weight` out when the head is tied; config.json says so, or its architecture's code assumes
/// it.
fn tied(keys: &Keys, entry: &Entry) -> Result<bool> {
    const TIED: Key = Key { gguf: "", hf: "tie_word_embeddings" };
    match keys.naming() {
        Naming::Gguf => Ok(!keys.has_tensor("output.weight")),
        Naming::HuggingFace => Ok(keys.bool(TIED)?.unwrap_or(entry.tied)),
    }
}

/// The feed-forward activation must be the architecture's; GGUF files of these architectures do not name one.
fn activation(keys: &Keys, wanted: Activation) -> Result<()> {
    let names: &[&str] = match wanted {
        // gpt-oss's config.json says SiLU.
        Activation::Silu | Activation::ClampedSwiglu { .. } => &["silu", "swish"],
        Activation::GeluTanh => &["gelu_pytorch_tanh", "gelu_new"],
        Activation::ReluSquared => &["relu2"],
    };
    let (key, found) = match keys.json("hidden_activation") {
        Some(found) => ("hidden_activation", Some(found)),
        None => ("hidden_act", keys.json("hidden_act")),
    };
    match found {
        None => Ok(()),
        Some(Json::String(name)) if names.contains(&name.as_str()) => Ok(()),
        Some(other) => {
            let expected = format!("{} (hob does not compute others for this architecture)", names[0]);
            Err(ModelError::config(key, expected, other))
        }
    }
}
