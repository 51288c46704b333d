//! gemma3: Gemma 3, the language model.
//!
//! x = embedding * sqrt(D); h = x + n2(Wo attn(rope(nq(Wq n1(x))), rope(nk(Wk n1(x))), Wv n1(x)));
//! x' = h + n4(geglu(n3(h))); logits = W n(x'), with a tied head. nq and nk norm every head. Five of six layers slide and
//! rotate by a base of 10,000; the sixth sees all positions and rotates by a base of 1,000,000, scaled in larger models.
//! Norms are zero-centred: checkpoints store weights less one, GGUF files do not.

use hob_compute::Activation;

use super::{Architecture, Entry, llama};
use crate::blocks::{BranchNorms, DenseStyle, GqaStyle, QkNorm};
use crate::config::{
    DenseShape, Key, Keys, attention_scale, dense, local_rope, same_layers, softcap, windows,
};
use crate::needs::{Name, Naming, Needs};
use crate::{Config, Result, RopeConfig, RopeScaling};

pub(super) const ENTRY: Entry = Entry {
    aliases: &["gemma3_text"],
    activation: Activation::GeluTanh,
    tied: true,
    nested_ropes: true,
    computes: &["final_logit_softcapping"],
    // The config.json of multimodal checkpoints leaves out what its class defaults to.
    defaults: &[
        ("vocab_size", 262_208.0),
        ("num_attention_heads", 8.0),
        ("num_key_value_heads", 4.0),
        ("head_dim", 256.0),
        ("max_position_embeddings", 131_072.0),
        ("rms_norm_eps", 1e-6),
        ("rope_theta", 1e6),
        ("query_pre_attn_scalar", 256.0),
        ("sliding_window", 4096.0),
    ],
    shape,
    ..Entry::new("gemma3", config, build)
};

/// Every so many layers one sees all positions.
const PATTERN: usize = 6;
const LOCAL_BASE: f64 = 10_000.0;
/// The window of the smallest models.
const WINDOW: usize = 512;

fn config(keys: &Keys) -> Result<Config> {
    const SOFTCAP: Key = Key { gguf: "final_logit_softcapping", hf: "final_logit_softcapping" };
    let mut config = dense(keys, &ENTRY)?;
    same_layers(&mut config, llama::biases(keys)?);
    windows(keys, &mut config, slides)?;
    let head_dim = config.layers[0].head_dim;
    let local = local_rope(keys, &ENTRY, head_dim, "rope_local_base_freq", LOCAL_BASE)?;
    finish(&mut config, local);
    config.logit_softcap = softcap(keys, SOFTCAP)?;
    let scale = score_scale(keys, &config, 62)?;
    config.layers.iter_mut().for_each(|layer| layer.scale = scale);
    Ok(config)
}

/// What scores are multiplied by. GGUF files do not carry it: `1 / sqrt(head_dim)`, except in the model of `large` layers,
/// whose heads are wider than its stream divided by their number.
pub(super) fn score_scale(keys: &Keys, config: &Config, large: usize) -> Result<f32> {
    const SCALAR: Key = Key { gguf: "attention.query_pre_attn_scalar", hf: "query_pre_attn_scalar" };
    let layer = &config.layers[0];
    Ok(match keys.f64(SCALAR)? {
        Some(scalar) => scalar.powf(-0.5) as f32,
        None if keys.naming() == Naming::Gguf && config.layers.len() == large => {
            attention_scale(config.dim / layer.heads)
        }
        None => attention_scale(layer.head_dim),
    })
}

fn slides(i: usize) -> bool {
    !(i + 1).is_multiple_of(PATTERN)
}

/// The embedding's scale, and the second table for the layers that slide.
fn finish(config: &mut Config, local: RopeConfig) {
    config.embedding_scale = (config.dim as f32).sqrt();
    config.ropes.push(local);
    let sliding = config.layers.iter_mut().filter(|layer| layer.window.is_some());
    sliding.for_each(|layer| layer.rope = Some(1));
}

fn shape(config: &mut Config, shape: &DenseShape) {
    let window = shape.window.unwrap_or(WINDOW);
    for (i, layer) in config.layers.iter_mut().enumerate() {
        layer.window = slides(i).then_some(window);
    }
    let base = shape.local_rope_base.unwrap_or(LOCAL_BASE);
    let local = RopeConfig { base, scaling: RopeScaling::None, magnitude: 1.0, ..config.ropes[0].clone() };
    finish(config, local);
}

/// The layer of Gemma 2 and 3, but for the norms of q and k.
pub(super) const STYLE: DenseStyle = DenseStyle {
    attention_norms: BranchNorms::both(
        Name { gguf: "attn_norm", hf: "input_layernorm" },
        Name { gguf: "post_attention_norm", hf: "post_attention_layernorm" },
    ),
    ffn_norms: BranchNorms::both(
        Name { gguf: "ffn_norm", hf: "pre_feedforward_layernorm" },
        Name { gguf: "post_ffw_norm", hf: "post_feedforward_layernorm" },
    ),
    activation: Activation::GeluTanh,
    ..DenseStyle::PRE_NORM
};

fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    needs.zero_centred_norms();
    let attention = GqaStyle { qk_norm: QkNorm::PerHead, ..GqaStyle::PLAIN };
    DenseStyle { attention, ..STYLE }.decoder(config, needs)
}
