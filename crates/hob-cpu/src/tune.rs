//! Finds the knobs of this machine: each is tried on a chain of packed matrices larger than the caches, beside a plain
//! read of the same second, because virtual machines change their memory bandwidth within seconds. Takes a few seconds.
//! It must not know models, nor where results are kept.

use std::time::Instant;

use hob_compute::{ByteSource, Combine, ComputeError, WeightKind, WeightSpec};
use hob_quant::Format;

use crate::arena::Arena;
use crate::isa::Isa;
use crate::linear::{self, ActCache, Job, LoadCtx, Matrix, ProductJob, Tuning};
use crate::pool::Pool;
use crate::probe::{self, ReadProbe};

/// Shape of one matrix of the chain: that of a 1.7B model's projections.
const ROWS: usize = 2048;
const COLS: usize = 2048;
const FORMAT: Format = Format::Q4_0;
/// Passes per candidate, alternating with the other candidates; the median counts.
const ROUNDS: usize = 5;
/// A knob keeps its default unless another value is faster by this factor: differences below are noise.
const GAIN: f64 = 1.02;
/// Fewer threads are preferred when they reach this share of the best speed.
const ENOUGH: f64 = 0.98;

/// One value of one knob.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    pub knob: &'static str,
    pub value: usize,
    /// Bytes of weights read per second, in percent of the read limit measured around the same passes.
    pub percent_of_limit: f64,
    /// 10^9 bytes of weights per second.
    pub gb_per_s: f64,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuned {
    pub tuning: Tuning,
    /// The knob of `tuning` that counts for this machine's instructions.
    pub streamed_rows: usize,
    /// Threads to decode with.
    pub threads: usize,
    pub trials: Vec<Trial>,
}

/// Tries every knob with up to `threads` threads; `progress` gets a line per knob.
///
/// # Errors
/// No memory for the chain or the probe.
pub fn tune(threads: usize, progress: &mut dyn FnMut(&str)) -> Result<Tuned, ComputeError> {
    let before = linear::tuning();
    let found = Chain::new(threads.max(1)).and_then(|mut chain| chain.all(progress));
    linear::set_tuning(found.as_ref().map_or(before, |f| f.tuning));
    found
}

struct Chain {
    threads: usize,
    isa: Isa,
    matrices: Vec<Matrix>,
    bytes: usize,
    read: ReadProbe,
    trials: Vec<Trial>,
}

/// One candidate: knobs, threads and activation rows.
#[derive(Clone, Copy)]
struct Candidate {
    value: usize,
    tuning: Tuning,
    threads: usize,
    rows: usize,
}

impl Chain {
    fn new(threads: usize) -> Result<Chain, ComputeError> {
        let (isa, pool, arena) = (Isa::detect(), Pool::new(threads, false), Arena::new());
        let size = (probe::caches().l3_bytes * 3).clamp(96 << 20, 512 << 20);
        let row_bytes = FORMAT.row_bytes(COLS).unwrap_or(COLS);
        let spec = WeightSpec {
            name: "tuning chain".into(),
            kind: WeightKind::Matrix,
            format: FORMAT,
            rows: ROWS,
            cols: COLS,
        };
        let ctx = LoadCtx { isa, exact: false, pool: &pool, arena: &arena };
        let matrices = (0..size / (ROWS * row_bytes))
            .map(|_| Matrix::load(&spec, &Noise((ROWS * row_bytes) as u64), &ctx))
            .collect::<Result<Vec<_>, _>>()?;
        let bytes = matrices.iter().map(Matrix::bytes).sum();
        let read = ReadProbe::new(size)?;
        Ok(Chain { threads, isa, matrices, bytes, read, trials: Vec::new() })
    }

    fn all(&mut self, progress: &mut dyn FnMut(&str)) -> Result<Tuned, ComputeError> {
        let mut tuning = Tuning::default();
        let base = Candidate { value: 0, tuning, threads: self.threads, rows: 1 };
        progress("prefetch distance");
        let ahead = |value| Candidate { value, tuning: Tuning { ahead: value, ..tuning }, ..base };
        tuning.ahead = self.choose("prefetch bytes", [0, 1024, 2048, 4096].map(ahead), tuning.ahead)?;
        progress("rows per task");
        let spread = |value| Candidate { value, tuning: Tuning { spread: value, ..tuning }, ..base };
        tuning.spread = self.choose("tasks per thread", [4, 16, 32].map(spread), tuning.spread)?;
        progress("rows that share one stream");
        if self.isa == Isa::Avx2 {
            let few = |value| Candidate { value, tuning: Tuning { few: value, ..tuning }, rows: 2, ..base };
            tuning.few = self.choose("streamed rows", [1, 2].map(few), tuning.few)?;
        } else {
            for rows in [4, 8] {
                let few =
                    |value| Candidate { value, tuning: Tuning { few_wide: value, ..tuning }, rows, ..base };
                let best =
                    self.choose("streamed rows", [rows / 2, rows].map(few), tuning.few_wide.min(rows))?;
                tuning.few_wide = best;
                if best < rows {
                    break;
                }
            }
        }
        progress("threads");
        let threads = self.thread_count(tuning)?;
        let streamed_rows = if self.isa == Isa::Avx2 { tuning.few } else { tuning.few_wide };
        Ok(Tuned { tuning, streamed_rows, threads, trials: std::mem::take(&mut self.trials) })
    }

    /// The smallest number of threads that is nearly as fast as the best.
    fn thread_count(&mut self, tuning: Tuning) -> Result<usize, ComputeError> {
        let mut counts: Vec<usize> = (1..=self.threads.min(4)).collect();
        counts.extend([6, 8, 12, 16, 24, 32, 48, 64].into_iter().filter(|&n| n > 4 && n < self.threads));
        counts.push(self.threads);
        counts.dedup();
        let candidates: Vec<Candidate> =
            counts.iter().map(|&threads| Candidate { value: threads, tuning, threads, rows: 1 }).collect();
        let speeds = self.measure("threads", &candidates)?;
        let best = speeds.iter().map(|s| s.1).fold(0.0, f64::max);
        let enough = counts.iter().zip(&speeds).find(|(_, s)| s.1 >= best * ENOUGH);
        Ok(enough.map_or(self.threads, |(&threads, _)| threads))
    }

    /// The value of the fastest candidate, or `default` when that is as fast but for noise.
    fn choose<const N: usize>(
        &mut self,
        knob: &'static str,
        candidates: [Candidate; N],
        default: usize,
    ) -> Result<usize, ComputeError> {
        let speeds = self.measure(knob, &candidates)?;
        let of = |value: usize| (0..N).find(|&i| candidates[i].value == value).map_or(0.0, |i| speeds[i].0);
        let best = candidates.iter().map(|c| c.value).max_by(|&a, &b| of(a).total_cmp(&of(b)));
        Ok(best.filter(|&b| of(b) > of(default) * GAIN).unwrap_or(default))
    }

    /// Median (share of the read limit, bytes per second) of each candidate; candidates take turns.
    fn measure(
        &mut self,
        knob: &'static str,
        candidates: &[Candidate],
    ) -> Result<Vec<(f64, f64)>, ComputeError> {
        let mut found = vec![Vec::with_capacity(ROUNDS); candidates.len()];
        for round in 0..=ROUNDS {
            for (c, found) in candidates.iter().zip(&mut found) {
                let before = self.read.sample(c.threads, 1).best_gb_per_s;
                let seconds = self.pass(c)?;
                let after = self.read.sample(c.threads, 1).best_gb_per_s;
                let gb = self.bytes as f64 / seconds / 1e9;
                // The first round takes page faults and cold code.
                if round > 0 {
                    found.push((gb / ((before + after) / 2.0), gb));
                }
            }
        }
        let median = |mut v: Vec<f64>| {
            v.sort_by(f64::total_cmp);
            v[v.len() / 2]
        };
        Ok(candidates
            .iter()
            .zip(found)
            .map(|(c, f)| {
                let share = median(f.iter().map(|s| s.0).collect());
                let gb_per_s = median(f.iter().map(|s| s.1).collect());
                self.trials.push(Trial { knob, value: c.value, percent_of_limit: share * 100.0, gb_per_s });
                (share, gb_per_s)
            })
            .collect())
    }

    /// Seconds of one pass over the chain.
    fn pass(&mut self, c: &Candidate) -> Result<f64, ComputeError> {
        linear::set_tuning(c.tuning);
        let pool = Pool::new(c.threads, false);
        let x: Vec<f32> = (0..c.rows * COLS).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let (mut out, mut cache) = (vec![0f32; c.rows * ROWS], ActCache::default());
        let mut once = |matrices: &[Matrix]| -> Result<(), ComputeError> {
            for matrix in matrices {
                cache.invalidate();
                let products = &mut [ProductJob { matrix, bias: None, out: &mut out }];
                let job = Job {
                    x: &x,
                    x_stride: COLS,
                    rows: c.rows,
                    cache: &mut cache,
                    first_row: 0,
                    products,
                    combine: Combine::Store,
                };
                linear::run(&pool, self.isa, job)?;
            }
            Ok(())
        };
        once(&self.matrices[..self.matrices.len().min(2)])?;
        let start = Instant::now();
        once(&self.matrices)?;
        Ok(start.elapsed().as_secs_f64().max(1e-9))
    }
}

/// Blocks without infinite scales; what they hold does not matter.
struct Noise(u64);

impl ByteSource for Noise {
    fn len(&self) -> u64 {
        self.0
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let mut s = offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for b in buf {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            *b = s as u8 & 0x3b;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_knob_is_tried_and_set() {
        let mut lines = 0;
        let found = tune(2, &mut |_| lines += 1).expect("tunes");
        assert_eq!(lines, 4);
        assert_eq!(linear::tuning(), found.tuning);
        assert!((1..=2).contains(&found.threads));
        for knob in ["prefetch bytes", "tasks per thread", "streamed rows", "threads"] {
            let trials = found.trials.iter().filter(|t| t.knob == knob).count();
            assert!(trials >= 2, "{knob}: {trials}");
        }
        assert!(found.trials.iter().all(|t| t.percent_of_limit > 0.0 && t.gb_per_s > 0.0));
        linear::set_tuning(Tuning::default());
    }
}
