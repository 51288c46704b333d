//! gemma4: Gemma 4, the language models: dense, mixtures, and those with inputs of layers (E2B, E4B).
//!
//! x = embedding * sqrt(D); h = x + n2(Wo attn(rope(nq(Wq n1(x))), rope(nk(Wk n1(x))), nv(Wv n1(x)))); scores are not
//! scaled; nq, nk and nv norm every head, nv without weights. Five of six layers slide; the others have wider heads, of
//! which a part rotates, and in the larger models their V is nv(Wk n1(x)). In E models the last layers attend to the K
//! and V of the last layer of their kind that has its own. Dense: h' = h + n4(geglu(n3(h))). Mixtures:
//! h' = h + n4(n5(geglu(n3(h))) + n6(sum of w_e s_e geglu_e(n7(h)))), w the softmax of Wr (norm(h) * r) / sqrt(D) over the
//! chosen ones. E models add what each layer is told of the token. x' = c h', c a number per layer.
//! Logits are capped; the head is tied.

use hob_compute::{Activation, Gating, Map};

use super::{Architecture, Entry, gemma3, llama};
use crate::blocks::{
    Beside, BesideNames, Branch, Decoder, FfnNames, FfnShape, Gqa, GqaStyle, InputNames, Layer, LayerInput,
    LayerInputs, MoeNames, QkNorm, Step, Stream, Swiglu,
};
use crate::config::{Config, DenseShape, ExpertConfig, Key, Keys, LayerConfig, RouterDefaults, ValueSource};
use crate::config::{dense, experts, local_rope, rope, same_layers, softcap, windows};
use crate::needs::{Name, Naming, Needs};
use crate::stacked::ExpertNames;
use crate::{ModelError, Result, RopeConfig, RopeScaling};

pub(super) const ENTRY: Entry = Entry {
    aliases: &["gemma4_text"],
    activation: Activation::GeluTanh,
    tied: true,
    nested_ropes: true,
    computes: &["final_logit_softcapping", "num_local_experts", "use_bidirectional_attention"],
    // What the config.json of multimodal checkpoints may leave out.
    defaults: &[
        ("head_dim", 256.0),
        ("max_position_embeddings", 131_072.0),
        ("rms_norm_eps", 1e-6),
        ("sliding_window", 512.0),
    ],
    shape,
    ..Entry::new("gemma4", config, build)
};

const ROUTER: RouterDefaults = RouterDefaults { gating: Gating::Softmax, normalize: true, eps: 0.0 };
/// Every so many layers one sees all positions.
const PATTERN: usize = 6;
const LOCAL_BASE: f64 = 10_000.0;
/// Heads of layers that see all positions, where a config.json does not say.
const FULL_HEAD_DIM: usize = 512;
const WINDOW: usize = 512;

fn config(keys: &Keys) -> Result<Config> {
    const SOFTCAP: Key = Key { gguf: "final_logit_softcapping", hf: "final_logit_softcapping" };
    both_ways(keys)?;
    let mut config = dense(keys, &ENTRY)?;
    same_layers(&mut config, llama::biases(keys)?);
    windows(keys, &mut config, slides)?;
    let [local, full] = heads(keys, &mut config)?;
    config.ropes =
        vec![rope(keys, &ENTRY, full)?, local_rope(keys, &ENTRY, local, "rope_local_base_freq", LOCAL_BASE)?];
    sources(keys, &mut config)?;
    config.embedding_scale = (config.dim as f32).sqrt();
    config.logit_softcap = softcap(keys, SOFTCAP)?;
    mixtures(keys, &mut config)?;
    layer_input(keys, &mut config)?;
    for (i, layer) in config.layers.iter_mut().enumerate() {
        layer.scale = 1.0;
        layer.rope = Some(usize::from(layer.window.is_some()));
        let scalar = match keys.naming() {
            Naming::Gguf => format!("blk.{i}.layer_output_scale.weight"),
            Naming::HuggingFace => format!("model.layers.{i}.layer_scalar"),
        };
        layer.output_scale = keys.scalar(&scalar)?.unwrap_or(1.0);
    }
    Ok(config)
}

/// Text is causal unless a config.json says that everything is seen both ways; images alone do not matter here.
fn both_ways(keys: &Keys) -> Result<()> {
    const KEY: &str = "use_bidirectional_attention";
    match keys.json(KEY) {
        None => Ok(()),
        Some(value) if value.as_str() == Some("vision") || value.as_bool() == Some(false) => Ok(()),
        Some(other) => Err(ModelError::config(KEY, "none, or vision", other)),
    }
}

fn slides(i: usize) -> bool {
    !(i + 1).is_multiple_of(PATTERN)
}

/// Gives each kind of layer its heads; their dimensions, of layers that slide and of those that see all positions.
///
/// A GGUF has keys for both kinds. A config.json has `global_head_dim` and `num_global_key_value_heads`, or since
/// transformers 5.2 what is different per layer in `per_layer_config`.
fn heads(keys: &Keys, config: &mut Config) -> Result<[usize; 2]> {
    const LOCAL: Key = Key { gguf: "attention.key_length_swa", hf: "" };
    const LOCAL_V: Key = Key { gguf: "attention.value_length_swa", hf: "" };
    const FULL: Key = Key { gguf: "", hf: "global_head_dim" };
    const FULL_KV: Key = Key { gguf: "", hf: "num_global_key_value_heads" };
    const LAYERS: &str = "per_layer_config";
    let given = config.layers[0].head_dim;
    let (local, full) = match keys.naming() {
        Naming::Gguf => (keys.usize(LOCAL)?.unwrap_or(given), given),
        Naming::HuggingFace => (given, keys.usize(FULL)?.unwrap_or(FULL_HEAD_DIM)),
    };
    if let Some(v) = keys.usize(LOCAL_V)?.filter(|&v| keys.naming() == Naming::Gguf && v != local) {
        return Err(ModelError::config(keys.spell(LOCAL_V), format!("the key length {local}"), v));
    }
    let named = keys.naming() == Naming::HuggingFace;
    let full_kv = if named && keys_are_values(keys)? { keys.usize(FULL_KV)? } else { None };
    let table = keys.json(LAYERS);
    for (i, layer) in config.layers.iter_mut().enumerate() {
        let full_layer = layer.window.is_none();
        layer.head_dim = if full_layer { full } else { local };
        layer.kv_heads = full_kv.filter(|_| full_layer).unwrap_or(layer.kv_heads);
        let Some(own) = table.and_then(|t| t.get(i.to_string())) else { continue };
        for (name, field) in [("head_dim", &mut layer.head_dim), ("num_key_value_heads", &mut layer.kv_heads)]
        {
            if let Some(value) = own.get(name) {
                let wrong = || ModelError::config(format!("{LAYERS}.{i}.{name}"), "a whole number", value);
                *field = value.as_u64().and_then(|v| usize::try_from(v).ok()).ok_or_else(wrong)?;
            }
        }
    }
    let of = |full: bool| config.layers.iter().find(|l| l.window.is_none() == full).map(|l| l.head_dim);
    let dims = [of(false).unwrap_or(local), of(true).unwrap_or(full)];
    let odd = |(_, l): &(usize, &LayerConfig)| l.head_dim != dims[usize::from(l.window.is_none())];
    match config.layers.iter().enumerate().find(odd) {
        Some((i, layer)) => {
            let expected = format!("{dims:?}, one head_dim per kind of layer");
            Err(ModelError::config(format!("layer {i}: head_dim"), expected, layer.head_dim))
        }
        None => Ok(dims),
    }
}

/// Whether a config.json says that layers that see all positions take V from K's projection.
fn keys_are_values(keys: &Keys) -> Result<bool> {
    Ok(keys.bool(Key { gguf: "", hf: "attention_k_eq_v" })?.unwrap_or(false))
}

/// Where each layer's K and V come from, and the width of the blocks of those that share.
fn sources(keys: &Keys, config: &mut Config) -> Result<()> {
    const SHARED: Key = Key { gguf: "attention.shared_kv_layers", hf: "num_kv_shared_layers" };
    const DOUBLE: Key = Key { gguf: "", hf: "use_double_wide_mlp" };
    let count = config.layers.len();
    let shared = keys.usize(SHARED)?.unwrap_or(0);
    let Some(first) = count.checked_sub(shared) else {
        return Err(ModelError::config(keys.spell(SHARED), format!("at most {count} layers"), shared));
    };
    let named = keys.naming() == Naming::HuggingFace;
    let from_keys = if named { keys_are_values(keys)? } else { true };
    let wide = named && keys.bool(DOUBLE)?.unwrap_or(false);
    for i in 0..count {
        let full = config.layers[i].window.is_none();
        let own = named || keys.has_tensor(&format!("blk.{i}.attn_v.weight"));
        config.layers[i].values = if i < first {
            let keys = full && from_keys && (named || !own);
            if keys { ValueSource::Keys } else { ValueSource::Own }
        } else {
            let like = |layer: &LayerConfig| layer.window.is_none() == full;
            let Some(from) = config.layers[..first].iter().rposition(like) else {
                let expected = "a layer of every kind before those that share";
                return Err(ModelError::config(keys.spell(SHARED), expected, shared));
            };
            ValueSource::Layer(from)
        };
        if wide && i >= first {
            config.layers[i].ffn = config.layers[i].ffn.saturating_mul(2);
        }
    }
    Ok(())
}

fn mixtures(keys: &Keys, config: &mut Config) -> Result<()> {
    const ENABLED: Key = Key { gguf: "", hf: "enable_moe_block" };
    let some = match keys.naming() {
        Naming::Gguf => keys.has_tensor("blk.0.ffn_gate_inp.weight"),
        Naming::HuggingFace => keys.bool(ENABLED)?.unwrap_or(false),
    };
    if some {
        let mixture = ExpertConfig { aside: true, ..experts(keys, ROUTER, None)? };
        config.layers.iter_mut().for_each(|layer| layer.experts = Some(mixture.clone()));
    }
    Ok(())
}

fn layer_input(keys: &Keys, config: &mut Config) -> Result<()> {
    const WIDTH: Key = Key { gguf: "embedding_length_per_layer_input", hf: "hidden_size_per_layer_input" };
    const VOCAB: Key = Key { gguf: "", hf: "vocab_size_per_layer_input" };
    config.layer_input = keys.usize(WIDTH)?.filter(|&width| width > 0);
    let named = config.layer_input.is_some() && keys.naming() == Naming::HuggingFace;
    match keys.usize(VOCAB)?.filter(|&vocab| named && vocab != config.vocab) {
        Some(vocab) => {
            Err(ModelError::config(VOCAB.hf, format!("the vocabulary of {}", config.vocab), vocab))
        }
        None => Ok(()),
    }
}

/// As the larger models; a mixture if the shape has experts.
fn shape(config: &mut Config, shape: &DenseShape) {
    let window = shape.window.unwrap_or(WINDOW);
    config.embedding_scale = (config.dim as f32).sqrt();
    config.logit_softcap = Some(30.0);
    let local = RopeConfig {
        base: shape.local_rope_base.unwrap_or(LOCAL_BASE),
        scaling: RopeScaling::None,
        ..config.ropes[0].clone()
    };
    config.ropes.push(local);
    for (i, layer) in config.layers.iter_mut().enumerate() {
        layer.window = slides(i).then_some(window);
        layer.rope = Some(usize::from(slides(i)));
        layer.scale = 1.0;
        layer.experts = shape.experts.map(|e| ExpertConfig { aside: true, ..ROUTER.mixture(e) });
    }
}

const GATE_UP: &str = "experts.gate_up_proj";
const DOWN: &str = "experts.down_proj";
const EXPERTS: MoeNames = MoeNames {
    router: Name { gguf: "ffn_gate_inp", hf: "router.proj" },
    scales: Some(Name { gguf: "ffn_down_exps.scale", hf: "router.per_expert_scale" }),
    gate: Some(ExpertNames { hf_each: "experts.{}.gate_proj", hf_stacked: GATE_UP, ..MoeNames::GATE }),
    up: ExpertNames { hf_each: "experts.{}.up_proj", hf_stacked: GATE_UP, ..MoeNames::USUAL.up },
    down: ExpertNames { hf_each: "experts.{}.down_proj", hf_stacked: DOWN, ..MoeNames::USUAL.down },
    ..MoeNames::USUAL
};

const INPUTS: InputNames = InputNames {
    table: Name { gguf: "per_layer_token_embd", hf: "model.embed_tokens_per_layer" },
    projection: Name { gguf: "per_layer_model_proj", hf: "model.per_layer_model_projection" },
    norm: Name { gguf: "per_layer_proj_norm", hf: "model.per_layer_projection_norm" },
    gate: Name { gguf: "inp_gate", hf: "per_layer_input_gate" },
    out: Name { gguf: "proj", hf: "per_layer_projection" },
    post: Name { gguf: "post_norm", hf: "post_per_layer_input_norm" },
};

const ACTIVATION: Activation = Activation::GeluTanh;

const MIXTURE: BesideNames = BesideNames {
    dense: Name { gguf: "post_ffw_norm_1", hf: "post_feedforward_layernorm_1" },
    router: Name { gguf: "ffn_gate_inp.scale", hf: "router.scale" },
    pre: Name { gguf: "pre_ffw_norm_2", hf: "pre_feedforward_layernorm_2" },
    post: Name { gguf: "post_ffw_norm_2", hf: "post_feedforward_layernorm_2" },
    experts: EXPERTS,
};

struct Gemma4Layer {
    around_attention: Branch,
    attention: Gqa,
    around_ffn: Branch,
    ffn: Swiglu,
    mixture: Option<Beside>,
    input: Option<LayerInput>,
    scale: f32,
}

impl Gemma4Layer {
    fn new(config: &Config, i: usize, layer: &LayerConfig, needs: &mut Needs) -> Self {
        let attention = GqaStyle { qk_norm: QkNorm::PerHead, v_norm: true, ..GqaStyle::PLAIN };
        let (names, shape) = ((FfnNames::USUAL, ACTIVATION), FfnShape::of(layer));
        let input = config.layer_input;
        Gemma4Layer {
            around_attention: Branch::new(config, i, gemma3::STYLE.attention_norms, needs),
            attention: Gqa::new(config, i, attention, needs),
            around_ffn: Branch::new(config, i, gemma3::STYLE.ffn_norms, needs),
            ffn: Swiglu::new(config.dim, i, shape, names, needs),
            mixture: Beside::new(config, i, (MIXTURE, ACTIVATION), needs),
            input: input.map(|width| LayerInput::new(config, i, width, (INPUTS, ACTIVATION), needs)),
            scale: layer.output_scale,
        }
    }
}

impl Layer for Gemma4Layer {
    fn run(&self, step: &mut Step, stream: Stream) -> Result<()> {
        let attention = &self.attention;
        self.around_attention.run(step, stream, |s, from, to, how| attention.run(s, from, to, how))?;
        self.around_ffn.run(step, stream, |s, from, to, how| {
            self.ffn.run(s, from, to, how)?;
            self.mixture.as_ref().map_or(Ok(()), |mixture| mixture.run(s, stream, to))
        })?;
        if let Some(input) = &self.input {
            input.run(step, stream.x)?;
        }
        if self.scale != 1.0 {
            let (rows, x) = (step.rows(), step.buf(stream.x));
            step.dev.map(&Map::Scale { a: x, factor: self.scale, out: x, rows })?;
        }
        Ok(())
    }
}

fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    let decoder = Decoder::boxed(config, needs, |i, layer, needs| Gemma4Layer::new(config, i, layer, needs));
    match config.layer_input {
        Some(width) => LayerInputs::before(decoder, config, width, INPUTS, needs),
        None => decoder,
    }
}
