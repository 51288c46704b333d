//! The frame of every decoder: embedding, layers, head. What a layer is stands with the architecture.

use super::ends::{Embedding, FINAL_NORM, Head, Stream};
use super::gqa::kv_states;
use super::step::Step;
use crate::arch::Architecture;
use crate::needs::{BufId, Name, Needs, Section};
use crate::{Config, LayerConfig, LayerState, Result};

/// One layer: the residual stream, in place.
pub(crate) trait Layer: Send + 'static {
    fn run(&self, step: &mut Step, stream: Stream) -> Result<()>;
}

/// A decoder whose layers are `L`.
pub(crate) struct Decoder<L> {
    stream: Stream,
    embedding: Embedding,
    layers: Vec<L>,
    head: Head,
    states: Vec<LayerState>,
}

impl<L: Layer> Decoder<L> {
    /// Declares all weights and buffers; `layer` declares one layer.
    pub fn boxed(
        config: &Config,
        needs: &mut Needs,
        layer: impl FnMut(usize, &LayerConfig, &mut Needs) -> L,
    ) -> Box<dyn Architecture> {
        Self::with_final_norm(config, FINAL_NORM, needs, layer)
    }

    /// As [`Decoder::boxed`], for an architecture that spells its final norm otherwise.
    pub fn with_final_norm(
        config: &Config,
        final_norm: Name,
        needs: &mut Needs,
        mut layer: impl FnMut(usize, &LayerConfig, &mut Needs) -> L,
    ) -> Box<dyn Architecture> {
        needs.begin(Section::Embedding);
        let (stream, embedding) = (Stream::new(config, needs), Embedding::new(config, needs));
        let mut layers = Vec::with_capacity(config.layers.len());
        for (i, l) in config.layers.iter().enumerate() {
            needs.begin(Section::Layer(i));
            layers.push(layer(i, l, needs));
        }
        needs.begin(Section::Head);
        let head = Head::new(config, final_norm, needs);
        Box::new(Decoder { stream, embedding, layers, head, states: kv_states(config) })
    }
}

impl<L: Layer> Architecture for Decoder<L> {
    fn embed(&self, step: &mut Step) -> Result<()> {
        self.embedding.run(step, self.stream.x)
    }

    fn layer(&self, i: usize, step: &mut Step) -> Result<()> {
        self.layers[i].run(step, self.stream)
    }

    fn head(&self, step: &mut Step) -> Result<()> {
        self.head.run(step, self.stream.x)
    }

    fn state_plan(&self) -> Vec<LayerState> {
        self.states.clone()
    }

    fn logits(&self) -> BufId {
        self.head.logits()
    }
}
