//! What of a prompt need not be run: prefixes that the sequence or the memory still hold, and those on disk where
//! restoring them takes less time than running them again. It must not know how state is written.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hob_compute::{Compute, PAGE_POSITIONS};
use hob_model::disk::{Found, Piece, SnapshotId};
use hob_model::{Image, Model, SeqId};

use crate::cache::{Disk, Rates};
use crate::engine::Engine;
use crate::error::{EngineError, Result};
use crate::job::{Event, Job, JobId};
use crate::outcome::Figures;
use crate::request::Prompt;
use crate::session::Session;
use crate::stops::Stops;

/// What was found of a prompt.
#[derive(Debug, Default)]
pub(crate) struct Recalled {
    pub prompt_tokens: usize,
    /// Leading tokens whose state was in memory; always fewer than `prompt_tokens`, so that there are logits to sample.
    pub reused_tokens: usize,
    /// Leading tokens that came from disk.
    pub restored_tokens: usize,
    /// Time taken by restoring.
    pub restore_time: Duration,
    /// What restoring and recomputing were expected to take, where there was a choice.
    pub restore_estimate: Duration,
    pub recompute_estimate: Duration,
    /// What is still to be restored.
    pub restore: Option<Restore>,
    /// Where the state of a recurrent model is kept.
    pub stops: Option<Stops>,
}

impl Recalled {
    /// Writes down what came of it.
    pub fn figures(&self, figures: &mut Figures) {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        figures.prompt_tokens = self.prompt_tokens;
        figures.reused_tokens = self.reused_tokens;
        figures.restored_tokens = self.restored_tokens;
        figures.restore_micros = micros(self.restore_time);
        figures.restore_estimate_micros = micros(self.restore_estimate);
        figures.recompute_estimate_micros = micros(self.recompute_estimate);
    }
}

/// A prefix on its way from disk into a sequence, piece by piece.
#[derive(Debug)]
pub(crate) struct Restore {
    pieces: VecDeque<Piece>,
    /// Length of the prefix.
    target: usize,
    /// The recurrent state there, and all states on the way.
    state: Option<SnapshotId>,
    states: Vec<SnapshotId>,
    bytes: u64,
}

impl Engine {
    /// Makes `prompt` the session's timeline and brings the session's sequence to the longest prefix that memory holds;
    /// what is better taken from disk is planned, and done by the steps that follow.
    ///
    /// # Errors
    /// As [`crate::Front::tokenize`], the session is unchanged then; what the device says.
    pub(crate) fn recall(&mut self, session: &mut Session, prompt: &Prompt) -> Result<Recalled> {
        let tokens = self.front.tokenize(prompt)?;
        let Some(sequence) = session.sequence else { return Err(EngineError::ForeignSession) };
        // At least one token is run, so that there are logits.
        let most = tokens.len() - 1;
        let runtime = Arc::clone(&self.runtime);
        let device = &mut **runtime.device();
        let model = self.model.as_mut().expect("the model is there until the engine is dropped");
        let reused_tokens = match model.resume(device, sequence, &tokens, most) {
            Ok(reused) => reused,
            Err(e) => {
                session.ready = empty(model, sequence);
                return Err(e.into());
            }
        };
        session.set(&tokens, reused_tokens);
        let mut recalled = Recalled { prompt_tokens: tokens.len(), reused_tokens, ..Recalled::default() };
        recalled.restore = self.plan_restore(session, &tokens, &mut recalled);
        let from = recalled.restore.as_ref().map_or(reused_tokens, |restore| restore.target);
        let ends = self.front.tokenizer().end_tokens();
        recalled.stops = self.snapshot_stride.map(|stride| Stops::of(stride, &tokens, from, ends));
        Ok(recalled)
    }

    /// What of a prompt comes from disk, if that is worth it.
    fn plan_restore(
        &self,
        session: &mut Session,
        tokens: &[u32],
        recalled: &mut Recalled,
    ) -> Option<Restore> {
        let (disk, sequence, reused_tokens) =
            (self.disk.as_ref()?, session.sequence?, recalled.reused_tokens);
        let found = disk.store.find(&disk.identity, &tokens[..tokens.len() - 1]);
        session.know_stored(disk, found.tokens);
        let restore = Restore::plan(&found, self.model(), sequence, reused_tokens)?;
        recalled.restore_estimate = self.rates.restore_time(restore.bytes);
        recalled.recompute_estimate = self.rates.recompute_time(restore.target - reused_tokens);
        (recalled.restore_estimate < recalled.recompute_estimate).then_some(restore)
    }

    /// Restores one piece for every job that waits for some: a step of one job is no longer than that.
    pub(crate) fn restore_pieces(&mut self, sink: &mut dyn FnMut(JobId, Event<'_>)) {
        let Engine { jobs, disk, model, runtime, rates, .. } = self;
        let (Some(disk), Some(model)) = (disk, model) else { return };
        for job in jobs.iter_mut().filter(|j| j.recalled.restore.is_some()) {
            let device = &mut **runtime.device();
            restore_piece(job, disk, model, device, rates);
            sink(job.id, Event::Prefill { ready: job.session.ready, of: job.recalled.prompt_tokens });
        }
    }
}

fn restore_piece(job: &mut Job, disk: &Disk, model: &mut Model, device: &mut dyn Compute, rates: &mut Rates) {
    let (Some(mut restore), Some(sequence)) = (job.recalled.restore.take(), job.session.sequence) else {
        return;
    };
    let since = Instant::now();
    let tokens = &job.session.tokens;
    let mut place = Place { disk, model, device, sequence, tokens };
    // A panic within the device is a miss like any other.
    let went = catch_unwind(AssertUnwindSafe(|| restore.advance(&mut place))).unwrap_or(None);
    let held = match went {
        Some(_) => model.seq_len(sequence).unwrap_or(0),
        // What was restored so far stays if it can; what memory had comes back in any case.
        None => {
            if model.info().recurrent() {
                empty(model, sequence);
            }
            let most = tokens.len() - 1;
            let held =
                model.resume(device, sequence, tokens, most).unwrap_or_else(|_| empty(model, sequence));
            // More is run than was planned, past other places where state is kept.
            let ends = job.session.front.tokenizer().end_tokens();
            job.recalled.stops = job.recalled.stops.take().map(|stops| stops.again(tokens, held, ends));
            held
        }
    };
    let took = since.elapsed();
    rates.restored(went.unwrap_or(0), took);
    job.recalled.restore_time += took;
    job.recalled.reused_tokens = job.recalled.reused_tokens.min(held);
    job.recalled.restored_tokens = held - job.recalled.reused_tokens;
    job.session.ready = held;
    job.session.stored.sealed = held - held % PAGE_POSITIONS;
    if went.is_some() {
        job.session.stored.tokens = job.session.stored.tokens.max(held);
        if !restore.is_done() {
            job.recalled.restore = Some(restore);
        }
    } else {
        restore.check_rest(disk);
        let found = disk.store.find(&disk.identity, &job.session.tokens[..held]);
        job.session.stored.tokens = found.tokens;
    }
}

/// What a piece is put into.
struct Place<'a> {
    disk: &'a Disk,
    model: &'a mut Model,
    device: &'a mut dyn Compute,
    sequence: SeqId,
    tokens: &'a [u32],
}

impl Restore {
    /// What there is on disk beyond the `reused` tokens that the sequence holds.
    fn plan(found: &Found, model: &Model, sequence: SeqId, reused: usize) -> Option<Restore> {
        let recurrent = model.info().recurrent();
        let (target, state) = if recurrent {
            let &(length, state) = found.snapshots.last()?;
            (length, Some(state))
        } else {
            (found.tokens, None)
        };
        if target <= reused {
            return None;
        }
        let wanted = found.pieces.iter().filter(|p| p.first < target);
        let beyond = |p: &&Piece| p.first + p.take_tokens > reused;
        let first = wanted.clone().find(beyond)?.first;
        // A piece is taken from its first position on; where state cannot go back there, all pieces are.
        let fits = first == reused || model.can_truncate(sequence, first).unwrap_or(false);
        let pieces: VecDeque<Piece> = wanted.filter(|p| !fits || beyond(p)).copied().collect();
        let state_bytes = if recurrent { model.info().snapshot_bytes(target) as u64 } else { 0 };
        let bytes = pieces.iter().map(|p| p.bytes).sum::<u64>() + state_bytes;
        let states = found.snapshots.iter().map(|&(_, id)| id).collect();
        Some(Restore { pieces, target, state, states, bytes })
    }

    /// After a miss: looks at what was to follow, so that the store forgets what else is damaged and takes it anew.
    fn check_rest(&self, disk: &Disk) {
        self.pieces.iter().for_each(|piece| drop(disk.store.read(piece)));
        self.states.iter().for_each(|&state| drop(disk.store.read_snapshot(state)));
    }

    fn is_done(&self) -> bool {
        self.pieces.is_empty() && self.state.is_none()
    }

    /// Restores the next piece, or the state behind the last; gives the bytes read, or `None` for a miss.
    fn advance(&mut self, place: &mut Place<'_>) -> Option<u64> {
        if let Some(piece) = self.pieces.pop_front() {
            let image = place.disk.store.read(&piece)?;
            place.make_end_at(piece.first)?;
            let take = piece.take_tokens.min(self.target - piece.first);
            let range = piece.first..piece.first + piece.tokens;
            let image = Image { tokens: place.tokens, range, take, bytes: &image };
            place.model.import(place.device, place.sequence, &image).ok()?;
            if (piece.first + take).is_multiple_of(PAGE_POSITIONS) {
                // Pages behind windows make room for the next.
                place.model.seal(place.device, place.sequence, place.tokens).ok()?;
            }
            return Some(piece.bytes);
        }
        let state = place.disk.store.read_snapshot(self.state.take()?)?;
        place.model.restore(place.device, place.sequence, self.target, &state).ok()?;
        place.model.keep(place.device, place.sequence, place.tokens).ok()?;
        Some(state.len() as u64)
    }
}

impl Place<'_> {
    /// Cuts the sequence to `len` tokens.
    fn make_end_at(&mut self, len: usize) -> Option<()> {
        let held = self.model.seq_len(self.sequence).ok()?;
        if held != len {
            self.model.truncate(self.sequence, len).ok()?;
        }
        Some(())
    }
}

/// Forgets what a sequence holds; gives its length.
pub(crate) fn empty(model: &mut Model, sequence: SeqId) -> usize {
    // Only an unknown sequence is refused, and that holds nothing.
    let _ = model.truncate(sequence, 0);
    0
}
