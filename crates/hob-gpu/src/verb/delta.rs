//! The gated delta rule: its checks, and which form runs. Few rows are bound by reading the state (`recurrent`), many by
//! arithmetic (`chunked`). It must not know how either computes.

pub(crate) mod chunked;
mod recurrent;

use hob_compute::check::recurrent::{self as check, DeltaBufs, MemoryShape};
use hob_compute::{DeltaNet, DeltaShape, KeyHeads, Recurrence, Result, SlotRows, WeightKind};

use crate::Gpu;
use crate::stream::BufferId;
use crate::template::Template;

const VERB: &str = "delta_net";
const GATES: &str = include_str!("../wgsl/delta/gates.wgsl");

/// Buffers of a `delta_net`, whose checks are done.
struct Bound {
    out: BufferId,
    state: BufferId,
    records: Option<BufferId>,
    /// Rows that have records.
    held: usize,
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
        for buf in args.memory.bufs().chain([args.out]) {
            self.acts.get_mut(VERB, buf)?.written();
        }
        // Each sequence goes by its own rows, so that company changes no bit. Both forms are made ready.
        if args.seqs.iter().any(|s| self.takes(s, true)) {
            self.catch_up_states(&args.shape.products(), (&args.memory, bound.held), args.seqs, many)?;
            self.run_chunked_delta(args, &bound)?;
        }
        if args.seqs.iter().any(|s| self.takes(s, false)) {
            self.run_recurrent_delta(args, &bound)?;
        }
        Ok(())
    }

    /// Whether a sequence goes through the chunked form, or not: through both in rehearsal.
    pub(in crate::verb) fn takes(&self, seq: &SlotRows, chunked: bool) -> bool {
        self.stream.rehearsing || many(seq) == chunked
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
            memory: MemoryShape::of(&args.memory, |buf| self.shape(VERB, buf))?,
            out: self.shape(VERB, args.out)?,
        };
        let decays = check::delta_net(args, &shapes, vectors.map(|v| v.0))?;
        let of = |buf| Ok(self.acts.get(VERB, buf)?.rows);
        let out = of(args.out)?;
        let [rate, bias, norm] = vectors.map(|v| v.1.unwrap_or(out));
        Ok(Bound {
            out,
            state: of(args.memory.state)?,
            records: args.memory.records.map(of).transpose()?,
            held: shapes.memory.held(&Recurrence::Delta(args.shape)),
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

/// Whether the rows of a sequence are enough for the chunked form.
pub(in crate::verb) fn many(seq: &SlotRows) -> bool {
    seq.rows >= DeltaNet::CHUNKED && !seq.holds()
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
