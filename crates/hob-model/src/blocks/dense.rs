//! The layer of a dense pre-norm decoder: attention, then a gated feed-forward, each on a normed copy of the stream.

use super::ends::{Norm, Stream};
use super::gqa::Gqa;
use super::step::Step;
use super::swiglu::Swiglu;
use crate::needs::{Name, Needs};
use crate::{Config, LayerConfig, Result};

const ATTENTION_NORM: Name = Name { gguf: "attn_norm", hf: "input_layernorm" };
const FFN_NORM: Name = Name { gguf: "ffn_norm", hf: "post_attention_layernorm" };

/// One layer's weights and buffers.
pub(crate) struct DenseLayer {
    attention_norm: Norm,
    attention: Gqa,
    ffn_norm: Norm,
    ffn: Swiglu,
}

impl DenseLayer {
    /// Declares layer `i`.
    pub fn new(config: &Config, i: usize, layer: &LayerConfig, needs: &mut Needs) -> Self {
        DenseLayer {
            attention_norm: Norm::of_layer(config, i, ATTENTION_NORM, needs),
            attention: Gqa::new(config.dim, i, layer, needs),
            ffn_norm: Norm::of_layer(config, i, FFN_NORM, needs),
            ffn: Swiglu::new(config.dim, i, layer, needs),
        }
    }

    /// `x += attention(norm(x)); x += ffn(norm(x))`
    pub fn run(&self, step: &mut Step, Stream { x, normed }: Stream) -> Result<()> {
        self.attention_norm.run(step, x, normed)?;
        self.attention.run(step, normed, x)?;
        self.ffn_norm.run(step, x, normed)?;
        self.ffn.run(step, normed, x)
    }
}
