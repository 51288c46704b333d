//! `HOB_HOME`: where it is and how it is laid out. No other file joins paths below it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::{HubError, ModelName};

/// The folder that hob's own files lie in: `HOB_HOME`; else on macOS `~/Library/Application Support/hob`, on
/// Windows `%LOCALAPPDATA%\hob`, elsewhere `$XDG_DATA_HOME/hob` or `~/.local/share/hob`. Nothing is created.
pub fn default_home() -> Result<PathBuf, HubError> {
    let chosen = from_lookup(&|name| std::env::var_os(name)).ok_or(HubError::NoHome)?;
    std::path::absolute(&chosen).map_err(HubError::io("resolve", &chosen))
}

pub(crate) fn from_lookup(lookup: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name: &str| lookup(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(home) = path("HOB_HOME") {
        return Some(home);
    }
    // The XDG specification says that a relative path there is to be ignored.
    if let Some(data) = path("XDG_DATA_HOME").filter(|p| p.is_absolute()) {
        return Some(data.join("hob"));
    }
    if cfg!(target_os = "macos") {
        Some(user_home(lookup)?.join("Library").join("Application Support").join("hob"))
    } else if cfg!(windows) {
        path("LOCALAPPDATA").map(|p| p.join("hob")).or_else(|| Some(user_home(lookup)?.join(".hob")))
    } else {
        Some(user_home(lookup)?.join(".local").join("share").join("hob"))
    }
}

/// `HOME`, or `USERPROFILE` on Windows.
pub(crate) fn user_home(lookup: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let name = if cfg!(windows) { "USERPROFILE" } else { "HOME" };
    lookup(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// The layout below one home:
///
/// ```text
/// models/NAME/{manifest.json, FILE}   complete models; a folder appears and goes in one rename
/// downloads/NAME/...                  what a pull has so far; may be deleted at any time
/// locks/NAME                          empty; locked while NAME is pulled or removed
/// ```
pub(crate) struct Home {
    root: PathBuf,
}

impl Home {
    pub fn new(root: PathBuf) -> Self {
        // A relative home would move with the working directory.
        Self { root: std::path::absolute(&root).unwrap_or(root) }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    pub fn model(&self, name: &ModelName) -> PathBuf {
        self.models().join(name.as_str())
    }

    pub fn downloads(&self) -> PathBuf {
        self.root.join("downloads")
    }

    pub fn download(&self, name: &ModelName) -> PathBuf {
        self.downloads().join(name.as_str())
    }

    pub fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }

    pub fn lock(&self, name: &ModelName) -> PathBuf {
        self.locks().join(name.as_str())
    }
}
