//! `--kv` and the context from the command line: measured once, shown, refused with both numbers; shapes on paper.

mod common;

use common::{Ran, hob, hob_in};
use hob_testkit::temp::TempDir;
use hob_testkit::tiny::TinySpec;

const SHAPE: &str = "llama-3.1-70b:q4_k_m";

/// A home of its own with the machine measured already, and in it a model whose heads can be packed.
fn fresh(name: &str, ctx: usize) -> (TempDir, String) {
    let home = TempDir::new(name);
    std::fs::copy(common::home().join("machine.json"), home.join("machine.json"))
        .expect("a measured machine");
    let path = home.join("tiny.gguf");
    common::write_model(&TinySpec { head_dim: 32, ctx, ..TinySpec::llama() }, &path);
    let path = path.to_str().expect("UTF-8").to_string();
    (home, path)
}

#[test]
fn the_first_run_measures_and_every_later_plan_shows_the_choice() {
    let (home, model) = fresh("kv-first", 512);
    let plan = || hob_in(home.path(), &["plan", &model]).expect(0).stdout;
    let before = plan();
    assert!(
        before.contains(
            "kv auto: not measured yet; assuming q8 (hob lab kv MODEL, or the first run, measures)"
        ),
        "{before}"
    );
    let run =
        || hob_in(home.path(), &["run", "-m", &model, "--temp", "0", "--max-tokens", "8", "hello"]).expect(0);
    let (first, second) = (run(), run());
    assert!(first.stderr.contains("measuring which KV formats"), "{}", first.stderr);
    assert!(!second.stderr.contains("measuring"), "{}", second.stderr);
    assert_eq!(first.stdout, second.stdout, "loaded with the layout that was chosen");
    let after = plan();
    assert!(after.contains("KV (auto, measured on") && !after.contains("not measured"), "{after}");
    let verbose = hob_in(home.path(), &["plan", &model, "--verbose"]).expect(0).stdout;
    assert!(
        verbose.contains("KV noise by layer") && verbose.contains("by context and KV format"),
        "{verbose}"
    );
    let json = hob_in(home.path(), &["plan", &model, "--json"]).expect(0).json();
    assert_eq!(json["plan"]["kv"]["basis"], "measured");
    assert_eq!(json["plan"]["kv"]["measured"]["layers"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_format_that_is_asked_for_is_used_unmeasured_and_four_bits_on_a_small_model_warn() {
    let (home, model) = fresh("kv-asked", 512);
    let run = |kv: &str| {
        hob_in(home.path(), &["run", "-m", &model, "--kv", kv, "--temp", "0", "--max-tokens", "8", "hello"])
            .expect(0)
    };
    for kv in ["f16", "bf16", "q8", "q8/q4", "q4", "asym4"] {
        let ran = run(kv);
        assert!(!ran.stderr.contains("measuring"), "{kv}: {}", ran.stderr);
        assert!(ran.stderr.contains(&format!("tokens, {kv})")), "{kv}: {}", ran.stderr);
        assert_eq!(ran.stderr.contains("4 bits hurt models below"), kv.contains('4'), "{kv}: {}", ran.stderr);
    }
    let wrong = hob(&["plan", "--kv", "q5", "x"]).expect(2);
    assert!(wrong.stderr.contains("q5") && wrong.stderr.contains("q8/q4"), "{}", wrong.stderr);
}

#[test]
fn a_context_beyond_memory_is_refused_with_both_numbers_and_the_format_that_holds_it() {
    let (home, model) = fresh("kv-refused", 1 << 20);
    let plan = |kv: &str, ctx: &str| {
        hob_in(home.path(), &["plan", &model, "--kv", kv, "--ram", "64M", "--ctx", ctx])
    };
    let refused = plan("f16", "200000").expect(4);
    for part in ["200,000", "64.0 MiB", "with f16 KV", "at most", "which holds all 200,000"] {
        assert!(refused.stderr.contains(part), "{part} missing in\n{}", refused.stderr);
    }
    let way_out =
        refused.stderr.split("--kv ").nth(1).and_then(|t| t.split(',').next()).expect("a format").to_string();
    plan(&way_out, "200000").expect(0);
}

#[test]
fn a_prompt_beyond_the_context_is_refused_with_both_numbers_and_what_would_hold_it() {
    let (home, model) = fresh("kv-prompt", 512);
    let text = "a b c d e f g h ".repeat(12);
    let run = |ctx: &str, text: &str| {
        hob_in(home.path(), &["run", "-m", &model, "--kv", "q8", "--raw", "--ctx", ctx, text]).expect(4)
    };
    let short = run("32", &text).stderr;
    assert!(short.contains("the context holds 32") && short.contains("up to --ctx 512"), "{short}");
    let long = run("512", &text.repeat(8)).stderr;
    assert!(long.contains("the context holds 512") && long.contains("trained for 512: no --ctx"), "{long}");
}

fn on_paper(args: &[&str]) -> Ran {
    hob(&[&["plan", "--synth", SHAPE], args].concat())
}

#[test]
fn a_shape_on_paper_says_what_fits_at_16k_64k_and_128k() {
    let ran = on_paper(&["--ram", "64GiB", "--kv", "q4", "--json"]).expect(0);
    let plan = &ran.json()["plan"];
    let format = |kv: &str| {
        let formats = plan["formats"].as_array().expect("formats");
        formats.iter().find(|f| f["kv"] == kv).cloned().unwrap_or_else(|| panic!("{kv}"))
    };
    // 80 layers of 8 KV heads of 128: 320 KiB a token in f16, 90 in q4 (18 bytes for 32 values).
    assert_eq!(format("f16")["bytes_per_token"], 320 << 10);
    assert_eq!(format("q4")["bytes_per_token"], 90 << 10);
    let at = |kv: &str, ctx: u64| {
        let all = format(kv)["contexts"].as_array().expect("contexts").clone();
        all.into_iter().find(|c| c["ctx_tokens"] == ctx).unwrap_or_else(|| panic!("{kv} at {ctx}"))
    };
    for ctx in [16_384, 65_536, 131_072] {
        assert_eq!(at("q4", ctx)["fits"], true, "{ctx}");
        assert!(at("q4", ctx)["decode_tokens_per_second"].as_f64().is_some_and(|t| t > 0.0));
    }
    // The f16 block of the first 64 positions comes on top of 11.25 GiB.
    let kv = at("q4", 131_072)["kv_bytes"].as_u64().expect("bytes");
    assert!(((90 << 10) * 131_072..12_133_302_272).contains(&kv), "{kv}: more than 11.3 GiB");
    assert_eq!(at("f16", 131_072)["fits"], false);
    assert_eq!(plan["kv"]["basis"], "asked");
    let text = on_paper(&["--ram", "64GiB", "--kv", "q4"]).expect(0).stdout;
    for part in ["by context and KV format", "131,072", "11.3 GiB", "--ram", "<- planned", "tok/s at end"] {
        assert!(text.contains(part), "{part} missing in\n{text}");
    }
}

#[test]
fn a_shape_that_does_not_fit_is_shown_and_refused() {
    let ran = on_paper(&["--ram", "16G"]).expect(4);
    assert!(ran.stdout.contains("REFUSED") && ran.stderr.contains("16.0 GiB"), "{}", ran.stderr);
    hob(&["plan", "--synth", "nonesuch:q4_0"]).expect(2);
    assert!(hob(&["plan", "--synth", "help"]).expect(0).stdout.contains("llama3.1-70b"));
}
