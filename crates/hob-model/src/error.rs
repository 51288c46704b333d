//! The crate's one error enum: what was expected, what was found, where, and what to do.

use std::path::PathBuf;

pub type Result<T> = std::result::Result<T, ModelError>;

/// Everything that can go wrong between a model file and its logits.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(transparent)]
    File(#[from] hob_files::FileError),
    #[error(transparent)]
    Compute(#[from] hob_compute::ComputeError),
    /// The file names an architecture without an entry in the registry.
    #[error("unknown architecture '{found}' in {path}; hob knows {known}: choose a model of one of these", path = .path.display())]
    UnknownArchitecture { found: String, known: String, path: PathBuf },
    /// A key of the config (GGUF metadata or config.json) is missing, malformed or asks for what hob does not compute.
    #[error("config key '{key}': expected {expected}, found {found}")]
    Config { key: String, expected: String, found: String },
    #[error(
        "tensor '{name}' is missing (expected [{rows}, {cols}]); the file is incomplete or not a {arch} model: fetch it again"
    )]
    MissingTensor { name: String, rows: usize, cols: usize, arch: String },
    #[error(
        "tensor '{name}': expected shape {expected}, found {found}; the config and the weights are not of one model"
    )]
    TensorShape { name: String, expected: String, found: String },
    #[error("tensor '{name}': expected {expected}, found {found}; convert the file to a supported type")]
    TensorFormat { name: String, expected: String, found: String },
    #[error("tensor '{name}': {problem}")]
    Tensor { name: String, problem: String },
    #[error("layout: expected {expected}, found {found}")]
    Layout { expected: String, found: String },
    /// A sequence would outgrow the context the layout reserved.
    #[error(
        "the context holds {ctx_tokens} tokens, but the sequence would need {needed}; shorten the prompt or load with a larger context"
    )]
    ContextOverflow { needed: usize, ctx_tokens: usize },
    #[error("all {sequences} sequences of the layout are in use; free one or load with more sequences")]
    SequencesTaken { sequences: usize },
    #[error("{sequence} is not in use: it was freed, or belongs to another model")]
    UnknownSequence { sequence: String },
    /// Recurrent state cannot be rolled back, nor can a window see what has left it.
    #[error(
        "the model's state of {held} tokens cannot go back to {wanted}: what it would need there is no longer held; resume a kept prefix, or truncate to 0 and feed the tokens again"
    )]
    Rollback { held: usize, wanted: usize },
    /// Pages or state of a sequence that are asked for or given do not fit what it holds.
    #[error("image of a sequence: expected {expected}, found {found}")]
    Image { expected: String, found: String },
    #[error("batch: expected {expected}, found {found}")]
    Batch { expected: String, found: String },
}

impl ModelError {
    pub(crate) fn config(key: impl ToString, expected: impl ToString, found: impl ToString) -> Self {
        Self::Config { key: key.to_string(), expected: expected.to_string(), found: found.to_string() }
    }

    pub(crate) fn layout(expected: impl ToString, found: impl ToString) -> Self {
        Self::Layout { expected: expected.to_string(), found: found.to_string() }
    }

    pub(crate) fn image(expected: impl ToString, found: impl ToString) -> Self {
        Self::Image { expected: expected.to_string(), found: found.to_string() }
    }

    pub(crate) fn batch(expected: impl ToString, found: impl ToString) -> Self {
        Self::Batch { expected: expected.to_string(), found: found.to_string() }
    }
}
