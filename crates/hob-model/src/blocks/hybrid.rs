//! A layer whose parts are chosen by its config: attention (also to a latent), a convolution, a delta rule or a state space,
//! then one feed-forward block or a mixture; or only one of the two.

use hob_compute::Activation;

use super::branch::{Branch, BranchNorms};
use super::compressed::Compressed;
use super::decoder::{Decoder, Layer};
use super::delta_net::DeltaNet;
use super::ends::Stream;
use super::gqa::{Gqa, GqaStyle};
use super::latent::Latent;
use super::moe::{Moe, MoeNames};
use super::short_conv::ShortConv;
use super::ssm::Ssm;
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
    Latent(Box<Latent>),
    Compressed(Box<Compressed>),
    ShortConv(ShortConv),
    DeltaNet(DeltaNet),
    Ssm(Box<Ssm>),
}

enum Ffn {
    Block(Swiglu),
    Experts(Box<Moe>),
}

/// One layer's weights and buffers.
pub(crate) struct HybridLayer {
    mixer: Option<(Branch, Mixing)>,
    ffn: Option<(Branch, Ffn)>,
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
        let around = |norms, needs: &mut Needs| Branch::new(config, i, norms, needs);
        let mixer = (layer.mixer != Mixer::None).then(|| around(style.mixer_norms, needs));
        let mixer = mixer.zip(match layer.mixer {
            Mixer::Attention => {
                Some(Mixing::Attention(Box::new(Gqa::new(config, i, style.attention, needs))))
            }
            Mixer::Latent(latent) => Some(Mixing::Latent(Box::new(Latent::new(config, i, latent, needs)))),
            Mixer::Compressed(of) => {
                Some(Mixing::Compressed(Box::new(Compressed::new(config, i, of, needs))))
            }
            Mixer::ShortConv { taps } => Some(Mixing::ShortConv(ShortConv::new(dim, i, taps, needs))),
            Mixer::DeltaNet(delta) => Some(Mixing::DeltaNet(DeltaNet::new(config, i, delta, needs))),
            Mixer::Ssm(ssm) => Some(Mixing::Ssm(Box::new(Ssm::new(config, i, ssm, needs)))),
            Mixer::None => None,
        });
        let ffn = (layer.ffn > 0 || layer.experts.is_some()).then(|| {
            let branch = around(style.ffn_norms, needs);
            let ffn = match &layer.experts {
                Some(experts) => {
                    let names = (style.experts, style.activation);
                    Ffn::Experts(Box::new(Moe::new(dim, i, experts, names, needs)))
                }
                None => {
                    let shape = FfnShape::of(layer);
                    Ffn::Block(Swiglu::new(dim, i, shape, (style.ffn, style.activation), needs))
                }
            };
            (branch, ffn)
        });
        HybridLayer { mixer, ffn }
    }
}

impl Layer for HybridLayer {
    /// `x += mixer(norm(x)); x += ffn(norm(x))`, norms as the style has them.
    fn run(&self, step: &mut Step, stream: Stream) -> Result<()> {
        if let Some((around, mixer)) = &self.mixer {
            around.run(step, stream, |s, from, to, how| match mixer {
                Mixing::Attention(attention) => attention.run(s, from, to, how),
                Mixing::Latent(latent) => latent.run(s, from, to, how),
                Mixing::Compressed(attention) => attention.run(s, from, to, how),
                Mixing::ShortConv(conv) => conv.run(s, from, to, how),
                Mixing::DeltaNet(delta) => delta.run(s, from, to, how),
                Mixing::Ssm(ssm) => ssm.run(s, from, to, how),
            })?;
        }
        let Some((around, ffn)) = &self.ffn else { return Ok(()) };
        around.run(step, stream, |s, from, to, how| match ffn {
            Ffn::Block(ffn) => ffn.run(s, from, to, how),
            Ffn::Experts(experts) => experts.run(s, from, to, how),
        })
    }
}
