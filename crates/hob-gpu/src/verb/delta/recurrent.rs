//! Row by row: one workgroup has a value head of a sequence, its lanes a column of the state each, or a part of one.

use hob_compute::{DeltaNet, DeltaShape, Result};

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
        let key =
            KernelKey { name: "delta recurrent", params: with_parts(params(&shape, bound.channel), parts) };
        let kernel = self.stream.kernel(key, || source(&shape, parts, bound.channel))?;
        let mut items = std::mem::take(&mut self.words);
        items.clear();
        let seqs = args.seqs.iter().filter(|s| s.rows > 0);
        seqs.for_each(|s| items.extend([s.row, s.rows, s.position, s.slot].map(|n| n as u32)));
        let count = items.len() / 4;
        let start = self.stream.arguments(&items);
        self.words = items;
        let rows: usize = args.seqs.iter().map(|s| s.rows).sum();
        let Bound { out, state, qkv, z, beta, decay, rate, bias, norm, .. } = *bound;
        self.stream.dispatch(&Call {
            kernel,
            bindings: &[out, state, qkv, z, beta, decay, rate, bias, norm, self.stream.argument_buffer()],
            immediates: &[start?, args.eps.to_bits()],
            groups: [shape.value_heads as u32, count as u32, 1],
            verb: VERB,
            bytes: 4 * (2 * count * shape.state() + rows * (shape.channels() + 2 * shape.width())) as u64,
        })
    }
}

fn with_parts(mut params: [u32; 8], parts: usize) -> [u32; 8] {
    params[5] = parts as u32;
    params
}

fn source(shape: &DeltaShape, parts: usize, channel: bool) -> Source {
    let wgsl = template(shape, channel)
        .value("PARTS", parts)
        .value("LANES", parts * shape.value_dim)
        .value("EACH", shape.key_dim / parts)
        .render(include_str!("../../wgsl/delta/recurrent.wgsl"));
    let mut bindings = vec![Access::Write; 2];
    bindings.extend([Access::Read; 8]);
    Source { wgsl, bindings }
}
