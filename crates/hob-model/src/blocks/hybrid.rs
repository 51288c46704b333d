//! A layer whose parts are chosen by its config: attention, a convolution or a delta rule, then one feed-forward block or a mixture.

use hob_compute::Activation;

use super::branch::{Branch, BranchNorms};
use super::decoder::{Decoder, Layer};
use super::delta_net::DeltaNet;
use super::ends::Stream;
use super::gqa::{Gqa, GqaStyle};
use super::moe::{Moe, MoeNames};
use super::short_conv::ShortConv;
use super::step::Step;
use super::swiglu::{FfnNames, FfnShape, Swiglu};
use crate::arch::Architecture;
use crate::needs::{Name, Needs};
use crate::{Config, LayerConfig, Mixer, Result};

/// What an architecture's layers are made of, beyond the sizes in its config.
#[derive(Copy, Clone)]
pub(crate) struct HybridStyle {
    pub mixer_norms: BranchNorms,
    pub attention: GqaStyle,
    pub ffn_norms: BranchNorms,
    pub ffn: FfnNames,
    pub experts: MoeNames,
    pub activation: Activation,
}

impl HybridStyle {
    /// A decoder all of whose layers are of this style.
    pub fn decoder(self, config: &Config, final_norm: Name, needs: &mut Needs) -> Box<dyn Architecture> {
        Decoder::with_final_norm(config, final_norm, needs, |i, layer, needs| {
            HybridLayer::new(config, i, layer, self, needs)
        })
    }
}

enum Mixing {
    Attention(Box<Gqa>),
    ShortConv(ShortConv),
    DeltaNet(DeltaNet),
}

enum Ffn {
    Gated(Swiglu),
    Experts(Box<Moe>),
}

/// One layer's weights and buffers.
pub(crate) struct HybridLayer {
    around_mixer: Branch,
    mixer: Mixing,
    around_ffn: Branch,
    ffn: Ffn,
}

impl HybridLayer {
    /// Declares layer `i`.
    pub fn new(
        config: &Config,
        i: usize,
        layer: &LayerConfig,
        style: HybridStyle,
        needs: &mut Needs,
    ) -> Self {
        let dim = config.dim;
        HybridLayer {
            around_mixer: Branch::new(config, i, style.mixer_norms, needs),
            mixer: match layer.mixer {
                Mixer::Attention => Mixing::Attention(Box::new(Gqa::new(config, i, style.attention, needs))),
                Mixer::ShortConv { taps } => Mixing::ShortConv(ShortConv::new(dim, i, taps, needs)),
                Mixer::DeltaNet(delta) => Mixing::DeltaNet(DeltaNet::new(config, i, delta, needs)),
            },
            around_ffn: Branch::new(config, i, style.ffn_norms, needs),
            ffn: match &layer.experts {
                Some(experts) => Ffn::Experts(Box::new(Moe::new(
                    dim,
                    i,
                    experts,
                    (style.experts, style.activation),
                    needs,
                ))),
                None => {
                    let shape = FfnShape::of(layer);
                    Ffn::Gated(Swiglu::new(dim, i, shape, (style.ffn, style.activation), needs))
                }
            },
        }
    }
}

impl Layer for HybridLayer {
    /// `x += mixer(norm(x)); x += ffn(norm(x))`, norms as the style has them.
    fn run(&self, step: &mut Step, stream: Stream) -> Result<()> {
        self.around_mixer.run(step, stream, |s, from, to, how| match &self.mixer {
            Mixing::Attention(attention) => attention.run(s, from, to, how),
            Mixing::ShortConv(conv) => conv.run(s, from, to, how),
            Mixing::DeltaNet(delta) => delta.run(s, from, to, how),
        })?;
        self.around_ffn.run(step, stream, |s, from, to, how| match &self.ffn {
            Ffn::Gated(ffn) => ffn.run(s, from, to, how),
            Ffn::Experts(experts) => experts.run(s, from, to, how),
        })
    }
}
