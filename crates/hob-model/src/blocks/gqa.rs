//! Grouped-query attention (Ainslie et al. 2023): `heads` query heads share `kv_heads` heads of K and V.

use hob_compute::{AppendKv, Attend, Combine};

use super::step::{Projection, Projections, Step};
use crate::needs::{BufId, Group, Name, Needs, Rows};
use crate::{Config, LayerConfig, LayerState, Mixer, Result};

const Q: Name = Name { gguf: "attn_q", hf: "self_attn.q_proj" };
const K: Name = Name { gguf: "attn_k", hf: "self_attn.k_proj" };
const V: Name = Name { gguf: "attn_v", hf: "self_attn.v_proj" };
const OUT: Name = Name { gguf: "attn_output", hf: "self_attn.o_proj" };

/// One layer's attention.
pub(crate) struct Gqa {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rope: Option<usize>,
    wq: Projection,
    wk: Projection,
    wv: Projection,
    wo: Projection,
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
    /// Declares layer `i`'s weights and buffers; `dim` is the width of the residual stream.
    pub fn new(dim: usize, i: usize, layer: &LayerConfig, needs: &mut Needs) -> Self {
        let &LayerConfig { heads, kv_heads, head_dim, rope, biases, .. } = layer;
        let (wide, narrow) = (heads * head_dim, kv_heads * head_dim);
        let mut add = Projections { layer: i, group: Group::Attention, needs };
        let wq = add.add(Q, wide, dim, biases.qkv);
        let wk = add.add(K, narrow, dim, biases.qkv);
        let wv = add.add(V, narrow, dim, biases.qkv);
        let wo = add.add(OUT, dim, wide, biases.out);
        let mut buf = |role, width| needs.scratch(role, Rows::Chunk, width);
        let (q, k, v, mixed) = (buf("q", wide), buf("k", narrow), buf("v", narrow), buf("mixed", wide));
        Gqa { heads, kv_heads, head_dim, rope, wq, wk, wv, wo, q, k, v, mixed }
    }

    /// `residual += Wo attention(normed)`; K and V of the batch's rows are remembered.
    pub fn run(&self, step: &mut Step, normed: BufId, residual: BufId) -> Result<()> {
        let &Gqa { heads, kv_heads, head_dim, .. } = self;
        step.linear(normed, [(&self.wq, self.q), (&self.wk, self.k), (&self.wv, self.v)], Combine::Store)?;
        if let Some(table) = self.rope {
            step.rope(self.q, heads, head_dim, table)?;
            step.rope(self.k, kv_heads, head_dim, table)?;
        }
        let [q, k, v, out] = [self.q, self.k, self.v, self.mixed].map(|b| step.buf(b));
        let (seqs, scale) = (step.seqs, 1.0 / (head_dim as f32).sqrt());
        step.dev.append_kv(&AppendKv { k, v, seqs })?;
        step.dev.attend(&Attend {
            q,
            out,
            heads,
            kv_heads,
            head_dim,
            scale,
            window: None,
            softcap: None,
            sinks: None,
            seqs,
        })?;
        step.linear(self.mixed, [(&self.wo, residual)], Combine::Add)
    }
}

/// What the layers of `config` remember.
pub(crate) fn kv_states(config: &Config) -> Vec<LayerState> {
    let state = |layer: &LayerConfig| match layer.mixer {
        Mixer::Attention => LayerState::Kv { heads: layer.kv_heads, dim: layer.head_dim },
    };
    config.layers.iter().map(state).collect()
}
