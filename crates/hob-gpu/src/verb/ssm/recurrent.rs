//! Row by row: one workgroup has some columns of a head's state, several lanes to a column.

use hob_compute::{Result, SsmScan, SsmShape};

use super::{Bound, VERB, params, template};
use crate::Gpu;
use crate::stream::{Access, Call, KernelKey, Source};

/// Lanes of a workgroup.
const LANES: usize = 256;

impl Gpu {
    pub(super) fn run_recurrent_ssm(&mut self, args: &SsmScan, bound: &Bound) -> Result<()> {
        let shape = args.shape;
        let key = KernelKey { name: "ssm recurrent", params: params(&shape) };
        let kernel = self.stream.kernel(key, || source(&shape))?;
        let mut items = std::mem::take(&mut self.words);
        items.clear();
        let seqs = args.seqs.iter().filter(|s| s.rows > 0);
        seqs.for_each(|s| items.extend([s.row, s.rows, s.position, s.slot].map(|n| n as u32)));
        let count = items.len() / 4;
        let start = self.stream.arguments(&items);
        self.words = items;
        let rows: usize = args.seqs.iter().map(|s| s.rows).sum();
        let Bound { out, state, xbc, dt, rate, bias, skip, limit: [least, most], .. } = *bound;
        self.stream.dispatch(&Call {
            kernel,
            bindings: &[out, state, xbc, dt, rate, bias, skip, self.stream.argument_buffer()],
            immediates: &[start?, least, most],
            groups: [(shape.width() / columns(&shape)) as u32, count as u32, 1],
            verb: VERB,
            bytes: 4 * (2 * count * shape.state() + rows * (shape.channels() + shape.width())) as u64,
        })
    }
}

/// Columns of a workgroup: neighbouring lanes read whole lines of memory, and heads are spread over many workgroups.
fn columns(shape: &SsmShape) -> usize {
    if shape.head_dim.is_multiple_of(32) { 32 } else { 16 }
}

fn source(shape: &SsmShape) -> Source {
    // Both divide a multiple of 16.
    let parts = LANES / columns(shape);
    let wgsl = template(shape)
        .value("COLUMNS", columns(shape))
        .value("PARTS", parts)
        .value("LANES", LANES)
        .value("EACH", shape.state_dim / parts)
        .render(include_str!("../../wgsl/ssm/recurrent.wgsl"));
    let mut bindings = vec![Access::Write; 2];
    bindings.extend([Access::Read; 6]);
    Source { wgsl, bindings }
}
