//! What a chat template is given: messages and switches. Plain data with serde; knows nothing of templates.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// One message of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool` (templates may know more).
    pub role: String,
    /// The text. A JSON `null` or an absent field (an assistant that only calls tools) reads as empty.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub content: String,
    /// Everything else a template may look at: `name`, `tool_calls`, `tool_call_id`, `reasoning_content`, ...
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

fn null_is_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

impl Message {
    /// A message with nothing but a role and a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into(), extra: Map::new() }
    }

    /// A system message.
    pub fn system(content: impl Into<String>) -> Message {
        Message::new("system", content)
    }

    /// A user's message.
    pub fn user(content: impl Into<String>) -> Message {
        Message::new("user", content)
    }

    /// The model's answer.
    pub fn assistant(content: impl Into<String>) -> Message {
        Message::new("assistant", content)
    }
}

/// The variables of one rendering, as Hugging Face's `apply_chat_template` names them.
#[derive(Debug, Clone, Default)]
pub struct ChatInput<'a> {
    /// The conversation, oldest first.
    pub messages: &'a [Message],
    /// Whether the prompt shall end with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Text of the begin-of-sequence token, empty if there is none.
    pub bos_token: &'a str,
    /// Text of the end-of-sequence token, empty if there is none.
    pub eos_token: &'a str,
    /// JSON schemas of the tools, as a JSON array.
    pub tools: Option<&'a Value>,
    /// More variables (`enable_thinking`, `date_string`, ...). They may not replace the ones above.
    pub extra: Map<String, Value>,
}
