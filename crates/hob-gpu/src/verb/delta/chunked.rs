//! Chunks of up to 64 rows. What does not need the state (`scores`) is computed for all chunks side by side and kept in a
//! table; the state then walks through the chunks of its sequence, some columns to a workgroup (`walk`); norm and gate
//! come last (`finish`). Chunks come in slabs that bound the table.

use hob_compute::reference::delta::{Piece, pieces};
use hob_compute::{DeltaNet, DeltaShape, Result, SlotRows};

use super::{Bound, VERB, params, template};
use crate::Gpu;
use crate::stream::{Access, BufferId, Call, KernelKey, Source, Stream};

const ROWS: usize = DeltaNet::CHUNK;
/// Floats of the table that a head of a chunk has: two matrices and four vectors.
const TABLE: usize = 2 * ROWS * ROWS + 4 * ROWS;
/// Bytes of the table at most.
pub(in crate::verb) const SLAB_BYTES: usize = 64 << 20;
/// Lanes of a walk, where the adapter has them: its chunks follow each other, so little else hides that memory is slow.
pub(in crate::verb) const LANES: usize = 512;
/// Floats of the state in workgroup memory at most; as much again is left for rows and for other workgroups.
pub(in crate::verb) const STATE: usize = 4096;

/// The table, kept.
#[derive(Default)]
pub(crate) struct Tables {
    held: Option<(BufferId, usize)>,
    fades: Option<(BufferId, usize)>,
}

impl Tables {
    pub(in crate::verb) fn reserve(&mut self, stream: &mut Stream, floats: usize) -> Result<BufferId> {
        reserve(&mut self.held, stream, floats)
    }
}

fn reserve(kept: &mut Option<(BufferId, usize)>, stream: &mut Stream, floats: usize) -> Result<BufferId> {
    if let Some((table, held)) = *kept
        && held >= floats
    {
        return Ok(table);
    }
    let table = stream.buffer("table of chunks", 4 * floats as u64)?;
    if let Some((old, _)) = kept.replace((table, floats)) {
        stream.release(old);
    }
    Ok(table)
}

/// One chunk: batch rows, the slot, and whether the state begins with it.
#[derive(Copy, Clone)]
pub(in crate::verb) struct Chunk {
    row: usize,
    pub rows: usize,
    slot: usize,
    fresh: bool,
}

/// The chunks of sequences, in order.
pub(in crate::verb) fn chunks<'a>(seqs: impl Iterator<Item = &'a SlotRows>) -> Vec<Chunk> {
    let of = |seq: &SlotRows| {
        let (slot, begins) = (seq.slot, seq.position == 0);
        let chunk = move |(n, piece): (usize, Piece)| Chunk {
            row: piece.row,
            rows: piece.rows,
            slot,
            fresh: n == 0 && begins,
        };
        pieces(seq).enumerate().map(chunk)
    };
    seqs.flat_map(of).collect()
}

/// Fills `words` with the first row and the rows of every chunk, and behind them with the runs of chunks of one slot: the
/// first, how many, the slot, whether it begins there. Gives the number of runs.
pub(in crate::verb) fn chunk_words(slab: &[Chunk], words: &mut Vec<u32>) -> usize {
    words.clear();
    slab.iter().for_each(|c| words.extend([c.row as u32, c.rows as u32]));
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
    runs
}

impl Gpu {
    pub(super) fn run_chunked_delta(&mut self, args: &DeltaNet, bound: &Bound) -> Result<()> {
        let chunks = chunks(args.seqs.iter().filter(|s| self.takes(s, true)));
        let heads = args.shape.value_heads;
        // Of a head of a chunk, where channels fade by themselves: three matrices as large as its keys.
        let fades = if bound.channel { 3 * ROWS * args.shape.key_dim } else { 0 };
        let most = (SLAB_BYTES / (4 * (TABLE + fades) * heads)).max(1);
        let count = chunks.len().clamp(1, most) * heads;
        let table = self.delta.reserve(&mut self.stream, count * TABLE)?;
        let fades = match bound.channel {
            true => Some(reserve(&mut self.delta.fades, &mut self.stream, count * fades)?),
            false => None,
        };
        for slab in chunks.chunks(most) {
            self.walk_slab(args, bound, (table, fades), slab)?;
        }
        self.finish_delta(args, bound, &chunks)
    }

    fn walk_slab(
        &mut self,
        args: &DeltaNet,
        bound: &Bound,
        (table, fades): (BufferId, Option<BufferId>),
        slab: &[Chunk],
    ) -> Result<()> {
        let shape = args.shape;
        let mut words = std::mem::take(&mut self.words);
        let runs = chunk_words(slab, &mut words) as u32;
        let start = self.stream.arguments(&words);
        self.words = words;
        let start = start?;
        let Bound { out, state, qkv, beta, decay, rate, bias, channel, .. } = *bound;
        let arguments = self.stream.argument_buffer();
        if let Some(fades) = fades {
            self.fade_slab(&shape, bound, fades, (start, slab.len()))?;
        }
        let key = KernelKey { name: "delta scores", params: params(&shape, channel) };
        let kernel = self.stream.kernel(key, || scores(&shape, channel))?;
        let rows: usize = slab.iter().map(|c| c.rows).sum();
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bound_with([table, qkv, beta, decay, rate, bias, arguments], fades),
            immediates: &[start],
            groups: [shape.value_heads as u32, slab.len() as u32, 1],
            verb: VERB,
            bytes: 4 * (rows * shape.channels() + slab.len() * shape.value_heads * TABLE) as u64,
        })?;
        // Teams divide the rows of a chunk.
        let lanes = 1 << LANES.min(self.stream.context.facts.group_lanes).ilog2();
        let mut params = params(&shape, channel);
        params[5] = lanes as u32;
        let key = KernelKey { name: "delta walk", params };
        let kernel = self.stream.kernel(key, || walk(&shape, lanes, channel))?;
        let blocks = shape.value_dim / columns(&shape);
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bound_with([out, state, table, qkv, arguments], fades),
            immediates: &[start, start + 2 * slab.len() as u32],
            groups: [blocks as u32, shape.value_heads as u32, runs],
            verb: VERB,
            bytes: 4
                * (slab.len() * shape.value_heads * TABLE + rows * (shape.channels() + shape.width())) as u64,
        })
    }

    /// How the channels of a slab's chunks fade.
    fn fade_slab(
        &mut self,
        shape: &DeltaShape,
        bound: &Bound,
        fades: BufferId,
        (start, chunks): (u32, usize),
    ) -> Result<()> {
        let key = KernelKey { name: "delta fade", params: params(shape, true) };
        let kernel = self.stream.kernel(key, || fade(shape))?;
        let Bound { decay, rate, bias, .. } = *bound;
        let arguments = self.stream.argument_buffer();
        self.stream.dispatch(&Call {
            kernel,
            bindings: &[fades, decay, rate, bias, arguments],
            immediates: &[start],
            groups: [shape.value_heads as u32, chunks as u32, 1],
            verb: VERB,
            bytes: 4 * (4 * chunks * shape.value_heads * ROWS * shape.key_dim) as u64,
        })
    }

    fn finish_delta(&mut self, args: &DeltaNet, bound: &Bound, chunks: &[Chunk]) -> Result<()> {
        let shape = args.shape;
        let key = KernelKey { name: "delta finish", params: params(&shape, false) };
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

/// Bindings, and how channels fade behind them.
fn bound_with<const N: usize>(bindings: [BufferId; N], fades: Option<BufferId>) -> Vec<BufferId> {
    bindings.into_iter().chain(fades).collect()
}

fn fade(shape: &DeltaShape) -> Source {
    let wgsl = template(shape, true).render(include_str!("../../wgsl/delta/fade.wgsl"));
    let mut bindings = vec![Access::Write];
    bindings.extend([Access::Read; 4]);
    Source { wgsl, bindings }
}

fn scores(shape: &DeltaShape, channel: bool) -> Source {
    let wgsl = template(shape, channel).render(include_str!("../../wgsl/delta/scores.wgsl"));
    let mut bindings = vec![Access::Write];
    bindings.extend(vec![Access::Read; 6 + usize::from(channel)]);
    Source { wgsl, bindings }
}

fn walk(shape: &DeltaShape, lanes: usize, channel: bool) -> Source {
    let columns = columns(shape);
    let teams = (lanes / columns).min(ROWS);
    let wgsl = template(shape, channel)
        .value("COLUMNS", columns)
        .value("TEAMS", teams)
        .value("LANES", teams * columns)
        .value("EACH", ROWS / teams)
        .value("QUADS", (shape.key_dim / 4).div_ceil(teams))
        .render(include_str!("../../wgsl/delta/walk.wgsl"));
    let mut bindings = vec![Access::Write; 2];
    bindings.extend(vec![Access::Read; 3 + usize::from(channel)]);
    Source { wgsl, bindings }
}

fn finish(shape: &DeltaShape) -> Source {
    let wgsl = template(shape, false).render(include_str!("../../wgsl/delta/finish.wgsl"));
    Source { wgsl, bindings: vec![Access::Write, Access::Read, Access::Read, Access::Read] }
}
