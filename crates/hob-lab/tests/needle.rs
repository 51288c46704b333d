//! Facts hidden in texts: that a model which copies finds them, that one which cannot does not, and what is refused.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use hob_compute::Compute;
use hob_files::ModelFile;
use hob_lab::eval::EvalError;
use hob_lab::needle::{self, NeedleConfig, Report, Task};
use hob_lab::synth::{Mix, Shape, Synth};
use hob_plan::{KvRule, KvWish};
use hob_quant::Format;
use hob_testkit::temp::TempDir;

const TINY: Shape = Shape {
    name: "tiny",
    arch: "qwen3",
    dim: 64,
    layers: 2,
    ffn: 128,
    heads: 4,
    kv_heads: 2,
    head_dim: 32,
    vocab: 400,
    ctx_train: 1024,
    rope_base: 1e4,
    ..Shape::DENSE
};

fn model(dir: &TempDir) -> Arc<ModelFile> {
    let synth = Synth::new(TINY, Mix::Plain(Format::Q8_0), None).expect("tiny");
    let path = dir.join("tiny.gguf");
    synth.write(Path::new(&path), &mut |_, _| {}, &AtomicBool::new(false)).expect("written");
    Arc::new(ModelFile::open(&path).expect("opens"))
}

fn config() -> NeedleConfig {
    NeedleConfig {
        ctxs: vec![300, 600],
        depths: vec![0.0, 50.0, 100.0],
        repeat: 2,
        seed: 1,
        task: Task::Copy,
        formats: vec![KvWish::parse("f16").expect("a format")],
        rule: KvRule::default(),
        threads: 2,
    }
}

fn text() -> String {
    "The wind moved slowly over the hills. Nobody there had seen the sea for years. ".repeat(40)
}

fn cpu() -> hob_cpu::Cpu {
    hob_cpu::Cpu::new(&hob_cpu::CpuConfig { threads: 2, exact: false, isa: None, pin: false }).expect("a CPU")
}

fn run(config: &NeedleConfig, file: &Arc<ModelFile>) -> Report {
    let mut dev = cpu();
    let report = needle::run(config, file, &text(), None, &mut dev, &mut ()).expect("a report");
    assert_eq!(dev.held_bytes(), hob_compute::HeldBytes::default(), "nothing stays loaded");
    report
}

#[test]
fn a_model_without_sense_finds_nothing_and_the_figures_say_by_how_much() {
    let dir = TempDir::new("needle");
    let report = run(&config(), &model(&dir));
    assert_eq!((report.cells.len(), report.trials, report.trials_planned), (6, 12, 12));
    for cell in &report.cells {
        for trial in &cell.trials {
            assert!(!trial.right && trial.margin < 0.0 && trial.margin.is_finite(), "{trial:?}");
            assert!(trial.log_p < -5.0 && trial.said != trial.number, "{trial:?}");
            assert!(trial.prompt_tokens <= cell.ctx && trial.prompt_tokens + 40 > cell.ctx, "{trial:?}");
        }
    }
    let shown = report.to_string();
    for part in ["depth", "100 %", "300", "600", "0/2", "copied"] {
        assert!(shown.contains(part), "{part}:\n{shown}");
    }
}

#[test]
fn the_text_before_a_fact_is_not_read_again_and_that_changes_nothing() {
    let dir = TempDir::new("needle-prefix");
    let file = model(&dir);
    let all = run(&config(), &file);
    for depth in [0.0, 50.0, 100.0] {
        // Alone, a cell begins with an empty sequence.
        let alone = run(&NeedleConfig { depths: vec![depth], ctxs: vec![600], ..config() }, &file);
        let cell = all.cells.iter().find(|c| c.depth == depth && c.ctx == 600).expect("the cell");
        for (a, b) in alone.cells[0].trials.iter().zip(&cell.trials) {
            assert_eq!((&a.place, &a.number, &a.said), (&b.place, &b.number, &b.said), "{depth}");
            assert!((a.margin - b.margin).abs() < 1e-3, "{} {}", a.margin, b.margin);
        }
    }
    let other = run(&NeedleConfig { seed: 99, ..config() }, &file);
    assert_ne!(other.cells[0].trials[0].number, all.cells[0].trials[0].number);
}

#[test]
fn questions_are_asked_in_the_models_own_template() {
    let dir = TempDir::new("needle-question");
    let report = run(&NeedleConfig { task: Task::Question, ctxs: vec![500], ..config() }, &model(&dir));
    assert_eq!(report.trials, 6);
    assert!(report.cells.iter().flat_map(|c| &c.trials).all(|t| t.prompt_tokens <= 500));
    assert!(report.to_string().contains("chat template"));
}

#[test]
fn what_hides_nothing_is_refused() {
    let dir = TempDir::new("needle-wrong");
    let file = model(&dir);
    let refused = |config: NeedleConfig, text: &str| {
        needle::run(&config, &file, text, None, &mut cpu(), &mut ()).expect_err("refused")
    };
    let field = |error: EvalError| match error {
        EvalError::Config { field, .. } => field,
        other => panic!("{other}"),
    };
    assert_eq!(field(refused(NeedleConfig { ctxs: vec![100], ..config() }, &text())), "--ctx");
    assert_eq!(field(refused(NeedleConfig { ctxs: vec![], ..config() }, &text())), "--ctx");
    assert_eq!(field(refused(NeedleConfig { depths: vec![101.0], ..config() }, &text())), "--depths");
    assert_eq!(field(refused(NeedleConfig { depths: vec![f64::NAN], ..config() }, &text())), "--depths");
    assert_eq!(field(refused(NeedleConfig { repeat: 0, ..config() }, &text())), "--repeat");
    assert_eq!(field(refused(NeedleConfig { formats: vec![], ..config() }, &text())), "--kv");
    assert!(matches!(refused(config(), "A short text."), EvalError::TooShort { needed: 600, .. }));
}
