//! Text in, tokens out, and back: vocabularies and encoders (`Tokenizer`), a streaming detokenizer that never
//! emits half a character (`Detokenizer`), and chat templates under budgets (`ChatTemplate`).
//!
//! Everything read here is untrusted (model metadata, tokenizer.json, template source): sizes are limited
//! ([`TokenizerLimits`], [`TemplateLimits`]) and a bad input is a [`TextError`], never a panic.
//! This crate must not know tensors, sampling or HTTP.
#![forbid(unsafe_code)]

mod assemble;
mod charsmap;
mod chat;
mod detokenizer;
mod encoder;
mod error;
mod gguf;
mod index;
mod json;
mod limits;
mod normalizer;
mod pretokenizer;
mod splitter;
mod spm;
mod template;
mod tokenizer;
mod unigram;
mod vocab;

pub use chat::{ChatInput, Message};
pub use detokenizer::Detokenizer;
pub use error::{Result, TextError};
pub use limits::{TemplateLimits, TokenizerLimits};
pub use template::{CHATML, ChatTemplate};
pub use tokenizer::{Special, Tokenizer};
