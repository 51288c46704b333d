//! One error enum: what was expected, what was found, where.

pub type Result<T> = std::result::Result<T, ComputeError>;

#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    #[error(
        "{verb}: stale or foreign handle {handle}; the memory it named was freed or belongs to another device"
    )]
    Handle { verb: &'static str, handle: String },
    #[error("{verb}: expected {expected}, found {found}")]
    Shape { verb: &'static str, expected: String, found: String },
    #[error("tensor '{name}': {problem}")]
    Weight { name: String, problem: String },
    #[error("tensor '{name}': reading its bytes failed: {source}")]
    Read { name: String, source: std::io::Error },
    #[error(
        "out of memory: {what} needs {bytes} bytes; close other programs, or choose a smaller context or model"
    )]
    Memory { what: String, bytes: u64 },
    #[error(
        "{device} is lost: {reason}; what ran on it is gone, restart hob to use it again, or use --gpu off"
    )]
    Lost { device: String, reason: String },
    #[error("{device}: {problem}")]
    Device { device: String, problem: String },
    #[error("a worker of the CPU pool failed: {0}")]
    Worker(String),
}

impl ComputeError {
    /// A shape error, for the checks at the top of a verb.
    pub fn shape(verb: &'static str, expected: impl ToString, found: impl ToString) -> Self {
        Self::Shape { verb, expected: expected.to_string(), found: found.to_string() }
    }
}
