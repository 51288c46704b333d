//! Chunks of up to 64 rows. What does not need the state (`scores`) is computed for all chunks side by side and kept in a
//! table; the state then walks through the chunks of its sequence, some columns to a workgroup (`walk`). Chunks come in
//! slabs that bound the table.

use hob_compute::{DeltaNet, Result, SsmScan, SsmShape};

use super::{Bound, VERB, params, template};
use crate::Gpu;
use crate::stream::{Access, BufferId, Call, KernelKey, Source};
use crate::verb::delta::chunked::{Chunk, LANES, SLAB_BYTES, STATE, chunk_words, chunks};

const ROWS: usize = DeltaNet::CHUNK;
/// Floats of the table that a head of a chunk has: a matrix and three vectors.
const TABLE: usize = ROWS * ROWS + 3 * ROWS;
/// Heads that a workgroup of `scores` computes a table for: they share the products of vectors.
const HEADS: usize = 8;

impl Gpu {
    pub(super) fn run_chunked_ssm(&mut self, args: &SsmScan, bound: &Bound) -> Result<()> {
        let chunks = chunks(args.seqs.iter().filter(|s| self.takes(s, true)));
        let heads = args.shape.heads;
        let most = (SLAB_BYTES / (4 * TABLE * heads)).max(1);
        let table = self.delta.reserve(&mut self.stream, chunks.len().clamp(1, most) * heads * TABLE)?;
        chunks.chunks(most).try_for_each(|slab| self.walk_ssm_slab(args, bound, table, slab))
    }

    fn walk_ssm_slab(
        &mut self,
        args: &SsmScan,
        bound: &Bound,
        table: BufferId,
        slab: &[Chunk],
    ) -> Result<()> {
        let shape = args.shape;
        let mut words = std::mem::take(&mut self.words);
        let runs = chunk_words(slab, &mut words);
        let start = self.stream.arguments(&words);
        self.words = words;
        let start = start?;
        let Bound { out, state, xbc, dt, rate, bias, skip, limit: [least, most], .. } = *bound;
        let arguments = self.stream.argument_buffer();
        let key = KernelKey { name: "ssm scores", params: params(&shape) };
        let kernel = self.stream.kernel(key, || scores(&shape))?;
        let rows: usize = slab.iter().map(|c| c.rows).sum();
        let blocks = shape.group_heads().div_ceil(HEADS);
        self.stream.dispatch(&Call {
            kernel,
            bindings: &[table, xbc, dt, rate, bias, arguments],
            immediates: &[start, least, most],
            groups: [shape.groups, slab.len(), blocks].map(|n| n as u32),
            verb: VERB,
            bytes: 4 * (rows * shape.channels() + slab.len() * shape.heads * TABLE) as u64,
        })?;
        // Teams divide the rows of a chunk.
        let lanes = 1 << LANES.min(self.stream.context.facts.group_lanes).ilog2();
        let mut params = params(&shape);
        params[4] = lanes as u32;
        let kernel = self.stream.kernel(KernelKey { name: "ssm walk", params }, || walk(&shape, lanes))?;
        self.stream.dispatch(&Call {
            kernel,
            bindings: &[out, state, table, xbc, skip, arguments],
            immediates: &[start, start + 2 * slab.len() as u32],
            groups: [shape.head_dim / columns(&shape), shape.heads, runs].map(|n| n as u32),
            verb: VERB,
            bytes: 4 * (slab.len() * shape.heads * TABLE + rows * (shape.channels() + shape.width())) as u64,
        })
    }
}

/// Columns of the state that a workgroup has.
fn columns(shape: &SsmShape) -> usize {
    if shape.head_dim.is_multiple_of(32) && 32 * shape.state_dim <= STATE { 32 } else { 16 }
}

fn scores(shape: &SsmShape) -> Source {
    let wgsl = template(shape).value("EACH", HEADS).render(include_str!("../../wgsl/ssm/scores.wgsl"));
    let mut bindings = vec![Access::Write];
    bindings.extend([Access::Read; 5]);
    Source { wgsl, bindings }
}

fn walk(shape: &SsmShape, lanes: usize) -> Source {
    let columns = columns(shape);
    let teams = (lanes / columns).min(ROWS);
    let wgsl = template(shape)
        .value("COLUMNS", columns)
        .value("TEAMS", teams)
        .value("LANES", teams * columns)
        .value("EACH", ROWS / teams)
        .value("QUADS", (shape.state_dim / 4).div_ceil(teams))
        .render(include_str!("../../wgsl/ssm/walk.wgsl"));
    let mut bindings = vec![Access::Write; 2];
    bindings.extend([Access::Read; 4]);
    Source { wgsl, bindings }
}
