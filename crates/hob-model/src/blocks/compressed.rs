//! The attention of DeepSeek V4: one head of K that is V too, a window, and entries that blocks of positions are compressed
//! to.
//!
//! q = rope(norm(Wqb norm(Wqa x))) head by head, kv = rope(norm(Wkv x)), only the last dimensions of a head rotating. A row
//! attends to the last `window` kv and to entries: all of them, or those that an indexer of small heads finds best. What is
//! attended to is rotated back by the row's position, then projected in groups of heads, and together:
//! out = Wob (Woa_g mixed_g over the groups g).

use hob_compute::{AttendEntries, Combine, CompressShape, Entries, Heads, Rope, Rotation, Select};

use super::compressor::{Compressor, CompressorNames};
use super::ends::Norm;
use super::step::{Projection, Projections, Step};
use crate::config::{CompressedConfig, EntryConfig, IndexConfig};
use crate::needs::{BufId, Group, Name, Needs, Rows, WeightId, entry_room};
use crate::stacked::Part;
use crate::{Config, LayerConfig, Result};

/// Rows that rings keep beyond those that are seen: how far a sequence can go back, for example behind refused drafts.
pub(crate) const RING_SLACK: usize = 16;

const Q_A: Name = Name { gguf: "attn_q_a", hf: "attn.wq_a" };
const Q_NORM: Name = Name { gguf: "attn_q_a_norm", hf: "attn.q_norm" };
const Q_B: Name = Name { gguf: "attn_q_b", hf: "attn.wq_b" };
const KV: Name = Name { gguf: "attn_kv", hf: "attn.wkv" };
const KV_NORM: Name = Name { gguf: "attn_kv_a_norm", hf: "attn.norm" };
/// In full.
const SINKS: Name = Name { gguf: "attn_sinks.weight", hf: "attn.attn_sink" };
const OUT_A: Name = Name { gguf: "attn_output_a", hf: "attn.wo_a" };
const OUT_B: Name = Name { gguf: "attn_output_b", hf: "attn.wo_b" };
const COMPRESSOR: CompressorNames = CompressorNames {
    kv: Name { gguf: "attn_compressor_kv", hf: "attn.compressor.wkv" },
    gate: Name { gguf: "attn_compressor_gate", hf: "attn.compressor.wgate" },
    bias: Name { gguf: "attn_compressor_ape.weight", hf: "attn.compressor.ape" },
    norm: Name { gguf: "attn_compressor_norm", hf: "attn.compressor.norm" },
};
const INDEX_COMPRESSOR: CompressorNames = CompressorNames {
    kv: Name { gguf: "indexer_compressor_kv", hf: "attn.indexer.compressor.wkv" },
    gate: Name { gguf: "indexer_compressor_gate", hf: "attn.indexer.compressor.wgate" },
    bias: Name { gguf: "indexer_compressor_ape.weight", hf: "attn.indexer.compressor.ape" },
    norm: Name { gguf: "indexer_compressor_norm", hf: "attn.indexer.compressor.norm" },
};
const INDEX_Q: Name = Name { gguf: "indexer.attn_q_b", hf: "attn.indexer.wq_b" };
const INDEX_WEIGHTS: Name = Name { gguf: "indexer.proj", hf: "attn.indexer.weights_proj" };

/// One layer's attention.
pub(crate) struct Compressed {
    heads: usize,
    head_dim: usize,
    scale: f32,
    window: usize,
    rope: usize,
    /// Dimensions that rotate: the last of a head.
    rotary: usize,
    wq_a: Projection,
    q_a_norm: Norm,
    wq_b: Projection,
    /// Of every head, without weights.
    q_norm: Norm,
    wkv: Projection,
    kv_norm: Norm,
    sinks: WeightId,
    /// A matrix for every group of heads.
    wo_a: WeightId,
    wo_b: Projection,
    far: Option<(Compressor, Option<Indexer>)>,
    bufs: Bufs,
}

/// `[rows, _]` each, but for the ring.
#[derive(Copy, Clone)]
struct Bufs {
    /// `q_rank`
    latent: BufId,
    /// `heads * head_dim`
    q: BufId,
    /// `head_dim`
    kv: BufId,
    /// `heads * head_dim`
    mixed: BufId,
    /// `groups * out_rank`
    low: BufId,
    /// The last kv: `[sequences, (window + slack) * head_dim]`.
    recent: BufId,
}

/// Who selects entries.
struct Indexer {
    of: IndexConfig,
    ratio: usize,
    compressor: Compressor,
    wq: Projection,
    weights: Projection,
    /// `[rows, heads * dim]`
    q: BufId,
    /// `[rows, heads]`
    weight_rows: BufId,
    /// `[rows, top_k]`
    chosen: BufId,
}

impl Compressed {
    /// Declares layer `i`'s weights, buffers and state.
    pub fn new(config: &Config, i: usize, of: CompressedConfig, needs: &mut Needs) -> Self {
        let layer = &config.layers[i];
        let &LayerConfig { heads, head_dim, scale, .. } = layer;
        let (window, rope) = (layer.window.unwrap_or(1), layer.rope.unwrap_or(0));
        let (wide, eps, naming) = (heads * head_dim, config.rms_eps, needs.naming);
        let mut add = Projections { layer: i, group: Group::Attention, needs: &mut *needs };
        let wq_a = add.add(Q_A, of.q_rank, config.dim, false);
        let wq_b = add.add(Q_B, wide, of.q_rank, false);
        let wkv = add.add(KV, head_dim, config.dim, false);
        let low = of.groups * of.out_rank;
        let wo_b = add.add(OUT_B, config.dim, low, false);
        let cols = wide / of.groups;
        let part = Part::rows(naming.layer(i, OUT_A, "weight"), vec![low, cols], 0, low);
        let wo_a = needs.heads(of.groups, cols, vec![vec![part]]);
        let mut norm = |name, width| Norm::new(needs.norm(naming.layer(i, name, "weight"), width), 1, eps);
        let (q_a_norm, kv_norm) = (norm(Q_NORM, of.q_rank), norm(KV_NORM, head_dim));
        let q_norm = Norm::new(needs.ones(head_dim), heads, eps);
        let far = of.entries.map(|entries| {
            let EntryConfig { ratio, index } = entries;
            let shape = CompressShape { ratio, overlapped: index.is_some(), dim: head_dim };
            let read = index.map(|index| index.top_k);
            let own = Compressor::new((config.dim, eps), (i, COMPRESSOR), shape, (rope, read), needs);
            (own, index.map(|index| Indexer::new(config, i, (entries, index, of.q_rank), needs)))
        });
        let mut buf = |role, width| needs.scratch(role, Rows::Chunk, width);
        let bufs = Bufs {
            latent: buf("compressed q", of.q_rank),
            q: buf("q", wide),
            kv: buf("kv", head_dim),
            mixed: buf("mixed", wide),
            low: buf("projected groups", low),
            recent: needs.ring("window of kv", (window + RING_SLACK) * head_dim),
        };
        Compressed {
            heads,
            head_dim,
            scale,
            window,
            rope,
            rotary: config.ropes.get(rope).map_or(0, |r| r.rotary),
            wq_a,
            q_a_norm,
            wq_b,
            q_norm,
            wkv,
            kv_norm,
            sinks: needs.vector(naming.in_full(i, SINKS), heads),
            wo_a,
            wo_b,
            far,
            bufs,
        }
    }

    /// `Wob (Woa attention(input))`, stored in or added to `out`; what rows to come need is remembered.
    pub fn run(&self, step: &mut Step, input: BufId, out: BufId, combine: Combine) -> Result<()> {
        let Bufs { q, kv, mixed, low, recent, .. } = self.bufs;
        self.project(step, input)?;
        self.turn(step, (q, self.heads, self.head_dim), false)?;
        self.turn(step, (kv, 1, self.head_dim), false)?;
        let mut chosen = None;
        if let Some((compressor, indexer)) = &self.far {
            compressor.run(step)?;
            if let Some(indexer) = indexer {
                self.turn(step, (indexer.q, indexer.of.heads, indexer.of.dim), false)?;
                chosen = Some(indexer.select(step)?);
            }
        }
        let entries = self.far.as_ref().map(|(compressor, _)| Entries {
            entries: step.buf(compressor.entries),
            ratio: compressor.shape.ratio,
            chosen: chosen.map(|c| step.buf(c)),
        });
        let (sinks, seqs) = (step.weight(self.sinks), step.slots);
        let &Compressed { heads, head_dim, scale, window, .. } = self;
        let [q, kv, recent, to] = [q, kv, recent, mixed].map(|b| step.buf(b));
        step.dev.attend_entries(&AttendEntries {
            q,
            kv,
            heads,
            head_dim,
            scale,
            window,
            sinks,
            recent,
            entries,
            seqs,
            out: to,
        })?;
        self.turn(step, (mixed, heads, head_dim), true)?;
        let (rows, weight, x, to) = (step.rows(), step.weight(self.wo_a), step.buf(mixed), step.buf(low));
        step.dev.heads(&Heads { x, rows, weight, out: to })?;
        step.linear(low, [(&self.wo_b, out)], combine)
    }

    /// All products of `input`, then those of what queries are made from; norms.
    fn project(&self, step: &mut Step, input: BufId) -> Result<()> {
        let Bufs { latent, q, kv, .. } = self.bufs;
        let own = [(&self.wq_a, latent), (&self.wkv, kv)];
        match &self.far {
            None => step.linear(input, own, Combine::Store)?,
            Some((c, None)) => {
                let [a, b] = own;
                step.linear(input, [a, b, (&c.kv, c.kv_rows), (&c.gate, c.gate_rows)], Combine::Store)?;
            }
            Some((c, Some(index))) => {
                let ([a, b], i) = (own, &index.compressor);
                let far = [(&c.kv, c.kv_rows), (&c.gate, c.gate_rows)];
                let near = [(&i.kv, i.kv_rows), (&i.gate, i.gate_rows)];
                let weights = (&index.weights, index.weight_rows);
                step.linear(input, [a, b, far[0], far[1], near[0], near[1], weights], Combine::Store)?;
            }
        }
        self.q_a_norm.run(step, latent, latent)?;
        match &self.far {
            Some((_, Some(index))) => {
                step.linear(latent, [(&self.wq_b, q), (&index.wq, index.q)], Combine::Store)?;
            }
            _ => step.linear(latent, [(&self.wq_b, q)], Combine::Store)?,
        }
        self.q_norm.run(step, q, q)?;
        self.kv_norm.run(step, kv, kv)
    }

    /// Rotates the last dimensions of every head, or back.
    fn turn(&self, step: &mut Step, (x, heads, head_dim): (BufId, usize, usize), back: bool) -> Result<()> {
        let Rotation { freqs, pairs, magnitude } = step.ropes[self.rope];
        let (x, positions, first) = (step.buf(x), step.positions, head_dim - self.rotary);
        Ok(step.dev.rope(&Rope { x, heads, head_dim, first, back, positions, freqs, pairs, magnitude })?)
    }
}

impl Indexer {
    fn new(
        config: &Config,
        i: usize,
        (entries, of, q_rank): (EntryConfig, IndexConfig, usize),
        needs: &mut Needs,
    ) -> Self {
        let rope = config.layers[i].rope.unwrap_or(0);
        let shape = CompressShape { ratio: entries.ratio, overlapped: true, dim: of.dim };
        let from = (config.dim, config.rms_eps);
        let compressor = Compressor::new(from, (i, INDEX_COMPRESSOR), shape, (rope, None), needs);
        let mut add = Projections { layer: i, group: Group::Attention, needs: &mut *needs };
        let wq = add.add(INDEX_Q, of.heads * of.dim, q_rank, false);
        let weights = add.add(INDEX_WEIGHTS, of.heads, config.dim, false);
        let mut buf = |role, width| needs.scratch(role, Rows::Chunk, width);
        let (q, weight_rows) =
            (buf("q of the indexer", of.heads * of.dim), buf("weights of heads", of.heads));
        let chosen = buf("selected entries", of.top_k);
        Indexer { of, ratio: entries.ratio, compressor, wq, weights, q, weight_rows, chosen }
    }

    /// Appends the indexer's own entries and selects the best of every row.
    fn select(&self, step: &mut Step) -> Result<BufId> {
        self.compressor.run(step)?;
        let [q, weights, entries, out] =
            [self.q, self.weight_rows, self.compressor.entries, self.chosen].map(|b| step.buf(b));
        let IndexConfig { heads, dim, .. } = self.of;
        let scale = 1.0 / ((heads * dim) as f32).sqrt();
        let (ratio, capacity, seqs) = (self.ratio, entry_room(step.ctx_tokens, self.ratio), step.slots);
        step.dev.select(&Select { q, weights, heads, scale, entries, capacity, ratio, seqs, out })?;
        Ok(self.chosen)
    }
}
