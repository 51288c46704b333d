//! The golden fixtures of hob-model on every exact device, and the judge itself: it must fail what it should fail.

use std::path::{Path, PathBuf};

use hob_compute::Compute;
use hob_compute::reference::Reference;
use hob_lab::golden::{self, Report};
use hob_testkit::temp::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../hob-model/tests/golden").join(name)
}

const FIXTURES: [&str; 11] = [
    "llama3",
    "llama_tied",
    "qwen2",
    "qwen3",
    "qwen3_yarn",
    "smollm3",
    "mistral",
    "phi3",
    "olmo2",
    "granite",
    "glm4",
];
/// Fixtures with mixtures of experts or short convolutions.
const MIXED: [&str; 5] = ["qwen3_moe", "lfm2", "lfm2_moe", "mixtral", "glm4_moe"];
/// Fixtures with sliding windows.
const WINDOWED: [&str; 4] = ["gemma2", "gemma3", "olmo3", "gpt_oss"];

/// Fixtures that remember a latent.
const LATENT: [&str; 2] = ["deepseek_v2_lite", "deepseek_v3"];
const DELTA: [&str; 3] = ["qwen3_5", "qwen3_5_moe", "qwen3_next"];
const STATE_SPACES: [&str; 3] = ["mamba2", "nemotron_h", "nemotron_h_moe"];
/// With compressed attention and hyper-connections.
const COMPRESSED: [&str; 1] = ["deepseek_v4"];
const GEMMA4: [&str; 3] = ["gemma4_dense", "gemma4_moe", "gemma4_e"];

fn fixtures() -> Vec<PathBuf> {
    FIXTURES.map(fixture).to_vec()
}

fn cpu(threads: usize, exact: bool) -> hob_cpu::Cpu {
    let config = hob_cpu::CpuConfig { threads, exact, isa: None, pin: false };
    hob_cpu::Cpu::new(&config).expect("a CPU device")
}

/// All fixtures pass, in both file forms, with everything recorded actually checked.
fn assert_passes(fixtures: &[PathBuf], dev: &mut dyn Compute) {
    let report = golden::run(fixtures, dev);
    println!("{report}");
    assert!(report.passed(), "{report}");
    for model in &report.models {
        assert_eq!(model.variants.len(), 2, "{report}");
        for variant in &model.variants {
            let figures = variant.figures.as_ref().expect("figures");
            assert_eq!(figures.greedy_length, 24);
            let long = if model.dir.ends_with("deepseek_v4") { 300 } else { 150 };
            assert_eq!(figures.argmax_checked + figures.argmax_undecided, 40 + long);
            assert!(figures.argmax_undecided <= 5, "{report}");
        }
    }
    let held = dev.held_bytes();
    assert_eq!((held.weights, held.buffers, held.pages), (0, 0, 0), "everything was unloaded");
}

#[test]
fn fixtures_pass_on_the_reference_device() {
    assert_passes(&fixtures(), &mut Reference::new(true));
}

#[test]
fn fixtures_pass_on_the_cpu() {
    assert_passes(&fixtures(), &mut cpu(2, true));
}

#[test]
fn fixtures_with_mixtures_and_convolutions_pass() {
    let fixtures = MIXED.map(fixture);
    assert_passes(&fixtures, &mut Reference::new(true));
    assert_passes(&fixtures, &mut cpu(2, true));
}

#[test]
fn fixtures_with_delta_rules_pass() {
    let fixtures = DELTA.map(fixture);
    assert_passes(&fixtures, &mut Reference::new(true));
    assert_passes(&fixtures, &mut cpu(2, true));
}

#[test]
fn fixtures_with_state_spaces_pass() {
    let fixtures = STATE_SPACES.map(fixture);
    assert_passes(&fixtures, &mut Reference::new(true));
    assert_passes(&fixtures, &mut cpu(2, true));
}

#[test]
fn fixtures_with_a_latent_pass() {
    let fixtures = LATENT.map(fixture);
    assert_passes(&fixtures, &mut Reference::new(true));
    assert_passes(&fixtures, &mut cpu(2, true));
}

#[test]
fn fixtures_with_windows_pass() {
    let fixtures = WINDOWED.map(fixture);
    assert_passes(&fixtures, &mut Reference::new(true));
    assert_passes(&fixtures, &mut cpu(2, true));
}

#[test]
fn fixtures_with_compressed_attention_pass() {
    assert_passes(&COMPRESSED.map(fixture), &mut Reference::new(true));
    assert_passes(&COMPRESSED.map(fixture), &mut cpu(2, true));
}

#[test]
fn fixtures_with_compressed_attention_pass_on_a_gpu() {
    let Some(mut gpu) = gpu() else { return };
    assert_passes(&COMPRESSED.map(fixture), &mut gpu);
}

#[test]
fn fixtures_of_gemma_4_pass() {
    let fixtures = GEMMA4.map(fixture);
    assert_passes(&fixtures, &mut Reference::new(true));
    assert_passes(&fixtures, &mut cpu(2, true));
}

/// gpt-oss with the corners of YaRN rounded, which its GGUF files cannot ask for; and LFM3, which has none.
const WITHOUT_GGUF: [&str; 2] = ["gpt_oss_trunc", "lfm3"];

fn assert_passes_without_gguf(dev: &mut dyn Compute) {
    let report = golden::run(&WITHOUT_GGUF.map(fixture), dev);
    assert!(report.passed() && report.models.iter().all(|m| m.variants.len() == 1), "{report}");
}

#[test]
fn fixtures_without_a_gguf_pass() {
    assert_passes_without_gguf(&mut Reference::new(true));
    assert_passes_without_gguf(&mut cpu(2, true));
}

#[test]
fn fixtures_without_a_gguf_pass_on_a_gpu() {
    let Some(mut gpu) = gpu() else { return };
    assert_passes_without_gguf(&mut gpu);
}

/// The software adapter where there is one, unless `HOB_TEST_ADAPTER` names another by its index.
fn gpu() -> Option<hob_gpu::Gpu> {
    let adapter = hob_gpu::test_adapter()?;
    let config = hob_gpu::GpuConfig { adapter, exact: true, ..hob_gpu::GpuConfig::default() };
    Some(hob_gpu::Gpu::open(&config).expect("the adapter opens"))
}

#[test]
fn fixtures_pass_on_a_gpu() {
    let Some(mut gpu) = gpu() else { return };
    assert_passes(&fixtures(), &mut gpu);
}

#[test]
fn fixtures_with_windows_pass_on_a_gpu() {
    let Some(mut gpu) = gpu() else { return };
    assert_passes(&WINDOWED.map(fixture), &mut gpu);
}

#[test]
fn fixtures_with_mixtures_and_convolutions_pass_on_a_gpu() {
    let Some(mut gpu) = gpu() else { return };
    assert_passes(&MIXED.map(fixture), &mut gpu);
}

#[test]
fn fixtures_with_a_latent_pass_on_a_gpu() {
    let Some(mut gpu) = gpu() else { return };
    // 27 tiny layers are many dispatches, and the same kernels as 4: too long for a software adapter.
    let of = if gpu.facts().software { &LATENT[1..] } else { &LATENT[..] };
    assert_passes(&of.iter().map(|name| fixture(name)).collect::<Vec<_>>(), &mut gpu);
}

#[test]
fn fixtures_with_delta_rules_pass_on_a_gpu() {
    let Some(mut gpu) = gpu() else { return };
    assert_passes(&DELTA.map(fixture), &mut gpu);
}

#[test]
fn fixtures_with_state_spaces_pass_on_a_gpu() {
    let Some(mut gpu) = gpu() else { return };
    assert_passes(&STATE_SPACES.map(fixture), &mut gpu);
}

#[test]
fn fixtures_of_gemma_4_pass_on_a_gpu() {
    let Some(mut gpu) = gpu() else { return };
    assert_passes(&GEMMA4.map(fixture), &mut gpu);
}

#[test]
fn an_inexact_device_is_refused() {
    let report = golden::run(&fixtures()[..1], &mut Reference::new(false));
    assert!(!report.passed());
    assert!(report.models[0].failure.as_ref().is_some_and(|f| f.contains("exact mode")), "{report}");
}

/// A copy of a fixture with one of its files changed.
fn altered(dir: &TempDir, fixture_name: &str, file: &str, change: impl Fn(String) -> String) -> Report {
    for name in ["config.json", "golden.json", "model.safetensors"] {
        let from = fixture(fixture_name).join(name);
        std::fs::copy(from, dir.join(name)).expect("a copy");
    }
    let text = std::fs::read_to_string(dir.join(file)).expect("text");
    let changed = change(text.clone());
    assert_ne!(text, changed, "the change must change something");
    std::fs::write(dir.join(file), changed).expect("writable");
    golden::run(&[dir.path().to_path_buf()], &mut cpu(1, true))
}

#[test]
fn an_unknown_architecture_fails_with_its_name() {
    let dir = TempDir::new("golden-arch");
    let report = altered(&dir, "qwen2", "config.json", |t| t.replace("\"qwen2\"", "\"qwen9\""));
    assert!(!report.passed());
    let failure = report.models[0].variants[0].failure.as_deref().unwrap_or_default();
    assert!(failure.contains("unknown architecture 'qwen9'") && failure.contains("llama, qwen2"), "{report}");
}

#[test]
fn a_wrong_rope_base_is_a_miss() {
    let dir = TempDir::new("golden-rope");
    let report = altered(&dir, "llama_tied", "config.json", |t| t.replace("100000.0", "99000.0"));
    let figures = report.models[0].variants[0].figures.as_ref().expect("it runs");
    assert!(figures.largest_difference > golden::TOLERANCE && !report.passed(), "{report}");
}

#[test]
fn one_wrong_greedy_token_is_a_miss() {
    let dir = TempDir::new("golden-greedy");
    let report = altered(&dir, "llama3", "golden.json", |t| {
        let mut golden: serde_json::Value = serde_json::from_str(&t).expect("json");
        let last = &mut golden["short"]["greedy"][23];
        *last = (last.as_u64().expect("a token") ^ 1).into();
        golden.to_string()
    });
    let figures = report.models[0].variants[0].figures.as_ref().expect("it runs");
    assert_eq!((figures.greedy_agreed, figures.greedy_length), (23, 24));
    assert!(!report.passed(), "{report}");
}

#[test]
fn one_wrong_argmax_is_a_miss_also_where_no_logits_are_recorded() {
    let dir = TempDir::new("golden-argmax");
    let report = altered(&dir, "llama3", "golden.json", |t| {
        let mut golden: serde_json::Value = serde_json::from_str(&t).expect("json");
        assert!(golden["long"]["logits"].get("100").is_none());
        let at = &mut golden["long"]["argmax_all"][100];
        *at = (at.as_u64().expect("a token") ^ 1).into();
        golden.to_string()
    });
    let figures = report.models[0].variants[0].figures.as_ref().expect("it runs");
    assert_eq!(figures.argmax_agreed + 1, figures.argmax_checked);
    assert!(!report.passed(), "{report}");
}

#[test]
fn folders_without_a_fixture_fail_and_say_why() {
    let dir = TempDir::new("golden-empty");
    let report = golden::run(&[dir.path().to_path_buf()], &mut Reference::new(true));
    assert!(report.models[0].failure.as_ref().is_some_and(|f| f.contains("golden.json")), "{report}");
    std::fs::copy(fixture("llama3").join("golden.json"), dir.join("golden.json")).expect("a copy");
    let report = golden::run(&[dir.path().to_path_buf()], &mut Reference::new(true));
    assert!(report.models[0].failure.as_ref().is_some_and(|f| f.contains("found neither")), "{report}");
    assert!(!golden::run(&[], &mut Reference::new(true)).passed(), "no fixture is no success");
}
