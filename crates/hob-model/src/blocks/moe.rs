//! A mixture of experts: a router chooses a few gated feed-forward blocks for every row.

use hob_compute::{Activation, Combine, Experts, Map, Route};

use super::step::{Projection, Step};
use super::swiglu::{FfnNames, FfnShape, Swiglu};
use crate::Result;
use crate::config::{Clamp, ExpertConfig};
use crate::needs::{BufId, Group, Name, Needs, Rows, WeightId};
use crate::stacked::{ExpertNames, Half};

/// How an architecture spells the tensors of its mixtures.
#[derive(Copy, Clone)]
pub(crate) struct MoeNames {
    pub router: Name,
    /// What is added for the selection, in full within the layer.
    pub bias: Name,
    /// What the weights of experts are multiplied by, in full within the layer.
    pub scales: Option<Name>,
    pub gate: ExpertNames,
    pub up: ExpertNames,
    pub down: ExpertNames,
    /// Of the expert that every row passes.
    pub shared: FfnNames,
    /// One row, whose product with the input, through a sigmoid, is the weight of that expert.
    pub shared_gate: Option<Name>,
}

impl MoeNames {
    /// Of Qwen3, GLM-4.5 and their kin.
    pub const USUAL: MoeNames = MoeNames {
        router: Name { gguf: "ffn_gate_inp", hf: "mlp.gate" },
        bias: Name { gguf: "exp_probs_b.bias", hf: "mlp.gate.e_score_correction_bias" },
        scales: None,
        gate: ExpertNames {
            gguf: "ffn_gate_exps",
            hf_each: "mlp.experts.{}.gate_proj",
            hf_stacked: "mlp.experts.gate_up_proj",
            gguf_fused: Some("ffn_gate_up_exps"),
            hf_turns: false,
        },
        up: ExpertNames {
            gguf: "ffn_up_exps",
            hf_each: "mlp.experts.{}.up_proj",
            hf_stacked: "mlp.experts.gate_up_proj",
            gguf_fused: Some("ffn_gate_up_exps"),
            hf_turns: false,
        },
        down: ExpertNames {
            gguf: "ffn_down_exps",
            hf_each: "mlp.experts.{}.down_proj",
            hf_stacked: "mlp.experts.down_proj",
            gguf_fused: None,
            hf_turns: false,
        },
        shared: FfnNames {
            gate: Name { gguf: "ffn_gate_shexp", hf: "mlp.shared_experts.gate_proj" },
            up: Name { gguf: "ffn_up_shexp", hf: "mlp.shared_experts.up_proj" },
            gate_up: Name { gguf: "ffn_up_shexp", hf: "mlp.shared_experts.gate_up_proj" },
            down: Name { gguf: "ffn_down_shexp", hf: "mlp.shared_experts.down_proj" },
        },
        shared_gate: None,
    };
}

/// One layer's mixture.
pub(crate) struct Moe {
    router: Projection,
    bias: Option<WeightId>,
    scales: Option<WeightId>,
    gate: WeightId,
    up: WeightId,
    down: WeightId,
    /// Of gate, up and down.
    biases: Option<[WeightId; 3]>,
    shared: Option<Swiglu>,
    shared_gate: Option<Gate>,
    config: ExpertConfig,
    activation: Activation,
    /// `[rows, experts]`
    logits: BufId,
    /// `[rows, 2 * top_k]`
    routes: BufId,
    /// `[rows * top_k, ff]`
    hidden: BufId,
}

/// The gate of the expert that every row passes.
struct Gate {
    row: Projection,
    /// `[rows, 1]`
    gate: BufId,
    /// `[rows, dim]`: what is gated.
    ungated: BufId,
}

impl Gate {
    fn new(dim: usize, i: usize, name: Name, needs: &mut Needs) -> Self {
        let weight = needs.matrix(needs.naming.layer(i, name, "weight"), Group::Ffn, [1, dim]);
        Gate {
            row: Projection { weight, bias: None },
            gate: needs.scratch("shared expert's gate", Rows::Chunk, 1),
            ungated: needs.scratch("shared expert", Rows::Chunk, dim),
        }
    }

    /// Adds the gated expert to `out`.
    fn run(&self, step: &mut Step, shared: &Swiglu, input: BufId, out: BufId) -> Result<()> {
        step.linear(input, [(&self.row, self.gate)], Combine::Store)?;
        shared.run(step, input, self.ungated, Combine::Store)?;
        let [a, gate, out] = [self.ungated, self.gate, out].map(|b| step.buf(b));
        Ok(step.dev.map(&Map::SigmoidGate { a, gate, out, add: true, rows: step.rows() })?)
    }
}

impl Moe {
    /// Declares the weights and buffers of layer `i`, whose mixture is `config`; `dim` is the width of the residual
    /// stream.
    pub fn new(
        dim: usize,
        i: usize,
        config: &ExpertConfig,
        (names, activation): (MoeNames, Activation),
        needs: &mut Needs,
    ) -> Self {
        let &ExpertConfig { count, ff, routing, bias, shared, biased, clamp, .. } = config;
        let (top_k, naming) = (routing.top_k, needs.naming);
        let router = needs.matrix(naming.layer(i, names.router, "weight"), Group::Ffn, [count, dim]);
        let bias = bias.then(|| needs.vector(naming.in_full(i, names.bias), count));
        let router_bias = biased.then(|| needs.vector(naming.layer(i, names.router, "bias"), count));
        let mut stack = |names, half, shape| needs.experts(i, names, half, shape, top_k);
        let gate = stack(names.gate, Half { index: 0, of: 2 }, [count, ff, dim]);
        let up = stack(names.up, Half { index: 1, of: 2 }, [count, ff, dim]);
        let down = stack(names.down, Half { index: 0, of: 1 }, [count, dim, ff]);
        let mut bias_of = |names, half, width| needs.expert_bias(i, names, half, [count, width]);
        let biases = biased.then(|| {
            [
                bias_of(names.gate, Half { index: 0, of: 2 }, ff),
                bias_of(names.up, Half { index: 1, of: 2 }, ff),
                bias_of(names.down, Half { index: 0, of: 1 }, dim),
            ]
        });
        let activation =
            clamp.map_or(activation, |Clamp { alpha, limit }| Activation::ClampedSwiglu { alpha, limit });
        Moe {
            router: Projection { weight: router, bias: router_bias },
            bias,
            scales: names.scales.map(|name| needs.vector(naming.in_full(i, name), count)),
            gate,
            up,
            down,
            biases,
            shared: shared
                .map(|ff| Swiglu::new(dim, i, FfnShape::plain(ff), (names.shared, activation), needs)),
            shared_gate: names
                .shared_gate
                .filter(|_| shared.is_some())
                .map(|name| Gate::new(dim, i, name, needs)),
            config: config.clone(),
            activation,
            logits: needs.scratch("router logits", Rows::Chunk, count),
            routes: needs.scratch("routes", Rows::Chunk, 2 * top_k),
            hidden: needs.scratch("expert hidden", Rows::Routed { top_k }, ff),
        }
    }

    /// The weighted sum of the chosen experts and the output of the shared one, stored in or added to `out`.
    pub fn run(&self, step: &mut Step, input: BufId, out: BufId, combine: Combine) -> Result<()> {
        self.choose(step, input, 1.0)?;
        self.mix(step, input, out, combine)
    }

    /// Chooses the experts of every row by what the router says of `input`, times `factor`.
    pub fn choose(&self, step: &mut Step, input: BufId, factor: f32) -> Result<()> {
        step.linear(input, [(&self.router, self.logits)], Combine::Store)?;
        let (rows, rule) = (step.rows(), self.config.routing);
        let [logits, out] = [self.logits, self.routes].map(|b| step.buf(b));
        if factor != 1.0 {
            step.dev.map(&Map::Scale { a: logits, factor, out: logits, rows })?;
        }
        let [bias, scales] = [self.bias, self.scales].map(|w| w.map(|w| step.weight(w)));
        Ok(step.dev.route(&Route { logits, rows, rule, bias, scales, out })?)
    }

    /// The weighted sum of the experts that were chosen, for `input`.
    pub fn mix(&self, step: &mut Step, input: BufId, out: BufId, combine: Combine) -> Result<()> {
        let (rows, top_k) = (step.rows(), self.config.routing.top_k);
        let [routes, hidden] = [self.routes, self.hidden].map(|b| step.buf(b));
        let [gate, up, down] = [self.gate, self.up, self.down].map(|w| step.weight(w));
        let (x, sum, activation) = (step.buf(input), step.buf(out), self.activation);
        let biases = self.biases.map(|all| all.map(|w| step.weight(w)));
        let add = combine == Combine::Add;
        step.dev.experts(&Experts {
            x,
            rows,
            routes,
            top_k,
            gate,
            up,
            down,
            biases,
            activation,
            hidden,
            out: sum,
            add,
        })?;
        match (&self.shared, &self.shared_gate) {
            (Some(shared), Some(gate)) => gate.run(step, shared, input, out),
            (Some(shared), None) => shared.run(step, input, out, Combine::Add),
            (None, _) => Ok(()),
        }
    }
}
