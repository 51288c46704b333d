//! What all tests share: temporary folders, a small valid GGUF, a disk that fills up, a progress that
//! remembers.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::disk::{Disk, RealDisk, Sink};
use crate::name::Sha256Hex;
use crate::pull::{Fetch, Fetched, Job};
use crate::{Cancel, Entry, Hub, NetSettings, PipSettings, Places, Progress, Settings, Source, SourceError};

/// A folder that is gone when the test ends.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("hob-hub-test-{}-{id}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file below the folder, with its parents.
    pub fn put(&self, path: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Every file below `root`, as sorted relative paths.
pub fn tree(root: &Path) -> Vec<String> {
    fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                walk(root, &path, found);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/"));
            }
        }
    }
    let mut found = Vec::new();
    walk(root, root, &mut found);
    found.sort();
    found
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256Hex::from_bytes(&Sha256::digest(bytes)).to_string()
}

/// A static string for the catalogue's types.
pub fn leak(text: impl Into<String>) -> &'static str {
    Box::leak(text.into().into_boxed_str())
}

/// A valid GGUF v3 file: one string in the metadata and one F32 tensor of `weights` values.
pub fn tiny_gguf(weights: usize) -> Vec<u8> {
    assert!(weights > 0 && weights.is_multiple_of(32));
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend(1u64.to_le_bytes());
    out.extend(1u64.to_le_bytes());
    text(&mut out, "general.architecture");
    out.extend(8u32.to_le_bytes());
    text(&mut out, "llama");
    text(&mut out, "w");
    out.extend(1u32.to_le_bytes());
    out.extend((weights as u64).to_le_bytes());
    out.extend(0u32.to_le_bytes());
    out.extend(0u64.to_le_bytes());
    out.resize(out.len().next_multiple_of(32), 0);
    // A fixed xorshift, so that the bytes do not compress and every run has the same hash.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..weights {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(((state % 2048) as f32 - 1024.0).to_le_bytes());
    }
    out
}

/// Remembers what it was told, and can pull the brake.
#[derive(Default)]
pub struct Recorder {
    pub phases: Vec<String>,
    pub last: (u64, Option<u64>),
    /// Cancel once this many bytes of a phase that starts with `downloading` or `extracting` are reported.
    pub cancel_at: Option<(u64, Arc<Cancel>)>,
}

impl Progress for Recorder {
    fn phase(&mut self, what: &str) {
        self.phases.push(what.to_owned());
    }

    fn bytes(&mut self, done: u64, total: Option<u64>) {
        self.last = (done, total);
        let phase = self.phases.last().map_or("", String::as_str);
        if let Some((at, flag)) = &self.cancel_at
            && done >= *at
            && (phase.starts_with("downloading") || phase.starts_with("extracting"))
        {
            flag.store(true, Ordering::Relaxed);
        }
    }
}

/// A disk with `free` bytes as it says, and room for `room` bytes as it turns out.
pub struct SmallDisk {
    pub free: u64,
    pub room: Arc<AtomicU64>,
}

impl SmallDisk {
    pub fn new(free: u64, room: u64) -> Self {
        Self { free, room: Arc::new(AtomicU64::new(room)) }
    }
}

impl Disk for SmallDisk {
    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        Ok(self.free)
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn Sink>> {
        Ok(Box::new(SmallSink { inner: RealDisk.append(path)?, room: Arc::clone(&self.room) }))
    }
}

struct SmallSink {
    inner: Box<dyn Sink>,
    room: Arc<AtomicU64>,
}

impl Write for SmallSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.room.load(Ordering::Relaxed);
        if room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // As a real disk does, take what still fits.
        let fits = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        let n = self.inner.write(&bytes[..fits])?;
        self.room.store(room - n as u64, Ordering::Relaxed);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Sink for SmallSink {
    fn sync(&mut self) -> io::Result<()> {
        self.inner.sync()
    }
}

/// Settings that reach nothing outside the test.
pub fn quiet_settings() -> Settings {
    Settings {
        pip: PipSettings { interpreters: Vec::new(), timeout_seconds: 5, stall: Duration::from_secs(20) },
        net: NetSettings {
            endpoint: Some("http://127.0.0.1:9".to_owned()),
            connect_timeout: Duration::from_secs(2),
            answer_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(5),
            retries: 2,
            retry_pause: Duration::from_millis(1),
            ..NetSettings::default()
        },
        places: Places::default(),
    }
}

pub fn hub_in(dir: &TempDir) -> Hub {
    Hub::with_settings(dir.path().join("home"), quiet_settings())
}

/// An entry with these sources, for as long as the process lives.
pub fn entry(name: &str, sources: Vec<Source>) -> Entry {
    Entry {
        name: leak(name),
        aliases: &[],
        license: "Apache-2.0",
        description: "a test",
        parameters: 32,
        sources: Box::leak(sources.into_boxed_slice()),
    }
}

/// Delivers given bytes and counts how often it was asked.
pub struct BytesFetch {
    pub bytes: Vec<u8>,
    pub asked: Arc<AtomicUsize>,
    pub pause: Duration,
}

impl BytesFetch {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, asked: Arc::default(), pause: Duration::ZERO }
    }
}

impl Fetch for BytesFetch {
    fn label(&self) -> String {
        "bytes of the test".to_owned()
    }

    fn fetch(&self, job: &mut Job<'_>) -> Result<Fetched, SourceError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(self.pause);
        let path = job.folder.join("given");
        fs::write(&path, &self.bytes).unwrap();
        let sha256 = Sha256Hex::parse(&sha256(&self.bytes)).unwrap();
        Ok(Fetched { path, file: "model.gguf".to_owned(), bytes: self.bytes.len() as u64, sha256 })
    }
}

/// Must not be asked.
pub struct PanicFetch;

impl Fetch for PanicFetch {
    fn label(&self) -> String {
        "a source that must not be asked".to_owned()
    }

    fn fetch(&self, _job: &mut Job<'_>) -> Result<Fetched, SourceError> {
        panic!("a source was asked although the model is here");
    }
}

/// Fails with what it is given.
pub struct FailFetch(pub fn() -> SourceError);

impl Fetch for FailFetch {
    fn label(&self) -> String {
        "a source that fails".to_owned()
    }

    fn fetch(&self, _job: &mut Job<'_>) -> Result<Fetched, SourceError> {
        Err((self.0)())
    }
}

/// Not cancelled.
pub fn go_on() -> Cancel {
    Cancel::new(false)
}
