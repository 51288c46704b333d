//! A mixture of experts: a router chooses a few gated feed-forward blocks for every row.

use hob_compute::{Activation, Combine, Embed, Experts, Map, Route};

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
    /// `None` where experts have no gate.
    pub gate: Option<ExpertNames>,
    /// The experts of every token, in full within the layer, where a table names them.
    pub ids: Name,
    pub up: ExpertNames,
    pub down: ExpertNames,
    /// The projections to the width of experts and back, where [`ExpertConfig::latent`] names one.
    pub latent: [Name; 2],
    /// Of the expert that every row passes.
    pub shared: FfnNames,
    /// One row, whose product with the input, through a sigmoid, is the weight of that expert.
    pub shared_gate: Option<Name>,
}

impl MoeNames {
    /// As most spell the gates of experts.
    pub const GATE: ExpertNames = ExpertNames {
        gguf: "ffn_gate_exps",
        hf_each: "mlp.experts.{}.gate_proj",
        hf_stacked: "mlp.experts.gate_up_proj",
        gguf_fused: Some("ffn_gate_up_exps"),
        hf_turns: false,
    };

    /// Of Qwen3, GLM-4.5 and their kin.
    pub const USUAL: MoeNames = MoeNames {
        router: Name { gguf: "ffn_gate_inp", hf: "mlp.gate" },
        bias: Name { gguf: "exp_probs_b.bias", hf: "mlp.gate.e_score_correction_bias" },
        scales: None,
        gate: Some(Self::GATE),
        ids: Name { gguf: "ffn_gate_tid2eid.weight", hf: "mlp.gate.tid2eid" },
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
        latent: [
            Name { gguf: "ffn_latent_down", hf: "mlp.fc1_latent_proj" },
            Name { gguf: "ffn_latent_up", hf: "mlp.fc2_latent_proj" },
        ],
        shared: FfnNames {
            gate: Some(Name { gguf: "ffn_gate_shexp", hf: "mlp.shared_experts.gate_proj" }),
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
    latent: Option<Latent>,
    gate: Option<WeightId>,
    /// `[vocab, top_k]`, and where its rows go, `[rows, top_k]`.
    ids: Option<(WeightId, BufId)>,
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

/// The way to the width of experts and back.
struct Latent {
    there: Projection,
    back: Projection,
    /// `[rows, latent]`: what experts read, and the sum of what they give.
    x: BufId,
    sum: BufId,
}

impl Latent {
    fn new(dim: usize, i: usize, names: [Name; 2], latent: usize, needs: &mut Needs) -> Self {
        let mut matrix = |name, shape| {
            let weight = needs.matrix(needs.naming.layer(i, name, "weight"), Group::Ffn, shape);
            Projection { weight, bias: None }
        };
        let (there, back) = (matrix(names[0], [latent, dim]), matrix(names[1], [dim, latent]));
        let mut buf = |role| needs.scratch(role, Rows::Chunk, latent);
        Latent { there, back, x: buf("latent"), sum: buf("sum of latent experts") }
    }
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

    /// Adds the gated expert to `out`; the gate was computed beside the router's logits.
    fn run(&self, step: &mut Step, shared: &Swiglu, input: BufId, out: BufId) -> Result<()> {
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
        names: (MoeNames, Activation),
        needs: &mut Needs,
    ) -> Self {
        Self::hashed(dim, i, (config, None), names, needs)
    }

    /// As [`Moe::new`], for a model of `vocab` tokens whose experts may be named by a table.
    pub fn hashed(
        dim: usize,
        i: usize,
        (config, vocab): (&ExpertConfig, Option<usize>),
        (names, activation): (MoeNames, Activation),
        needs: &mut Needs,
    ) -> Self {
        let &ExpertConfig { count, ff, routing, bias, shared, biased, clamp, latent, .. } = config;
        let (top_k, naming) = (routing.top_k, needs.naming);
        let router = needs.matrix(naming.layer(i, names.router, "weight"), Group::Ffn, [count, dim]);
        let bias = bias.then(|| needs.vector(naming.in_full(i, names.bias), count));
        let router_bias = biased.then(|| needs.vector(naming.layer(i, names.router, "bias"), count));
        let mut stack = |names, half, shape| needs.experts(i, names, half, shape, top_k);
        let wide = latent.unwrap_or(dim);
        let gate = names.gate.map(|gate| stack(gate, Half { index: 0, of: 2 }, [count, ff, wide]));
        let half = if gate.is_some() { Half { index: 1, of: 2 } } else { Half { index: 0, of: 1 } };
        let up = stack(names.up, half, [count, ff, wide]);
        let down = stack(names.down, Half { index: 0, of: 1 }, [count, wide, ff]);
        let mut bias_of = |names, half, width| needs.expert_bias(i, names, half, [count, width]);
        let biases = names.gate.filter(|_| biased).map(|gate| {
            [
                bias_of(gate, Half { index: 0, of: 2 }, ff),
                bias_of(names.up, half, ff),
                bias_of(names.down, Half { index: 0, of: 1 }, wide),
            ]
        });
        let activation = clamp.map_or(activation, |Clamp { alpha, limit, plus_one }| {
            Activation::ClampedSwiglu { alpha, limit, plus_one }
        });
        let ids = vocab.filter(|_| config.hashed).map(|vocab| {
            let table = needs.ids(naming.in_full(i, names.ids), [vocab, top_k], count);
            (table, needs.scratch("experts of tokens", Rows::Chunk, top_k))
        });
        Moe {
            router: Projection { weight: router, bias: router_bias },
            bias,
            scales: names.scales.map(|name| needs.vector(naming.in_full(i, name), count)),
            latent: latent.map(|latent| Latent::new(dim, i, names.latent, latent, needs)),
            ids,
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
        let router = (&self.router, self.logits);
        match &self.shared_gate {
            Some(gate) => step.linear(input, [router, (&gate.row, gate.gate)], Combine::Store)?,
            None => step.linear(input, [router], Combine::Store)?,
        }
        let (rows, rule) = (step.rows(), self.config.routing);
        let [logits, out] = [self.logits, self.routes].map(|b| step.buf(b));
        if factor != 1.0 {
            step.dev.map(&Map::Scale { a: logits, factor, out: logits, rows })?;
        }
        let chosen = match self.ids {
            Some((table, ids)) => {
                let (table, out) = (step.weight(table), step.buf(ids));
                step.dev.embed(&Embed { table, tokens: step.tokens, out, scale: 1.0 })?;
                Some(out)
            }
            None => None,
        };
        let [bias, scales] = [self.bias, self.scales].map(|w| w.map(|w| step.weight(w)));
        Ok(step.dev.route(&Route { logits, rows, rule, bias, scales, chosen, out })?)
    }

    /// The weighted sum of the experts that were chosen, for `input`: what they were chosen by, where the shared expert has
    /// a gate.
    pub fn mix(&self, step: &mut Step, input: BufId, out: BufId, combine: Combine) -> Result<()> {
        let (rows, top_k) = (step.rows(), self.config.routing.top_k);
        let [routes, hidden] = [self.routes, self.hidden].map(|b| step.buf(b));
        let (from, to, add) = match &self.latent {
            Some(latent) => {
                step.linear(input, [(&latent.there, latent.x)], Combine::Store)?;
                (latent.x, latent.sum, false)
            }
            None => (input, out, combine == Combine::Add),
        };
        let (gate, [up, down]) =
            (self.gate.map(|w| step.weight(w)), [self.up, self.down].map(|w| step.weight(w)));
        let (x, sum, activation) = (step.buf(from), step.buf(to), self.activation);
        let biases = self.biases.map(|all| all.map(|w| step.weight(w)));
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
        if let Some(latent) = &self.latent {
            step.linear(latent.sum, [(&latent.back, out)], combine)?;
        }
        match (&self.shared, &self.shared_gate) {
            (Some(shared), Some(gate)) => gate.run(step, shared, input, out),
            (Some(shared), None) => shared.run(step, input, out, Combine::Add),
            (None, _) => Ok(()),
        }
    }
}
