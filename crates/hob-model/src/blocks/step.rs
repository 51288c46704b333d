//! One pass over a batch as a block sees it: the device, the bound handles, and the rows.

use hob_compute::{
    Buf, Combine, Compute, Linear, Memory, Product, Rotation, SeqRows, SlotRows, Token, Weight,
};

use crate::Result;
use crate::needs::{BufId, Group, Name, Needs, StateId, WeightId};
use crate::stacked::Part;
use crate::state::LayerMemory;

/// What the runner hands to every block.
pub(crate) struct Step<'a> {
    pub dev: &'a mut dyn Compute,
    pub weights: &'a [Weight],
    pub bufs: &'a [Buf],
    /// What recurrences remember.
    pub memories: &'a [LayerMemory],
    /// Rotary tables.
    pub ropes: &'a [Rotation],
    /// Token of each batch row.
    pub tokens: &'a [Token],
    /// Position of each batch row.
    pub positions: &'a [u32],
    /// Rows of each sequence, with its pages of the layer that runs.
    pub seqs: &'a [SeqRows<'a>],
    /// Rows of each sequence, with its row of the state buffers.
    pub slots: &'a [SlotRows],
    /// Batch rows that want logits, ascending.
    pub logit_rows: &'a [usize],
    /// Tokens one sequence may grow to.
    pub ctx_tokens: usize,
}

impl Step<'_> {
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    pub fn weight(&self, id: WeightId) -> Weight {
        self.weights[id.0]
    }

    pub fn buf(&self, id: BufId) -> Buf {
        self.bufs[id.0]
    }

    pub fn memory(&self, id: StateId) -> Memory {
        self.memories[id.0].memory
    }

    /// All batch rows of `x` through several projections at once.
    pub fn linear<const N: usize>(
        &mut self,
        x: BufId,
        into: [(&Projection, BufId); N],
        combine: Combine,
    ) -> Result<()> {
        self.linear_rows(x, self.rows(), into, combine)
    }

    /// The first `rows` rows of `x` through several projections at once.
    pub fn linear_rows<const N: usize>(
        &mut self,
        x: BufId,
        rows: usize,
        into: [(&Projection, BufId); N],
        combine: Combine,
    ) -> Result<()> {
        let products = into.map(|(p, out)| Product {
            weight: self.weight(p.weight),
            bias: p.bias.map(|b| self.weight(b)),
            out: self.buf(out),
        });
        let x = self.buf(x);
        Ok(self.dev.linear(&Linear { x, first_row: 0, rows, products: &products, combine })?)
    }
}

/// A matrix of a layer with its bias, if it has one.
pub(crate) struct Projection {
    pub weight: WeightId,
    pub bias: Option<WeightId>,
}

/// Declares the projections of one layer.
pub(crate) struct Projections<'a> {
    pub layer: usize,
    pub group: Group,
    pub needs: &'a mut Needs,
}

impl Projections<'_> {
    /// `[rows, cols]`, and a bias of `rows` where `bias` says so.
    pub fn add(&mut self, name: Name, rows: usize, cols: usize, bias: bool) -> Projection {
        let naming = self.needs.naming;
        let weight = self.needs.matrix(naming.layer(self.layer, name, "weight"), self.group, [rows, cols]);
        let bias = bias.then(|| self.needs.vector(naming.layer(self.layer, name, "bias"), rows));
        Projection { weight, bias }
    }

    /// Two matrices stored as one, head by head: of each head so many rows of the first, so many of the second.
    pub fn by_head(&mut self, name: Name, heads: usize, rows: [usize; 2], cols: usize) -> [Projection; 2] {
        let name = self.needs.naming.layer(self.layer, name, "weight");
        let all = rows[0] + rows[1];
        let shape = vec![heads * all, cols];
        [(0, rows[0]), (rows[0], rows[1])].map(|(first, rows)| {
            let part = |h| Part::rows(name.clone(), shape.clone(), h * all + first, rows);
            let weight = self.needs.gathered(self.group, cols, vec![(0..heads).map(part).collect()]);
            Projection { weight, bias: None }
        })
    }

    /// Matrices stored as one, in rows of the given numbers; a bias is stored as one too.
    pub fn fused<const N: usize>(
        &mut self,
        name: Name,
        rows: [usize; N],
        cols: usize,
        bias: bool,
    ) -> [Projection; N] {
        let (naming, all) = (self.needs.naming, rows.iter().sum::<usize>());
        let mut first = 0;
        rows.map(|rows| {
            let (matrix, part) = (naming.layer(self.layer, name, "weight"), [rows, cols]);
            let weight = self.needs.matrix_part(matrix, self.group, &[all, cols], first, part);
            let of_bias = |needs: &mut Needs| {
                needs.vector_part(naming.layer(self.layer, name, "bias"), all, first, rows)
            };
            let bias = bias.then(|| of_bias(self.needs));
            first += rows;
            Projection { weight, bias }
        })
    }
}
