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
        let mut params = params(&shape);
        params[4] = bound.held as u32;
        let key = KernelKey { name: "ssm recurrent", params };
        let kernel = self.stream.kernel(key, || source(&shape, bound.held))?;
        let mut items = std::mem::take(&mut self.words);
        items.clear();
        let mut rows = 0;
        for seq in args.seqs.iter().filter(|s| s.rows > 0 && self.takes(s, false)) {
            let holds = usize::from(seq.holds());
            items.extend([seq.row, seq.rows, seq.position, seq.slot, holds].map(|n| n as u32));
            rows += seq.rows;
        }
        let count = items.len() / 5;
        let start = self.stream.arguments(&items);
        self.words = items;
        let Bound { out, state, records, xbc, dt, rate, bias, skip, limit: [least, most], .. } = *bound;
        let arguments = self.stream.argument_buffer();
        let all = [out, state, xbc, dt, rate, bias, skip, arguments, records.unwrap_or(out)];
        self.stream.dispatch(&Call {
            kernel,
            bindings: &all[..all.len() - usize::from(records.is_none())],
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

fn source(shape: &SsmShape, held: usize) -> Source {
    // Both divide a multiple of 16.
    let parts = LANES / columns(shape);
    let wgsl = template(shape)
        .flag("RECORDS", held > 0)
        .value("HELD", held)
        .value("COLUMNS", columns(shape))
        .value("PARTS", parts)
        .value("LANES", LANES)
        .value("EACH", shape.state_dim / parts)
        .render(include_str!("../../wgsl/ssm/recurrent.wgsl"));
    let mut bindings = vec![Access::Write; 2];
    bindings.extend([Access::Read; 6]);
    bindings.extend([Access::Write].iter().filter(|_| held > 0));
    Source { wgsl, bindings }
}
