//! How fast the disk tier is on this machine: appending, reading, opening, looking up, and what headers and index cost.
//!
//!     cargo run --release -p hob-model --example disk_speed -- FOLDER [FRAGMENTS] [KB_PER_TOKEN]
//!
//! FOLDER must not exist; it is made and removed again. Reads come from the page cache.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use hob_model::disk::{DiskConfig, DiskError, DiskStore, FRAGMENT_TOKENS};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |at: usize, default: usize| args.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let Some(folder) = args.first().map(Path::new).filter(|path| !path.exists()) else {
        eprintln!("usage: disk_speed FOLDER [FRAGMENTS] [KB_PER_TOKEN], where FOLDER does not exist yet");
        return ExitCode::FAILURE;
    };
    let result = measure(folder, number(1, 400), number(2, 10));
    let _ = std::fs::remove_dir_all(folder);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn measure(folder: &Path, fragments: usize, kilobytes: usize) -> Result<(), DiskError> {
    let config = DiskConfig {
        dir: folder.to_path_buf(),
        budget_bytes: 1 << 40,
        daily_write_bytes: 1 << 40,
        snapshot_budget_bytes: 1 << 40,
    };
    let identity = [1; 32];
    let tokens: Vec<u32> = (0..(fragments * FRAGMENT_TOKENS) as u32).collect();
    let image: Vec<u8> = (0..FRAGMENT_TOKENS * kilobytes * 1000).map(|n| (n * 31 + n / 977) as u8).collect();
    let gigabytes = (image.len() * fragments) as f64 / 1e9;
    let store = DiskStore::open(&config)?;
    let start = Instant::now();
    for end in (FRAGMENT_TOKENS..=tokens.len()).step_by(FRAGMENT_TOKENS) {
        store.append(&identity, &tokens[..end], end - FRAGMENT_TOKENS, &image)?;
    }
    let appended = start.elapsed().as_secs_f64();
    store.flush()?;
    let flushed = start.elapsed().as_secs_f64();
    let stats = store.stats();
    println!("{fragments} fragments of {} bytes", image.len());
    println!("append          {:.2} GB/s, {:.2} GB/s with fsync", gigabytes / appended, gigabytes / flushed);
    println!("written/payload {:.5}", stats.written_bytes as f64 / stats.payload_bytes as f64);
    drop(store);
    for what in ["open, by index ", "open, by headers"] {
        let start = Instant::now();
        let store = DiskStore::open(&config)?;
        println!("{what} {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        let found = store.find(&identity, &tokens);
        println!("  find {} tokens  {:.2} ms", found.tokens, start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        let read: usize =
            found.pieces.iter().filter_map(|piece| store.read(piece)).map(|bytes| bytes.len()).sum();
        println!("  read            {:.2} GB/s", read as f64 / 1e9 / start.elapsed().as_secs_f64());
        // The second time without the index.
        let _ = std::fs::remove_file(folder.join("kv.index"));
    }
    Ok(())
}
