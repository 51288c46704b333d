//! `hob run` from end to end on a tiny model: what goes to which stream, where the prompt comes from, how it ends.

mod common;

use std::io::Read;

use common::{Ran, file, hob, hob_with, model, start};
use hob_testkit::tiny::TinySpec;

const GREEDY: [&str; 4] = ["--temp", "0", "--max-tokens", "24"];

fn run(args: &[&str]) -> Ran {
    hob(&[&["run", "-m", model()], &GREEDY[..], args].concat()).expect(0)
}

#[test]
fn stdout_holds_the_answer_and_nothing_else() {
    let loud = run(&["hello"]);
    assert!(!loud.stdout.trim().is_empty());
    assert!(loud.stdout.ends_with('\n'));
    for part in ["tiny: weights", "512 tokens", "expect", "first text after", "peak memory", "--max-tokens"] {
        assert!(loud.stderr.contains(part), "{part} missing in\n{}", loud.stderr);
        assert!(!loud.stdout.contains(part), "{part} in the answer");
    }
    let quiet = run(&["--quiet", "hello"]);
    assert_eq!((quiet.stdout, quiet.stderr.as_str()), (loud.stdout, ""));
}

#[test]
fn prompts_come_from_words_files_and_stdin() {
    let words = run(&["one", "two\n\nthree"]).stdout;
    assert_eq!(run(&["one two\n\nthree"]).stdout, words);
    let path = file("prompt.txt", b"three\n");
    assert_eq!(run(&["one two", "-f", &path]).stdout, words);
    let args = [&["run", "-m", model()], &GREEDY[..]].concat();
    assert_eq!(hob_with(b"one two\n\nthree\n", &args).expect(0).stdout, words);
    let dash = [&args[..], &["one two", "-f", "-"]].concat();
    assert_eq!(hob_with(b"three\n", &dash).expect(0).stdout, words);
    assert_ne!(run(&["something else"]).stdout, words);
}

#[test]
fn raw_leaves_the_template_out_and_system_goes_in() {
    let templated = run(&["hello"]);
    let raw = run(&["--raw", "hello"]);
    let system = run(&["--system", "Be brief.", "hello"]);
    assert_ne!(templated.stdout, raw.stdout);
    assert_ne!(templated.stdout, system.stdout);
    let spelled = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(run(&["--raw", spelled]).stdout, templated.stdout);
}

#[test]
fn a_seed_repeats_itself() {
    let with = |seed: &str| {
        hob(&["run", "-m", model(), "--seed", seed, "--temp", "1.5", "--max-tokens", "24", "hello"])
            .expect(0)
            .stdout
    };
    assert_eq!(with("7"), with("7"));
    assert_ne!(with("7"), with("8"));
}

#[test]
fn threads_do_not_change_the_answer() {
    assert_eq!(run(&["--threads", "1", "hello"]).stdout, run(&["--threads", "2", "hello"]).stdout);
}

#[test]
fn a_stop_string_ends_the_answer_before_it() {
    let whole = run(&["hello"]).stdout;
    // A character in the middle: whatever the random model says.
    let at = whole.char_indices().nth(whole.chars().count() / 2).expect("text").0;
    let stop: String = whole[at..].chars().take(1).collect();
    let first = whole.find(&stop).expect("found");
    let stopped = run(&["--stop", &stop, "hello"]).stdout;
    assert_eq!(stopped.trim_end_matches('\n'), whole[..first].trim_end_matches('\n'));
}

#[test]
fn a_full_context_is_said_and_is_no_failure() {
    let ran = hob(&["run", "-m", model(), "--temp", "0", "--ctx", "64", "hello"]).expect(0);
    assert!(ran.stderr.contains("context of 64 tokens is full"), "{}", ran.stderr);
}

#[test]
fn what_was_measured_replaces_the_estimate() {
    let home = hob_testkit::temp::TempDir::new("cli-history");
    let plan = |home| common::hob_in(home, &["plan", model(), "--json"]).expect(0).json();
    assert_eq!(plan(home.path())["plan"]["forecast"]["decode_basis"]["kind"], "estimated");
    let args = ["run", "-q", "-m", model(), "--temp", "0", "--max-tokens", "40", "hello"];
    common::hob_in(home.path(), &args).expect(0);
    assert_eq!(plan(home.path())["plan"]["forecast"]["decode_basis"]["kind"], "measured");
}

/// A reader that goes away (`hob run ... | head -1`) has what it wanted.
#[test]
fn a_closed_pipe_is_quiet_success() {
    let mut child = start(&["run", "-m", endless(), "--temp", "0", "hello"]);
    drop(child.stdin.take());
    let mut out = child.stdout.take().expect("stdout");
    let mut byte = [0];
    out.read_exact(&mut byte).expect("an answer begins");
    drop(out);
    let ran = Ran::from(child.wait_with_output().expect("ends")).expect(0);
    assert!(!ran.stderr.contains("error") && !ran.stderr.contains("interrupted"), "{}", ran.stderr);
}

/// Ctrl-C ends the answer; what was measured is still said.
#[cfg(unix)]
#[test]
fn an_interrupted_answer_still_gives_figures() {
    let mut child = start(&["run", "-m", endless(), "--temp", "0", "hello"]);
    drop(child.stdin.take());
    let mut out = child.stdout.take().expect("stdout");
    let mut byte = [0];
    out.read_exact(&mut byte).expect("an answer begins");
    common::interrupt(&child);
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("the answer ends");
    let ran = Ran::from(child.wait_with_output().expect("ends")).expect(130);
    assert!(ran.stderr.contains("interrupted") && ran.stderr.contains("first text after"), "{}", ran.stderr);
}

/// A model that goes on for minutes: long context, and no end token in its vocabulary's reach.
fn endless() -> &'static str {
    use std::sync::OnceLock;
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| {
        let spec = TinySpec { ctx: 1 << 20, layers: 24, ..TinySpec::llama() };
        let path = common::home().join("endless.gguf");
        common::write_model(&spec, &path);
        path.to_str().expect("UTF-8").to_string()
    })
}

#[test]
fn a_profile_is_a_timeline_and_a_table() {
    let path = file("timeline.json", b"old");
    let ran = run(&["--profile", &path, "hello"]);
    assert_eq!(ran.stdout, run(&["hello"]).stdout);
    for part in ["verb", "GB/s", "share", "linear", "attend", &path] {
        assert!(ran.stderr.contains(part), "{part} missing in\n{}", ran.stderr);
    }
    let text = std::fs::read_to_string(&path).expect("a timeline");
    let events: Vec<serde_json::Value> = serde_json::from_str(&text).expect("JSON");
    let named = |name: &str| events.iter().any(|e| e["name"] == name && e["ph"] == "X");
    for name in ["schedule", "run", "settle", "embed token_embd", "linear blk.1.ffn_down", "pick"] {
        assert!(named(name), "no {name}");
    }
    assert_eq!(run(&["--quiet", "--profile", &path, "hello"]).stderr, "");
    let nowhere = ["run", "-m", model(), "--profile", "/no/such/folder/t.json", "hello"];
    let refused = hob(&nowhere).expect(1);
    assert!(refused.stderr.contains("/no/such/folder/t.json"), "{}", refused.stderr);
}
