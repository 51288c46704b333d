//! Budgets: bytes on disk, bytes per day, snapshots; what is given up first, and that its room is really given back.

use hob_model::disk::{DiskStore, Refusal};
use hob_testkit::temp::TempDir;

use crate::support::*;

/// A store of about `records` full fragments.
fn small(folder: &TempDir, records: u64) -> Bench {
    let mut bench = Bench::new(&folder.join("kv"));
    bench.stride = 100;
    bench.config.budget_bytes = records * 27_000;
    bench
}

fn refusal(bench: &Bench, store: &DiskStore, chain: &[u32]) -> Option<Refusal> {
    store.append(&identity(1), chain, 0, &bench.image(&identity(1), chain, 0)).unwrap().refused
}

#[test]
fn files_stay_within_the_budget_whatever_is_appended() {
    let folder = TempDir::new("budget");
    let bench = small(&folder, 20);
    let store = bench.open();
    for n in 0..120 {
        let chain = tokens(n, 256 * (1 + n as usize % 3));
        assert!(bench.put(&store, &identity(1), &chain), "chain {n}");
        bench.assert_whole(&store, &identity(1), &chain);
        assert!(bench.disk_bytes() <= bench.config.budget_bytes, "{} at {n}", bench.disk_bytes());
        assert!(store.stats().bytes <= bench.disk_bytes(), "the store knows what it takes");
        bench.time.pass(60);
        if n % 7 == 0 {
            store.flush().unwrap();
        }
    }
    let stats = store.stats();
    assert!(stats.evicted > 100 && stats.refused_budget == 0, "{stats:?}");
    assert!(stats.live_bytes > bench.config.budget_bytes / 3, "too much was given up: {stats:?}");
    store.flush().unwrap();
    let again = bench.open();
    assert!(again.stats().live_bytes <= stats.live_bytes + 30_000, "what was given up came back");
    for n in 0..120 {
        bench.check(&again, &identity(1), &tokens(n, 256 * (1 + n as usize % 3)));
    }
}

#[test]
fn the_end_of_a_chain_goes_before_its_beginning() {
    let folder = TempDir::new("leaf");
    let bench = small(&folder, 20);
    let store = bench.open();
    let old = tokens(1, 10 * 256);
    assert!(bench.put(&store, &identity(1), &old));
    let mut lengths = vec![old.len()];
    for n in 0..40 {
        bench.time.pass(3600);
        assert!(bench.put(&store, &identity(1), &tokens(100 + n, 256)));
        // A store opened beside it: looking must not protect the chain in the store under test.
        lengths.push(bench.open().find(&identity(1), &old).tokens);
    }
    let mut sorted = lengths.clone();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!(lengths, sorted, "it only ever gets shorter, from its end");
    assert!(
        lengths.iter().any(|&n| n > 0 && n < old.len()) && lengths.last() < Some(&old.len()),
        "{lengths:?}"
    );
}

#[test]
fn what_is_read_often_outlives_what_is_not() {
    let folder = TempDir::new("hits");
    let bench = small(&folder, 20);
    let store = bench.open();
    let [loved, unloved] = [tokens(1, 512), tokens(2, 512)];
    assert!(bench.put(&store, &identity(1), &loved) && bench.put(&store, &identity(1), &unloved));
    for _ in 0..5 {
        bench.check(&store, &identity(1), &loved);
    }
    store.flush().unwrap();
    drop(store);
    // The reads are remembered by the next process.
    let store = bench.open();
    for n in 0..30 {
        bench.time.pass(60);
        assert!(bench.put(&store, &identity(1), &tokens(100 + n, 256)));
    }
    bench.assert_whole(&store, &identity(1), &loved);
    assert_eq!(store.find(&identity(1), &unloved).tokens, 0);
    // Two days later the reads weigh nothing any more.
    bench.time.pass(2 * DAY);
    store.find(&identity(1), &[1]);
    for n in 0..40 {
        bench.time.pass(60);
        let chain = tokens(200 + n, 256);
        assert!(bench.put(&store, &identity(1), &chain));
        bench.check(&store, &identity(1), &chain);
    }
    assert_eq!(store.find(&identity(1), &loved).tokens, 0);
}

#[test]
fn the_chain_being_written_or_read_is_not_given_up() {
    let folder = TempDir::new("protected");
    let bench = small(&folder, 20);
    let store = bench.open();
    let read = tokens(1, 4 * 256);
    assert!(bench.put(&store, &identity(1), &read));
    bench.time.pass(DAY);
    // One chain longer than the budget: it fills what is there and is refused then, it never eats itself.
    let long = tokens(2, 40 * 256);
    let mut stored = 0;
    for end in (256..=long.len()).step_by(256) {
        store.find(&identity(1), &read);
        let image = bench.image(&identity(1), &long[..end], end - 256);
        let appended = store.append(&identity(1), &long[..end], end - 256, &image).unwrap();
        if appended.refused == Some(Refusal::Budget) {
            break;
        }
        assert_eq!(appended.refused, None);
        stored = end;
    }
    assert!((8 * 256..16 * 256).contains(&stored), "{stored}");
    assert_eq!(store.stats().refused_budget, 1);
    bench.assert_whole(&store, &identity(1), &long[..stored]);
    bench.assert_whole(&store, &identity(1), &read);
    assert!(bench.disk_bytes() <= bench.config.budget_bytes);
    // Once it is no longer the last one written, it has to go like others.
    assert!(bench.put(&store, &identity(1), &tokens(3, 256)));
}

#[test]
fn sparse_segments_are_copied_together_and_their_room_comes_back() {
    let folder = TempDir::new("sparse");
    let mut bench = small(&folder, 400);
    bench.limits.segment_bytes = 20 * 27_000;
    let store = bench.open();
    // Chains share segments by turns; all but every fifth will be damaged beyond use.
    for n in 0..100 {
        assert!(bench.put(&store, &identity(1), &tokens(n, 256)));
    }
    store.flush().unwrap();
    let before = bench.disk_bytes();
    let spoil = |n: u64| !n.is_multiple_of(5);
    for path in bench.segments() {
        let mut bytes = std::fs::read(&path).unwrap();
        for n in (0..100).filter(|&n| spoil(n)) {
            let chain = tokens(n, 256);
            let image = bench.image(&identity(1), &chain, 0);
            if let Some(at) = bytes.windows(64).position(|window| window == &image[..64]) {
                bytes[at] ^= 1;
            }
        }
        std::fs::write(&path, bytes).unwrap();
    }
    let report = store.verify().unwrap();
    assert_eq!((report.bad_count, report.fragments), (80, 20));
    store.flush().unwrap();
    let stats = store.stats();
    assert!(stats.compacted_bytes > 0 && stats.tidy_errors == 0, "{stats:?}");
    assert!(bench.disk_bytes() < before / 3, "{} of {before}", bench.disk_bytes());
    assert!(stats.written_today >= stats.compacted_bytes + before, "compaction counts as written");
    for store in [&store, &bench.open()] {
        for n in 0..100 {
            let expected = if spoil(n) { 0 } else { 256 };
            assert_eq!(bench.check(store, &identity(1), &tokens(n, 256)), (expected, expected), "chain {n}");
        }
    }
}

#[test]
fn the_day_has_its_budget_and_the_next_one_another() {
    let folder = TempDir::new("daily");
    let mut bench = small(&folder, 1000);
    bench.config.daily_write_bytes = 100_000;
    let mut store = bench.open();
    let fill = |store: &DiskStore, from: u64| {
        (from..from + 20).filter(|&n| bench.put(store, &identity(1), &tokens(n, 256))).count()
    };
    assert_eq!(fill(&store, 0), 3);
    assert_eq!(refusal(&bench, &store, &tokens(90, 256)), Some(Refusal::DailyBudget));
    assert!(store.stats().refused_daily >= 18);
    for round in 0..3 {
        // Not after a restart either, with or without the index, nor with a clock set back.
        store.flush().unwrap();
        drop(store);
        if round == 1 {
            let _ = std::fs::remove_file(bench.index());
        }
        if round == 2 {
            bench.time.set(NOON - 3600);
        }
        store = bench.open();
        assert_eq!(fill(&store, 20), 0, "round {round}");
    }
    let today = store.stats().written_today;
    assert!(today <= bench.config.daily_write_bytes && today >= 3 * 25_600, "{today}");
    bench.time.set(NOON + DAY);
    assert_eq!(store.stats().written_today, 0);
    assert_eq!(fill(&store, 40), 3);
    // Midnight back and forth is no new day.
    bench.time.set(NOON + DAY - 13 * 3600);
    assert_eq!(fill(&store, 60), 0);
    bench.time.set(NOON + DAY);
    assert_eq!(fill(&store, 60), 0);
    assert!(store.stats().tidy_errors == 0);
}

#[test]
fn a_date_far_in_the_future_does_not_block_writing_forever() {
    let folder = TempDir::new("future");
    let mut bench = small(&folder, 1000);
    bench.config.daily_write_bytes = 60_000;
    bench.time.set(NOON + 1000 * DAY);
    let store = bench.open();
    assert!(
        bench.put(&store, &identity(1), &tokens(1, 256)) && bench.put(&store, &identity(1), &tokens(2, 256))
    );
    assert!(!bench.put(&store, &identity(1), &tokens(3, 256)));
    store.flush().unwrap();
    bench.time.set(NOON);
    assert!(bench.put(&store, &identity(1), &tokens(3, 256)), "the same process");
    assert!(bench.put(&bench.open(), &identity(1), &tokens(4, 256)), "the next one");
    bench.assert_whole(&store, &identity(1), &tokens(1, 256));
}

#[test]
fn compaction_stays_within_the_day_and_eviction_goes_on_without_it() {
    let folder = TempDir::new("wear");
    let mut bench = small(&folder, 40);
    bench.limits.segment_bytes = 5 * 27_000;
    let store = bench.open();
    for n in 0..36 {
        assert!(bench.put(&store, &identity(1), &tokens(n, 256)));
        if n % 4 == 0 {
            bench.check(&store, &identity(1), &tokens(n, 256));
        }
    }
    store.flush().unwrap();
    drop(store);
    // Only a few appends are left today, and no room for compaction.
    bench.config.daily_write_bytes = bench.open().stats().written_today + 4 * 27_000;
    let store = bench.open();
    let mut stored = 0;
    for n in 100..120 {
        stored += usize::from(bench.put(&store, &identity(1), &tokens(n, 256)));
        assert!(bench.disk_bytes() <= bench.config.budget_bytes);
    }
    let stats = store.stats();
    assert!(stats.written_today <= bench.config.daily_write_bytes, "{stats:?}");
    assert!(stored >= 1 && stats.refused_daily > 0, "{stats:?}");
}

#[test]
fn a_budget_of_nothing_stores_nothing_and_makes_no_file() {
    for (budget, daily) in [(0, 1 << 30), (1 << 30, 0), (100, 1 << 30)] {
        let folder = TempDir::new("nothing");
        let mut bench = Bench::new(&folder.join("kv"));
        (bench.config.budget_bytes, bench.config.daily_write_bytes) = (budget, daily);
        let store = bench.open();
        let chain = tokens(1, 100);
        let expected = if daily == 0 { Refusal::DailyBudget } else { Refusal::Budget };
        assert_eq!(refusal(&bench, &store, &chain), Some(expected));
        store.flush().unwrap();
        assert_eq!(store.find(&identity(1), &chain).tokens, 0);
        assert_eq!(bench.segments().len(), 0);
        store.trim(0).unwrap();
    }
}

#[test]
fn snapshots_have_their_own_budget_and_the_newest_and_turn_ends_stay_longest() {
    let folder = TempDir::new("snapshots");
    let mut bench = Bench::new(&folder.join("kv"));
    bench.stride = 1000;
    // Each takes 3,000 bytes and a header.
    bench.config.snapshot_budget_bytes = 8 * 3264;
    let store = bench.open();
    let [a, b] = [tokens(1, 1000), tokens(2, 300)];
    assert!(bench.put(&store, &identity(1), &a) && bench.put(&store, &identity(1), &b));
    let put = |chain: &[u32], turn_end: bool| {
        bench.time.pass(60);
        let bytes = bench.snapshot(&identity(1), chain);
        store.append_snapshot(&identity(1), chain, &bytes, turn_end).unwrap().refused
    };
    assert_eq!(put(&b[..300], false), None);
    for length in [100, 256, 300, 512, 600, 768] {
        assert_eq!(put(&a[..length], length % 256 != 0), None);
    }
    let lengths =
        |chain: &[u32]| store.find(&identity(1), chain).snapshots.iter().map(|(n, _)| *n).collect::<Vec<_>>();
    assert_eq!(put(&a[..1000], true), None);
    assert_eq!(lengths(&a).len() + lengths(&b).len(), 8);
    assert_eq!(put(&a[..900], true), None);
    assert!(store.stats().snapshot_bytes <= bench.config.snapshot_budget_bytes);
    let kept = lengths(&a);
    assert!([100, 300, 600, 900, 1000].iter().all(|turn| kept.contains(turn)), "{kept:?}");
    assert!(!kept.contains(&256), "{kept:?}");
    assert_eq!(lengths(&b), [300], "the newest of its chain, though not of a turn");
    for length in (100..1000).step_by(50) {
        assert_eq!(put(&a[..length], true), None);
        assert!(store.stats().snapshot_bytes <= bench.config.snapshot_budget_bytes);
    }
    assert!(lengths(&a).contains(&1000) && lengths(&b) == [300], "{:?}", lengths(&a));
    bench.check(&store, &identity(1), &a);
    let huge = vec![0; bench.config.snapshot_budget_bytes as usize];
    let refused = store.append_snapshot(&identity(1), &b[..7], &huge, true).unwrap().refused;
    assert_eq!(refused, Some(Refusal::SnapshotBudget));
}

#[test]
fn trimming_gives_room_back_down_to_nothing() {
    let folder = TempDir::new("trim");
    let bench = small(&folder, 100);
    let store = bench.open();
    for n in 0..40 {
        bench.time.pass(60);
        assert!(bench.put(&store, &identity(1), &tokens(n, 256)));
    }
    store.flush().unwrap();
    let before = bench.disk_bytes();
    let trimmed = store.trim(before / 2).unwrap();
    assert!(bench.disk_bytes() <= before / 2 && trimmed.after_bytes <= before / 2, "{trimmed:?}");
    assert!(trimmed.before_bytes <= before && trimmed.records > 0);
    bench.assert_whole(&store, &identity(1), &tokens(39, 256));
    assert_eq!(bench.open().find(&identity(1), &tokens(0, 256)).tokens, 0);
    let trimmed = store.trim(0).unwrap();
    assert!(bench.segments().is_empty() && bench.disk_bytes() < 500, "{trimmed:?}");
    assert!(store.list().is_empty());
    assert!(bench.put(&store, &identity(1), &tokens(1, 256)), "it goes on");
    bench.assert_whole(&store, &identity(1), &tokens(1, 256));
}
