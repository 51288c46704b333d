//! One timeline: the tokens so far and how many of them the model's state already holds.
//!
//! Callers always hand over the full prefix; no caller manages positions. It must not know batches.

use std::sync::{Arc, Mutex, PoisonError};

use hob_model::SeqId;
use hob_text::{ChatInput, ChatTemplate, Message, Special, TextError, Tokenizer};

use crate::error::{EngineError, Result};
use crate::request::{Prompt, Segment};

/// What an engine, its sessions and its front share.
pub(crate) struct Shared {
    pub tokenizer: Tokenizer,
    /// The reason if there is none.
    pub template: std::result::Result<ChatTemplate, Arc<TextError>>,
    pub vocab: usize,
    pub ctx_tokens: usize,
    /// Whether state can go back to any earlier position; recurrent state can only be kept whole or dropped.
    pub rewinds: bool,
    /// Sequences of dropped sessions, freed by the engine when it next looks.
    pub released: Mutex<Vec<SeqId>>,
}

/// The part of an engine that needs no model: tokenizer, chat template and limits. Cheap to clone, usable from any
/// thread while the engine computes elsewhere.
#[derive(Clone)]
pub struct Front(pub(crate) Arc<Shared>);

impl Front {
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.0.tokenizer
    }

    pub fn template(&self) -> Option<&ChatTemplate> {
        self.0.template.as_ref().ok()
    }

    /// Positions a session may grow to.
    pub fn ctx_tokens(&self) -> usize {
        self.0.ctx_tokens
    }

    /// Logits per row; token ids are below this.
    pub fn vocab(&self) -> usize {
        self.0.vocab
    }

    /// Whether the file brings no chat template and none of a known family fits: it can only continue texts.
    pub fn is_base_model(&self) -> bool {
        matches!(self.0.template.as_ref().map_err(Arc::as_ref), Err(TextError::NoTemplate))
    }

    /// Renders a conversation with the model's chat template, ready for the assistant's turn.
    ///
    /// # Errors
    /// That the model has no usable template, or what the template says (for example about a role).
    pub fn render_chat(&self, messages: &[Message]) -> Result<String> {
        let template = self.0.template.as_ref().map_err(|e| EngineError::Text(Arc::clone(e)))?;
        let tokenizer = &self.0.tokenizer;
        let name = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default();
        let input = ChatInput {
            messages,
            add_generation_prompt: true,
            bos_token: name(tokenizer.bos()),
            eos_token: name(tokenizer.eos()),
            ..ChatInput::default()
        };
        Ok(template.render(&input)?)
    }

    /// The tokens of a prompt, with the beginning-of-sequence token if the model wants one and the text has none.
    ///
    /// # Errors
    /// Empty prompts, token ids outside the vocabulary, more tokens than the context holds.
    pub fn tokenize(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        let tokenizer = &self.0.tokenizer;
        let mut tokens = Vec::new();
        for (index, segment) in prompt.segments.iter().enumerate() {
            match segment {
                Segment::Text(text) if index == 0 => tokens = tokenizer.encode_prompt(text)?,
                Segment::Text(text) => tokens.extend(tokenizer.encode(text, Special::Parse)?),
                Segment::Tokens(part) => tokens.extend_from_slice(part),
            }
        }
        if tokens.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if let Some(&token) = tokens.iter().find(|&&t| t as usize >= self.0.vocab) {
            return Err(EngineError::UnknownToken { token, vocab: self.0.vocab });
        }
        if tokens.len() > self.0.ctx_tokens {
            let (prompt_tokens, ctx_tokens) = (tokens.len(), self.0.ctx_tokens);
            return Err(EngineError::PromptTooLong { prompt_tokens, ctx_tokens });
        }
        Ok(tokens)
    }
}

/// What [`Session::sync`] found.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Synced {
    pub prompt_tokens: usize,
    /// Leading tokens whose state is kept; always less than `prompt_tokens`, so that there are logits to sample.
    pub reused_tokens: usize,
}

/// A part of the timeline as text, and as the tokens the model sampled for it.
struct Piece {
    text: String,
    sampled: Option<Vec<u32>>,
}

/// One timeline. Dropping it gives its memory back to the engine.
pub struct Session {
    pub(crate) front: Front,
    /// `None` only while the session is lent to a running job.
    pub(crate) sequence: Option<SeqId>,
    pub(crate) tokens: Vec<u32>,
    /// `tokens[..ready]` are in the model's state; at least one token is not.
    pub(crate) ready: usize,
    pieces: Vec<Piece>,
}

impl Session {
    pub(crate) fn new(front: Front, sequence: Option<SeqId>) -> Self {
        let tokens = Vec::with_capacity(if sequence.is_some() { front.ctx_tokens() + 1 } else { 0 });
        Session { front, sequence, tokens, ready: 0, pieces: Vec::new() }
    }

    /// The timeline: last prompt and reply.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Leading tokens whose state is held.
    pub fn ready_tokens(&self) -> usize {
        self.ready
    }

    /// Makes `prompt` the timeline and keeps the state of the longest prefix both have in common; with recurrent state,
    /// all of it or nothing.
    ///
    /// # Errors
    /// As [`Front::tokenize`]; the session is unchanged then.
    pub fn sync(&mut self, prompt: &Prompt) -> Result<Synced> {
        let tokens = self.front.tokenize(prompt)?;
        let common = self.tokens[..self.ready].iter().zip(&tokens).take_while(|(a, b)| a == b).count();
        let kept = common.min(tokens.len() - 1);
        self.ready = if kept == self.ready || self.front.0.rewinds { kept } else { 0 };
        self.tokens.clear();
        self.tokens.extend_from_slice(&tokens);
        self.pieces.clear();
        for segment in &prompt.segments {
            self.pieces.push(match segment {
                Segment::Text(text) => Piece { text: text.clone(), sampled: None },
                Segment::Tokens(ids) => {
                    Piece { text: self.front.tokenizer().decode(ids), sampled: Some(ids.clone()) }
                }
            });
        }
        Ok(Synced { prompt_tokens: tokens.len(), reused_tokens: self.ready })
    }

    /// Splits a newly rendered conversation so that replies this session sampled stay the tokens they were, however
    /// their text would be tokenized today. Where the text differs from the past, it is plain text from there on.
    ///
    /// # Errors
    /// What the tokenizer says about the text behind a reply.
    pub fn prompt_for(&self, rendered: &str) -> Result<Prompt> {
        let mut segments = Vec::new();
        let mut rest = rendered;
        // `plain` is text that was recognized but not yet closed by a sampled piece.
        let mut plain = 0;
        for piece in &self.pieces {
            let Some(after) = rest[plain..].strip_prefix(piece.text.as_str()) else { break };
            match &piece.sampled {
                None => plain += piece.text.len(),
                Some(ids) if !ids.is_empty() && self.starts_anew(after)? => {
                    if plain > 0 {
                        segments.push(Segment::Text(rest[..plain].to_owned()));
                    }
                    segments.push(Segment::Tokens(ids.clone()));
                    rest = after;
                    plain = 0;
                }
                Some(_) => break,
            }
        }
        if !rest.is_empty() {
            segments.push(Segment::Text(rest.to_owned()));
        }
        Ok(Prompt { segments })
    }

    /// Records a finished reply as sampled tokens behind the prompt.
    pub(crate) fn record_reply(&mut self, sampled: &[u32]) {
        let text = self.front.tokenizer().decode(sampled);
        self.pieces.push(Piece { text, sampled: Some(sampled.to_vec()) });
    }

    /// Whether `text` is empty or begins with a special token, so that cutting in front of it changes no token.
    fn starts_anew(&self, text: &str) -> Result<bool> {
        let mut end = text.len().min(64);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let tokens = self.front.tokenizer().encode(&text[..end], Special::Parse)?;
        Ok(tokens.first().is_none_or(|&t| self.front.tokenizer().is_special(t)))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(sequence) = self.sequence.take() {
            self.front.0.released.lock().unwrap_or_else(PoisonError::into_inner).push(sequence);
        }
    }
}
