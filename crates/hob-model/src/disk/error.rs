//! What can go wrong in the disk tier that is not a miss: the folder cannot be used, the system refuses to write, or
//! the caller asks for something without meaning. Damage found while reading is never an error, only a miss.

use std::path::PathBuf;

use hob_files::FileError;

pub type Result<T> = std::result::Result<T, DiskError>;

/// Why the tier could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error(transparent)]
    File(#[from] FileError),
    /// A call that no state of the store could satisfy.
    #[error("disk cache: expected {expected}, found {found}")]
    Input { expected: String, found: String },
    /// Another process is tidying the same folder.
    #[error(
        "the cache in {} is being tidied by another process; wait for it to finish and try again", dir.display()
    )]
    Busy { dir: PathBuf },
}

impl DiskError {
    pub(crate) fn input(expected: impl ToString, found: impl ToString) -> Self {
        Self::Input { expected: expected.to_string(), found: found.to_string() }
    }
}
