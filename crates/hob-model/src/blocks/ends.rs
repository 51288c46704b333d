//! Where a model begins and ends: the residual stream, embedding, norms, and the head.

use hob_compute::{Combine, Embed, Map};

use super::step::{Projection, Step};
use crate::needs::{BufId, Group, Name, Needs, Rows, WeightId};
use crate::{Config, Result};

const TABLE: Name = Name { gguf: "token_embd", hf: "model.embed_tokens" };
/// The norm before the head, in most architectures.
pub(crate) const FINAL_NORM: Name = Name { gguf: "output_norm", hf: "model.norm" };
const HEAD: Name = Name { gguf: "output", hf: "lm_head" };

/// The residual stream and the buffer its norms go to, both `[rows, dim]`.
#[derive(Copy, Clone)]
pub(crate) struct Stream {
    pub x: BufId,
    pub normed: BufId,
}

impl Stream {
    pub fn new(config: &Config, needs: &mut Needs) -> Self {
        let mut buf = |role| needs.scratch(role, Rows::Chunk, config.dim);
        Stream { x: buf("x"), normed: buf("normed") }
    }
}

/// The embedding table, `[vocab, dim]`, and what its rows are multiplied by.
pub(crate) struct Embedding {
    table: WeightId,
    scale: f32,
}

impl Embedding {
    pub fn new(config: &Config, needs: &mut Needs) -> Self {
        let table = needs.table(needs.naming.top(TABLE), Group::Ends, [config.vocab, config.dim]);
        Embedding { table, scale: config.embedding_scale }
    }

    /// `x[r] = table[token of r] * scale`.
    pub fn run(&self, step: &mut Step, x: BufId) -> Result<()> {
        let (table, out) = (step.weight(self.table), step.buf(x));
        Ok(step.dev.embed(&Embed { table, tokens: step.tokens, out, scale: self.scale })?)
    }
}

/// An RMS norm (Zhang and Sennrich 2019) of rows, or of each of the groups that make up a row.
pub(crate) struct Norm {
    weight: WeightId,
    /// Groups of a row.
    groups: usize,
    eps: f32,
}

impl Norm {
    pub fn new(weight: WeightId, groups: usize, eps: f32) -> Self {
        Norm { weight, groups, eps }
    }

    /// Declares the norm `name` of layer `i`, over the residual stream.
    pub fn of_layer(config: &Config, i: usize, name: Name, needs: &mut Needs) -> Self {
        let weight = needs.norm(needs.naming.layer(i, name, "weight"), config.dim);
        Norm::new(weight, 1, config.rms_eps)
    }

    /// All batch rows of `x`; `out` may be `x`.
    pub fn run(&self, step: &mut Step, x: BufId, out: BufId) -> Result<()> {
        self.run_rows(step, x, out, step.rows())
    }

    /// As a part of [`hob_compute::AttendNew`].
    pub fn of_heads(&self, step: &Step) -> hob_compute::HeadNorm {
        let &Norm { groups, eps, .. } = self;
        hob_compute::HeadNorm { weight: step.weight(self.weight), groups, eps }
    }

    fn run_rows(&self, step: &mut Step, x: BufId, out: BufId, rows: usize) -> Result<()> {
        let &Norm { groups, eps, .. } = self;
        let (x, out, weight) = (step.buf(x), step.buf(out), step.weight(self.weight));
        Ok(step.dev.norm(&hob_compute::Norm { x, rows, groups, weight, eps, out })?)
    }
}

/// Final norm and the matrix to logits, for the rows that want them only.
pub(crate) struct Head {
    norm: Norm,
    matrix: Projection,
    /// `[logit_rows, dim]`: the wanted rows of the residual stream.
    gathered: BufId,
    /// `[logit_rows, dim]`
    normed: BufId,
    /// `[logit_rows, vocab]`
    logits: BufId,
    scale: f32,
    softcap: Option<f32>,
}

impl Head {
    /// Declares the head behind a norm of this name.
    pub fn new(config: &Config, norm: Name, needs: &mut Needs) -> Self {
        Self::spelled(config, norm, HEAD, needs)
    }

    /// As [`Head::new`], for an architecture that spells the head's matrix otherwise.
    pub fn spelled(config: &Config, norm: Name, head: Name, needs: &mut Needs) -> Self {
        let norm = needs.norm(needs.naming.top(norm), config.dim);
        let name = needs.naming.top(if config.tied { TABLE } else { head });
        let matrix = needs.matrix(name, Group::Ends, [config.vocab, config.dim]);
        let mut buf = |role, width| needs.scratch(role, Rows::Logits, width);
        Head {
            norm: Norm::new(norm, 1, config.rms_eps),
            matrix: Projection { weight: matrix, bias: None },
            gathered: buf("gathered", config.dim),
            normed: buf("head normed", config.dim),
            logits: buf("logits", config.vocab),
            scale: config.logit_scale,
            softcap: config.logit_softcap,
        }
    }

    pub fn logits(&self) -> BufId {
        self.logits
    }

    /// Logits of `step.logit_rows`, in their order, from the residual stream `x`.
    pub fn run(&self, step: &mut Step, x: BufId) -> Result<()> {
        let (a, out) = (step.buf(x), step.buf(self.gathered));
        for (to, &from) in step.logit_rows.iter().enumerate() {
            step.dev.map(&Map::CopyRow { a, from, out, to })?;
        }
        let rows = step.logit_rows.len();
        if rows == 0 {
            return Ok(());
        }
        self.norm.run_rows(step, self.gathered, self.normed, rows)?;
        step.linear_rows(self.normed, rows, [(&self.matrix, self.logits)], Combine::Store)?;
        let logits = step.buf(self.logits);
        if self.scale != 1.0 {
            step.dev.map(&Map::Scale { a: logits, factor: self.scale, out: logits, rows })?;
        }
        if let Some(cap) = self.softcap {
            step.dev.map(&Map::Softcap { a: logits, cap, out: logits, rows })?;
        }
        Ok(())
    }
}
