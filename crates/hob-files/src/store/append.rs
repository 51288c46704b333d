//! Files that only grow, in a folder that only its owner may look into: what a log of records needs from the file
//! system. One writer per file (a file lock says so), appends are whole or undone, `sync` makes them durable.
//! It must not know what the records say.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use super::{explain_io, step, sync_folder};
use crate::Result;
use crate::error::io_error;
use crate::folder::parent;
use crate::os;

/// A write is handed to the system in pieces of this size, so that a full disk is noticed early.
const CHUNK_BYTES: usize = 4 << 20;

/// A private file (mode 0600) that this process alone appends to.
#[derive(Debug)]
pub struct AppendFile {
    path: PathBuf,
    /// Holds the file's lock until it is closed.
    file: File,
    /// Bytes of whole appends; what lies behind them is left over from a failed one.
    len: u64,
    synced: u64,
    /// The folder's entry is durable.
    named: bool,
    /// Something behind `len` could not be cut off, or a sync failed: nothing may be appended any more.
    broken: bool,
}

impl AppendFile {
    /// Makes an empty file of a name that must be free.
    pub fn create(path: &Path) -> Result<AppendFile> {
        let mut open = OpenOptions::new();
        open.write(true).create_new(true);
        private(&mut open);
        let file = step("create", path).and_then(|()| open.open(path));
        let file = file.map_err(|e| explain_io(path, 0, "create it", e))?;
        // Where the file system has no locks, it has none for anybody: the file stays unlocked.
        let locked = !matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock));
        let facts = file.metadata().map_err(|e| explain_io(path, 0, "look at it", e))?;
        // Another process may take a new file for one left behind, before its lock is taken.
        if !locked || !os::is_linked(&facts) {
            let source = io::Error::new(io::ErrorKind::ResourceBusy, "another process took it");
            return Err(explain_io(path, 0, "create it", source));
        }
        Ok(AppendFile { path: path.to_path_buf(), file, len: 0, synced: 0, named: false, broken: false })
    }

    /// Goes on with a file of exactly `len` bytes; `None` if another process appends to it, or it is not there (any
    /// more), has another length, or is not a regular file.
    pub fn reopen(path: &Path, len: u64) -> Result<Option<AppendFile>> {
        let mut open = OpenOptions::new();
        open.write(true);
        private(&mut open);
        let file = match step("reopen", path).and_then(|()| open.open(path)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(explain_io(path, 0, "open it", e)),
        };
        if file.try_lock().is_err() {
            return Ok(None);
        }
        let facts = file.metadata().map_err(|e| explain_io(path, 0, "look at it", e))?;
        // It may have been removed between opening and locking.
        if !facts.is_file() || facts.len() != len || !os::is_linked(&facts) {
            return Ok(None);
        }
        os::tighten(&file, &facts).map_err(|e| explain_io(path, 0, "make it private", e))?;
        Ok(Some(AppendFile { path: path.to_path_buf(), file, len, synced: 0, named: false, broken: false }))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of whole appends.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes known to survive a power cut.
    pub fn synced(&self) -> u64 {
        self.synced
    }

    /// Whether an error has closed this file for appending.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Appends `parts` one after another; returns where they start.
    ///
    /// # Errors
    /// What had been written of them is cut off again. If even that fails the file is broken: it keeps its whole
    /// appends and takes no more.
    pub fn append(&mut self, parts: &[&[u8]]) -> Result<u64> {
        if self.broken {
            let source = io::Error::other("an earlier write to this file failed");
            return Err(explain_io(&self.path, self.len, "write it", source));
        }
        let start = self.len;
        let mut at = start;
        for chunk in parts.iter().flat_map(|part| part.chunks(CHUNK_BYTES)) {
            let done = step("append", &self.path).and_then(|()| os::write_all_at(&self.file, chunk, at));
            if let Err(e) = done {
                let cut = step("cut", &self.path).and_then(|()| self.file.set_len(start));
                self.broken = cut.is_err();
                return Err(explain_io(&self.path, at - start, "write it", e));
            }
            at += chunk.len() as u64;
        }
        self.len = at;
        Ok(start)
    }

    /// Makes everything appended so far durable, and the file's name with it.
    ///
    /// # Errors
    /// The system may have dropped what it could not write, so the file is broken from then on.
    pub fn sync(&mut self) -> Result<()> {
        let done = || -> io::Result<()> {
            step("sync", &self.path)?;
            self.file.sync_data()?;
            if !self.named {
                step("sync folder", &self.path)?;
                sync_folder(parent(&self.path))?;
            }
            Ok(())
        };
        match done() {
            Ok(()) => (self.synced, self.named) = (self.len, true),
            Err(e) => {
                self.broken = true;
                return Err(explain_io(&self.path, self.len, "make it durable", e));
            }
        }
        Ok(())
    }
}

/// A regular file opened for positioned reads; a symbolic link in its place is refused.
#[derive(Debug)]
pub struct StoredFile {
    file: File,
    len: u64,
}

impl StoredFile {
    /// `None` if there is none of that name.
    pub fn open(path: &Path) -> Result<Option<StoredFile>> {
        let mut open = OpenOptions::new();
        open.read(true);
        private(&mut open);
        let file = match open.open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io_error("open it")(e).at(path)),
        };
        let facts = file.metadata().map_err(|e| io_error("look at it")(e).at(path))?;
        if !facts.is_file() {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
            return Err(io_error("open it")(source).at(path));
        }
        Ok(Some(StoredFile { file, len: facts.len() }))
    }

    /// Bytes of the file when it was opened.
    pub fn bytes(&self) -> u64 {
        self.len
    }

    /// Fills `out` from `offset`; a short file is an error.
    pub fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        os::read_exact_at(&self.file, out, offset)
    }
}

/// Makes durable what any process has written to `path` so far; fine if it is gone.
pub fn sync_file(path: &Path) -> Result<()> {
    let Some(stored) = StoredFile::open(path)? else { return Ok(()) };
    step("sync", path)
        .and_then(|()| stored.file.sync_data())
        .and_then(|()| step("sync folder", path))
        .and_then(|()| sync_folder(parent(path)))
        .map_err(|e| explain_io(path, stored.len, "make it durable", e))
}

/// An exclusive lock between processes, held until dropped (also by a killed process).
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

impl FileLock {
    /// Locks `path`, making the file if need be; `None` if another has it.
    pub fn try_lock(path: &Path) -> Result<Option<FileLock>> {
        let mut open = OpenOptions::new();
        open.write(true).create(true).truncate(false);
        private(&mut open);
        let file = step("create", path).and_then(|()| open.open(path));
        let file = file.map_err(|e| explain_io(path, 0, "open it", e))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(FileLock { _file: file })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(e)) => Err(explain_io(path, 0, "lock it", e)),
        }
    }
}

/// Removes a file that no process appends to; `false` if one does, or if it is not `len` bytes long where a length is
/// given: it has grown since the caller looked. Fine if it is gone already.
pub fn remove_unlocked(path: &Path, len: Option<u64>) -> Result<bool> {
    let mut open = OpenOptions::new();
    open.read(true);
    private(&mut open);
    // The lock is held over the removal, so that nobody begins to append in between.
    let file = match open.open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(e) => return Err(explain_io(path, 0, "remove it", e)),
    };
    if matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)) {
        return Ok(false);
    }
    let found = file.metadata().map_err(|e| explain_io(path, 0, "look at it", e))?.len();
    if len.is_some_and(|len| len != found) {
        return Ok(false);
    }
    step("remove", path)
        .and_then(|()| fs::remove_file(path))
        .and_then(|()| step("sync folder", path))
        .and_then(|()| sync_folder(parent(path)))
        .map_err(|e| explain_io(path, 0, "remove it", e))?;
    Ok(true)
}

/// Makes `path` a folder that only its owner may look into (mode 0700): makes it and its parents, or takes the rights
/// of others away.
///
/// # Errors
/// If it cannot be made, is not a folder, or belongs to somebody else and is open to others.
pub fn private_folder(path: &Path) -> Result<()> {
    let inner = || -> Result<()> {
        match fs::metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => step("create", path)
                .and_then(|()| os::make_private_folder(path))
                .map_err(io_error("create it")),
            Err(e) => Err(io_error("look at it")(e)),
            Ok(facts) if !facts.is_dir() => {
                let source = io::Error::new(io::ErrorKind::NotADirectory, "there is a file of that name");
                Err(io_error("use it as a folder")(source))
            }
            Ok(facts) => os::tighten_folder(path, &facts)
                .map_err(io_error("make it private (mode 0700), and others may look into it")),
        }
    };
    inner().map_err(|e| e.at(path))
}

/// Readable by the owner only where it is made, and never through a symbolic link or into a waiting pipe.
fn private(open: &mut OpenOptions) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        open.mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    }
    #[cfg(not(unix))]
    let _ = open;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FileError;
    use crate::store::faults;
    use hob_testkit::temp::TempDir;

    /// Fails the `nth` step (from 0) called `name`, once.
    fn fail(name: &'static str, nth: usize, code: i32) {
        let mut left = nth;
        faults::set(Some(Box::new(move |step, _| {
            if step != name {
                return Ok(());
            }
            left = left.wrapping_sub(1);
            if left == usize::MAX { Err(io::Error::from_raw_os_error(code)) } else { Ok(()) }
        })));
    }

    #[test]
    fn a_failed_append_leaves_the_whole_ones_and_the_next_one_works() {
        let folder = TempDir::new("append");
        let path = folder.join("log");
        let mut file = AppendFile::create(&path).unwrap();
        assert_eq!(file.append(&[b"one", b"two"]).unwrap(), 0);
        for nth in 0..3 {
            fail("append", nth, libc::ENOSPC);
            let error = file.append(&[b"x", b"y", b"z"]).unwrap_err();
            faults::set(None);
            assert!(matches!(error.rule(), FileError::DiskFull { .. }), "{error}");
            assert_eq!((file.len(), fs::read(&path).unwrap().as_slice()), (6, &b"onetwo"[..]));
            assert!(!file.is_broken());
        }
        assert_eq!(file.append(&[b"three"]).unwrap(), 6);
        assert_eq!(fs::read(&path).unwrap(), b"onetwothree");
    }

    #[test]
    fn what_cannot_be_cut_off_or_synced_closes_the_file() {
        let folder = TempDir::new("broken");
        let mut file = AppendFile::create(&folder.join("a")).unwrap();
        file.append(&[b"kept"]).unwrap();
        faults::set(Some(Box::new(|step, _| match step {
            "append" | "cut" => Err(io::Error::from_raw_os_error(libc::EIO)),
            _ => Ok(()),
        })));
        assert!(file.append(&[b"lost"]).is_err());
        faults::set(None);
        assert!(file.is_broken() && file.append(&[b"late"]).is_err());
        assert_eq!(fs::read(folder.join("a")).unwrap(), b"kept");
        for step in ["sync", "sync folder"] {
            let path = folder.join(step.replace(' ', "-"));
            let mut file = AppendFile::create(&path).unwrap();
            file.append(&[b"kept"]).unwrap();
            fail(step, 0, libc::EIO);
            assert!(file.sync().is_err(), "{step}");
            faults::set(None);
            assert!(file.is_broken() && file.synced() == 0, "{step}");
        }
    }

    #[test]
    fn one_writer_per_file_and_none_for_a_removed_or_changed_one() {
        let folder = TempDir::new("writers");
        let path = folder.join("log");
        let mut file = AppendFile::create(&path).unwrap();
        file.append(&[b"1234"]).unwrap();
        file.sync().unwrap();
        assert_eq!(file.synced(), 4);
        assert!(AppendFile::reopen(&path, 4).unwrap().is_none(), "another writer has it");
        assert!(!remove_unlocked(&path, None).unwrap(), "a file being written must not go");
        drop(file);
        assert!(AppendFile::reopen(&path, 5).unwrap().is_none(), "another length");
        let mut file = AppendFile::reopen(&path, 4).unwrap().expect("free");
        assert_eq!(file.append(&[b"5"]).unwrap(), 4);
        drop(file);
        assert!(!remove_unlocked(&path, Some(4)).unwrap(), "it has grown");
        assert!(remove_unlocked(&path, Some(5)).unwrap() && remove_unlocked(&path, Some(5)).unwrap());
        assert!(AppendFile::reopen(&path, 5).unwrap().is_none(), "gone");
        assert!(StoredFile::open(&path).unwrap().is_none());
        let lock = FileLock::try_lock(&folder.join("lock")).unwrap().expect("free");
        assert!(FileLock::try_lock(&folder.join("lock")).unwrap().is_none());
        drop(lock);
        assert!(FileLock::try_lock(&folder.join("lock")).unwrap().is_some());
    }

    #[cfg(unix)]
    #[test]
    fn nothing_is_open_to_others_and_links_are_refused() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let folder = TempDir::new("rights");
        let inner = folder.join("a/b");
        private_folder(&inner).unwrap();
        assert_eq!(mode(&inner), 0o700);
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)).unwrap();
        private_folder(&inner).unwrap();
        assert_eq!(mode(&inner), 0o700, "tightened");
        let path = inner.join("log");
        let mut file = AppendFile::create(&path).unwrap();
        file.append(&[b"text"]).unwrap();
        drop(file);
        assert_eq!(mode(&path), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        drop(AppendFile::reopen(&path, 4).unwrap().expect("free"));
        assert_eq!(mode(&path), 0o600, "tightened");
        symlink(&path, inner.join("link")).unwrap();
        assert!(StoredFile::open(&inner.join("link")).is_err());
        assert!(AppendFile::reopen(&inner.join("link"), 4).is_err());
        assert!(remove_unlocked(&inner.join("link"), None).is_err() && path.exists());
        let error = private_folder(&path).unwrap_err();
        assert!(error.to_string().contains("folder"), "{error}");
    }
}
