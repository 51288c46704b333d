//! Mixtures of many rows: (row, expert) pairs are grouped by expert on the device, so that every weight is read once per
//! 32 rows that want it. Rows come in slabs that bound the working memory. It must not know how weights are packed.

use std::ops::Range;

use hob_compute::{Activation, Result};
use hob_quant::Format;

use super::{Input, Mixture, Part, VERB, activation_key, products};
use crate::Gpu;
use crate::stream::{Access, BufferId, Call, KernelKey, Source, Stream};
use crate::verb::quantize::QUANTIZE_BLOCK;

/// Pairs of a tile, as the kernel has it.
const TILE: usize = 32;
/// Blocks of 32 in workgroup memory.
const DEEP: usize = 2;
/// Bytes that the products of a slab may take.
const SLAB_BYTES: usize = 64 << 20;
/// Experts whose counts fit workgroup memory.
pub(super) const MOST_EXPERTS: usize = 4096;

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

/// What tiles multiply with: two weights or one, into hidden rows in int8 form or into products.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Role {
    Down,
    GateUp,
    Up,
}

/// One dispatch of tiles.
struct Tiles<'a> {
    kernel: crate::stream::Kernel,
    input: Input,
    parts: &'a [Part],
    /// Of the weights of the parts.
    biases: &'a [BufferId],
    experts: Range<usize>,
    out: &'a [BufferId],
    blocks: usize,
    outputs: usize,
    /// Outputs of a workgroup.
    wide: usize,
}

/// Rows of a slab, and the tiles that they make at most.
struct Slab {
    rows: Range<usize>,
    tiles: usize,
    buffers: Buffers,
}

impl Gpu {
    /// All weights have integer formats.
    pub(super) fn run_many_experts(&mut self, mixture: &Mixture) -> Result<()> {
        let Mixture { args, shapes, .. } = mixture;
        let row_words = args.top_k * shapes.down.rows;
        let rows = (SLAB_BYTES / 4 / row_words).clamp(1, args.rows);
        let pairs = rows * args.top_k;
        let tiles = pairs / TILE + shapes.count.min(pairs);
        let wanted = [pairs, 4 * (tiles + 1), rows * row_words];
        let buffers = self.grouping.reserve(&mut self.stream, wanted)?;
        for first in (0..args.rows).step_by(rows) {
            let slab = Slab { rows: first..args.rows.min(first + rows), tiles, buffers };
            self.sort_slab(mixture, &slab)?;
            self.tile_gate(mixture, &slab)?;
            self.tile_down(mixture, &slab)?;
            self.sum_slab(mixture, &slab)?;
        }
        Ok(())
    }

    fn sort_slab(&mut self, mixture: &Mixture, slab: &Slab) -> Result<()> {
        let (count, top_k) = (mixture.shapes.count, mixture.args.top_k);
        let key = KernelKey { name: "expert sort", params: [count as u32, 0, 0, 0, 0, 0, 0, 0] };
        let kernel = self.stream.kernel(key, || Source {
            wgsl: crate::template::Template::new()
                .value("EXPERTS", count)
                .value("TILE", TILE)
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

    fn tile_gate(&mut self, mixture: &Mixture, slab: &Slab) -> Result<()> {
        let [gate, up, _] = mixture.formats;
        let activation = mixture.args.activation;
        let role = if mixture.alone { Role::Up } else { Role::GateUp };
        let (biased, [kind, alpha, limit]) = (mixture.biases.is_some(), activation_key(activation));
        let params = [gate.ggml_id(), up.ggml_id(), kind, role as u32, alpha, limit, biased.into(), 0];
        let key = KernelKey { name: "expert tile", params };
        let weights = [(gate, "a"), (up, "b")];
        let weights = if mixture.alone { &weights[..1] } else { &weights };
        let kernel = self.stream.kernel(key, || tile_source(weights, role, activation, biased))?;
        let biases: Vec<BufferId> = mixture.biases.iter().flat_map(|&[gate, up, _]| [gate, up]).collect();
        let shape = mixture.shapes.gate;
        let out: Vec<BufferId> = mixture.hidden.buffers().collect();
        let wide = if mixture.alone { 64 } else { 32 };
        for (parts, experts) in self.gate_parts(mixture)? {
            let (blocks, outputs) = (shape.width.div_ceil(32), shape.rows);
            let (input, parts, biases, out) = (mixture.x, &parts[..weights.len()], &biases, &out);
            let tiles = Tiles { kernel, input, parts, biases, experts, out, blocks, outputs, wide };
            self.dispatch_expert_tiles(mixture, slab, &tiles)?;
        }
        Ok(())
    }

    fn tile_down(&mut self, mixture: &Mixture, slab: &Slab) -> Result<()> {
        let down = mixture.formats[2];
        let biased = mixture.biases.is_some();
        let params = [down.ggml_id(), 0, 0, Role::Down as u32, 0, 0, biased.into(), 0];
        let key = KernelKey { name: "expert tile", params };
        let kernel =
            self.stream.kernel(key, || tile_source(&[(down, "a")], Role::Down, Activation::Silu, biased))?;
        let biases: Vec<BufferId> = mixture.biases.iter().map(|&[.., down]| down).collect();
        let shape = mixture.shapes.down;
        for part in self.expert_parts(mixture.args.down, shape.rows)? {
            let (blocks, outputs) = (shape.width.div_ceil(32), shape.rows);
            let (input, out) = (mixture.hidden, &[slab.buffers.products]);
            let (parts, biases, experts) = (&[part], &biases, part.first..part.end);
            let tiles = Tiles { kernel, input, parts, biases, experts, out, blocks, outputs, wide: 64 };
            self.dispatch_expert_tiles(mixture, slab, &tiles)?;
        }
        Ok(())
    }

    fn dispatch_expert_tiles(&mut self, mixture: &Mixture, slab: &Slab, tiles: &Tiles) -> Result<()> {
        let mut bindings = vec![slab.buffers.order, slab.buffers.tiles];
        bindings.extend(tiles.input.buffers());
        bindings.extend(tiles.parts.iter().map(|part| part.weights));
        bindings.extend(tiles.biases);
        bindings.extend(tiles.out);
        let (top_k, last) = (mixture.args.top_k, &tiles.parts[tiles.parts.len() - 1]);
        let first_pair = slab.rows.start * top_k;
        let Range { start, end } = tiles.experts;
        let sizes =
            [tiles.blocks, tiles.outputs, top_k, first_pair, start, end, tiles.parts[0].first, last.first];
        self.stream.dispatch(&Call {
            kernel: tiles.kernel,
            bindings: &bindings,
            immediates: &sizes.map(|n| n as u32),
            groups: [tiles.outputs.div_ceil(tiles.wide) as u32, slab.tiles as u32, 1],
            verb: VERB,
            bytes: (slab.rows.len() * top_k * (tiles.blocks * 40 + tiles.outputs * 4)) as u64,
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

fn tile_source(weights: &[(Format, &str)], role: Role, activation: Activation, biased: bool) -> Source {
    let bias = 4 + weights.len();
    let out = if biased { bias + weights.len() } else { bias };
    let weights: Vec<_> = weights.iter().map(|&(format, name)| (format, name, true)).collect();
    let wgsl = products(&weights, activation)
        .flag("GATED", role == Role::GateUp)
        .flag("HIDDEN", role != Role::Down)
        .flag("BIASED", biased)
        .value("BIAS_A", bias)
        .value("BIAS_B", bias + 1)
        .value("OUT", out)
        .value("META", out + 1)
        .value("DEEP", DEEP)
        .value("VALUES", "values")
        .flag("SHARED", false)
        .piece("quantize_block", QUANTIZE_BLOCK)
        .render(include_str!("../../wgsl/expert_tile.wgsl"));
    let mut bindings = vec![Access::Read; out];
    bindings.extend(vec![Access::Write; if role == Role::Down { 1 } else { 2 }]);
    Source { wgsl, bindings }
}
