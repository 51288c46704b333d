//! What a caller asks for: prompt, sampling, limits, and the flag that stops it. It must not know how it is run.
//!
//! Every numeric field has a range, checked by [`Request::validate`]; the error names the field, the value and the range.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{EngineError, Result};

/// One piece of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Text, tokenized with special tokens recognized (a rendered chat template).
    Text(String),
    /// Tokens as they are: what the model itself sampled stays what it sampled.
    Tokens(Vec<u32>),
}

/// The **full** prefix of a timeline, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    pub segments: Vec<Segment>,
}

impl Prompt {
    pub fn text(text: impl Into<String>) -> Self {
        Prompt { segments: vec![Segment::Text(text.into())] }
    }

    pub fn tokens(tokens: impl Into<Vec<u32>>) -> Self {
        Prompt { segments: vec![Segment::Tokens(tokens.into())] }
    }
}

/// The sampler chain's settings, in the order in which they act.
///
/// Default: temperature 0.7, top-k 40, top-p 0.95, min-p 0.05, no penalties, no bias, a fresh seed. With these the
/// device's top-k suffices and no full row of logits is read.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides positive and multiplies negative logits of recent tokens (CTRL, arXiv:1909.05858); 1 is off.
    pub repeat_penalty: f32,
    /// How many of the last tokens, prompt included, the three penalties look at; 0 is none.
    pub repeat_last_n: usize,
    /// Subtracted once per occurrence among the recent tokens; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted once if the token is among the recent ones; 0 is off.
    pub presence_penalty: f32,
    /// Added to single logits: (token id, bias).
    pub logit_bias: Vec<(u32, f32)>,
    /// Keep the k largest logits (ties: lowest id); 0 is off.
    pub top_k: usize,
    /// Locally typical sampling: keep the smallest set of tokens that reaches this probability, those first whose
    /// information content is closest to the row's entropy; 1 is off (arXiv:2202.00666).
    pub typical_p: f32,
    /// Keep the smallest set of most probable tokens that reaches this probability; 1 is off (arXiv:1904.09751).
    pub top_p: f32,
    /// Drop tokens less probable than this share of the most probable one; 0 is off (arXiv:2407.01082).
    pub min_p: f32,
    /// Divides the remaining logits before the draw; 0 takes the largest (ties: lowest id).
    pub temperature: f32,
    /// Seed of the draws; `None` takes a fresh one, reported in the outcome.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            top_k: 40,
            typical_p: 1.0,
            top_p: 0.95,
            min_p: 0.05,
            temperature: 0.7,
            seed: None,
        }
    }
}

impl Sampling {
    /// Always the largest logit.
    pub fn greedy() -> Self {
        Sampling { temperature: 0.0, ..Self::default() }
    }

    /// Whether any penalty changes a logit.
    pub(crate) fn penalizes(&self) -> bool {
        self.repeat_last_n > 0
            && (self.repeat_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0)
    }

    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`EngineError::Field`] naming the first field outside its range, its value and the range.
    pub fn validate(&self, vocab: usize) -> Result<()> {
        float("repeat_penalty", self.repeat_penalty, 0.01, 10.0)?;
        whole("repeat_last_n", self.repeat_last_n, 0, 65_536)?;
        float("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        float("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        whole("logit_bias (entries)", self.logit_bias.len(), 0, MAX_BIASES)?;
        for &(token, bias) in &self.logit_bias {
            if token as usize >= vocab {
                let expected = format!("token ids below {vocab} (the vocabulary)");
                return Err(EngineError::Field { field: "logit_bias", expected, found: token.to_string() });
            }
            float("logit_bias", bias, -100.0, 100.0)?;
        }
        whole("top_k", self.top_k, 0, 1 << 30)?;
        float("typical_p", self.typical_p, 0.0, 1.0)?;
        float("top_p", self.top_p, 0.0, 1.0)?;
        float("min_p", self.min_p, 0.0, 1.0)?;
        float("temperature", self.temperature, 0.0, 10.0)
    }
}

/// Most entries of a `logit_bias`.
pub const MAX_BIASES: usize = 4096;
/// Most stop strings of a request.
pub const MAX_STOPS: usize = 16;
/// Most bytes of one stop string: as much text as may have to be held back.
pub const MAX_STOP_BYTES: usize = 512;

fn float(field: &'static str, value: f32, low: f32, high: f32) -> Result<()> {
    // Written so that NaN fails.
    if value >= low && value <= high {
        return Ok(());
    }
    Err(EngineError::Field {
        field,
        expected: format!("a number from {low} to {high}"),
        found: value.to_string(),
    })
}

fn whole(field: &'static str, value: usize, low: usize, high: usize) -> Result<()> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    let expected = format!("a whole number from {low} to {high}");
    Err(EngineError::Field { field, expected, found: value.to_string() })
}

/// One reply to produce.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub prompt: Prompt,
    pub sampling: Sampling,
    /// Most tokens of the reply, at least 1; the context may end it earlier.
    pub max_tokens: usize,
    /// The reply ends before the first of these; the stop string itself is not part of it.
    pub stop: Vec<String>,
    /// Treat end tokens as ordinary ones (benchmarks).
    pub ignore_eos: bool,
}

impl Request {
    /// A request with default sampling and no limit but the context.
    pub fn new(prompt: Prompt) -> Self {
        Request {
            prompt,
            sampling: Sampling::default(),
            max_tokens: usize::MAX,
            stop: Vec::new(),
            ignore_eos: false,
        }
    }

    /// Checks every field but the prompt against its range.
    ///
    /// # Errors
    /// [`EngineError::Field`] naming the field, its value and the range.
    pub fn validate(&self, vocab: usize) -> Result<()> {
        self.sampling.validate(vocab)?;
        whole("max_tokens", self.max_tokens, 1, usize::MAX)?;
        whole("stop (entries)", self.stop.len(), 0, MAX_STOPS)?;
        for stop in &self.stop {
            whole("stop (bytes of one string)", stop.len(), 1, MAX_STOP_BYTES)?;
        }
        Ok(())
    }
}

/// A flag that stops one request; clones share it. Looked at before every step.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl From<Arc<AtomicBool>> for Cancel {
    /// Shares a flag that somebody else sets, for example a signal handler.
    fn from(flag: Arc<AtomicBool>) -> Self {
        Cancel(flag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Set = fn(&mut Sampling, f32);

    const FLOATS: [(&str, Set, f32, f32); 7] = [
        ("repeat_penalty", |s, v| s.repeat_penalty = v, 0.01, 10.0),
        ("frequency_penalty", |s, v| s.frequency_penalty = v, -2.0, 2.0),
        ("presence_penalty", |s, v| s.presence_penalty = v, -2.0, 2.0),
        ("typical_p", |s, v| s.typical_p = v, 0.0, 1.0),
        ("top_p", |s, v| s.top_p = v, 0.0, 1.0),
        ("min_p", |s, v| s.min_p = v, 0.0, 1.0),
        ("temperature", |s, v| s.temperature = v, 0.0, 10.0),
    ];

    #[test]
    fn every_float_field_names_itself_outside_its_range() {
        for (name, set, low, high) in FLOATS {
            let with = |v: f32| {
                let mut s = Sampling::default();
                set(&mut s, v);
                s.validate(10)
            };
            assert!(with(low).is_ok() && with(high).is_ok(), "{name} at its limits");
            for bad in [low - 0.01, high + 0.01, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let message = with(bad).unwrap_err().to_string();
                assert!(message.starts_with(name), "{message}");
                assert!(message.contains(&high.to_string()), "{message} should show the range");
                assert!(message.contains(&bad.to_string()), "{message} should show the value");
            }
        }
    }

    #[test]
    fn whole_fields_and_lists_are_checked() {
        let base = || Request::new(Prompt::text("x"));
        let check = |field: &str, change: &dyn Fn(&mut Request)| {
            let mut r = base();
            change(&mut r);
            let message = r.validate(10).unwrap_err().to_string();
            assert!(message.starts_with(field), "{message}");
        };
        assert!(base().validate(10).is_ok());
        check("max_tokens", &|r| r.max_tokens = 0);
        check("stop", &|r| r.stop = vec![String::new()]);
        check("stop", &|r| r.stop = vec!["x".repeat(MAX_STOP_BYTES + 1)]);
        check("stop", &|r| r.stop = vec!["x".into(); MAX_STOPS + 1]);
        check("repeat_last_n", &|r| r.sampling.repeat_last_n = 65_537);
        check("top_k", &|r| r.sampling.top_k = usize::MAX);
        check("logit_bias", &|r| r.sampling.logit_bias = vec![(10, 0.0)]);
        check("logit_bias", &|r| r.sampling.logit_bias = vec![(9, 100.5)]);
        check("logit_bias", &|r| r.sampling.logit_bias = vec![(0, 1.0); MAX_BIASES + 1]);
    }

    #[test]
    fn clones_of_a_cancel_share_the_flag() {
        let flag = Arc::new(AtomicBool::new(false));
        let a = Cancel::from(Arc::clone(&flag));
        let b = a.clone();
        assert!(!b.is_cancelled());
        flag.store(true, Ordering::Relaxed);
        assert!(a.is_cancelled() && b.is_cancelled());
    }
}
