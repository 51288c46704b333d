//! A compressor of DeepSeek V4: every block of positions becomes one entry, a mean of their rows weighted by a learned gate
//! channel by channel.

use hob_compute::{Compress, CompressShape};

use super::compressed::RING_SLACK;
use super::step::{Projection, Projections, Step};
use crate::Result;
use crate::needs::{BufId, Group, Name, Needs, Rows, WeightId};

/// How an architecture spells the tensors of a compressor.
#[derive(Copy, Clone)]
pub(crate) struct CompressorNames {
    pub kv: Name,
    pub gate: Name,
    /// What is added to the gate by place in the block, in full within the layer.
    pub bias: Name,
    pub norm: Name,
}

/// One compressor of a layer.
pub(crate) struct Compressor {
    pub shape: CompressShape,
    pub kv: Projection,
    pub gate: Projection,
    bias: WeightId,
    norm: WeightId,
    eps: f32,
    rope: usize,
    /// `[rows, shape.width()]` each.
    pub kv_rows: BufId,
    pub gate_rows: BufId,
    /// The rows that entries to come are made of.
    recent: BufId,
    /// An entry for every block.
    pub entries: BufId,
}

impl Compressor {
    /// Declares a compressor of layer `i` from a stream of `dim`, with a rotary table; a token reads `read` of its entries,
    /// or all.
    pub fn new(
        (dim, eps): (usize, f32),
        (i, names): (usize, CompressorNames),
        shape: CompressShape,
        (rope, read): (usize, Option<usize>),
        needs: &mut Needs,
    ) -> Self {
        let (width, naming) = (shape.width(), needs.naming);
        let mut add = Projections { layer: i, group: Group::Attention, needs: &mut *needs };
        let [kv, gate] = [names.kv, names.gate].map(|name| add.add(name, width, dim, false));
        let bias = needs.flat(naming.in_full(i, names.bias), shape.ratio * width, vec![shape.ratio, width]);
        let ring = shape.span() + RING_SLACK;
        Compressor {
            shape,
            kv,
            gate,
            bias,
            norm: needs.norm(naming.layer(i, names.norm, "weight"), shape.dim),
            eps,
            rope,
            kv_rows: needs.scratch("rows to compress", Rows::Chunk, width),
            gate_rows: needs.scratch("gates of rows to compress", Rows::Chunk, width),
            recent: needs.ring("rows of open blocks", ring * 2 * width),
            entries: needs.entries("compressed entries", shape.ratio, shape.dim, read),
        }
    }

    /// Appends the entries of the blocks that the batch's projected rows complete.
    pub fn run(&self, step: &mut Step) -> Result<()> {
        let [kv, gate, recent, entries] =
            [self.kv_rows, self.gate_rows, self.recent, self.entries].map(|b| step.buf(b));
        let (bias, norm) = (step.weight(self.bias), step.weight(self.norm));
        let &Compressor { shape, eps, rope, .. } = self;
        let (rotation, seqs) = (step.ropes[rope], step.slots);
        let args = Compress { shape, kv, gate, bias, norm, eps, rotation, recent, entries, seqs };
        Ok(step.dev.compress(&args)?)
    }
}
