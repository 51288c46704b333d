//! Conversations kept by name: they go on in another process with the same words, and nothing is lost or kept unasked.

mod common;

use std::io::Read;
use std::path::{Path, PathBuf};

use common::{Ran, hob_in, model};
use hob_testkit::temp::TempDir;
use hob_testkit::tiny::TinySpec;

const GREEDY: [&str; 4] = ["--temp", "0", "--max-tokens", "12"];

/// A home of its own with the machine measured already.
fn fresh(name: &str) -> TempDir {
    let home = TempDir::new(name);
    std::fs::copy(common::home().join("machine.json"), home.join("machine.json"))
        .expect("a measured machine");
    home
}

fn run(home: &Path, args: &[&str]) -> Ran {
    hob_in(home, &[&["run"], &GREEDY[..], args].concat())
}

fn chat(home: &Path, args: &[&str], input: &str) -> Ran {
    let mut child = common::command(home, &[&["chat"], &GREEDY[..], args].concat())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("hob starts");
    let _ = std::io::Write::write_all(&mut child.stdin.take().expect("stdin"), input.as_bytes());
    child.wait_with_output().expect("hob ends").into()
}

fn names(home: &Path) -> Vec<String> {
    let all = hob_in(home, &["sessions", "--json"]).expect(0).json();
    let all = all["sessions"].as_array().expect("sessions").clone();
    all.iter().map(|s| s["name"].as_str().expect("a name").to_string()).collect()
}

/// A model whose prompts are worth keeping.
fn long_model(home: &Path) -> String {
    let path = home.join("long.gguf");
    common::write_model(&TinySpec { ctx: 8192, ffn: 512, layers: 4, ..TinySpec::llama() }, &path);
    path.to_str().expect("UTF-8").to_string()
}

#[test]
fn a_session_over_three_processes_says_what_one_process_says() {
    let home = fresh("sessions-three");
    let whole =
        chat(home.path(), &["-m", model(), "--no-cache"], "hello\nand now\nonce more\n").expect(0).stdout;
    let turn = |text: &str| run(home.path(), &["-m", model(), "--session", "s", text]).expect(0).stdout;
    let parts = [turn("hello"), turn("and now"), turn("once more")].concat();
    assert_eq!(parts, whole);
    // The same in chats, the last of which takes up the latest conversation by itself.
    let first = chat(home.path(), &["-m", model(), "--session", "c"], "hello\nand now\n").expect(0);
    let rest = chat(home.path(), &["-c"], "once more\n").expect(0);
    assert_eq!(first.stdout + &rest.stdout, whole);
    assert!(rest.stderr.contains("session c goes on after 2 questions"), "{}", rest.stderr);
    assert_eq!(names(home.path()), ["c", "s"]);
}

#[test]
fn a_long_session_takes_its_kv_from_disk_and_says_so() {
    let home = fresh("sessions-restore");
    let model = long_model(home.path());
    let text = "It was a long day at the harbour. ".repeat(60);
    let first = run(home.path(), &["-m", &model, "--session", "s", &text]).expect(0);
    assert!(!first.stderr.contains("restored"), "{}", first.stderr);
    let again = run(home.path(), &["-m", &model, "--session", "s", "go on"]).expect(0);
    assert!(again.stderr.contains("restored from disk in"), "{}", again.stderr);
    // Without the disk it says the same.
    let other = fresh("sessions-restore-off");
    let off = ["-m", &model, "--session", "s", "--cache-disk", "off"];
    assert_eq!(run(other.path(), &[&off[..], &[&text]].concat()).expect(0).stdout, first.stdout);
    let computed = run(other.path(), &[&off[..], &["go on"]].concat()).expect(0);
    assert_eq!(computed.stdout, again.stdout);
    assert!(!computed.stderr.contains("restored"), "{}", computed.stderr);
    assert!(!other.join("cache").exists());
}

#[test]
fn a_session_finds_its_model_from_any_folder() {
    let home = fresh("sessions-model");
    let here = Path::new(model());
    let name = here.file_name().expect("a file").to_str().expect("UTF-8");
    let start =
        common::command(home.path(), &["run", "-m", name, "--session", "s", "--max-tokens", "4", "hello"])
            .current_dir(here.parent().expect("a folder"))
            .output();
    Ran::from(start.expect("hob starts")).expect(0);
    run(home.path(), &["--session", "s", "go on"]).expect(0);
}

#[test]
fn another_model_is_said_and_the_conversation_goes_on() {
    let home = fresh("sessions-other");
    run(home.path(), &["-m", model(), "--session", "s", "hello"]).expect(0);
    let path = home.join("other.gguf");
    common::write_model(&TinySpec { seed: 7, ..TinySpec::llama() }, &path);
    let other = path.to_str().expect("UTF-8");
    let ran = run(home.path(), &["-m", other, "--session", "s", "go on"]).expect(0);
    assert!(
        ran.stderr.contains("session s was recorded with") && ran.stderr.contains(model()),
        "{}",
        ran.stderr
    );
    assert_eq!(
        hob_in(home.path(), &["sessions", "show", "s", "--json"]).json()["messages"].as_array().map(Vec::len),
        Some(4)
    );
    // A model that is gone: whose it was, and the way out.
    std::fs::remove_file(&path).expect("removed");
    let gone = run(home.path(), &["--session", "s", "go on"]).expect(3);
    assert!(
        gone.stderr.contains("session s was recorded with") && gone.stderr.contains("-m MODEL"),
        "{}",
        gone.stderr
    );
}

#[test]
fn chats_are_kept_under_names_of_their_own_until_they_get_one() {
    let home = fresh("sessions-chat");
    let nothing = chat(home.path(), &["--continue"], "").expect(1);
    assert!(nothing.stderr.contains("no conversation to continue"), "{}", nothing.stderr);
    chat(home.path(), &["-m", model()], "\n/stats\n").expect(0);
    assert!(names(home.path()).is_empty(), "a chat without a question is nothing to keep");
    chat(home.path(), &["-m", model()], "hello\n").expect(0);
    let ran =
        chat(home.path(), &["-m", model()], "good day\n/clear\nthird\n/save mine\n/save a/b\n/sessions\n")
            .expect(0);
    assert!(ran.stderr.contains("/export FILE") && ran.stderr.contains("good day"), "{}", ran.stderr);
    let mut all = names(home.path());
    all.sort();
    assert_eq!(all, ["chat-1", "chat-2", "mine"]);
    let loaded = chat(home.path(), &["-m", model()], "/load mine\n/load nowhere\n/save chat-1\n").expect(0);
    assert!(loaded.stderr.contains("session mine goes on after 1 question"), "{}", loaded.stderr);
    assert!(loaded.stderr.contains("no session nowhere"), "{}", loaded.stderr);
    assert!(loaded.stderr.contains("already"), "what is there is not overwritten: {}", loaded.stderr);
}

#[test]
fn two_programs_on_one_session_lose_nothing() {
    let home = fresh("sessions-two");
    run(home.path(), &["-m", model(), "--session", "s", "hello"]).expect(0);
    let mut child = common::command(home.path(), &[&["chat", "--session", "s"], &GREEDY[..]].concat())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("hob starts");
    let mut input = child.stdin.take().expect("stdin");
    std::io::Write::write_all(&mut input, b"from the chat\n").expect("a question");
    // Its answer: the chat has read and stored the session by now.
    let mut byte = [0];
    child.stdout.as_mut().expect("stdout").read_exact(&mut byte).expect("an answer begins");
    while turns(home.path(), "s") < 2 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    run(home.path(), &["--session", "s", "from elsewhere"]).expect(0);
    std::io::Write::write_all(&mut input, b"and again\n").expect("a question");
    drop(input);
    let ran = Ran::from(child.wait_with_output().expect("ends")).expect(0);
    assert!(ran.stderr.contains("another hob changed session s"), "{}", ran.stderr);
    let said = |name: &str| hob_in(home.path(), &["sessions", "show", name]).expect(0).stdout;
    assert!(said("s").contains("from elsewhere") && !said("s").contains("and again"));
    assert!(said("s-1").contains("from the chat") && said("s-1").contains("and again"));
}

fn turns(home: &Path, name: &str) -> u64 {
    let all = hob_in(home, &["sessions", "--json"]).expect(0).json();
    let found = all["sessions"].as_array().expect("sessions").iter().find(|s| s["name"] == name).cloned();
    // A question counts once its answer is there, too.
    let shown = hob_in(home, &["sessions", "show", name, "--json"]);
    let answered =
        shown.code == 0 && shown.json()["messages"].as_array().is_some_and(|m| m.len().is_multiple_of(2));
    if answered { found.map_or(0, |s| s["turns"].as_u64().unwrap_or(0)) } else { 0 }
}

#[cfg(unix)]
#[test]
fn a_question_whose_answer_was_killed_is_not_lost() {
    let home = fresh("sessions-killed");
    let path = home.join("endless.gguf");
    common::write_model(&TinySpec { ctx: 1 << 20, layers: 24, ..TinySpec::llama() }, &path);
    let model = path.to_str().expect("UTF-8");
    let mut child =
        common::command(home.path(), &["run", "-m", model, "--session", "s", "--temp", "0", "what is lost"])
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("hob starts");
    let mut byte = [0];
    child.stdout.as_mut().expect("stdout").read_exact(&mut byte).expect("an answer begins");
    child.kill().expect("killed");
    child.wait().expect("ends");
    let shown = hob_in(home.path(), &["sessions", "show", "s"]).expect(0).stdout;
    assert!(shown.contains("what is lost"), "{shown}");
    let resumed = chat(home.path(), &["--session", "s", "-m", model], "").expect(0);
    assert!(
        resumed.stderr.contains("got no answer") && resumed.stderr.contains("what is lost"),
        "{}",
        resumed.stderr
    );
    let ran = run(home.path(), &["--session", "s", "something else"]).expect(0);
    assert!(ran.stderr.contains("got no answer and is left out: what is lost"), "{}", ran.stderr);
}

#[test]
fn no_cache_leaves_no_trace_of_what_was_said() {
    let home = fresh("sessions-none");
    let model = long_model(home.path());
    let secret = "the password is swordfish and nobody must know ".repeat(30);
    run(home.path(), &["-m", &model, "--no-cache", &secret]).expect(0);
    chat(home.path(), &["-m", &model, "--no-cache"], "the password is swordfish\n").expect(0);
    let files = files_below(home.path());
    let expected = ["machine.json", "history.json", "long.gguf", "kv"];
    for file in &files {
        let first = file.strip_prefix(home.path()).expect("below").components().next().expect("a name");
        let first = first.as_os_str().to_str().expect("UTF-8");
        assert!(expected.contains(&first), "{}", file.display());
        let bytes = std::fs::read(file).expect("readable");
        assert!(!bytes.windows(9).any(|w| w == b"swordfish"), "{}", file.display());
    }
    for args in [&["run", "--no-cache", "--session", "s", "x"][..], &["chat", "--no-cache", "--continue"]] {
        hob_in(home.path(), args).expect(2);
    }
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("a folder").map(|e| e.expect("an entry").path());
    entries.flat_map(|p| if p.is_dir() { files_below(&p) } else { vec![p] }).collect()
}

#[test]
fn sessions_are_listed_shown_and_removed() {
    let home = fresh("sessions-list");
    assert!(hob_in(home.path(), &["sessions"]).expect(0).stdout.contains("no sessions yet"));
    run(home.path(), &["-m", model(), "--session", "s", "--system", "Be brief.", "hello\n\u{1b}[31mred"])
        .expect(0);
    let list = hob_in(home.path(), &["sessions"]).expect(0).stdout;
    assert!(list.contains("just now") && list.contains("hello") && !list.contains('\u{1b}'), "{list}");
    let shown = hob_in(home.path(), &["sessions", "show", "s"]).expect(0).stdout;
    assert!(shown.contains("Be brief.") && shown.contains("hello\n") && !shown.contains('\u{1b}'), "{shown}");
    // A session begins with one system message.
    run(home.path(), &["--session", "s", "--system", "Be brief.", "go on"]).expect(0);
    let other = run(home.path(), &["--session", "s", "--system", "Be long.", "go on"]).expect(2);
    assert!(other.stderr.contains("another system message"), "{}", other.stderr);
    // A damaged one is an error, is listed, and can be removed.
    let file = home.join("sessions").join("s.session");
    let mut bytes = std::fs::read(&file).expect("the session");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, &bytes).expect("written");
    let damaged = run(home.path(), &["--session", "s", "go on"]);
    assert!(damaged.code != 0 && damaged.stderr.contains("s.session"), "{}", damaged.stderr);
    assert_eq!(std::fs::read(&file).expect("still there"), bytes);
    assert!(hob_in(home.path(), &["sessions"]).expect(0).stdout.contains("cannot be read"));
    hob_in(home.path(), &["sessions", "rm", "s"]).expect(0);
    let gone = hob_in(home.path(), &["sessions", "rm", "s"]).expect(1);
    assert!(gone.stderr.contains("no session s"), "{}", gone.stderr);
    let path = hob_in(home.path(), &["sessions", "show", "../s"]).expect(1);
    assert!(path.stderr.contains("characters"), "{}", path.stderr);
}
