//! Bytes change under the store: torn records, reordered sectors, flipped bits, hostile headers. Always "absent" or
//! "identical".

use std::fs;

use hob_testkit::rng::Rng;
use hob_testkit::temp::TempDir;

use crate::support::*;

/// A small store with every kind of record: fragments that branch, a snapshot, both notes; closed and indexed.
fn make(bench: &Bench, with_index: bool) -> Vec<Vec<u32>> {
    let trunk = tokens(1, 12);
    let branch = [&trunk[..8], &tokens(2, 3)[..]].concat();
    let other = tokens(3, 2);
    let store = bench.open();
    for (id, chain) in [(1, &trunk), (1, &branch), (2, &other)] {
        assert!(bench.put(&store, &identity(id), chain));
    }
    let state = bench.snapshot(&identity(1), &trunk[..10]);
    store.append_snapshot(&identity(1), &trunk[..10], &state, true).unwrap();
    bench.assert_whole(&store, &identity(1), &trunk);
    store.flush().unwrap();
    if with_index {
        store.trim(1 << 30).unwrap();
        assert!(bench.index().exists());
    }
    bench.assert_whole(&store, &identity(1), &branch);
    store.flush().unwrap();
    vec![trunk, branch, other]
}

/// Every read is right or nothing; the store takes more. Returns the tokens that could be read of all chains.
fn survey(bench: &Bench, chains: &[Vec<u32>]) -> usize {
    let store = bench.open();
    let mut read = 0;
    for chain in chains {
        for id in [1, 2] {
            read += bench.check(&store, &identity(id), chain).1;
        }
    }
    store.list();
    let fresh = tokens(99, 5);
    assert!(bench.put(&store, &identity(1), &fresh), "no new append");
    bench.assert_whole(&store, &identity(1), &fresh);
    // What was lost can be stored again, and all is whole.
    for (id, chain) in [1, 1, 2].into_iter().zip(chains) {
        assert!(bench.put(&store, &identity(id), chain));
        bench.assert_whole(&store, &identity(id), chain);
    }
    read
}

#[test]
fn every_flipped_bit_of_segments_and_index_is_absent_or_identical() {
    // Without an index the same segments are scanned: every byte, but not every bit again.
    for (with_index, step) in [(true, 1), (false, 9)] {
        let folder = TempDir::new("bits");
        let mut bench = Bench::new(&folder.join("kv"));
        bench.stride = 7;
        let chains = make(&bench, with_index);
        let (origin, dir) = (folder.join("kv"), folder.join("copy"));
        bench.config.dir = dir.clone();
        let mut files: Vec<_> = fs::read_dir(&origin).unwrap().map(|e| e.unwrap().file_name()).collect();
        files.retain(|name| name != "kv.lock");
        copy_folder(&origin, &dir);
        let whole = survey(&bench, &chains);
        assert_eq!(whole, 12 + 11 + 2);
        let (mut flips, mut harmed) = (0, 0);
        for name in &files {
            let bytes = fs::read(origin.join(name)).unwrap();
            for bit in (0..bytes.len() * 8).step_by(step) {
                copy_folder(&origin, &dir);
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                fs::write(dir.join(name), bad).unwrap();
                harmed += usize::from(survey(&bench, &chains) < whole);
                flips += 1;
            }
        }
        println!("{flips} bits flipped, {harmed} cost something");
        assert!(harmed > flips / 10, "the flips must hit something");
    }
}

#[test]
fn a_torn_last_record_is_absent_and_all_before_it_stay() {
    let folder = TempDir::new("torn");
    let mut bench = Bench::new(&folder.join("kv"));
    let [first, last] = [tokens(1, 40), tokens(2, 90)];
    let store = bench.open();
    assert!(bench.put(&store, &identity(1), &first));
    let before = fs::metadata(&bench.segments()[0]).unwrap().len() as usize;
    assert!(bench.put(&store, &identity(1), &last));
    drop(store);
    let path = bench.segments()[0].clone();
    let bytes = fs::read(&path).unwrap();
    bench.config.dir = folder.join("copy");
    let torn = |content: &[u8], what: &str, whole: bool| {
        let _ = fs::remove_dir_all(&bench.config.dir);
        fs::create_dir_all(&bench.config.dir).unwrap();
        fs::write(bench.config.dir.join(path.file_name().unwrap()), content).unwrap();
        let store = bench.open();
        bench.assert_whole(&store, &identity(1), &first);
        let read = bench.check(&store, &identity(1), &last).1;
        assert_eq!(read, if whole { last.len() } else { 0 }, "{what}");
        for chain in [&last, &tokens(3, 50)] {
            assert!(bench.put(&store, &identity(1), chain), "{what}");
            bench.assert_whole(&store, &identity(1), chain);
        }
        drop(store);
        bench.assert_whole(&bench.open(), &identity(1), &last);
    };
    for cut in before..bytes.len() {
        torn(&bytes[..cut], &format!("cut to {cut}"), false);
    }
    torn(&bytes, "whole", true);
    // Sectors arrive in any order: later ones present, earlier ones still zero.
    let sectors: Vec<_> =
        (before..bytes.len()).step_by(512).map(|at| at..(at + 512).min(bytes.len())).collect();
    for mask in 0..1u32 << sectors.len().min(10) {
        let mut content = bytes.clone();
        let mut lost = false;
        for (n, sector) in sectors.iter().enumerate().filter(|(n, _)| mask >> n & 1 == 0) {
            lost |= content[sector.clone()].iter().any(|&byte| byte != 0);
            content[sector.clone()].fill(0);
            assert!(n < 10);
        }
        torn(&content, &format!("sectors {mask:b}"), !lost);
    }
}

#[test]
fn garbage_between_records_is_skipped_and_the_records_behind_it_are_found() {
    let folder = TempDir::new("skip");
    let bench = Bench::new(&folder.join("kv"));
    let chains: Vec<_> = (0..8).map(|n| tokens(n, 50)).collect();
    let store = bench.open();
    let mut starts = Vec::new();
    for chain in &chains {
        starts.push(bench.segments().first().map_or(0, |path| fs::metadata(path).unwrap().len() as usize));
        assert!(bench.put(&store, &identity(1), chain));
    }
    drop(store);
    let path = &bench.segments()[0];
    let mut bytes = fs::read(path).unwrap();
    let mut rng = Rng::new(5);
    for n in [1, 2, 5] {
        rng.fill(&mut bytes[starts[n]..starts[n] + 300]);
    }
    fs::write(path, bytes).unwrap();
    let store = bench.open();
    for (n, chain) in chains.iter().enumerate() {
        let expected = if [1, 2, 5].contains(&n) { 0 } else { 50 };
        assert_eq!(bench.check(&store, &identity(1), chain).1, expected, "chain {n}");
    }
    assert!(bench.put(&store, &identity(1), &chains[1]));
    bench.assert_whole(&store, &identity(1), &chains[1]);
    assert_eq!(bench.segments().len(), 2, "nothing is appended behind damage");
}

#[test]
fn a_lost_beginning_hides_the_rest_until_it_is_stored_again() {
    let folder = TempDir::new("heal");
    let bench = Bench::new(&folder.join("kv"));
    let chain = tokens(1, 700);
    let store = bench.open();
    assert!(bench.put(&store, &identity(1), &chain));
    let path = &bench.segments()[0];
    let mut bytes = fs::read(path).unwrap();
    // In the image of the first fragment.
    bytes[2000] ^= 4;
    fs::write(path, bytes).unwrap();
    assert_eq!(bench.check(&store, &identity(1), &chain), (700, 0));
    assert_eq!(store.find(&identity(1), &chain).tokens, 0, "a miss is remembered");
    assert_eq!(store.verify().unwrap().orphans, 2);
    assert!(store.list().is_empty());
    let before = store.stats().payload_bytes;
    assert!(bench.put(&store, &identity(1), &chain));
    assert_eq!(store.stats().payload_bytes - before, 256 * bench.stride as u64, "only the lost part");
    bench.assert_whole(&store, &identity(1), &chain);
    store.flush().unwrap();
    bench.assert_whole(&bench.open(), &identity(1), &chain);
}

/// It was taken for stored for as long as its record was there.
#[test]
fn a_damaged_snapshot_that_comes_back_with_its_beginning_is_stored_anew() {
    let folder = TempDir::new("state");
    let bench = Bench::new(&folder.join("kv"));
    let (id, chain) = (identity(1), tokens(1, 100));
    let state = bench.snapshot(&id, &chain);
    let store = bench.open();
    assert!(bench.put(&store, &id, &chain));
    store.append_snapshot(&id, &chain, &state, true).unwrap();
    let path = &bench.segments()[0];
    let mut bytes = fs::read(path).unwrap();
    // In the image of the fragment, and in the state, behind which there are less than 64 zeros.
    let last = bytes.len() - 64;
    bytes[2000] ^= 4;
    bytes[last] ^= 4;
    fs::write(path, bytes).unwrap();
    assert_eq!(bench.check(&store, &id, &chain), (100, 0));
    assert!(bench.put(&store, &id, &chain));
    let again = store.append_snapshot(&id, &chain, &state, true).unwrap();
    assert!(again.bytes_written > 0, "{again:?}");
    let found = store.find(&id, &chain).snapshots;
    assert_eq!((found.len(), found[0].0), (1, 100));
    assert!(store.read_snapshot(found[0].1).is_some_and(|bytes| bytes == state));
    assert_eq!(store.append_snapshot(&id, &chain, &state, true).unwrap().bytes_written, 0);
}

#[test]
fn verifying_names_the_damage_and_forgets_it_for_good() {
    let folder = TempDir::new("verify");
    let bench = Bench::new(&folder.join("kv"));
    let store = bench.open();
    let chains: Vec<_> = (0..5).map(|n| tokens(n, 100)).collect();
    for chain in &chains {
        assert!(bench.put(&store, &identity(1), chain));
    }
    let report = store.verify().unwrap();
    assert_eq!((report.fragments, report.bad_count, report.bytes), (5, 0, 5 * 100 * 24));
    let path = bench.segments()[0].clone();
    let mut bytes = fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    fs::write(&path, bytes).unwrap();
    let report = store.verify().unwrap();
    assert_eq!((report.fragments, report.bad_count), (4, 1));
    assert_eq!((&report.bad[0].file, report.bad[0].offset), (&path, 0));
    assert!(report.bad[0].problem.contains("checksum"), "{:?}", report.bad);
    store.flush().unwrap();
    assert_eq!(bench.open().find(&identity(1), &chains[0]).tokens, 0);
    assert_eq!(bench.open().verify().unwrap().bad_count, 0);
}

#[test]
fn random_bytes_as_segments_and_index_cost_nothing_but_themselves() {
    let folder = TempDir::new("random");
    let bench = Bench::new(&folder.join("kv"));
    let chain = tokens(1, 300);
    let mut rng = Rng::new(9);
    fs::create_dir_all(&bench.config.dir).unwrap();
    for round in 0..40 {
        let magic = b"hobkv\0\0\x01".repeat(100);
        let mut bytes = rng.bytes(rng.clone().below(5000));
        bytes.extend(&magic[..rng.below(magic.len())]);
        bytes.extend(rng.bytes(3000));
        fs::write(bench.config.dir.join(format!("kv-{round:016x}.seg")), &bytes).unwrap();
        fs::write(bench.index(), &bytes).unwrap();
    }
    let store = bench.open();
    assert_eq!(store.find(&identity(1), &chain).tokens, 0);
    assert!(bench.put(&store, &identity(1), &chain));
    store.trim(1 << 30).unwrap();
    bench.assert_whole(&bench.open(), &identity(1), &chain);
    assert_eq!(store.verify().unwrap().foreign_files, 40);
    store.trim(0).unwrap();
    assert_eq!(bench.segments().len(), 40, "files without one right record are not the tier's to remove");
}
