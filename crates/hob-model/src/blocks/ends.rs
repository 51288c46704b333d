//! Where a model begins and ends: the residual stream, embedding, norms, and the head.

use hob_compute::{Combine, Embed, Map};

use super::step::{Projection, Step};
use crate::needs::{BufId, Group, Name, Needs, Rows, WeightId};
use crate::{Config, Result};

const TABLE: Name = Name { gguf: "token_embd", hf: "model.embed_tokens" };
const FINAL_NORM: Name = Name { gguf: "output_norm", hf: "model.norm" };
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

/// The embedding table, `[vocab, dim]`.
pub(crate) struct Embedding(WeightId);

impl Embedding {
    pub fn new(config: &Config, needs: &mut Needs) -> Self {
        Embedding(needs.table(needs.naming.top(TABLE), [config.vocab, config.dim]))
    }

    /// `x[r] = table[token of r]`.
    pub fn run(&self, step: &mut Step, x: BufId) -> Result<()> {
        let (table, out) = (step.weight(self.0), step.buf(x));
        Ok(step.dev.embed(&Embed { table, tokens: step.tokens, out, scale: 1.0 })?)
    }
}

/// An RMS norm of whole rows (Zhang and Sennrich 2019).
pub(crate) struct Norm {
    weight: WeightId,
    eps: f32,
}

impl Norm {
    /// Declares the norm `name` of layer `i`.
    pub fn of_layer(config: &Config, i: usize, name: Name, needs: &mut Needs) -> Self {
        let weight = needs.vector(needs.naming.layer(i, name, "weight"), config.dim);
        Norm { weight, eps: config.rms_eps }
    }

    pub fn run(&self, step: &mut Step, x: BufId, out: BufId) -> Result<()> {
        self.run_rows(step, x, out, step.rows())
    }

    fn run_rows(&self, step: &mut Step, x: BufId, out: BufId, rows: usize) -> Result<()> {
        let (x, out, weight) = (step.buf(x), step.buf(out), step.weight(self.weight));
        Ok(step.dev.norm(&hob_compute::Norm { x, rows, groups: 1, weight, eps: self.eps, out })?)
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
}

impl Head {
    pub fn new(config: &Config, needs: &mut Needs) -> Self {
        let norm = needs.vector(needs.naming.top(FINAL_NORM), config.dim);
        let name = needs.naming.top(if config.tied { TABLE } else { HEAD });
        let matrix = needs.matrix(name, Group::Ends, [config.vocab, config.dim]);
        let mut buf = |role, width| needs.scratch(role, Rows::Logits, width);
        Head {
            norm: Norm { weight: norm, eps: config.rms_eps },
            matrix: Projection { weight: matrix, bias: None },
            gathered: buf("gathered", config.dim),
            normed: buf("head normed", config.dim),
            logits: buf("logits", config.vocab),
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
        step.linear_rows(self.normed, rows, [(&self.matrix, self.logits)], Combine::Store)
    }
}
