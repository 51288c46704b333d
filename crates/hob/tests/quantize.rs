//! `hob quantize` and `hob lab dither` as typed: files, tables, notes and refusals.

mod common;

use common::{hob, model, start};
use hob_testkit::temp::TempDir;

fn fails(args: &[&str], code: i32, parts: &[&str]) {
    let ran = hob(args).expect(code);
    assert_eq!(ran.stdout, "", "{args:?}");
    for part in parts {
        assert!(ran.stderr.contains(part), "{args:?}: '{part}' missing in\n{}", ran.stderr);
    }
}

#[test]
fn a_model_is_quantized_shown_and_run() {
    let dir = TempDir::new("cli-quantize");
    let out = dir.join("out.gguf");
    let out = out.to_str().expect("UTF-8");
    let args = ["quantize", model(), "--format", "q8_0", "-o", out];
    let ran = hob(&args).expect(0);
    for part in ["Q8_0", "bpw", "all", "from", "out.gguf"] {
        assert!(ran.stdout.contains(part), "{part} missing in\n{}", ran.stdout);
    }
    assert!(!ran.stderr.contains("quantized already"), "{}", ran.stderr);
    assert!(hob(&["show", out]).expect(0).stdout.contains("Q8_0"));
    assert!(!hob(&["run", "-q", "-m", out, "--max-tokens", "4", "hello"]).expect(0).stdout.is_empty());
    fails(&args, 2, &["exists", "--force"]);
    let ran = hob(&[&args[..], &["--force", "--json", "-t", "1"]].concat()).expect(0).json();
    assert_eq!(ran["file"], out);
    assert!(ran["quantized"]["types"].as_array().expect("types").iter().any(|t| t["format"] == "Q8_0"));
    // From a quantized file, with rows of 64 that no superblock divides.
    let again = dir.join("again.gguf");
    let again = again.to_str().expect("UTF-8");
    let ran = hob(&["quantize", out, "--recipe", "q4_k_m", "-o", again]).expect(0);
    assert!(
        ran.stderr.contains("quantized already") && ran.stderr.contains("next type that fits"),
        "{}",
        ran.stderr
    );
    assert!(ran.stdout.contains("Q5_0"), "{}", ran.stdout);
    let reference = dir.join("reference.gguf");
    let reference = reference.to_str().expect("UTF-8");
    let ran = hob(&["lab", "dither", out, "-o", reference]).expect(0);
    assert!(ran.stdout.contains("F16"), "{}", ran.stdout);
}

#[test]
fn budgets_take_bits_sizes_and_shares() {
    let dir = TempDir::new("cli-quantize-fit");
    let out = dir.join("out.gguf");
    let out = out.to_str().expect("UTF-8");
    let size = std::fs::metadata(model()).expect("there").len();
    let third = (size / 3).to_string();
    for (flag, value) in [("--bpw", "6.5"), ("--fit", third.as_str()), ("--fit", "40%")] {
        let ran = hob(&["quantize", model(), flag, value, "-o", out, "--force", "--json"]).expect(0).json();
        let figures = &ran["quantized"];
        let bytes = figures["file_bytes"].as_u64().expect("bytes");
        assert_eq!(std::fs::metadata(out).expect("there").len(), bytes);
        match value {
            "6.5" => assert!(figures["bits_per_weight"].as_f64().expect("bits") <= 6.5),
            "40%" => assert!(bytes as f64 <= size as f64 * 0.4, "{bytes} of {size}"),
            _ => assert!(bytes <= size / 3, "{bytes} of {size}"),
        }
    }
    fails(&["quantize", model(), "--bpw", "2", "-o", out, "--force"], 4, &["cannot be reached", "least"]);
    fails(&["quantize", model(), "--bpw", "-1", "-o", out, "--force"], 2, &["more than 0"]);
}

#[test]
fn wrong_usage_says_what_is_right() {
    let help = hob(&["quantize", "help"]).expect(0).stdout;
    for part in ["q4_k", "iq4_xs", "4.2500", "moe_q2_k", "q4_k_m"] {
        assert!(help.contains(part), "{part} missing in\n{help}");
    }
    fails(&["quantize", model()], 2, &["--format", "--bpw", "--fit", "--recipe"]);
    fails(&["quantize", model(), "--format", "q4_9"], 2, &["q4_9", "q4_k"]);
    fails(&["quantize", model(), "--format", "iq2_xxs"], 2, &["iq2_xxs", "q2_k"]);
    fails(&["quantize", model(), "--recipe", "q4_k"], 2, &["q4_k_m"]);
    fails(&["quantize", model(), "--fit", "much"], 2, &["8G", "much"]);
    assert_eq!(hob(&["quantize", model(), "--format", "q4_k", "--bpw", "4"]).code, 2);
    fails(&["quantize", "/nowhere/at/all.gguf", "--format", "q4_k"], 3, &["all.gguf"]);
    fails(&["quantize", model(), "--format", "q8_0", "-o", model(), "--force"], 2, &["the model itself"]);
    fails(&["quantize", model(), "--format", "q8_0", "-o", "/nowhere/at/all/x.gguf"], 1, &["x.gguf"]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_leaves_nothing() {
    let dir = TempDir::new("cli-quantize-stop");
    // The embedding alone, 28 million weights, takes one thread a second.
    let source = dir.join("source.gguf").to_str().expect("UTF-8").to_string();
    hob(&["lab", "synth", "smollm2-135m:f16:q4_0", "--layers", "1", "-o", &source]).expect(0);
    let path = dir.join("out.gguf");
    let child = start(&[
        "quantize",
        &source,
        "--format",
        "iq4_nl",
        "--head",
        "iq4_nl",
        "-t",
        "1",
        "-o",
        path.to_str().expect("UTF-8"),
    ]);
    let files = || std::fs::read_dir(dir.path()).expect("a folder").count();
    for _ in 0..200 {
        if files() > 1 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    common::interrupt(&child);
    let ran = common::Ran::from(child.wait_with_output().expect("hob ends"));
    // A fast machine may have been done.
    if ran.code == 130 {
        assert!(ran.stderr.contains("nothing was left behind"), "{}", ran.stderr);
        assert_eq!(files(), 1);
    } else {
        ran.expect(0);
    }
}
