//! lfm3: LFM3, as LFM2 with norms around its sublayers and a gate behind its attention.
//!
//! x += n2(op(n1(x))); x += n4(swiglu(n3(x))). op is the convolution of lfm2, or Wo (sigmoid(Wg n1(x)) * attention), one
//! gate for every head, with normed heads of q and k. Layers of attention see all positions and rotate part of a head's
//! pairs, or slide and rotate all of them by a smaller base. Only safetensors hold such models.

use serde_json::Value as Json;

use super::{Architecture, Entry, lfm2};
use crate::blocks::{BranchNorms, GqaNames, GqaStyle, HybridStyle};
use crate::config::{DenseShape, Key, Keys, Mixer, OutputGate, dense, local_rope};
use crate::needs::{Name, Needs};
use crate::{Config, ModelError, Naming, Result};

pub(super) const ENTRY: Entry = Entry {
    tied: true,
    nested_ropes: true,
    defaults: &[("rope_theta", 1_000_000.0), ("norm_eps", 1e-5)],
    shape,
    ..Entry::new("lfm3", config, build)
};

/// Rotary base of layers that slide.
const LOCAL_BASE: f64 = 10_000.0;
/// The window and the convolution of the published models.
const WINDOW: usize = 256;
const TAPS: usize = 7;

fn config(keys: &Keys) -> Result<Config> {
    const LENGTH: Key = Key { gguf: "shortconv.l_cache", hf: "conv_L_cache" };
    if keys.naming() == Naming::Gguf {
        let expected =
            "another architecture, or the folder of this model's safetensors (GGUF has no layout for it)";
        return Err(ModelError::config("general.architecture", expected, ENTRY.name));
    }
    let hf = |hf, neutral| (Key { gguf: "", hf }, Some(neutral));
    keys.refuse([
        hf("conv_bias", 0.0),
        hf("attention_bias", 0.0),
        hf("use_attention_gate", 1.0),
        hf("use_sandwich_norm", 1.0),
    ])?;
    let mut config = dense(keys, &ENTRY)?;
    let local = local_rope(keys, &ENTRY, config.layers[0].head_dim, "", LOCAL_BASE)?;
    config.ropes.push(local);
    let taps = keys.need(LENGTH, keys.usize(LENGTH)?)?;
    kinds(keys, &mut config, taps)?;
    Ok(config)
}

/// What every layer is, by `layer_types`.
fn kinds(keys: &Keys, config: &mut Config, taps: usize) -> Result<()> {
    const TYPES: &str = "layer_types";
    const SLIDING: Key = Key { gguf: "attention.sliding_window", hf: "sliding_window" };
    let count = config.layers.len();
    let Some(Json::Array(list)) = keys.json(TYPES).filter(|t| t.as_array().is_some_and(|l| l.len() == count))
    else {
        return Err(ModelError::config(TYPES, format!("a list of {count} kinds"), "none of that length"));
    };
    for (layer, kind) in config.layers.iter_mut().zip(list) {
        layer.gate = OutputGate::Heads;
        match kind.as_str() {
            Some("conv") => layer.mixer = Mixer::ShortConv { taps },
            Some("full_attention") => {}
            Some("sliding_attention") => {
                (layer.window, layer.rope) = (Some(keys.need(SLIDING, keys.usize(SLIDING)?)?), Some(1));
            }
            _ => {
                let expected = "conv, full_attention or sliding_attention";
                return Err(ModelError::config(TYPES, expected, kind));
            }
        }
    }
    Ok(())
}

/// Two convolutions, then attention, of which every other slides.
fn shape(config: &mut Config, given: &DenseShape) {
    let mut local = config.ropes[0].clone();
    local.base = given.local_rope_base.unwrap_or(LOCAL_BASE);
    config.ropes.push(local);
    for (i, layer) in config.layers.iter_mut().enumerate() {
        layer.gate = OutputGate::Heads;
        if i % 3 != 2 {
            layer.mixer = Mixer::ShortConv { taps: TAPS };
        } else if i % 6 == 5 {
            (layer.window, layer.rope) = (Some(given.window.unwrap_or(WINDOW)), Some(1));
        }
    }
}

fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    let style = HybridStyle {
        mixer_norms: BranchNorms::both(
            Name { gguf: "attn_norm", hf: "operator_norm" },
            Name { gguf: "post_attention_norm", hf: "post_operator_norm" },
        ),
        attention: GqaStyle { names: GqaNames::USUAL, ..lfm2::STYLE.attention },
        ffn_norms: BranchNorms::both(
            Name { gguf: "ffn_norm", hf: "ffn_norm" },
            Name { gguf: "post_ffw_norm", hf: "post_ffn_norm" },
        ),
        ..lfm2::STYLE
    };
    style.decoder(config, lfm2::FINAL_NORM, needs)
}
