//! The gated short convolution of LFM2: `Wo (C * conv(B * u))` with `[B | C | u] = Wi x`.

use hob_compute::{Combine, ConvForm, Recurrence};

use super::step::{Projection, Projections, Step};
use crate::needs::{BufId, Group, Name, Needs, Rows, StateId, WeightId};
use crate::{Naming, Result};

const IN: Name = Name { gguf: "shortconv.in_proj", hf: "conv.in_proj" };
const TAPS: Name = Name { gguf: "shortconv.conv", hf: "conv.conv" };
const OUT: Name = Name { gguf: "shortconv.out_proj", hf: "conv.out_proj" };

/// One layer's convolution.
pub(crate) struct ShortConv {
    wi: Projection,
    taps: WeightId,
    wo: Projection,
    state: StateId,
    /// `[rows, 3 * dim]`
    bcu: BufId,
    /// `[rows, dim]`
    mixed: BufId,
}

impl ShortConv {
    /// Declares layer `i`'s weights, buffers and state; `dim` is the width of the residual stream.
    pub fn new(dim: usize, i: usize, taps: usize, needs: &mut Needs) -> Self {
        let mut add = Projections { layer: i, group: Group::Attention, needs };
        let wi = add.add(IN, 3 * dim, dim, false);
        let wo = add.add(OUT, dim, dim, false);
        let name = needs.naming.layer(i, TAPS, "weight");
        let shape = match needs.naming {
            Naming::Gguf => vec![dim, taps],
            Naming::HuggingFace => vec![dim, 1, taps],
        };
        ShortConv {
            wi,
            taps: needs.flat(name, dim * taps, shape),
            wo,
            state: needs.state(Recurrence::Conv { channels: dim, taps }),
            bcu: needs.scratch("bcu", Rows::Chunk, 3 * dim),
            mixed: needs.scratch("convolved", Rows::Chunk, dim),
        }
    }

    /// Stored in or added to `out`; the last columns of every sequence are remembered.
    pub fn run(&self, step: &mut Step, input: BufId, out: BufId, combine: Combine) -> Result<()> {
        step.linear(input, [(&self.wi, self.bcu)], Combine::Store)?;
        let [x, mixed] = [self.bcu, self.mixed].map(|b| step.buf(b));
        let (taps, memory, seqs) = (step.weight(self.taps), step.memory(self.state), step.slots);
        let (form, bias) = (ConvForm::Gated, None);
        step.dev.short_conv(&hob_compute::ShortConv { form, x, taps, bias, memory, seqs, out: mixed })?;
        step.linear(self.mixed, [(&self.wo, out)], combine)
    }
}
