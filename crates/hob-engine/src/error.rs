//! The crate's error: what was expected, what was found, and what to do about it.
//!
//! Errors are cheap to clone because one failed step may end several sessions.

use std::sync::Arc;

pub type Result<T> = std::result::Result<T, EngineError>;

/// Everything that can go wrong between a prompt and its reply.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EngineError {
    #[error(
        "the prompt has {prompt_tokens} tokens, but the context holds {ctx_tokens}; \
         raise it with --ctx {prompt_tokens} or more (memory grows with it), or shorten the prompt"
    )]
    PromptTooLong { prompt_tokens: usize, ctx_tokens: usize },
    #[error("the prompt is empty: expected at least one token; give some text")]
    EmptyPrompt,
    #[error("{field}: expected {expected}, found {found}")]
    Field { field: &'static str, expected: String, found: String },
    #[error("token id {token} is outside the vocabulary of {vocab} tokens")]
    UnknownToken { token: u32, vocab: usize },
    #[error(
        "the model returned logits that are not finite numbers at position {position}; \
         the model file may be damaged: check its hash, or try another quantization"
    )]
    NotFinite { position: usize },
    #[error("the session belongs to another engine, or was lost in an earlier failure; open a new one")]
    ForeignSession,
    #[error("{0} submitted jobs are still running: step them to their end before calling generate")]
    Busy(usize),
    #[error("a step failed unexpectedly ({0}); this reply is lost, the engine goes on")]
    Panic(String),
    #[error("the model and its engine disagree: {0}")]
    Internal(String),
    #[error(transparent)]
    Text(Arc<hob_text::TextError>),
    #[error(transparent)]
    Model(Arc<hob_model::ModelError>),
    #[error(transparent)]
    Disk(Arc<hob_model::disk::DiskError>),
    #[error(transparent)]
    Compute(Arc<hob_compute::ComputeError>),
}

impl EngineError {
    /// Whether the request was at fault, so that trying it again unchanged is useless.
    pub fn is_request(&self) -> bool {
        matches!(
            self,
            Self::PromptTooLong { .. }
                | Self::EmptyPrompt
                | Self::Field { .. }
                | Self::UnknownToken { .. }
                | Self::Text(_)
        )
    }

    /// Whether the device is lost, and with it everything on it.
    pub fn is_lost(&self) -> bool {
        use hob_compute::ComputeError::Lost;
        match self {
            Self::Compute(error) => matches!(**error, Lost { .. }),
            Self::Model(error) => matches!(**error, hob_model::ModelError::Compute(Lost { .. })),
            _ => false,
        }
    }
}

impl From<hob_text::TextError> for EngineError {
    fn from(e: hob_text::TextError) -> Self {
        Self::Text(Arc::new(e))
    }
}

impl From<hob_model::ModelError> for EngineError {
    fn from(e: hob_model::ModelError) -> Self {
        Self::Model(Arc::new(e))
    }
}

impl From<hob_model::disk::DiskError> for EngineError {
    fn from(e: hob_model::disk::DiskError) -> Self {
        Self::Disk(Arc::new(e))
    }
}

impl From<hob_compute::ComputeError> for EngineError {
    fn from(e: hob_compute::ComputeError) -> Self {
        Self::Compute(Arc::new(e))
    }
}
