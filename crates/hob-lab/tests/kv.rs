//! KV formats of synthesised models side by side: that the figures are those of the formats, that the rule goes by what is
//! measured and not by an architecture's name, and what is refused.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use hob_files::ModelFile;
use hob_lab::eval::{EvalConfig, EvalError, Watch};
use hob_lab::kv::{self, KvConfig, Report};
use hob_lab::synth::{Mix, Shape, Synth};
use hob_model::KvPair;
use hob_plan::{KvNoise, KvRule, KvWish};
use hob_quant::{Format, KvFormat};
use hob_testkit::temp::TempDir;

const TINY: Shape = Shape {
    name: "tiny",
    arch: "qwen3",
    dim: 128,
    layers: 2,
    ffn: 256,
    heads: 4,
    kv_heads: 2,
    head_dim: 64,
    vocab: 400,
    ctx_train: 1024,
    rope_base: 1e4,
    ..Shape::DENSE
};

/// The fourth root of head_dim: norms of Q and K with it make logits as an attention scale of 1 does.
const SCALE_ONE: f32 = 2.828_427;

/// The rule, but for the size of the model: tiny ones may have 4 bits here.
fn rule() -> KvRule {
    KvRule { least_parameters: 0, ..KvRule::default() }
}

fn model(dir: &TempDir, arch: &'static str, qk_gain: Option<f32>) -> Arc<ModelFile> {
    let synth = Synth::new(Shape { arch, ..TINY }, Mix::Plain(Format::Q8_0), None).expect("tiny");
    let synth = match qk_gain {
        Some(gain) => synth.with_qk_gain(gain).expect("it has norms of Q and K"),
        None => synth,
    };
    let path = dir.join(format!("{arch}-{}.gguf", qk_gain.unwrap_or(0.0)));
    synth.write(Path::new(&path), &mut |_, _| {}, &AtomicBool::new(false)).expect("written");
    Arc::new(ModelFile::open(&path).expect("opens"))
}

fn config(kv: &str) -> KvConfig {
    KvConfig {
        eval: EvalConfig { ctx: 400, chunks: Some(2), stride: None, threads: 2 },
        scored: 40,
        formats: kv.split(',').map(|f| KvWish::parse(f).expect(f)).collect(),
        rule: rule(),
    }
}

fn text() -> String {
    (0..500).map(|i| format!("The {} of {} went by. ", i * 7919 % 1000, i * 104_729 % 997)).collect()
}

fn cpu() -> hob_cpu::Cpu {
    hob_cpu::Cpu::new(&hob_cpu::CpuConfig { threads: 2, exact: false, isa: None, pin: false }).expect("a CPU")
}

fn run(config: &KvConfig, file: &Arc<ModelFile>) -> Report {
    kv::run(config, file, &text(), None, &mut cpu(), &mut ()).expect("a report")
}

#[test]
fn formats_cost_what_they_say_and_fewer_bits_stray_further() {
    let dir = TempDir::new("lab-kv");
    let file = model(&dir, "qwen3", Some(SCALE_ONE));
    let report = run(&config("f16,bf16,q8,asym4,q4,q8/q4,q4/q8"), &file);
    let row = |kv: &str| report.rows.iter().find(|r| r.kv == kv).expect(kv);
    let kl = |kv: &str| row(kv).divergence.kl_mean.value;
    // 2 layers x 2 heads x (K and V) x 2 groups of 32.
    let groups = 2 * 2 * 2 * 2;
    assert_eq!(report.f16_bytes_per_token, groups * 64);
    for (kv, bytes) in
        [("q8", groups * 34), ("q4", groups * 18), ("asym4", groups * 20), ("q8/q4", groups * 26)]
    {
        assert_eq!(row(kv).bytes_per_token, bytes, "{kv}");
    }
    assert_eq!(row("f16").divergence.kl_max, 0.0, "f16 against itself");
    assert_eq!(row("f16").divergence.scored_tokens, 2 * 40);
    assert!(kl("q8") > 0.0 && kl("q8") < kl("q4") / 5.0, "{} {}", kl("q8"), kl("q4"));
    assert!(kl("q8/q4") < kl("q4"), "{} {}", kl("q8/q4"), kl("q4"));
    assert!(report.rows.iter().all(|r| r.divergence.ppl_a == report.rows[0].divergence.ppl_a));
    let shown = report.to_string();
    for part in ["q8/q4", "of f16", "99.9 %", "2 windows"] {
        assert!(shown.contains(part), "{part}:\n{shown}");
    }
    let json = serde_json::to_value(&report).expect("JSON");
    assert_eq!(json["rows"][3]["kv"], "asym4");
    assert_eq!(json["noise"]["layers"][1]["formats"][0]["format"], "q8");
}

#[test]
fn without_other_rounding_formats_cost_what_their_codecs_do() {
    let dir = TempDir::new("lab-kv-exact");
    let file = model(&dir, "qwen3", Some(SCALE_ONE));
    let device = hob_cpu::CpuConfig { threads: 2, exact: true, isa: None, pin: false };
    let mut exact = hob_cpu::Cpu::new(&device).expect("a CPU");
    let one = KvConfig {
        eval: EvalConfig { ctx: 200, chunks: Some(1), stride: None, threads: 2 },
        ..config("bf16,q8,q4")
    };
    let report = kv::run(&one, &file, &text(), None, &mut exact, &mut ()).expect("a report");
    let kl: Vec<f64> = report.rows.iter().map(|r| r.divergence.kl_mean.value).collect();
    let rounding = run(&one, &file);
    assert!(kl[0] > 0.0 && kl[0] < kl[1] && kl[1] * 20.0 < kl[2], "{kl:?}");
    assert!(kl[0] < rounding.rows[0].divergence.kl_mean.value, "no floor of int8 activations: {kl:?}");
}

#[test]
fn the_rule_goes_by_what_is_measured_not_by_the_name_of_the_architecture() {
    let dir = TempDir::new("lab-kv-rule");
    let chosen = |file: &Arc<ModelFile>| {
        let report = run(&config("auto"), file);
        let k: Vec<KvFormat> = report.choice.layers.iter().map(|l| l.k).collect();
        (k, report)
    };
    let (plain, _) = chosen(&model(&dir, "llama", None));
    let (gentle, of_gentle) = chosen(&model(&dir, "qwen3", Some(1.0)));
    let (sharp, of_sharp) = chosen(&model(&dir, "qwen3", Some(SCALE_ONE)));
    assert_eq!(plain, [KvFormat::Q4; 2]);
    // One architecture, two choices: norms of Q and K alone decide nothing, their gains do.
    assert_eq!(gentle, [KvFormat::Q4; 2]);
    assert!(sharp.iter().all(|&k| k > KvFormat::F16 && k != KvFormat::Q4), "{sharp:?}");
    let sigma = |r: &Report| r.choice.layers[0].sigma4.expect("measured");
    assert!((sigma(&of_sharp) / sigma(&of_gentle) - 8.0).abs() < 2.0, "gain squared");
    assert_eq!(of_gentle.choice.layout.wished(0).k, KvFormat::Q4);
    // A model so small has 8 bits in any case, whatever was measured.
    let small = KvConfig { rule: KvRule::default(), ..config("auto") };
    let report = run(&small, &model(&dir, "llama", None));
    assert!(report.choice.layout.0.iter().all(|&p| p == KvPair::both(KvFormat::Q8)));
    assert_eq!(report.rows[0].bytes_per_token, 2 * 2 * 2 * 2 * 34);
}

#[test]
fn what_is_known_is_not_measured_again() {
    let dir = TempDir::new("lab-kv-known");
    let file = model(&dir, "qwen3", None);
    let first = run(&config("auto"), &file);
    assert!(first.noise.tokens > 100 && first.noise.layers.len() == 2);
    assert_eq!(first.noise.model_id, file.model_id());
    let known = KvNoise { tokens: 77, ..first.noise.clone() };
    let again =
        kv::run(&config("auto"), &file, &text(), Some(known.clone()), &mut cpu(), &mut ()).expect("a report");
    assert_eq!(again.noise, known);
    assert_eq!(again.rows, first.rows, "the same text on the same formats");
    let table = again.noise_table();
    assert!(table.contains("77 tokens") && table.contains("ratio"), "{table}");
}

/// Stops when it was asked this often.
struct Impatient(Cell<usize>);

impl Watch for Impatient {
    fn stop(&self) -> bool {
        self.0.set(self.0.get() + 1);
        self.0.get() > 3
    }
}

#[test]
fn an_interrupt_keeps_whole_windows_and_bad_wishes_are_refused() {
    let dir = TempDir::new("lab-kv-stop");
    let file = model(&dir, "llama", None);
    let mut dev = cpu();
    let mut stopper = Impatient(Cell::new(0));
    let report = kv::run(&config("q8,q4"), &file, &text(), None, &mut dev, &mut stopper).expect("one window");
    assert_eq!((report.chunks, report.chunks_planned), (1, 2));
    assert!(report.rows.iter().all(|r| r.divergence.scored_tokens == 40));
    assert!(report.to_string().contains("interrupted"));
    let none = KvConfig { formats: vec![], ..config("q8") };
    let refused = |config: &KvConfig, text: &str, dev: &mut hob_cpu::Cpu| {
        kv::run(config, &file, text, None, dev, &mut ()).expect_err("refused")
    };
    assert!(matches!(refused(&none, &text(), &mut dev), EvalError::Config { field: "--kv", .. }));
    assert!(matches!(refused(&config("q8"), "too short", &mut dev), EvalError::TooShort { .. }));
    use hob_compute::Compute;
    assert_eq!(dev.held_bytes(), hob_compute::HeldBytes::default(), "nothing stays loaded");
}
