//! A test of this binary run again in a process of its own, to be killed or starved.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hob_engine::CacheConfig;
use hob_model::disk::DiskStore;

/// Long enough for everything to reach the disk.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Name a child's folder and its model; not set in the parent.
const DIR: &str = "HOB_TEST_CHILD_DIR";
const MODEL: &str = "HOB_TEST_CHILD_MODEL";

/// What a child is told.
pub struct Child {
    pub dir: PathBuf,
    pub model: String,
}

impl Child {
    /// Runs `test` of the same binary behind a line of shell.
    pub fn start(test: &str, model: &str, dir: &Path, shell: &str) -> std::process::Child {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{shell} exec \"$0\" \"$@\"")).arg(std::env::current_exe().unwrap());
        command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
        command.env(DIR, dir).env(MODEL, model);
        command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap()
    }

    /// What this process was told; `None` in the parent.
    pub fn of_this_process() -> Option<Child> {
        let dir = PathBuf::from(std::env::var_os(DIR)?);
        Some(Child { dir, model: std::env::var(MODEL).unwrap() })
    }
}

/// Waits until the store holds a chain of so many tokens, as another process sees it.
pub fn wait_for_tokens(cache: &CacheConfig, tokens: usize) {
    let since = Instant::now();
    loop {
        let store = DiskStore::open(cache.disk.as_ref().unwrap()).unwrap();
        if store.list().iter().any(|chain| chain.tokens >= tokens) {
            return;
        }
        assert!(since.elapsed() < PATIENCE, "the child stores nothing");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Until a snapshot of recurrent state at `at` tokens or later is on disk: it is written behind the positions.
pub fn wait_for_snapshot(cache: &CacheConfig, tokens: &[u32], at: usize) {
    let since = Instant::now();
    loop {
        let store = DiskStore::open(cache.disk.as_ref().unwrap()).unwrap();
        let chains = store.list();
        let mut found = chains.iter().flat_map(|chain| store.find(&chain.identity, tokens).snapshots);
        if found.any(|(len, _)| len >= at) {
            return;
        }
        assert!(since.elapsed() < PATIENCE, "the child stores no snapshot");
        std::thread::sleep(Duration::from_millis(50));
    }
}
