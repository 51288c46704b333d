//! Layers of a recurrent rule in the shape of a real model, one after the other, so that states come from memory. Included
//! by the examples that measure them on every device.

use hob_compute::*;

use super::vector;

/// Qwen3.5-35B-A3B's: 16 key heads, 32 value heads of 128.
const DELTA: DeltaShape =
    DeltaShape { key_heads: 16, value_heads: 32, key_dim: 128, value_dim: 128, sharing: KeyHeads::Tiled };
/// Nemotron 3 Nano's: 64 heads of 64 x 128 in 8 groups.
const SSM: SsmShape = SsmShape { heads: 64, head_dim: 64, state_dim: 128, groups: 8 };

/// Which rule.
#[derive(Copy, Clone)]
pub enum Rule {
    Delta,
    Ssm,
}

/// Layers whose inputs are the same.
pub struct Layers {
    rule: Rule,
    /// Delta: rate, bias, norm. State space: rate, bias, skip, norm.
    vectors: Vec<Weight>,
    /// Delta: q, k and v; z; beta; decay; the output. State space: x, B and C; z; dt; the output.
    bufs: Vec<Buf>,
    states: Vec<Buf>,
}

impl Rule {
    /// Layers of the model.
    pub fn layers(self) -> usize {
        match self {
            Rule::Delta => 30,
            Rule::Ssm => 23,
        }
    }

    /// Floats of a sequence's state in one layer.
    pub fn state(self) -> usize {
        match self {
            Rule::Delta => DELTA.state(),
            Rule::Ssm => SSM.state(),
        }
    }
}

impl std::str::FromStr for Rule {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Rule, String> {
        match name {
            "delta" => Ok(Rule::Delta),
            "ssm" => Ok(Rule::Ssm),
            _ => Err(format!("expected delta or ssm, found '{name}'")),
        }
    }
}

impl Layers {
    /// `layers` with a state for each of `slots` sequences, and room for `rows`.
    ///
    /// # Errors
    /// What the device says.
    pub fn new(dev: &mut dyn Compute, rule: Rule, [layers, slots, rows]: [usize; 3]) -> Result<Layers> {
        let (vectors, widths) = match rule {
            Rule::Delta => {
                let heads = DELTA.value_heads;
                let vectors = vec![(-0.1, heads), (-1.0, heads), (1.0, DELTA.value_dim)];
                (vectors, vec![DELTA.channels(), DELTA.width(), heads, heads, DELTA.width()])
            }
            Rule::Ssm => {
                let heads = SSM.heads;
                let vectors = vec![(-0.1, heads), (-1.0, heads), (1.0, heads), (1.0, SSM.width())];
                (vectors, vec![SSM.channels(), SSM.width(), heads, SSM.width()])
            }
        };
        let vectors = vectors.into_iter().map(|(value, cols)| vector(dev, &vec![value; cols])).collect();
        let mut bufs = Vec::new();
        for width in widths {
            let buf = dev.alloc(rows, width)?;
            let noise = |i: usize| ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 8e6 - 1.0;
            dev.upload(buf, 0, &(0..rows * width).map(noise).collect::<Vec<_>>())?;
            bufs.push(buf);
        }
        let states = (0..layers).map(|_| dev.alloc(slots, rule.state())).collect::<Result<_>>()?;
        Ok(Layers { rule, vectors, bufs, states })
    }

    /// Some rows through layer `layer`.
    ///
    /// # Errors
    /// What the device says.
    pub fn run(&self, dev: &mut dyn Compute, layer: usize, seqs: &[SlotRows]) -> Result<()> {
        let memory = Memory::plain(self.states[layer]);
        match (self.rule, &self.vectors[..], &self.bufs[..]) {
            (Rule::Delta, &[rate, bias, norm], &[qkv, z, beta, decay, out]) => {
                let (shape, eps) = (DELTA, 1e-6);
                let args = DeltaNet { shape, qkv, z, beta, decay, rate, bias, norm, eps, memory, seqs, out };
                dev.delta_net(&args)
            }
            (Rule::Ssm, &[rate, bias, skip, norm], &[xbc, z, dt, out]) => {
                let (shape, eps, limit) = (SSM, 1e-5, [0.0, f32::INFINITY]);
                let args =
                    SsmScan { shape, xbc, z, dt, rate, bias, skip, norm, eps, limit, memory, seqs, out };
                dev.ssm_scan(&args)
            }
            _ => unreachable!("`new` makes as many as the rule has"),
        }
    }

    /// Waits until all is done.
    ///
    /// # Errors
    /// What the device says.
    #[allow(dead_code)] // a CPU is never behind
    pub fn wait(&self, dev: &mut dyn Compute) -> Result<()> {
        dev.download(self.bufs[self.bufs.len() - 1], 0, &mut [0f32])
    }
}
