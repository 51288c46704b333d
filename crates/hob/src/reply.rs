//! One reply: sampling flags to a request, text to stdout, figures to people. What `run` and `chat` share.

use std::time::Instant;

use anyhow::Result;
use hob_engine::{Cancel, EngineError, Event, Figures, Finish, Outcome, Prompt, Request, Sampling, Session};
use hob_plan::Plan;
use hob_plan::units::{show_bytes, show_count, show_figures};

use crate::args::SamplingArgs;
use crate::exit::TooLong;
use crate::house::{House, Loaded};
use crate::term::{Answer, LateBar, Unit};

/// The engine's defaults with what the user gave.
pub fn sampling(args: &SamplingArgs) -> Sampling {
    let default = Sampling::default();
    Sampling {
        temperature: args.temp.unwrap_or(default.temperature),
        top_k: args.top_k.unwrap_or(default.top_k),
        typical_p: args.typical.unwrap_or(default.typical_p),
        top_p: args.top_p.unwrap_or(default.top_p),
        min_p: args.min_p.unwrap_or(default.min_p),
        repeat_penalty: args.repeat_penalty.unwrap_or(default.repeat_penalty),
        seed: args.seed.or(default.seed),
        ..default
    }
}

pub fn request(prompt: Prompt, sampling: &Sampling, args: &SamplingArgs) -> Request {
    Request {
        sampling: sampling.clone(),
        max_tokens: args.max_tokens.unwrap_or(usize::MAX),
        stop: args.stop.clone(),
        ..Request::new(prompt)
    }
}

/// What came of a reply.
pub struct Reply {
    pub outcome: Outcome,
    /// From the given moment to the first text.
    pub first_text_seconds: Option<f64>,
    /// Whether Ctrl-C ended it (and not a closed pipe).
    pub interrupted: bool,
}

/// Generates to stdout. A reader that goes away ends the reply; Ctrl-C does too and what came is kept.
///
/// # Errors
/// What the engine says; nothing was written then, or part of the reply.
pub fn stream(
    house: &House,
    loaded: &mut Loaded,
    session: &mut Session,
    request: &Request,
    answer: &mut Answer,
    since: Instant,
) -> Result<Reply> {
    let graceful = house.interrupt.graceful();
    let cancel = Cancel::from(graceful.flag());
    let mut first = None;
    let mut bar = LateBar::new("reading the prompt", Unit::Tokens);
    let outcome = loaded.engine.generate_events(session, request, &cancel, &mut |event| match event {
        Event::Prefill { ready, of } => bar.set(ready as u64, of as u64),
        Event::Text(text) => {
            bar.clear();
            first.get_or_insert_with(|| since.elapsed().as_secs_f64());
            answer.write(text);
            if answer.is_closed() {
                cancel.cancel();
            }
        }
        Event::Done(_) => {}
    });
    let outcome = outcome.map_err(|error| explain(error, &loaded.plan))?;
    let interrupted = graceful.was_interrupted() && !answer.is_closed();
    Ok(Reply { outcome, first_text_seconds: first, interrupted })
}

/// A prompt that is too long hears what would hold it.
fn explain(error: EngineError, plan: &Plan) -> anyhow::Error {
    match error {
        EngineError::PromptTooLong { prompt_tokens, .. } => {
            TooLong { advice: plan.longer(prompt_tokens), source: error }.into()
        }
        other => other.into(),
    }
}

/// Why the reply ended, where that is not plain.
pub fn ending(outcome: &Outcome, ctx_tokens: usize) -> Option<String> {
    match outcome.finish {
        Finish::Stop | Finish::EndToken => None,
        Finish::Length => {
            Some(format!("ended after {} tokens (--max-tokens)", outcome.figures.generated_tokens))
        }
        Finish::Context => Some(format!(
            "ended because the context of {} tokens is full; --ctx makes it larger",
            show_count(ctx_tokens as u64)
        )),
        Finish::Cancelled => Some("interrupted".to_string()),
    }
}

/// How much of the prompt did not have to be computed: held in memory, or restored from disk and in which time.
fn reused(f: &Figures) -> String {
    let count = |n: usize| show_count(n as u64);
    let seconds = |micros: u64| show_figures(micros as f64 / 1e6);
    let mut parts = Vec::new();
    if f.reused_tokens > 0 {
        parts.push(format!("{} reused", count(f.reused_tokens)));
    }
    if f.restored_tokens > 0 {
        parts.push(format!(
            "{} restored from disk in {} s where computing takes about {} s",
            count(f.restored_tokens),
            seconds(f.restore_micros),
            seconds(f.recompute_estimate_micros)
        ));
    }
    if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
}

/// What was measured, in one or two lines.
pub fn figures(loaded: &Loaded, reply: &Reply) -> String {
    let f = &reply.outcome.figures;
    let mut parts = vec![format!("prompt {} tokens", show_count(f.prompt_tokens as u64))];
    parts[0].push_str(&reused(f));
    if let Some(rate) = f.prefill_tokens_per_second() {
        parts[0].push_str(&format!(" at {} tok/s", show_figures(rate)));
    }
    let mut answer = format!("answer {} tokens", show_count(f.generated_tokens as u64));
    if let Some(rate) = f.decode_tokens_per_second() {
        answer.push_str(&format!(" at {} tok/s", show_figures(rate)));
    }
    // Devices that share the work have no limit in common.
    let limit = match &loaded.plan.gpu {
        None => loaded.machine.read_gb_per_s(loaded.plan.threads),
        Some(gpu) if gpu.whole() => gpu.rates.map_or(0.0, |rates| rates.read_gb_per_s),
        Some(_) => 0.0,
    };
    if let Some(rate) = f.decode_gb_per_second()
        && limit > 0.0
    {
        let share = rate / limit * 100.0;
        answer.push_str(&format!(", {} GB/s = {share:.0} % of the read limit", show_figures(rate)));
    }
    if let Some(gpu) = &loaded.plan.gpu {
        answer.push_str(&format!(", on {}{}", gpu.adapter, if gpu.whole() { "" } else { " and the CPU" }));
    }
    parts.push(answer);
    if let Some(seconds) = reply.first_text_seconds {
        parts.push(format!("first text after {} s", show_figures(seconds)));
    }
    if let Some(bytes) = hob_plan::peak_bytes() {
        parts.push(format!("peak memory {}", show_bytes(bytes)));
    }
    parts.join("; ")
}
