//! Both dialects of config.json, GGUF metadata, and every way in which they can ask for what is not computed.

mod common;

use std::path::Path;

use common::*;
use hob_compute::RopePairs;
use hob_files::ModelFile;
use hob_files::gguf_write::Writer;
use hob_model::config::DenseShape;
use hob_model::{Config, ModelInfo, RopeScaling, Values};
use hob_quant::Format;
use hob_testkit::temp::TempDir;
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

/// The folder and the GGUF of a golden fixture.
fn fixture(name: &str) -> [Config; 2] {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let files = [ModelFile::open(&dir), ModelFile::open(dir.join("model.f32.gguf"))];
    files.map(|f| Config::from_file(&f.expect("a model file")).expect("a config"))
}

#[test]
fn both_forms_of_a_fixture_have_one_config() {
    for name in [
        "qwen3",
        "qwen3_yarn",
        "smollm3",
        "gemma2",
        "gemma3",
        "olmo2",
        "olmo3",
        "granite",
        "glm4",
        "glm4_moe",
        "gpt_oss",
        "gemma4_dense",
        "gemma4_moe",
        "gemma4_e",
    ] {
        let [hf, mut gguf] = fixture(name);
        // A GGUF has the divisors of what does not rotate.
        if name.starts_with("gemma4") {
            assert_eq!(gguf.ropes[0].scaling, RopeScaling::Divisors);
            gguf.ropes[0].scaling = RopeScaling::Proportional { pairs: 4 };
        }
        for (rope, of_hf) in gguf.ropes.iter_mut().zip(&hf.ropes) {
            rope.pairs = of_hf.pairs;
        }
        assert_eq!(gguf, hf, "{name}");
    }
    // What a GGUF of Mistral or Mixtral does not say: that it is one.
    for name in ["mistral", "mixtral"] {
        let [hf, gguf] = fixture(name);
        assert_eq!((hf.arch.as_str(), gguf.arch.as_str(), &gguf.layers), (name, "llama", &hf.layers));
    }
    let [hf, gguf] = fixture("phi3");
    assert_eq!(hf.layers, gguf.layers);
    assert!(hf.layers[0].fused.qkv && hf.layers[0].fused.gate_up);
    assert_eq!((hf.ropes[0].rotary, gguf.ropes[0].rotary), (12, 12));
    let magnitude = (1.0 + (4096f64 / 32.0).ln() / 32f64.ln()).sqrt() as f32;
    assert_eq!([hf.ropes[0].magnitude, gguf.ropes[0].magnitude], [magnitude; 2]);
}

#[test]
fn the_golden_configs_say_what_their_architectures_do() {
    let [hf, _] = fixture("qwen3_yarn");
    let RopeScaling::Yarn(yarn) = &hf.ropes[0].scaling else { panic!("{:?}", hf.ropes[0]) };
    assert_eq!((yarn.factor, yarn.original_ctx, yarn.beta_fast, yarn.beta_slow), (4.0, 64.0, 32.0, 1.0));
    assert_eq!(hf.ropes[0].magnitude, (0.1 * 4f64.ln() + 1.0) as f32);
    let [hf, _] = fixture("smollm3");
    let rotates: Vec<_> = hf.layers.iter().map(|l| l.rope.is_some()).collect();
    assert_eq!(rotates, [true, true, true, false, true]);
    let [hf, _] = fixture("gemma3");
    let sees: Vec<_> = hf.layers.iter().map(|l| (l.window, l.rope)).collect();
    let (local, full) = ((Some(16), Some(1)), (None, Some(0)));
    assert_eq!(sees, [local, local, local, local, local, full, local]);
    assert_eq!((hf.ropes[0].base, &hf.ropes[0].scaling), (1e6, &RopeScaling::Linear { factor: 8.0 }));
    assert_eq!((hf.ropes[1].base, &hf.ropes[1].scaling), (1e4, &RopeScaling::None));
    assert_eq!((hf.embedding_scale, hf.logit_softcap, hf.tied), (8.0, None, true));
    let [hf, _] = fixture("gemma2");
    assert_eq!((hf.logit_softcap, hf.layers[1].softcap), (Some(3.0), Some(2.0)));
    assert_eq!((hf.layers[0].window, hf.layers[1].window), (Some(16), None));
    let [hf, _] = fixture("granite");
    assert_eq!((hf.embedding_scale, hf.residual_scale, hf.logit_scale), (3.0, 0.7, 0.5));
    assert_eq!(hf.layers[0].scale, 0.15);
    let [hf, gguf] = fixture("glm4");
    assert_eq!((hf.ropes[0].rotary, hf.ropes[0].pairs), (16, RopePairs::Interleaved));
    assert_eq!(hf.ropes, gguf.ropes);
    let [hf, _] = fixture("olmo3");
    assert_eq!((hf.ropes[0].magnitude, hf.ropes[1].magnitude), (1.2, 1.0));
    assert_eq!((hf.layers[2].rope, hf.layers[3].rope), (Some(1), Some(0)));
}

/// A fixture's folder with its config.json changed, in a place of its own.
fn changed_fixture(name: &str, change: impl FnOnce(&mut Value)) -> (TempDir, Config) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let dir = TempDir::new("dialect");
    std::fs::copy(from.join("model.safetensors"), dir.join("model.safetensors")).expect("a copy");
    let text = std::fs::read_to_string(from.join("config.json")).expect("config.json");
    let mut json = serde_json::from_str(&text).expect("json");
    change(&mut json);
    std::fs::write(dir.join("config.json"), json.to_string()).expect("writable");
    let file = ModelFile::open(dir.path()).expect("a folder");
    let config = Config::from_file(&file).expect("a config");
    (dir, config)
}

/// Rewrites `rope_parameters` as transformers 4 did.
fn old_rope(config: &mut Value) {
    let mut rope = config["rope_parameters"].take();
    remove(config, "rope_parameters");
    for key in ["rope_theta", "partial_rotary_factor"] {
        if let Some(value) = rope.as_object_mut().expect("an object").remove(key) {
            config[key] = value;
        }
    }
    let plain = rope == json!({"rope_type": "default"});
    config["rope_scaling"] = if plain { Value::Null } else { rope };
}

#[test]
fn fixtures_mean_the_same_in_the_dialect_of_transformers_4() {
    for name in ["qwen3", "qwen3_yarn", "smollm3", "gemma2", "mistral", "phi3", "olmo2", "granite", "glm4"] {
        let (_, old) = changed_fixture(name, old_rope);
        assert_eq!(old, fixture(name)[0], "{name}");
    }
    let nested = |config: &mut Value| {
        let full = config["rope_parameters"]["full_attention"].take();
        let local = config["rope_parameters"]["sliding_attention"]["rope_theta"].take();
        config["rope_parameters"] = full;
        config["rope_local_base_freq"] = local;
        old_rope(config);
        remove(config, "layer_types");
    };
    let (_, old) = changed_fixture("gemma3", |config| {
        nested(config);
        config["sliding_window_pattern"] = 6.into();
    });
    assert_eq!(old, fixture("gemma3")[0]);
    let (_, old) = changed_fixture("olmo3", nested);
    assert_eq!(old, fixture("olmo3")[0]);
    let (_, sparse) = changed_fixture("gemma3", |config| config["layer_types"] = Value::Null);
    assert_eq!(
        sparse,
        fixture("gemma3")[0],
        "every sixth layer sees all positions unless something else is said"
    );
}

/// A multimodal checkpoint keeps the language model's config in a section and its tensors behind a prefix.
#[test]
fn the_language_model_of_a_multimodal_checkpoint_is_found() {
    for prefix in ["model.language_model.", "language_model.model."] {
        let (dir, _) = changed_fixture("gemma3", |_| ());
        let path = dir.join("config.json");
        let mut text: Value =
            serde_json::from_str(&std::fs::read_to_string(&path).expect("readable")).expect("json");
        for default in ["rms_norm_eps", "tie_word_embeddings"] {
            remove(&mut text, default);
        }
        let outer = json!({"model_type": "gemma3", "text_config": text, "vision_config": {}});
        std::fs::write(&path, outer.to_string()).expect("writable");
        let weights = dir.join("model.safetensors");
        let data = std::fs::read(&weights).expect("readable");
        let length = u64::from_le_bytes(data[..8].try_into().expect("8 bytes")) as usize;
        let header = std::str::from_utf8(&data[8..8 + length]).expect("text");
        let header = header.replace("\"model.", &format!("\"{prefix}")).into_bytes();
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend(&header);
        out.extend(&data[8 + length..]);
        std::fs::write(&weights, out).expect("writable");
        let file = std::sync::Arc::new(ModelFile::open(dir.path()).expect("a folder"));
        let info = ModelInfo::read(&file).expect("all tensors");
        assert_eq!(info.config, fixture("gemma3")[0]);
        assert_eq!(info.unexpected, [""; 0]);
    }
}

#[test]
fn layer_types_that_are_not_known_are_refused() {
    for (value, part) in [
        (json!(["full_attention", "chunked_attention"]), "chunked_attention"),
        (json!(["full_attention"]), "one value per layer, 2"),
    ] {
        let message = refused_folder(&TinySpec::llama(), |config| {
            config["model_type"] = "mistral".into();
            config["sliding_window"] = 64.into();
            config["layer_types"] = value;
        });
        assert!(message.contains("layer_types") && message.contains(part), "{message}");
    }
}

#[test]
fn gguf_windows_come_from_a_list_a_number_or_the_architecture() {
    use hob_files::{Array, Value};
    let shape = DenseShape { layers: 2, ..tiny_shape() };
    let windows = |config: &Config| config.layers.iter().map(|l| l.window).collect::<Vec<_>>();
    assert_eq!(windows(&Config::dense("gemma2", &shape).expect("a shape")), [Some(7), None]);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gemma2/model.f32.gguf");
    let file = ModelFile::open(&file).expect("a GGUF");
    let with = |pattern: Value| {
        let dir = TempDir::new("pattern");
        let mut writer = Writer::new();
        file.metadata().copy_to(&mut writer);
        writer.set("gemma2.attention.sliding_window_pattern", pattern);
        let mut data = Vec::new();
        for tensor in file.tensors() {
            writer.tensor(&tensor.name, tensor.format, &tensor.shape).expect("a tensor");
            data.push(file.mapped(tensor));
        }
        let path = dir.join("pattern.gguf");
        writer.save(&path, &data).expect("writable");
        windows(&Config::from_file(&ModelFile::open(&path).expect("a GGUF")).expect("a config"))
    };
    let w = Some(16);
    assert_eq!(with(Value::Array(Array::Bool(vec![true, true, false, true]))), [w, w, None, w]);
    assert_eq!(with(Value::U32(3)), [w, w, None, w]);
    assert_eq!(with(Value::U32(1)), [None; 4]);
}

fn tiny_shape() -> DenseShape {
    DenseShape {
        vocab: 320,
        dim: 64,
        layers: 7,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        ffn: 160,
        ctx_train: 4096,
        rope_base: 1e6,
        tied: true,
        rms_eps: Some(1e-6),
        window: Some(7),
        ..DenseShape::default()
    }
}

#[test]
fn dense_shapes_get_what_their_architecture_adds() {
    let of = |arch| Config::dense(arch, &tiny_shape()).expect("a shape");
    let mut gemma = of("gemma3");
    let [_, real] = fixture("gemma3");
    gemma.ropes[0].scaling = RopeScaling::Linear { factor: 8.0 };
    for layer in &mut gemma.layers {
        layer.window = layer.window.map(|_| 16);
    }
    assert_eq!(gemma, real);
    let local = DenseShape { local_rope_base: Some(5e3), window: None, ..tiny_shape() };
    let local = Config::dense("gemma3", &local).expect("a shape");
    assert_eq!((local.ropes[1].base, local.layers[0].window), (5e3, Some(512)));
    let rotates = of("smollm3").layers.iter().filter(|l| l.rope.is_some()).count();
    assert_eq!(rotates, 6);
    let qwen3 = ModelInfo::slots_of(&of("qwen3"), hob_model::Naming::Gguf).expect("known");
    let norm = qwen3.iter().find(|s| s.name == "blk.6.attn_k_norm.weight").expect("a norm of keys");
    assert_eq!((norm.cols, norm.values), (32, Values::Plain));
    let zero_centred = ModelInfo::slots_of(&of("gemma3"), hob_model::Naming::HuggingFace).expect("known");
    let norms = zero_centred.iter().filter(|s| s.values == Values::LessOne).count();
    assert_eq!(norms, 7 * 6 + 1, "four norms of the stream and two of heads in each layer, and the last");
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
    let linear = json!({"rope_type": "linear", "factor": 4.0});
    let yarn = json!({
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0
    });
    let long = json!({
        "rope_type": "longrope", "original_max_position_embeddings": 64, "partial_rotary_factor": 0.5,
        "short_factor": [1.0, 1.0, 1.5, 2.0], "long_factor": [1.0, 2.0, 4.0, 8.0]
    });
    for scaling in [llama3, linear, yarn, long, json!({"rope_type": "default"})] {
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
    let cases: [(&str, Value); 18] = [
        ("model_type", json!("grue")),
        ("hidden_act", json!("gelu")),
        ("hidden_size", json!("wide")),
        ("rms_norm_eps", json!(-1.0)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("vocab_size", json!(321)),
        ("partial_rotary_factor", json!(1.5)),
        ("quantization_config", json!({"quant_method": "awq"})),
        ("rope_scaling", json!({"type": "dynamic", "factor": 4.0})),
        ("rope_scaling", json!({"type": "linear", "factor": "two"})),
        ("rope_scaling", json!({"type": "yarn", "factor": -4.0})),
        ("rope_scaling", json!({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]})),
        ("rope_scaling", json!({"type": "yarn", "factor": 2.0, "llama_4_scaling_beta": 0.1})),
        ("hidden_activation", json!("gelu_pytorch_tanh")),
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
            // A llama may be a mixture, but this one does not say how many experts a token takes.
            "num_local_experts" => "num_experts_per_tok",
            other => other,
        };
        assert!(message.contains(named), "{key}: {message}");
        let detail = ["dynamic", "gelu", "awq", "321", "1.5", "two", "-4", "[1.0]", "llama_4_scaling_beta"];
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
    let message = refused_gguf("llama.rope.scaling.type", "dynamic");
    assert!(message.contains("'llama.rope.scaling.type'") && message.contains("dynamic"), "{message}");
    let message = refused_gguf("llama.rope.scaling.type", "yarn");
    assert!(message.contains("'llama.rope.scaling.factor'"), "{message}");
    let message = refused_gguf("llama.rope.scaling.factor", f32::NAN);
    assert!(message.contains("'llama.rope.scaling.factor'") && message.contains("NaN"), "{message}");
    let message = refused_gguf("llama.expert_count", 8u32);
    assert!(message.contains("'llama.expert_used_count'"), "{message}");
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
