//! Batches in flight: recorded, not yet settled. It must not know how a batch is chosen.
//!
//! A device that works behind our back ([`hob_compute::DeviceInfo::asynchronous`]) would stand still while the host
//! reads tokens and records the next batch. So one batch is recorded ahead: a job whose next token is drawn on the device
//! goes on with it ([`hob_compute::Token::Device`]) before the host knows it. A job that turns out to have ended takes
//! the row back that ran ahead: it is a draft ([`hob_model::Row::draft`]). Recurrent state holds such rows where the layout
//! has room for their records, and is otherwise never recorded ahead. What needs the token on the host sits out every
//! second batch: samplers that look at whole rows of logits. A device that runs at once is never recorded ahead, which
//! would only delay its tokens.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use hob_compute::{Buf, Compute, Picked, Ticket};

use crate::engine::Engine;
use crate::error::{EngineError, Result};
use crate::job::{Event, Job};
use crate::sampler::{Need, NotFinite, Scratch, check_top};
use crate::step::{Sink, panic_text};

/// A job's share of one batch.
#[derive(Copy, Clone, Debug, Default)]
pub(crate) struct Flight {
    pub rows: usize,
    /// Row of the batch's logits, if the job's last token is in the batch.
    pub logit_row: Option<usize>,
}

/// A batch in flight.
#[derive(Debug)]
pub(crate) struct Flying {
    /// What to wait for; `None` where the device is done.
    pub ticket: Option<Ticket>,
    pub rows: usize,
    /// When it was recorded.
    pub since: Instant,
    /// First of the batch's rows that were put aside.
    pub aside: usize,
}

impl Engine {
    /// Waits for the batch in flight, hands every job of it what came of it, and ends those that are done.
    pub(crate) fn land(&mut self, sink: Sink<'_>) {
        let Some(flying) = self.flying.take() else { return };
        let read = catch_unwind(AssertUnwindSafe(|| {
            self.phase("settle", |engine| engine.read(&flying).and_then(|()| engine.keep_pages()))
        }));
        match read {
            Ok(Ok(())) => self.hand_out(sink),
            Ok(Err(error)) => self.fail(&error, |job| job.flight.rows > 0, sink),
            Err(panic) => {
                let error = EngineError::Panic(panic_text(&*panic));
                self.fail(&error, |job| job.flight.rows > 0, sink);
            }
        }
        let runtime = &self.runtime;
        if let Some(trace) = &mut self.trace {
            trace.collect(&mut **runtime.device());
        }
    }

    /// Reads what the device chose, and runs the samplers that choose themselves.
    fn read(&mut self, flying: &Flying) -> Result<()> {
        let runtime = std::sync::Arc::clone(&self.runtime);
        let device = &mut **runtime.device();
        if let Some(ticket) = flying.ticket {
            device.picked(ticket, &mut self.picked)?;
        }
        if device.info().asynchronous {
            // The device began with it when it was recorded, or when it was done with the batch before.
            let since = self.landed.map_or(flying.since, |landed| landed.max(flying.since));
            self.landed = Some(Instant::now());
            self.count_prefill(flying.rows, since);
        }
        let logits = (self.model().logits(), 0);
        let mut source = Source {
            device,
            logits: self.aside.map_or(logits, |aside| (aside, flying.aside)),
            picked: &self.picked,
            row: &mut self.row,
            vocab: self.front.vocab(),
            scratch: &mut self.scratch,
        };
        for job in &mut self.jobs {
            if let Some(row) = job.flight.logit_row {
                job.sampled = Some(source.sample(job, row));
            }
        }
        Ok(())
    }

    fn hand_out(&mut self, sink: Sink<'_>) {
        let mut i = 0;
        while i < self.jobs.len() {
            let job = &mut self.jobs[i];
            let id = job.id;
            if job.flight.rows == 0 {
                i += 1;
                continue;
            }
            match job.settle(&mut |event| sink(id, event)) {
                None => i += 1,
                Some(Ok(finish)) => self.end(i, finish, sink),
                Some(Err(error)) => {
                    let mut job = self.jobs.remove(i);
                    self.cut_back(&mut job);
                    sink(id, Event::Done(Box::new(job.fail(error))));
                }
            }
        }
    }
}

/// Where tokens come from.
struct Source<'a> {
    device: &'a mut dyn Compute,
    /// Of the batch, and its first row.
    logits: (Buf, usize),
    picked: &'a Picked,
    row: &'a mut Vec<f32>,
    vocab: usize,
    scratch: &'a mut Scratch,
}

impl Source<'_> {
    fn sample(&mut self, job: &mut Job, row: usize) -> Result<u32> {
        let position = job.session.ready + job.flight.rows - 1;
        let sampled = match job.sampler.need() {
            Need::Top(_) => {
                let Picked { k, logits, log_sum_exp, chosen, .. } = self.picked;
                let found = (chosen.get(row), logits.get(row * k), log_sum_exp.get(row));
                let (Some(&token), Some(&top), Some(&sum)) = found else {
                    return Err(EngineError::Internal(format!("the device returned no pick for row {row}")));
                };
                check_top(top, sum).map(|()| token)
            }
            Need::Row => {
                self.row.resize(self.vocab, 0.0);
                let (logits, first) = self.logits;
                self.device.download(logits, first + row, self.row)?;
                job.sampler.sample_row(self.row, &job.session.tokens, self.scratch)
            }
        };
        sampled.map_err(|NotFinite| EngineError::NotFinite { position })
    }
}
