//! The meaning of a chat request: defaults, ranges, roles and contents, as one checked value. It must not know HTTP.
//!
//! Unknown fields are ignored, tools too; what would change the answer and is not supported (`n` > 1, image parts,
//! `logprobs`, a `response_format` other than text) is an error naming the field.

use hob_engine::{MAX_STOPS, Prompt, Request, Sampling};
use hob_text::Message;

use crate::api_error::ApiError;
use crate::json::{Content, Fields, MessageIn, read};

/// A checked chat request.
#[derive(Debug)]
pub(crate) struct Chat {
    pub messages: Vec<Message>,
    /// All but the prompt; its own ranges are checked by `Request::validate`.
    pub request: Request,
    pub stream: bool,
    pub include_usage: bool,
}

/// What counts where a request is silent.
pub(crate) struct Defaults {
    pub sampling: Sampling,
    pub max_tokens: usize,
}

/// Reads a body.
pub(crate) fn parse(body: &[u8], defaults: &Defaults) -> Result<Chat, ApiError> {
    let fields = read(body).map_err(|e| match e.field {
        Some(field) => ApiError::field(field, format!("{field}: {}", e.message)),
        None => ApiError::new(
            axum::http::StatusCode::BAD_REQUEST,
            format!("the body is not a chat request: {}", e.message),
        ),
    })?;
    refuse_unsupported(&fields)?;
    let messages = messages(&fields)?;
    let sampling = sampling(&fields, &defaults.sampling)?;
    let max_tokens = max_tokens(&fields, defaults.max_tokens)?;
    let stop = fields.stop.map(|s| s.0).unwrap_or_default();
    if stop.len() > MAX_STOPS {
        let message = format!("stop: expected at most {MAX_STOPS} strings, found {}", stop.len());
        return Err(ApiError::field("stop", message));
    }
    let ignore_eos = fields.ignore_eos.unwrap_or(false);
    Ok(Chat {
        messages,
        request: Request { prompt: Prompt::default(), sampling, max_tokens, stop, ignore_eos },
        stream: fields.stream.unwrap_or(false),
        include_usage: fields.stream_options.and_then(|o| o.include_usage).unwrap_or(false),
    })
}

fn refuse_unsupported(fields: &Fields) -> Result<(), ApiError> {
    if let Some(n) = fields.n.filter(|&n| n != 1) {
        return Err(ApiError::field("n", format!("n: expected 1 (one reply per request), found {n}")));
    }
    if fields.logprobs == Some(true) {
        return Err(ApiError::field("logprobs", "logprobs: expected false (not supported yet), found true"));
    }
    if let Some(format) = fields.response_format.as_ref().filter(|f| f.kind != "text") {
        let message = format!(
            "response_format.type: expected \"text\" (others are not supported yet), found {:?}",
            format.kind
        );
        return Err(ApiError::field("response_format", message));
    }
    Ok(())
}

fn messages(fields: &Fields) -> Result<Vec<Message>, ApiError> {
    let given = fields.messages.as_ref().map_or(&[][..], |m| &m.0);
    if given.is_empty() {
        return Err(ApiError::field("messages", "messages: expected at least one message, found none"));
    }
    given.iter().enumerate().map(|(i, m)| message(i, m)).collect()
}

fn message(index: usize, given: &MessageIn) -> Result<Message, ApiError> {
    let role = match given.role.as_str() {
        "developer" => "system",
        role @ ("system" | "user" | "assistant" | "tool") => role,
        other => {
            let param = format!("messages[{index}].role");
            let message =
                format!("{param}: expected system, developer, user, assistant or tool, found {other:?}");
            return Err(ApiError::field(param, message));
        }
    };
    let text = match &given.content {
        None => String::new(),
        Some(Content::Text(text)) => text.clone(),
        Some(Content::Parts(parts)) => {
            let mut texts = Vec::with_capacity(parts.0.len());
            for (p, part) in parts.0.iter().enumerate() {
                let param = format!("messages[{index}].content[{p}]");
                match (part.kind.as_str(), &part.text) {
                    ("text", Some(text)) => texts.push(text.as_str()),
                    ("text", None) => {
                        let message = format!("{param}.text: expected a string, found nothing");
                        return Err(ApiError::field(param, message));
                    }
                    (other, _) => {
                        let message = format!(
                            "{param}.type: expected \"text\" (this model reads text only), found {other:?}"
                        );
                        return Err(ApiError::field(param, message));
                    }
                }
            }
            texts.join("\n")
        }
    };
    Ok(Message::new(role, text))
}

fn max_tokens(fields: &Fields, default: usize) -> Result<usize, ApiError> {
    let (name, given) = match (fields.max_completion_tokens, fields.max_tokens) {
        (Some(n), _) => ("max_completion_tokens", n),
        (None, Some(n)) => ("max_tokens", n),
        (None, None) => return Ok(default),
    };
    if given == 0 {
        return Err(ApiError::field(name, format!("{name}: expected a whole number of at least 1, found 0")));
    }
    Ok(usize::try_from(given).unwrap_or(usize::MAX))
}

fn sampling(fields: &Fields, default: &Sampling) -> Result<Sampling, ApiError> {
    // Narrowing keeps what is outside a range outside: too large becomes infinite.
    let float = |given: Option<f64>, default: f32| given.map_or(default, |v| v as f32);
    let top_k = match fields.top_k {
        None => default.top_k,
        // Off is written 0 or -1.
        Some(-1) => 0,
        Some(k) => usize::try_from(k).map_err(|_| {
            ApiError::field(
                "top_k",
                format!("top_k: expected a whole number from -1 to {}, found {k}", 1 << 30),
            )
        })?,
    };
    let repeat_last_n = match fields.repeat_last_n {
        None => default.repeat_last_n,
        Some(n) => usize::try_from(n).unwrap_or(usize::MAX),
    };
    let logit_bias = match &fields.logit_bias {
        None => default.logit_bias.clone(),
        Some(biases) => biases.0.iter().map(|&(token, bias)| (token, bias as f32)).collect(),
    };
    Ok(Sampling {
        repeat_penalty: float(fields.repeat_penalty.or(fields.repetition_penalty), default.repeat_penalty),
        repeat_last_n,
        frequency_penalty: float(fields.frequency_penalty, default.frequency_penalty),
        presence_penalty: float(fields.presence_penalty, default.presence_penalty),
        logit_bias,
        top_k,
        typical_p: float(fields.typical_p, default.typical_p),
        top_p: float(fields.top_p, default.top_p),
        min_p: float(fields.min_p, default.min_p),
        temperature: float(fields.temperature, default.temperature),
        seed: fields.seed.as_ref().map(|s| s.0).or(default.seed),
    })
}

#[cfg(test)]
mod tests;
