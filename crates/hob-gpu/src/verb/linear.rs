//! Matrices times activations: checks, and which kernels run. Few rows are bound by reading weights (`few`), many by
//! arithmetic (`many`). It must not know how either computes.

pub(crate) mod few;
pub(crate) mod many;
#[cfg(test)]
mod tests;

use hob_compute::{Activation, Combine, ComputeError, Linear, Result, WeightKind, check};

use crate::Gpu;
use crate::act::FEW_ROWS;
use crate::stream::BufferId;
use crate::verb::fold::Fold;

const VERB: &str = "linear";

/// Rows of one product whose weights lie in one buffer.
#[derive(Copy, Clone, Debug)]
struct Segment {
    /// Index in [`Linear::products`].
    product: usize,
    weights: BufferId,
    /// First row in the buffer, and in the product.
    at: usize,
    first: usize,
    rows: usize,
}

impl Gpu {
    /// A `linear` that is checked. A norm is folded only into few rows.
    pub(crate) fn run_linear(&mut self, args: &Linear, fold: Option<&Fold>) -> Result<()> {
        for product in args.written() {
            self.acts.get_mut(VERB, product.out)?.written();
        }
        if args.rows <= FEW_ROWS {
            return self.run_few(args, fold);
        }
        self.stream.lengthy = true;
        self.run_many(args)
    }

    pub(crate) fn check_linear(&self, args: &Linear) -> Result<()> {
        let x = self.shape(VERB, args.x)?;
        check::linear(args, x)?;
        if let Combine::Gated(gate @ (Activation::ClampedSwiglu { .. } | Activation::ReluSquared)) =
            args.combine
        {
            let expected = "a gate of SiLU or GELU on a GPU (experts have others)";
            return Err(ComputeError::shape(VERB, expected, format!("{gate:?}")));
        }
        let written = args.written().count();
        for (i, product) in args.products.iter().enumerate() {
            let weight = self.weight(VERB, product.weight, WeightKind::Matrix)?.shape();
            let bias = product.bias.map(|b| self.weight(VERB, b, WeightKind::Vector)).transpose()?;
            let out = if i < written { Some(self.shape(VERB, product.out)?) } else { None };
            check::product(args, x, weight, bias.map(|b| b.spec.cols), out)?;
            if let (Combine::Gated(_), 1) = (args.combine, i) {
                let gate = self.weight(VERB, args.products[0].weight, WeightKind::Matrix)?;
                check::gated(gate.shape(), weight)?;
            }
        }
        Ok(())
    }

    /// The segments of a product.
    fn segments(&self, args: &Linear, product: usize) -> Result<Vec<Segment>> {
        let parts = &self.weights.get(VERB, args.products[product].weight)?.parts;
        let segment = |part: &crate::weights::Part| Segment {
            product,
            weights: part.buffer,
            at: 0,
            first: part.first_row,
            rows: part.rows,
        };
        Ok(parts.iter().map(segment).collect())
    }

    /// The segments of gate and up, pairs of the same rows.
    fn gated_segments(&self, args: &Linear) -> Result<Vec<[Segment; 2]>> {
        let (gate, up) = (self.segments(args, 0)?, self.segments(args, 1)?);
        let mut pairs = Vec::new();
        for g in &gate {
            for u in &up {
                let (first, end) = (g.first.max(u.first), (g.first + g.rows).min(u.first + u.rows));
                if first < end {
                    let cut = |s: &Segment| Segment { at: first - s.first, first, rows: end - first, ..*s };
                    pairs.push([cut(g), cut(u)]);
                }
            }
        }
        Ok(pairs)
    }
}
