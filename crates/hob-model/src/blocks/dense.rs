//! The layer of a dense decoder: attention, then a gated feed-forward, each a branch of the residual stream.

use hob_compute::Activation;

use super::branch::{Branch, BranchNorms};
use super::decoder::{Decoder, Layer};
use super::ends::Stream;
use super::gqa::{Gqa, GqaStyle};
use super::step::Step;
use super::swiglu::{FfnNames, FfnShape, Swiglu};
use crate::arch::Architecture;
use crate::needs::{Name, Needs};
use crate::{Config, LayerConfig, Result};

/// What an architecture's layers are made of, beyond the sizes in its config.
#[derive(Copy, Clone)]
pub(crate) struct DenseStyle {
    pub attention_norms: BranchNorms,
    pub attention: GqaStyle,
    pub ffn_norms: BranchNorms,
    pub activation: Activation,
}

impl DenseStyle {
    /// llama: one norm before each sublayer, SiLU.
    pub const PRE_NORM: DenseStyle = DenseStyle {
        attention_norms: BranchNorms::pre(Name { gguf: "attn_norm", hf: "input_layernorm" }),
        attention: GqaStyle::PLAIN,
        ffn_norms: BranchNorms::pre(Name { gguf: "ffn_norm", hf: "post_attention_layernorm" }),
        activation: Activation::Silu,
    };

    /// A decoder all of whose layers are of this style.
    pub fn decoder(self, config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
        Decoder::boxed(config, needs, |i, layer, needs| DenseLayer::new(config, i, layer, self, needs))
    }
}

/// One layer's weights and buffers.
pub(crate) struct DenseLayer {
    around_attention: Branch,
    attention: Gqa,
    around_ffn: Branch,
    ffn: Swiglu,
}

impl DenseLayer {
    /// Declares layer `i`.
    pub fn new(config: &Config, i: usize, layer: &LayerConfig, style: DenseStyle, needs: &mut Needs) -> Self {
        DenseLayer {
            around_attention: Branch::new(config, i, style.attention_norms, needs),
            attention: Gqa::new(config, i, style.attention, needs),
            around_ffn: Branch::new(config, i, style.ffn_norms, needs),
            ffn: Swiglu::new(config.dim, i, FfnShape::of(layer), (FfnNames::USUAL, style.activation), needs),
        }
    }
}

impl Layer for DenseLayer {
    /// `x += attention(norm(x)); x += ffn(norm(x))`, norms as the style has them.
    fn run(&self, step: &mut Step, stream: Stream) -> Result<()> {
        let attention = &self.attention;
        self.around_attention.run(step, stream, |s, from, to, how| attention.run(s, from, to, how))?;
        self.around_ffn.run(step, stream, |s, from, to, how| self.ffn.run(s, from, to, how))
    }
}
