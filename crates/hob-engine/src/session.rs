//! One timeline: the tokens so far and how many of them the model's state already holds.
//!
//! Callers always hand over the full prefix; no caller manages positions. It must not know batches.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hob_compute::PAGE_POSITIONS;
use hob_model::SeqId;
use hob_text::{ChatInput, ChatTemplate, Message, Special, TextError, Tokenizer};

use crate::chains::{Chains, Spelling};
use crate::error::{EngineError, Result};
use crate::request::{Prompt, Segment};

/// What an engine, its sessions and its front share.
pub(crate) struct Shared {
    pub tokenizer: Tokenizer,
    /// The reason if there is none.
    pub template: std::result::Result<ChatTemplate, Arc<TextError>>,
    pub vocab: usize,
    pub ctx_tokens: usize,
    /// Chains of tokens that were run or stored, found again by their text.
    pub chains: Mutex<Chains>,
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

    /// The tokens of a prompt, with the beginning-of-sequence token if the model wants one and the text has none. A
    /// prompt of text alone begins with the longest known chain that spells the same: what was sampled stays what it
    /// was, however its text would be tokenized today.
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
        if prompt.segments.iter().all(|s| matches!(s, Segment::Text(_))) {
            tokens = self.chains().replay(tokens, tokenizer);
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

    pub(crate) fn chains(&self) -> MutexGuard<'_, Chains> {
        self.0.chains.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spelling for Tokenizer {
    fn bytes(&self, token: u32) -> &[u8] {
        self.token_bytes(token)
    }

    fn is_special(&self, token: u32) -> bool {
        Tokenizer::is_special(self, token)
    }
}

/// One timeline. Dropping it gives its memory back to the engine, which remembers what it held.
pub struct Session {
    pub(crate) front: Front,
    /// `None` only while the session is lent to a running job.
    pub(crate) sequence: Option<SeqId>,
    pub(crate) tokens: Vec<u32>,
    /// `tokens[..ready]` are in the model's state; at least one token is not.
    pub(crate) ready: usize,
    pub(crate) stored: Stored,
}

/// How far the timeline is safe outside the sequence.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Leading tokens whose image is on disk or on its way there.
    pub tokens: usize,
    /// The writer's epoch in which that was true.
    pub epoch: u64,
    /// Leading tokens in sealed pages.
    pub sealed: usize,
}

impl Session {
    pub(crate) fn new(front: Front, sequence: Option<SeqId>) -> Self {
        let tokens = Vec::with_capacity(if sequence.is_some() { front.ctx_tokens() + 1 } else { 0 });
        Session { front, sequence, tokens, ready: 0, stored: Stored::default() }
    }

    /// The timeline: last prompt and reply.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Leading tokens whose state is held.
    pub fn ready_tokens(&self) -> usize {
        self.ready
    }

    /// Makes `tokens` the timeline, of which the sequence holds the first `ready`.
    pub(crate) fn set(&mut self, tokens: &[u32], ready: usize) {
        let common = self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        self.stored.tokens = self.stored.tokens.min(common);
        self.stored.sealed = ready - ready % PAGE_POSITIONS;
        self.tokens.clear();
        self.tokens.extend_from_slice(tokens);
        self.ready = ready;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(sequence) = self.sequence.take() {
            self.front.0.released.lock().unwrap_or_else(PoisonError::into_inner).push(sequence);
        }
    }
}
