//! The gated delta rule: its checks, and which form runs. Few rows are bound by reading the state (`recurrent`), many by
//! arithmetic (`chunked`). It must not know how either computes.

pub(crate) mod chunked;
mod recurrent;

use hob_compute::check::recurrent::{self as check, DeltaBufs};
use hob_compute::{DeltaNet, DeltaShape, KeyHeads, Result, WeightKind};

use crate::Gpu;
use crate::stream::BufferId;
use crate::template::Template;

const VERB: &str = "delta_net";
const GATES: &str = include_str!("../wgsl/delta/gates.wgsl");

/// Buffers of a `delta_net`, whose checks are done.
struct Bound {
    out: BufferId,
    state: BufferId,
    qkv: BufferId,
    z: BufferId,
    beta: BufferId,
    decay: BufferId,
    rate: BufferId,
    bias: BufferId,
    norm: BufferId,
    /// Whether every channel of the key fades by itself.
    channel: bool,
}

impl Gpu {
    pub(crate) fn run_delta_net(&mut self, args: &DeltaNet) -> Result<()> {
        let bound = self.checked_delta(args)?;
        for buf in [args.out, args.state] {
            self.acts.get_mut(VERB, buf)?.written();
        }
        let many = args.seqs.iter().any(|s| s.rows >= DeltaNet::CHUNKED);
        // Both forms are made ready: which one a batch of some number of rows takes is decided by its sequences.
        if many || self.stream.rehearsing {
            self.run_chunked_delta(args, &bound)?;
        }
        if !many || self.stream.rehearsing {
            self.run_recurrent_delta(args, &bound)?;
        }
        Ok(())
    }

    fn checked_delta(&self, args: &DeltaNet) -> Result<Bound> {
        let weights = [args.rate, args.bias, args.norm];
        let mut vectors = [(0, None); 3];
        for (vector, weight) in vectors.iter_mut().zip(weights) {
            let weight = self.weight(VERB, weight, WeightKind::Vector)?;
            *vector = (weight.spec.cols, Some(weight.parts[0].buffer));
        }
        let shapes = DeltaBufs {
            qkv: self.shape(VERB, args.qkv)?,
            z: self.shape(VERB, args.z)?,
            beta: self.shape(VERB, args.beta)?,
            decay: self.shape(VERB, args.decay)?,
            state: self.shape(VERB, args.state)?,
            out: self.shape(VERB, args.out)?,
        };
        let decays = check::delta_net(args, &shapes, vectors.map(|v| v.0))?;
        let of = |buf| Ok(self.acts.get(VERB, buf)?.rows);
        let out = of(args.out)?;
        let [rate, bias, norm] = vectors.map(|v| v.1.unwrap_or(out));
        Ok(Bound {
            out,
            state: of(args.state)?,
            qkv: of(args.qkv)?,
            z: of(args.z)?,
            beta: of(args.beta)?,
            decay: of(args.decay)?,
            rate,
            bias,
            norm,
            channel: decays > 1,
        })
    }
}

/// What kernels are specialised by: the heads, and whether their channels fade by themselves.
fn params(shape: &DeltaShape, channel: bool) -> [u32; 8] {
    let DeltaShape { key_heads, value_heads, key_dim, value_dim, sharing } = *shape;
    let sizes = [key_heads, value_heads, key_dim, value_dim].map(|n| n as u32);
    let flags = u32::from(sharing == KeyHeads::Tiled) | u32::from(channel) << 1;
    [sizes[0], sizes[1], sizes[2], sizes[3], flags, 0, 0, 0]
}

fn template(shape: &DeltaShape, channel: bool) -> Template {
    let each = shape.value_heads / shape.key_heads;
    let key_head = match shape.sharing {
        KeyHeads::Grouped => format!("h / {each}u"),
        KeyHeads::Tiled => format!("h % {}u", shape.key_heads),
    };
    Template::new()
        .flag("CHANNEL", channel)
        .value("KEY_HEADS", shape.key_heads)
        .value("VALUE_HEADS", shape.value_heads)
        .value("KEY_DIM", shape.key_dim)
        .value("VALUE_DIM", shape.value_dim)
        .value("CHANNELS", shape.channels())
        .value("KEY_HEAD", key_head)
        .piece("gates", GATES)
}
