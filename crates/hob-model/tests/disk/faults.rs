//! The system fails at every single step of a session: once, or for good (the process died, perhaps with the power).

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::Error;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use hob_files::store::faults;
use hob_model::disk::DiskStore;
use hob_testkit::rng::Rng;
use hob_testkit::temp::TempDir;

use crate::support::*;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Mode {
    Once,
    Dead,
}

/// What the hook has seen.
#[derive(Default)]
struct Seen {
    steps: Vec<&'static str>,
    failed: bool,
    /// Length of each file when it was last made durable.
    durable: HashMap<PathBuf, u64>,
}

/// Lets the `nth` step of this thread fail, and in [`Mode::Dead`] all later ones.
fn inject(nth: usize, mode: Mode, code: i32) -> Rc<RefCell<Seen>> {
    let seen = Rc::new(RefCell::new(Seen::default()));
    let log = seen.clone();
    faults::set(Some(Box::new(move |step, path: &Path| {
        let mut seen = log.borrow_mut();
        let at = seen.steps.len();
        seen.steps.push(step);
        if at == nth || (mode == Mode::Dead && at > nth) {
            seen.failed = true;
            return Err(Error::from_raw_os_error(code));
        }
        if step == "sync"
            && let Ok(facts) = fs::metadata(path)
        {
            seen.durable.insert(path.to_path_buf(), facts.len());
        }
        Ok(())
    })));
    seen
}

/// Chains of the session, and those that a successful flush before any fault promised to keep.
type Kept = Vec<Vec<u32>>;

/// Appends, snapshots, reads, flushes, segment changes and index writes; with `tight` budgets also eviction,
/// compaction and trimming. Errors are ignored as a cache's owner would: everything read is checked.
fn session(bench: &Bench, store: &DiskStore, failed: &dyn Fn() -> bool) -> Kept {
    let mut kept = Vec::new();
    let mut pending = Vec::new();
    for n in 0..4 {
        let chain = tokens(n, 60 + 230 * (n as usize % 2));
        for end in [40, chain.len()] {
            bench.time.pass(60);
            if bench.put(store, &identity(1), &chain[..end]) {
                pending.push(chain[..end].to_vec());
            }
            let bytes = bench.snapshot(&identity(1), &chain[..end]);
            let _ = store.append_snapshot(&identity(1), &chain[..end], &bytes, end == 40);
        }
        bench.check(store, &identity(1), &chain);
        if store.flush().is_ok() && !failed() {
            kept.append(&mut pending);
        }
        if n == 1 {
            // Gives up nothing, and writes the index.
            let _ = store.trim(1 << 40);
        }
    }
    bench.check(store, &identity(1), &tokens(0, 60));
    if store.flush().is_ok() && !failed() {
        kept.append(&mut pending);
    }
    kept
}

fn roomy(dir: &Path) -> Bench {
    let mut bench = Bench::new(dir);
    bench.limits.segment_bytes = 6000;
    bench
}

fn tight(dir: &Path) -> Bench {
    let mut bench = roomy(dir);
    bench.config.budget_bytes = 26_000;
    bench.config.snapshot_budget_bytes = 2_000;
    bench
}

/// After whatever happened: right bytes or none, and room for more.
fn assert_usable(bench: &Bench, store: &DiskStore, what: &str) {
    for n in 0..4 {
        bench.check(store, &identity(1), &tokens(n, 60 + 230 * (n as usize % 2)));
    }
    let fresh = tokens(77, 300);
    assert!(bench.put(store, &identity(1), &fresh), "{what}: no new append");
    store.flush().unwrap_or_else(|e| panic!("{what}: {e}"));
    bench.assert_whole(store, &identity(1), &fresh);
    bench.assert_whole(&bench.open(), &identity(1), &fresh);
}

/// Runs the session with the fault at every step; returns how many steps there are.
fn every_step(make: fn(&Path) -> Bench, keeps: bool, cut_power: bool) -> Vec<&'static str> {
    let folder = TempDir::new("faults");
    let count = |bench: &Bench| {
        let seen = inject(usize::MAX, Mode::Once, EIO);
        let store = bench.open();
        session(bench, &store, &|| false);
        faults::set(None);
        drop(store);
        seen.take().steps
    };
    let steps = count(&make(&folder.join("count")));
    assert!(steps.len() > 40, "{steps:?}");
    for (nth, step) in steps.iter().enumerate() {
        for (mode, code) in [(Mode::Once, EIO), (Mode::Once, ENOSPC), (Mode::Dead, EIO)] {
            let what = format!("step {nth} ({step}) {mode:?} {code}");
            let bench = make(&folder.join("kv"));
            let seen = inject(nth, mode, code);
            let kept = match DiskStore::open_with(&bench.config, bench.limits.clone(), bench.time.clock()) {
                Ok(store) => {
                    let kept = session(&bench, &store, &|| seen.borrow().failed);
                    if mode == Mode::Once {
                        faults::set(None);
                        assert_usable(&bench, &store, &what);
                    }
                    // Dead: dropped while every step still fails.
                    drop(store);
                    kept
                }
                Err(e) => {
                    assert_eq!(*step, "create", "{what}: {e}");
                    Kept::new()
                }
            };
            faults::set(None);
            if bench.config.dir.exists() {
                if cut_power && mode == Mode::Dead {
                    lose_what_is_not_durable(&bench, &seen.borrow().durable, nth as u64);
                }
                let again = bench.open();
                if keeps {
                    kept.iter().for_each(|chain| bench.assert_whole(&again, &identity(1), chain));
                }
                assert_usable(&bench, &again, &what);
                fs::remove_dir_all(&bench.config.dir).unwrap();
            }
        }
    }
    steps
}

/// What a power cut may do to bytes that were never made durable: the file is shorter, or sectors are zero.
fn lose_what_is_not_durable(bench: &Bench, durable: &HashMap<PathBuf, u64>, seed: u64) {
    let mut rng = Rng::new(seed);
    for path in bench.segments() {
        let safe = durable.get(&path).copied().unwrap_or(0);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let len = file.metadata().unwrap().len();
        let mut at = safe;
        while at < len {
            let end = ((at / 512 + 1) * 512).min(len);
            if rng.below(2) == 0 {
                file.write_all_at(&vec![0; (end - at) as usize], at).unwrap();
            }
            at = end;
        }
        if len > safe && rng.below(2) == 0 {
            file.set_len(safe + rng.below((len - safe) as usize) as u64).unwrap();
        }
    }
}

#[test]
fn a_fault_at_any_step_loses_nothing_flushed_and_invents_nothing() {
    let steps = every_step(roomy, true, false);
    for name in ["create", "append", "sync", "sync folder", "write", "flush", "rename"] {
        assert!(steps.contains(&name), "the session never comes to {name}: {steps:?}");
    }
    println!("{} steps, each failed three ways", steps.len());
}

#[test]
fn a_power_cut_at_any_step_keeps_what_was_flushed() {
    every_step(roomy, true, true);
}

#[test]
fn a_fault_at_any_step_of_eviction_and_compaction_gives_no_other_bytes() {
    let steps = every_step(tight, false, true);
    assert!(steps.contains(&"remove"), "{steps:?}");
    println!("{} steps, each failed three ways", steps.len());
}

#[test]
fn a_failed_append_is_an_error_with_its_reason_and_the_next_one_works() {
    let folder = TempDir::new("append");
    let bench = Bench::new(&folder.join("kv"));
    let store = bench.open();
    let chain = tokens(1, 20);
    let image = bench.image(&identity(1), &chain, 0);
    inject(1, Mode::Once, ENOSPC);
    let error = store.append(&identity(1), &chain, 0, &image).unwrap_err();
    faults::set(None);
    assert!(error.to_string().contains("disk is full"), "{error}");
    assert_eq!(store.find(&identity(1), &chain).tokens, 0);
    assert!(store.append(&identity(1), &chain, 0, &image).unwrap().bytes_written > 0);
    bench.assert_whole(&store, &identity(1), &chain);
    faults::set(Some(Box::new(|step, _| match step {
        "sync" => Err(Error::from_raw_os_error(EIO)),
        _ => Ok(()),
    })));
    assert!(store.flush().is_err(), "a sync that failed must be told");
    faults::set(None);
    bench.check(&store, &identity(1), &chain);
    store.flush().unwrap();
}

#[test]
fn an_index_left_half_written_by_a_dead_process_is_cleaned_up() {
    let folder = TempDir::new("leftover");
    let bench = Bench::new(&folder.join("kv"));
    let store = bench.open();
    let leftover = bench.config.dir.join(".kv.index.12345-0.tmp");
    fs::write(&leftover, "half").unwrap();
    assert!(bench.put(&store, &identity(1), &tokens(1, 256)));
    store.trim(1 << 30).unwrap();
    assert!(!leftover.exists() && bench.index().exists());
}
