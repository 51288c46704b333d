//! The largest logits, the token drawn from them, and what of this is read back when. It must not know who samples.
//!
//! Results stay on the device, row after row: `k` ids, `k` logits, the log-sum-exp and the chosen token, a word each. A
//! later `embed` reads the chosen tokens there; `submit` copies all rows recorded since the one before to the host.

use std::collections::VecDeque;

use hob_compute::tickets::KEPT;
use hob_compute::{ComputeError, Draw, Pick, Picked, Result, Ticket, check};

use super::route::ORDER;
use crate::Gpu;
use crate::stream::{Access, BufferId, Call, Fetch, Kernel, KernelKey, Source, Stream};
use crate::template::Template;

const PICK: &str = include_str!("../wgsl/pick.wgsl");
const DRAW: &str = include_str!("../wgsl/draw.wgsl");
const VERB: &str = "pick";
/// Logits or candidates of one workgroup.
const CHUNK: usize = 2048;
/// Lanes of a workgroup, at least: one for each candidate that is drawn from.
const LANES: usize = 256;
/// Lanes that sort, where a workgroup may have so many.
const SORTING: usize = 1024;
/// Candidates between two dispatches, at least; more rows than they suffice for come one slab after the other.
const CANDIDATES: usize = 1 << 19;
/// Words of results to begin with.
const RESULTS: usize = 1 << 14;

const _: () = assert!(Pick::MAX_K <= LANES);

/// Rows of one `k` in the results.
#[derive(Copy, Clone, Debug, Default)]
pub(crate) struct Block {
    /// First word.
    pub start: usize,
    pub rows: usize,
    pub k: usize,
}

impl Block {
    /// Where the first row has its chosen token.
    pub fn chosen(&self) -> usize {
        self.start + 2 * self.k + 1
    }

    /// Words of a row.
    pub fn stride(&self) -> usize {
        2 * self.k + 2
    }

    fn words(&self) -> usize {
        self.rows * self.stride()
    }
}

/// What was submitted and not yet read.
struct Submitted {
    ticket: Ticket,
    block: Block,
    fetch: Fetch,
}

/// Results of `pick`, on the device and on their way.
#[derive(Default)]
pub(crate) struct Picks {
    buffers: Option<Buffers>,
    /// Recorded since the last `submit`.
    recorded: Block,
    /// Of the last `pick`.
    last: Block,
    submitted: VecDeque<Submitted>,
    next: u64,
    /// A result on its way into a [`Picked`].
    words: Vec<u32>,
    /// The arguments of draws.
    draws: Vec<u32>,
}

#[derive(Copy, Clone)]
struct Buffers {
    results: BufferId,
    result_words: usize,
    /// What one dispatch keeps for the next.
    kept: [BufferId; 2],
    sums: BufferId,
    candidates: usize,
}

impl Picks {
    /// The results, and where the last pick has its rows.
    pub fn last(&mut self, stream: &mut Stream) -> Result<(BufferId, Block)> {
        Ok((self.reserve(stream, 0, 0)?.results, self.last))
    }

    /// Rows of the last pick.
    pub fn last_rows(&self) -> usize {
        self.last.rows
    }

    /// Makes room for `words` results and `candidates`; what is recorded stays.
    fn reserve(&mut self, stream: &mut Stream, words: usize, candidates: usize) -> Result<Buffers> {
        if let Some(b) = self.buffers
            && b.result_words >= words
            && b.candidates >= candidates
        {
            return Ok(b);
        }
        let result_words = words.next_power_of_two().max(RESULTS);
        let candidates = candidates.next_power_of_two().max(CANDIDATES);
        let mut buffer = |what, words: usize| stream.buffer(what, 4 * words as u64);
        let made = Buffers {
            results: buffer("results of pick", result_words)?,
            result_words,
            kept: [
                buffer("candidates of pick", 2 * candidates)?,
                buffer("candidates of pick", 2 * candidates)?,
            ],
            sums: buffer("sums of pick", 2 * candidates)?,
            candidates,
        };
        if let Some(old) = self.buffers.replace(made) {
            let held = 4 * old.result_words as u64;
            stream.copy((old.results, 0), (made.results, 0), held)?;
            [old.results, old.kept[0], old.kept[1], old.sums].into_iter().for_each(|id| stream.release(id));
        }
        Ok(made)
    }
}

/// Kernels of one `k`: of the first dispatch, of those in between, of the last, of one that is all.
#[derive(Copy, Clone)]
struct Kernels {
    first: Kernel,
    middle: Kernel,
    last: Kernel,
    only: Kernel,
}

impl Gpu {
    pub(crate) fn run_pick(&mut self, args: &Pick) -> Result<()> {
        let logits = self.acts.get(VERB, args.logits)?;
        let (shape, rows) = (logits.shape, logits.rows);
        check::pick(args, shape)?;
        let recorded = self.picks.recorded;
        if recorded.rows > 0 && recorded.k != args.k {
            let expected = format!("k = {} until the next submit", recorded.k);
            return Err(ComputeError::shape(VERB, expected, args.k));
        }
        let block = Block { start: recorded.words(), rows: args.rows, k: args.k };
        let kernels = self.pick_kernels(args.k == 1)?;
        let per_row = shape.width.div_ceil(CHUNK) * args.k;
        let buffers = self.picks.reserve(&mut self.stream, block.start + block.words(), per_row)?;
        self.picks.recorded = Block { start: 0, rows: recorded.rows + args.rows, k: args.k };
        self.picks.last = block;
        let slab = buffers.candidates / per_row;
        let mut done = 0;
        // At least once: a rehearsal of no rows still makes the bind groups.
        loop {
            let rows_of = done..args.rows.min(done + slab.min(65_535));
            let slab = Slab { logits: rows, vocab: shape.width, block, rows: rows_of.clone() };
            self.pick_slab(args.draws, &slab, &kernels, &buffers)?;
            done = rows_of.end;
            if done >= args.rows {
                return Ok(());
            }
        }
    }

    fn pick_kernels(&mut self, one: bool) -> Result<Kernels> {
        let limits = self.stream.context.device.limits();
        let most = limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x);
        let lanes = if one || (most as usize) < SORTING { LANES } else { SORTING };
        let mut kernel = |first: bool, last: bool| {
            let key =
                KernelKey { name: "pick", params: [first.into(), last.into(), one.into(), 0, 0, 0, 0, 0] };
            self.stream.kernel(key, || source([first, last, one], lanes))
        };
        Ok(Kernels {
            first: kernel(true, false)?,
            middle: kernel(false, false)?,
            last: kernel(false, true)?,
            only: kernel(true, true)?,
        })
    }

    fn pick_slab(&mut self, draws: &[Draw], slab: &Slab, kernels: &Kernels, buffers: &Buffers) -> Result<()> {
        let (k, rows) = (slab.block.k, slab.rows.len());
        let draws = if k == 1 { 0 } else { self.draw_arguments(draws, slab)? };
        let chunks = slab.vocab.div_ceil(CHUNK);
        let (mut count, mut input, mut level) = (slab.vocab, slab.logits, 0);
        loop {
            let groups = count.div_ceil(CHUNK);
            let (first, last) = (level == 0, groups == 1);
            let kernel = match (first, last) {
                (true, false) => kernels.first,
                (false, false) => kernels.middle,
                (false, true) => kernels.last,
                (true, true) => kernels.only,
            };
            let output = if last { buffers.results } else { buffers.kept[level % 2] };
            let mut bindings = vec![input, output];
            bindings.extend((first != last).then_some(buffers.sums));
            bindings.extend((last && k > 1).then(|| self.stream.argument_buffer()));
            let sorted = count.min(CHUNK).next_power_of_two().max(LANES);
            let sizes = [count, k, chunks, slab.block.start, slab.rows.start].map(|n| n as u32);
            let [count_, k_, chunks_, start, first_row] = sizes;
            self.stream.dispatch(&Call {
                kernel,
                bindings: &bindings,
                immediates: &[count_, k_, chunks_, start, first_row, draws, sorted as u32],
                groups: [groups as u32, rows as u32, 1],
                verb: VERB,
                bytes: (rows * count * if first { 4 } else { 8 }) as u64,
            })?;
            if last {
                return Ok(());
            }
            (count, input, level) = (groups * k, output, level + 1);
        }
    }

    /// Puts the draws of a slab where its last dispatch finds them.
    fn draw_arguments(&mut self, draws: &[Draw], slab: &Slab) -> Result<u32> {
        let words = &mut self.picks.draws;
        words.clear();
        for row in slab.rows.clone() {
            let draw = draws.get(row).unwrap_or(&Draw::GREEDY);
            // Rounding must not reach 1.
            let u = (draw.u as f32).min(1.0 - f32::EPSILON / 2.0);
            let shares = [draw.typical_p, draw.top_p, draw.min_p, u].map(f32::to_bits);
            words.extend([draw.temperature.to_bits(), draw.top_k as u32]);
            words.extend(shares);
        }
        self.stream.arguments(words)
    }

    pub(crate) fn run_submit(&mut self) -> Result<Ticket> {
        let ticket = Ticket(self.picks.next);
        self.picks.next += 1;
        let block = std::mem::take(&mut self.picks.recorded);
        if self.stream.rehearsing {
            return Ok(ticket);
        }
        let from = self.picks.reserve(&mut self.stream, 0, 0)?;
        // With no rows, a word to wait for.
        let fetch = self.stream.fetch(from.results, 0, 4 * block.words().max(1))?;
        self.picks.submitted.push_back(Submitted { ticket, block, fetch });
        if self.picks.submitted.len() > KEPT
            && let Some(dropped) = self.picks.submitted.pop_front()
        {
            self.stream.forget(dropped.fetch);
        }
        Ok(ticket)
    }

    pub(crate) fn run_picked(&mut self, ticket: Ticket, out: &mut Picked) -> Result<()> {
        let Picks { submitted, words, .. } = &mut self.picks;
        let at = submitted.iter().position(|s| s.ticket == ticket);
        let Some(Submitted { block, fetch, .. }) = at.and_then(|at| submitted.remove(at)) else {
            return Err(ComputeError::Handle { verb: "picked", handle: format!("{ticket:?}") });
        };
        words.resize(block.words().max(1), 0);
        self.stream.wait(fetch, bytemuck::cast_slice_mut(words))?;
        out.k = block.k;
        out.tokens.clear();
        out.logits.clear();
        out.log_sum_exp.clear();
        out.chosen.clear();
        for row in words[..block.words()].chunks_exact(block.stride()) {
            let (tokens, rest) = row.split_at(block.k);
            let (logits, rest) = rest.split_at(block.k);
            out.tokens.extend_from_slice(tokens);
            out.logits.extend(logits.iter().map(|&bits| f32::from_bits(bits)));
            out.log_sum_exp.push(f32::from_bits(rest[0]));
            out.chosen.push(rest[1]);
        }
        Ok(())
    }
}

/// Rows of a pick that are looked at together.
struct Slab {
    logits: BufferId,
    vocab: usize,
    block: Block,
    rows: std::ops::Range<usize>,
}

fn source([first, last, one]: [bool; 3], lanes: usize) -> Source {
    let sums = first != last;
    let wgsl = Template::new()
        .flag("FIRST", first)
        .flag("LAST", last)
        .flag("ONE", one)
        .flag("SUMS", sums)
        .flag("DRAW", last && !one)
        .value("CHUNK", CHUNK)
        .value("LANES", lanes)
        .value("EACH", CHUNK / lanes)
        .value("HELD", if one { lanes } else { CHUNK })
        .value("DRAWS", if sums { 3 } else { 2 })
        .piece("order", ORDER)
        .piece("draw", DRAW)
        .render(PICK);
    let mut bindings = vec![Access::Read, Access::Write];
    bindings.extend(sums.then_some(if first { Access::Write } else { Access::Read }));
    bindings.extend((last && !one).then_some(Access::Read));
    Source { wgsl, bindings }
}
