//! `hob lab`: files of made-up models, and figures of models on texts.

mod common;

use common::{file, hob, hob_with, model, start};
use hob_testkit::temp::TempDir;
use hob_testkit::tiny::TinySpec;

/// Some 300 tokens of the tiny vocabulary.
fn text() -> String {
    file("text.txt", "The quick brown fox jumps over the lazy dog again. ".repeat(8).as_bytes())
}

/// The run fails with `code`, prints nothing to stdout, and its error names every part.
fn fails(args: &[&str], code: i32, parts: &[&str]) {
    let ran = hob(args).expect(code);
    assert_eq!(ran.stdout, "", "{args:?}");
    for part in parts {
        assert!(ran.stderr.contains(part), "{args:?}: '{part}' missing in\n{}", ran.stderr);
    }
}

#[test]
fn help_names_the_tools() {
    let help = hob(&["lab", "--help"]).expect(0).stdout;
    for part in ["golden", "synth", "ppl", "kl", "kv", "needle"] {
        assert!(help.contains(part), "{part} missing in\n{help}");
    }
    for (tool, part) in [
        ("synth", "--layers"),
        ("ppl", "--stride"),
        ("kl", "--apart"),
        ("kv", "--least-weights"),
        ("needle", "--depths"),
    ] {
        assert!(hob(&["lab", tool, "--help"]).expect(0).stdout.contains(part), "{tool}");
    }
}

#[test]
fn synth_lists_and_writes() {
    let shapes = hob(&["lab", "synth", "help"]).expect(0).stdout;
    for part in ["qwen3-30b-a3b", "lfm2-1.2b", "iq3_xxs", "q4_k_m"] {
        assert!(shapes.contains(part), "{part} missing in\n{shapes}");
    }
    let dir = TempDir::new("cli-synth");
    let path = dir.join("one.gguf");
    let path = path.to_str().expect("UTF-8");
    let args = ["lab", "synth", "smollm2-135m:q4_0", "--layers", "1", "-o", path];
    let ran = hob(&args).expect(0);
    assert_eq!(ran.stdout.trim_end(), path);
    assert!(ran.stderr.contains("1 of 30 layers") && ran.stderr.contains("MiB"), "{}", ran.stderr);
    let first = std::fs::read(path).expect("written");
    hob(&args).expect(0);
    assert!(std::fs::read(path).expect("written") == first, "the same seed is the same file");
    hob(&[&args[..], &["--seed", "2"]].concat()).expect(0);
    assert!(std::fs::read(path).expect("written") != first, "another seed is another file");
    let shown = hob(&["show", path]).expect(0).stdout;
    assert!(shown.contains("1 layers of 576") || shown.contains("1 layer of 576"), "{shown}");
    let answer = hob(&["run", "-q", "-m", path, "--max-tokens", "4", "hello"]).expect(0);
    assert!(!answer.stdout.is_empty());
}

#[test]
fn synth_says_what_is_wrong() {
    fails(&["lab", "synth", "smollm2-135m:q4_0"], 2, &["-o FILE.gguf"]);
    fails(&["lab", "synth", "nonesuch:q4_0", "-o", "x.gguf"], 2, &["nonesuch", "qwen3-1.7b"]);
    fails(&["lab", "synth", "smollm2-135m:q4_9", "-o", "x.gguf"], 2, &["q4_9", "q4_k_m"]);
    fails(&["lab", "synth", "smollm2-135m:q4_k", "-o", "x.gguf"], 2, &["256", "576"]);
    fails(&["lab", "synth", "smollm2-135m:q4_0", "--layers", "31", "-o", "x.gguf"], 2, &["31", "30"]);
    let nowhere = ["lab", "synth", "smollm2-135m:q4_0", "--layers", "1", "-o", "/nowhere/at/all/x.gguf"];
    fails(&nowhere, 1, &["x.gguf"]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_synth_leaves_nothing() {
    let dir = TempDir::new("cli-synth-stop");
    let path = dir.join("big.gguf");
    // 2 GB take seconds; a second is more than the start takes.
    let child =
        start(&["lab", "synth", "qwen3-4b:q4_0", "--layers", "12", "-o", path.to_str().expect("UTF-8")]);
    let begun = || std::fs::read_dir(dir.path()).expect("a folder").count() > 0;
    for _ in 0..200 {
        if begun() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    common::interrupt(&child);
    let ran = common::Ran::from(child.wait_with_output().expect("hob ends"));
    // A fast disk may have been done.
    if ran.code == 130 {
        assert!(ran.stderr.contains("nothing was left behind"), "{}", ran.stderr);
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 0);
    } else {
        ran.expect(0);
    }
}

#[test]
fn perplexity_of_a_text() {
    let text = text();
    let args = ["lab", "ppl", model(), "--text", &text, "--ctx", "64"];
    let ran = hob(&args).expect(0);
    for part in ["tiny.gguf: perplexity", "+/-", "windows of 64 tokens", "tok/s"] {
        assert!(ran.stdout.contains(part), "{part} missing in\n{}", ran.stdout);
    }
    let json = hob(&[&args[..], &["--json", "--chunks", "1"]].concat()).expect(0).json();
    assert_eq!(json["perplexity"]["chunks"], 1);
    assert_eq!(json["perplexity"]["scored_tokens"], 31);
    assert!(json["perplexity"]["ppl"].as_f64().expect("a figure") > 1.0);
    let piped = std::fs::read(&text).expect("the text");
    let from_stdin = hob_with(&piped, &["lab", "ppl", model(), "--text", "-", "--ctx", "64"]).expect(0);
    assert_eq!(from_stdin.stdout.lines().next(), ran.stdout.lines().next());
}

#[test]
fn divergence_of_two_models() {
    let text = text();
    let other = common::home().join("other.gguf");
    common::write_model(&TinySpec { seed: 3, ..TinySpec::llama() }, &other);
    let other = other.to_str().expect("UTF-8");
    let args = ["lab", "kl", model(), other, "--text", &text, "--ctx", "64"];
    let ran = hob(&args).expect(0);
    for part in ["KL(A||B) mean", "99.9 %", "same top token", "perplexity B / A"] {
        assert!(ran.stdout.contains(part), "{part} missing in\n{}", ran.stdout);
    }
    let apart = hob(&[&args[..], &["--apart"]].concat()).expect(0);
    assert_eq!(apart.stdout, ran.stdout);
    assert!(apart.stderr.contains("one model after the other"), "{}", apart.stderr);
    let itself = hob(&["lab", "kl", model(), model(), "--text", &text, "--ctx", "64", "--json"]);
    let itself = itself.expect(0).json();
    assert_eq!(itself["divergence"]["kl_max"], 0.0);
    assert_eq!(itself["divergence"]["same_top"]["value"], 1.0);
}

#[test]
fn what_cannot_be_evaluated_is_refused() {
    let text = text();
    fails(&["lab", "ppl", model(), "--text", "nowhere.txt"], 1, &["nowhere.txt"]);
    fails(&["lab", "ppl", model(), "--text", &file("short.txt", b"few")], 2, &["512", "--ctx"]);
    fails(&["lab", "ppl", model(), "--text", &file("latin.txt", b"caf\xe9")], 2, &["UTF-8", "byte 3"]);
    fails(&["lab", "ppl", model(), "--text", &text, "--ctx", "2"], 2, &["--ctx", "4"]);
    fails(&["lab", "ppl", model(), "--text", &text, "--ctx", "64", "--stride", "64"], 2, &["--stride"]);
    fails(&["lab", "ppl", model(), "--text", &text, "--ctx", "1024"], 4, &["1,024", "512"]);
    fails(&["lab", "ppl", model(), "--text", &text, "--ctx", "64", "--ram", "100K"], 4, &["--ram"]);
    fails(&["lab", "ppl", "nonesuch", "--text", &text], 3, &["nonesuch"]);
    let other = common::home().join("vocab.gguf");
    common::write_model(&TinySpec { vocab: 300, ..TinySpec::llama() }, &other);
    let other = other.to_str().expect("UTF-8");
    fails(&["lab", "kl", model(), other, "--text", &text, "--ctx", "64"], 3, &["tokenizer", "320 and 300"]);
}

/// Two layers of a shape with norms of Q and K, whose logits of attention are as large as with a scale of 1 at `gain` 3.37.
fn norms(dir: &TempDir, gain: &str) -> String {
    let path = dir.join(format!("norms-{gain}.gguf"));
    let path = path.to_str().expect("UTF-8").to_string();
    let args = ["lab", "synth", "qwen3-0.6b:q8_0", "--layers", "1", "--qk-gain", gain, "-o", &path];
    assert!(gain == "1" || hob(&args).expect(0).stderr.contains(gain));
    hob(&args).expect(0);
    path
}

#[test]
fn kv_shows_that_the_measurement_decides_and_keeps_it() {
    let dir = TempDir::new("cli-kv");
    let long = file(
        "long.txt",
        "The quick brown fox jumps over the lazy dog again and again. ".repeat(60).as_bytes(),
    );
    let of = |gain: &str| {
        let model = norms(&dir, gain);
        let args = ["lab", "kv", &model, "--text", &long, "--ctx", "400", "--chunks", "1", "--score", "8"];
        let ran =
            hob(&[&args[..], &["--kv", "q8,auto", "--least-weights", "0", "--json"]].concat()).expect(0);
        let json = ran.json();
        assert_eq!(json["kv"]["rows"].as_array().expect("rows").len(), 2);
        let shown = hob(&[&args[..], &["--kv", "q8", "--verbose"]].concat()).expect(0).stdout;
        for part in ["of f16", "noise by layer", "there", "auto:"] {
            assert!(shown.contains(part), "{part} missing in\n{shown}");
        }
        json["kv"]["choice"]["layers"][0]["k"].as_str().expect("a format").to_string()
    };
    assert_eq!(of("1"), "q4");
    assert_ne!(of("3.37"), "q4");
    let kept = std::fs::read_dir(common::home().join("kv")).expect("measurements").count();
    assert!(kept >= 2, "{kept} kept");
}

#[test]
fn needle_hides_facts_and_says_what_is_wrong() {
    let long = file("hay.txt", "The quick brown fox jumps over the lazy dog again. ".repeat(40).as_bytes());
    let args =
        ["lab", "needle", model(), "--text", &long, "--ctx", "300", "--depths", "0,100", "--kv", "f16,q8"];
    let shown = hob(&args).expect(0).stdout;
    for part in ["depth", "KV f16", "KV q8", "0/2"] {
        assert!(shown.contains(part), "{part} missing in\n{shown}");
    }
    let json = hob(&[&args[..], &["--json", "--repeat", "1"]].concat()).expect(0).json();
    assert_eq!(json["needle"]["cells"].as_array().expect("cells").len(), 4);
    assert!(json["needle"]["cells"][0]["trials"][0]["margin"].as_f64().expect("a figure") < 0.0);
    fails(&["lab", "needle", model(), "--text", &long, "--ctx", "40"], 2, &["--ctx", "256"]);
    let deep = ["lab", "needle", model(), "--text", &long, "--ctx", "300", "--depths", "120"];
    fails(&deep, 2, &["--depths", "100"]);
    fails(&["lab", "needle", model(), "--text", &long, "--kv", "q5"], 2, &["q5", "q8/q4"]);
    fails(&["lab", "kv", model(), "--text", &long, "--kv", "int8"], 2, &["int8", "asym4"]);
    fails(&["lab", "kv", model(), "--text", &file("tiny.txt", b"few"), "--ctx", "128"], 2, &["128", "--ctx"]);
    fails(
        &["lab", "synth", "smollm2-135m:q4_0", "--qk-gain", "2", "-o", "x.gguf"],
        2,
        &["--qk-gain", "qwen3"],
    );
}
