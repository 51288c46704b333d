//! mamba2: Mamba-2, all of whose layers are selective state spaces; nothing grows with the context.
//!
//! x += Wo norm(scan(silu(conv(Wxbc n(x))), Wdt n(x)) * silu(Wz n(x))).

use hob_compute::{Activation, SsmShape};

use super::{Architecture, Entry, nemotron_h};
use crate::blocks::FINAL_NORM;
use crate::config::{DenseShape, Key, Keys, LayerConfig, Mixer, SsmConfig, SsmKeys, frame, ssm};
use crate::needs::Needs;
use crate::{Config, ModelError, Naming, Result};

pub(super) const ENTRY: Entry = Entry {
    // Nothing bounds the context; what converters write stands for that.
    defaults: &[("max_position_embeddings", 1_048_576.0), ("layer_norm_epsilon", 1e-5)],
    activation: Activation::Silu,
    shape,
    ..Entry::new("mamba2", config, build)
};

const NAMES: SsmKeys = SsmKeys { heads: "num_heads", head_dim: "head_dim", state_dim: "state_size" };

fn config(keys: &Keys) -> Result<Config> {
    const EXPAND: Key = Key { gguf: "", hf: "expand" };
    keys.refuse([(Key { gguf: "", hf: "use_bias" }, Some(0.0))])?;
    let ssm = ssm(keys, NAMES, 0)?;
    let config = frame(keys, &ENTRY, |_| Ok(LayerConfig::single(Mixer::Ssm(ssm))))?;
    if let Some(expand) = keys.f64(EXPAND)?.filter(|_| keys.naming() == Naming::HuggingFace) {
        let width = ssm.shape.width();
        if expand * config.dim as f64 != width as f64 {
            let expected = format!("{width} (heads times head_dim) over {} (hidden_size)", config.dim);
            return Err(ModelError::config(EXPAND.hf, expected, expand));
        }
    }
    Ok(config)
}

/// Heads as in the published checkpoints.
fn shape(config: &mut Config, given: &DenseShape) {
    let shape = SsmShape { heads: given.dim / 32, head_dim: 64, state_dim: 128, groups: 1 };
    let ssm = SsmConfig { shape, taps: 4, conv_bias: true, limit: [0.0, f32::INFINITY] };
    config.ropes.clear();
    config.layers.fill(LayerConfig::single(Mixer::Ssm(ssm)));
}

fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    nemotron_h::STYLE.decoder(config, FINAL_NORM, needs)
}
