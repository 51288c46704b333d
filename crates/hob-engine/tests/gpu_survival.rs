//! Restarts on a GPU: every kind of state comes back from disk as it was, though batches were recorded ahead. Without an
//! adapter every test says 'skipped'.

mod common;

use common::faulty::Deed;
use common::*;
use hob_engine::*;
use hob_gpu::{Gpu, GpuConfig};
use hob_model::{Layout, ModelInfo};
use hob_testkit::temp::TempDir;

/// Two turns in one session, and in two processes: the same tokens, the same logits, and nothing is run twice.
fn restarts(name: &str) {
    let Some(adapter) = hob_gpu::test_adapter() else { return };
    let gpu = Gpu::open(&GpuConfig { adapter, ..GpuConfig::default() }).expect("the adapter opens");
    let file = reference_model(name);
    let vocab = ModelInfo::read(&file).unwrap().config.vocab;
    let watched = Watched::on(Watched::around(Box::new(gpu), vocab, true));
    let layout = Layout { ctx_tokens: 256, held_rows: 1, ..layout(1, 64) };
    let drawn = Sampling { seed: Some(3), temperature: 1.3, ..Sampling::default() };
    let first = request(prompt(1, 90), drawn, 12);
    let mut plain = load(&watched.runtime, &file, layout.clone());
    let mut session = plain.session().unwrap();
    let want_first = generate(&mut plain, &mut session, &first).unwrap();
    let ahead = |deed: &Deed| matches!(deed, Deed::Embed { device: 1, .. });
    assert!(watched.deeds().iter().filter(|deed| ahead(deed)).count() > 8, "{name}: recorded ahead");
    let second = request([session.tokens(), &prompt(2, 30)].concat(), whole_rows(), 6);
    let want_second = generate(&mut plain, &mut session, &second).unwrap();
    let rows = watched.logits();
    assert_eq!((want_second.figures.reused_tokens, rows.len()), (90 + 11, 6), "{name}");
    drop((session, plain));

    let dir = TempDir::new("gpu_survival");
    let engine = || load_with(&watched.runtime, &file, layout.clone(), &on_disk(dir.path()));
    assert_eq!(alone(&mut engine(), &first).tokens, want_first.tokens, "{name}");
    watched.logits();
    let got = alone(&mut engine(), &second);
    assert_eq!((got.figures.restored_tokens, &got.tokens), (90 + 11, &want_second.tokens), "{name}");
    assert!(watched.logits() == rows, "{name}: logits differ after a restart");
}

#[test]
fn columns_of_a_convolution() {
    restarts("lfm2");
}

#[test]
fn a_delta_rule() {
    restarts("qwen3_5");
}

#[test]
fn a_state_space() {
    restarts("mamba2");
}

#[test]
fn a_latent() {
    restarts("deepseek_v3");
}

#[test]
fn compressed_entries() {
    restarts("deepseek_v4");
}

#[test]
fn keys_and_values_behind_a_window() {
    restarts("gemma3");
}
