//! Chunks of up to 64 rows. What does not need the state (`scores`) is computed for all chunks side by side and kept in a
//! table; the state then walks through the chunks of its sequence, some columns to a workgroup (`walk`); norm and gate
//! come last (`finish`). Chunks come in slabs that bound the table.

use hob_compute::reference::delta::pieces;
use hob_compute::{DeltaNet, DeltaShape, Result};

use super::{Bound, VERB, params, template};
use crate::Gpu;
use crate::stream::{Access, BufferId, Call, KernelKey, Source, Stream};

const ROWS: usize = DeltaNet::CHUNK;
/// Floats of the table that a head of a chunk has: two matrices and four vectors.
const TABLE: usize = 2 * ROWS * ROWS + 4 * ROWS;
/// Bytes of the table at most.
const SLAB_BYTES: usize = 64 << 20;
/// Lanes of a walk, where the adapter has them: its chunks follow each other, so little else hides that memory is slow.
const LANES: usize = 512;
/// Floats of the state in workgroup memory at most; as much again is left for rows and for other workgroups.
const STATE: usize = 4096;

/// The table, kept.
#[derive(Default)]
pub(crate) struct Tables {
    held: Option<(BufferId, usize)>,
}

impl Tables {
    fn reserve(&mut self, stream: &mut Stream, floats: usize) -> Result<BufferId> {
        if let Some((table, held)) = self.held
            && held >= floats
        {
            return Ok(table);
        }
        let table = stream.buffer("table of delta rules", 4 * floats as u64)?;
        if let Some((old, _)) = self.held.replace((table, floats)) {
            stream.release(old);
        }
        Ok(table)
    }
}

/// One chunk: batch rows, the slot, and whether the state begins with it.
#[derive(Copy, Clone)]
struct Chunk {
    row: usize,
    rows: usize,
    slot: usize,
    fresh: bool,
}

impl Gpu {
    pub(super) fn run_chunked_delta(&mut self, args: &DeltaNet, bound: &Bound) -> Result<()> {
        let mut chunks = Vec::new();
        for seq in args.seqs {
            let of = |(n, piece): (usize, hob_compute::reference::delta::Piece)| Chunk {
                row: piece.row,
                rows: piece.rows,
                slot: seq.slot,
                fresh: n == 0 && seq.position == 0,
            };
            chunks.extend(pieces(seq).enumerate().map(of));
        }
        let heads = args.shape.value_heads;
        let most = (SLAB_BYTES / (4 * TABLE * heads)).max(1);
        let table = self.delta.reserve(&mut self.stream, chunks.len().clamp(1, most) * heads * TABLE)?;
        for slab in chunks.chunks(most) {
            self.walk_slab(args, bound, table, slab)?;
        }
        self.finish_delta(args, bound, &chunks)
    }

    fn walk_slab(&mut self, args: &DeltaNet, bound: &Bound, table: BufferId, slab: &[Chunk]) -> Result<()> {
        let shape = args.shape;
        let mut words = std::mem::take(&mut self.words);
        words.clear();
        slab.iter().for_each(|c| words.extend([c.row as u32, c.rows as u32]));
        // Runs of chunks of one slot: the first, how many, the slot, whether it begins there.
        let mut runs = 0;
        for (n, chunk) in slab.iter().enumerate() {
            match words.len().checked_sub(3) {
                Some(count) if n > 0 && slab[n - 1].slot == chunk.slot && !chunk.fresh => words[count] += 1,
                _ => {
                    words.extend([n as u32, 1, chunk.slot as u32, chunk.fresh.into()]);
                    runs += 1;
                }
            }
        }
        let start = self.stream.arguments(&words);
        self.words = words;
        let start = start?;
        let Bound { out, state, qkv, beta, decay, rate, bias, .. } = *bound;
        let arguments = self.stream.argument_buffer();
        let key = KernelKey { name: "delta scores", params: params(&shape) };
        let kernel = self.stream.kernel(key, || scores(&shape))?;
        let rows: usize = slab.iter().map(|c| c.rows).sum();
        self.stream.dispatch(&Call {
            kernel,
            bindings: &[table, qkv, beta, decay, rate, bias, arguments],
            immediates: &[start],
            groups: [shape.value_heads as u32, slab.len() as u32, 1],
            verb: VERB,
            bytes: 4 * (rows * shape.channels() + slab.len() * shape.value_heads * TABLE) as u64,
        })?;
        // Teams divide the rows of a chunk.
        let lanes = 1 << LANES.min(self.stream.context.facts.group_lanes).ilog2();
        let mut params = params(&shape);
        params[5] = lanes as u32;
        let kernel = self.stream.kernel(KernelKey { name: "delta walk", params }, || walk(&shape, lanes))?;
        let blocks = shape.value_dim / columns(&shape);
        self.stream.dispatch(&Call {
            kernel,
            bindings: &[out, state, table, qkv, arguments],
            immediates: &[start, start + 2 * slab.len() as u32],
            groups: [blocks as u32, shape.value_heads as u32, runs],
            verb: VERB,
            bytes: 4
                * (slab.len() * shape.value_heads * TABLE + rows * (shape.channels() + shape.width())) as u64,
        })
    }

    fn finish_delta(&mut self, args: &DeltaNet, bound: &Bound, chunks: &[Chunk]) -> Result<()> {
        let shape = args.shape;
        let key = KernelKey { name: "delta finish", params: params(&shape) };
        let kernel = self.stream.kernel(key, || finish(&shape))?;
        let mut words = std::mem::take(&mut self.words);
        words.clear();
        chunks.iter().for_each(|c| words.extend(c.row as u32..(c.row + c.rows) as u32));
        let rows = words.len();
        let start = self.stream.arguments(&words);
        self.words = words;
        self.stream.dispatch(&Call {
            kernel,
            bindings: &[bound.out, bound.z, bound.norm, self.stream.argument_buffer()],
            immediates: &[start?, args.eps.to_bits()],
            groups: [shape.value_heads as u32, rows as u32, 1],
            verb: VERB,
            bytes: 12 * (rows * shape.width()) as u64,
        })
    }
}

/// Columns of the state that a workgroup has.
fn columns(shape: &DeltaShape) -> usize {
    if shape.value_dim.is_multiple_of(32) && 32 * shape.key_dim <= STATE { 32 } else { 16 }
}

fn scores(shape: &DeltaShape) -> Source {
    let wgsl = template(shape).render(include_str!("../../wgsl/delta/scores.wgsl"));
    let mut bindings = vec![Access::Write];
    bindings.extend([Access::Read; 6]);
    Source { wgsl, bindings }
}

fn walk(shape: &DeltaShape, lanes: usize) -> Source {
    let columns = columns(shape);
    let teams = (lanes / columns).min(ROWS);
    let wgsl = template(shape)
        .value("COLUMNS", columns)
        .value("TEAMS", teams)
        .value("LANES", teams * columns)
        .value("EACH", ROWS / teams)
        .value("QUADS", (shape.key_dim / 4).div_ceil(teams))
        .render(include_str!("../../wgsl/delta/walk.wgsl"));
    let mut bindings = vec![Access::Write; 2];
    bindings.extend([Access::Read; 3]);
    Source { wgsl, bindings }
}

fn finish(shape: &DeltaShape) -> Source {
    let wgsl = template(shape).render(include_str!("../../wgsl/delta/finish.wgsl"));
    Source { wgsl, bindings: vec![Access::Write, Access::Read, Access::Read, Access::Read] }
}
