//! Selective state spaces: heads are independent up to the output's norm, so threads take some neighbouring heads of one
//! sequence through all its rows; gate and norm follow when all heads are done.
//!
//! Both forms repeat the operations of `hob_compute::reference::ssm` with columns of the state in lanes: the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod chunk;
mod recurrent;

use std::cell::RefCell;
use std::ops::Range;

use hob_compute::reference::delta::{Piece, pieces};
use hob_compute::reference::ssm::columns;
use hob_compute::{DeltaNet, SlotRows, SsmShape};

use super::products::{SharedStates, States, caught_up};
use super::{ALONE, Parts, each_rows, each_unit, norm, sigmoid};
use crate::isa::Isa;
use crate::pool::Pool;

/// Most rows of a piece.
const ROWS: usize = DeltaNet::CHUNK;
/// Units that every thread should find, so that none waits long for another.
const UNITS: usize = 4;

/// One `ssm_scan`. Lengths were checked by the caller; buffers are those of [`hob_compute::SsmScan`].
pub struct Job<'a> {
    pub shape: SsmShape,
    pub xbc: &'a [f32],
    pub z: &'a [f32],
    pub dt: &'a [f32],
    pub rate: &'a [f32],
    pub bias: &'a [f32],
    pub skip: &'a [f32],
    pub norm: &'a [f32],
    pub eps: f32,
    pub limit: [f32; 2],
    pub memory: States<'a>,
    pub seqs: &'a [SlotRows],
    pub out: &'a mut [f32],
}

/// The job as threads see it.
struct Shared<'a> {
    job: Job<'a>,
    memory: SharedStates<'a>,
    out: Parts<'a, f32>,
}

thread_local! {
    static SCRATCH: RefCell<chunk::Scratch> = RefCell::new(chunk::Scratch::default());
    /// States that held rows move on, beside those that stay.
    static AHEAD: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

pub fn ssm_scan(pool: &Pool, isa: Isa, job: Job) {
    let Job { shape, seqs, .. } = job;
    let mut job = job;
    let memory = std::mem::replace(&mut job.memory, States::none()).share();
    let out = Parts::new(std::mem::take(&mut job.out));
    let shared = Shared { job, memory, out };
    let of_group = shape.group_heads();
    // What a group shares is computed once per unit.
    let each = (shape.heads * seqs.len()).div_ceil(UNITS * pool.threads()).clamp(1, of_group);
    let per_group = of_group.div_ceil(each);
    let per_seq = shape.groups * per_group;
    let work = |unit: usize| {
        let (group, part) = (unit % per_seq / per_group, unit % per_group);
        let first = group * of_group + part * each;
        let heads = first..(first + each).min((group + 1) * of_group);
        SCRATCH.with_borrow_mut(|s| scan(isa, &shared, &seqs[unit / per_seq], heads, s));
    };
    let rows = seqs.iter().map(|s| s.rows).sum::<usize>();
    match rows * shape.state() < ALONE {
        true => (0..seqs.len() * per_seq).for_each(work),
        false => each_unit(pool, seqs.len() * per_seq, &|_, unit| work(unit)),
    }
    let width = shape.width();
    for seq in seqs {
        // An exponential costs as much as a dozen other operations.
        each_rows(pool, seq.rows, 12 * width, &|range| {
            range.for_each(|i| finish(isa, &shared, seq.row + i));
        });
    }
}

/// All rows of a sequence through heads of one group.
fn scan(isa: Isa, shared: &Shared, seq: &SlotRows, heads: Range<usize>, scratch: &mut chunk::Scratch) {
    let products = shared.job.shape.products();
    // SAFETY: no two units have the same head of the same slot.
    let (s, records) = unsafe {
        for h in heads.clone() {
            caught_up(isa, &products, &shared.memory, seq, h);
        }
        shared.memory.heads(&products, seq.slot, heads.clone())
    };
    AHEAD.with_borrow_mut(|ahead| {
        let (s, mut rest) = match seq.holds() {
            true => {
                ahead.clear();
                ahead.extend_from_slice(s);
                (&mut ahead[..], Recorded { records, room: records_of(shared), done: 0 })
            }
            false => (s, Recorded { records: &mut [], room: 0, done: 0 }),
        };
        for piece in pieces(seq) {
            step(isa, shared, (heads.clone(), piece), (&mut *s, &mut rest), scratch);
            rest.done += piece.rows;
        }
    });
}

fn step(
    isa: Isa,
    shared: &Shared,
    part: (Range<usize>, Piece),
    memory: (&mut [f32], &mut Recorded),
    scratch: &mut chunk::Scratch,
) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: the ISA class was detected.
        return unsafe { piece_avx2(isa, shared, part, memory, scratch) };
    }
    piece_of::<false>(isa, shared, part, memory, scratch);
}

/// Records of the heads of a unit, where its rows are held.
struct Recorded<'a> {
    records: &'a mut [f32],
    /// Floats of a head.
    room: usize,
    /// Rows that were recorded.
    done: usize,
}

impl Recorded<'_> {
    /// Where the `n`-th head's next rows go; nowhere where rows are final.
    fn head(&mut self, n: usize, record: usize) -> &mut [f32] {
        let range = n * self.room + self.done * record..(n + 1) * self.room;
        self.records.get_mut(range).unwrap_or_default()
    }
}

/// Floats of a head's records.
fn records_of(shared: &Shared) -> usize {
    shared.memory.room(&shared.job.shape.products())
}

/// The portable loops, compiled for wider registers.
///
/// # Safety
/// Needs AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn piece_avx2(
    isa: Isa,
    shared: &Shared,
    part: (Range<usize>, Piece),
    memory: (&mut [f32], &mut Recorded),
    scratch: &mut chunk::Scratch,
) {
    piece_of::<true>(isa, shared, part, memory, scratch);
}

/// Rows `piece` through `heads`, whose states are `s`.
#[inline(always)]
fn piece_of<const AVX2: bool>(
    isa: Isa,
    shared: &Shared,
    (heads, piece): (Range<usize>, Piece),
    (s, recorded): (&mut [f32], &mut Recorded),
    scratch: &mut chunk::Scratch,
) {
    let (job, shape) = (&shared.job, &shared.job.shape);
    let (channels, width) = (shape.channels(), shape.width());
    let Piece { row, rows, chunked } = piece;
    let [_, at_b, at_c] = columns(shape, heads.start);
    let from = |at: usize| &job.xbc[row * channels + at..];
    let group = Group { b: from(at_b), c: from(at_c), stride: channels, rows, state_dim: shape.state_dim };
    if chunked {
        scratch.prepare::<AVX2>(&group);
    }
    let record = shape.products().record();
    for (n, (h, s)) in heads.zip(s.chunks_exact_mut(shape.head_dim * shape.state_dim)).enumerate() {
        let [at_x, ..] = columns(shape, h);
        let gates = gates(isa, job, h, row, rows);
        let head = Head { x: from(at_x), stride: channels, gates: &gates, skip: job.skip[h], rows };
        let start = row * width + at_x;
        // SAFETY: no two units have the same head of the same row.
        let out =
            |i: usize| unsafe { shared.out.part(start + i * width..start + i * width + shape.head_dim) };
        match chunked {
            true => chunk::run::<AVX2>(isa, &head, (s, shape.head_dim), scratch, out),
            false => {
                let records = recorded.head(n, record);
                recurrent::run::<AVX2>(isa, (&group, &head), (s, shape.head_dim), records, out);
            }
        }
    }
}

/// B and C of the rows of a piece, from the first row on; rows are `stride` apart.
struct Group<'a> {
    b: &'a [f32],
    c: &'a [f32],
    stride: usize,
    rows: usize,
    state_dim: usize,
}

/// The rows of a piece, of one head.
struct Head<'a> {
    /// From the first row's x on; rows are `stride` apart.
    x: &'a [f32],
    stride: usize,
    gates: &'a Gates,
    skip: f32,
    rows: usize,
}

/// Gates of the rows of a piece; 0 behind them.
struct Gates {
    step: [f32; ROWS],
    log_decay: [f32; ROWS],
}

/// See `reference::ssm::step`.
#[inline(always)]
fn gates(isa: Isa, job: &Job, h: usize, row: usize, rows: usize) -> Gates {
    let mut gates = Gates { step: [0.0; ROWS], log_decay: [0.0; ROWS] };
    let (step, log_decay) = (&mut gates.step[..rows], &mut gates.log_decay[..rows]);
    for (i, step) in step.iter_mut().enumerate() {
        *step = job.dt[(row + i) * job.shape.heads + h] + job.bias[h];
    }
    log_decay.iter_mut().zip(&*step).for_each(|(e, x)| *e = -x.abs());
    sigmoid::exps(isa, log_decay);
    let [least, most] = job.limit;
    for (step, log_decay) in step.iter_mut().zip(log_decay) {
        *step = (step.max(0.0) + log_decay.ln_1p()).max(least).min(most);
        *log_decay = job.rate[h] * *step;
    }
    gates
}

/// Gate and norm of a row.
fn finish(isa: Isa, shared: &Shared, row: usize) {
    let (job, width) = (&shared.job, shared.job.shape.width());
    let group = width / job.shape.groups;
    // SAFETY: every row is finished once, when all its heads are done.
    let out = unsafe { shared.out.part(row * width..(row + 1) * width) };
    sigmoid::times_silu(isa, out, &job.z[row * width..(row + 1) * width]);
    for (out, norm) in out.chunks_exact_mut(group).zip(job.norm.chunks_exact(group)) {
        norm::group_in_place(isa, out, norm, job.eps);
    }
}
