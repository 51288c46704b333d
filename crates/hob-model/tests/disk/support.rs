//! Chains with images that follow from their tokens, so that any byte given out can be checked.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hob_model::disk::{Clock, DiskConfig, DiskStore, FRAGMENT_TOKENS, Identity, Limits};
use hob_testkit::rng::Rng;

pub const DAY: u64 = 24 * 3600;
/// Noon of some day.
pub const NOON: u64 = 20_000 * DAY + DAY / 2;

/// A clock that stands where the test puts it.
#[derive(Clone)]
pub struct Time(Arc<AtomicU64>);

impl Time {
    pub fn new() -> Time {
        Time(Arc::new(AtomicU64::new(NOON)))
    }

    pub fn set(&self, seconds: u64) {
        self.0.store(seconds, Ordering::SeqCst);
    }

    pub fn pass(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }

    pub fn clock(&self) -> Clock {
        let time = self.0.clone();
        Arc::new(move || time.load(Ordering::SeqCst))
    }
}

/// A folder, its budgets and its clock: what outlives a store.
pub struct Bench {
    pub config: DiskConfig,
    pub limits: Limits,
    pub time: Time,
    /// Bytes of one position's image.
    pub stride: usize,
}

impl Bench {
    pub fn new(dir: &Path) -> Bench {
        Bench {
            config: DiskConfig {
                dir: dir.to_path_buf(),
                budget_bytes: 1 << 40,
                daily_write_bytes: 1 << 40,
                snapshot_budget_bytes: 1 << 40,
            },
            limits: Limits::default(),
            time: Time::new(),
            stride: 24,
        }
    }

    pub fn open(&self) -> DiskStore {
        DiskStore::open_with(&self.config, self.limits.clone(), self.time.clock()).expect("the folder opens")
    }

    /// The image of `tokens[from..]`, each position's bytes following from all tokens up to it.
    pub fn image(&self, identity: &Identity, tokens: &[u32], from: usize) -> Vec<u8> {
        let mut state = Rng::for_label(7, &format!("{identity:?}")).u64();
        let mut out = Vec::new();
        for (position, &token) in tokens.iter().enumerate() {
            state = Rng::new(state ^ u64::from(token).rotate_left(17)).u64();
            if position >= from {
                out.extend(Rng::new(state).bytes(self.stride));
            }
        }
        out
    }

    pub fn snapshot(&self, identity: &Identity, tokens: &[u32]) -> Vec<u8> {
        self.image(identity, tokens, tokens.len() - 1).repeat(3)
    }

    /// Stores what is missing of a chain; `false` if the store refused or failed.
    pub fn put(&self, store: &DiskStore, identity: &Identity, tokens: &[u32]) -> bool {
        loop {
            let from = store.find(identity, tokens).tokens;
            if from == tokens.len() {
                return true;
            }
            let to = ((from / FRAGMENT_TOKENS + 1) * FRAGMENT_TOKENS).min(tokens.len());
            let image = self.image(identity, &tokens[..to], from);
            match store.append(identity, &tokens[..to], from, &image) {
                Ok(appended) if appended.refused.is_none() => assert_eq!(appended.stored_tokens, to),
                _ => return false,
            }
        }
    }

    /// Reads the longest stored prefix; every byte must be right. Returns the tokens found, and those that could be
    /// read up to the first miss.
    pub fn check(&self, store: &DiskStore, identity: &Identity, tokens: &[u32]) -> (usize, usize) {
        let found = store.find(identity, tokens);
        let mut next = 0;
        let mut read = None;
        for piece in &found.pieces {
            assert_eq!(piece.first, next, "pieces follow each other");
            assert!((1..=piece.tokens).contains(&piece.take_tokens), "{piece:?}");
            assert_eq!(piece.bytes as usize, piece.tokens * self.stride);
            next += piece.take_tokens;
            match store.read(piece) {
                Some(image) => {
                    let expected = self.image(identity, &tokens[..next], piece.first);
                    assert_eq!(image.len(), piece.tokens * self.stride);
                    assert!(image[..expected.len()] == expected, "other bytes at {}", piece.first);
                }
                None => read = read.or(Some(piece.first)),
            }
        }
        assert_eq!(next, found.tokens);
        for &(length, id) in &found.snapshots {
            assert!(length <= found.tokens);
            if let Some(bytes) = store.read_snapshot(id) {
                assert!(bytes == self.snapshot(identity, &tokens[..length]), "another state at {length}");
            }
        }
        (found.tokens, read.unwrap_or(found.tokens))
    }

    /// Everything of `tokens` is there.
    pub fn assert_whole(&self, store: &DiskStore, identity: &Identity, tokens: &[u32]) {
        assert_eq!(self.check(store, identity, tokens), (tokens.len(), tokens.len()));
    }

    pub fn segments(&self) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = fs::read_dir(&self.config.dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|ext| ext == "seg"))
            .collect();
        paths.sort();
        paths
    }

    pub fn index(&self) -> PathBuf {
        self.config.dir.join("kv.index")
    }

    /// Bytes of all files in the folder.
    pub fn disk_bytes(&self) -> u64 {
        fs::read_dir(&self.config.dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    }
}

pub fn identity(n: u8) -> Identity {
    [n; 32]
}

/// `count` tokens that no other seed begins with.
pub fn tokens(seed: u64, count: usize) -> Vec<u32> {
    let mut rng = Rng::new(seed);
    (0..count).map(|_| rng.u32() % 50_000).collect()
}

/// Copies a folder's files.
pub fn copy_folder(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
