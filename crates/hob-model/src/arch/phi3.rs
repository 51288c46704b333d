//! phi3: Phi-3, Phi-3.5 and Phi-4, dense.
//!
//! h = x + Wo attn(rope(q), rope(k), v), [q; k; v] = Wqkv n1(x); x' = h + Wd(silu(g) * u), [g; u] = Wgu n2(h);
//! logits = W n(x'). Fused matrices are read as their parts. LongRoPE in the models with long contexts, a partial
//! rotation in Phi-4-mini, and a window over all layers where the config names one.

use super::{Architecture, Entry};
use crate::blocks::DenseStyle;
use crate::config::{Fused, Keys, dense, windows};
use crate::needs::Needs;
use crate::{Config, Result};

pub(super) const ENTRY: Entry =
    Entry { fused: Fused { qkv: true, gate_up: true }, ..Entry::new("phi3", config, build) };

fn config(keys: &Keys) -> Result<Config> {
    let mut config = dense(keys, &ENTRY)?;
    windows(keys, &mut config, |_| true)?;
    Ok(config)
}

fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    DenseStyle::PRE_NORM.decoder(config, needs)
}
