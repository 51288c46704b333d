//! A file that grows until it is complete: `.part` with a small `.part.json` beside it that says what it
//! shall become. Keeps the running SHA-256, so that nothing is read twice except when a download is taken up
//! again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::disk::{self, Disk, Sink};
use crate::error::{SourceError, is_disk_full};
use crate::name::Sha256Hex;
use crate::{Cancel, Progress};

/// What a `.part` shall become; the content of `.part.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Goal {
    pub sha256: String,
    pub bytes: u64,
    pub source: String,
}

pub(crate) struct Part {
    goal: Goal,
    path: PathBuf,
    disk: Arc<dyn Disk>,
    sink: Box<dyn Sink>,
    hash: Sha256,
    len: u64,
}

/// Longest `.part.json` that is read.
const MAX_GOAL_BYTES: u64 = 16 << 10;

impl Part {
    /// Opens `folder/stem.part`, keeping its bytes if they were fetched for the same goal, else starting
    /// empty.
    pub fn open(
        folder: &Path,
        stem: &str,
        goal: Goal,
        disk: &Arc<dyn Disk>,
        watch: (&mut dyn Progress, &Cancel),
    ) -> Result<Self, SourceError> {
        let path = folder.join(format!("{stem}.part"));
        let sidecar = folder.join(format!("{stem}.part.json"));
        let known =
            read_goal(&sidecar).is_some_and(|old| old.sha256 == goal.sha256 && old.bytes == goal.bytes);
        let len = fs::metadata(&path).map_or(0, |m| m.len());
        let mut hash = Sha256::new();
        let mut kept = 0;
        if known && len > 0 && len <= goal.bytes {
            let (progress, cancel) = watch;
            progress.phase("checking what an earlier pull has left");
            kept =
                disk::hash_prefix(&path, len, &mut hash, cancel, &mut |done| progress.bytes(done, Some(len)))
                    .map_err(|error| match error {
                        SourceError::Cancelled { .. } => SourceError::Cancelled { kept_bytes: len },
                        other => other,
                    })?;
        }
        if kept != len || !known {
            remove_if_there(&path)?;
            (kept, hash) = (0, Sha256::new());
        }
        let text =
            serde_json::to_vec_pretty(&goal).map_err(|e| SourceError::io("write", &sidecar)(e.into()))?;
        hob_files::store::write_atomic(&sidecar, &text).map_err(SourceError::Store)?;
        let sink = disk.append(&path).map_err(SourceError::io("create", &path))?;
        Ok(Self { goal, path, disk: Arc::clone(disk), sink, hash, len: kept })
    }

    /// Bytes on disk.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Bytes still missing.
    pub fn missing(&self) -> u64 {
        self.goal.bytes.saturating_sub(self.len)
    }

    /// Appends. A full disk is [`SourceError::DiskFull`] with the numbers; what fitted stays.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), SourceError> {
        if let Err(error) = self.sink.write_all(bytes) {
            return Err(self.write_failed(error));
        }
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn write_failed(&mut self, error: io::Error) -> SourceError {
        // A part of the piece may have been written; cut back to what the hash covers. If that fails, the
        // next pull finds a longer file, whose hash then decides.
        let _ = fs::OpenOptions::new().write(true).open(&self.path).and_then(|f| f.set_len(self.len));
        if !is_disk_full(&error) {
            return SourceError::io("write", &self.path)(error);
        }
        let folder = self.path.parent().unwrap_or(&self.path);
        SourceError::DiskFull {
            needed_bytes: self.missing() + disk::MARGIN_BYTES,
            free_bytes: self.disk.free_bytes(folder).unwrap_or(0),
            path: folder.to_owned(),
            kept_bytes: self.len,
        }
    }

    /// Throws the bytes away and starts again.
    pub fn restart(&mut self) -> Result<(), SourceError> {
        remove_if_there(&self.path)?;
        self.sink = self.disk.append(&self.path).map_err(SourceError::io("create", &self.path))?;
        self.hash = Sha256::new();
        self.len = 0;
        Ok(())
    }

    /// Checks size and hash, makes the file durable and gives its path. Wrong bytes are deleted.
    pub fn finish(mut self) -> Result<(PathBuf, Sha256Hex), SourceError> {
        if let Err(error) = self.sink.sync() {
            return Err(self.write_failed(error));
        }
        let found = disk::finish(self.hash);
        let what = || format!("the file from {}", self.goal.source);
        if self.len != self.goal.bytes {
            remove_if_there(&self.path)?;
            return Err(SourceError::WrongSize {
                what: what(),
                expected_bytes: self.goal.bytes,
                found_bytes: self.len,
            });
        }
        if found.as_str() != self.goal.sha256 {
            remove_if_there(&self.path)?;
            return Err(SourceError::WrongHash {
                what: what(),
                expected: self.goal.sha256,
                found: found.as_str().to_owned(),
            });
        }
        Ok((self.path, found))
    }
}

fn read_goal(path: &Path) -> Option<Goal> {
    if fs::metadata(path).ok()?.len() > MAX_GOAL_BYTES {
        return None;
    }
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Deletes a file; that it is not there is fine.
pub(crate) fn remove_if_there(path: &Path) -> Result<(), SourceError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SourceError::io("delete", path)(error)),
        _ => Ok(()),
    }
}
