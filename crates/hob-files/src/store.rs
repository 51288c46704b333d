//! The one durable-write helper of hob: a file appears whole under its name or not at all, whatever kills the process
//! or the machine on the way. Temp file in the same folder, write, fsync, rename, fsync the folder; optionally with a
//! checksum that [`read_checked`] verifies. [`AppendFile`] is the other shape of durable file: one that grows.
//! It must not know what is stored.

mod append;
#[cfg(any(test, feature = "faults"))]
pub mod faults;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::Xxh3;

use crate::Result;
use crate::error::{FileError, io_error};
use crate::folder::parent;
use crate::os;

pub use append::{AppendFile, FileLock, StoredFile, private_folder, remove_unlocked, sync_file};

const BUFFER_BYTES: usize = 256 << 10;

/// The footer of a checked file: magic, payload length (u64), xxh3-64 of the payload; little-endian.
const FOOTER_MAGIC: [u8; 8] = *b"hobxxh3\x01";
const FOOTER_BYTES: u64 = 24;

/// How a file is stored.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Readable by the owner only (mode 0600), for what a conversation may show through: KV pages, history, keys.
    pub private: bool,
    /// Ends with an xxh3 footer; read it back with [`read_checked`].
    pub checked: bool,
}

/// Writes `bytes` to `path` durably.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, bytes, Options::default())
}

/// Writes `bytes` and their checksum to `path` durably, readable by the owner only.
pub fn write_checked(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, bytes, Options { private: true, checked: true })
}

/// Writes `bytes` to `path` durably, as `options` say.
pub fn write_with(path: &Path, bytes: &[u8], options: Options) -> Result<()> {
    let mut file = AtomicFile::create_with(path, options)?;
    match file.write_all(bytes) {
        Ok(()) => file.commit(),
        Err(e) => Err(file.explain("write it", e)),
    }
}

/// Reads a file written with a checksum; `Ok(None)` if there is none of that name.
///
/// # Errors
/// [`FileError::Checksum`] if the footer or a single bit is wrong; [`FileError::Limit`] if the payload exceeds
/// `max_bytes`.
pub fn read_checked(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>> {
    read_checked_inner(path, max_bytes).map_err(|e| e.at(path))
}

fn read_checked_inner(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>> {
    let damaged = |what: &str| FileError::Checksum { what: what.to_string() };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FileError::Io { action: "open it", source }),
    };
    let size = file.metadata().map_err(io_error("look at it"))?.len();
    let payload =
        size.checked_sub(FOOTER_BYTES).ok_or_else(|| damaged("the file is shorter than its footer"))?;
    if payload > max_bytes {
        let what = "the stored payload".into();
        return Err(FileError::Limit { what, found: payload, limit: max_bytes, field: "max_bytes" });
    }
    let mut bytes = Vec::with_capacity(size as usize);
    (&file).take(size).read_to_end(&mut bytes).map_err(io_error("read it"))?;
    if bytes.len() as u64 != size {
        return Err(damaged("the file shrank while it was read"));
    }
    let footer = bytes.split_off(payload as usize);
    let mut hash = Xxh3::new();
    hash.update(&bytes);
    if footer != make_footer(payload, &hash) {
        return Err(damaged("the checksum does not match"));
    }
    Ok(Some(bytes))
}

fn make_footer(payload_bytes: u64, hash: &Xxh3) -> [u8; FOOTER_BYTES as usize] {
    let mut footer = [0; FOOTER_BYTES as usize];
    footer[..8].copy_from_slice(&FOOTER_MAGIC);
    footer[8..16].copy_from_slice(&payload_bytes.to_le_bytes());
    footer[16..].copy_from_slice(&hash.digest().to_le_bytes());
    footer
}

/// Bytes that may still be written to the file system holding `path`, which itself need not exist yet.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let mut folder = path;
    while !folder.exists() {
        folder = parent(folder);
    }
    os::free_bytes(folder).map_err(io_error("ask for free disk space")).map_err(|e| e.at(folder))
}

/// Refuses early, with both numbers, if `path`'s file system has less than `needed` bytes free.
pub fn ensure_space(path: &Path, needed: u64) -> Result<()> {
    let free = free_bytes(path)?;
    if free < needed { Err(FileError::NoSpace { needed, free }.at(path)) } else { Ok(()) }
}

/// A file being written. It appears under its name at [`AtomicFile::commit`], complete and on disk; dropped without
/// it, or after an error, nothing is left behind and an earlier file of that name is untouched. (An error of the very
/// last step, the folder's fsync, comes after the rename: the new file is there, but may not survive a power cut.)
pub struct AtomicFile {
    path: PathBuf,
    temp: PathBuf,
    /// `None` only while committing.
    out: Option<BufWriter<File>>,
    written: u64,
    hash: Option<Box<Xxh3>>,
    committed: bool,
}

impl AtomicFile {
    /// Starts a file with default options. The folder must exist.
    pub fn create(path: &Path) -> Result<AtomicFile> {
        Self::create_with(path, Options::default())
    }

    /// Starts a file as `options` say. The folder must exist.
    pub fn create_with(path: &Path, options: Options) -> Result<AtomicFile> {
        let temp = temp_path(path)?;
        let mut open = OpenOptions::new();
        open.write(true).create_new(true);
        #[cfg(unix)]
        if options.private {
            std::os::unix::fs::OpenOptionsExt::mode(&mut open, 0o600);
        }
        let file = step("create", path).and_then(|()| open.open(&temp));
        let file = file.map_err(|e| explain_io(path, 0, "create it", e))?;
        Ok(AtomicFile {
            path: path.to_path_buf(),
            temp,
            out: Some(BufWriter::with_capacity(BUFFER_BYTES, file)),
            written: 0,
            hash: options.checked.then(|| Box::new(Xxh3::new())),
            committed: false,
        })
    }

    /// Bytes written so far, without a footer.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Makes the file durable under its name: flush, fsync, rename, fsync of the folder.
    pub fn commit(mut self) -> Result<()> {
        let path = &self.path;
        let footer = self.hash.as_ref().map(|hash| make_footer(self.written, hash));
        let finish = |out: Option<BufWriter<File>>| -> io::Result<()> {
            let mut out = out.ok_or_else(|| io::Error::other("the file was already closed"))?;
            if let Some(footer) = footer {
                out.write_all(&footer)?;
            }
            step("flush", path)?;
            let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
            step("sync", path)?;
            file.sync_all()?;
            step("rename", path)
        };
        let out = self.out.take();
        finish(out)
            .and_then(|()| fs::rename(&self.temp, &self.path))
            .map_err(|e| self.explain("write it", e))?;
        self.committed = true;
        step("sync folder", &self.path)
            .and_then(|()| sync_folder(parent(&self.path)))
            .map_err(|e| self.explain("make it durable", e))
    }

    /// An error with the numbers a user needs if the disk is full.
    fn explain(&self, action: &'static str, error: io::Error) -> FileError {
        explain_io(&self.path, self.written, action, error)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (path, written) = (&self.path, self.written);
        let out = self.out.as_mut().ok_or_else(|| io::Error::other("the file was already closed"))?;
        let count = step("write", path).and_then(|()| out.write(bytes)).map_err(|e| match is_full(&e) {
            true => io::Error::new(e.kind(), explain_io(path, written, "write it", e)),
            false => e,
        })?;
        self.written += count as u64;
        if let Some(hash) = &mut self.hash {
            hash.update(&bytes[..count]);
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.out {
            Some(out) => out.flush(),
            None => Ok(()),
        }
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            // Closing without flushing: the bytes are about to be deleted.
            if let Some(out) = self.out.take() {
                drop(out.into_parts());
            }
            let _ = fs::remove_file(&self.temp);
        }
    }
}

/// A name in the same folder that no other writer uses: rename is atomic only within a file system.
fn temp_path(path: &Path) -> Result<PathBuf> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name");
        return Err(FileError::Io { action: "create it", source }.at(path));
    };
    let mut temp = std::ffi::OsString::from(".");
    temp.push(name);
    temp.push(format!(".{}-{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    Ok(path.with_file_name(temp))
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn explain_io(path: &Path, written: u64, action: &'static str, source: io::Error) -> FileError {
    if is_full(&source) {
        // The explanation made by `write` passes through unchanged.
        return match source.downcast::<FileError>() {
            Ok(explained) => explained,
            Err(_) => {
                let free = os::free_bytes(parent(path)).unwrap_or(0);
                FileError::DiskFull { path: path.to_path_buf(), written, free }
            }
        };
    }
    FileError::Io { action, source }.at(path)
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Other systems have no handle for a folder's entries; the rename itself is what they offer.
#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}

/// A point at which the tests let the system fail.
#[cfg(not(any(test, feature = "faults")))]
fn step(_name: &'static str, _path: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(any(test, feature = "faults"))]
use faults::step;

#[cfg(test)]
mod tests {
    use super::*;
    use hob_testkit::temp::TempDir;
    use std::cell::RefCell;
    use std::rc::Rc;

    /// Fails every step of that name on this thread.
    fn fail_at(name: &'static str, code: i32) {
        faults::set(Some(Box::new(move |step, _| match step == name {
            true => Err(io::Error::from_raw_os_error(code)),
            false => Ok(()),
        })));
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    const STEPS: [&str; 6] = ["create", "write", "flush", "sync", "rename", "sync folder"];

    #[test]
    fn the_steps_happen_in_the_durable_order() {
        let folder = TempDir::new("order");
        let seen = Rc::new(RefCell::new(Vec::new()));
        let log = seen.clone();
        faults::set(Some(Box::new(move |step, _| {
            log.borrow_mut().push(step);
            Ok(())
        })));
        write_atomic(&folder.join("a"), b"text").unwrap();
        faults::set(None);
        assert_eq!(*seen.borrow(), STEPS);
        assert_eq!(fs::read(folder.join("a")).unwrap(), b"text");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn a_failure_at_any_step_leaves_the_old_or_the_new_file_and_no_other() {
        let folder = TempDir::new("fail");
        let path = folder.join("a");
        for checked in [false, true] {
            for fail in STEPS {
                write_atomic(&path, b"old").unwrap();
                fail_at(fail, libc::EIO);
                let result = write_with(&path, b"new content", Options { private: true, checked });
                faults::set(None);
                let message = result.expect_err(fail).to_string();
                assert!(message.contains("cannot"), "{fail}: {message}");
                // Only the last step comes after the rename.
                let expected: &[u8] = if fail == "sync folder" { b"new content" } else { b"old" };
                assert!(fs::read(&path).unwrap().starts_with(expected), "{fail}");
                assert_eq!(names(folder.path()), ["a"], "{fail} left a temp file");
            }
        }
    }

    #[test]
    fn a_full_disk_is_reported_with_numbers() {
        let folder = TempDir::new("full");
        let path = folder.join("a");
        for fail in ["create", "write", "flush", "sync"] {
            fail_at(fail, libc::ENOSPC);
            let error = write_atomic(&path, b"12345").unwrap_err();
            faults::set(None);
            let FileError::DiskFull { written, free, .. } = &error else { panic!("{fail}: {error}") };
            assert_eq!(*written, if matches!(fail, "create" | "write") { 0 } else { 5 }, "{fail}");
            assert!(*free > 0);
            assert!(error.to_string().contains("bytes are free"), "{error}");
            assert!(names(folder.path()).is_empty());
        }
        let error = ensure_space(&folder.join("not/yet/there"), u64::MAX).unwrap_err();
        assert!(matches!(error.rule(), FileError::NoSpace { needed: u64::MAX, .. }), "{error}");
        ensure_space(folder.path(), 1).unwrap();
    }

    #[test]
    fn a_dropped_file_leaves_nothing() {
        let folder = TempDir::new("drop");
        let mut file = AtomicFile::create(&folder.join("a")).unwrap();
        file.write_all(&[7; 1 << 20]).unwrap();
        assert_eq!(file.written(), 1 << 20);
        drop(file);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn two_writers_of_one_name_do_not_mix() {
        let folder = TempDir::new("two");
        let path = folder.join("a");
        let mut first = AtomicFile::create(&path).unwrap();
        let mut second = AtomicFile::create(&path).unwrap();
        first.write_all(b"first").unwrap();
        second.write_all(b"second").unwrap();
        second.commit().unwrap();
        first.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[cfg(unix)]
    #[test]
    fn private_files_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = TempDir::new("private");
        write_checked(&folder.join("a"), b"secret").unwrap();
        let mode = fs::metadata(folder.join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_of_a_checked_file_is_found() {
        let folder = TempDir::new("checked");
        let path = folder.join("a");
        let payload: Vec<u8> = (0..97).collect();
        write_checked(&path, &payload).unwrap();
        assert_eq!(read_checked(&path, 97).unwrap().unwrap(), payload);
        assert!(matches!(read_checked(&path, 96).unwrap_err().rule(), FileError::Limit { found: 97, .. }));
        assert!(read_checked(&folder.join("none"), 10).unwrap().is_none());
        let stored = fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            matches!(read_checked(&path, 1000).unwrap_err().rule(), FileError::Checksum { .. })
        };
        for bit in 0..stored.len() * 8 {
            let mut bad = stored.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(refused(&bad), "bit {bit}");
        }
        for len in 0..stored.len() {
            assert!(refused(&stored[..len]), "cut to {len}");
        }
        write_checked(&path, b"").unwrap();
        assert_eq!(read_checked(&path, 0).unwrap().unwrap(), b"");
    }
}
