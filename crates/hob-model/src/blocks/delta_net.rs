//! The mixer of a Gated DeltaNet: `Wo delta_net(conv(Wqkv x), Wz x, Wb x, Wa x)`.

use hob_compute::{Combine, ConvForm, DeltaShape, Recurrence};

use super::step::{Projection, Projections, Step};
use crate::config::{DeltaConfig, DeltaStored};
use crate::needs::{BufId, Group, Name, Needs, Rows, StateId, Values, WeightId};
use crate::stacked::Part;
use crate::{Config, Naming, Result};

const QKV: Name = Name { gguf: "attn_qkv", hf: "linear_attn.in_proj_qkv" };
const Z: Name = Name { gguf: "attn_gate", hf: "linear_attn.in_proj_z" };
const BETA: Name = Name { gguf: "ssm_beta", hf: "linear_attn.in_proj_b" };
const DECAY: Name = Name { gguf: "ssm_alpha", hf: "linear_attn.in_proj_a" };
/// q, k, v and z by key head; in older GGUF files too.
const QKVZ: Name = Name { gguf: "ssm_in", hf: "linear_attn.in_proj_qkvz" };
/// Beta and decay by key head.
const BOTH: Name = Name { gguf: "ssm_ba", hf: "linear_attn.in_proj_ba" };
const TAPS: Name = Name { gguf: "ssm_conv1d", hf: "linear_attn.conv1d" };
const NORM: Name = Name { gguf: "ssm_norm", hf: "linear_attn.norm" };
const OUT: Name = Name { gguf: "ssm_out", hf: "linear_attn.out_proj" };

/// One layer's delta rule.
pub(crate) struct DeltaNet {
    shape: DeltaShape,
    eps: f32,
    qkv: Projection,
    z: Projection,
    beta: Projection,
    decay: Projection,
    out: Projection,
    taps: WeightId,
    rate: WeightId,
    bias: WeightId,
    norm: WeightId,
    convolution: StateId,
    state: StateId,
    bufs: Bufs,
}

/// `[rows, _]` of what the matrices give, and what becomes of it.
struct Bufs {
    qkv: BufId,
    convolved: BufId,
    z: BufId,
    beta: BufId,
    decay: BufId,
    mixed: BufId,
}

impl DeltaNet {
    /// Declares layer `i`'s weights, buffers and state.
    pub fn new(config: &Config, i: usize, delta: DeltaConfig, needs: &mut Needs) -> Self {
        let DeltaConfig { shape, taps, stored } = delta;
        let (channels, width, heads, naming) =
            (shape.channels(), shape.width(), shape.value_heads, needs.naming);
        let [qkv, z, beta, decay] = match stored {
            DeltaStored::Apart => {
                let mut add = Projections { layer: i, group: Group::Attention, needs: &mut *needs };
                [(QKV, channels), (Z, width), (BETA, heads), (DECAY, heads)]
                    .map(|(name, rows)| add.add(name, rows, config.dim, false))
            }
            DeltaStored::ByKeyHead => by_key_head(i, &shape, config.dim, needs),
        };
        let mut add = Projections { layer: i, group: Group::Attention, needs: &mut *needs };
        let out = add.add(OUT, config.dim, width, false);
        let conv = match naming {
            Naming::Gguf => vec![channels, taps],
            Naming::HuggingFace => vec![channels, 1, taps],
        };
        // Names as the two formats have them: neither ends in `.weight`.
        let (rate, bias, stored_rates) = match naming {
            Naming::Gguf => (format!("blk.{i}.ssm_a"), format!("blk.{i}.ssm_dt.bias"), Values::Plain),
            Naming::HuggingFace => {
                let of = |name| format!("model.layers.{i}.linear_attn.{name}");
                (of("A_log"), of("dt_bias"), Values::LogOfNegative)
            }
        };
        let mut buf = |role, width| needs.scratch(role, Rows::Chunk, width);
        let bufs = Bufs {
            qkv: buf("delta q, k, v", channels),
            convolved: buf("convolved q, k, v", channels),
            z: buf("output gate", width),
            beta: buf("beta", heads),
            decay: buf("decay", heads),
            mixed: buf("mixed", width),
        };
        DeltaNet {
            shape,
            eps: config.rms_eps,
            qkv,
            z,
            beta,
            decay,
            out,
            taps: needs.flat(naming.layer(i, TAPS, "weight"), channels * taps, conv),
            rate: needs.rates(rate, vec![heads], stored_rates),
            bias: needs.vector(bias, heads),
            // Of all norms the one that is not zero-centred.
            norm: needs.vector(naming.layer(i, NORM, "weight"), shape.value_dim),
            convolution: needs.state(Recurrence::Conv { channels, taps }),
            state: needs.state(Recurrence::Delta(shape)),
            bufs,
        }
    }

    /// Stored in or added to `out`; the state of every sequence moves on.
    pub fn run(&self, step: &mut Step, input: BufId, out: BufId, combine: Combine) -> Result<()> {
        let Bufs { qkv, convolved, z, beta, decay, mixed } = self.bufs;
        let products = [(&self.qkv, qkv), (&self.z, z), (&self.beta, beta), (&self.decay, decay)];
        step.linear(input, products, Combine::Store)?;
        let [x, convolved, z, beta, decay] = [qkv, convolved, z, beta, decay].map(|b| step.buf(b));
        let (memory, taps, seqs) = (step.memory(self.convolution), step.weight(self.taps), step.slots);
        let (form, bias) = (ConvForm::Silu, None);
        step.dev.short_conv(&hob_compute::ShortConv { form, x, taps, bias, memory, seqs, out: convolved })?;
        let [rate, bias, norm] = [self.rate, self.bias, self.norm].map(|w| step.weight(w));
        let args = hob_compute::DeltaNet {
            shape: self.shape,
            qkv: convolved,
            z,
            beta,
            decay,
            rate,
            bias,
            norm,
            eps: self.eps,
            memory: step.memory(self.state),
            seqs,
            out: step.buf(mixed),
        };
        step.dev.delta_net(&args)?;
        step.linear(mixed, [(&self.out, out)], combine)
    }
}

/// Rows of a tensor whose `groups` equal groups are made of parts of the given rows: of every group the part `which`.
fn parts(name: &str, cols: usize, groups: usize, rows: &[usize], which: usize) -> Vec<Part> {
    let all: usize = rows.iter().sum();
    let before: usize = rows[..which].iter().sum();
    let part = |g| Part::rows(name.to_string(), vec![groups * all, cols], g * all + before, rows[which]);
    (0..groups).map(part).collect()
}

/// q, k and v; z; beta; decay, of [`DeltaStored::ByKeyHead`].
fn by_key_head(i: usize, shape: &DeltaShape, cols: usize, needs: &mut Needs) -> [Projection; 4] {
    let naming = needs.naming;
    let (groups, values) = (shape.key_heads, shape.value_heads / shape.key_heads);
    let rows = [shape.key_dim, shape.key_dim, values * shape.value_dim, values * shape.value_dim];
    let (fused, both) = (naming.layer(i, QKVZ, "weight"), naming.layer(i, BOTH, "weight"));
    let of = |which| parts(&fused, cols, groups, &rows, which);
    let whole = |name, rows| {
        let name = naming.layer(i, name, "weight");
        vec![Part::rows(name, vec![rows, cols], 0, rows)]
    };
    let forms = |own: Vec<Part>, gathered: Vec<Part>| match naming {
        Naming::Gguf => vec![own, gathered],
        Naming::HuggingFace => vec![gathered],
    };
    let qkv = forms(whole(QKV, shape.channels()), [of(0), of(1), of(2)].concat());
    let z = forms(whole(Z, shape.width()), of(3));
    let [beta, decay] = [0, 1].map(|which| vec![parts(&both, cols, groups, &[values, values], which)]);
    [qkv, z, beta, decay].map(|forms| {
        let weight = needs.gathered(Group::Attention, cols, forms);
        Projection { weight, bias: None }
    })
}
