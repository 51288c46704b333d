//! What goes wrong ends with the documented code, the numbers, the way out, and nothing on stdout.

mod common;

use common::{file, hob, hob_with, model, model_bytes};
use hob_testkit::tiny::TinySpec;

/// The run fails with `code`, prints nothing to stdout, and its error names every part.
fn fails(args: &[&str], code: i32, parts: &[&str]) {
    let ran = hob(args).expect(code);
    assert_eq!(ran.stdout, "", "{args:?}");
    for part in parts {
        assert!(ran.stderr.contains(part), "{args:?}: '{part}' missing in\n{}", ran.stderr);
    }
}

#[test]
fn unknown_models() {
    fails(&["run", "-m", "nonesuch", "x"], 3, &["nonesuch", "hob list"]);
    fails(&["run", "-m", "smolm2", "x"], 3, &["did you mean", "smollm2"]);
    fails(&["run", "-m", "./nowhere/none.gguf", "x"], 3, &["none.gguf"]);
    fails(&["run", "-m", &file("notes.txt", b"no model"), "x"], 3, &["notes.txt", "GGUF"]);
    fails(&["plan", "smollm2-360m-instruct"], 3, &["hob pull smollm2-360m-instruct"]);
    fails(&["rm", "nonesuch"], 3, &["nonesuch"]);
}

#[test]
fn unknown_architecture() {
    let mut bytes = model_bytes();
    let name = b"llama";
    for at in 0..bytes.len() - name.len() {
        if &bytes[at..at + name.len()] == name {
            bytes[at..at + name.len()].copy_from_slice(b"zebra");
        }
    }
    let path = file("zebra.gguf", &bytes);
    fails(&["run", "-m", &path, "x"], 3, &["zebra", "llama", "qwen2"]);
    // It can be looked at all the same.
    let shown = hob(&["show", &path]).expect(0).stdout;
    assert!(
        shown.contains("cannot run") && shown.contains("zebra") && shown.contains("tensors by type"),
        "{shown}"
    );
}

#[test]
fn truncated_file() {
    let bytes = model_bytes();
    let path = file("truncated.gguf", &bytes[..bytes.len() - 1000]);
    fails(&["run", "-m", &path, "x"], 3, &["truncated.gguf"]);
    let path = file("header.gguf", &bytes[..100]);
    fails(&["run", "-m", &path, "x"], 3, &["header.gguf"]);
}

#[test]
fn prompt_longer_than_the_context() {
    let prompt = "a b c d e f g h ".repeat(10);
    fails(&["run", "-m", model(), "--raw", "--ctx", "32", &prompt], 4, &["context holds 32", "--ctx"]);
}

#[test]
fn context_beyond_training_or_memory() {
    fails(&["run", "-m", model(), "--ctx", "513", "x"], 4, &["513", "512", "--ctx 512"]);
    let path = common::home().join("long.gguf");
    common::write_model(&TinySpec { ctx: 1 << 20, ..TinySpec::llama() }, &path);
    let path = path.to_str().expect("UTF-8");
    fails(
        &["run", "-m", path, "--ctx", "1000000", "--ram", "64M", "x"],
        4,
        &["1,000,000", "64.0 MiB", "at most"],
    );
    fails(&["run", "-m", path, "--ram", "1M", "x"], 4, &["1.00 MiB", "--ram"]);
}

#[test]
fn a_plan_that_does_not_fit_is_shown_and_refused() {
    let ran = hob(&["plan", model(), "--ram", "1M"]).expect(4);
    assert!(ran.stdout.contains("REFUSED") && ran.stdout.contains("KV pages"), "{}", ran.stdout);
    let json = hob(&["plan", model(), "--ram", "1M", "--json"]).expect(4).json();
    assert_eq!(json["plan"]["fits"], false);
}

#[test]
fn wrong_usage() {
    fails(&["run", "--no-such-flag"], 2, &["--no-such-flag"]);
    fails(&["run", "-m", model()], 2, &["prompt is empty"]);
    fails(&["run", "-m", model(), "--temp", "-1", "x"], 2, &["temperature", "-1"]);
    fails(&["run", "-m", model(), "--top-p", "1.5", "x"], 2, &["top_p", "1.5"]);
    fails(&["run", "-m", model(), "--max-tokens", "0", "x"], 2, &["max_tokens"]);
    fails(&["run", "-m", model(), "--ram", "many", "x"], 2, &["many", "8G"]);
    fails(&["run", "-m", model(), "--raw", "--system", "s", "x"], 2, &["--system"]);
    fails(&["bench", "--synth", "nonesuch:q4_0"], 2, &["nonesuch", "qwen3-1.7b"]);
    fails(&["bench", "--synth", "qwen3-1.7b:q4_9"], 2, &["q4_9", "q4_0"]);
    let ran = hob_with(b"caf\xe9", &["run", "-m", model()]).expect(2);
    assert!(ran.stderr.contains("UTF-8") && ran.stderr.contains("byte 3"), "{}", ran.stderr);
}

#[test]
fn no_threads_is_refused() {
    fails(&["run", "-m", model(), "--threads", "0", "x"], 4, &["at least one thread"]);
}

#[test]
fn a_prompt_file_that_is_not_there() {
    fails(&["run", "-m", model(), "-f", "nowhere.txt"], 1, &["nowhere.txt"]);
}

/// Offline and nothing cached: an error with the way out, and nothing half-written.
#[test]
fn no_network_and_no_pip() {
    let home = hob_testkit::temp::TempDir::new("cli-offline");
    let run = common::command(home.path(), &["run", "hello"])
        .env("PATH", home.path())
        .stdin(std::process::Stdio::null())
        .output()
        .expect("starts");
    let ran = common::Ran::from(run).expect(3);
    assert_eq!(ran.stdout, "");
    assert!(ran.stderr.contains("pip") && ran.stderr.contains("What helps"), "{}", ran.stderr);
    assert!(!home.join("models").join("smollm2-135m-instruct").exists());
}
