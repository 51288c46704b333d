//! Grouped-query attention (Ainslie et al. 2023): `heads` query heads share `kv_heads` heads of K and V.

use hob_compute::{Attend, AttendNew, Combine};

use super::ends::Norm;
use super::step::{Projection, Projections, Step};
use crate::needs::{BufId, Group, Name, Needs, Rows};
use crate::{Config, LayerConfig, LayerState, Mixer, Result};

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
    };
}

/// Norms of q and k, before they are rotated.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum QkNorm {
    None,
    /// Every head by itself, with one weight for all: `[head_dim]`.
    PerHead,
    /// All heads as one row: `[heads * head_dim]`.
    Whole,
}

/// What an architecture's attention is made of, beyond the sizes in its config.
#[derive(Copy, Clone)]
pub(crate) struct GqaStyle {
    pub names: GqaNames,
    pub qk_norm: QkNorm,
}

impl GqaStyle {
    pub const PLAIN: GqaStyle = GqaStyle { names: GqaNames::USUAL, qk_norm: QkNorm::None };
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
    wk: Projection,
    wv: Projection,
    wo: Projection,
    /// Of q and of k.
    norms: Option<[Norm; 2]>,
    /// `[rows, heads * head_dim]`
    q: BufId,
    /// `[rows, kv_heads * head_dim]`
    k: BufId,
    /// `[rows, kv_heads * head_dim]`
    v: BufId,
    /// `[rows, heads * head_dim]`
    mixed: BufId,
}

impl Gqa {
    /// Declares layer `i`'s weights and buffers.
    pub fn new(config: &Config, i: usize, style: GqaStyle, needs: &mut Needs) -> Self {
        let layer = &config.layers[i];
        let &LayerConfig { heads, kv_heads, head_dim, biases, .. } = layer;
        let (wide, narrow, names) = (heads * head_dim, kv_heads * head_dim, style.names);
        let mut add = Projections { layer: i, group: Group::Attention, needs };
        let [wq, wk, wv] = if layer.fused.qkv {
            add.fused(names.qkv, [wide, narrow, narrow], config.dim, biases.qkv)
        } else {
            [(names.q, wide), (names.k, narrow), (names.v, narrow)]
                .map(|(name, rows)| add.add(name, rows, config.dim, biases.qkv))
        };
        let wo = add.add(names.out, config.dim, wide, biases.out);
        let mut norm = |name: Name, width: usize, groups: usize| {
            let weight = needs.norm(needs.naming.layer(i, name, "weight"), width);
            Norm::new(weight, groups, config.rms_eps)
        };
        let norms = match style.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead => {
                Some([norm(names.q_norm, head_dim, heads), norm(names.k_norm, head_dim, kv_heads)])
            }
            QkNorm::Whole => Some([norm(names.q_norm, wide, 1), norm(names.k_norm, narrow, 1)]),
        };
        let mut buf = |role, width| needs.scratch(role, Rows::Chunk, width);
        let (q, k, v, mixed) = (buf("q", wide), buf("k", narrow), buf("v", narrow), buf("mixed", wide));
        let &LayerConfig { scale, softcap, window, rope, .. } = layer;
        Gqa { heads, kv_heads, head_dim, scale, softcap, window, rope, wq, wk, wv, wo, norms, q, k, v, mixed }
    }

    /// `Wo attention(input)`, stored in or added to `out`; K and V of the batch's rows are remembered.
    pub fn run(&self, step: &mut Step, input: BufId, out: BufId, combine: Combine) -> Result<()> {
        let &Gqa { heads, kv_heads, head_dim, scale, softcap, window, .. } = self;
        step.linear(input, [(&self.wq, self.q), (&self.wk, self.k), (&self.wv, self.v)], Combine::Store)?;
        let norms = self.norms.as_ref().map(|norms| norms.each_ref().map(|n| n.of_heads(step)));
        let rotation = self.rope.map(|table| step.ropes[table]);
        let [q, k, v, mixed] = [self.q, self.k, self.v, self.mixed].map(|b| step.buf(b));
        let (seqs, sinks, positions) = (step.seqs, None, step.positions);
        let attend = Attend { q, out: mixed, heads, kv_heads, head_dim, scale, window, softcap, sinks, seqs };
        step.dev.attend_new(&AttendNew { attend, k, v, norms, rotation, positions })?;
        step.linear(self.mixed, [(&self.wo, out)], combine)
    }
}

/// What the layers of `config` remember.
pub(crate) fn kv_states(config: &Config) -> Vec<LayerState> {
    let state = |layer: &LayerConfig| match layer.mixer {
        Mixer::Attention => LayerState::Kv { heads: layer.kv_heads, dim: layer.head_dim },
        Mixer::ShortConv { taps } => LayerState::Conv { channels: config.dim, taps },
    };
    config.layers.iter().map(state).collect()
}
