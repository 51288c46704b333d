//! Perplexity and divergence of golden and tiny models: against the reference device, against themselves, and what is
//! refused.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hob_compute::reference::Reference;
use hob_compute::{Compute, Token};
use hob_files::ModelFile;
use hob_lab::eval::{EvalConfig, EvalError, Watch, Windows};
use hob_lab::kl::{self, Pair, Placement};
use hob_lab::ppl;
use hob_model::{Batch, Layout, Model, Row};
use hob_testkit::temp::TempDir;
use hob_testkit::tiny::{TinySpec, f32_encode};
use hob_text::Tokenizer;

/// Plain English, some 250 bytes; the golden vocabularies merge little of it.
const TEXT: &str = "It was a bright cold day in the north, and the clocks of the town were striking one. \
                    The wind moved slowly over the hills, and nobody there had seen the sea for many years. \
                    What would they say, if somebody came and told them of it? They would not say a word.\n";

fn golden(name: &str) -> Arc<ModelFile> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hob-model/tests/golden").join(name);
    let gguf: Vec<PathBuf> = std::fs::read_dir(&dir)
        .expect("a fixture")
        .map(|e| e.expect("an entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == "gguf"))
        .collect();
    Arc::new(ModelFile::open(&gguf[0]).expect("opens"))
}

fn tiny(dir: &TempDir, name: &str, spec: &TinySpec) -> Arc<ModelFile> {
    let path = dir.join(name);
    spec.write_gguf(&path, &f32_encode).expect("written");
    Arc::new(ModelFile::open(&path).expect("opens"))
}

fn cpu(threads: usize, exact: bool) -> hob_cpu::Cpu {
    hob_cpu::Cpu::new(&hob_cpu::CpuConfig { threads, exact, isa: None, pin: false }).expect("a CPU device")
}

fn config(ctx: usize) -> EvalConfig {
    EvalConfig { ctx, chunks: None, stride: None, threads: 2 }
}

/// The definition, one token at a time on the scalar oracle, with sums of its own.
fn by_hand(file: &Arc<ModelFile>, text: &str, ctx: usize) -> (f64, usize) {
    let mut dev = Reference::new(true);
    let tokenizer = Tokenizer::from_model(file).expect("a tokenizer");
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    let mut tokens: Vec<u32> = bos.into_iter().collect();
    tokens.extend(tokenizer.encode(text.trim_end(), hob_text::Special::Plain).expect("encodes"));
    let mut model =
        Model::load(Arc::clone(file), &mut dev, &Layout::new(ctx), &mut |_, _| ()).expect("loads");
    let mut row = vec![0f32; model.info().config.vocab];
    let (mut nll, mut scored) = (0.0, 0);
    for chunk in tokens.chunks_exact(ctx) {
        let sequence = model.new_sequence().expect("a sequence");
        for p in 0..ctx - 1 {
            let token = if p == 0 { bos.unwrap_or(chunk[0]) } else { chunk[p] };
            let rows = vec![Row {
                sequence,
                position: p as u32,
                token: Token::Host(token),
                logits: true,
                draft: false,
            }];
            model.step(&mut dev, &Batch { rows }).expect("a step");
            if p >= ctx / 2 {
                dev.download(model.logits(), 0, &mut row).expect("logits");
                let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
                nll -= f64::from(row[chunk[p + 1] as usize]) - sum.ln();
                scored += 1;
            }
        }
        model.free_sequence(sequence).expect("freed");
    }
    model.unload(&mut dev).expect("unloads");
    ((nll / f64::from(scored)).exp(), scored as usize)
}

#[test]
fn perplexity_is_the_definition() {
    for (name, ctx) in [("llama3", 64), ("qwen2", 40), ("llama_tied", 33)] {
        let file = golden(name);
        let (expected, scored) = by_hand(&file, TEXT, ctx);
        for dev in [&mut cpu(2, true) as &mut dyn Compute, &mut Reference::new(true)] {
            let report = ppl::run(&config(ctx), &file, TEXT, dev, &mut ()).expect("a report");
            assert_eq!((report.scored_tokens, report.chunks), (scored, scored / (ctx - 1 - ctx / 2)));
            assert!((report.ppl / expected - 1.0).abs() < 1e-5, "{name}: {} for {expected}", report.ppl);
            assert!(report.ppl_error > 0.0 && report.running.len() == report.chunks);
            assert_eq!(report.running.last(), Some(&report.ppl));
            assert_eq!(dev.held_bytes().weights, 0, "everything was unloaded");
        }
    }
}

#[test]
fn strides_and_limits_are_kept() {
    let file = golden("llama3");
    let run =
        |config: &EvalConfig| ppl::run(config, &file, TEXT, &mut cpu(1, true), &mut ()).expect("a report");
    let all = run(&config(64));
    let first = run(&EvalConfig { chunks: Some(1), ..config(64) });
    assert_eq!(first.ppl, all.running[0]);
    let strided = run(&EvalConfig { stride: Some(16), ..config(64) });
    assert!(strided.chunks > all.chunks);
    assert_eq!(strided.scored_tokens, strided.chunks * 16);
    assert!(strided.to_string().contains("every 16"));
}

#[test]
fn a_model_does_not_diverge_from_itself() {
    let pair = Pair { a: golden("llama3"), b: golden("llama3") };
    for placement in [Placement::Together, Placement::Apart] {
        let mut dev = cpu(2, true);
        let report = kl::run(&config(64), &pair, TEXT, placement, &mut dev, &mut ()).expect("a report");
        assert_eq!((report.kl_mean.value, report.kl_max), (0.0, 0.0), "{placement:?}");
        assert_eq!((report.same_top.value, report.p_difference_rms.value), (1.0, 0.0));
        assert_eq!(report.ppl_ratio.value, 1.0);
        assert_eq!(dev.held_bytes().weights, 0, "everything was unloaded");
    }
}

#[test]
fn a_changed_model_diverges_the_same_way_in_both_placements() {
    let dir = TempDir::new("eval-kl");
    let spec = TinySpec::llama();
    let a = tiny(&dir, "a.gguf", &spec);
    // Another base turns queries and keys a little differently; all weights are the same.
    let b = tiny(&dir, "b.gguf", &TinySpec { rope_base: 20_000.0, ..spec.clone() });
    let c = tiny(&dir, "c.gguf", &TinySpec { seed: 2, ..spec });
    let run = |b: &Arc<ModelFile>, placement| {
        let pair = Pair { a: Arc::clone(&a), b: Arc::clone(b) };
        kl::run(&config(64), &pair, TEXT, placement, &mut cpu(2, true), &mut ()).expect("a report")
    };
    let (mut near, mut apart) = (run(&b, Placement::Together), run(&b, Placement::Apart));
    (near.seconds, apart.seconds) = (0.0, 0.0);
    assert_eq!(near, apart);
    let far = run(&c, Placement::Together);
    assert!(near.kl_mean.value > 0.0, "{near}");
    assert!(far.kl_mean.value > 10.0 * near.kl_mean.value, "{far}");
    assert!(near.same_top.value > far.same_top.value, "{near}{far}");
    assert!(near.kl_median <= near.kl_p99 && near.kl_p99 <= near.kl_p999 && near.kl_p999 <= near.kl_max);
    let ppl = ppl::run(&config(64), &a, TEXT, &mut cpu(2, true), &mut ()).expect("a report");
    assert!((ppl.ppl / near.ppl_a.value - 1.0).abs() < 1e-12);
    assert!((ppl.ppl_error / near.ppl_a.error - 1.0).abs() < 1e-9);
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let file = golden("llama3");
    let ppl = |text: &str, ctx| ppl::run(&config(ctx), &file, text, &mut cpu(1, true), &mut ());
    assert!(matches!(ppl("", 64), Err(EvalError::TooShort { needed: 64, .. })));
    let error = ppl("a word", 64).expect_err("too short").to_string();
    assert!(error.contains("64") && error.contains("--ctx"), "{error}");
    assert!(matches!(ppl(TEXT, 2), Err(EvalError::Config { field: "--ctx", .. })));
}

#[test]
fn other_tokenizers_are_refused() {
    let dir = TempDir::new("eval-tokenizers");
    let spec = TinySpec::llama();
    let a = tiny(&dir, "a.gguf", &spec);
    let b = tiny(&dir, "b.gguf", &TinySpec { vocab: 300, ..spec });
    for (b, part) in [(b, "320 and 300"), (golden("llama3"), "token 0 is")] {
        let pair = Pair { a: Arc::clone(&a), b };
        let error = kl::run(&config(64), &pair, TEXT, Placement::Together, &mut cpu(1, true), &mut ());
        let error = error.expect_err("not comparable").to_string();
        assert!(error.contains("tokenizer") && error.contains(part), "{error}");
    }
}

/// Stops after so many windows.
struct StopAfter {
    windows: usize,
    seen: Cell<usize>,
}

impl Watch for StopAfter {
    fn window(&mut self, done: usize, _total: usize, running: &str) {
        assert!(!running.is_empty());
        self.seen.set(done);
    }

    fn stop(&self) -> bool {
        self.seen.get() >= self.windows
    }
}

#[test]
fn an_interrupt_keeps_what_was_scored() {
    let file = golden("llama3");
    let stop = |windows| StopAfter { windows, seen: Cell::new(0) };
    let report = ppl::run(&config(32), &file, TEXT, &mut cpu(1, true), &mut stop(2)).expect("two windows");
    assert!(report.chunks == 2 && report.chunks_planned > 2);
    assert!(report.to_string().contains("interrupted"));
    let none = ppl::run(&config(32), &file, TEXT, &mut cpu(1, true), &mut stop(0));
    assert!(matches!(none, Err(EvalError::Stopped)));
    let pair = Pair { a: Arc::clone(&file), b: file };
    let mut dev = cpu(1, true);
    let none = kl::run(&config(32), &pair, TEXT, Placement::Apart, &mut dev, &mut stop(1));
    assert!(matches!(none, Err(EvalError::Stopped)));
    assert_eq!(dev.held_bytes().weights, 0);
}

#[test]
fn windows_begin_as_the_model_was_trained() {
    let file = golden("llama3");
    let tokenizer = Tokenizer::from_model(&file).expect("a tokenizer");
    let windows = Windows::new(&config(32), TEXT, &tokenizer).expect("windows");
    let plain = tokenizer.encode(TEXT.trim_end(), hob_text::Special::Plain).expect("encodes");
    match tokenizer.bos().filter(|_| tokenizer.add_bos()) {
        Some(bos) => {
            assert_eq!(windows.text_tokens(), plain.len() + 1);
            assert!((0..windows.count()).all(|i| windows.input(i)[0] == bos));
        }
        None => {
            assert_eq!(windows.text_tokens(), plain.len());
            assert_eq!(windows.input(1)[0], plain[32]);
        }
    }
}
