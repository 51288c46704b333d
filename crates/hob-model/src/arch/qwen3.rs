//! qwen3: Qwen3, dense.
//!
//! h = x + Wo attn(rope(nq(Wq n1(x))), rope(nk(Wk n1(x))), Wv n1(x)); x' = h + swiglu(n2(h)); logits = W n(x').
//! nq and nk norm every head by itself, with one weight for all heads. No biases; heads times head_dim need not be the
//! width of the stream.

use super::{Architecture, Entry, llama};
use crate::blocks::{DenseStyle, GqaStyle, QkNorm};
use crate::config::{Keys, dense, same_layers, upper_windows};
use crate::needs::Needs;
use crate::{Config, Result};

pub(super) const ENTRY: Entry = Entry::new("qwen3", config, build);

fn config(keys: &Keys) -> Result<Config> {
    let mut config = dense(keys, &ENTRY)?;
    same_layers(&mut config, llama::biases(keys)?);
    upper_windows(keys, &mut config)?;
    Ok(config)
}

fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    let attention = GqaStyle { qk_norm: QkNorm::PerHead, ..GqaStyle::PLAIN };
    DenseStyle { attention, ..DenseStyle::PRE_NORM }.decoder(config, needs)
}
