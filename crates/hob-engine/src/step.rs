//! The step loop: schedule -> run -> settle. It must not know HTTP, terminals or architectures.
//!
//! Decodes go first, one row each; what is left of `chunk_rows` goes to prefills in the order they came, so that a long
//! prompt is run in chunks beside the decodes and never starves them. On a device that works behind our back, a step
//! records its batch and then settles the one before, which ran meanwhile: see [`crate::flight`]. A panic inside a step
//! ends the jobs of that step and nothing else. After warm-up, schedule and run allocate nothing.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use hob_compute::{Compute, Draw, Map, Pick, Token};
use hob_model::{Batch, Model, Row};

use crate::engine::Engine;
use crate::error::{EngineError, Result};
use crate::flight::{Flight, Flying};
use crate::job::{Event, Job, JobId};
use crate::outcome::Finish;
use crate::recall::empty;
use crate::sampler::Need;

/// A pass of at least so many rows tells how fast prompts are run.
const PREFILL_ROWS: usize = 64;

pub(crate) type Sink<'a> = &'a mut dyn FnMut(JobId, Event<'_>);

impl Engine {
    /// One turn: cancelled jobs end, the next batch is chosen and run, and what has run is settled. Returns the jobs still
    /// going.
    ///
    /// Errors reach the jobs concerned through [`Event::Done`]. The loss of the device ends all jobs.
    pub fn step(&mut self, sink: Sink<'_>) -> usize {
        if self.jobs.iter().any(|job| job.cancel.is_cancelled() && job.flight.rows > 0) {
            // What its rows came to stays.
            self.land(sink);
        }
        self.end_cancelled(sink);
        self.restore_pieces(sink);
        // The pass and the sampling are guarded; the caller's sink is not our business and runs outside.
        let recorded = catch_unwind(AssertUnwindSafe(|| self.record()));
        match recorded {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.fail(&error, |job| job.next.rows > 0, sink),
            Err(panic) => {
                self.forget_batch();
                self.fail(&EngineError::Panic(panic_text(&*panic)), |job| job.next.rows > 0, sink);
            }
        }
        self.land(sink);
        self.flying = self.recorded.take();
        self.jobs.iter_mut().for_each(|job| job.flight = std::mem::take(&mut job.next));
        if !self.ahead {
            self.land(sink);
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

    /// Chooses the next batch and hands it to the device.
    fn record(&mut self) -> Result<()> {
        let runtime = std::sync::Arc::clone(&self.runtime);
        // Held from here on, so that the last pick on the device stays what it is.
        let mut device = runtime.device();
        self.phase("schedule", |engine| engine.schedule(runtime.picks() == engine.own_pick));
        if self.batch.rows.is_empty() {
            return Ok(());
        }
        self.phase("run", |engine| engine.run(&mut **device))
    }

    /// Fills the batch. `drawn`: whether what the last batch drew is still on the device.
    fn schedule(&mut self, drawn: bool) {
        let Engine { jobs, batch, windowed, .. } = self;
        batch.rows.clear();
        let mut room = Room { rows: self.chunk_rows, logit_rows: self.logit_rows, next_logit_row: 0 };
        for job in jobs.iter_mut() {
            job.next = Flight::default();
            // Pages that leave a window are sealed before: not so those of a chunk in flight. State is kept before more
            // rows move it on.
            let end = job.session.ready + job.flight.rows;
            let kept = job.recalled.stops.as_ref().is_some_and(|stops| stops.is_at(end));
            let waits = (*windowed && job.flight.rows > 1) || (kept && job.flight.rows > 0);
            job.offered = if waits { 0 } else { job.pending(drawn) };
        }
        let count = jobs.len();
        let decoding = jobs.iter().filter(|j| j.offered == 1).count();
        for i in 0..count {
            let job = &mut jobs[(self.turn + i) % count];
            if job.offered == 1 {
                room.add(job, batch);
            }
        }
        let fit = self.chunk_rows.min(self.logit_rows);
        self.turn = if decoding > fit { (self.turn + fit) % count } else { 0 };
        for job in jobs.iter_mut().filter(|j| j.offered > 1) {
            room.add(job, batch);
        }
    }

    /// One forward pass and what is chosen from its logits; on a device that runs behind our back, only recorded.
    fn run(&mut self, device: &mut dyn Compute) -> Result<()> {
        let model = self.model.as_mut().expect("the model is there until the engine is dropped");
        for job in self.jobs.iter().filter(|j| j.next.rows > 0) {
            check_length(model, job)?;
        }
        let since = Instant::now();
        let rows = model.step(device, &self.batch)?;
        self.half ^= 1;
        let aside = self.half * self.logit_rows;
        let mut flying = Flying { ticket: None, rows: self.batch.rows.len(), since, aside };
        if !device.info().asynchronous {
            self.count_prefill(flying.rows, since);
        }
        let expected = self.jobs.iter().filter(|j| j.next.logit_row.is_some()).count();
        if rows != expected {
            return Err(EngineError::Internal(format!(
                "expected {expected} rows of logits, the model gave {rows}"
            )));
        }
        let picked = self.pick(device, rows, aside)?;
        if picked || device.info().asynchronous {
            flying.ticket = Some(device.submit()?);
        }
        self.recorded = Some(flying);
        Ok(())
    }

    /// Lets the device choose tokens, and puts aside (from row `put` on) the rows that are to be read whole once the next
    /// batch overwrites the logits. Gives whether anything was picked.
    fn pick(&mut self, device: &mut dyn Compute, rows: usize, put: usize) -> Result<bool> {
        let Engine { jobs, model, draws, aside, ahead, .. } = self;
        let logits = model.as_ref().map(Model::logits);
        let logits = logits.expect("the model is there until the engine is dropped");
        let picking = jobs.iter().filter(|j| j.next.logit_row.is_some());
        let k = picking.map(|j| top_needed(j.sampler.need())).max().unwrap_or(0).min(self.front.vocab());
        draws.clear();
        draws.resize(rows, Draw::GREEDY);
        for job in jobs.iter_mut() {
            let Some(row) = job.next.logit_row else { continue };
            match (job.sampler.need(), *aside) {
                (Need::Top(_), _) => draws[row] = job.sampler.draw(k),
                (Need::Row, Some(out)) if *ahead => {
                    device.map(&Map::CopyRow { a: logits, from: row, out, to: put + row })?;
                }
                (Need::Row, _) => {}
            }
        }
        if k > 0 {
            device.pick(&Pick { logits, rows, k, draws })?;
            self.own_pick = self.runtime.count_pick();
        }
        Ok(k > 0)
    }

    /// Remembers how long the rows of a batch took.
    pub(crate) fn count_prefill(&mut self, rows: usize, since: Instant) {
        if rows >= PREFILL_ROWS {
            self.rates.ran(rows, since.elapsed());
        }
    }

    pub(crate) fn end(&mut self, index: usize, finish: Finish, sink: Sink<'_>) {
        let mut job = self.jobs.remove(index);
        let id = job.id;
        self.cut_back(&mut job);
        self.keep_end(&mut job);
        let (info, kv) = (self.model().info(), &self.model().layout().kv);
        let finished =
            job.finish(finish, &|position| info.bytes_per_token(position, kv), &mut |e| sink(id, e));
        sink(id, Event::Done(Box::new(finished)));
    }

    /// Takes the rows back that were run ahead and came to nothing; what was settled stays if it can.
    pub(crate) fn cut_back(&mut self, job: &mut Job) {
        let (Some(sequence), Some(model)) = (job.session.sequence, self.model.as_mut()) else { return };
        let session = &mut job.session;
        let held = model.seq_len(sequence).unwrap_or(0);
        // Recurrent state of a failed pass is gone.
        session.ready = session.ready.min(held);
        if session.ready < held && model.truncate(sequence, session.ready).is_err() {
            session.ready = empty(model, sequence);
        }
        session.stored.sealed = session.stored.sealed.min(session.ready);
    }

    /// After a panic: what the state of the batch holds is unknown.
    fn forget_batch(&mut self) {
        let Some(model) = self.model.as_mut() else { return };
        for job in self.jobs.iter_mut().filter(|j| j.next.rows > 0) {
            job.session.ready = job.session.sequence.map_or(0, |sequence| empty(model, sequence));
        }
    }

    /// Ends the jobs `of` with an error; all jobs, if it is the loss of the device.
    pub(crate) fn fail(&mut self, error: &EngineError, of: impl Fn(&Job) -> bool, sink: Sink<'_>) {
        if error.is_lost() {
            self.lost.get_or_insert_with(|| error.clone());
        }
        let mut i = 0;
        while i < self.jobs.len() {
            if self.lost.is_none() && !of(&self.jobs[i]) {
                i += 1;
                continue;
            }
            let mut job = self.jobs.remove(i);
            self.cut_back(&mut job);
            let id = job.id;
            sink(id, Event::Done(Box::new(job.fail(error.clone()))));
        }
    }

    /// Runs `work`; a trace gets to know how long it took.
    pub(crate) fn phase<T>(&mut self, name: &'static str, work: impl FnOnce(&mut Engine) -> T) -> T {
        if self.trace.is_none() {
            return work(self);
        }
        let since = hob_compute::now_nanos();
        let result = work(self);
        if let Some(trace) = &mut self.trace {
            trace.phase(name, since);
        }
        result
    }
}

/// What a batch can still take.
struct Room {
    rows: usize,
    logit_rows: usize,
    next_logit_row: usize,
}

impl Room {
    /// Adds as many offered tokens of a job as fit; the last one asks for logits.
    fn add(&mut self, job: &mut Job, batch: &mut Batch) {
        let Some(sequence) = job.session.sequence else { return };
        let offered = job.offered;
        let from = job.session.ready + job.flight.rows;
        let mut take = offered.min(self.rows);
        if let Some(stops) = &job.recalled.stops {
            take = take.min(stops.rows_to_next(from));
        }
        if take == offered && self.logit_rows == 0 {
            take -= 1;
        }
        if take == 0 {
            return;
        }
        job.begin();
        let last = if take == offered { from + take - 1 } else { usize::MAX };
        let drawn = job.flight.logit_row.unwrap_or(0) as u32;
        for position in from..from + take {
            let known = job.session.tokens.get(position);
            let token = known.map_or(Token::Device(drawn), |&token| Token::Host(token));
            // A token that ends the reply is not part of it.
            let (draft, logits) = (known.is_none(), position == last);
            batch.rows.push(Row { sequence, position: position as u32, token, logits, draft });
        }
        job.next.rows = take;
        self.rows -= take;
        if take == offered {
            job.next.logit_row = Some(self.next_logit_row);
            self.next_logit_row += 1;
            self.logit_rows -= 1;
        }
    }
}

/// The model must hold exactly what the session counts as ready, and what is in flight.
fn check_length(model: &Model, job: &Job) -> Result<()> {
    let Some(sequence) = job.session.sequence else { return Err(EngineError::ForeignSession) };
    let (held, counted) = (model.seq_len(sequence)?, job.session.ready + job.flight.rows);
    if held != counted {
        let what = format!("the session counts {counted} positions, the model holds {held}");
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

pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
