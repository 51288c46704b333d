//! Two processes on one folder: this binary starts itself, both write, and the other is killed without warning.

use std::env;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hob_model::disk::DiskStore;
use hob_testkit::temp::TempDir;

use crate::support::*;

const FOLDER: &str = "HOB_TEST_DISK_FOLDER";
const BUDGET: &str = "HOB_TEST_DISK_BUDGET";

fn bench(dir: &Path, budget: u64) -> Bench {
    let mut bench = Bench::new(dir);
    bench.config.budget_bytes = budget;
    bench.limits.segment_bytes = 100_000;
    bench
}

/// What the other process stores: chain `n` has this many tokens.
fn theirs(n: u64) -> Vec<u32> {
    tokens(1_000_000 + n % 200, 50 + 37 * (n as usize % 12))
}

/// The other process: stores, reads and flushes until it is killed.
#[test]
#[ignore = "started by the tests beside it, in a process of its own"]
fn other_process() {
    let (Ok(folder), Ok(budget)) = (env::var(FOLDER), env::var(BUDGET)) else {
        println!("skipped: only of use as a child of the other tests");
        return;
    };
    let bench = bench(Path::new(&folder), budget.parse().unwrap());
    let store = bench.open();
    for n in 0.. {
        bench.put(&store, &identity(1), &theirs(n));
        bench.check(&store, &identity(1), &theirs(n));
        if n % 3 == 0 {
            store.flush().unwrap();
        }
    }
}

fn start(bench: &Bench) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--ignored", "--exact", "processes::other_process"])
        .env(FOLDER, &bench.config.dir)
        .env(BUDGET, bench.config.budget_bytes.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Waits until the other process has stored chain `n`; it must not have ended by itself.
fn wait_for(bench: &Bench, store: &DiskStore, child: &mut Child, n: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while store.find(&identity(1), &theirs(n)).tokens == 0 {
        assert!(child.try_wait().unwrap().is_none(), "the other process ended");
        assert!(Instant::now() < deadline, "the other process stores nothing");
        store.refresh().unwrap();
        bench.check(store, &identity(1), &theirs(n));
    }
}

#[test]
fn a_process_killed_while_writing_loses_at_most_its_last_record() {
    let folder = TempDir::new("killed");
    let bench = bench(&folder.join("kv"), 1 << 40);
    let store = bench.open();
    for round in 0..6 {
        let mut child = start(&bench);
        wait_for(&bench, &store, &mut child, 5 + round * 7);
        for n in 0..10 {
            assert!(bench.put(&store, &identity(1), &tokens(round * 10 + n, 300)));
        }
        store.flush().unwrap();
        // SIGKILL, to this child alone.
        child.kill().unwrap();
        child.wait().unwrap();
        for store in [&store, &bench.open()] {
            store.refresh().unwrap();
            for n in 0..(5 + round * 7) {
                bench.assert_whole(store, &identity(1), &theirs(n));
            }
            for n in 0..(round + 1) * 10 {
                bench.assert_whole(store, &identity(1), &tokens(n, 300));
            }
            for n in 0..200 {
                let (found, read) = bench.check(store, &identity(1), &theirs(n));
                assert_eq!(found, read, "only whole records are found");
            }
        }
        assert_eq!(bench.open().verify().unwrap().bad_count, 0);
    }
}

#[test]
fn two_processes_that_evict_from_each_other_read_right_bytes_or_none() {
    let folder = TempDir::new("evict");
    let bench = bench(&folder.join("kv"), 400_000);
    let store = bench.open();
    let mut child = start(&bench);
    wait_for(&bench, &store, &mut child, 20);
    let mut stored = 0;
    for n in 0..400 {
        let chain = tokens(n, 100 + n as usize % 500);
        stored += usize::from(bench.put(&store, &identity(1), &chain));
        bench.check(&store, &identity(1), &chain);
        bench.check(&store, &identity(1), &theirs(n));
        if n % 5 == 0 {
            store.flush().unwrap();
        }
        assert!(child.try_wait().unwrap().is_none(), "the other process ended");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(stored > 0, "the other process must not keep this one from storing");
    println!("{stored} of 400 chains stored beside the other process");
    let again = bench.open();
    for n in 0..400 {
        bench.check(&again, &identity(1), &tokens(n, 100 + n as usize % 500));
        bench.check(&again, &identity(1), &theirs(n));
    }
    again.trim(100_000).unwrap();
    assert!(bench.disk_bytes() <= 100_000);
}
