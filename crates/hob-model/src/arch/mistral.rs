//! mistral: checkpoints of Mistral 7B, Nemo, Small and others. GGUF files of theirs are of architecture llama.
//!
//! As llama: h = x + Wo attn(rope(Wq n1(x)), rope(Wk n1(x)), Wv n1(x)); x' = h + swiglu(n2(h)); logits = W n(x').
//! Where the config names a sliding window all layers slide, or those that `layer_types` names (Ministral 8B).

use hob_compute::RopePairs;

use super::{Entry, llama};
use crate::config::{Keys, dense, same_layers, windows};
use crate::{Config, Result};

pub(super) const ENTRY: Entry = Entry {
    aliases: &["ministral"],
    gguf_pairs: RopePairs::Interleaved,
    ..Entry::new("mistral", config, llama::build)
};

fn config(keys: &Keys) -> Result<Config> {
    let mut config = dense(keys, &ENTRY)?;
    same_layers(&mut config, llama::biases(keys)?);
    windows(keys, &mut config, |_| true)?;
    Ok(config)
}
