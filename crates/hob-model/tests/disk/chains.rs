//! Storing and finding: prefixes, branches, identities, snapshots, what costs nothing, what is refused.

use hob_model::disk::{DiskError, DiskStore, FRAGMENT_TOKENS, Refusal};
use hob_testkit::temp::TempDir;

use crate::support::*;

#[test]
fn chains_come_back_byte_for_byte_also_after_reopening_and_without_the_index() {
    let folder = TempDir::new("chains");
    let bench = Bench::new(&folder.join("kv"));
    let chains: Vec<Vec<u32>> = [1, 30, 255, 256, 257, 1000].iter().map(|&n| tokens(n as u64, n)).collect();
    let store = bench.open();
    for chain in &chains {
        assert_eq!(bench.check(&store, &identity(1), chain).0, 0);
        assert!(bench.put(&store, &identity(1), chain));
    }
    let all =
        |store: &DiskStore| chains.iter().for_each(|chain| bench.assert_whole(store, &identity(1), chain));
    all(&store);
    // Nothing to give up, but it writes the index.
    store.trim(1 << 40).unwrap();
    drop(store);
    all(&bench.open());
    std::fs::remove_file(bench.index()).unwrap();
    all(&bench.open());
}

#[test]
fn a_lookup_ends_where_tokens_differ_and_a_branch_hangs_there() {
    let folder = TempDir::new("branch");
    let bench = Bench::new(&folder.join("kv"));
    let store = bench.open();
    let trunk = tokens(1, 600);
    assert!(bench.put(&store, &identity(1), &trunk));
    for cut in [1, 100, 256, 300, 599] {
        let mut branch = trunk[..cut].to_vec();
        branch.push(60_000);
        assert_eq!(bench.check(&store, &identity(1), &branch), (cut, cut), "before it is stored");
        branch.extend(tokens(cut as u64 + 2, 300));
        let before = store.stats().written_bytes;
        assert!(bench.put(&store, &identity(1), &branch));
        let written = store.stats().written_bytes - before;
        // At most three fragments' headers and padding.
        assert!(
            written < (301 * (bench.stride + 4) + 3 * 300) as u64,
            "{written}: the trunk was stored again"
        );
        bench.assert_whole(&store, &identity(1), &branch);
        bench.assert_whole(&store, &identity(1), &trunk);
    }
    let found = store.find(&identity(1), &trunk[..300]);
    let takes: Vec<_> = found.pieces.iter().map(|p| (p.first, p.tokens, p.take_tokens)).collect();
    assert_eq!(takes, [(0, 256, 256), (256, 256, 44)]);
    assert_eq!(found.bytes, 512 * bench.stride as u64);
    bench.assert_whole(&bench.open(), &identity(1), &trunk);
}

#[test]
fn what_is_stored_is_not_stored_again_and_turns_are_written_once() {
    let folder = TempDir::new("once");
    let bench = Bench::new(&folder.join("kv"));
    let store = bench.open();
    let chain = tokens(3, 200);
    let mut records = 0;
    for turn in 1..=6 {
        let to = turn * 30;
        let appended = store
            .append(&identity(1), &chain[..to], to - 30, &bench.image(&identity(1), &chain[..to], to - 30))
            .unwrap();
        records += appended.bytes_written;
        assert!(appended.bytes_written > 0 && appended.stored_tokens == to);
        let again = store
            .append(&identity(1), &chain[..to], to - 30, &bench.image(&identity(1), &chain[..to], to - 30))
            .unwrap();
        assert_eq!((again.bytes_written, again.stored_tokens, again.refused), (0, to, None));
    }
    assert_eq!(store.stats().written_bytes, records);
    assert_eq!(store.stats().fragments, 6);
    bench.assert_whole(&store, &identity(1), &chain[..180]);
    // A beginning stored under other cuts is found as it lies.
    let image = bench.image(&identity(1), &chain[..170], 0);
    assert_eq!(store.append(&identity(1), &chain[..170], 0, &image).unwrap().bytes_written, 0);
}

#[test]
fn gaps_overlaps_and_crossing_ranges_are_refused_with_what_to_do() {
    let folder = TempDir::new("refused");
    let mut bench = Bench::new(&folder.join("kv"));
    bench.limits.image_bytes = 1 << 20;
    bench.limits.chain_tokens = 900;
    let store = bench.open();
    let chain = tokens(4, 1000);
    assert!(bench.put(&store, &identity(1), &chain[..100]));
    let append = |to: usize, from: usize| {
        let appended = store.append(&identity(1), &chain[..to], from, &vec![0; to - from]).unwrap();
        (appended.bytes_written, appended.stored_tokens, appended.refused)
    };
    assert_eq!(append(200, 120), (0, 100, Some(Refusal::Gap)));
    assert_eq!(append(200, 50), (0, 100, Some(Refusal::Overlap)));
    for (to, from) in [(200, 200), (300, 200), (100, 300), (0, 0)] {
        let error = store.append(&identity(1), &chain[..to], from, &[1]).unwrap_err();
        assert!(matches!(error, DiskError::Input { .. }), "{error}");
    }
    let huge = vec![0; (1 << 20) + 1];
    assert_eq!(store.append(&identity(1), &chain[..101], 100, &huge).unwrap().refused, Some(Refusal::Limit));
    assert!(!bench.put(&store, &identity(1), &chain), "longer than the limit");
    assert_eq!(store.find(&identity(1), &chain).tokens, 768);
    assert_eq!(store.stats().refused_other, 4);
    bench.assert_whole(&store, &identity(1), &chain[..768]);
}

#[test]
fn another_identity_never_matches_and_equal_chains_are_kept_apart() {
    let folder = TempDir::new("identity");
    let bench = Bench::new(&folder.join("kv"));
    let store = bench.open();
    let chain = tokens(5, 300);
    assert!(bench.put(&store, &identity(1), &chain));
    // One bit of difference, as another revision of the numerics makes.
    let mut other = identity(1);
    other[31] ^= 1;
    for store in [&store, &bench.open()] {
        assert_eq!(store.find(&other, &chain).tokens, 0);
    }
    assert!(bench.put(&store, &other, &chain));
    bench.assert_whole(&store, &identity(1), &chain);
    bench.assert_whole(&store, &other, &chain);
    store.flush().unwrap();
    let again = bench.open();
    bench.assert_whole(&again, &identity(1), &chain);
    bench.assert_whole(&again, &other, &chain);
    assert_eq!(again.find(&identity(2), &chain).tokens, 0);
}

#[test]
fn snapshots_hang_on_exact_lengths_and_need_their_chain() {
    let folder = TempDir::new("snapshots");
    let bench = Bench::new(&folder.join("kv"));
    let store = bench.open();
    let chain = tokens(6, 400);
    let put = |length: usize| {
        let bytes = bench.snapshot(&identity(1), &chain[..length]);
        store.append_snapshot(&identity(1), &chain[..length], &bytes, true).unwrap()
    };
    assert_eq!(put(10).refused, Some(Refusal::Gap));
    assert!(bench.put(&store, &identity(1), &chain));
    for length in [1, 10, 256, 300, 400] {
        assert!(put(length).bytes_written > 0);
        assert_eq!((put(length).bytes_written, put(length).refused), (0, None), "a second time");
    }
    assert!(store.append_snapshot(&identity(1), &[], &[1], true).is_err());
    store.flush().unwrap();
    for store in [&store, &bench.open()] {
        let lengths = |tokens: &[u32]| {
            store.find(&identity(1), tokens).snapshots.iter().map(|(n, _)| *n).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&chain), [1, 10, 256, 300, 400]);
        assert_eq!(lengths(&chain[..399]), [1, 10, 256, 300]);
        let mut other = chain.clone();
        other[299] += 1;
        assert_eq!(lengths(&other), [1, 10, 256], "a state that saw another token is none");
        bench.assert_whole(store, &identity(1), &chain);
        assert_eq!(store.stats().snapshots, 5);
    }
    // A kept state is bytes of any kind: also none.
    let longer = [&chain[..], &[1]].concat();
    assert!(bench.put(&store, &identity(1), &longer));
    assert!(store.append_snapshot(&identity(1), &longer, &[], false).unwrap().bytes_written > 0);
    let found = store.find(&identity(1), &longer);
    assert_eq!(store.read_snapshot(found.snapshots.last().unwrap().1).unwrap(), Vec::<u8>::new());
}

#[test]
fn the_list_names_every_chain_once_with_its_own_cost() {
    let folder = TempDir::new("list");
    let bench = Bench::new(&folder.join("kv"));
    let store = bench.open();
    let trunk = tokens(8, 300);
    assert!(bench.put(&store, &identity(1), &trunk));
    bench.time.pass(100);
    let branch = [&trunk[..280], &tokens(9, 50)[..]].concat();
    assert!(bench.put(&store, &identity(1), &branch));
    bench.time.pass(50);
    assert!(bench.put(&store, &identity(2), &trunk[..5]));
    let list = store.list();
    let facts: Vec<_> = list.iter().map(|c| (c.identity[0], c.tokens, c.age_seconds)).collect();
    assert_eq!(facts, [(2, 5, 0), (1, 300, 50), (1, 330, 50)]);
    assert_eq!(list[0].first_tokens, &trunk[..5]);
    assert_eq!(list[2].first_tokens, &trunk[..64]);
    assert_eq!(list[0].own_bytes, list[0].bytes);
    assert_eq!(list[1].own_bytes, 0, "all of it is needed by the branch");
    assert!(list[2].own_bytes > 0 && list[2].own_bytes < list[2].bytes);
    bench.assert_whole(&store, &identity(1), &branch);
    assert_eq!(store.list().iter().map(|chain| chain.hits).max(), Some(1));
}

#[test]
fn headers_and_index_cost_little_over_fifty_turns() {
    let folder = TempDir::new("overhead");
    let mut bench = Bench::new(&folder.join("kv"));
    bench.stride = 10_000;
    let chain = tokens(10, 50 * 30 + 2000);
    let store = bench.open();
    assert!(bench.put(&store, &identity(1), &chain[..2000]));
    for turn in 1..=50 {
        assert!(bench.put(&store, &identity(1), &chain[..2000 + turn * 30]));
        store.flush().unwrap();
    }
    let stats = store.stats();
    assert_eq!(stats.payload_bytes, (chain.len() * bench.stride) as u64, "every position once");
    let ratio = stats.written_bytes as f64 / stats.payload_bytes as f64;
    println!("written / payload over 50 turns of 30 tokens: {ratio:.4}");
    assert!(ratio <= 1.02, "{ratio}");
    assert!(bench.disk_bytes() <= stats.written_bytes);
    // Whole pages cost less still.
    let folder = TempDir::new("overhead");
    let bench = Bench { config: Bench::new(&folder.join("kv")).config, ..bench };
    let store = bench.open();
    let chain = tokens(11, 20 * FRAGMENT_TOKENS);
    assert!(bench.put(&store, &identity(1), &chain));
    store.flush().unwrap();
    let stats = store.stats();
    let ratio = stats.written_bytes as f64 / stats.payload_bytes as f64;
    println!("written / payload of whole pages: {ratio:.5}");
    assert!(ratio <= 1.002, "{ratio}");
}

#[test]
fn a_process_per_turn_goes_on_in_the_same_segment() {
    let folder = TempDir::new("turns");
    let bench = Bench::new(&folder.join("kv"));
    let chain = tokens(12, 20 * 30);
    for turn in 1..=20 {
        let store = bench.open();
        assert!(bench.put(&store, &identity(1), &chain[..turn * 30]));
        bench.check(&store, &identity(1), &chain[..turn * 30]);
        store.flush().unwrap();
    }
    assert_eq!(bench.segments().len(), 1);
    let store = bench.open();
    bench.assert_whole(&store, &identity(1), &chain);
    // Uses are remembered across processes: the first fragment was read in every turn.
    assert!(store.list()[0].hits >= 1);
}
