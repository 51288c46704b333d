//! Attention to a window and to entries. It must not know who selected them.

use hob_compute::check::compressed::{self as check, AttendBufs, RoomFor};
use hob_compute::{AttendEntries, Result, WeightKind};

use super::Ring;
use crate::Gpu;
use crate::stream::{Access, Call, KernelKey, Source};
use crate::template::Template;

const VERB: &str = "attend_entries";
const ATTEND: &str = include_str!("../../wgsl/compressed/attend.wgsl");
/// Heads and lanes of a workgroup.
const HEADS: usize = 4;
const LANES: usize = 256;

impl Gpu {
    pub(crate) fn run_attend_entries(&mut self, args: &AttendEntries) -> Result<()> {
        let sinks = self.weight(VERB, args.sinks, WeightKind::Vector)?;
        let (count, sinks) = (sinks.spec.cols, sinks.parts[0].buffer);
        let (far, chosen) = (args.entries.map(|e| e.entries), args.entries.and_then(|e| e.chosen));
        let shape_of = |b: Option<_>| b.map(|b| self.shape(VERB, b)).transpose();
        let bufs = AttendBufs {
            q: self.shape(VERB, args.q)?,
            kv: self.shape(VERB, args.kv)?,
            recent: self.shape(VERB, args.recent)?,
            entries: shape_of(far)?,
            chosen: shape_of(chosen)?,
            out: self.shape(VERB, args.out)?,
        };
        let RoomFor { ring, capacity } = check::attend_entries(args, &bufs, count)?;
        let dim = args.head_dim;
        let params = [dim as u32, far.is_some().into(), chosen.is_some().into(), 0, 0, 0, 0, 0];
        let kernel = self.stream.kernel(KernelKey { name: "attend entries", params }, || {
            let wgsl = Template::new()
                .flag("ENTRIES", far.is_some())
                .flag("CHOSEN", chosen.is_some())
                .value("DIM", dim)
                .value("EACH", dim.div_ceil(LANES))
                .value("ACC", HEADS * dim.div_ceil(LANES))
                .render(ATTEND);
            let reads = 5 + usize::from(far.is_some()) + usize::from(chosen.is_some());
            let mut bindings = vec![Access::Write];
            bindings.extend(vec![Access::Read; reads]);
            Source { wgsl, bindings }
        })?;
        let mut items = std::mem::take(&mut self.words);
        items.clear();
        for seq in args.seqs {
            for i in 0..seq.rows {
                let row = [seq.row + i, seq.position + i, seq.row, seq.position, seq.slot];
                items.extend(row.map(|n| n as u32));
            }
        }
        let rows = items.len() / 5;
        let start = self.stream.arguments(&items);
        self.words = items;
        let act = self.acts.get_mut(VERB, args.out)?;
        act.written();
        let mut bindings = vec![act.rows];
        for buf in [args.q, args.kv, args.recent] {
            bindings.push(self.acts.get(VERB, buf)?.rows);
        }
        let (kv, recent) = (bindings[2], bindings[3]);
        bindings.extend([sinks, self.stream.argument_buffer()]);
        for buf in [far, chosen].into_iter().flatten() {
            bindings.push(self.acts.get(VERB, buf)?.rows);
        }
        let ratio = args.entries.map_or(1, |e| e.ratio);
        let top = bufs.chosen.map_or(0, |c| c.width);
        let sizes = [args.heads, args.window, ring, capacity, ratio, top].map(|n| n as u32);
        let [heads, window, positions, capacity, ratio, top] = sizes;
        let keys = args.seqs.iter().map(|s| s.rows * args.window.min(s.position + s.rows)).sum::<usize>();
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &[start?, heads, window, positions, capacity, ratio, top, args.scale.to_bits()],
            groups: [rows as u32, args.heads.div_ceil(HEADS) as u32, 1],
            verb: VERB,
            bytes: (4 * dim * (keys + 2 * rows * args.heads)) as u64,
        })?;
        self.acts.get_mut(VERB, args.recent)?.written();
        let ring = Ring { buffer: recent, positions: ring, width: dim, part: (0, 1) };
        self.remember(VERB, kv, ring, args.seqs)
    }
}
