//! qwen2: Qwen2 and Qwen2.5.
//!
//! h = x + Wo attn(rope(Wq n1(x) + bq), rope(Wk n1(x) + bk), Wv n1(x) + bv); x' = h + swiglu(n2(h)); logits = W n(x').
//! Biases on q, k and v only; rotated dimensions pair halves in both formats. Some configs name a sliding window for
//! the upper layers.

use hob_compute::RopePairs;

use super::{Architecture, Entry, LayerState};
use crate::blocks::{DenseLayer, Embedding, Head, Step, Stream, kv_states};
use crate::config::{Biases, Key, Keys, dense, same_layers};
use crate::needs::{BufId, Needs};
use crate::{Config, Result};

pub(super) const ENTRY: Entry = Entry {
    name: "qwen2",
    gguf_pairs: RopePairs::Half,
    biases: Biases { qkv: true, out: false, ffn: false },
    config,
    build,
};

fn config(keys: &Keys) -> Result<Config> {
    let mut config = dense(keys, ENTRY.name, ENTRY.gguf_pairs)?;
    same_layers(&mut config, ENTRY.biases);
    windows(keys, &mut config)?;
    Ok(config)
}

/// config.json: layers from `max_window_layers` on slide, if `use_sliding_window`. GGUF files do not carry windows.
fn windows(keys: &Keys, config: &mut Config) -> Result<()> {
    const USE: Key = Key { gguf: "use_sliding_window", hf: "use_sliding_window" };
    const FIRST: Key = Key { gguf: "max_window_layers", hf: "max_window_layers" };
    const WINDOW: Key = Key { gguf: "attention.sliding_window", hf: "sliding_window" };
    if !keys.bool(USE)?.unwrap_or(false) {
        return Ok(());
    }
    let window = keys.need(WINDOW, keys.usize(WINDOW)?)?;
    let first = keys.need(FIRST, keys.usize(FIRST)?)?;
    config.layers.iter_mut().skip(first).for_each(|layer| layer.window = Some(window));
    Ok(())
}

struct Qwen2 {
    stream: Stream,
    embedding: Embedding,
    layers: Vec<DenseLayer>,
    head: Head,
    states: Vec<LayerState>,
}

fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    let layers = config.layers.iter().enumerate();
    Box::new(Qwen2 {
        stream: Stream::new(config, needs),
        embedding: Embedding::new(config, needs),
        layers: layers.map(|(i, layer)| DenseLayer::new(config, i, layer, needs)).collect(),
        head: Head::new(config, needs),
        states: kv_states(config),
    })
}

impl Architecture for Qwen2 {
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
