//! What was run is kept: full pages become shared and go to disk, ends of turns can be come back to. It must not know
//! how a prefix is found again.
//!
//! Windowed layers let go of pages when they are sealed, so images are taken first.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use hob_compute::{Compute, PAGE_POSITIONS};
use hob_model::Model;

use crate::cache::Disk;
use crate::engine::Engine;
use crate::error::Result;
use crate::job::Job;
use crate::recall::empty;
use crate::session::Session;
use crate::writer::{Entry, What};

/// At the end of a turn the writer may take this long to make room; while replies are made, none.
const END_WAIT: Duration = Duration::from_millis(250);

/// Recurrent state is kept at least at every multiple of this many positions.
const SNAPSHOT_POSITIONS: usize = 2048;

/// Positions between two snapshots of recurrent state: each page where a snapshot is smaller than a page's K and V.
/// `None` for models that remember only these.
pub(crate) fn snapshot_stride(model: &Model) -> Option<usize> {
    if !model.info().recurrent() {
        return None;
    }
    let small = model.info().snapshot_bytes(model.layout().ctx_tokens) < model.image_bytes(0..PAGE_POSITIONS);
    Some(if small { PAGE_POSITIONS } else { SNAPSHOT_POSITIONS })
}

impl Engine {
    /// After a batch has run, before its tokens are counted: seals and hands over what its jobs completed.
    ///
    /// # Errors
    /// What the model and the device say.
    pub(crate) fn keep_pages(&mut self) -> Result<()> {
        let Engine { jobs, model, runtime, disk, .. } = self;
        let Some(model) = model else { return Ok(()) };
        for job in jobs.iter_mut().filter(|j| j.flight.rows > 0) {
            let len = job.session.ready + job.flight.rows;
            let stops = job.recalled.stops.as_ref();
            let snapshot = stops.is_some_and(|stops| stops.is_at(len));
            let full = len - len % PAGE_POSITIONS;
            if full <= job.session.stored.sealed && !snapshot {
                continue;
            }
            let device = &mut **runtime.device();
            let mut keeper = Keeper { model, device, disk: disk.as_ref(), wait: Duration::ZERO };
            keeper.store_pages(&mut job.session, if snapshot { len } else { full })?;
            if snapshot {
                keeper.keep(&mut job.session, len, stops.is_some_and(|stops| stops.is_end(len)))?;
            } else {
                keeper.seal(&mut job.session, len)?;
            }
        }
        Ok(())
    }

    /// The end of a turn, however it ended: its last positions go to disk, and its end is kept.
    pub(crate) fn keep_end(&mut self, job: &mut Job) {
        let session = &mut job.session;
        let prompt_tokens = job.recalled.prompt_tokens;
        let tokenizer = self.front.tokenizer();
        let shown = tokenizer.decode(&session.tokens[prompt_tokens..]);
        self.front.chains().insert_reply(&session.tokens, prompt_tokens, &shown, tokenizer);
        let (Some(model), Some(sequence)) = (self.model.as_mut(), session.sequence) else { return };
        // While a prefix is being restored, the state behind it is not there yet.
        if session.ready == 0 || job.recalled.restore.is_some() {
            return;
        }
        let runtime = Arc::clone(&self.runtime);
        let device = &mut **runtime.device();
        let mut keeper = Keeper { model, device, disk: self.disk.as_ref(), wait: END_WAIT };
        let kept = catch_unwind(AssertUnwindSafe(|| keeper.keep_end(session)));
        if !matches!(kept, Ok(Ok(()))) {
            // The reply is made; only what the sequence holds now is in doubt.
            session.ready = empty(keeper.model, sequence);
            session.stored.sealed = 0;
        }
    }
}

/// Where state is kept.
struct Keeper<'a> {
    model: &'a mut Model,
    device: &'a mut dyn Compute,
    disk: Option<&'a Disk>,
    /// How long to wait for the writer.
    wait: Duration,
}

impl Keeper<'_> {
    fn keep_end(&mut self, session: &mut Session) -> Result<()> {
        let len = session.ready;
        self.store_pages(session, len)?;
        self.keep(session, len, true)
    }

    fn seal(&mut self, session: &mut Session, len: usize) -> Result<()> {
        let Some(sequence) = session.sequence else { return Ok(()) };
        self.model.seal(self.device, sequence, &session.tokens[..len])?;
        session.stored.sealed = len - len % PAGE_POSITIONS;
        Ok(())
    }

    /// Keeps the present end in memory, and a recurrent model's state there on disk.
    fn keep(&mut self, session: &mut Session, len: usize, turn_end: bool) -> Result<()> {
        let Some(sequence) = session.sequence else { return Ok(()) };
        let stored = session.stored.tokens >= len;
        if let Some(disk) = self.disk.filter(|_| stored && self.model.info().recurrent())
            && disk.writer.has_room(self.model.info().snapshot_bytes(len), self.wait)
        {
            let state = self.model.snapshot(self.device, sequence)?;
            let tokens = session.tokens[..len].to_vec();
            disk.writer.push(Entry { tokens, what: What::Snapshot { state, turn_end } });
        }
        let tokens = &session.tokens[..len];
        match turn_end {
            true => self.model.keep(self.device, sequence, tokens)?,
            false => self.model.keep_passing(self.device, sequence, tokens)?,
        }
        session.stored.sealed = len - len % PAGE_POSITIONS;
        Ok(())
    }

    /// Hands positions up to `to` that are not on disk to the writer, a page at a time, for as long as it has room.
    fn store_pages(&mut self, session: &mut Session, to: usize) -> Result<()> {
        let (Some(disk), Some(sequence)) = (self.disk, session.sequence) else { return Ok(()) };
        session.check_stored(disk);
        while session.stored.tokens < to {
            let from = session.stored.tokens;
            let range = from..to.min(from - from % PAGE_POSITIONS + PAGE_POSITIONS);
            if !disk.writer.has_room(self.model.image_bytes(range.clone()), self.wait) {
                break;
            }
            // Pages that were let go before the writer had room for them: this chain ends here on disk.
            let Ok(image) = self.model.export(self.device, sequence, range.clone()) else { break };
            let Range { start: from, end } = range;
            let tokens = session.tokens[..end].to_vec();
            disk.writer.push(Entry { tokens, what: What::Fragment { from, image } });
            session.stored.tokens = end;
        }
        Ok(())
    }
}

impl Session {
    /// Counts `tokens` as stored: what the store finds of the timeline.
    pub(crate) fn know_stored(&mut self, disk: &Disk, tokens: usize) {
        let epoch = disk.writer.epoch();
        // What waits to be written is not found yet; it counts unless the writer lost something.
        let waiting = if self.stored.epoch == epoch { self.stored.tokens } else { 0 };
        self.stored.tokens = tokens.max(waiting);
        self.stored.epoch = epoch;
    }

    /// Looks up what is stored if the writer lost something.
    fn check_stored(&mut self, disk: &Disk) {
        let epoch = disk.writer.epoch();
        if self.stored.epoch != epoch {
            self.stored.tokens = disk.store.find(&disk.identity, &self.tokens).tokens;
            self.stored.epoch = epoch;
        }
    }
}
