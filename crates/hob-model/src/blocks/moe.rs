//! A mixture of experts: a router chooses a few gated feed-forward blocks for every row.

use hob_compute::{Activation, Combine, Experts, Route};

use super::step::{Projection, Step};
use crate::config::ExpertConfig;
use crate::needs::{BufId, Group, Name, Needs, Rows, WeightId};
use crate::stacked::{ExpertNames, Half};
use crate::{Naming, Result};

/// How an architecture spells the tensors of its mixtures.
#[derive(Copy, Clone)]
pub(crate) struct MoeNames {
    pub router: Name,
    /// What is added for the selection, in full within the layer.
    pub bias: Name,
    pub gate: ExpertNames,
    pub up: ExpertNames,
    pub down: ExpertNames,
}

/// One layer's mixture.
pub(crate) struct Moe {
    router: Projection,
    bias: Option<WeightId>,
    gate: WeightId,
    up: WeightId,
    down: WeightId,
    config: ExpertConfig,
    activation: Activation,
    /// `[rows, experts]`
    logits: BufId,
    /// `[rows, 2 * top_k]`
    routes: BufId,
    /// `[rows * top_k, ff]`
    hidden: BufId,
}

impl Moe {
    /// Declares layer `i`'s weights and buffers; `dim` is the width of the residual stream.
    pub fn new(
        dim: usize,
        i: usize,
        config: &ExpertConfig,
        (names, activation): (MoeNames, Activation),
        needs: &mut Needs,
    ) -> Self {
        let &ExpertConfig { count, ff, routing, bias } = config;
        let (top_k, naming) = (routing.top_k, needs.naming);
        let router = needs.matrix(naming.layer(i, names.router, "weight"), Group::Ffn, [count, dim]);
        let bias = bias.then(|| {
            let name = match naming {
                Naming::Gguf => format!("blk.{i}.{}", names.bias.gguf),
                Naming::HuggingFace => format!("model.layers.{i}.{}", names.bias.hf),
            };
            needs.vector(name, count)
        });
        let mut stack = |names, half, shape| needs.experts(i, names, half, shape, top_k);
        let gate = stack(names.gate, Half { index: 0, of: 2 }, [count, ff, dim]);
        let up = stack(names.up, Half { index: 1, of: 2 }, [count, ff, dim]);
        let down = stack(names.down, Half { index: 0, of: 1 }, [count, dim, ff]);
        Moe {
            router: Projection { weight: router, bias: None },
            bias,
            gate,
            up,
            down,
            config: config.clone(),
            activation,
            logits: needs.scratch("router logits", Rows::Chunk, count),
            routes: needs.scratch("routes", Rows::Chunk, 2 * top_k),
            hidden: needs.scratch("expert hidden", Rows::Routed { top_k }, ff),
        }
    }

    /// The weighted sum of the chosen experts, stored in or added to `out`.
    pub fn run(&self, step: &mut Step, input: BufId, out: BufId, combine: Combine) -> Result<()> {
        step.linear(input, [(&self.router, self.logits)], Combine::Store)?;
        let (rows, rule) = (step.rows(), self.config.routing);
        let [logits, routes, hidden] = [self.logits, self.routes, self.hidden].map(|b| step.buf(b));
        let bias = self.bias.map(|b| step.weight(b));
        step.dev.route(&Route { logits, rows, rule, bias, out: routes })?;
        let [gate, up, down] = [self.gate, self.up, self.down].map(|w| step.weight(w));
        let (x, out, top_k, activation) = (step.buf(input), step.buf(out), rule.top_k, self.activation);
        let add = combine == Combine::Add;
        Ok(step.dev.experts(&Experts {
            x,
            rows,
            routes,
            top_k,
            gate,
            up,
            down,
            activation,
            hidden,
            out,
            add,
        })?)
    }
}
