//! One reply in the making: its session, sampler, stop strings, buffers and clock. It must not know the device.

use std::time::{Duration, Instant};

use hob_text::Detokenizer;

use crate::error::EngineError;
use crate::flight::Flight;
use crate::outcome::{Figures, Finish, Outcome};
use crate::recall::Recalled;
use crate::request::{Cancel, Request};
use crate::sampler::{Need, Sampler};
use crate::session::Session;
use crate::stop::StopMatcher;

/// Names a submitted request until its [`Event::Done`].
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub(crate) u64);

/// What a step tells about a job.
pub enum Event<'a> {
    /// Part of the prompt was run: positions ready, of the prompt's.
    Prefill { ready: usize, of: usize },
    /// More text of the reply.
    Text(&'a str),
    /// The job is over; nothing more comes for it.
    Done(Box<Finished>),
}

/// A job that is over: the session goes back to the caller.
pub struct Finished {
    pub session: Session,
    pub result: Result<Outcome, EngineError>,
}

/// See the module.
pub(crate) struct Job {
    pub id: JobId,
    pub session: Session,
    pub sampler: Sampler,
    pub cancel: Cancel,
    /// In the batch that is in flight.
    pub flight: Flight,
    /// In the batch behind it, which is being recorded.
    pub next: Flight,
    /// Rows that it could take: see [`Job::pending`].
    pub offered: usize,
    /// The token that follows the flight.
    pub sampled: Option<Result<u32, EngineError>>,
    /// What of the prompt was found; the steps that restore from disk go on with it.
    pub recalled: Recalled,
    max_tokens: usize,
    ignore_eos: bool,
    stop: StopMatcher,
    detokenizer: Detokenizer,
    /// Text of the newest token, then what of it may be emitted; kept so that a step allocates nothing.
    piece: String,
    ready_text: String,
    text: String,
    clock: Clock,
}

/// When things happened.
struct Clock {
    submitted: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Job {
    pub fn new(id: JobId, session: Session, recalled: Recalled, request: &Request, cancel: &Cancel) -> Self {
        let tokenizer = session.front.tokenizer();
        let room = (session.front.ctx_tokens() + 1).saturating_sub(recalled.prompt_tokens);
        let text = String::with_capacity(request.max_tokens.min(room).saturating_mul(TEXT_BYTES));
        Job {
            id,
            sampler: Sampler::new(&request.sampling),
            cancel: cancel.clone(),
            flight: Flight::default(),
            next: Flight::default(),
            offered: 0,
            sampled: None,
            recalled,
            max_tokens: request.max_tokens,
            ignore_eos: request.ignore_eos,
            stop: StopMatcher::new(&request.stop),
            detokenizer: tokenizer.detokenizer(),
            piece: String::with_capacity(1024),
            ready_text: String::with_capacity(1024),
            text,
            clock: Clock { submitted: Instant::now(), started: None, first_token: None, last_token: None },
            session,
        }
    }

    /// Tokens that can be run behind those in flight; none while a prefix comes from disk. `drawn`: whether the token that
    /// the flight draws may be one of them.
    pub fn pending(&self, drawn: bool) -> usize {
        if self.recalled.restore.is_some() {
            return 0;
        }
        let known = self.session.tokens.len() - self.session.ready - self.flight.rows;
        // The host knows one that is not run, or the flight is to give it.
        let draws = self.flight.logit_row.is_some() && matches!(self.sampler.need(), Need::Top(_));
        let ahead = known == 0 && draws && drawn && self.goes_on();
        known + usize::from(ahead)
    }

    /// Whether one more token leaves room for another.
    fn goes_on(&self) -> bool {
        self.generated() + 1 < self.max_tokens && self.session.tokens.len() < self.session.front.ctx_tokens()
    }

    /// Marks the beginning of the first step.
    pub fn begin(&mut self) {
        self.clock.started.get_or_insert_with(Instant::now);
    }

    /// Takes in a finished flight; the reason if the reply ends here. Emits through `sink`.
    pub fn settle(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> Option<Result<Finish, EngineError>> {
        self.session.ready += std::mem::take(&mut self.flight).rows;
        let Some(sampled) = self.sampled.take() else {
            sink(Event::Prefill { ready: self.session.ready, of: self.recalled.prompt_tokens });
            return None;
        };
        match sampled {
            Ok(token) => self.take_token(token, sink).map(Ok),
            Err(e) => Some(Err(e)),
        }
    }

    fn take_token(&mut self, token: u32, sink: &mut dyn FnMut(Event<'_>)) -> Option<Finish> {
        let now = Instant::now();
        self.clock.first_token.get_or_insert(now);
        self.clock.last_token = Some(now);
        if !self.ignore_eos && self.session.front.tokenizer().end_tokens().contains(&token) {
            return Some(Finish::EndToken);
        }
        self.session.tokens.push(token);
        self.piece.clear();
        self.detokenizer.push_into(token, &mut self.piece);
        let stopped = self.emit_piece(sink);
        if stopped {
            return Some(Finish::Stop);
        }
        if self.generated() >= self.max_tokens {
            return Some(Finish::Length);
        }
        (self.session.tokens.len() > self.session.front.ctx_tokens()).then_some(Finish::Context)
    }

    /// Sends `piece` through the stop strings; true if one was found.
    fn emit_piece(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> bool {
        self.ready_text.clear();
        let stopped = self.stop.push(&self.piece, &mut self.ready_text);
        self.emit(sink);
        stopped
    }

    fn emit(&mut self, sink: &mut dyn FnMut(Event<'_>)) {
        if !self.ready_text.is_empty() {
            self.text.push_str(&self.ready_text);
            sink(Event::Text(&self.ready_text));
        }
    }

    fn generated(&self) -> usize {
        self.session.tokens.len() - self.recalled.prompt_tokens
    }

    /// Ends the reply: what was held back is emitted, the figures are drawn up.
    /// `bytes_per_token` gives the bytes one decode step reads at a position.
    pub fn finish(
        mut self,
        finish: Finish,
        bytes_per_token: &dyn Fn(usize) -> u64,
        sink: &mut dyn FnMut(Event<'_>),
    ) -> Finished {
        if finish != Finish::Stop {
            self.piece = self.detokenizer.finish();
            if !self.emit_piece(sink) {
                self.ready_text.clear();
                self.stop.finish(&mut self.ready_text);
                self.emit(sink);
            }
        }
        let figures = self.figures(bytes_per_token);
        let tokens = self.session.tokens[self.recalled.prompt_tokens..].to_vec();
        let seed = self.sampler.seed();
        let outcome = Outcome { text: self.text, tokens, finish, seed, figures };
        Finished { session: self.session, result: Ok(outcome) }
    }

    /// Ends the reply with an error.
    pub fn fail(self, error: EngineError) -> Finished {
        Finished { session: self.session, result: Err(error) }
    }

    fn figures(&self, bytes_per_token: &dyn Fn(usize) -> u64) -> Figures {
        let Clock { submitted, started, first_token, last_token } = self.clock;
        let between = |a: Option<Instant>, b: Option<Instant>| match (a, b) {
            (Some(a), Some(b)) => micros(b.saturating_duration_since(a)),
            _ => 0,
        };
        let generated_tokens = self.generated();
        // Each decode step ran one sampled token; the prompt's last token gave the first.
        let decode_steps = self.session.ready.saturating_sub(self.recalled.prompt_tokens);
        let middle = self.recalled.prompt_tokens + decode_steps / 2;
        let mut figures = Figures {
            prefill_micros: between(started, first_token),
            generated_tokens,
            decode_steps,
            decode_micros: between(first_token, last_token),
            first_token_micros: between(Some(submitted), first_token),
            decode_bytes: if decode_steps > 0 {
                bytes_per_token(middle).saturating_mul(decode_steps as u64)
            } else {
                0
            },
            ..Figures::default()
        };
        self.recalled.figures(&mut figures);
        figures
    }
}

/// Room reserved per token of text: more than natural language needs.
const TEXT_BYTES: usize = 8;

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}
