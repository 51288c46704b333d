//! LFM3: one text in any batches, its state saved and brought back, and what its config may not say.

mod common;

use std::sync::Arc;

use common::*;
use hob_compute::reference::Reference;
use hob_files::ModelFile;
use hob_model::{Config, Mixer, ModelInfo, OutputGate};

#[test]
fn any_batches_and_devices_give_the_same_bits() {
    let tiny = golden("lfm3", false);
    let prompt = tokens(1, 100, tiny.vocab);
    for exact in [false, true] {
        let whole = logits(&tiny, Reference::new(exact), &prompt, 100);
        for (threads, chunk) in [(1, 1), (2, 7), (2, 100)] {
            let cut = logits(&tiny, cpu(threads, exact), &prompt, chunk);
            let what = format!("{threads} threads, chunks of {chunk}, exact {exact}");
            assert_same_bits(&cut, &whole, tiny.vocab, &what);
        }
    }
}

#[test]
fn company_and_turns_do_not_change_a_bit() {
    let tiny = golden("lfm3", false);
    let texts: Vec<_> = [90, 5, 70].iter().map(|&n| tokens(2 + n as u64, n, tiny.vocab)).collect();
    let mut bench = Bench::new(&tiny, cpu(2, false), &cached(600, 3, 600));
    let ids = [0, 1, 2].map(|_| bench.open());
    for at in 0..90 {
        for (id, text) in ids.iter().zip(&texts) {
            bench.add(*id, &text[at.min(text.len())..(at + 1).min(text.len())]);
        }
        let rows = bench.batch.rows.len();
        let found = bench.step().expect("a step");
        if at == 89 {
            let alone = logits(&tiny, cpu(1, false), &texts[0], 90);
            assert_eq!(rows, 1);
            assert_same_bits(&found, &alone[89 * tiny.vocab..], tiny.vocab, "in company");
        }
    }
    // A second turn resumes what the first kept.
    let long = tokens(9, 400, tiny.vocab);
    let whole = logits(&tiny, cpu(1, false), &long, 64);
    bench.model.free_sequence(ids[0]).expect("it lives");
    let first = bench.open();
    bench.turn(first, &long[..300], 64);
    bench.model.free_sequence(ids[1]).expect("it lives");
    let second = bench.open();
    let (resumed, rest) = bench.turn(second, &long, 64);
    assert!(resumed > 256, "{resumed}");
    assert_continues(&rest, &whole, resumed, tiny.vocab, "after a resume");
}

/// The fixture with its config changed.
fn changed(from: &str, to: &str) -> Result<Config, hob_model::ModelError> {
    let dir = hob_testkit::temp::TempDir::new("lfm3");
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lfm3");
    std::fs::copy(golden.join("model.safetensors"), dir.join("model.safetensors")).expect("a copy");
    let text = std::fs::read_to_string(golden.join("config.json")).expect("config.json");
    assert!(text.contains(from), "{from}");
    std::fs::write(dir.join("config.json"), text.replace(from, to)).expect("writable");
    let file = Arc::new(ModelFile::open(dir.path()).expect("a folder"));
    ModelInfo::read(&file).map(|info| info.config)
}

#[test]
fn the_config_says_what_every_layer_is() {
    let config = changed("lfm3", "lfm3").expect("as it is");
    let attention = &config.layers[2];
    assert_eq!((attention.mixer, attention.window, attention.rope), (Mixer::Attention, None, Some(0)));
    assert_eq!((config.layers[4].window, config.layers[4].rope), (Some(16), Some(1)));
    assert_eq!(attention.gate, OutputGate::Heads);
    assert_eq!(config.layers[0].mixer, Mixer::ShortConv { taps: 7 });
    for (from, to, named) in [
        ("\"sliding_attention\",", "\"linear_attention\",", "layer_types"),
        ("\"use_attention_gate\": true", "\"use_attention_gate\": false", "use_attention_gate"),
        ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "kv_heads"),
        ("\"sliding_window\": 16,", "", "sliding_window"),
        ("\"num_hidden_layers\": 6", "\"num_hidden_layers\": 7", "layer_types"),
        ("\"intermediate_size\": 160", "\"intermediate_size\": 192", "feed_forward"),
    ] {
        let error = changed(from, to).expect_err(to).to_string();
        assert!(error.contains(named), "{to}: {error}");
    }
}
