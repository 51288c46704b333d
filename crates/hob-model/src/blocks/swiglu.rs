//! The gated feed-forward block (Shazeer 2020): `down(activation(gate x) * (up x))`; in some models it has no gate:
//! `down(activation(up x))`.

use hob_compute::{Activation, Combine, Map};

use super::step::{Projection, Projections, Step};
use crate::needs::{BufId, Group, Name, Needs, Rows};
use crate::{LayerConfig, Result};

/// How an architecture spells the tensors of its feed-forward block.
#[derive(Copy, Clone)]
pub(crate) struct FfnNames {
    /// `None` where there is no gate.
    pub gate: Option<Name>,
    pub up: Name,
    /// Gate and up in one matrix.
    pub gate_up: Name,
    pub down: Name,
}

impl FfnNames {
    pub const USUAL: FfnNames = FfnNames {
        gate: Some(Name { gguf: "ffn_gate", hf: "mlp.gate_proj" }),
        up: Name { gguf: "ffn_up", hf: "mlp.up_proj" },
        gate_up: Name { gguf: "ffn_up", hf: "mlp.gate_up_proj" },
        down: Name { gguf: "ffn_down", hf: "mlp.down_proj" },
    };
}

/// The size of a feed-forward block, and how its matrices are stored.
#[derive(Copy, Clone)]
pub(crate) struct FfnShape {
    /// Of the hidden layer.
    pub width: usize,
    pub bias: bool,
    /// Whether gate and up are one matrix.
    pub fused: bool,
}

impl FfnShape {
    pub fn of(layer: &LayerConfig) -> Self {
        FfnShape { width: layer.ffn, bias: layer.biases.ffn, fused: layer.fused.gate_up }
    }

    pub fn plain(width: usize) -> Self {
        FfnShape { width, bias: false, fused: false }
    }
}

/// One layer's feed-forward block.
pub(crate) struct Swiglu {
    gate: Option<Projection>,
    up: Projection,
    down: Projection,
    activation: Activation,
    /// `[rows, ffn]`
    hidden: BufId,
    /// The same for up, where the gate is not one that products end with.
    up_rows: Option<BufId>,
}

impl Swiglu {
    /// Declares layer `i`'s weights and buffers; `dim` is the width of the residual stream.
    pub fn new(
        dim: usize,
        i: usize,
        shape: FfnShape,
        (names, activation): (FfnNames, Activation),
        needs: &mut Needs,
    ) -> Self {
        let FfnShape { width: ffn, bias, fused } = shape;
        let mut add = Projections { layer: i, group: Group::Ffn, needs };
        let (gate, up) = if fused {
            let [gate, up] = add.fused(names.gate_up, [ffn, ffn], dim, bias);
            (Some(gate), up)
        } else {
            (names.gate.map(|gate| add.add(gate, ffn, dim, bias)), add.add(names.up, ffn, dim, bias))
        };
        let down = add.add(names.down, dim, ffn, bias);
        let hidden = needs.scratch("hidden", Rows::Chunk, ffn);
        let clamped = matches!(activation, Activation::ClampedSwiglu { .. });
        let up_rows = clamped.then(|| needs.scratch("hidden up", Rows::Chunk, ffn));
        Swiglu { gate, up, down, activation, hidden, up_rows }
    }

    /// `down(activation(gate input) * (up input))`, stored in or added to `out`.
    pub fn run(&self, step: &mut Step, input: BufId, out: BufId, combine: Combine) -> Result<()> {
        let (rows, activation) = (step.rows(), self.activation);
        match (&self.gate, self.up_rows) {
            (Some(gate), Some(up)) => {
                step.linear(input, [(gate, self.hidden), (&self.up, up)], Combine::Store)?;
                let [a, b] = [self.hidden, up].map(|b| step.buf(b));
                step.dev.map(&Map::Gate { a, b, first: 0, activation, out: a, rows })?;
            }
            (Some(gate), None) => {
                let both = [(gate, self.hidden), (&self.up, self.hidden)];
                step.linear(input, both, Combine::Gated(activation))?;
            }
            (None, _) => {
                step.linear(input, [(&self.up, self.hidden)], Combine::Store)?;
                let hidden = step.buf(self.hidden);
                step.dev.map(&Map::Activate { a: hidden, activation, out: hidden, rows })?;
            }
        }
        step.linear(self.hidden, [(&self.down, out)], combine)
    }
}
