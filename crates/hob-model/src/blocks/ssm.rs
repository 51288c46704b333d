//! The mixer of Mamba-2: `Wo ssm_scan(conv(Wxbc x), Wz x, Wdt x)`, the first three in one matrix.

use hob_compute::{Combine, ConvForm, Recurrence, ShortConv, SsmScan, SsmShape};

use super::step::{Projection, Projections, Step};
use crate::config::SsmConfig;
use crate::needs::{BufId, Group, Name, Needs, Rows, StateId, Values, WeightId};
use crate::{Config, Naming, Result};

/// z, then x, B and C, then dt.
const IN: Name = Name { gguf: "ssm_in", hf: "mixer.in_proj" };
const TAPS: Name = Name { gguf: "ssm_conv1d", hf: "mixer.conv1d" };
const NORM: Name = Name { gguf: "ssm_norm", hf: "mixer.norm" };
const OUT: Name = Name { gguf: "ssm_out", hf: "mixer.out_proj" };
// In full: they do not end in `.weight`.
const RATE: Name = Name { gguf: "ssm_a", hf: "mixer.A_log" };
const BIAS: Name = Name { gguf: "ssm_dt.bias", hf: "mixer.dt_bias" };
const SKIP: Name = Name { gguf: "ssm_d", hf: "mixer.D" };

/// One layer's state space.
pub(crate) struct Ssm {
    config: SsmConfig,
    eps: f32,
    z: Projection,
    xbc: Projection,
    dt: Projection,
    out: Projection,
    taps: WeightId,
    conv_bias: Option<WeightId>,
    rate: WeightId,
    bias: WeightId,
    skip: WeightId,
    norm: WeightId,
    convolution: StateId,
    state: StateId,
    bufs: Bufs,
}

/// `[rows, _]` of what the matrix gives, and what becomes of it.
struct Bufs {
    z: BufId,
    xbc: BufId,
    convolved: BufId,
    dt: BufId,
    mixed: BufId,
}

impl Ssm {
    /// Declares layer `i`'s weights, buffers and state.
    pub fn new(config: &Config, i: usize, ssm: SsmConfig, needs: &mut Needs) -> Self {
        let SsmConfig { shape, taps, .. } = ssm;
        let (channels, width, naming) = (shape.channels(), shape.width(), needs.naming);
        let SsmShape { heads, groups, .. } = shape;
        let mut add = Projections { layer: i, group: Group::Attention, needs: &mut *needs };
        let [z, xbc, dt] = add.fused(IN, [width, channels, heads], config.dim, false);
        let out = add.add(OUT, config.dim, width, false);
        // A GGUF has a column of rates and skips, and a row of the norm for every group.
        let (conv, column, norm, rates) = match naming {
            Naming::Gguf => {
                (vec![channels, taps], vec![heads, 1], vec![groups, width / groups], Values::Plain)
            }
            Naming::HuggingFace => (vec![channels, 1, taps], vec![heads], vec![width], Values::LogOfNegative),
        };
        let mut buf = |role, width| needs.scratch(role, Rows::Chunk, width);
        let bufs = Bufs {
            z: buf("output gate", width),
            xbc: buf("x, B, C", channels),
            convolved: buf("convolved x, B, C", channels),
            dt: buf("dt", heads),
            mixed: buf("mixed", width),
        };
        let bias_name = naming.layer(i, TAPS, "bias");
        Ssm {
            config: ssm,
            eps: config.rms_eps,
            z,
            xbc,
            dt,
            out,
            taps: needs.flat(naming.layer(i, TAPS, "weight"), channels * taps, conv),
            conv_bias: ssm.conv_bias.then(|| needs.vector(bias_name, channels)),
            rate: needs.rates(naming.in_full(i, RATE), column.clone(), rates),
            bias: needs.vector(naming.in_full(i, BIAS), heads),
            skip: needs.flat(naming.in_full(i, SKIP), heads, column),
            norm: needs.flat(naming.layer(i, NORM, "weight"), width, norm),
            convolution: needs.state(Recurrence::Conv { channels, taps }),
            state: needs.state(Recurrence::Ssm(shape)),
            bufs,
        }
    }

    /// Stored in or added to `out`; the state of every sequence moves on.
    pub fn run(&self, step: &mut Step, input: BufId, out: BufId, combine: Combine) -> Result<()> {
        let Bufs { z, xbc, convolved, dt, mixed } = self.bufs;
        step.linear(input, [(&self.z, z), (&self.xbc, xbc), (&self.dt, dt)], Combine::Store)?;
        let [z, x, convolved, dt] = [z, xbc, convolved, dt].map(|b| step.buf(b));
        let (taps, bias) = (step.weight(self.taps), self.conv_bias.map(|w| step.weight(w)));
        let (form, memory, seqs) = (ConvForm::Silu, step.memory(self.convolution), step.slots);
        step.dev.short_conv(&ShortConv { form, x, taps, bias, memory, seqs, out: convolved })?;
        let [rate, bias, skip, norm] = [self.rate, self.bias, self.skip, self.norm].map(|w| step.weight(w));
        let args = SsmScan {
            shape: self.config.shape,
            xbc: convolved,
            z,
            dt,
            rate,
            bias,
            skip,
            norm,
            eps: self.eps,
            limit: self.config.limit,
            memory: step.memory(self.state),
            seqs,
            out: step.buf(mixed),
        };
        step.dev.ssm_scan(&args)?;
        step.linear(mixed, [(&self.out, out)], combine)
    }
}
