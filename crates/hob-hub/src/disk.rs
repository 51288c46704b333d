//! The disk as a trait, so that tests can play a full one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::Cancel;
use crate::error::SourceError;
use crate::name::Sha256Hex;

/// Space that a download leaves free, in bytes: manifests, logs and the other programs of this machine.
pub(crate) const MARGIN_BYTES: u64 = 16 << 20;

/// Read and write in pieces of this size; a cancel is noticed between two.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;

pub(crate) trait Disk: Send + Sync {
    /// Bytes that this user may still write below `dir`, which must exist.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
    /// Opens (creating) for appending.
    fn append(&self, path: &Path) -> io::Result<Box<dyn Sink>>;
}

/// A file being written.
pub(crate) trait Sink: Write {
    /// Everything written is on the medium when this returns.
    fn sync(&mut self) -> io::Result<()>;
}

impl Sink for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        hob_files::store::free_bytes(dir).map_err(io::Error::other)
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn Sink>> {
        Ok(Box::new(OpenOptions::new().append(true).create(true).open(path)?))
    }
}

/// Refuses when fewer than `wanted_bytes` plus the margin are free below `dir`. `kept_bytes` only colors the
/// error.
pub(crate) fn require_space(
    disk: &dyn Disk,
    dir: &Path,
    wanted_bytes: u64,
    kept_bytes: u64,
) -> Result<(), SourceError> {
    let needed_bytes = wanted_bytes.saturating_add(MARGIN_BYTES);
    // A file system that cannot say is not a reason to refuse: a write will.
    let Ok(free_bytes) = disk.free_bytes(dir) else { return Ok(()) };
    if free_bytes < needed_bytes {
        return Err(SourceError::DiskFull { needed_bytes, free_bytes, path: dir.to_owned(), kept_bytes });
    }
    Ok(())
}

/// Feeds the first `limit` bytes of `path` to `hash`; returns how many there were.
pub(crate) fn hash_prefix(
    path: &Path,
    limit: u64,
    hash: &mut Sha256,
    cancel: &Cancel,
    each: &mut dyn FnMut(u64),
) -> Result<u64, SourceError> {
    let file = File::open(path).map_err(SourceError::io("open", path))?;
    let mut file = file.take(limit);
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut done = 0;
    loop {
        if cancel.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(SourceError::Cancelled { kept_bytes: 0 });
        }
        let n = file.read(&mut buffer).map_err(SourceError::io("read", path))?;
        if n == 0 {
            return Ok(done);
        }
        hash.update(&buffer[..n]);
        done += n as u64;
        each(done);
    }
}

/// The digest in hex.
pub(crate) fn finish(hash: Sha256) -> Sha256Hex {
    Sha256Hex::from_bytes(hash.finalize().as_slice())
}

/// Makes a rename or a removal inside `dir` durable where the platform can (a folder cannot be opened on
/// Windows).
pub(crate) fn sync_dir(dir: &Path) {
    if let Ok(dir) = File::open(dir) {
        // Losing the rename in a crash costs a new download, never a wrong file.
        let _ = dir.sync_all();
    }
}
