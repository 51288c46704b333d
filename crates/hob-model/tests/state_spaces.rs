//! Models of state spaces (Mamba-2, Nemotron-H): what is kept of them is bounded, and what a file may say otherwise is read or
//! refused. What they share with delta rules is tested in `recurrent.rs`.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::*;
use hob_compute::SsmShape;
use hob_files::ModelFile;
use hob_files::gguf_write::Writer;
use hob_model::config::{DenseShape, ExpertShape};
use hob_model::{Config, KvLayout, LayerState, Mixer, ModelInfo, Naming};
use hob_quant::Format;
use hob_testkit::temp::TempDir;

/// Without K and V nothing asks for pages back: chains go with the snapshots that they are kept for.
#[test]
fn what_is_kept_of_conversations_stays_bounded() {
    let tiny = golden("mamba2", true);
    let mut bench = Bench::new(&tiny, cpu(1, false), &cached(600, 1, 1024));
    let id = bench.open();
    let mut most = 0;
    for turn in 0..40 {
        bench.turn(id, &tokens(100 + turn, 300, tiny.vocab), 64);
        bench.model.truncate(id, 0).expect("always possible");
        let memory = bench.model.memory();
        assert_eq!((memory.free_pages, memory.live_pages, memory.cached_pages), (0, 0, 0));
        most = memory.nodes.max(most);
    }
    let memory = bench.model.memory();
    assert!(memory.snapshots > 1 && most <= 2 * (memory.snapshots + 1), "{most} nodes, {memory:?}");
}

#[test]
fn figures_by_hand() {
    let shape = SsmShape { heads: 8, head_dim: 16, state_dim: 32, groups: 2 };
    let info = ModelInfo::read(&golden("mamba2", true).file).expect("a model");
    assert_eq!(info.states(), [LayerState::Ssm { shape, taps: 4 }; 4]);
    assert_eq!(info.kv_bytes_per_token(&KvLayout::default()), 0);
    // z, x, B, C, dt, out; the state's update and product; the convolution; the head.
    let ssm = 64 * (392 + 128) + 2 * 8 * 16 * 32 + 256 * 4;
    assert_eq!(info.macs_per_token(9), 4 * ssm + 320 * 64);
    // A token reads and writes the state, and nothing grows.
    let kv = KvLayout::default();
    assert_eq!(info.bytes_per_token(0, &kv), info.bytes_per_token(1 << 20, &kv));
    let info = ModelInfo::read(&golden("nemotron_h", true).file).expect("a model");
    assert_eq!(info.states()[..2], [LayerState::Ssm { shape, taps: 4 }, LayerState::None]);
    assert_eq!(info.states()[3], LayerState::Kv { heads: 2, dim: 16, latent: None });
    assert_eq!(info.kv_bytes_per_token(&kv), 2 * 2 * 16 * 2);
    let attention = 64 * (64 + 32 + 32 + 64) + 2 * 64 * 10;
    assert_eq!(info.macs_per_token(9), 3 * ssm + attention + 3 * 2 * 64 * 128 + 320 * 64);
    let info = ModelInfo::read(&golden("nemotron_h_moe", true).file).expect("a model");
    let mixture = 64 * 8 + 2 * 2 * 64 * 32 + 2 * 64 * 48;
    assert_eq!(info.macs_per_token(9), 3 * ssm + attention + 3 * mixture + 320 * 64);
}

/// A golden folder whose config.json was changed.
fn changed(name: &str, change: impl FnOnce(&mut serde_json::Value)) -> hob_model::Result<ModelInfo> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let dir = TempDir::new("state-space");
    std::fs::copy(golden.join("model.safetensors"), dir.join("model.safetensors")).expect("a copy");
    let text = std::fs::read_to_string(golden.join("config.json")).expect("config.json");
    let mut json = serde_json::from_str(&text).expect("json");
    change(&mut json);
    // As Python writes what JSON does not have.
    let text = json.to_string().replace("\"(bare infinity)\"", "Infinity");
    std::fs::write(dir.join("config.json"), text).expect("writable");
    ModelInfo::read(&Arc::new(ModelFile::open(dir.path())?))
}

#[test]
fn configs_are_read_in_every_dialect() {
    let config = |name, change: fn(&mut serde_json::Value)| changed(name, change).expect("a model").config;
    let plain = config("nemotron_h", |_| ());
    let words = config("nemotron_h", |json| {
        json["hybrid_override_pattern"] = serde_json::Value::Null;
        json["layers_block_type"] =
            serde_json::json!(["mamba", "mlp", "mamba", "attention", "mlp", "mamba", "mlp"]);
        json["norm_eps"] = json["layer_norm_epsilon"].clone();
    });
    assert_eq!(words, plain);
    assert_eq!((plain.ctx_train, plain.arch.as_str()), (4096, "nemotron_h"));
    assert_eq!(config("nemotron_h_moe", |_| ()).arch, "nemotron_h_moe");
    for bare in [serde_json::json!([0.0, "(bare infinity)"]), serde_json::json!([0.0, "inf"])] {
        let read = changed("mamba2", |json| json["time_step_limit"] = bare.clone()).expect("a model");
        assert_eq!(read.config, config("mamba2", |_| ()));
    }
    let clamped = config("mamba2", |json| json["time_step_limit"] = serde_json::json!([0.001, 0.1]));
    let Mixer::Ssm(ssm) = clamped.layers[0].mixer else { panic!("no state space") };
    assert_eq!((ssm.limit, ssm.conv_bias), ([0.001, 0.1], true));
    assert_eq!(clamped.ctx_train, 1 << 20, "nothing bounds the context");
}

#[test]
fn what_cannot_be_computed_is_named() {
    let refused = |name: &str, key: &str, value: serde_json::Value, what: &str| {
        let error = changed(name, |json| json[key] = value).expect_err(key).to_string();
        assert!(error.contains(what), "{key}: {error}");
    };
    let json = |text: &str| serde_json::Value::from(text);
    refused("nemotron_h", "hybrid_override_pattern", json("M-M*-MX"), "'X'");
    refused("nemotron_h", "hybrid_override_pattern", json("M-M*-M"), "num_hidden_layers");
    refused("nemotron_h", "hybrid_override_pattern", json("M-M*-M-M"), "num_hidden_layers");
    refused("nemotron_h", "hybrid_override_pattern", serde_json::Value::Null, "hybrid_override_pattern");
    refused("nemotron_h", "mlp_hidden_act", json("silu"), "mlp_hidden_act");
    refused("nemotron_h", "mamba_hidden_act", json("gelu"), "mamba_hidden_act");
    refused("nemotron_h", "use_bias", true.into(), "use_bias");
    refused("nemotron_h", "mamba_num_heads", serde_json::Value::Null, "mamba_num_heads");
    refused("nemotron_h", "n_groups", 3.into(), "3 whole groups");
    refused("nemotron_h", "num_key_value_heads", 3.into(), "kv_heads");
    refused("nemotron_h", "ssm_state_size", 24.into(), "multiples of 16");
    refused("nemotron_h", "conv_kernel", 1.into(), "taps");
    refused("nemotron_h_moe", "num_experts_per_tok", 9.into(), "9 of 8");
    refused("nemotron_h_moe", "moe_latent_size", 64.into(), "fc1_latent_proj");
    refused("mamba2", "num_heads", 7.into(), "expand");
    refused("mamba2", "num_heads", (1u64 << 40).into(), "heads");
    refused("mamba2", "time_step_limit", serde_json::json!([1.0]), "time_step_limit");
    refused("mamba2", "time_step_limit", serde_json::json!([1.0, 0.5]), "no smaller");
    refused("mamba2", "state_size", 64.into(), "in_proj");
}

/// A golden GGUF with other metadata and tensors.
fn regguf(name: &str, change: impl FnOnce(&mut Writer), keep: impl Fn(&str) -> bool) -> Tiny {
    let tiny = golden(name, true);
    let mut writer = Writer::new();
    tiny.file.metadata().copy_to(&mut writer);
    change(&mut writer);
    let mut data = Vec::new();
    for tensor in tiny.file.tensors().iter().filter(|t| keep(&t.name)) {
        writer.tensor(&tensor.name, tensor.format, &tensor.shape).expect("a tensor");
        data.push(tiny.file.mapped(tensor));
    }
    let dir = TempDir::new("state-space");
    let path = dir.join("other.gguf");
    writer.save(&path, &data).expect("writable");
    Tiny { file: Arc::new(ModelFile::open(&path).expect("a GGUF")), dir, vocab: 320 }
}

#[test]
fn what_a_gguf_lacks_is_named() {
    let refused = |what: &str, name: &str, change: fn(&mut Writer), missing: &str| {
        let tiny = regguf(name, change, |tensor| tensor != missing);
        let error = ModelInfo::read(&tiny.file).expect_err(what).to_string();
        assert!(error.contains(what), "{error}");
    };
    refused("blk.2.ssm_norm.weight", "mamba2", |_| (), "blk.2.ssm_norm.weight");
    refused("blk.1.ssm_conv1d.bias", "mamba2", |_| (), "blk.1.ssm_conv1d.bias");
    refused("blk.4.ffn_up_exps.weight", "nemotron_h_moe", |_| (), "blk.4.ffn_up_exps.weight");
    let heads = |w: &mut Writer| {
        w.set("mamba2.ssm.time_step_rank", 7u32);
    };
    refused("mamba2.ssm.inner_size", "mamba2", heads, "");
    let layers = |w: &mut Writer| {
        w.set("nemotron_h.attention.head_count_kv", vec![0i32; 3]);
    };
    refused("nemotron_h.attention.head_count_kv", "nemotron_h", layers, "");
}

/// Experts between two projections, made of the golden model by widening: with the identity in front and behind, and none
/// of the latent's other dimensions in use, they are the experts without.
#[test]
fn experts_in_a_latent_are_projected_there_and_back() {
    let plain = golden("nemotron_h_moe", true);
    let mut writer = Writer::new();
    plain.file.metadata().copy_to(&mut writer);
    let mut data: Vec<Vec<u8>> = Vec::new();
    // Latent dimension d is dimension 63 - d.
    let identity = |scale: f32| {
        (0..64 * 64).flat_map(|i| (if i / 64 + i % 64 == 63 { scale } else { 0.0 }).to_le_bytes()).collect()
    };
    for tensor in plain.file.tensors() {
        let bytes = plain.file.mapped(tensor);
        let floats: Vec<[u8; 4]> = bytes.as_chunks::<4>().0.to_vec();
        let turned = match tensor.name.split_once('.').and_then(|(_, rest)| rest.split_once('.')) {
            Some((_, "ffn_up_exps.weight")) => {
                floats.chunks(64).flat_map(|row| row.iter().rev()).copied().collect()
            }
            Some((_, "ffn_down_exps.weight")) => {
                floats.chunks(64 * 32).flat_map(|e| e.chunks(32).rev().flatten()).copied().collect()
            }
            _ => floats,
        };
        writer.tensor(&tensor.name, tensor.format, &tensor.shape).expect("a tensor");
        data.push(turned.concat());
        if let Some(layer) = tensor.name.strip_suffix(".ffn_gate_inp.weight") {
            for (name, scale) in [("ffn_latent_down", 1.0), ("ffn_latent_up", 1.0)] {
                writer.tensor(&format!("{layer}.{name}.weight"), Format::F32, &[64, 64]).expect("a tensor");
                data.push(identity(scale));
            }
        }
    }
    let dir = TempDir::new("latent");
    let path = dir.join("latent.gguf");
    let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    writer.save(&path, &data).expect("writable");
    let latent = Tiny { file: Arc::new(ModelFile::open(&path).expect("a GGUF")), dir, vocab: 320 };
    let info = ModelInfo::read(&latent.file).expect("a model");
    assert_eq!(info.config.layers[1].experts.as_ref().and_then(|e| e.latent), Some(64));
    assert_eq!(info.unexpected, [""; 0]);
    let prompt = tokens(5, 30, 320);
    let [a, b] = [&latent, &plain].map(|tiny| logits(tiny, cpu(2, true), &prompt, 30));
    let apart = nmse(&a, &b);
    assert!(apart < 1e-9, "{apart}");
}

#[test]
fn shapes_for_synthesis() {
    let millions = |arch: &str, shape: &DenseShape| {
        let config = Config::dense(arch, shape).expect(arch);
        let slots = ModelInfo::slots_of(&config, Naming::Gguf).expect("slots");
        slots.iter().map(|s| s.rows as u64 * s.cols as u64).sum::<u64>() / 1_000_000
    };
    let mamba = DenseShape {
        vocab: 50_288,
        dim: 2560,
        layers: 64,
        ctx_train: 1 << 20,
        tied: true,
        ..DenseShape::default()
    };
    // With the table twice, as embedding and as head.
    assert_eq!(millions("mamba2", &mamba), 2831);
    let nano = DenseShape {
        vocab: 131_072,
        dim: 2688,
        layers: 12,
        heads: 32,
        kv_heads: 2,
        head_dim: 128,
        ctx_train: 262_144,
        experts: Some(ExpertShape { count: 128, top_k: 6, ff: 1856 }),
        ..DenseShape::default()
    };
    assert_eq!(millions("nemotron_h_moe", &nano), 6173);
}
