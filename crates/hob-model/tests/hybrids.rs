//! Models whose layers are mostly delta rules: what a file may say otherwise is read or refused. What they share with state
//! spaces is tested in `recurrent.rs`.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::*;
use hob_compute::{DeltaShape, KeyHeads, WeightKind};
use hob_files::ModelFile;
use hob_files::gguf_write::Writer;
use hob_model::config::{DenseShape, ExpertShape};
use hob_model::{
    Config, DeltaConfig, DeltaStored, KvLayout, LayerState, Mixer, ModelInfo, Naming, OutputGate,
};
use hob_testkit::temp::TempDir;

/// Recurrent state cannot go back to where nothing was kept.
#[test]
fn state_is_kept_whole_or_dropped() {
    let tiny = golden("qwen3_5", true);
    let mut bench = Bench::new(&tiny, cpu(1, false), &layout(64, 1, 64));
    let id = bench.open();
    bench.feed(id, &tokens(6, 20, tiny.vocab), 64);
    assert!(bench.model.info().recurrent());
    let can = |len| bench.model.can_truncate(id, len).expect("a sequence");
    assert_eq!([0, 12, 19, 20].map(can), [true, false, false, true]);
}

#[test]
fn figures_by_hand() {
    let info = ModelInfo::read(&golden("qwen3_5", true).file).expect("a model");
    let shape =
        DeltaShape { key_heads: 2, value_heads: 4, key_dim: 16, value_dim: 16, sharing: KeyHeads::Tiled };
    assert_eq!(info.states()[0], LayerState::Delta { shape, taps: 4 });
    assert_eq!(info.states()[3], LayerState::Kv { heads: 2, dim: 32, latent: None });
    assert_eq!(info.kv_bytes_per_token(&KvLayout::default()), 2 * 2 * 32 * 2);
    // Per layer 64 columns: q, k, v, z, beta, decay, out; attention with a gate; feed-forward; the head.
    let delta = 64 * (128 + 64 + 4 + 4 + 64) + 3 * 4 * 16 * 16 + 128 * 4;
    let attention = 64 * (2 * 128 + 64 + 64 + 128) + 2 * 128 * 10;
    assert_eq!(info.macs_per_token(9), 3 * delta + attention + 4 * 3 * 64 * 160 + 320 * 64);
}

/// A golden folder whose config.json was changed.
fn changed(name: &str, change: impl FnOnce(&mut serde_json::Value)) -> hob_model::Result<Config> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let dir = TempDir::new("hybrid");
    std::fs::copy(golden.join("model.safetensors"), dir.join("model.safetensors")).expect("a copy");
    let text = std::fs::read_to_string(golden.join("config.json")).expect("config.json");
    let mut json = serde_json::from_str(&text).expect("json");
    change(&mut json);
    std::fs::write(dir.join("config.json"), json.to_string()).expect("writable");
    Config::from_file(&Arc::new(ModelFile::open(dir.path()).expect("a folder")))
}

#[test]
fn configs_are_read_in_every_dialect() {
    let plain = changed("qwen3_5", |_| ()).expect("a config");
    let by_interval = changed("qwen3_5", |json| {
        json["layer_types"] = serde_json::Value::Null;
        json["full_attention_interval"] = 4.into();
        json["attn_output_gate"] = true.into();
    });
    assert_eq!(by_interval.expect("a config"), plain);
    let nested = changed("qwen3_5", |json| {
        let mut text = json.clone();
        text["model_type"] = "qwen3_5_text".into();
        *json = serde_json::json!({ "model_type": "qwen3_5", "text_config": text });
    });
    assert_eq!(nested.expect("a config"), plain);
    let drafting = changed("qwen3_5", |json| json["mtp_num_hidden_layers"] = 1.into()).expect("a config");
    assert_eq!((drafting.drafting, drafting.layers.len()), (1, 4));
    assert_eq!(plain.ropes[0].rotary, 16);
    assert!(plain.layers[3].gate == OutputGate::Values && plain.layers[3].mixer == Mixer::Attention);
}

#[test]
fn what_cannot_be_computed_is_named() {
    let refused = |name: &str, key: &str, value: serde_json::Value, what: &str| {
        let error = changed(name, |json| json[key] = value).expect_err(key).to_string();
        assert!(error.contains(what), "{error}");
    };
    refused("qwen3_5", "layer_types", serde_json::json!(["linear_attention"]), "layer_types");
    refused(
        "qwen3_5",
        "layer_types",
        serde_json::json!(["mamba", "mamba", "mamba", "mamba"]),
        "linear_attention",
    );
    refused("qwen3_5", "attn_output_gate", false.into(), "attn_output_gate");
    refused("qwen3_5", "attention_bias", true.into(), "attention_bias");
    refused("qwen3_5", "linear_num_key_heads", serde_json::Value::Null, "linear_num_key_heads");
    refused("qwen3_5", "linear_num_value_heads", 3.into(), "whole groups of 2");
    refused("qwen3_5", "linear_key_head_dim", 24.into(), "multiples of 16");
    refused("qwen3_5", "linear_num_value_heads", (1u64 << 40).into(), "value heads");
    refused("qwen3_5", "linear_conv_kernel_dim", 1.into(), "taps");
    refused("qwen3_next", "num_experts_per_tok", 9.into(), "9 of 8");
}

/// A golden GGUF with other metadata and tensors; `keep` gives a tensor's new name.
fn regguf(name: &str, change: impl FnOnce(&mut Writer), keep: impl Fn(&str) -> Option<String>) -> Tiny {
    let tiny = golden(name, true);
    let mut writer = Writer::new();
    tiny.file.metadata().copy_to(&mut writer);
    change(&mut writer);
    let mut data = Vec::new();
    for tensor in tiny.file.tensors() {
        if let Some(name) = keep(&tensor.name) {
            writer.tensor(&name, tensor.format, &tensor.shape).expect("a tensor");
            data.push(tiny.file.mapped(tensor));
        }
    }
    let dir = TempDir::new("hybrid");
    let path = dir.join("other.gguf");
    writer.save(&path, &data).expect("writable");
    Tiny { file: Arc::new(ModelFile::open(&path).expect("a GGUF")), dir, vocab: 320 }
}

/// The fourth block becomes the one that drafts: it is counted off, its tensors are neither read nor doubted.
#[test]
fn a_block_that_drafts_is_known_and_left_alone() {
    let change = |writer: &mut Writer| {
        writer.set("qwen35.nextn_predict_layers", 1u32).set("qwen35.full_attention_interval", 3u32);
    };
    let rename = |name: &str| Some(name.replace("blk.3.attn_norm", "blk.3.nextn.enorm"));
    let info = ModelInfo::read(&regguf("qwen3_5", change, rename).file).expect("a model");
    assert_eq!((info.config.layers.len(), info.config.drafting), (3, 1));
    assert_eq!(info.unexpected, [""; 0]);
    let missing = |name: &str| (name != "blk.1.ssm_dt.bias").then(|| name.to_string());
    let error = ModelInfo::read(&regguf("qwen3_5", |_| (), missing).file).expect_err("a tensor too few");
    assert!(error.to_string().contains("blk.1.ssm_dt.bias"), "{error}");
}

#[test]
fn shapes_for_synthesis() {
    let experts = Some(ExpertShape { count: 256, top_k: 8, ff: 512 });
    let real = DenseShape {
        vocab: 248_320,
        dim: 2048,
        layers: 40,
        heads: 16,
        kv_heads: 2,
        head_dim: 256,
        ffn: 512,
        ctx_train: 262_144,
        rope_base: 1e7,
        experts,
        ..DenseShape::default()
    };
    let config = Config::dense("qwen35moe", &real).expect("35B-A3B");
    let slots = ModelInfo::slots_of(&config, Naming::Gguf).expect("slots");
    let weights: u64 = slots.iter().map(|s| s.rows as u64 * s.cols as u64).sum();
    assert!((34_000_000_000..36_000_000_000).contains(&weights), "{weights}");
    let query = slots.iter().find(|s| s.name == "blk.3.attn_q.weight").expect("a query");
    assert_eq!((query.kind, query.rows, &query.shape), (WeightKind::Matrix, 4096, &vec![8192, 2048]));
    let next = Config::dense("qwen3next", &real).expect("a shape");
    let Mixer::DeltaNet(DeltaConfig { stored, .. }) = next.layers[0].mixer else { panic!("no delta rule") };
    assert_eq!(stored, DeltaStored::ByKeyHead);
    let dense = DenseShape { experts: None, ffn: 12_288, ..real };
    assert!(Config::dense("qwen35", &dense).is_ok());
}
