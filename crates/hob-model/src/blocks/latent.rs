//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1), absorbed: K and V of all heads are products of
//! one latent, so that scores and sums are taken of the latent itself. What is remembered of a position is the latent and
//! the rotated key that all heads share; V is the latent, a part of K.
//!
//! With c = norm(Wc x) and r = rope(Wr x): q_h = [Kb_h^T Wq_h x | rope(Wp_h x)], k = [c | r], v = c, and what a head gives is
//! Vb_h times its mixed latent. Kb_h and Vb_h are stored apart, Kb_h turned, or as one matrix of `nope + value` rows per head.

use hob_compute::{Attend, AttendNew, Combine, Heads, LatentRows};

use super::ends::Norm;
use super::step::{Projection, Projections, Step};
use crate::config::LatentConfig;
use crate::needs::{BufId, Group, Name, Needs, Rows, WeightId};
use crate::stacked::{Part, Stored};
use crate::{Config, LayerConfig, Naming, Result};

/// Queries, where they are made from the stream itself.
const Q: Name = Name { gguf: "attn_q", hf: "self_attn.q_proj" };
/// From the stream to what queries are made from, its norm, and on to queries.
const Q_A: Name = Name { gguf: "attn_q_a", hf: "self_attn.q_a_proj" };
const Q_NORM: Name = Name { gguf: "attn_q_a_norm", hf: "self_attn.q_a_layernorm" };
const Q_B: Name = Name { gguf: "attn_q_b", hf: "self_attn.q_b_proj" };
/// Wc, then Wr.
const KV_A: Name = Name { gguf: "attn_kv_a_mqa", hf: "self_attn.kv_a_proj_with_mqa" };
const KV_NORM: Name = Name { gguf: "attn_kv_a_norm", hf: "self_attn.kv_a_layernorm" };
/// Kb, then Vb, head by head; newer GGUF files have the two apart.
const KV_B: Name = Name { gguf: "attn_kv_b", hf: "self_attn.kv_b_proj" };
const K_B: Name = Name { gguf: "attn_k_b", hf: "" };
const V_B: Name = Name { gguf: "attn_v_b", hf: "" };
const OUT: Name = Name { gguf: "attn_output", hf: "self_attn.o_proj" };

/// One layer's attention.
pub(crate) struct Latent {
    heads: usize,
    of: LatentConfig,
    scale: f32,
    rope: Option<usize>,
    /// What queries are made from, where that is not the stream.
    compressed: Option<(Projection, Norm, BufId)>,
    /// Of queries: what meets the latent, and what is rotated.
    queries: [Projection; 2],
    /// The latent, and the rotated key.
    keys: [Projection; 2],
    norm: Norm,
    /// `heads` matrices of `[rank, nope]`.
    k_b: WeightId,
    /// `heads` matrices of `[value, rank]`.
    v_b: WeightId,
    wo: Projection,
    bufs: Bufs,
}

/// `[rows, _]` each.
#[derive(Copy, Clone)]
struct Bufs {
    /// `heads * nope`
    nope: BufId,
    /// `heads * rotary`
    rotated: BufId,
    /// `rank`
    latent: BufId,
    /// `rotary`
    key: BufId,
    /// `heads * rank`: queries that meet the latent, then mixed latents.
    wide: BufId,
    /// `heads * (rank + rotary)`
    q: BufId,
    /// `rank + rotary`
    k: BufId,
    /// `heads * value`
    mixed: BufId,
}

impl Latent {
    /// Declares layer `i`'s weights and buffers.
    pub fn new(config: &Config, i: usize, of: LatentConfig, needs: &mut Needs) -> Self {
        let &LayerConfig { heads, scale, rope, .. } = &config.layers[i];
        let LatentConfig { q_rank, rank, nope, rotary, value } = of;
        let norm = |name, width, needs: &mut Needs| {
            Norm::new(needs.norm(needs.naming.layer(i, name, "weight"), width), 1, config.rms_eps)
        };
        let mut add = Projections { layer: i, group: Group::Attention, needs: &mut *needs };
        let (compressed, queries) = match q_rank {
            Some(q_rank) => {
                let a = add.add(Q_A, q_rank, config.dim, false);
                (Some((a, q_rank)), add.by_head(Q_B, heads, [nope, rotary], q_rank))
            }
            None => (None, add.by_head(Q, heads, [nope, rotary], config.dim)),
        };
        let keys = add.fused(KV_A, [rank, rotary], config.dim, false);
        let wo = add.add(OUT, config.dim, heads * value, false);
        let [k_b, v_b] = matrices(i, heads, of, needs);
        let mut buf = |role, width| needs.scratch(role, Rows::Chunk, width);
        let bufs = Bufs {
            nope: buf("q against the latent", heads * nope),
            rotated: buf("rotated q", heads * rotary),
            latent: buf("latent", rank),
            key: buf("rotated key", rotary),
            wide: buf("latent of heads", heads * rank),
            q: buf("q", heads * of.width()),
            k: buf("k", of.width()),
            mixed: buf("mixed", heads * value),
        };
        let compressed = compressed.map(|(a, width)| {
            let buf = needs.scratch("compressed q", Rows::Chunk, width);
            (a, norm(Q_NORM, width, needs), buf)
        });
        let norm = norm(KV_NORM, rank, needs);
        Latent { heads, of, scale, rope, compressed, queries, keys, norm, k_b, v_b, wo, bufs }
    }

    /// `Wo attention(input)`, stored in or added to `out`; the latents of the batch's rows are remembered.
    pub fn run(&self, step: &mut Step, input: BufId, out: BufId, combine: Combine) -> Result<()> {
        self.project(step, input)?;
        let (rows, positions) = (step.rows(), step.positions);
        let Bufs { nope, rotated, latent, key, wide, q, k, mixed } = self.bufs;
        let [nope, rotated, latent, key] = [nope, rotated, latent, key].map(|b| step.buf(b));
        let [wide, q, k, heads_out] = [wide, q, k, mixed].map(|b| step.buf(b));
        let [k_b, v_b] = [self.k_b, self.v_b].map(|w| step.weight(w));
        step.dev.heads(&Heads { x: nope, rows, weight: k_b, out: wide })?;
        let (heads, rotary, norm) = (self.heads, self.of.rotary, self.norm.of_heads(step));
        let rotation = self.rope.map(|table| step.ropes[table]);
        step.dev.latent_rows(&LatentRows {
            wide,
            rotated,
            latent,
            key,
            heads,
            rotary,
            norm,
            rotation,
            positions,
            q,
            k,
        })?;
        let attend = Attend {
            q,
            out: wide,
            heads,
            kv_heads: 1,
            head_dim: self.of.width(),
            scale: self.scale,
            window: None,
            softcap: None,
            sinks: None,
            seqs: step.seqs,
        };
        let (norms, rotation) = (None, None);
        step.dev.attend_new(&AttendNew { attend, k, v: k, norms, rotation, positions })?;
        step.dev.heads(&Heads { x: wide, rows, weight: v_b, out: heads_out })?;
        step.linear(mixed, [(&self.wo, out)], combine)
    }

    /// Queries, and latent and key as they are before norm and rotation.
    fn project(&self, step: &mut Step, input: BufId) -> Result<()> {
        let Bufs { nope, rotated, latent, key, .. } = self.bufs;
        let queries = [(&self.queries[0], nope), (&self.queries[1], rotated)];
        let keys = [(&self.keys[0], latent), (&self.keys[1], key)];
        match &self.compressed {
            Some((a, norm, compressed)) => {
                step.linear(input, [(a, *compressed), keys[0], keys[1]], Combine::Store)?;
                norm.run(step, *compressed, *compressed)?;
                step.linear(*compressed, queries, Combine::Store)?;
            }
            None => step.linear(input, [queries[0], queries[1], keys[0], keys[1]], Combine::Store)?,
        }
        Ok(())
    }
}

/// Kb, turned, and Vb of layer `i`.
fn matrices(i: usize, heads: usize, of: LatentConfig, needs: &mut Needs) -> [WeightId; 2] {
    let LatentConfig { rank, nope, value, .. } = of;
    let (naming, each) = (needs.naming, nope + value);
    let both = naming.layer(i, KV_B, "weight");
    let part = |first, rows, stored| {
        let (name, shape) = (both.clone(), vec![heads * each, rank]);
        Part { name, shape, first, rows, stored }
    };
    let k = |h| part(0, rank, Stored::Columns { row: h * each, step: 1 });
    let v = |h| part(h * each + nope, value, Stored::Rows);
    let mut forms = [(0..heads).map(k).collect(), (0..heads).map(v).collect()].map(|form| vec![form]);
    if naming == Naming::Gguf {
        for (forms, (name, rows, cols)) in forms.iter_mut().zip([(K_B, rank, nope), (V_B, value, rank)]) {
            let name = naming.layer(i, name, "weight");
            forms.insert(0, vec![Part::rows(name, vec![heads, rows, cols], 0, heads * rows)]);
        }
    }
    let [k, v] = forms;
    [needs.heads(heads, nope, k), needs.heads(heads, rank, v)]
}
