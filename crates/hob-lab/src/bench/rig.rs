//! A loaded model on a CPU device with a bandwidth probe beside it: takes one sample at a time.

use std::time::Instant;

use hob_compute::{Buf, Compute, Pick, Picked, Token};
use hob_cpu::{Cpu, CpuConfig, probe};
use hob_model::{Batch, KvLayout, Layout, Model, Row as BatchRow, SeqId};

use super::report::{Kv, Limit, Sample, Test};
use super::{BenchError, Subject};

/// Passes of one look at the read bandwidth; the best counts.
const PASSES: usize = 2;
/// Rows of made-up K and V written at once.
const SYNTHETIC_ROWS: usize = 256;

pub struct Rig {
    dev: Cpu,
    model: Model,
    sequence: SeqId,
    read: probe::ReadProbe,
    batch: Batch,
    picked: Picked,
    threads: usize,
    /// How the positions below the present depth came to be.
    kv: Kv,
    /// Longest time to compute positions up to a depth.
    fill_seconds: f64,
    random: u64,
}

impl Rig {
    pub fn load(subject: &Subject<'_>, layout: &Layout) -> Result<Self, BenchError> {
        let threads = layout.threads;
        let mut dev = Cpu::new(&CpuConfig { threads, exact: false, isa: None, pin: false })?;
        let read = probe::ReadProbe::new(probe_bytes())?;
        let info = subject.info.clone();
        let mut model = Model::load_from(subject.source, info, &mut dev, layout, &mut |_, _| {})?;
        let sequence = model.new_sequence()?;
        let kv = Kv { prefilled: 0, synthetic: 0 };
        let (batch, picked) = (Batch::default(), Picked::default());
        Ok(Self { dev, model, sequence, read, batch, picked, threads, kv, fill_seconds: 0.0, random: 1 })
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Keeps K and V as `kv` says from now on, beginning with an empty sequence.
    pub fn relayout(&mut self, kv: &KvLayout) -> Result<(), BenchError> {
        self.model.free_sequence(self.sequence)?;
        let layout = Layout { kv: kv.clone(), ..self.model.layout().clone() };
        let result = self.model.relayout(&mut self.dev, &layout);
        self.sequence = self.model.new_sequence()?;
        self.kv = Kv { prefilled: 0, synthetic: 0 };
        Ok(result?)
    }

    /// Bytes that one position adds to the cache.
    pub fn kv_bytes_per_token(&self) -> u64 {
        self.model.info().kv_bytes_per_token(&self.model.layout().kv)
    }

    pub fn isa(&self) -> &'static str {
        self.dev.info().isa
    }

    pub fn unload(mut self) -> Result<(), BenchError> {
        Ok(self.model.unload(&mut self.dev)?)
    }

    /// Brings the sequence to `depth` positions: computed for at most `seconds`, made up from there.
    pub fn fill(&mut self, depth: usize, seconds: f64) -> Result<Kv, BenchError> {
        self.fill_seconds = seconds;
        let start = Instant::now();
        let mut len = self.model.seq_len(self.sequence)?;
        // Behind made-up rows, computed ones would be no more real.
        while len < depth && self.kv.synthetic == 0 && start.elapsed().as_secs_f64() < seconds {
            let rows = (depth - len).min(self.model.layout().chunk_rows);
            self.step(rows, 1)?;
            len += rows;
            self.kv.prefilled += rows;
        }
        if len < depth {
            self.fill_synthetic(depth - len)?;
            self.kv.synthetic += depth - len;
        }
        Ok(self.kv)
    }

    /// One measurement at `depth`, where the sequence is again afterwards.
    pub fn sample(&mut self, test: Test, depth: usize) -> Result<Sample, BenchError> {
        let before_gb_per_s = self.read.sample(self.threads, PASSES).best_gb_per_s;
        let start = Instant::now();
        let tokens = match test {
            Test::Prefill { tokens } => {
                let mut left = tokens;
                while left > 0 {
                    let rows = left.min(self.model.layout().chunk_rows);
                    self.step(rows, 1)?;
                    left -= rows;
                }
                tokens
            }
            Test::Decode { tokens } => {
                for _ in 0..tokens {
                    self.step(1, 1)?;
                }
                tokens
            }
            Test::Check { rows, steps } => {
                for _ in 0..steps {
                    self.step(rows, rows)?;
                }
                rows * steps
            }
        };
        let seconds = start.elapsed().as_secs_f64().max(1e-9);
        let after_gb_per_s = self.read.sample(self.threads, PASSES).best_gb_per_s;
        self.rewind(depth)?;
        let info = self.model.info();
        let middle = depth + tokens / 2;
        // The rows of a step share one reading of the weights.
        let steps = match test {
            Test::Prefill { .. } => None,
            Test::Decode { tokens } => Some(tokens),
            Test::Check { steps, .. } => Some(steps),
        };
        let gb_per_s = steps.map(|steps| {
            info.bytes_per_token(middle, &self.model.layout().kv) as f64 * steps as f64 / seconds / 1e9
        });
        Ok(Sample {
            tokens_per_s: tokens as f64 / seconds,
            gb_per_s,
            gmacs_per_s: info.macs_per_token(middle) as f64 * tokens as f64 / seconds / 1e9,
            limit: Limit { before_gb_per_s, after_gb_per_s, ping_pong_nanos: probe::ping_pong_nanos() },
        })
    }

    /// One forward pass of `rows` random tokens and a greedy pick from each of the last `wanted`.
    fn step(&mut self, rows: usize, wanted: usize) -> Result<(), BenchError> {
        let len = self.model.seq_len(self.sequence)?;
        let vocab = self.model.info().config.vocab as u64;
        self.batch.rows.clear();
        for i in 0..rows {
            let token = Token::Host((self.random() % vocab) as u32);
            let position = (len + i) as u32;
            self.batch.rows.push(BatchRow {
                sequence: self.sequence,
                position,
                token,
                logits: i + wanted >= rows,
            });
        }
        let logits = self.model.step(&mut self.dev, &self.batch)?;
        self.dev.pick(&Pick { logits: self.model.logits(), rows: logits, k: 1 })?;
        let ticket = self.dev.submit()?;
        Ok(self.dev.picked(ticket, &mut self.picked)?)
    }

    /// Back to `depth`. A recurrent state cannot go back: it starts anew.
    fn rewind(&mut self, depth: usize) -> Result<(), BenchError> {
        if self.model.can_truncate(self.sequence, depth)? {
            return Ok(self.model.truncate(self.sequence, depth)?);
        }
        self.model.truncate(self.sequence, 0)?;
        self.kv = Kv { prefilled: 0, synthetic: 0 };
        self.fill(depth, self.fill_seconds).map(drop)
    }

    /// Lengthens the sequence by random K and V.
    fn fill_synthetic(&mut self, mut positions: usize) -> Result<(), BenchError> {
        // Layers that remember K and V are of one shape; others have none.
        let widths = self.model.info().config.layers.iter().map(|l| l.kv_heads * l.head_dim);
        let width = widths.max().unwrap_or(1);
        let k = self.random_rows(width)?;
        let v = self.random_rows(width)?;
        while positions > 0 {
            let rows = positions.min(SYNTHETIC_ROWS);
            self.model.extend_synthetic(&mut self.dev, self.sequence, rows, (k, v))?;
            positions -= rows;
        }
        self.dev.free(k)?;
        Ok(self.dev.free(v)?)
    }

    fn random_rows(&mut self, width: usize) -> Result<Buf, BenchError> {
        let buf = self.dev.alloc(SYNTHETIC_ROWS, width)?;
        let values: Vec<f32> = (0..SYNTHETIC_ROWS * width)
            .map(|_| (self.random() >> 40) as f32 / (1 << 23) as f32 - 1.0)
            .collect();
        self.dev.upload(buf, 0, &values)?;
        Ok(buf)
    }

    /// Any sequence of tokens does, as long as it is always the same.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        crate::synth::mix(self.random)
    }
}

/// Well beyond the last-level cache.
fn probe_bytes() -> usize {
    (probe::caches().l3_bytes * 6).clamp(192 << 20, 1 << 30)
}
