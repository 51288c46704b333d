//! Answers in OpenAI's shapes: one completion, or the chunks of a stream. It must not know how they are sent.

use std::time::{SystemTime, UNIX_EPOCH};

use hob_engine::{Figures, Finish, Outcome};
use serde_json::{Value, json};

/// What all parts of one answer have in common.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    id: String,
    created: u64,
    model: String,
}

impl Head {
    /// `serial` tells the answers of this process apart.
    pub fn new(serial: u64, model: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let id = format!("chatcmpl-{:x}{serial:08x}", now.as_micros());
        Head { id, created: now.as_secs(), model: model.to_owned() }
    }

    /// The whole answer.
    pub fn completion(&self, outcome: &Outcome) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": outcome.text, "refusal": null},
                "logprobs": null,
                "finish_reason": finish_reason(outcome.finish),
            }],
            "usage": usage(&outcome.figures),
        })
    }

    /// One chunk with a single choice.
    pub fn chunk(&self, delta: Value, finish: Option<Finish>) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [{
                "index": 0,
                "delta": delta,
                "logprobs": null,
                "finish_reason": finish.map(finish_reason),
            }],
        })
    }

    /// The last chunk where usage was asked for: no choices.
    pub fn usage_chunk(&self, figures: &Figures) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [],
            "usage": usage(figures),
        })
    }
}

fn usage(figures: &Figures) -> Value {
    json!({
        "prompt_tokens": figures.prompt_tokens,
        "completion_tokens": figures.generated_tokens,
        "total_tokens": figures.prompt_tokens + figures.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": figures.cached_tokens()},
    })
}

fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::EndToken | Finish::Cancelled => "stop",
        Finish::Length | Finish::Context => "length",
    }
}
