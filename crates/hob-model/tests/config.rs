//! Both dialects of config.json, GGUF metadata, and every way in which they can ask for what is not computed.

mod common;

use std::path::Path;

use common::*;
use hob_compute::RopePairs;
use hob_files::ModelFile;
use hob_files::gguf_write::Writer;
use hob_model::{Config, ModelInfo, RopeScaling};
use hob_quant::Format;
use hob_testkit::tiny::TinySpec;
use serde_json::{Value, json};

/// The message that refuses a config.json changed by `change`.
fn refused_folder(spec: &TinySpec, change: impl FnOnce(&mut Value)) -> String {
    let tiny = folder(spec, change);
    ModelInfo::read(&tiny.file).expect_err("refused").to_string()
}

/// The message that refuses a GGUF in which `key` is `value`.
fn refused_gguf(key: &str, value: impl Into<hob_files::Value>) -> String {
    let tiny = gguf(&TinySpec::llama(), Format::F32);
    let change = |writer: &mut Writer| {
        writer.set(key, value);
    };
    let file = rewritten(&tiny, change, |_| true);
    ModelInfo::read(&file).expect_err("refused").to_string()
}

fn remove(config: &mut Value, key: &str) {
    config.as_object_mut().expect("an object").remove(key).expect("the key was there");
}

#[test]
fn the_golden_configs_say_what_their_papers_say() {
    let read = |name: &str| {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let folder = ModelFile::open(&dir).expect("a folder");
        let gguf = ModelFile::open(dir.join("model.f32.gguf")).expect("a GGUF");
        [folder, gguf].map(|f| Config::from_file(&f).expect("a config"))
    };
    let [hf, gguf] = read("llama3");
    assert_eq!((hf.layers.len(), hf.dim, hf.vocab, hf.tied, hf.ctx_train), (4, 64, 320, false, 4096));
    assert_eq!(
        (hf.layers[3].heads, hf.layers[3].kv_heads, hf.layers[3].head_dim, hf.layers[3].ffn),
        (4, 2, 16, 160)
    );
    assert_eq!(hf.layers, gguf.layers);
    assert_eq!((hf.ropes[0].pairs, gguf.ropes[0].pairs), (RopePairs::Half, RopePairs::Interleaved));
    assert!(matches!(hf.ropes[0].scaling, RopeScaling::Llama3 { factor: 8.0, original_ctx: 64.0, .. }));
    assert_eq!(gguf.ropes[0].scaling, RopeScaling::Divisors);
    let [hf, gguf] = read("llama_tied");
    assert!(hf.tied && gguf.tied);
    assert_eq!((hf.ropes[0].base, gguf.ropes[0].base), (1e5, 1e5));
    let [hf, gguf] = read("qwen2");
    assert_eq!(hf.layers, gguf.layers);
    assert!(hf.layers[0].biases.qkv && !hf.layers[0].biases.out && hf.ropes == gguf.ropes);
    assert_eq!((hf.rms_eps, gguf.rms_eps), (1e-6, 1e-6));
}

/// A rope in the dialect of transformers 4 and 5.
fn dialects(scaling: &Value) -> [Value; 2] {
    let mut v5 = scaling.clone();
    v5["rope_theta"] = json!(5e5);
    let mut typed = scaling.clone();
    // Old files say `type`.
    let kind = typed.as_object_mut().expect("an object").remove("rope_type");
    typed["type"] = kind.unwrap_or_default();
    [json!({ "rope_parameters": v5 }), json!({ "rope_theta": 5e5, "rope_scaling": typed })]
}

#[test]
fn both_dialects_of_config_json_mean_the_same() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64
    });
    for scaling in [llama3, json!({"rope_type": "default"})] {
        let prompt = tokens(1, 100, 320);
        let [new, old] = dialects(&scaling).map(|rope| {
            let tiny = folder(&TinySpec::llama(), |config| {
                remove(config, "rope_theta");
                remove(config, "torch_dtype");
                config["dtype"] = "float32".into();
                rope.as_object().expect("an object").iter().for_each(|(k, v)| config[k] = v.clone());
            });
            (Config::from_file(&tiny.file).expect("a config"), logits(&tiny, cpu(1, true), &prompt, 50))
        });
        assert_eq!(new.0, old.0);
        assert_eq!(new.0.ropes[0].base, 5e5);
        assert_same_bits(&new.1, &old.1, 320, "dialects");
    }
}

#[test]
fn absent_keys_mean_what_the_format_says() {
    let tiny = folder(&TinySpec { kv_heads: 4, tied: false, ..TinySpec::llama() }, |config| {
        for key in [
            "num_key_value_heads",
            "head_dim",
            "rope_theta",
            "tie_word_embeddings",
            "attention_bias",
            "hidden_act",
        ] {
            remove(config, key);
        }
        config["rope_scaling"] = Value::Null;
        config["mlp_bias"] = Value::Null;
    });
    let config = Config::from_file(&tiny.file).expect("a config");
    assert_eq!((config.layers[0].kv_heads, config.layers[0].head_dim), (4, 16));
    assert_eq!(
        (config.ropes[0].base, &config.ropes[0].scaling, config.tied),
        (1e4, &RopeScaling::None, false)
    );
    ModelInfo::read(&tiny.file).expect("weights that fit");
}

#[test]
fn missing_required_keys_are_named() {
    for key in [
        "model_type",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "rms_norm_eps",
        "max_position_embeddings",
        "vocab_size",
    ] {
        let message = refused_folder(&TinySpec::llama(), |config| remove(config, key));
        assert!(message.contains(&format!("'{key}'")), "{message}");
    }
    let tiny = gguf(&TinySpec::llama(), Format::F32);
    let keys: Vec<String> = tiny.file.metadata().iter().map(|(k, _)| k.to_string()).collect();
    for key in [
        "block_count",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
        "context_length",
    ] {
        let key = format!("llama.{key}");
        assert!(keys.contains(&key), "{key}");
        let mut writer = Writer::new();
        let others = tiny.file.metadata().iter().filter(|(k, _)| *k != key);
        others.for_each(|(k, v)| {
            writer.set(k, v.clone());
        });
        writer.tensor("token_embd.weight", Format::F32, &[320, 1]).expect("a tensor");
        let path = tiny.dir.join("lacking.gguf");
        writer.save(&path, &[&[0; 4 * 320]]).expect("writable");
        let file = ModelFile::open(&path).expect("a GGUF");
        let message = Config::from_file(&file).expect_err("refused").to_string();
        assert!(message.contains(&format!("'{key}'")), "{message}");
    }
}

#[test]
fn what_is_not_computed_is_refused_by_key_and_value() {
    let cases: [(&str, Value); 14] = [
        ("model_type", json!("grue")),
        ("hidden_act", json!("gelu")),
        ("hidden_size", json!("wide")),
        ("rms_norm_eps", json!(-1.0)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("vocab_size", json!(321)),
        ("partial_rotary_factor", json!(0.5)),
        ("quantization_config", json!({"quant_method": "awq"})),
        ("rope_scaling", json!({"type": "yarn", "factor": 4.0})),
        ("rope_scaling", json!({"type": "linear", "factor": 2.0})),
        ("rope_parameters", json!({"full_attention": {"rope_type": "default"}})),
        ("attn_logit_softcapping", json!(50.0)),
        ("num_local_experts", json!(8)),
    ];
    for (key, value) in cases {
        let message = refused_folder(&TinySpec::llama(), |config| config[key] = value.clone());
        let named = match key {
            "model_type" => "grue",
            "num_attention_heads" | "num_key_value_heads" => "heads",
            "rms_norm_eps" => "rms_eps",
            other => other,
        };
        assert!(message.contains(named), "{key}: {message}");
        let detail = ["yarn", "linear", "gelu", "awq", "321", "0.5"];
        for part in detail.iter().filter(|d| value.to_string().contains(**d)) {
            assert!(message.contains(part), "{key}: {message}");
        }
    }
    let incomplete =
        |config: &mut Value| config["rope_scaling"] = json!({"rope_type": "llama3", "factor": 8.0});
    let message = refused_folder(&TinySpec::llama(), incomplete);
    assert!(message.contains("rope_scaling.low_freq_factor"), "{message}");
}

#[test]
fn gguf_keys_that_change_the_forward_pass_are_refused() {
    let message = refused_gguf("general.architecture", "grue");
    assert!(message.contains("unknown architecture 'grue'") && message.contains("llama, qwen2"), "{message}");
    let message = refused_gguf("llama.rope.scaling.type", "yarn");
    assert!(message.contains("'llama.rope.scaling.type'") && message.contains("yarn"), "{message}");
    let message = refused_gguf("llama.expert_count", 8u32);
    assert!(message.contains("'llama.expert_count'") && message.contains('8'), "{message}");
    let message = refused_gguf("llama.rope.dimension_count", 17u32);
    assert!(message.contains("even number") && message.contains("17"), "{message}");
    let message = refused_gguf("llama.attention.value_length", 8u32);
    assert!(message.contains("'llama.attention.value_length'"), "{message}");
    let message = refused_gguf("llama.vocab_size", 300u32);
    assert!(
        message.contains("'llama.vocab_size'") && message.contains("320") && message.contains("300"),
        "{message}"
    );
    let message = refused_gguf("llama.block_count", u64::MAX);
    assert!(message.contains("'llama.block_count'"), "{message}");
    let message = refused_gguf("llama.attention.head_count", "many");
    assert!(message.contains("llama.attention.head_count"), "{message}");
    let tiny = gguf(&TinySpec::llama(), Format::F32);
    let neutral = |w: &mut Writer| {
        w.set("llama.expert_count", 0u32)
            .set("llama.rope.scaling.type", "none")
            .set("llama.rope.scale_linear", 1.0f32);
    };
    ModelInfo::read(&rewritten(&tiny, neutral, |_| true)).expect("neutral values change nothing");
}

#[test]
fn heads_may_be_given_per_layer() {
    let tiny = gguf(&TinySpec::llama(), Format::F32);
    let per_layer = |list: Vec<u32>| {
        let change = |w: &mut Writer| {
            w.set(
                "llama.attention.head_count_kv",
                hob_files::Value::Array(hob_files::Array::U32(list.clone())),
            );
        };
        ModelInfo::read(&rewritten(&tiny, change, |_| true))
    };
    let info = per_layer(vec![2, 2]).expect("as before");
    assert_eq!(info.config.layers[1].kv_heads, 2);
    let message = per_layer(vec![2, 4]).expect_err("the weights say 2").to_string();
    assert!(message.contains("'blk.1.attn_k.weight'"), "{message}");
    let message = per_layer(vec![2, 2, 2]).expect_err("two layers").to_string();
    assert!(message.contains("one value per layer, 2"), "{message}");
}

#[test]
fn bare_weights_without_a_config_say_what_to_open() {
    let tiny = folder(&TinySpec::llama(), |_| ());
    let bare = hob_testkit::temp::TempDir::new("bare");
    let path = bare.join("model.safetensors");
    std::fs::copy(tiny.dir.join("model.safetensors"), &path).expect("a copy");
    let file = ModelFile::open(&path).expect("a safetensors file");
    let message = Config::from_file(&file).expect_err("refused").to_string();
    assert!(message.contains("config.json") && message.contains("folder"), "{message}");
}

#[test]
fn integer_and_small_float_safetensors_are_refused_by_type() {
    for (dtype, bytes) in [("I32", 4), ("F8_E4M3", 1)] {
        let tiny = folder(&TinySpec::llama(), |_| ());
        let path = tiny.dir.join("model.safetensors");
        let data = std::fs::read(&path).expect("readable");
        let length = u64::from_le_bytes(data[..8].try_into().expect("8 bytes")) as usize;
        let mut header: Value = serde_json::from_slice(&data[8..8 + length]).expect("json");
        // Every tensor shrinks alike, so that the data still tiles the file.
        for (_, tensor) in
            header.as_object_mut().expect("an object").iter_mut().filter(|(k, _)| *k != "__metadata__")
        {
            tensor["dtype"] = dtype.into();
            for end in 0..2 {
                tensor["data_offsets"][end] =
                    (tensor["data_offsets"][end].as_u64().expect("an offset") / 4 * bytes).into();
            }
        }
        let header = header.to_string().into_bytes();
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend(&header);
        out.extend(&data[8 + length..][..(data.len() - 8 - length) / 4 * bytes as usize]);
        std::fs::write(&path, out).expect("writable");
        let file = std::sync::Arc::new(ModelFile::open(tiny.dir.path()).expect("a folder"));
        let message = ModelInfo::read(&file).expect_err("refused").to_string();
        assert!(message.contains("model.embed_tokens.weight") && message.contains(dtype), "{message}");
    }
}

#[test]
fn llama_biases_come_from_the_switch_or_from_the_tensors() {
    let spec = TinySpec { bias: true, ..TinySpec::llama() };
    let hf = Config::from_file(&folder(&spec, |_| ()).file).expect("a config");
    let of_gguf = Config::from_file(&gguf(&spec, Format::F32).file).expect("a config");
    assert_eq!(hf.layers, of_gguf.layers);
    assert!(hf.layers[0].biases.qkv && hf.layers[0].biases.out && !hf.layers[0].biases.ffn);
    let message = refused_folder(&spec, |config| config["mlp_bias"] = true.into());
    assert!(message.contains("'model.layers.0.mlp.gate_proj.bias' is missing"), "{message}");
}
