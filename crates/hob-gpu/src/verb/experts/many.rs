//! Mixtures of many rows: (row, expert) pairs are grouped by expert on the device, so that every weight is read once per
//! tile of rows that want it. Tiles are cooperative matrices (`coop`) or integer products (`int8`). Rows come in slabs that
//! bound the working memory. It must not know how weights are packed.

mod coop;
mod int8;

use std::ops::Range;

use hob_compute::Result;

use super::{Mixture, Part, Tiling, VERB};
use crate::Gpu;
use crate::stream::{Access, BufferId, Call, KernelKey, Source, Stream};

/// Bytes that the products of a slab may take: 2048 rows of Qwen3-30B-A3B, 128 pairs for each expert on the average.
const SLAB_BYTES: usize = 128 << 20;
/// Experts whose counts fit workgroup memory.
pub(super) const MOST_EXPERTS: usize = 2048;
/// Most lanes of the workgroup that sorts.
const SORT_LANES: usize = 1024;

/// Working memory of mixtures, kept.
#[derive(Default)]
pub(crate) struct Grouping {
    buffers: Option<Buffers>,
}

#[derive(Copy, Clone)]
struct Buffers {
    order: BufferId,
    tiles: BufferId,
    products: BufferId,
    /// Words of each.
    sizes: [usize; 3],
}

impl Grouping {
    fn reserve(&mut self, stream: &mut Stream, wanted: [usize; 3]) -> Result<Buffers> {
        let held = self.buffers.map_or([0; 3], |b| b.sizes);
        if let Some(buffers) = self.buffers
            && held.iter().zip(wanted).all(|(&held, wanted)| held >= wanted)
        {
            return Ok(buffers);
        }
        let sizes: [usize; 3] = std::array::from_fn(|i| held[i].max(wanted[i]));
        let made = Buffers {
            order: stream.buffer("pairs by expert", 4 * sizes[0] as u64)?,
            tiles: stream.buffer("tiles of experts", 4 * sizes[1] as u64)?,
            products: stream.buffer("products of experts", 4 * sizes[2] as u64)?,
            sizes,
        };
        if let Some(old) = self.buffers.replace(made) {
            [old.order, old.tiles, old.products].into_iter().for_each(|id| stream.release(id));
        }
        Ok(made)
    }
}

/// One dispatch of tiles.
struct Tiles<'a> {
    kernel: crate::stream::Kernel,
    bindings: Vec<BufferId>,
    immediates: &'a [usize],
    /// Workgroups, and the bytes of weights and rows that they read and write.
    groups: [usize; 2],
    bytes: usize,
}

/// Rows of a slab, and the tiles that they make at most.
struct Slab {
    rows: Range<usize>,
    tiles: usize,
    buffers: Buffers,
}

impl Gpu {
    /// The tiles of `high` pairs, in slabs.
    pub(super) fn run_many_experts(&mut self, mixture: &Mixture, tiling: Tiling) -> Result<()> {
        let Mixture { args, shapes, .. } = mixture;
        let row_words = args.top_k * shapes.down.rows;
        let rows = (SLAB_BYTES / 4 / row_words).clamp(1, args.rows);
        let pairs = rows * args.top_k;
        // As many as the lowest tiles give: how many rows there are must not change what is held.
        let least = coop::LOWEST.min(int8::TILE);
        let most = pairs / least + shapes.count.min(pairs);
        let wanted = [pairs, 4 * (most + 1), rows * row_words];
        let buffers = self.grouping.reserve(&mut self.stream, wanted)?;
        for first in (0..args.rows).step_by(rows) {
            let rows = first..args.rows.min(first + rows);
            let slab = |high: usize| {
                let pairs = rows.len() * args.top_k;
                Slab { rows: rows.clone(), tiles: pairs / high + shapes.count.min(pairs), buffers }
            };
            match tiling {
                Tiling::Int8 => self.int8_slab(mixture, &slab(int8::TILE))?,
                // Later steps have fewer rows: all tiles that they may take are made in rehearsal.
                _ if self.stream.rehearsing => {
                    for tile in coop::tiles_up_to(rows.len() * args.top_k, shapes.count) {
                        self.coop_slab(mixture, tiling, tile, &slab(tile.rows))?;
                    }
                }
                _ => {
                    let tile = tiling.tile(rows.len() * args.top_k, shapes.count);
                    self.coop_slab(mixture, tiling, tile, &slab(tile.rows))?;
                }
            }
            self.sum_slab(mixture, &slab(1))?;
        }
        Ok(())
    }

    /// Groups the pairs of a slab by expert, in tiles of `high` pairs.
    fn sort_slab(&mut self, mixture: &Mixture, slab: &Slab, high: usize) -> Result<()> {
        let (count, top_k) = (mixture.shapes.count, mixture.args.top_k);
        let params = [count as u32, high as u32, 0, 0, 0, 0, 0, 0];
        let lanes = 1 << self.stream.context.facts.group_lanes.min(SORT_LANES).ilog2();
        let kernel = self.stream.kernel(KernelKey { name: "expert sort", params }, || Source {
            wgsl: crate::template::Template::new()
                .value("EXPERTS", count)
                .value("TILE", high)
                .value("LANES", lanes)
                .render(include_str!("../../wgsl/expert_sort.wgsl")),
            bindings: vec![Access::Read, Access::Write, Access::Write],
        })?;
        let pairs = slab.rows.len() * top_k;
        self.stream.dispatch(&Call {
            kernel,
            bindings: &[mixture.routes, slab.buffers.order, slab.buffers.tiles],
            immediates: &[slab.rows.start * top_k, pairs, top_k].map(|n| n as u32),
            groups: [1, 1, 1],
            verb: VERB,
            bytes: 8 * pairs as u64,
        })
    }

    fn dispatch_expert_tiles(&mut self, tiles: &Tiles) -> Result<()> {
        let words: Vec<u32> = tiles.immediates.iter().map(|&n| n as u32).collect();
        let [x, y] = tiles.groups;
        self.stream.dispatch(&Call {
            kernel: tiles.kernel,
            bindings: &tiles.bindings,
            immediates: &words,
            groups: [x as u32, y as u32, 1],
            verb: VERB,
            bytes: tiles.bytes as u64,
        })
    }

    fn sum_slab(&mut self, mixture: &Mixture, slab: &Slab) -> Result<()> {
        let Mixture { args, shapes, .. } = mixture;
        let key = KernelKey { name: "expert sum", params: [0; 8] };
        let kernel = self.stream.kernel(key, || Source {
            wgsl: include_str!("../../wgsl/expert_sum.wgsl").to_string(),
            bindings: vec![Access::Write, Access::Read, Access::Read],
        })?;
        let (outputs, rows) = (shapes.down.rows, slab.rows.len());
        let sizes = [outputs, args.top_k, slab.rows.start, rows, args.add.into()];
        self.stream.dispatch(&Call {
            kernel,
            bindings: &[mixture.out, mixture.routes, slab.buffers.products],
            immediates: &sizes.map(|n| n as u32),
            groups: [outputs.div_ceil(128) as u32, rows as u32, 1],
            verb: VERB,
            bytes: (4 * rows * outputs * (args.top_k + 2)) as u64,
        })
    }
}
