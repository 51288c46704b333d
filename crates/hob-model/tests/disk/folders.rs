//! The folder itself: rights, links, foreign files, a disk that only reads, two stores at once.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use hob_model::disk::{DiskStore, Refusal};
use hob_testkit::temp::TempDir;

use crate::support::*;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn nothing_can_be_read_by_others_also_in_a_folder_that_was_open() {
    let folder = TempDir::new("rights");
    let bench = Bench::new(&folder.join("a/kv"));
    fs::create_dir_all(&bench.config.dir).unwrap();
    fs::set_permissions(&bench.config.dir, fs::Permissions::from_mode(0o777)).unwrap();
    let store = bench.open();
    assert!(bench.put(&store, &identity(1), &tokens(1, 300)));
    store.trim(1 << 30).unwrap();
    assert_eq!(mode(&bench.config.dir), 0o700);
    for entry in fs::read_dir(&bench.config.dir).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    let fresh = Bench::new(&folder.join("b/c/kv"));
    drop(fresh.open());
    assert_eq!(mode(&fresh.config.dir), 0o700);
}

#[test]
fn a_file_in_the_folders_place_is_a_clear_error() {
    let folder = TempDir::new("file");
    fs::write(folder.join("kv"), "text").unwrap();
    let bench = Bench::new(&folder.join("kv"));
    let error = DiskStore::open(&bench.config).unwrap_err().to_string();
    assert!(error.contains("kv") && error.contains("folder"), "{error}");
}

#[test]
fn links_and_pipes_with_a_segments_name_are_not_followed() {
    let folder = TempDir::new("links");
    let bench = Bench::new(&folder.join("kv"));
    let chain = tokens(1, 100);
    let store = bench.open();
    assert!(bench.put(&store, &identity(1), &chain));
    drop(store);
    let real = bench.segments()[0].clone();
    let moved = folder.join("elsewhere");
    fs::rename(&real, &moved).unwrap();
    symlink(&moved, &real).unwrap();
    symlink(folder.join("nowhere"), bench.index()).unwrap();
    symlink(&bench.config.dir, bench.config.dir.join("kv-00000000000000aa.seg")).unwrap();
    fs::create_dir(bench.config.dir.join("kv-00000000000000ab.seg")).unwrap();
    let store = bench.open();
    assert_eq!(store.find(&identity(1), &chain).tokens, 0);
    let length = fs::metadata(&moved).unwrap().len();
    assert!(bench.put(&store, &identity(1), &chain));
    store.trim(0).unwrap();
    assert_eq!(
        fs::metadata(&moved).unwrap().len(),
        length,
        "nothing was written through the link or removed"
    );
    assert!(real.symlink_metadata().unwrap().is_symlink());
}

#[test]
fn a_segment_replaced_by_a_link_after_opening_is_a_miss() {
    let folder = TempDir::new("swap");
    let bench = Bench::new(&folder.join("kv"));
    let chain = tokens(1, 100);
    let store = bench.open();
    assert!(bench.put(&store, &identity(1), &chain));
    let real = bench.segments()[0].clone();
    fs::rename(&real, folder.join("elsewhere")).unwrap();
    symlink(folder.join("elsewhere"), &real).unwrap();
    assert_eq!(bench.check(&store, &identity(1), &chain), (100, 0));
    assert_eq!(bench.check(&store, &identity(1), &chain), (0, 0), "and forgotten");
}

#[test]
fn foreign_files_are_left_alone() {
    let folder = TempDir::new("foreign");
    let bench = Bench::new(&folder.join("kv"));
    fs::create_dir_all(bench.config.dir.join("sub")).unwrap();
    let names = [
        "photo.jpg",
        "kv-.seg",
        "kv-00000000000000AA.seg",
        "kv-0123.seg",
        "kv.index.bak",
        ".kv-hidden",
        "x.seg",
    ];
    for name in names {
        fs::write(bench.config.dir.join(name), name).unwrap();
    }
    let mut bench = bench;
    bench.config.budget_bytes = 50_000;
    let store = bench.open();
    for n in 0..30 {
        assert!(bench.put(&store, &identity(1), &tokens(n, 200)));
    }
    store.flush().unwrap();
    assert_eq!(store.verify().unwrap().foreign_files, names.len() + 1);
    store.trim(0).unwrap();
    for name in names {
        assert_eq!(fs::read_to_string(bench.config.dir.join(name)).unwrap(), name);
    }
}

#[test]
fn a_folder_that_only_reads_still_gives_what_it_has() {
    let folder = TempDir::new("readonly");
    let bench = Bench::new(&folder.join("kv"));
    let chain = tokens(1, 300);
    let store = bench.open();
    assert!(bench.put(&store, &identity(1), &chain));
    store.flush().unwrap();
    drop(store);
    for path in bench.segments() {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    }
    fs::set_permissions(&bench.config.dir, fs::Permissions::from_mode(0o500)).unwrap();
    let writable = fs::write(bench.config.dir.join("probe"), "").is_ok();
    if writable {
        println!("skipped: this user may write to a folder without write permission");
    } else {
        let store = bench.open();
        bench.assert_whole(&store, &identity(1), &chain);
        let image = bench.image(&identity(1), &tokens(2, 10), 0);
        assert!(store.append(&identity(1), &tokens(2, 10), 0, &image).is_err());
        bench.assert_whole(&store, &identity(1), &chain);
        store.flush().unwrap();
        assert!(store.trim(0).is_err());
    }
    fs::set_permissions(&bench.config.dir, fs::Permissions::from_mode(0o700)).unwrap();
    // The same through a system that refuses, whoever the user is.
    let store = bench.open();
    hob_files::store::faults::set(Some(Box::new(|_, _| Err(std::io::ErrorKind::ReadOnlyFilesystem.into()))));
    bench.assert_whole(&store, &identity(1), &chain);
    let image = bench.image(&identity(1), &tokens(2, 10), 0);
    assert!(store.append(&identity(1), &tokens(2, 10), 0, &image).is_err());
    assert!(store.flush().is_ok(), "there is nothing of ours to make durable");
    bench.assert_whole(&store, &identity(1), &chain);
    hob_files::store::faults::set(None);
}

#[test]
fn two_stores_see_each_other_and_write_apart() {
    let folder = TempDir::new("two");
    let bench = Bench::new(&folder.join("kv"));
    let (a, b) = (bench.open(), bench.open());
    let [one, two, both] = [tokens(1, 400), tokens(2, 400), tokens(3, 400)];
    assert!(bench.put(&a, &identity(1), &one) && bench.put(&b, &identity(1), &two));
    // Stored by both before either knew of the other.
    assert!(bench.put(&a, &identity(1), &both) && bench.put(&b, &identity(1), &both));
    assert_eq!(bench.segments().len(), 2);
    assert_eq!(b.find(&identity(1), &one).tokens, 0);
    a.refresh().unwrap();
    b.refresh().unwrap();
    for store in [&a, &b, &bench.open()] {
        for chain in [&one, &two, &both] {
            bench.assert_whole(store, &identity(1), chain);
        }
    }
    // Each goes on where the other stopped, and rivals of one beginning are told apart.
    let [left, right] = [9, 8].map(|seed| [&both[..], &tokens(seed, 70)].concat());
    assert!(bench.put(&a, &identity(1), &left) && bench.put(&b, &identity(1), &right));
    a.flush().unwrap();
    b.flush().unwrap();
    let fresh = bench.open();
    for store in [&a, &fresh] {
        store.refresh().unwrap();
        bench.assert_whole(store, &identity(1), &left);
        bench.assert_whole(store, &identity(1), &right);
    }
    let tomb = a.trim(0).unwrap();
    assert!(tomb.records > 0);
    bench.check(&b, &identity(1), &one);
    b.refresh().unwrap();
    bench.check(&b, &identity(1), &right);
    assert!(bench.put(&b, &identity(1), &one));
    bench.assert_whole(&b, &identity(1), &one);
}

#[test]
fn rivals_of_one_beginning_cost_bounded_work_and_the_longest_wins() {
    let folder = TempDir::new("rivals");
    let bench = Bench::new(&folder.join("kv"));
    // Six processes store the same beginning under different cuts, each with an end of its own.
    let trunk = tokens(1, 250);
    let stores: Vec<_> = (0..6).map(|_| bench.open()).collect();
    let chains: Vec<Vec<u32>> =
        (0..6).map(|n| [&trunk[..200 + n], &tokens(50 + n as u64, 300)].concat()).collect();
    for (n, (store, chain)) in stores.iter().zip(&chains).enumerate() {
        assert!(bench.put(store, &identity(1), &trunk[..100 + n]));
        assert!(bench.put(store, &identity(1), chain));
        store.flush().unwrap();
    }
    let store = bench.open();
    chains.iter().for_each(|chain| bench.assert_whole(&store, &identity(1), chain));
    // Their open segments would be theirs to keep.
    drop((store, stores));
    // With room for half of what they stored, the folder's lock lets one tidy; the others refuse or go on.
    let mut bench = bench;
    bench.config.budget_bytes = 60_000;
    let (a, b) = (bench.open(), bench.open());
    for n in 100..130 {
        let chain = tokens(n, 100);
        for store in [&a, &b] {
            let image = bench.image(&identity(1), &chain, 0);
            let appended = store.append(&identity(1), &chain, 0, &image).unwrap();
            assert!(matches!(appended.refused, None | Some(Refusal::Budget)), "{appended:?}");
            bench.check(store, &identity(1), &chain);
        }
    }
    assert!(bench.disk_bytes() <= bench.config.budget_bytes, "{}", bench.disk_bytes());
}
