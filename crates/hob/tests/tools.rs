//! The commands around answers: plan, show, list, bench, completions, help, and the cached machine.

mod common;

use common::{hob, hob_in, model};
use hob_testkit::temp::TempDir;

#[test]
fn without_arguments_it_says_what_to_type_next() {
    let ran = hob(&[]).expect(0);
    for part in ["GB/s", "hob run \"Why is the sky blue?\"", "hob chat", "first run fetches it"] {
        assert!(ran.stdout.contains(part), "{part} missing in\n{}", ran.stdout);
    }
}

#[test]
fn the_machine_is_measured_once() {
    let home = TempDir::new("cli-probe");
    let first = hob_in(home.path(), &["plan", "--json"]).expect(0);
    assert!(first.stderr.contains("measuring"), "{}", first.stderr);
    let cached = std::fs::read(home.join("machine.json")).expect("cache");
    for args in [&["plan", "--json"][..], &[], &["run", "-q", "-m", model(), "--max-tokens", "1", "x"]] {
        let ran = hob_in(home.path(), args).expect(0);
        assert!(!ran.stderr.contains("measuring"), "{args:?}: {}", ran.stderr);
    }
    assert_eq!(std::fs::read(home.join("machine.json")).expect("cache"), cached);
    let second = hob_in(home.path(), &["plan", "--json"]).expect(0).json();
    assert_eq!(second["machine"]["probe"], first.json()["machine"]["probe"]);
    let refreshed = hob_in(home.path(), &["plan", "--refresh"]).expect(0);
    assert!(refreshed.stderr.contains("measuring"), "{}", refreshed.stderr);
}

#[test]
fn plan_shows_machine_memory_and_speed() {
    let ran = hob(&["plan", model(), "--ctx", "300", "--threads", "1"]).expect(0);
    for part in [
        "read bandwidth",
        "huge pages",
        "caches",
        "KV pages: 300 tokens",
        "total",
        "decode, empty context",
        "first token after",
        "context 300: asked for",
    ] {
        assert!(ran.stdout.contains(part), "{part} missing in\n{}", ran.stdout);
    }
    let json = hob(&["plan", model(), "--json"]).expect(0).json();
    let lines = json["plan"]["memory"].as_array().expect("lines");
    let sum: u64 = lines.iter().filter_map(|l| l["bytes"].as_u64()).sum();
    assert_eq!(json["plan"]["total_bytes"].as_u64(), Some(sum));
    assert_eq!(json["plan"]["context"]["trained_tokens"], 512);
    assert!(json["machine"]["probe"]["read"][0]["best_gb_per_s"].as_f64().expect("measured") > 0.0);
}

#[test]
fn show_describes_a_file() {
    let ran = hob(&["show", model()]).expect(0);
    for part in
        ["GGUF", "llama", "2 layers of 64", "read per token", "F32", "general.name = tiny llama", "x string"]
    {
        assert!(ran.stdout.contains(part), "{part} missing in\n{}", ran.stdout);
    }
    assert!(!ran.stdout.contains("blk.1.attn_q.weight"), "{}", ran.stdout);
    let verbose = hob(&["show", "-v", model()]).expect(0).stdout;
    assert!(
        verbose.contains("[64, 64]  blk.1.attn_q.weight") && verbose.contains("<|im_start|>"),
        "{verbose}"
    );
    let json = hob(&["show", "-v", "--json", model()]).expect(0).json();
    assert_eq!(json["model"]["arch"], "llama");
    assert_eq!(json["metadata"]["llama.context_length"], "512");
    let tensors = json["tensors"].as_array().expect("tensors");
    assert_eq!(json["types"]["F32"]["tensors"].as_u64(), Some(tensors.len() as u64));
}

#[test]
fn show_reads_a_folder_of_safetensors_and_run_uses_it() {
    let dir = TempDir::new("cli-hf");
    hob_testkit::tiny::TinySpec::qwen2().write_hf(dir.path()).expect("folder");
    let path = dir.path().to_str().expect("UTF-8");
    let shown = hob(&["show", path]).expect(0).stdout;
    assert!(shown.contains("safetensors") && shown.contains("qwen2"), "{shown}");
    let ran = hob(&["run", "-m", path, "--raw", "--temp", "0", "--max-tokens", "8", "hello"]).expect(0);
    assert!(!ran.stdout.is_empty());
}

#[test]
fn control_characters_of_a_file_do_not_reach_the_terminal() {
    let mut bytes = common::model_bytes();
    let at = bytes.windows(10).position(|w| w == b"tiny llama").expect("the name");
    bytes[at] = 0x1b;
    let shown = hob(&["show", &common::file("escape.gguf", &bytes)]).expect(0).stdout;
    assert!(!shown.contains('\u{1b}') && shown.contains("\\u{1b}iny llama"), "{shown}");
}

#[test]
fn list_names_what_is_here_and_what_can_be_had() {
    let text = hob(&["list"]).expect(0).stdout;
    assert!(text.contains("no models on this disk yet") && text.contains("smollm2-135m-instruct"), "{text}");
    let json = hob(&["list", "--json"]).expect(0).json();
    assert_eq!(json["here"], serde_json::json!([]));
    assert_eq!(json["available"][0]["name"], "smollm2-135m-instruct");
}

#[test]
fn pull_of_a_path_gives_the_path() {
    assert_eq!(hob(&["pull", model()]).expect(0).stdout.trim_end(), model());
}

#[test]
fn bench_measures_a_file() {
    let args = ["bench", "-m", model(), "-p", "8", "-n", "4", "-r", "2", "-d", "0,64,100000", "-t", "1"];
    let ran = hob(&args).expect(0);
    for part in ["tok/s", "pp8", "tg4", "read per token"] {
        assert!(ran.stdout.contains(part), "{part} missing in\n{}", ran.stdout);
    }
    assert!(ran.stderr.contains("left out: depth 100000"), "{}", ran.stderr);
    let json = hob(&[&args[..], &["--json"]].concat()).expect(0).json();
    let rows = json["bench"]["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 4);
    assert_eq!(rows[3]["depth"], 64);
    assert_eq!(rows[3]["samples"].as_array().map(Vec::len), Some(2));
    let shapes = hob(&["bench", "--synth", "help"]).expect(0).stdout;
    assert!(shapes.contains("llama3.3-70b") && shapes.contains("q4_0"), "{shapes}");
}

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = hob(&["completions", shell]).expect(0).stdout;
        assert!(script.contains("hob") && script.contains("completions"), "{shell}");
    }
}

#[test]
fn help_names_commands_and_exit_codes() {
    let help = hob(&["--help"]).expect(0).stdout;
    for part in ["run", "chat", "serve", "plan", "bench", "pull", "list", "rm", "show", "Exit codes", "130"] {
        assert!(help.contains(part), "{part} missing in\n{help}");
    }
    assert!(hob(&["--version"]).expect(0).stdout.contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn golden_without_fixtures_is_a_miss() {
    let dir = TempDir::new("cli-golden");
    hob(&["lab", "golden", dir.path().to_str().expect("UTF-8")]).expect(1);
}

#[test]
fn a_gpu_that_is_not_used_is_one_line_and_one_that_is_not_there_a_refusal() {
    let ran = hob(&["plan", model(), "--gpu", "off"]).expect(0);
    assert_eq!(ran.stdout.lines().filter(|l| l.contains("GPU")).count(), 1, "{}", ran.stdout);
    assert!(ran.stdout.contains("no GPU: --gpu off"), "{}", ran.stdout);
    let json = hob(&["plan", model(), "--gpu", "off", "--json"]).expect(0).json();
    assert!(json["plan"]["gpu"].is_null() && json["machine"]["gpus"]["none"].is_string(), "{json:#}");
    let disk = hob(&["plan", model(), "--gpu", "off", "--experts-on", "disk"]).expect(4);
    assert!(disk.stderr.contains("not built yet"), "{}", disk.stderr);
    let none = hob(&["plan", model(), "--gpu", "2", "--adapter", "no such card"]).expect(4);
    assert!(
        none.stderr.contains("a GPU was asked for") && none.stderr.contains("--gpu off"),
        "{}",
        none.stderr
    );
    for wrong in [["--gpu", "many"], ["--experts-on", "tape"], ["--vram", "much"], ["--adapter", " "]] {
        hob(&[&["plan", model()][..], &wrong[..]].concat()).expect(2);
    }
    let run = hob(&["run", "-q", "-m", model(), "--gpu", "off", "--max-tokens", "1", "x"]).expect(0);
    assert!(run.stderr.is_empty(), "{}", run.stderr);
}
