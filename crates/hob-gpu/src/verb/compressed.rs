//! Compressed attention: entries from blocks of rows, and the rings that keep rows. Who selects and who attends stand
//! beside. It must not know what rows are projections of.

mod attend;
pub(crate) mod select;

use hob_compute::check::compressed::{self as check, CompressBufs, RoomFor};
use hob_compute::reference::compressed::{completed, kept};
use hob_compute::{Compress, Result, RopePairs, SlotRows, WeightKind};

use super::rope::ROPE_ANGLE;
use crate::Gpu;
use crate::stream::{Access, BufferId, Call, KernelKey, Source};
use crate::template::Template;

const VERB: &str = "compress";
const COMPRESS: &str = include_str!("../wgsl/compressed/compress.wgsl");
const REMEMBER: &str = include_str!("../wgsl/compressed/remember.wgsl");

/// A ring as rows are put into it.
#[derive(Copy, Clone)]
struct Ring {
    buffer: BufferId,
    /// Positions, and floats of one part of a row of it.
    positions: usize,
    width: usize,
    /// Which part of how many.
    part: (usize, usize),
}

impl Gpu {
    pub(crate) fn run_compress(&mut self, args: &Compress) -> Result<()> {
        let bufs = CompressBufs {
            kv: self.shape(VERB, args.kv)?,
            gate: self.shape(VERB, args.gate)?,
            freqs: self.shape(VERB, args.rotation.freqs)?,
            recent: self.shape(VERB, args.recent)?,
            entries: self.shape(VERB, args.entries)?,
        };
        let vector = |w| self.weight(VERB, w, WeightKind::Vector);
        let (bias, norm) = (vector(args.bias)?, vector(args.norm)?);
        let vectors = [bias.spec.cols, norm.spec.cols];
        let (bias, norm) = (bias.parts[0].buffer, norm.parts[0].buffer);
        let room = check::compress(args, &bufs, vectors)?;
        self.make_entries(args, room, [bias, norm], bufs.freqs.width)?;
        let (kv, gate) = (self.acts.get(VERB, args.kv)?.rows, self.acts.get(VERB, args.gate)?.rows);
        let act = self.acts.get_mut(VERB, args.recent)?;
        act.written();
        let (buffer, width) = (act.rows, args.shape.width());
        for (part, rows) in [kv, gate].into_iter().enumerate() {
            let ring = Ring { buffer, positions: room.ring, width, part: (part, 2) };
            self.remember(VERB, rows, ring, args.seqs)?;
        }
        Ok(())
    }

    fn make_entries(
        &mut self,
        args: &Compress,
        room: RoomFor,
        [bias, norm]: [BufferId; 2],
        half: usize,
    ) -> Result<()> {
        let shape = args.shape;
        let interleaved = args.rotation.pairs == RopePairs::Interleaved;
        let sizes = [shape.ratio, shape.dim, half].map(|n| n as u32);
        let params = [sizes[0], sizes[1], sizes[2], shape.overlapped.into(), interleaved.into(), 0, 0, 0];
        let kernel = self.stream.kernel(KernelKey { name: "compress", params }, || {
            let wgsl = Template::new()
                .flag("OVERLAPPED", shape.overlapped)
                .flag("INTERLEAVED", interleaved)
                .value("DIM", shape.dim)
                .value("WIDTH", shape.width())
                .value("RATIO", shape.ratio)
                .value("SPAN", shape.span())
                .value("HALF", half)
                .piece("rope_angle", ROPE_ANGLE)
                .render(COMPRESS);
            let mut bindings = vec![Access::Write];
            bindings.extend([Access::Read; 7]);
            Source { wgsl, bindings }
        })?;
        let mut items = std::mem::take(&mut self.words);
        items.clear();
        for seq in args.seqs {
            for block in completed(seq, shape.ratio) {
                items.extend([block, seq.row, seq.position, seq.slot].map(|n| n as u32));
            }
        }
        let blocks = items.len() / 4;
        let start = self.stream.arguments(&items);
        self.words = items;
        let act = self.acts.get_mut(VERB, args.entries)?;
        act.written();
        let entries = act.rows;
        let of = |buf| Ok::<_, hob_compute::ComputeError>(self.acts.get(VERB, buf)?.rows);
        let bindings = [
            entries,
            of(args.kv)?,
            of(args.gate)?,
            of(args.recent)?,
            bias,
            norm,
            of(args.rotation.freqs)?,
            self.stream.argument_buffer(),
        ];
        let magnitude = args.rotation.magnitude.to_bits();
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &[start?, room.ring as u32, room.capacity as u32, args.eps.to_bits(), magnitude],
            groups: [blocks as u32, 1, 1],
            verb: VERB,
            bytes: (8 * blocks * shape.span() * shape.dim) as u64,
        })
    }

    /// Puts the last rows of every sequence into a ring.
    fn remember(&mut self, verb: &'static str, rows: BufferId, ring: Ring, seqs: &[SlotRows]) -> Result<()> {
        let key = KernelKey { name: "remember", params: [0; 8] };
        let kernel = self.stream.kernel(key, || Source {
            wgsl: REMEMBER.to_string(),
            bindings: vec![Access::Write, Access::Read, Access::Read],
        })?;
        let Ring { buffer, positions, width, part: (part, of) } = ring;
        let mut items = std::mem::take(&mut self.words);
        items.clear();
        for seq in seqs {
            for (from, to) in kept(seq, positions) {
                items.extend([from, (seq.slot * positions + to) * of + part].map(|n| n as u32));
            }
        }
        let count = items.len() / 2;
        let start = self.stream.arguments(&items);
        self.words = items;
        self.stream.dispatch(&Call {
            kernel,
            bindings: &[buffer, rows, self.stream.argument_buffer()],
            immediates: &[width as u32, start?],
            groups: [count as u32, (width.div_ceil(128) as u32).min(65_535), 1],
            verb,
            bytes: (8 * count * width) as u64,
        })
    }
}
