//! Row by row: one workgroup has a value head of a sequence, its lanes a column of the state each, or a part of one.

use hob_compute::{DeltaNet, DeltaShape, Result, SlotRows};

use super::{Bound, VERB, params, template};
use crate::Gpu;
use crate::stream::{Access, Call, KernelKey, Source};

/// Most lanes of a workgroup: the more, the more of the state is under way at once.
const LANES: usize = 1024;
/// Floats of the state that a lane has at least.
const LEAST: usize = 4;

impl Gpu {
    pub(super) fn run_recurrent_delta(&mut self, args: &DeltaNet, bound: &Bound) -> Result<()> {
        let shape = args.shape;
        let limits = self.stream.context.device.limits();
        let most = limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x);
        // Parts of a column: a power of two that divides the keys.
        let parts = (LANES.min(most as usize) / shape.value_dim).clamp(1, shape.key_dim / LEAST);
        let parts = 1 << parts.ilog2().min(shape.key_dim.trailing_zeros());
        let mut params = params(&shape, bound.channel);
        (params[5], params[6]) = (parts as u32, bound.held as u32);
        let key = KernelKey { name: "delta recurrent", params };
        let kernel = self.stream.kernel(key, || source(&shape, parts, bound))?;
        let mut items = std::mem::take(&mut self.words);
        items.clear();
        let mut rows = 0;
        for seq in args.seqs.iter().filter(|s| s.rows + s.accepted > 0 && self.takes(s, false)) {
            let SlotRows { row, slot, accepted, .. } = *seq;
            let holds = usize::from(seq.holds());
            items.extend([row, seq.rows, seq.base(), slot, accepted, holds].map(|n| n as u32));
            rows += seq.rows;
        }
        let count = items.len() / 6;
        let start = self.stream.arguments(&items);
        self.words = items;
        let Bound { out, state, records, qkv, z, beta, decay, rate, bias, norm, .. } = *bound;
        let arguments = self.stream.argument_buffer();
        let all = [out, state, qkv, z, beta, decay, rate, bias, norm, arguments, records.unwrap_or(out)];
        self.stream.dispatch(&Call {
            kernel,
            bindings: &all[..all.len() - usize::from(records.is_none())],
            immediates: &[start?, args.eps.to_bits()],
            groups: [shape.value_heads as u32, count as u32, 1],
            verb: VERB,
            bytes: 4 * (2 * count * shape.state() + rows * (shape.channels() + 2 * shape.width())) as u64,
        })
    }
}

fn source(shape: &DeltaShape, parts: usize, bound: &Bound) -> Source {
    let held = bound.held;
    let wgsl = template(shape, bound.channel)
        .flag("RECORDS", held > 0)
        .value("HELD", held)
        .value("PARTS", parts)
        .value("LANES", parts * shape.value_dim)
        .value("EACH", shape.key_dim / parts)
        .render(include_str!("../../wgsl/delta/recurrent.wgsl"));
    let mut bindings = vec![Access::Write; 2];
    bindings.extend([Access::Read; 8]);
    if held > 0 {
        bindings.push(Access::Write);
    }
    Source { wgsl, bindings }
}
