//! A loaded model on its devices with a bandwidth probe beside it: takes one sample at a time.

use std::time::Instant;

use hob_compute::{Buf, Compute, Pick, Picked, Placed, Ticket, Token, now_nanos};
use hob_cpu::{Cpu, CpuConfig, probe};
use hob_engine::Trace;
use hob_gpu::Gpu;
use hob_model::{Batch, KvLayout, LayerConfig, Layout, Model, Row as BatchRow, SeqId};

use super::report::{Kv, Limit, Sample, Test};
use super::{BenchError, OnGpu, Subject};

/// Passes of one look at the read bandwidth; the best counts.
const PASSES: usize = 2;
/// Seconds of the same work before a sample on a GPU, whose clocks fall within seconds of rest.
const WARM_SECONDS: f64 = 0.4;
/// Rows of made-up K and V written at once.
const SYNTHETIC_ROWS: usize = 256;

/// What bounds the speed.
enum Read {
    /// The CPU's bandwidth, looked at before and after every sample.
    Cpu(probe::ReadProbe),
    /// By device, in 10^9 bytes per second; looked at while nothing else ran.
    Known([f64; 2]),
}

pub struct Rig {
    dev: Box<dyn Compute>,
    model: Model,
    sequence: SeqId,
    read: Read,
    /// Layers on the GPU.
    gpu_layers: Option<usize>,
    batch: Batch,
    picked: Picked,
    threads: usize,
    /// How the positions below the present depth came to be.
    kv: Kv,
    /// Longest time to compute positions up to a depth.
    fill_seconds: f64,
    random: u64,
    trace: Option<Trace>,
}

impl Rig {
    /// `trace` is given back by [`Rig::unload`].
    pub fn load(
        subject: &Subject<'_>,
        layout: &Layout,
        gpu: Option<&OnGpu>,
        trace: Option<Trace>,
    ) -> Result<Self, BenchError> {
        let threads = layout.threads;
        let profiled = |dev: Box<dyn Compute>| match trace {
            Some(_) => hob_compute::profiled(dev),
            None => dev,
        };
        let cpu = || -> Result<_, BenchError> {
            let cpu = Cpu::new(&CpuConfig { threads, exact: false, isa: None, pin: false })?;
            Ok(profiled(Box::new(cpu)))
        };
        let (mut dev, read): (Box<dyn Compute>, Read) = match gpu {
            None => (cpu()?, Read::Cpu(probe::ReadProbe::new(probe_bytes())?)),
            Some(gpu) => {
                let opened = profiled(Box::new(Gpu::open(&gpu.config)?));
                let of_gpu = gpu.machine.gpus.gpu().and_then(|g| g.rates).map_or(0.0, |r| r.read_gb_per_s);
                let read = Read::Known([gpu.machine.read_gb_per_s(threads), of_gpu]);
                match gpu.plan.whole() {
                    true => (opened, read),
                    false => (Box::new(Placed::new(vec![cpu()?, opened])?), read),
                }
            }
        };
        let info = subject.info.clone();
        let mut model = Model::load_from(subject.source, info, dev.as_mut(), layout, &mut |_, _| {})?;
        let sequence = model.new_sequence()?;
        let kv = Kv { prefilled: 0, synthetic: 0 };
        let (batch, picked) = (Batch::default(), Picked::default());
        let gpu_layers = gpu.map(|g| g.plan.layers);
        // What was done to load the model is not part of the timeline.
        dev.take_spans(&mut Vec::new());
        Ok(Self {
            dev,
            model,
            sequence,
            read,
            gpu_layers,
            batch,
            picked,
            threads,
            kv,
            fill_seconds: 0.0,
            random: 1,
            trace,
        })
    }

    /// Layers on the GPU, where there is one.
    pub fn gpu_layers(&self) -> Option<usize> {
        self.gpu_layers
    }

    pub fn model(&self) -> &Model {
        &self.model
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Keeps K and V as `kv` says from now on, beginning with an empty sequence.
    pub fn relayout(&mut self, kv: &KvLayout) -> Result<(), BenchError> {
        self.model.free_sequence(self.sequence)?;
        let layout = Layout { kv: kv.clone(), ..self.model.layout().clone() };
        let result = self.model.relayout(self.dev.as_mut(), &layout);
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

    /// Gives the timeline back.
    pub fn unload(mut self) -> Result<Option<Trace>, BenchError> {
        if let Some(trace) = &mut self.trace {
            trace.collect(self.dev.as_mut());
        }
        self.model.unload(self.dev.as_mut())?;
        Ok(self.trace)
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
        self.warm(test, depth)?;
        let before = self.look(depth);
        let dispatches = self.dev.dispatches();
        let start = Instant::now();
        let (tokens, steps) = match test {
            Test::Prefill { tokens } => {
                let chunk = self.model.layout().chunk_rows;
                for done in (0..tokens).step_by(chunk) {
                    let rows = chunk.min(tokens - done);
                    let ticket = self.record(rows, usize::from(done + rows == tokens), None)?;
                    if done + rows == tokens {
                        self.dev.picked(ticket, &mut self.picked)?;
                    }
                }
                (tokens, None)
            }
            Test::Decode { tokens } => {
                self.decode(tokens)?;
                (tokens, Some(tokens))
            }
            Test::Check { rows, steps } => {
                for _ in 0..steps {
                    self.step(rows, rows)?;
                }
                (rows * steps, Some(steps))
            }
        };
        let seconds = start.elapsed().as_secs_f64().max(1e-9);
        let dispatches = self.dev.dispatches() - dispatches;
        let after = self.look(depth);
        self.rewind(depth)?;
        let info = self.model.info();
        let middle = depth + tokens / 2;
        // The rows of a step share one reading of the weights.
        let gb_per_s = steps.map(|steps| {
            info.bytes_per_token(middle, &self.model.layout().kv) as f64 * steps as f64 / seconds / 1e9
        });
        let ping_pong_nanos = if self.gpu_layers.is_some() { None } else { probe::ping_pong_nanos() };
        Ok(Sample {
            tokens_per_s: tokens as f64 / seconds,
            gb_per_s,
            gmacs_per_s: info.macs_per_token(middle) as f64 * tokens as f64 / seconds / 1e9,
            dispatches_per_step: steps.filter(|_| dispatches > 0).map(|n| dispatches as f64 / n as f64),
            limit: Limit { before_gb_per_s: before, after_gb_per_s: after, ping_pong_nanos },
        })
    }

    /// The read bandwidth that bounds a step at `depth`: of the devices together, each for its own part.
    fn look(&mut self, depth: usize) -> f64 {
        match &mut self.read {
            Read::Cpu(read) => read.sample(self.threads, PASSES).best_gb_per_s,
            Read::Known(rates) => {
                let (info, layout) = (self.model.info(), self.model.layout());
                let parts = [0, 1].map(|d| info.device_bytes_per_token(depth, layout, d) as f64 / 1e9);
                let seconds: f64 = parts.iter().zip(rates).map(|(gb, rate)| gb / rate.max(1e-9)).sum();
                // A part that reads nothing has no say.
                if seconds > 0.0 { parts.iter().sum::<f64>() / seconds } else { 0.0 }
            }
        }
    }

    /// Brings a GPU's clocks up with work like that of the sample.
    fn warm(&mut self, test: Test, depth: usize) -> Result<(), BenchError> {
        if self.gpu_layers.is_none() {
            return Ok(());
        }
        let layout = self.model.layout();
        let (most, ctx) = (layout.chunk_rows, layout.ctx_tokens);
        let rows = match test {
            Test::Prefill { tokens } => tokens.min(most),
            Test::Decode { .. } => 1,
            Test::Check { rows, .. } => rows,
        };
        let start = Instant::now();
        while start.elapsed().as_secs_f64() < WARM_SECONDS {
            if self.model.seq_len(self.sequence)? + rows > ctx {
                self.rewind(depth)?;
            }
            self.step(rows, 1)?;
        }
        self.rewind(depth)
    }

    /// `tokens` steps of one row. Where work goes on behind our back, each is recorded while the one before it runs, as the
    /// engine does: its token is what that one picks.
    fn decode(&mut self, tokens: usize) -> Result<(), BenchError> {
        let ahead = self.dev.info().asynchronous;
        let mut waiting: Option<Ticket> = None;
        for i in 0..tokens {
            let token = (ahead && i > 0).then_some(Token::Device(0));
            let ticket = self.record(1, 1, token)?;
            let ready = if ahead { waiting.replace(ticket) } else { Some(ticket) };
            if let Some(ticket) = ready {
                self.dev.picked(ticket, &mut self.picked)?;
            }
        }
        match waiting {
            Some(ticket) => Ok(self.dev.picked(ticket, &mut self.picked)?),
            None => Ok(()),
        }
    }

    /// One forward pass of `rows` random tokens and a greedy pick from each of the last `wanted`.
    fn step(&mut self, rows: usize, wanted: usize) -> Result<(), BenchError> {
        let ticket = self.record(rows, wanted, None)?;
        Ok(self.dev.picked(ticket, &mut self.picked)?)
    }

    /// Records a forward pass of `rows` tokens, random ones where `token` is none, with a greedy pick from each of the last
    /// `wanted`.
    fn record(&mut self, rows: usize, wanted: usize, token: Option<Token>) -> Result<Ticket, BenchError> {
        let len = self.model.seq_len(self.sequence)?;
        let vocab = self.model.info().config.vocab as u64;
        self.batch.rows.clear();
        for i in 0..rows {
            let token = token.unwrap_or(Token::Host((self.random() % vocab) as u32));
            let position = (len + i) as u32;
            self.batch.rows.push(BatchRow {
                sequence: self.sequence,
                position,
                token,
                logits: i + wanted >= rows,
                draft: false,
            });
        }
        let since = if self.trace.is_some() { now_nanos() } else { 0 };
        let dev = self.dev.as_mut();
        let logits = self.model.step(dev, &self.batch)?;
        if logits > 0 {
            dev.pick(&Pick { logits: self.model.logits(), rows: logits, k: 1, draws: &[] })?;
        }
        let ticket = dev.submit()?;
        if let Some(trace) = &mut self.trace {
            trace.phase(
                if rows == 1 {
                    "decode"
                } else if rows == wanted {
                    "check"
                } else {
                    "prefill"
                },
                since,
            );
            trace.collect(dev);
        }
        Ok(ticket)
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
        let layers = &self.model.info().config.layers;
        let mut widths: Vec<usize> = layers.iter().map(LayerConfig::kv_width).filter(|&w| w > 0).collect();
        widths.sort_unstable();
        widths.dedup();
        let mut kv = Vec::with_capacity(widths.len());
        for width in widths {
            kv.push((width, [self.random_rows(width)?, self.random_rows(width)?]));
        }
        while positions > 0 {
            let rows = positions.min(SYNTHETIC_ROWS);
            self.model.extend_synthetic(self.dev.as_mut(), self.sequence, rows, &kv)?;
            positions -= rows;
        }
        kv.into_iter().flat_map(|(_, both)| both).try_for_each(|buf| Ok(self.dev.free(buf)?))
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
