//! Text in, tokens out, and back: vocabularies and encoders (`Tokenizer`), a streaming detokenizer that never
//! emits half a character (`Detokenizer`), and chat templates under budgets (`ChatTemplate`).
//!
//! Everything read here is untrusted (model metadata, tokenizer.json, template source): sizes are limited
//! ([`TokenizerLimits`], [`TemplateLimits`]) and a bad input is a [`TextError`], never a panic.
//! This crate must not know tensors, sampling or HTTP.
#![forbid(unsafe_code)]

mod assemble;
mod chat;
mod detokenizer;
mod error;
mod gguf;
mod json;
mod limits;
mod pretokenizer;
mod template;
mod tokenizer;
mod vocab;

pub use chat::{ChatInput, Message};
pub use detokenizer::Detokenizer;
pub use error::{Result, TextError};
pub use limits::{TemplateLimits, TokenizerLimits};
pub use template::{CHATML, ChatTemplate};
pub use tokenizer::{Special, Tokenizer};
