//! gemma2: Gemma 2.
//!
//! x = embedding * sqrt(D); h = x + n2(Wo attn(rope(Wq n1(x)), rope(Wk n1(x)), Wv n1(x))); x' = h + n4(geglu(n3(h)));
//! logits = cap(W n(x')), with a tied head. Scores are capped too: cap(s) = c tanh(s / c). Every other layer slides, from
//! the first on. Norms are zero-centred: checkpoints store weights less one, GGUF files do not.

use hob_compute::Activation;

use super::{Architecture, Entry, gemma3, llama};
use crate::config::{DenseShape, Key, Keys, dense, same_layers, softcap, windows};
use crate::needs::Needs;
use crate::{Config, Result};

pub(super) const ENTRY: Entry = Entry {
    activation: Activation::GeluTanh,
    tied: true,
    computes: &["final_logit_softcapping", "attn_logit_softcapping"],
    shape,
    ..Entry::new("gemma2", config, build)
};

const WINDOW: usize = 4096;

fn config(keys: &Keys) -> Result<Config> {
    const LOGITS: Key = Key { gguf: "final_logit_softcapping", hf: "final_logit_softcapping" };
    const SCORES: Key = Key { gguf: "attn_logit_softcapping", hf: "attn_logit_softcapping" };
    let mut config = dense(keys, &ENTRY)?;
    same_layers(&mut config, llama::biases(keys)?);
    windows(keys, &mut config, slides)?;
    config.embedding_scale = (config.dim as f32).sqrt();
    config.logit_softcap = softcap(keys, LOGITS)?;
    let (scale, softcap) = (gemma3::score_scale(keys, &config, 46)?, softcap(keys, SCORES)?);
    for layer in &mut config.layers {
        (layer.scale, layer.softcap) = (scale, softcap);
    }
    Ok(config)
}

fn slides(i: usize) -> bool {
    i.is_multiple_of(2)
}

fn shape(config: &mut Config, shape: &DenseShape) {
    config.embedding_scale = (config.dim as f32).sqrt();
    config.logit_softcap = Some(30.0);
    for (i, layer) in config.layers.iter_mut().enumerate() {
        layer.window = slides(i).then_some(shape.window.unwrap_or(WINDOW));
        layer.softcap = Some(50.0);
    }
}

fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    needs.zero_centred_norms();
    gemma3::STYLE.decoder(config, needs)
}
