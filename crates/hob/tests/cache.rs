//! `hob cache`, and where KV of earlier conversations goes: damage is found and costs time only.

mod common;

use std::path::{Path, PathBuf};

use common::{Ran, hob_in};
use hob_testkit::temp::TempDir;
use hob_testkit::tiny::TinySpec;

/// A home of its own with the machine measured already, and in it a model whose prompts are worth keeping.
fn fresh(name: &str) -> (TempDir, String) {
    let home = TempDir::new(name);
    std::fs::copy(common::home().join("machine.json"), home.join("machine.json"))
        .expect("a measured machine");
    let path = home.join("long.gguf");
    common::write_model(&TinySpec { ctx: 8192, ffn: 512, layers: 4, ..TinySpec::llama() }, &path);
    let path = path.to_str().expect("UTF-8").to_string();
    (home, path)
}

fn ask(home: &Path, model: &str, more: &[&str]) -> Ran {
    let text = "It was a long day at the harbour. ".repeat(60);
    hob_in(home, &[&["run", "-m", model, "--temp", "0", "--max-tokens", "12", &text], more].concat())
        .expect(0)
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.map(|e| e.expect("an entry").path());
    paths.flat_map(|p| if p.is_dir() { files(&p) } else { vec![p] }).collect()
}

#[test]
fn the_same_prompt_in_another_process_is_restored_and_answers_the_same() {
    let (home, model) = fresh("cache-restore");
    let first = ask(home.path(), &model, &[]);
    let again = ask(home.path(), &model, &[]);
    assert!(again.stderr.contains("restored from disk in"), "{}", again.stderr);
    assert_eq!(again.stdout, first.stdout);
    let list = hob_in(home.path(), &["cache"]).expect(0).stdout;
    assert!(
        list.contains("disk cache: ") && list.contains("1 conversation in") && list.contains("just now"),
        "{list}"
    );
    let json = hob_in(home.path(), &["cache", "list", "--json"]).expect(0).json();
    assert!(json["chains"][0]["tokens"].as_u64().is_some_and(|n| n > 300), "{json}");
    assert!(json["stats"]["bytes"].as_u64() > Some(0));
}

#[test]
fn a_corrupted_store_is_told_and_never_changes_an_answer() {
    let (home, model) = fresh("cache-corrupt");
    let first = ask(home.path(), &model, &[]);
    let intact = hob_in(home.path(), &["cache", "verify"]).expect(0).stdout;
    assert!(intact.contains("intact"), "{intact}");
    // One bit in the middle of what was stored.
    let largest = files(&home.join("cache")).into_iter().max_by_key(|f| f.metadata().map_or(0, |m| m.len()));
    let largest = largest.expect("a file");
    let mut bytes = std::fs::read(&largest).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&largest, bytes).expect("written");
    let damaged = hob_in(home.path(), &["cache", "verify", "--json"]).expect(1).json();
    assert!(damaged["bad_count"].as_u64() > Some(0), "{damaged}");
    let human = hob_in(home.path(), &["cache", "verify"]).expect(0).stdout;
    assert!(human.contains("intact"), "what was damaged is forgotten: {human}");
    assert_eq!(ask(home.path(), &model, &[]).stdout, first.stdout);
}

#[test]
fn a_store_damaged_everywhere_never_changes_an_answer() {
    let (home, model) = fresh("cache-everywhere");
    let first = ask(home.path(), &model, &[]);
    let stored = files(&home.join("cache"));
    assert!(!stored.is_empty());
    for file in &stored {
        let mut bytes = std::fs::read(file).expect("readable");
        // One bit in every kilobyte: no record stays whole.
        bytes.iter_mut().skip(100).step_by(1024).for_each(|b| *b ^= 4);
        std::fs::write(file, bytes).expect("written");
    }
    let again = ask(home.path(), &model, &[]);
    assert_eq!(again.stdout, first.stdout);
    assert!(!again.stderr.contains("error"), "{}", again.stderr);
}

#[test]
fn trim_and_clear_make_room_and_leave_conversations() {
    let (home, model) = fresh("cache-trim");
    ask(home.path(), &model, &["--session", "s"]);
    let bytes = || {
        hob_in(home.path(), &["cache", "--json"]).expect(0).json()["stats"]["bytes"].as_u64().expect("bytes")
    };
    assert!(bytes() > 0);
    let within = hob_in(home.path(), &["cache", "trim", "--json"]).expect(0).json();
    assert_eq!(within["records"], 0, "within its budget nothing has to go");
    let small = hob_in(home.path(), &["cache", "trim", "--to", "300K", "--json"]).expect(0).json();
    assert!(small["records"].as_u64() > Some(0) && bytes() <= 300 << 10, "{small}");
    let cleared = hob_in(home.path(), &["cache", "clear"]).expect(0).stdout;
    assert!(cleared.contains("->"), "{cleared}");
    let list = hob_in(home.path(), &["cache"]).expect(0).stdout;
    assert!(list.contains("nothing is stored yet"), "{list}");
    assert!(hob_in(home.path(), &["sessions"]).expect(0).stdout.contains("just now"));
    hob_in(home.path(), &["cache", "trim", "--to", "many"]).expect(2);
}

#[test]
fn looking_at_a_cache_that_is_not_there_makes_none() {
    let home = TempDir::new("cache-none");
    for args in [&["cache"][..], &["cache", "verify"], &["cache", "trim"], &["cache", "clear"]] {
        assert!(!hob_in(home.path(), args).expect(0).stdout.is_empty());
        hob_in(home.path(), &[args, &["--json"]].concat()).expect(0).json();
    }
    assert!(!home.join("cache").exists());
}

#[test]
fn the_folder_and_the_budget_can_be_chosen() {
    let (home, model) = fresh("cache-elsewhere");
    let place = home.join("elsewhere");
    let path = place.to_str().expect("UTF-8");
    ask(home.path(), &model, &["--cache-disk", "off"]);
    assert!(!home.join("cache").exists());
    ask(home.path(), &model, &["--cache-dir", path, "--cache-disk", "1G"]);
    assert!(!files(&place).is_empty() && !home.join("cache").exists());
    let list = hob_in(home.path(), &["cache", "--cache-dir", path]).expect(0).stdout;
    assert!(list.contains(path) && list.contains("just now"), "{list}");
    let plan = hob_in(home.path(), &["plan", &model, "--cache-disk", "off"]).expect(0).stdout;
    assert!(plan.contains("disk cache: off"), "{plan}");
    let json = hob_in(home.path(), &["plan", &model, "--cache-dir", path, "--cache-disk", "1G", "--json"])
        .expect(0)
        .json();
    assert_eq!(
        (json["plan"]["disk"]["bytes"].as_u64(), json["plan"]["disk"]["dir"].as_str()),
        (Some(1 << 30), Some(path))
    );
    let wrong = hob_in(home.path(), &["run", "-m", &model, "--cache-disk", "much", "x"]).expect(2);
    assert!(wrong.stderr.contains("much") && wrong.stderr.contains("off"), "{}", wrong.stderr);
}

#[test]
fn a_cache_folder_that_cannot_be_used_is_a_note_and_the_answer_comes() {
    let (home, model) = fresh("cache-file");
    std::fs::write(home.join("cache"), "not a folder").expect("a file");
    let ran = ask(home.path(), &model, &[]);
    assert!(!ran.stdout.is_empty() && ran.stderr.contains("nothing is kept on disk"), "{}", ran.stderr);
    assert_eq!(std::fs::read(home.join("cache")).expect("still there"), b"not a folder");
}

#[cfg(unix)]
#[test]
fn what_was_said_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let (home, model) = fresh("cache-private");
    ask(home.path(), &model, &["--session", "s"]);
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    for folder in ["cache", "sessions"] {
        assert_eq!(mode(&home.join(folder)), 0o700, "{folder}");
        for file in files(&home.join(folder)) {
            assert_eq!(mode(&file), 0o600, "{}", file.display());
        }
    }
}
