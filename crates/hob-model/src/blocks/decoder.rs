//! The frame of every decoder: embedding, layers, head. What a layer is stands with the architecture.

use super::ends::{Embedding, FINAL_NORM, Head, Stream};
use super::gqa::kv_states;
use super::step::Step;
use crate::arch::Architecture;
use crate::needs::{BufId, Name, Needs};
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
        Box::new(Decoder {
            stream: Stream::new(config, needs),
            embedding: Embedding::new(config, needs),
            layers: config.layers.iter().enumerate().map(|(i, l)| layer(i, l, needs)).collect(),
            head: Head::new(config, final_norm, needs),
            states: kv_states(config),
        })
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
