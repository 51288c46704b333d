//! The closed door: every file of attacks/ is refused by the rule it was built for, cheaply; every prefix of a valid
//! file is refused; seeded mutations never panic and never yield a tensor outside the file.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hob_files::{FileError, Limits, ModelFile, gguf, safetensors};
use hob_testkit::alloc::{CountingAllocator, measure_thread};
use hob_testkit::rng::Rng;
use hob_testkit::temp::TempDir;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const SLACK_BYTES: u64 = 1 << 20;

fn attacks() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../attacks")
}

/// A line of expected.tsv.
struct Attack {
    name: String,
    access: String,
    rule: String,
    phrase: String,
}

fn expected() -> Vec<Attack> {
    let table =
        fs::read_to_string(attacks().join("expected.tsv")).expect("attacks/expected.tsv is committed");
    table
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let fields: Vec<String> = line.split('\t').map(str::to_string).collect();
            let [name, access, rule, phrase] = fields.try_into().expect("four fields");
            Attack { name, access, rule, phrase }
        })
        .collect()
}

/// Opens a file; for a typed access, opens it and reads `key`.
fn attempt(path: &Path, access: &str, key: &str) -> Result<(), FileError> {
    let model = ModelFile::open(path)?;
    let metadata = model.metadata();
    match access {
        "open" => Ok(()),
        "str" => metadata.str(key).map(drop),
        "u64" => metadata.u64(key).map(drop),
        "str_array" => metadata.str_array(key).map(drop),
        "f32_array" => metadata.f32_array(key).map(drop),
        "i32_array" => metadata.i32_array(key).map(drop),
        other => panic!("unknown access {other} in expected.tsv"),
    }
}

/// Bytes of a file; for a case of several files, of all of them.
fn size_of(path: &Path) -> u64 {
    let folder = if path.is_dir() { path } else { path.parent().expect("in a folder") };
    if folder.parent().is_some_and(|p| p.ends_with("folders")) {
        let files = fs::read_dir(folder).expect("listable");
        return files.map(|f| f.expect("listable").metadata().expect("there").len()).sum();
    }
    fs::metadata(path).expect("there").len()
}

/// The variant's name: Debug begins with it.
fn rule_name(error: &FileError) -> String {
    format!("{:?}", error.rule()).chars().take_while(char::is_ascii_alphanumeric).collect()
}

/// What is wrong with the way an attack was refused, if anything.
fn judge(attack: &Attack, result: Result<(), FileError>) -> Option<String> {
    let Attack { name, access, rule, phrase } = attack;
    let Err(error) = result else { return Some("was accepted".into()) };
    let (message, found) = (error.to_string(), rule_name(&error));
    // The damaged file of a case may be a sibling of the opened one; the case's name is in both paths.
    let file = name.split('/').nth(1).expect("kind/name");
    if found != *rule || !message.contains(phrase.as_str()) {
        Some(format!("expected {rule} with {phrase:?}, got {found}: {message}"))
    } else if access == "open" && !message.contains(file) {
        Some(format!("the message does not name the file: {message}"))
    } else if message.chars().any(char::is_control) {
        Some(format!("control characters in the message {message:?}"))
    } else {
        None
    }
}

#[test]
fn every_attack_is_refused_by_its_rule_with_little_memory() {
    let mut slowest = (Duration::ZERO, String::new());
    let mut highest = (0, String::new());
    let mut faults = Vec::new();
    let attacks_expected = expected();
    assert!(attacks_expected.len() >= 150, "only {} attacks are listed", attacks_expected.len());
    for attack in &attacks_expected {
        let path = attacks().join(&attack.name);
        let start = Instant::now();
        let (result, usage) = measure_thread(|| attempt(&path, &attack.access, &attack.phrase));
        slowest = slowest.max((start.elapsed(), attack.name.clone()));
        highest = highest.max((usage.peak_bytes, attack.name.clone()));
        let budget = 4 * size_of(&path) + SLACK_BYTES;
        faults.extend(judge(attack, result).map(|fault| format!("{}: {fault}", attack.name)));
        if usage.peak_bytes > budget {
            faults.push(format!("{}: peak {} bytes, allowed {budget}", attack.name, usage.peak_bytes));
        }
    }
    println!("{} attacks refused", attacks_expected.len());
    println!("slowest: {:?} ({}); highest peak: {} bytes ({})", slowest.0, slowest.1, highest.0, highest.1);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_file_of_the_folder_is_listed() {
    let listed: BTreeSet<String> = expected().into_iter().map(|a| a.name).collect();
    for kind in ["gguf", "safetensors", "folders"] {
        for entry in fs::read_dir(attacks().join(kind)).expect("the folder is committed") {
            let name = entry.expect("listable").file_name().into_string().expect("plain names");
            let path = format!("{kind}/{name}");
            let inside = format!("{path}/");
            assert!(
                listed.contains(&path) || listed.iter().any(|l| l.starts_with(&inside)),
                "{path} is in no line of expected.tsv"
            );
        }
    }
}

#[test]
fn the_control_files_open() {
    let control = attacks().join("control");
    for (name, tensors, opaque) in [
        ("tiny.gguf", 1, 0),
        ("tiny-v2.gguf", 1, 0),
        ("types.gguf", 3, 0),
        ("no-tensors.gguf", 0, 0),
        ("tiny.safetensors", 1, 0),
        ("dtypes.safetensors", 2, 1),
        ("hf", 2, 0),
        ("split/m-00001-of-00002.gguf", 2, 0),
        ("split/m-00002-of-00002.gguf", 2, 0),
    ] {
        let model = ModelFile::open(control.join(name)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((model.tensors().len(), model.opaque_tensors().len()), (tensors, opaque), "{name}");
    }
}

fn control(name: &str) -> Vec<u8> {
    fs::read(attacks().join("control").join(name)).expect("control files are committed")
}

/// Whether the parser for `name` accepts `bytes`; checks what it must guarantee if it does.
fn accepted(name: &str, bytes: &[u8], limits: &Limits) -> Result<(), FileError> {
    let size = bytes.len() as u64;
    let (extents, data_start): (Vec<(u64, u64)>, u64) = if name.ends_with(".gguf") {
        let header = gguf::parse(bytes, limits)?;
        (header.tensors.iter().map(|t| (t.offset, t.bytes)).collect(), header.data_start)
    } else {
        let header = safetensors::parse(bytes, limits)?;
        let opaque = header.opaque.iter().map(|t| (t.offset, t.bytes));
        (header.tensors.iter().map(|t| (t.offset, t.bytes)).chain(opaque).collect(), header.data_start)
    };
    for (offset, length) in extents {
        assert!(length > 0 && offset >= data_start, "an empty extent or one in the header");
        assert!(offset.checked_add(length).is_some_and(|end| end <= size), "an extent leaves the file");
    }
    Ok(())
}

#[test]
fn every_prefix_of_a_valid_file_is_refused() {
    let limits = Limits::default();
    for name in ["tiny.gguf", "tiny-v2.gguf", "types.gguf", "tiny.safetensors", "dtypes.safetensors"] {
        let whole = control(name);
        accepted(name, &whole, &limits).unwrap_or_else(|e| panic!("{name}: {e}"));
        for len in 0..whole.len() {
            let error = accepted(name, &whole[..len], &limits).expect_err("a prefix was accepted");
            assert!(matches!(error, FileError::Truncated { .. }), "{name} cut to {len}: {error}");
        }
    }
}

#[test]
fn seeded_mutations_never_panic_and_stay_in_memory() {
    const ROUNDS: usize = 20_000;
    let limits = Limits::default();
    for name in ["types.gguf", "tiny.gguf", "tiny.safetensors", "dtypes.safetensors"] {
        let whole = control(name);
        let mut rng = Rng::for_label(2026, name);
        let mut accepted_count = 0;
        for round in 0..ROUNDS {
            let bytes = mutate(&whole, &mut rng);
            let (result, usage) = measure_thread(|| accepted(name, &bytes, &limits));
            let budget = 4 * bytes.len() as u64 + SLACK_BYTES;
            assert!(usage.peak_bytes <= budget, "{name} round {round}: {} bytes", usage.peak_bytes);
            accepted_count += usize::from(result.is_ok());
        }
        println!("{name}: {accepted_count} of {ROUNDS} mutations accepted");
        // A harness that refuses everything, or accepts everything, tests nothing.
        assert!(accepted_count > 0 && accepted_count < ROUNDS, "{name}: {accepted_count} accepted");
    }
}

/// One to four changes: a flipped bit, a byte or a word of an extreme value, a removed, doubled or inserted piece.
fn mutate(whole: &[u8], rng: &mut Rng) -> Vec<u8> {
    const EXTREMES: [u64; 8] = [0, 1, 0xff, 1 << 31, u32::MAX as u64, 1 << 61, 1 << 63, u64::MAX];
    let mut bytes = whole.to_vec();
    for _ in 0..=rng.below(4) {
        let at = rng.below(bytes.len().max(1));
        let left = bytes.len().saturating_sub(at);
        let piece = rng.below(16).min(left);
        match rng.below(6) {
            0 if left > 0 => bytes[at] ^= 1 << rng.below(8),
            1 if left > 0 => bytes[at] = rng.u32() as u8,
            2 => {
                let value = EXTREMES[rng.below(EXTREMES.len())].to_le_bytes();
                let width = [4, 8][rng.below(2)].min(left);
                bytes[at..at + width].copy_from_slice(&value[..width]);
            }
            3 => drop(bytes.drain(at..at + piece)),
            4 => {
                let copy = bytes[at..at + piece].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => {
                let noise = rng.bytes(piece);
                bytes.splice(at..at, noise);
            }
        }
    }
    bytes
}

fn header(tensors: u64, keys: u64) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend_from_slice(&tensors.to_le_bytes());
    file.extend_from_slice(&keys.to_le_bytes());
    file
}

fn put_text(file: &mut Vec<u8>, text: &str) {
    file.extend_from_slice(&(text.len() as u64).to_le_bytes());
    file.extend_from_slice(text.as_bytes());
}

/// A GGUF file of one key: an array of `count` equal elements.
fn array_file(element_type: u32, count: u64, element: &[u8]) -> Vec<u8> {
    let mut file = header(0, 1);
    put_text(&mut file, "a");
    file.extend_from_slice(&9u32.to_le_bytes());
    file.extend_from_slice(&element_type.to_le_bytes());
    file.extend_from_slice(&count.to_le_bytes());
    file.extend_from_slice(&element.repeat(count as usize));
    file
}

#[test]
fn memory_stays_in_proportion_for_large_broken_json() {
    let folder = TempDir::new("dense-json");
    let many = |piece: &str| piece.repeat(4_000_000 / piece.len());
    let braces = format!("{{{}", many("{}"));
    let pairs = format!("{{{}", many(":"));
    let entries = format!("{{{}", many(r#""":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"#));
    for (number, json) in [braces, pairs, entries].into_iter().enumerate() {
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(json.as_bytes());
        let (result, usage) = measure_thread(|| accepted("x.safetensors", &file, &Limits::default()));
        result.expect_err("a broken header");
        println!("broken header {number}: {} bytes, peak {} bytes", file.len(), usage.peak_bytes);
        assert!(usage.peak_bytes <= 4 * file.len() as u64 + SLACK_BYTES, "header {number}");
    }
    let same = format!(r#"{{"weight_map":{{{}"b":"a.safetensors"}}}}"#, many(r#""":"a.safetensors","#));
    let colons = format!(r#"{{"weight_map":{{{}"#, many(":"));
    let mut shards = String::from(r#"{"weight_map":{"#);
    (0..100_000).for_each(|i| shards += &format!(r#""{i:x}":"{i:x}.safetensors","#));
    for (number, json) in [same, colons, shards].into_iter().enumerate() {
        let path = folder.join("model.safetensors.index.json");
        fs::write(&path, &json).expect("writable");
        let (result, usage) = measure_thread(|| ModelFile::open(&path));
        let error = result.expect_err("a broken index").to_string();
        println!("broken index {number}: {} bytes, peak {} bytes: {error}", json.len(), usage.peak_bytes);
        assert!(usage.peak_bytes <= 4 * json.len() as u64 + SLACK_BYTES, "index {number}");
    }
}

#[test]
fn memory_stays_in_proportion_for_the_densest_headers() {
    // Far larger than the slack: what costs most memory per byte of file must still obey the factor of four.
    const KEYS: u64 = 16_384;
    const TENSORS: u64 = 100_000;
    let mut keys = header(0, KEYS);
    for i in 0..KEYS {
        put_text(&mut keys, &format!("{i:x}"));
        keys.extend_from_slice(&[0, 0, 0, 0, 1]);
    }
    let mut table = header(TENSORS, 0);
    for i in 0..TENSORS {
        put_text(&mut table, &format!("{i:x}"));
        table.extend_from_slice(&[0; 8]); // a scalar of f32
        table.extend_from_slice(&(i * 32).to_le_bytes());
    }
    table.resize(table.len().next_multiple_of(32) + TENSORS as usize * 32, 0);
    let mut json = String::from("{");
    for i in 0..TENSORS {
        let comma = if i > 0 { "," } else { "" };
        json += &format!(r#"{comma}"{i:x}":{{"dtype":"U8","shape":[],"data_offsets":[{i},{}]}}"#, i + 1);
    }
    json += "}";
    let mut flat = (json.len() as u64).to_le_bytes().to_vec();
    flat.extend_from_slice(json.as_bytes());
    flat.resize(flat.len() + TENSORS as usize, 0);
    for (name, file) in [
        ("keys.gguf", keys),
        ("strings.gguf", array_file(8, 500_000, &[0; 8])),
        ("rows.gguf", array_file(9, 500_000, &[0; 12])),
        ("string-rows.gguf", array_file(9, 500_000, &[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
        ("tensors.gguf", table),
        ("tensors.safetensors", flat),
    ] {
        let (result, usage) = measure_thread(|| accepted(name, &file, &Limits::default()));
        result.unwrap_or_else(|e| panic!("{name}: {e}"));
        println!("{name}: {} bytes, peak {} bytes", file.len(), usage.peak_bytes);
        assert!(usage.peak_bytes <= 4 * file.len() as u64 + SLACK_BYTES, "{name}");
    }
}
