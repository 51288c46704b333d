//! The crate's one error enum. A message says what was expected, what was found, where, and what to do.

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, TextError>;

/// What can go wrong with a vocabulary, a tokenizer file or a chat template.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The vocabulary family of a GGUF file is not one that hob encodes.
    #[error(
        "tokenizer.ggml.model is \"{found}\", but hob encodes only \"gpt2\" and \"gemma4\" (BPE with merge rules), \
         \"llama\" (SentencePiece) and \"t5\" (unigram); use a GGUF of a model with such a vocabulary"
    )]
    UnsupportedModel {
        /// The value of `tokenizer.ggml.model`.
        found: String,
    },
    /// The pre-tokenizer name of a GGUF file is not known here.
    #[error(
        "tokenizer.ggml.pre is \"{found}\", but hob knows only {supported}; \
         splitting text with the wrong rules would quietly degrade every answer"
    )]
    UnsupportedPre {
        /// The value of `tokenizer.ggml.pre`.
        found: String,
        /// The names that would have been accepted.
        supported: String,
    },
    /// A required metadata key is absent.
    #[error("metadata key \"{key}\" is missing; {hint}")]
    MissingKey {
        /// The key.
        key: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// A metadata key has the wrong type, or the file could not be read as a model.
    #[error(transparent)]
    File(#[from] hob_files::FileError),
    /// A tokenizer file could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The vocabulary contradicts itself.
    #[error("vocabulary: {0}")]
    Vocabulary(String),
    /// A count or size exceeds [`crate::TokenizerLimits`].
    #[error("vocabulary: {what} is {found}, the limit is {limit} (TokenizerLimits::{field})")]
    TooLarge {
        /// What was counted.
        what: &'static str,
        /// The value found.
        found: u64,
        /// The limit it exceeds.
        limit: u64,
        /// The field of the limits that says so.
        field: &'static str,
    },
    /// A tokenizer.json is malformed or uses a component that hob does not run.
    #[error("tokenizer.json: {0}")]
    Json(String),
    /// The model brings no vocabulary at all.
    #[error("{path} has no tokenizer: expected {expected}")]
    NoTokenizer {
        /// The model's path.
        path: String,
        /// Where a tokenizer was looked for.
        expected: &'static str,
    },
    /// Text could not be encoded.
    #[error("cannot encode text: {0}")]
    Encode(String),
    /// The template source is not valid or uses something that is not supported.
    #[error("chat template: {0}")]
    Template(String),
    /// The template called `raise_exception`.
    #[error("the model's chat template refuses this conversation: {0}")]
    Raised(String),
    /// The template exceeded a budget of [`crate::TemplateLimits`].
    #[error("chat template exceeds its budget: {what} (TemplateLimits::{field})")]
    Budget {
        /// What was exhausted, with the numbers.
        what: String,
        /// The field of the limits that says so.
        field: &'static str,
    },
    /// No chat template, and the vocabulary offers no fallback.
    #[error(
        "this model has no chat template, and nothing in its file says that it was tuned for conversation; \
         it is probably a base model: pass --raw to continue a text instead of chatting"
    )]
    NoTemplate,
}
