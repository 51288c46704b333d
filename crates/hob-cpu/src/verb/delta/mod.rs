//! The gated delta rule: value heads are independent, so threads take one head of one sequence through all its rows.
//!
//! Both forms repeat the operations of `hob_compute::reference::delta` with columns of the state in lanes: the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod channel;
pub(super) mod chunk;
pub(super) mod recurrent;

use std::cell::RefCell;

use hob_compute::reference::delta::{Piece, UNIT_EPS, columns, pieces};
use hob_compute::{DeltaNet, DeltaShape, SlotRows, math};

use super::products::{SharedStates, States, caught_up};
use super::{ALONE, Parts, each_unit, norm, sigmoid};
use crate::isa::Isa;
use crate::pool::Pool;

/// Most rows of a piece.
const ROWS: usize = DeltaNet::CHUNK;

/// One `delta_net`. Lengths were checked by the caller; buffers are those of [`DeltaNet`].
pub struct Job<'a> {
    pub shape: DeltaShape,
    pub qkv: &'a [f32],
    pub z: &'a [f32],
    pub beta: &'a [f32],
    pub decay: &'a [f32],
    pub rate: &'a [f32],
    pub bias: &'a [f32],
    pub norm: &'a [f32],
    pub eps: f32,
    pub memory: States<'a>,
    pub seqs: &'a [SlotRows],
    pub out: &'a mut [f32],
}

impl Job<'_> {
    /// Whether every channel of the key fades by itself.
    fn by_channel(&self) -> bool {
        self.bias.len() != self.shape.value_heads
    }
}

/// The job as threads see it.
struct Shared<'a> {
    job: Job<'a>,
    memory: SharedStates<'a>,
    out: Parts<'a, f32>,
}

/// One thread's working memory, for the largest piece.
#[derive(Default)]
struct Scratch {
    /// `[ROWS, key_dim]`, unit vectors; q is scaled.
    q: Vec<f32>,
    k: Vec<f32>,
    /// A state that held rows move on, beside the one that stays.
    ahead: Vec<f32>,
    chunk: chunk::Scratch,
    faded: channel::Faded,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// Gates of the rows of a piece; 0 behind them. Where channels fade by themselves, no logarithms.
struct Gates {
    beta: [f32; ROWS],
    log_decay: [f32; ROWS],
}

pub fn delta_net(pool: &Pool, isa: Isa, job: Job) {
    let Job { shape, seqs, .. } = job;
    let mut job = job;
    let memory = std::mem::replace(&mut job.memory, States::none()).share();
    let out = Parts::new(std::mem::take(&mut job.out));
    let (heads, rows) = (shape.value_heads, seqs.iter().map(|s| s.rows).sum::<usize>());
    let shared = Shared { job, memory, out };
    let work =
        |unit: usize| SCRATCH.with_borrow_mut(|s| head(isa, &shared, &seqs[unit / heads], unit % heads, s));
    if rows * shape.state() < ALONE {
        return (0..seqs.len() * heads).for_each(work);
    }
    each_unit(pool, seqs.len() * heads, &|_, unit| work(unit));
}

/// All rows of a sequence through value head `h`.
fn head(isa: Isa, shared: &Shared, seq: &SlotRows, h: usize, scratch: &mut Scratch) {
    let shape = &shared.job.shape;
    let products = shape.products();
    // SAFETY: no two units have the same head of the same slot.
    let (mut s, records) = unsafe { caught_up(isa, &products, &shared.memory, seq, h) };
    let mut recorded: &mut [f32] = &mut [];
    let mut ahead = std::mem::take(&mut scratch.ahead);
    if seq.holds() {
        ahead.clear();
        ahead.extend_from_slice(s);
        (s, recorded) = (&mut ahead, records);
    }
    scratch.q.resize(ROWS * shape.key_dim, 0.0);
    scratch.k.resize(ROWS * shape.key_dim, 0.0);
    for piece in pieces(seq) {
        let rest = recorded.split_off_mut((piece.rows * products.record()).min(recorded.len())..);
        let given = std::mem::replace(&mut recorded, rest.unwrap_or_default());
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx2 {
            // SAFETY: the ISA class was detected.
            unsafe { piece_avx2(isa, shared, (h, piece), (s, given), scratch) };
            continue;
        }
        piece_of::<false>(isa, shared, (h, piece), (s, given), scratch);
    }
    scratch.ahead = ahead;
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
    part: (usize, Piece),
    memory: (&mut [f32], &mut [f32]),
    scratch: &mut Scratch,
) {
    piece_of::<true>(isa, shared, part, memory, scratch);
}

#[inline(always)]
fn piece_of<const AVX2: bool>(
    isa: Isa,
    shared: &Shared,
    (h, piece): (usize, Piece),
    (s, records): (&mut [f32], &mut [f32]),
    scratch: &mut Scratch,
) {
    let Shared { job, out, .. } = shared;
    let (shape, Piece { row, rows, chunked }) = (&job.shape, piece);
    let (dk, dv, width) = (shape.key_dim, shape.value_dim, shape.width());
    let ([at_q, at_k, at_v], channels) = (columns(shape, h), shape.channels());
    let Scratch { q, k, chunk, faded, .. } = scratch;
    for i in 0..rows {
        let x = &job.qkv[(row + i) * channels..][..channels];
        unit::<AVX2>(&x[at_q..][..dk], 1.0 / (dk as f32).sqrt(), &mut q[i * dk..][..dk]);
        unit::<AVX2>(&x[at_k..][..dk], 1.0, &mut k[i * dk..][..dk]);
    }
    // A tile's last rows: 0 times what another sequence left there could be no number.
    let padded = rows * dk..rows.next_multiple_of(chunk::TALL) * dk;
    q[padded.clone()].fill(0.0);
    k[padded].fill(0.0);
    let gates = gates(isa, job, h, row, rows);
    let rows_of = Rows { q, k, v: &job.qkv[row * channels + at_v..], stride: channels, gates: &gates, rows };
    // SAFETY: no two units have the same head of the same row.
    let out = |i: usize| unsafe { out.part((row + i) * width + h * dv..(row + i) * width + (h + 1) * dv) };
    if job.by_channel() {
        channel::log_decays(isa, job, h, (row, rows), &mut faded.sums);
    }
    match (chunked, job.by_channel()) {
        (true, false) => {
            chunk.prepare::<AVX2>(isa, &rows_of, dk);
            chunk::run::<AVX2>(&rows_of, (rows_of.k, rows_of.q), (s, dk, dv), chunk, out);
        }
        (true, true) => {
            let both = channel::prepare::<AVX2>(isa, &rows_of, dk, faded, chunk);
            chunk::run::<AVX2>(&rows_of, both, (s, dk, dv), chunk, out);
        }
        (false, false) => recurrent::run::<AVX2>(isa, &rows_of, (s, dk, dv), records, out),
        (false, true) => channel::run::<AVX2>(isa, &rows_of, &faded.sums, (s, dk, dv), out),
    }
    for i in 0..rows {
        let o = out(i);
        norm::group_in_place(isa, o, job.norm, job.eps);
        sigmoid::times_silu(isa, o, &job.z[(row + i) * width + h * dv..][..dv]);
    }
}

/// The rows of a piece, of one head.
struct Rows<'a> {
    q: &'a [f32],
    k: &'a [f32],
    /// From the first row's v on; rows are `stride` apart.
    v: &'a [f32],
    stride: usize,
    gates: &'a Gates,
    rows: usize,
}

/// `math::dot16` of whole lanes.
#[inline(always)]
fn dot16<const AVX2: bool>(a: &[f32], b: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if AVX2 {
        // SAFETY: only the form compiled for AVX2 says so.
        return unsafe { avx2::dot16(a, b) };
    }
    math::dot16(a, b)
}

/// See `reference::delta::unit`.
#[inline(always)]
fn unit<const AVX2: bool>(x: &[f32], scale: f32, out: &mut [f32]) {
    let r = scale / (dot16::<AVX2>(x, x) + UNIT_EPS).sqrt();
    for (o, x) in out.iter_mut().zip(x) {
        *o = x * r;
    }
}

/// See `reference::delta::gates`.
#[inline(always)]
fn gates(isa: Isa, job: &Job, h: usize, row: usize, rows: usize) -> Gates {
    let heads = job.shape.value_heads;
    let mut gates = Gates { beta: [0.0; ROWS], log_decay: [0.0; ROWS] };
    let (beta, log_decay) = (&mut gates.beta[..rows], &mut gates.log_decay[..rows]);
    let mut exps = [0f32; ROWS];
    let exps = &mut exps[..rows];
    if job.by_channel() {
        beta.iter_mut().enumerate().for_each(|(i, beta)| *beta = job.beta[(row + i) * heads + h]);
        sigmoid::sigmoids(isa, beta);
        return gates;
    }
    for i in 0..rows {
        let at = (row + i) * heads + h;
        let x = job.decay[at] + job.bias[h];
        (beta[i], log_decay[i], exps[i]) = (job.beta[at], x, -x.abs());
    }
    sigmoid::sigmoids(isa, beta);
    sigmoid::exps(isa, exps);
    log_decay.iter_mut().zip(&*exps).for_each(|(x, e)| *x = job.rate[h] * (x.max(0.0) + e.ln_1p()));
    gates
}
