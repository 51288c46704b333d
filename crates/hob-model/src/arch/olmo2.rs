//! olmo2: OLMo 2 and OLMo 3. GGUF files of both are of architecture olmo2.
//!
//! h = x + n1(Wo attn(rope(nq(Wq x)), rope(nk(Wk x)), Wv x)); x' = h + n2(swiglu(h)); logits = W n(x').
//! Norms only behind the sublayers; nq and nk norm all heads as one row. OLMo 3: three of four layers slide, and only
//! the others stretch their rotation.

use super::{Architecture, Entry, llama};
use crate::blocks::{BranchNorms, DenseStyle, GqaStyle, QkNorm};
use crate::config::{Keys, dense, local_rope, same_layers, windows};
use crate::needs::{Name, Needs};
use crate::{Config, Result};

pub(super) const ENTRY: Entry =
    Entry { aliases: &["olmo3"], nested_ropes: true, ..Entry::new("olmo2", config, build) };

fn config(keys: &Keys) -> Result<Config> {
    let mut config = dense(keys, &ENTRY)?;
    same_layers(&mut config, llama::biases(keys)?);
    windows(keys, &mut config, |i| !(i + 1).is_multiple_of(4))?;
    if config.layers.iter().any(|layer| layer.window.is_some()) {
        let (head_dim, base) = (config.layers[0].head_dim, config.ropes[0].base);
        config.ropes.push(local_rope(keys, &ENTRY, head_dim, "rope_theta", base)?);
        let sliding = config.layers.iter_mut().filter(|layer| layer.window.is_some());
        sliding.for_each(|layer| layer.rope = Some(1));
    }
    Ok(config)
}

fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    let style = DenseStyle {
        attention_norms: BranchNorms::post(Name {
            gguf: "post_attention_norm",
            hf: "post_attention_layernorm",
        }),
        attention: GqaStyle { qk_norm: QkNorm::Whole, ..GqaStyle::PLAIN },
        ffn_norms: BranchNorms::post(Name { gguf: "post_ffw_norm", hf: "post_feedforward_layernorm" }),
        ..DenseStyle::PRE_NORM
    };
    style.decoder(config, needs)
}
