//! The step loop: schedule -> run -> settle. It must not know HTTP, terminals or architectures.
//!
//! Decodes go first, one row each; what is left of `chunk_rows` goes to prefills in the order they came, so that a long
//! prompt is run in chunks beside the decodes and never starves them. A panic inside a step ends the jobs of that step
//! and nothing else. After warm-up, schedule and run allocate nothing.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use hob_compute::{Compute, Pick, Picked, Token};
use hob_model::{Batch, Model, Row};

use crate::engine::Engine;
use crate::error::{EngineError, Result};
use crate::job::{Event, Job, JobId};
use crate::outcome::Finish;
use crate::persist::rows_to_snapshot;
use crate::recall::empty;
use crate::sampler::{Need, NotFinite, Scratch};

/// A pass of at least so many rows tells how fast prompts are run.
const PREFILL_ROWS: usize = 64;

type Sink<'a> = &'a mut dyn FnMut(JobId, Event<'_>);

impl Engine {
    /// One turn: cancelled jobs end, the next batch is chosen, run and settled. Returns the jobs still going.
    ///
    /// Errors reach the jobs concerned through [`Event::Done`].
    pub fn step(&mut self, sink: Sink<'_>) -> usize {
        self.end_cancelled(sink);
        self.restore_pieces(sink);
        // The pass and the sampling are guarded; the caller's sink is not our business and runs outside.
        let ran = catch_unwind(AssertUnwindSafe(|| {
            self.schedule();
            self.run()?;
            self.keep_pages()
        }));
        let ran = ran.unwrap_or_else(|panic| {
            self.forget_batch();
            Err(EngineError::Panic(panic_text(&*panic)))
        });
        match ran {
            Ok(()) => self.settle(sink),
            Err(error) => self.fail_batch(&error, sink),
        }
        self.jobs.len()
    }

    /// Jobs submitted and not yet done.
    pub fn active(&self) -> usize {
        self.jobs.len()
    }

    fn end_cancelled(&mut self, sink: Sink<'_>) {
        let mut i = 0;
        while i < self.jobs.len() {
            if self.jobs[i].cancel.is_cancelled() {
                self.end(i, Finish::Cancelled, sink);
            } else {
                i += 1;
            }
        }
    }

    /// Fills the batch.
    fn schedule(&mut self) {
        let Engine { jobs, batch, .. } = self;
        batch.rows.clear();
        let mut room = Room {
            rows: self.chunk_rows,
            logit_rows: self.logit_rows,
            next_logit_row: 0,
            snapshot_stride: self.snapshot_stride,
        };
        for job in jobs.iter_mut() {
            job.rows = 0;
            job.logit_row = None;
            job.sampled = None;
        }
        let count = jobs.len();
        let decoding = jobs.iter().filter(|j| j.pending() == 1).count();
        for i in 0..count {
            let job = &mut jobs[(self.turn + i) % count];
            if job.pending() == 1 {
                room.add(job, batch);
            }
        }
        let fit = self.chunk_rows.min(self.logit_rows);
        self.turn = if decoding > fit { (self.turn + fit) % count } else { 0 };
        for job in jobs.iter_mut().filter(|j| j.pending() > 1) {
            room.add(job, batch);
        }
    }

    /// One forward pass, picks, and the samplers.
    fn run(&mut self) -> Result<()> {
        if self.batch.rows.is_empty() {
            return Ok(());
        }
        let runtime = std::sync::Arc::clone(&self.runtime);
        let device = &mut **runtime.device();
        let model = self.model.as_mut().expect("the model is there until the engine is dropped");
        for job in self.jobs.iter().filter(|j| j.rows > 0) {
            check_length(model, job)?;
        }
        let since = Instant::now();
        let rows = model.step(device, &self.batch)?;
        if self.batch.rows.len() >= PREFILL_ROWS {
            self.rates.ran(self.batch.rows.len(), since.elapsed());
        }
        let expected = self.jobs.iter().filter(|j| j.logit_row.is_some()).count();
        if rows != expected {
            return Err(EngineError::Internal(format!(
                "expected {expected} rows of logits, the model gave {rows}"
            )));
        }
        if rows == 0 {
            return Ok(());
        }
        let k =
            self.jobs.iter().filter(|j| j.logit_row.is_some()).map(|j| top_needed(j.sampler.need())).max();
        if let Some(k) = k.filter(|&k| k > 0) {
            let k = k.min(self.front.vocab());
            device.pick(&Pick { logits: model.logits(), rows, k })?;
            let ticket = device.submit()?;
            device.picked(ticket, &mut self.picked)?;
        }
        let mut source = Source {
            device,
            model,
            picked: &self.picked,
            row: &mut self.row,
            vocab: self.front.vocab(),
            scratch: &mut self.scratch,
        };
        for job in &mut self.jobs {
            if let Some(row) = job.logit_row {
                job.sampled = Some(source.sample(job, row));
            }
        }
        Ok(())
    }

    /// Hands every job of the batch what came of it, and ends those that are done.
    fn settle(&mut self, sink: Sink<'_>) {
        let mut i = 0;
        while i < self.jobs.len() {
            let job = &mut self.jobs[i];
            let id = job.id;
            if job.rows == 0 {
                i += 1;
                continue;
            }
            match job.settle(&mut |event| sink(id, event)) {
                None => {
                    job.rows = 0;
                    i += 1;
                }
                Some(Ok(finish)) => self.end(i, finish, sink),
                Some(Err(error)) => {
                    let finished = self.jobs.remove(i).fail(error);
                    sink(id, Event::Done(Box::new(finished)));
                }
            }
        }
    }

    fn end(&mut self, index: usize, finish: Finish, sink: Sink<'_>) {
        let mut job = self.jobs.remove(index);
        let id = job.id;
        self.keep_end(&mut job);
        let (info, kv) = (self.model().info(), &self.model().layout().kv);
        let finished =
            job.finish(finish, &|position| info.bytes_per_token(position, kv), &mut |e| sink(id, e));
        sink(id, Event::Done(Box::new(finished)));
    }

    /// After a panic: what the state of the batch holds is unknown.
    fn forget_batch(&mut self) {
        let Some(model) = self.model.as_mut() else { return };
        for job in self.jobs.iter_mut().filter(|j| j.rows > 0) {
            job.session.ready = job.session.sequence.map_or(0, |sequence| empty(model, sequence));
        }
    }

    fn fail_batch(&mut self, error: &EngineError, sink: Sink<'_>) {
        let mut i = 0;
        while i < self.jobs.len() {
            if self.jobs[i].rows == 0 {
                i += 1;
                continue;
            }
            let mut job = self.jobs.remove(i);
            let held = job.session.sequence.and_then(|s| self.model().seq_len(s).ok());
            // Recurrent state of a failed pass is gone.
            job.session.ready = job.session.ready.min(held.unwrap_or(0));
            let id = job.id;
            sink(id, Event::Done(Box::new(job.fail(error.clone()))));
        }
    }
}

/// What a batch can still take.
struct Room {
    rows: usize,
    logit_rows: usize,
    next_logit_row: usize,
    /// Where the jobs of a recurrent model are to stop.
    snapshot_stride: Option<usize>,
}

impl Room {
    /// Adds as many pending tokens of a job as fit; the last pending one asks for logits.
    fn add(&mut self, job: &mut Job, batch: &mut Batch) {
        let Some(sequence) = job.session.sequence else { return };
        let pending = job.pending();
        let ready = job.session.ready;
        let mut take = pending.min(self.rows);
        if let Some(stride) = self.snapshot_stride {
            take = take.min(rows_to_snapshot(stride, ready, job.recalled.prompt_tokens));
        }
        if take == pending && self.logit_rows == 0 {
            take -= 1;
        }
        if take == 0 {
            return;
        }
        job.begin();
        let last = if take == pending { ready + take - 1 } else { usize::MAX };
        for position in ready..ready + take {
            let token = Token::Host(job.session.tokens[position]);
            batch.rows.push(Row { sequence, position: position as u32, token, logits: position == last });
        }
        job.rows = take;
        self.rows -= take;
        if take == pending {
            job.logit_row = Some(self.next_logit_row);
            self.next_logit_row += 1;
            self.logit_rows -= 1;
        }
    }
}

/// The model must hold exactly what the session counts as ready.
fn check_length(model: &Model, job: &Job) -> Result<()> {
    let Some(sequence) = job.session.sequence else { return Err(EngineError::ForeignSession) };
    let (held, ready) = (model.seq_len(sequence)?, job.session.ready);
    if held != ready {
        let what = format!("the session counts {ready} positions, the model holds {held}");
        return Err(EngineError::Internal(what));
    }
    Ok(())
}

fn top_needed(need: Need) -> usize {
    match need {
        Need::Top(k) => k,
        Need::Row => 0,
    }
}

/// Where samplers read logits from.
struct Source<'a> {
    device: &'a mut dyn Compute,
    model: &'a Model,
    picked: &'a Picked,
    row: &'a mut Vec<f32>,
    vocab: usize,
    scratch: &'a mut Scratch,
}

impl Source<'_> {
    fn sample(&mut self, job: &mut Job, row: usize) -> Result<u32> {
        let position = job.session.ready + job.rows - 1;
        let sampled = match job.sampler.need() {
            Need::Top(k) => {
                // Another job of the batch may have asked for more.
                let (from, k) = (row * self.picked.k, k.min(self.picked.k));
                let (Some(tokens), Some(logits), Some(&sum)) = (
                    self.picked.tokens.get(from..from + k),
                    self.picked.logits.get(from..from + k),
                    self.picked.log_sum_exp.get(row),
                ) else {
                    return Err(EngineError::Internal(format!("the device returned no pick for row {row}")));
                };
                job.sampler.sample_top(tokens, logits, sum, self.scratch)
            }
            Need::Row => {
                self.row.resize(self.vocab, 0.0);
                self.device.download(self.model.logits(), row, self.row)?;
                job.sampler.sample_row(self.row, &job.session.tokens, self.scratch)
            }
        };
        sampled.map_err(|NotFinite| EngineError::NotFinite { position })
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
