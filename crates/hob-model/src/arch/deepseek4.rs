//! deepseek4: DeepSeek-V4-Flash and V4-Pro.
//!
//! The residual stream is several streams X, copies of the embedding at first. Around each sublayer f, with weights that a
//! product of the normed streams gives: u = sum over i of pre_i X_i; X_k = post_k f(n(u)) + sum over j of C_jk X_j, C nearly
//! doubly stochastic. Before the head they are mixed once more: logits = W n(sum over i of pre_i X_i).
//! f is compressed attention (see [`crate::blocks`]): in layers of ratio 0 a window only, of ratio 128 also an entry for
//! every block, of ratio 4 overlapping entries of which an indexer selects some. Layers with entries rotate by a larger
//! base, stretched by YaRN without its magnitude. Or f is a mixture: sqrt(softplus) of the router, selection with a bias
//! and in the first layers by a table of tokens; weights divided by their sum; swiglu with clamped gate and up, also in
//! the shared expert. Blocks behind the layers, which predict further tokens, are not read.

use hob_compute::{Activation, Combine, Gating, RopePairs};
use serde_json::Value as Json;

use super::{Architecture, Entry};
use crate::blocks::{
    Compressed, Embedding, Expand, FINAL_NORM, FfnNames, Head, HyperConnection, HyperNames, Moe, MoeNames,
    Norm, Step, kv_states,
};
use crate::config::{
    Clamp, CompressedConfig, DenseShape, EntryConfig, ExpertConfig, ExpertShape, IndexConfig, Key, Keys,
    RouterDefaults, StreamConfig,
};
use crate::config::{compressed, dense, drafting, experts, shared_experts};
use crate::needs::{BufId, Name, Needs, Rows, Section};
use crate::stacked::ExpertNames;
use crate::{Config, LayerState, Mixer, ModelError, Naming, Result, RopeConfig};

pub(super) const ENTRY: Entry = Entry {
    aliases: &["deepseek_v4"],
    gguf_pairs: RopePairs::Interleaved,
    hf_pairs: RopePairs::Interleaved,
    nested_ropes: true,
    computes: &["num_local_experts"],
    shape,
    ..Entry::new("deepseek4", config, build)
};

const ROUTER: RouterDefaults = RouterDefaults { gating: Gating::SqrtSoftplus, normalize: true, eps: 1e-20 };

fn config(keys: &Keys) -> Result<Config> {
    if let Some(found) = keys.json("quantization_config") {
        let expected = "none: a checkpoint in BF16, F16 or F32, or a GGUF (hob does not read the FP8 and MXFP4 blocks of \
                        the published checkpoint)";
        return Err(ModelError::config("quantization_config", expected, found));
    }
    let hf = |hf, neutral| (Key { gguf: "", hf }, Some(neutral));
    keys.refuse([hf("attention_bias", 0.0), hf("mlp_bias", 0.0)])?;
    let mut config = dense(keys, &ENTRY)?;
    drafting(keys, &mut config)?;
    compressed(keys, &ENTRY, &mut config)?;
    mixtures(keys, &mut config)?;
    Ok(config)
}

fn mixtures(keys: &Keys, config: &mut Config) -> Result<()> {
    const KINDS: &str = "mlp_layer_types";
    const SCORING: Key = Key { gguf: "", hf: "scoring_func" };
    const HASHED: Key = Key { gguf: "hash_layer_count", hf: "num_hash_layers" };
    const LIMIT: Key = Key { gguf: "swiglu_clamp_exp", hf: "swiglu_limit" };
    const SHARED_LIMIT: Key = Key { gguf: "swiglu_clamp_shexp", hf: "swiglu_limit" };
    if let Some(other) = keys.str(SCORING)?.filter(|s| s != "sqrtsoftplus") {
        return Err(ModelError::config(SCORING.hf, "sqrtsoftplus", other));
    }
    let count = config.layers.len();
    let kinds = keys.json(KINDS).and_then(Json::as_array);
    let listed = kinds.map(|k| k.iter().filter(|k| k.as_str() == Some("hash_moe")).count());
    let hashed = keys.need(HASHED, keys.usize(HASHED)?.or(listed))?;
    for (i, kind) in kinds.into_iter().flatten().take(count).enumerate() {
        let expected = if i < hashed { "hash_moe" } else { "moe" };
        if kind.as_str() != Some(expected) {
            let expected = format!("{expected} in layer {i}: {} says {hashed}", keys.spell(HASHED));
            return Err(ModelError::config(KINDS, expected, kind));
        }
    }
    let limits = keys.need(LIMIT, keys.numbers(LIMIT, count)?)?;
    let shared = keys.numbers(SHARED_LIMIT, count)?.unwrap_or_else(|| limits.clone());
    if shared != limits {
        let expected = format!("what {} says: {limits:?}", keys.spell(LIMIT));
        return Err(ModelError::config(keys.spell(SHARED_LIMIT), expected, format!("{shared:?}")));
    }
    let mixture = ExpertConfig { shared: shared_experts(keys)?, ..experts(keys, ROUTER, None)? };
    for (i, (layer, limit)) in config.layers.iter_mut().zip(limits).enumerate() {
        let hashed = i < hashed;
        let clamp = Some(Clamp { alpha: 1.0, limit: limit as f32, plus_one: false });
        layer.experts = Some(ExpertConfig { bias: !hashed, hashed, clamp, ..mixture.clone() });
    }
    Ok(())
}

/// The published models' kinds of layers, in small: windows, then entries of both kinds in turns.
fn shape(config: &mut Config, given: &DenseShape) {
    let (rope, heads) = (config.ropes[0].clone(), given.heads.max(1));
    let groups = [8, 4, 2].into_iter().find(|g| heads.is_multiple_of(*g)).unwrap_or(1);
    let rank = (given.dim / 4).max(1);
    let stretched = RopeConfig { base: 160_000.0, ..rope.clone() };
    config.ropes = vec![rope, stretched];
    config.streams = Some(StreamConfig { count: 4, iterations: 20, eps: 1e-6 });
    for (i, layer) in config.layers.iter_mut().enumerate() {
        let index = IndexConfig { heads: 64, dim: given.head_dim, top_k: 512 };
        let entries = match i {
            0 | 1 => None,
            _ if i % 2 == 0 => Some(EntryConfig { ratio: EntryConfig::SPARSE, index: Some(index) }),
            _ => Some(EntryConfig { ratio: EntryConfig::HEAVY, index: None }),
        };
        layer.kv_heads = 1;
        layer.mixer = Mixer::Compressed(CompressedConfig { q_rank: rank, groups, out_rank: rank, entries });
        layer.window = Some(given.window.unwrap_or(128));
        layer.rope = Some(usize::from(entries.is_some()));
        let clamp = Some(Clamp { alpha: 1.0, limit: 10.0, plus_one: false });
        let hashed = i < 3;
        let experts = given.experts.unwrap_or(ExpertShape { count: 8, top_k: 2, ff: given.ffn });
        layer.experts = Some(ExpertConfig {
            bias: !hashed,
            hashed,
            clamp,
            shared: Some(experts.ff),
            ..ROUTER.mixture(experts)
        });
    }
}

const EXPERTS: MoeNames = MoeNames {
    router: Name { gguf: "ffn_gate_inp", hf: "ffn.gate" },
    bias: Name { gguf: "exp_probs_b.bias", hf: "ffn.gate.bias" },
    ids: Name { gguf: "ffn_gate_tid2eid.weight", hf: "ffn.gate.tid2eid" },
    gate: Some(ExpertNames {
        hf_each: "ffn.experts.{}.w1",
        hf_stacked: "ffn.experts.gate_up_proj",
        ..MoeNames::GATE
    }),
    up: ExpertNames {
        hf_each: "ffn.experts.{}.w3",
        hf_stacked: "ffn.experts.gate_up_proj",
        ..MoeNames::USUAL.up
    },
    down: ExpertNames {
        hf_each: "ffn.experts.{}.w2",
        hf_stacked: "ffn.experts.down_proj",
        ..MoeNames::USUAL.down
    },
    shared: FfnNames {
        gate: Some(Name { gguf: "ffn_gate_shexp", hf: "ffn.shared_experts.w1" }),
        up: Name { gguf: "ffn_up_shexp", hf: "ffn.shared_experts.w3" },
        down: Name { gguf: "ffn_down_shexp", hf: "ffn.shared_experts.w2" },
        ..MoeNames::USUAL.shared
    },
    ..MoeNames::USUAL
};

/// One layer's weights and buffers.
struct Layer {
    around_attention: HyperConnection,
    attention_norm: Norm,
    attention: Compressed,
    around_ffn: HyperConnection,
    ffn_norm: Norm,
    ffn: Moe,
}

struct DeepSeek4 {
    streams: usize,
    embedding: Embedding,
    layers: Vec<Layer>,
    before_head: HyperConnection,
    head: Head,
    states: Vec<LayerState>,
    bufs: Bufs,
}

#[derive(Copy, Clone)]
struct Bufs {
    /// `[rows, streams * dim]`
    x: BufId,
    /// `[rows, dim]` each: the mixed streams, their norm, and a sublayer's output.
    mixed: BufId,
    normed: BufId,
    out: BufId,
}

fn build(config: &Config, needs: &mut Needs) -> Box<dyn Architecture> {
    let streams = config.streams.unwrap_or(StreamConfig { count: 1, iterations: 1, eps: 0.0 });
    needs.begin(Section::Embedding);
    let bufs = Bufs {
        x: needs.scratch("streams", Rows::Chunk, config.stream_width()),
        mixed: needs.scratch("mixed streams", Rows::Chunk, config.dim),
        normed: needs.scratch("normed", Rows::Chunk, config.dim),
        out: needs.scratch("branch", Rows::Chunk, config.dim),
    };
    let embedding = Embedding::new(config, needs);
    let mut layers = Vec::with_capacity(config.layers.len());
    for (i, layer) in config.layers.iter().enumerate() {
        needs.begin(Section::Layer(i));
        let (Mixer::Compressed(of), Some(experts)) = (layer.mixer, &layer.experts) else { continue };
        let mut connect = |of: &str| {
            let name = |part: &str| match needs.naming {
                Naming::Gguf => format!("blk.{i}.hc_{of}_{part}.weight"),
                Naming::HuggingFace => format!("model.layers.{i}.hc_{of}_{part}"),
            };
            let names = HyperNames { fn_: name("fn"), base: name("base"), scale: name("scale") };
            HyperConnection::new(config, streams, names, false, needs)
        };
        let (around_attention, around_ffn) = (connect("attn"), connect("ffn"));
        let norm = |name, needs: &mut Needs| Norm::of_layer(config, i, name, needs);
        layers.push(Layer {
            around_attention,
            attention_norm: norm(Name { gguf: "attn_norm", hf: "attn_norm" }, needs),
            attention: Compressed::new(config, i, of, needs),
            around_ffn,
            ffn_norm: norm(Name { gguf: "ffn_norm", hf: "ffn_norm" }, needs),
            ffn: Moe::hashed(
                config.dim,
                i,
                (experts, Some(config.vocab)),
                (EXPERTS, Activation::Silu),
                needs,
            ),
        });
    }
    needs.begin(Section::Head);
    let name = |part: &str| match needs.naming {
        Naming::Gguf => format!("output_hc_{part}.weight"),
        Naming::HuggingFace => format!("model.hc_head.hc_{part}"),
    };
    let names = HyperNames { fn_: name("fn"), base: name("base"), scale: name("scale") };
    Box::new(DeepSeek4 {
        streams: streams.count,
        embedding,
        layers,
        before_head: HyperConnection::new(config, streams, names, true, needs),
        head: Head::spelled(config, FINAL_NORM, Name { gguf: "output", hf: "head" }, needs),
        states: kv_states(config),
        bufs,
    })
}

impl Architecture for DeepSeek4 {
    fn embed(&self, step: &mut Step) -> Result<()> {
        let Bufs { x, mixed, .. } = self.bufs;
        self.embedding.run(step, mixed)?;
        Expand { from: mixed, streams: x }.copies(step, self.streams)
    }

    fn layer(&self, i: usize, step: &mut Step) -> Result<()> {
        let Bufs { x, mixed, normed, out } = self.bufs;
        let Some(layer) = self.layers.get(i) else {
            return Err(ModelError::config(
                format!("layer {i}"),
                "compressed attention and experts",
                "others",
            ));
        };
        let spread = Expand { from: out, streams: x };
        layer.around_attention.mix(step, x, mixed)?;
        layer.attention_norm.run(step, mixed, normed)?;
        layer.attention.run(step, normed, out, Combine::Store)?;
        layer.around_attention.expand(step, spread)?;
        layer.around_ffn.mix(step, x, mixed)?;
        layer.ffn_norm.run(step, mixed, normed)?;
        layer.ffn.run(step, normed, out, Combine::Store)?;
        layer.around_ffn.expand(step, spread)
    }

    fn head(&self, step: &mut Step) -> Result<()> {
        self.before_head.mix(step, self.bufs.x, self.bufs.mixed)?;
        self.head.run(step, self.bufs.mixed)
    }

    fn state_plan(&self) -> Vec<LayerState> {
        self.states.clone()
    }

    fn logits(&self) -> BufId {
        self.head.logits()
    }
}
