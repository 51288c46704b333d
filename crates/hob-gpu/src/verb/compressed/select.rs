//! Selecting entries: scores of a few rows at a time, then the best of each row. It must not know what is selected.

use hob_compute::check::compressed as check;
use hob_compute::reference::compressed::seen;
use hob_compute::{Result, Select};

use crate::Gpu;
use crate::stream::{Access, BufferId, Call, KernelKey, Source};
use crate::template::Template;
use crate::verb::route::ORDER;

const VERB: &str = "select";
const SCORE: &str = include_str!("../../wgsl/compressed/score.wgsl");
const CHOOSE: &str = include_str!("../../wgsl/compressed/choose.wgsl");
/// Rows whose scores are held at once.
const ROWS: usize = 16;
/// Entries of a workgroup.
const LANES: usize = 64;

/// Scores of some rows, `[ROWS, capacity]`: made for the largest capacity that was asked for.
#[derive(Default)]
pub(crate) struct Scores(Option<(BufferId, usize)>);

impl Gpu {
    pub(crate) fn run_select(&mut self, args: &Select) -> Result<()> {
        let all = [args.q, args.weights, args.entries, args.out].map(|b| self.shape(VERB, b));
        let [q, weights, entries, out] = all;
        let shapes = [q?, weights?, entries?, out?];
        let (top_k, dim) = (check::select(args, shapes)?, shapes[2].width);
        let kernels = self.select_kernels(args.heads, dim)?;
        let scores = self.scores(args.capacity)?;
        let of = |buf| Ok::<_, hob_compute::ComputeError>(self.acts.get(VERB, buf)?.rows);
        let (q, weights, entries) = (of(args.q)?, of(args.weights)?, of(args.entries)?);
        let act = self.acts.get_mut(VERB, args.out)?;
        act.written();
        let (out, arguments) = (act.rows, self.stream.argument_buffer());
        let rows = args.seqs.iter().flat_map(|seq| (0..seq.rows).map(move |i| (seq, i)));
        let mut rows = rows.peekable();
        while rows.peek().is_some() {
            let mut items = std::mem::take(&mut self.words);
            items.clear();
            let mut most = 0;
            for (seq, i) in rows.by_ref().take(ROWS) {
                let seen = seen(seq, i, args.ratio);
                most = most.max(seen);
                items.extend([seq.row + i, seq.slot, seen].map(|n| n as u32));
            }
            let (count, top) = (items.len() / 3, top_k as u32);
            if most > top_k || self.stream.rehearsing {
                let start = self.stream.arguments(&items)?;
                self.stream.dispatch(&Call {
                    kernel: kernels[0],
                    bindings: &[scores, q, weights, entries, arguments],
                    immediates: &[start, args.capacity as u32, top, args.scale.to_bits()],
                    groups: [most.div_ceil(LANES).max(1) as u32, count as u32, 1],
                    verb: VERB,
                    bytes: (4 * most * dim) as u64,
                })?;
            }
            // Anew: the dispatch before may have been the last of its submit.
            let start = self.stream.arguments(&items);
            self.words = items;
            let start = start?;
            self.stream.dispatch(&Call {
                kernel: kernels[1],
                bindings: &[out, scores, arguments],
                immediates: &[start, args.capacity as u32, top],
                groups: [count as u32, 1, 1],
                verb: VERB,
                bytes: (20 * count * most) as u64,
            })?;
        }
        Ok(())
    }

    fn select_kernels(&mut self, heads: usize, dim: usize) -> Result<[crate::stream::Kernel; 2]> {
        let params = [heads as u32, dim as u32, 0, 0, 0, 0, 0, 0];
        let score = self.stream.kernel(KernelKey { name: "score entries", params }, || Source {
            wgsl: Template::new().value("HEADS", heads).value("DIM", dim).render(SCORE),
            bindings: [&[Access::Write][..], &[Access::Read; 4]].concat(),
        })?;
        let choose = self.stream.kernel(KernelKey { name: "choose entries", params: [0; 8] }, || Source {
            wgsl: Template::new().piece("order", ORDER).render(CHOOSE),
            bindings: vec![Access::Write, Access::Read, Access::Read],
        })?;
        Ok([score, choose])
    }

    fn scores(&mut self, capacity: usize) -> Result<BufferId> {
        if let Some((buffer, _)) = self.entry_scores.0.filter(|(_, held)| *held >= capacity) {
            return Ok(buffer);
        }
        let buffer = self.stream.buffer("scores of entries", (4 * ROWS * capacity) as u64)?;
        if let Some((old, _)) = self.entry_scores.0.replace((buffer, capacity)) {
            self.stream.release(old);
        }
        Ok(buffer)
    }
}
