//! Measuring KV noise on whole models: which layers, that watching changes nothing, and what is refused.

mod common;

use common::*;
use hob_compute::{Compute, Token};
use hob_model::noise::{self, LayerNoise, MEASURED};
use hob_model::{Batch, Layout, Model, Row};
use hob_quant::{Format, KvFormat};
use hob_testkit::tiny::TinySpec;

/// Heads that packed formats fit into.
fn wide() -> TinySpec {
    TinySpec { head_dim: 32, ..TinySpec::llama() }
}

fn tokens(n: u32) -> Vec<u32> {
    (0..n).map(|i| (i * 37 + 11) % 300).collect()
}

fn loaded(tiny: &Tiny, dev: &mut dyn Compute) -> Model {
    Model::load(tiny.file.clone(), dev, &Layout::new(400), &mut |_, _| ()).expect("a model")
}

fn logits(model: &mut Model, dev: &mut dyn Compute, tokens: &[u32]) -> Vec<f32> {
    let sequence = model.new_sequence().expect("a free sequence");
    let last = tokens.len() as u32 - 1;
    let rows = tokens.iter().zip(0..).map(|(&t, position)| Row {
        sequence,
        position,
        token: Token::Host(t),
        logits: position == last,
        draft: false,
    });
    model.step(dev, &Batch { rows: rows.collect() }).expect("steps");
    let mut out = vec![0.0; model.info().config.vocab];
    dev.download(model.logits(), 0, &mut out).expect("logits");
    model.free_sequence(sequence).expect("freed");
    out
}

#[test]
fn every_layer_is_measured_and_watching_changes_nothing() {
    let tiny = gguf(&wide(), Format::Q8_0);
    let mut dev = cpu(2, false);
    let mut model = loaded(&tiny, &mut dev);
    let before = logits(&mut model, &mut dev, &tokens(200));
    let found = noise::measure(&mut model, &mut dev, &tokens(200)).expect("measures");
    assert_eq!(found.iter().map(|l| l.layer).collect::<Vec<_>>(), [0, 1]);
    for layer in &found {
        assert_eq!((layer.heads, layer.kv_heads, layer.head_dim), (4, 2, 32));
        assert_eq!((layer.q_norm.len(), layer.k_norm.len()), (2, 2));
        assert!(layer.q_norm.iter().chain(&layer.k_norm).all(|n| *n > 0.0));
        for format in MEASURED {
            let n = layer.of(format).expect("measured");
            assert!(n.k_error > 0.0 && n.k_error < 0.3 && n.v_output > 0.0 && n.predicted > 0.0, "{n:?}");
        }
        let of = |f| layer.of(f).expect("measured");
        assert!(of(KvFormat::Q8).predicted * 5.0 < of(KvFormat::Q4).predicted);
    }
    // No sequence is left behind, and the next step gives what it gave before.
    assert_eq!(logits(&mut model, &mut dev, &tokens(200)), before);
    assert_eq!(noise::measure(&mut model, &mut dev, &tokens(200)).expect("measures"), found);
    model.unload(&mut dev).expect("unloads");
}

#[test]
fn heads_that_no_format_fits_have_no_figures() {
    let tiny = gguf(&TinySpec::llama(), Format::Q8_0);
    let mut dev = cpu(1, false);
    let mut model = loaded(&tiny, &mut dev);
    let found = noise::measure(&mut model, &mut dev, &tokens(150)).expect("measures");
    assert!(found.len() == 2 && found.iter().all(|l| l.head_dim == 16 && l.formats.is_empty()));
    model.unload(&mut dev).expect("unloads");
}

#[test]
fn what_cannot_be_measured_is_refused_and_frees_its_sequence() {
    let tiny = gguf(&wide(), Format::Q8_0);
    let mut dev = cpu(1, false);
    let mut model = loaded(&tiny, &mut dev);
    for (wrong, part) in [(tokens(0), "rows"), (tokens(401), "context"), (vec![100_000; 4], "100000")] {
        let error = match noise::measure(&mut model, &mut dev, &wrong) {
            Err(error) => error.to_string(),
            Ok(found) => panic!("{} layers of {} tokens", found.len(), wrong.len()),
        };
        assert!(error.contains(part), "{error}");
    }
    noise::measure(&mut model, &mut dev, &tokens(100)).expect("the one sequence is free again");
    model.unload(&mut dev).expect("unloads");
}

#[test]
fn figures_survive_json() {
    let tiny = gguf(&wide(), Format::Q8_0);
    let mut dev = cpu(1, false);
    let mut model = loaded(&tiny, &mut dev);
    let found = noise::measure(&mut model, &mut dev, &tokens(150)).expect("measures");
    let text = serde_json::to_string(&found).expect("JSON");
    assert!(text.contains("\"format\":\"q4\""), "{text}");
    assert_eq!(serde_json::from_str::<Vec<LayerNoise>>(&text).expect("reads back"), found);
    let other = text.replace("\"q4\"", "\"q3\"");
    assert!(serde_json::from_str::<Vec<LayerNoise>>(&other).is_err(), "a format that there is not");
    model.unload(&mut dev).expect("unloads");
}
