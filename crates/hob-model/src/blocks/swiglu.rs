//! The gated feed-forward block (Shazeer 2020): `down(silu(gate x) * (up x))`.

use hob_compute::{Activation, Combine};

use super::step::{Projection, Projections, Step};
use crate::needs::{BufId, Group, Name, Needs, Rows};
use crate::{LayerConfig, Result};

const GATE: Name = Name { gguf: "ffn_gate", hf: "mlp.gate_proj" };
const UP: Name = Name { gguf: "ffn_up", hf: "mlp.up_proj" };
const DOWN: Name = Name { gguf: "ffn_down", hf: "mlp.down_proj" };

/// One layer's feed-forward block.
pub(crate) struct Swiglu {
    gate: Projection,
    up: Projection,
    down: Projection,
    /// `[rows, ffn]`
    hidden: BufId,
}

impl Swiglu {
    /// Declares layer `i`'s weights and buffers; `dim` is the width of the residual stream.
    pub fn new(dim: usize, i: usize, layer: &LayerConfig, needs: &mut Needs) -> Self {
        let (ffn, bias) = (layer.ffn, layer.biases.ffn);
        let mut add = Projections { layer: i, group: Group::Ffn, needs };
        let gate = add.add(GATE, ffn, dim, bias);
        let up = add.add(UP, ffn, dim, bias);
        let down = add.add(DOWN, dim, ffn, bias);
        let hidden = needs.scratch("hidden", Rows::Chunk, ffn);
        Swiglu { gate, up, down, hidden }
    }

    /// `residual += down(silu(gate normed) * (up normed))`.
    pub fn run(&self, step: &mut Step, normed: BufId, residual: BufId) -> Result<()> {
        let both = [(&self.gate, self.hidden), (&self.up, self.hidden)];
        step.linear(normed, both, Combine::Gated(Activation::Silu))?;
        step.linear(self.hidden, [(&self.down, residual)], Combine::Add)
    }
}
