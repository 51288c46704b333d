//! llama: Llama 2 and 3.x, SmolLM2, and many derivatives.
//!
//! h = x + Wo attn(rope(Wq n1(x)), rope(Wk n1(x)), Wv n1(x)); x' = h + swiglu(n2(h)); logits = W n(x').
//! Biases where the config asks for them; the head is tied in small models. GGUF files pair rotated dimensions
//! (2i, 2i+1) because their converter permutes the rows of q and k; Hugging Face checkpoints pair halves.

use hob_compute::RopePairs;

use super::{Architecture, Entry, LayerState};
use crate::blocks::{DenseLayer, Embedding, Head, Step, Stream, kv_states};
use crate::config::{Biases, Key, Keys, dense, same_layers};
use crate::needs::{BufId, Naming, Needs};
use crate::{Config, Result};

pub(super) const ENTRY: Entry = Entry {
    name: "llama",
    gguf_pairs: RopePairs::Interleaved,
    biases: Biases { qkv: false, out: false, ffn: false },
    config,
    build,
};

fn config(keys: &Keys) -> Result<Config> {
    let mut config = dense(keys, ENTRY.name, ENTRY.gguf_pairs)?;
    same_layers(&mut config, biases(keys)?);
    Ok(config)
}

/// config.json has a switch for all attention and one for all feed-forward biases; a GGUF just has the tensors.
fn biases(keys: &Keys) -> Result<Biases> {
    if keys.naming() == Naming::Gguf {
        let has = |tensor| keys.has_tensor(tensor);
        return Ok(Biases {
            qkv: has("blk.0.attn_q.bias"),
            out: has("blk.0.attn_output.bias"),
            ffn: has("blk.0.ffn_down.bias"),
        });
    }
    let attention = keys.bool(Key { gguf: "", hf: "attention_bias" })?.unwrap_or(false);
    let ffn = keys.bool(Key { gguf: "", hf: "mlp_bias" })?.unwrap_or(false);
    Ok(Biases { qkv: attention, out: attention, ffn })
}

struct Llama {
    stream: Stream,
    embedding: Embedding,
    layers: Vec<DenseLayer>,
    head: Head,
    states: Vec<LayerState>,
}

fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    let layers = config.layers.iter().enumerate();
    Box::new(Llama {
        stream: Stream::new(config, needs),
        embedding: Embedding::new(config, needs),
        layers: layers.map(|(i, layer)| DenseLayer::new(config, i, layer, needs)).collect(),
        head: Head::new(config, needs),
        states: kv_states(config),
    })
}

impl Architecture for Llama {
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
