//! The gated feed-forward block (Shazeer 2020): `down(activation(gate x) * (up x))`.

use hob_compute::{Activation, Combine};

use super::step::{Projection, Projections, Step};
use crate::needs::{BufId, Group, Name, Needs, Rows};
use crate::{LayerConfig, Result};

/// How an architecture spells the tensors of its feed-forward block.
#[derive(Copy, Clone)]
pub(crate) struct FfnNames {
    pub gate: Name,
    pub up: Name,
    /// Gate and up in one matrix.
    pub gate_up: Name,
    pub down: Name,
}

impl FfnNames {
    pub const USUAL: FfnNames = FfnNames {
        gate: Name { gguf: "ffn_gate", hf: "mlp.gate_proj" },
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
    gate: Projection,
    up: Projection,
    down: Projection,
    activation: Activation,
    /// `[rows, ffn]`
    hidden: BufId,
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
        let [gate, up] = if fused {
            add.fused(names.gate_up, [ffn, ffn], dim, bias)
        } else {
            [names.gate, names.up].map(|name| add.add(name, ffn, dim, bias))
        };
        let down = add.add(names.down, dim, ffn, bias);
        let hidden = needs.scratch("hidden", Rows::Chunk, ffn);
        Swiglu { gate, up, down, activation, hidden }
    }

    /// `down(activation(gate input) * (up input))`, stored in or added to `out`.
    pub fn run(&self, step: &mut Step, input: BufId, out: BufId, combine: Combine) -> Result<()> {
        let both = [(&self.gate, self.hidden), (&self.up, self.hidden)];
        step.linear(input, both, Combine::Gated(self.activation))?;
        step.linear(self.hidden, [(&self.down, out)], combine)
    }
}
