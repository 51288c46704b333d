//! Grouped-query attention (Ainslie et al. 2023): `heads` query heads share `kv_heads` heads of K and V.

use hob_compute::{Attend, AttendNew, Combine, Map, Rope, Rotation};

use super::ends::Norm;
use super::step::{Projection, Projections, Step};
use crate::config::{OutputGate, SsmConfig, ValueSource};
use crate::needs::{BufId, Group, Name, Needs, Rows, WeightId};
use crate::{CompressedConfig, Config, DeltaConfig, LayerConfig, LayerState, Mixer, Result};

/// How an architecture spells the tensors of its attention.
#[derive(Copy, Clone)]
pub(crate) struct GqaNames {
    pub q: Name,
    pub k: Name,
    pub v: Name,
    /// q, k and v in one matrix.
    pub qkv: Name,
    pub out: Name,
    pub q_norm: Name,
    pub k_norm: Name,
    /// One row per head: see [`OutputGate::Heads`].
    pub gate: Name,
}

impl GqaNames {
    pub const USUAL: GqaNames = GqaNames {
        q: Name { gguf: "attn_q", hf: "self_attn.q_proj" },
        k: Name { gguf: "attn_k", hf: "self_attn.k_proj" },
        v: Name { gguf: "attn_v", hf: "self_attn.v_proj" },
        qkv: Name { gguf: "attn_qkv", hf: "self_attn.qkv_proj" },
        out: Name { gguf: "attn_output", hf: "self_attn.o_proj" },
        q_norm: Name { gguf: "attn_q_norm", hf: "self_attn.q_norm" },
        k_norm: Name { gguf: "attn_k_norm", hf: "self_attn.k_norm" },
        gate: Name { gguf: "attn_gate", hf: "self_attn.gate_proj" },
    };
}

/// Norms of q and k, before they are rotated.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum QkNorm {
    None,
    /// Every head by itself, with one weight for all: `[head_dim]`.
    PerHead,
    /// As [`QkNorm::PerHead`] or not at all, by [`LayerConfig::head_norms`].
    AsConfigured,
    /// All heads as one row: `[heads * head_dim]`.
    Whole,
}

/// What an architecture's attention is made of, beyond the sizes in its config.
#[derive(Copy, Clone)]
pub(crate) struct GqaStyle {
    pub names: GqaNames,
    pub qk_norm: QkNorm,
    /// A logit of every head that takes its share of the softmax and gives no value; spelled in full within the layer.
    pub sinks: Option<Name>,
    /// Whether every head of V is normed too, without weights.
    pub v_norm: bool,
}

impl GqaStyle {
    pub const PLAIN: GqaStyle =
        GqaStyle { names: GqaNames::USUAL, qk_norm: QkNorm::None, sinks: None, v_norm: false };
}

/// One layer's attention.
pub(crate) struct Gqa {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scale: f32,
    softcap: Option<f32>,
    window: Option<usize>,
    rope: Option<usize>,
    wq: Projection,
    /// `None` where K and V are another layer's.
    kv: Option<KeysValues>,
    wo: Projection,
    /// Of the output, and where it goes, `[rows, heads * head_dim]` or `[rows, heads]`.
    gate: Option<(Projection, BufId)>,
    /// Of q.
    q_norm: Option<Norm>,
    sinks: Option<WeightId>,
    /// `[rows, heads * head_dim]`
    q: BufId,
    /// `[rows, heads * head_dim]`
    mixed: BufId,
}

/// How a layer makes the K and V that it remembers.
struct KeysValues {
    wk: Projection,
    /// `None` where V is what K is made from, under a norm of its own.
    wv: Option<Projection>,
    k_norm: Option<Norm>,
    v_norm: Option<Norm>,
    /// `[rows, kv_heads * head_dim]`
    k: BufId,
    /// `[rows, kv_heads * head_dim]`
    v: BufId,
}

impl Gqa {
    /// Declares layer `i`'s weights and buffers.
    pub fn new(config: &Config, i: usize, style: GqaStyle, needs: &mut Needs) -> Self {
        let layer = &config.layers[i];
        let &LayerConfig { heads, kv_heads, head_dim, biases, .. } = layer;
        let (wide, narrow, names) = (heads * head_dim, kv_heads * head_dim, style.names);
        let mut add = Projections { layer: i, group: Group::Attention, needs };
        let mut gate = None;
        let mut part = |name, rows| add.add(name, rows, config.dim, biases.qkv);
        let (wq, made) = match layer.values {
            ValueSource::Own if layer.gate == OutputGate::Values => {
                let [wk, wv] = [names.k, names.v].map(|name| part(name, narrow));
                let [wq, half] = add.by_head(names.q, heads, [head_dim; 2], config.dim);
                gate = Some(half);
                (wq, Some((wk, Some(wv))))
            }
            ValueSource::Layer(_) => (part(names.q, wide), None),
            ValueSource::Keys => (part(names.q, wide), Some((part(names.k, narrow), None))),
            ValueSource::Own if layer.fused.qkv => {
                let [wq, wk, wv] = add.fused(names.qkv, [wide, narrow, narrow], config.dim, biases.qkv);
                (wq, Some((wk, Some(wv))))
            }
            ValueSource::Own => {
                let [wq, wk, wv] = [(names.q, wide), (names.k, narrow), (names.v, narrow)]
                    .map(|(name, rows)| part(name, rows));
                (wq, Some((wk, Some(wv))))
            }
        };
        if layer.gate == OutputGate::Heads {
            gate = Some(add.add(names.gate, heads, config.dim, false));
        }
        let wo = add.add(names.out, config.dim, wide, biases.out);
        let norms = HeadNorms::new(config, i, style);
        let q_norm = norms.of(names.q_norm, heads, needs);
        let kv = made.map(|(wk, wv)| KeysValues {
            wk,
            wv,
            k_norm: norms.of(names.k_norm, kv_heads, needs),
            v_norm: style.v_norm.then(|| Norm::new(needs.ones(head_dim), kv_heads, config.rms_eps)),
            k: needs.scratch("k", Rows::Chunk, narrow),
            v: needs.scratch("v", Rows::Chunk, narrow),
        });
        let sinks = style.sinks.map(|name| needs.vector(needs.naming.in_full(i, name), heads));
        let mut buf = |role, width| needs.scratch(role, Rows::Chunk, width);
        let (q, mixed) = (buf("q", wide), buf("mixed", wide));
        let gates = if layer.gate == OutputGate::Heads { heads } else { wide };
        let gate = gate.map(|gate| (gate, buf("output gate", gates)));
        let &LayerConfig { scale, softcap, window, rope, .. } = layer;
        Gqa {
            heads,
            kv_heads,
            head_dim,
            scale,
            softcap,
            window,
            rope,
            wq,
            kv,
            wo,
            gate,
            q_norm,
            sinks,
            q,
            mixed,
        }
    }

    /// `Wo attention(input)`, stored in or added to `out`; K and V of the batch's rows are remembered.
    pub fn run(&self, step: &mut Step, input: BufId, out: BufId, combine: Combine) -> Result<()> {
        match &self.kv {
            Some(kv) => self.attend(step, input, kv)?,
            None => self.attend_elsewhere(step, input)?,
        }
        if let Some((_, gate)) = self.gate {
            let ([a, gate], rows) = ([self.mixed, gate].map(|b| step.buf(b)), step.rows());
            step.dev.map(&Map::SigmoidGate { a, gate, out: a, add: false, rows })?;
        }
        step.linear(self.mixed, [(&self.wo, out)], combine)
    }

    fn arguments<'a>(&self, step: &Step<'a>) -> Attend<'a> {
        let &Gqa { heads, kv_heads, head_dim, scale, softcap, window, .. } = self;
        let (q, out, sinks) = (step.buf(self.q), step.buf(self.mixed), self.sinks.map(|w| step.weight(w)));
        Attend { q, out, heads, kv_heads, head_dim, scale, window, softcap, sinks, seqs: step.seqs }
    }

    /// To what the layer remembers, the batch's rows included.
    fn attend(&self, step: &mut Step, input: BufId, kv: &KeysValues) -> Result<()> {
        let (q, k) = ((&self.wq, self.q), (&kv.wk, kv.k));
        match (&kv.wv, &self.gate) {
            (Some(wv), Some((gate, to))) => {
                step.linear(input, [q, k, (wv, kv.v), (gate, *to)], Combine::Store)?;
            }
            (Some(wv), None) => step.linear(input, [q, k, (wv, kv.v)], Combine::Store)?,
            (None, _) => step.linear(input, [q, k], Combine::Store)?,
        }
        // Before K is normed and rotated. A V that is K's projection is one that is normed: see `KeysValues::wv`.
        if let Some(norm) = &kv.v_norm {
            norm.run(step, if kv.wv.is_some() { kv.v } else { kv.k }, kv.v)?;
        }
        let of_heads = |norm: &Option<Norm>| norm.as_ref().map(|norm| norm.of_heads(step));
        let norms = of_heads(&self.q_norm).zip(of_heads(&kv.k_norm)).map(|(q, k)| [q, k]);
        let rotation = self.rope.map(|table| step.ropes[table]);
        let (attend, k, v) = (self.arguments(step), step.buf(kv.k), step.buf(kv.v));
        let positions = step.positions;
        Ok(step.dev.attend_new(&AttendNew { attend, k, v, norms, rotation, positions })?)
    }

    /// To what an earlier layer remembers; the runner has put its pages into the step.
    fn attend_elsewhere(&self, step: &mut Step, input: BufId) -> Result<()> {
        step.linear(input, [(&self.wq, self.q)], Combine::Store)?;
        if let Some(norm) = &self.q_norm {
            norm.run(step, self.q, self.q)?;
        }
        if let Some(table) = self.rope {
            let Rotation { freqs, pairs, magnitude } = step.ropes[table];
            let (x, heads, head_dim, positions) =
                (step.buf(self.q), self.heads, self.head_dim, step.positions);
            step.dev.rope(&Rope {
                x,
                first: 0,
                back: false,
                heads,
                head_dim,
                positions,
                freqs,
                pairs,
                magnitude,
            })?;
        }
        let attend = self.arguments(step);
        Ok(step.dev.attend(&attend)?)
    }
}

/// The norms of a layer's heads, before they are rotated.
struct HeadNorms {
    layer: usize,
    head_dim: usize,
    eps: f32,
    /// By head or over the row; `None` where there are none.
    per_head: Option<bool>,
}

impl HeadNorms {
    fn new(config: &Config, layer: usize, style: GqaStyle) -> Self {
        let per_head = match style.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead => Some(true),
            QkNorm::AsConfigured => config.layers[layer].head_norms.then_some(true),
            QkNorm::Whole => Some(false),
        };
        HeadNorms { layer, head_dim: config.layers[layer].head_dim, eps: config.rms_eps, per_head }
    }

    fn of(&self, name: Name, heads: usize, needs: &mut Needs) -> Option<Norm> {
        let (width, groups) =
            if self.per_head? { (self.head_dim, heads) } else { (heads * self.head_dim, 1) };
        let weight = needs.norm(needs.naming.layer(self.layer, name, "weight"), width);
        Some(Norm::new(weight, groups, self.eps))
    }
}

/// What the layers of `config` remember.
pub(crate) fn kv_states(config: &Config) -> Vec<LayerState> {
    let state = |layer: &LayerConfig| match layer.mixer {
        Mixer::Attention => match layer.values {
            ValueSource::Layer(layer) => LayerState::Shared { layer },
            ValueSource::Own | ValueSource::Keys => {
                LayerState::Kv { heads: layer.kv_heads, dim: layer.head_dim, latent: None }
            }
        },
        Mixer::Latent(latent) => LayerState::Kv { heads: 1, dim: latent.width(), latent: Some(latent.rank) },
        Mixer::Compressed(CompressedConfig { entries, .. }) => LayerState::Compressed {
            window: layer.window.unwrap_or(1),
            dim: layer.head_dim,
            ratio: entries.map(|e| e.ratio),
            index_dim: entries.and_then(|e| e.index).map_or(0, |i| i.dim),
        },
        Mixer::ShortConv { taps } => LayerState::Conv { channels: config.dim, taps },
        Mixer::DeltaNet(DeltaConfig { shape, taps, .. }) => LayerState::Delta { shape, taps },
        Mixer::Ssm(SsmConfig { shape, taps, .. }) => LayerState::Ssm { shape, taps },
        Mixer::None => LayerState::None,
    };
    config.layers.iter().map(state).collect()
}
