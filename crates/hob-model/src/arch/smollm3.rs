//! smollm3: SmolLM3.
//!
//! llama without positions in every fourth layer: h = x + Wo attn(rope(Wq n1(x)), rope(Wk n1(x)), Wv n1(x)), where rope
//! is the identity in layers 3, 7, 11, ..; x' = h + swiglu(n2(h)); logits = W n(x'), with a tied head. As llama's, its
//! GGUF files pair rotated dimensions (2i, 2i+1).

use hob_compute::RopePairs;

use super::{Architecture, Entry, llama};
use crate::blocks::DenseStyle;
use crate::config::{DenseShape, Key, Keys, dense, same_layers, windows};
use crate::needs::Needs;
use crate::{Config, Result};

pub(super) const ENTRY: Entry =
    Entry { gguf_pairs: RopePairs::Interleaved, tied: true, shape, ..Entry::new("smollm3", config, build) };

/// One layer in so many has no positions. GGUF files do not carry the number.
const INTERVAL: usize = 4;

fn config(keys: &Keys) -> Result<Config> {
    const ROTATES: Key = Key { gguf: "no_rope_layers", hf: "no_rope_layers" };
    const EVERY: Key = Key { gguf: "no_rope_layer_interval", hf: "no_rope_layer_interval" };
    let mut config = dense(keys, &ENTRY)?;
    same_layers(&mut config, llama::biases(keys)?);
    windows(keys, &mut config, |_| false)?;
    // Despite its name the list says which layers have positions.
    match keys.flags(ROTATES, config.layers.len())? {
        Some(rotates) => set(&mut config, |i| rotates[i]),
        None => {
            let every = keys.usize(EVERY)?.filter(|&n| n > 0).unwrap_or(INTERVAL);
            set(&mut config, |i| (i + 1) % every != 0);
        }
    }
    Ok(config)
}

fn set(config: &mut Config, rotates: impl Fn(usize) -> bool) {
    for (i, layer) in config.layers.iter_mut().enumerate() {
        layer.rope = rotates(i).then_some(0);
    }
}

fn shape(config: &mut Config, _: &DenseShape) {
    set(config, |i| (i + 1) % INTERVAL != 0);
}

fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    DenseStyle::PRE_NORM.decoder(config, needs)
}
