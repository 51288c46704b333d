//! Any bytes as files of the disk tier: a segment, an index with a right footer, or a right store with bytes changed.
//! What is found is what was stored or nothing, and the store still takes more.
#![no_main]

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;

use hob_files::store;
use hob_model::disk::{DiskConfig, DiskStore, Limits, system_clock};
use hob_testkit::alloc::{CountingAllocator, measure_thread};
use hob_testkit::temp::TempDir;
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const CHAIN: [u32; 6] = [5, 6, 7, 8, 9, 10];
const OTHER: [u32; 4] = [5, 6, 7, 3];
const IDENTITY: [u8; 32] = [1; 32];

/// A folder to work in, and the files of a right store.
struct Ground {
    folder: TempDir,
    files: Vec<(String, Vec<u8>)>,
}

thread_local! {
    static GROUND: RefCell<Option<Ground>> = const { RefCell::new(None) };
}

fn config(dir: PathBuf) -> DiskConfig {
    DiskConfig { dir, budget_bytes: 1 << 30, daily_write_bytes: 1 << 30, snapshot_budget_bytes: 1 << 30 }
}

fn open(dir: PathBuf) -> DiskStore {
    DiskStore::open_with(&config(dir), Limits::default(), system_clock()).expect("the folder opens")
}

/// Two bytes per position, following from the tokens.
fn image(tokens: &[u32]) -> Vec<u8> {
    tokens.iter().flat_map(|&token| [token as u8, (token * 7) as u8]).collect()
}

fn prepare() -> Ground {
    let folder = TempDir::new("fuzz-disk");
    let dir = folder.join("origin");
    let store = open(dir.clone());
    for chain in [&CHAIN[..], &OTHER[..]] {
        let from = store.find(&IDENTITY, chain).tokens;
        store.append(&IDENTITY, chain, from, &image(&chain[from..])).expect("an append");
    }
    store.append_snapshot(&IDENTITY, &CHAIN, b"state", true).expect("a snapshot");
    store.trim(1 << 30).expect("an index");
    let read = |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    let files = fs::read_dir(&dir).unwrap().map(|entry| read(entry.unwrap())).collect();
    Ground { folder, files }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&mode, bytes)) = bytes.split_first() else { return };
    GROUND.with_borrow_mut(|ground| {
        let ground = ground.get_or_insert_with(prepare);
        let dir = ground.folder.join("kv");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        match mode % 3 {
            0 => fs::write(dir.join("kv-0000000000000001.seg"), bytes).unwrap(),
            1 => {
                ground.files.iter().for_each(|(name, content)| fs::write(dir.join(name), content).unwrap());
                store::write_checked(&dir.join("kv.index"), bytes).unwrap();
            }
            // Changes of three bytes each: file and place, value.
            _ => {
                for (name, content) in &ground.files {
                    let mut content = content.clone();
                    for &[low, high, value] in bytes.as_chunks().0 {
                        let at = usize::from(low) | usize::from(high) << 8;
                        if let Some(byte) = content.get_mut(at % 4096) {
                            *byte ^= value;
                        }
                    }
                    fs::write(dir.join(name), content).unwrap();
                }
            }
        }
        let (store, usage) = measure_thread(|| open(dir.clone()));
        // A buffer to search in, and a small multiple of what the files hold.
        assert!(usage.peak_bytes <= 16 * bytes.len() as u64 + (4 << 20), "peak of {} bytes", usage.peak_bytes);
        for chain in [&CHAIN[..], &OTHER[..]] {
            let found = store.find(&IDENTITY, chain);
            for piece in &found.pieces {
                if let Some(read) = store.read(piece) {
                    let end = piece.first + piece.take_tokens;
                    assert_eq!(read[..2 * piece.take_tokens], image(&chain[piece.first..end]));
                }
            }
            for (length, id) in found.snapshots {
                assert!(length <= found.tokens);
                assert!(store.read_snapshot(id).is_none_or(|state| state == b"state"));
            }
        }
        store.list();
        store.verify().expect("the folder lists");
        let fresh = [1, 2, 3];
        store.append(&IDENTITY, &fresh, 0, &image(&fresh)).expect("an append");
        assert_eq!(store.find(&IDENTITY, &fresh).tokens, 3);
        store.trim(0).expect("a trim");
    });
});
