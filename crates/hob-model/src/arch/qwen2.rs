//! qwen2: Qwen2 and Qwen2.5.
//!
//! h = x + Wo attn(rope(Wq n1(x) + bq), rope(Wk n1(x) + bk), Wv n1(x) + bv); x' = h + swiglu(n2(h)); logits = W n(x').
//! Biases on q, k and v only; rotated dimensions pair halves in both formats. Some configs name a sliding window for
//! the upper layers.

use super::{Architecture, Entry};
use crate::blocks::DenseStyle;
use crate::config::{Biases, Keys, dense, same_layers, upper_windows};
use crate::needs::Needs;
use crate::{Config, Result};

pub(super) const ENTRY: Entry =
    Entry { biases: Biases { qkv: true, out: false, ffn: false }, ..Entry::new("qwen2", config, build) };

fn config(keys: &Keys) -> Result<Config> {
    let mut config = dense(keys, &ENTRY)?;
    same_layers(&mut config, ENTRY.biases);
    upper_windows(keys, &mut config)?;
    Ok(config)
}

fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    DenseStyle::PRE_NORM.decoder(config, needs)
}
