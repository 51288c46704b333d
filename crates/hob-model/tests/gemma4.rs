//! Gemma 4: layers that remember nothing of their own, heads of two widths, inputs of layers, and what is wrong with a
//! config by name.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::*;
use hob_compute::reference::Reference;
use hob_compute::{ByteSource, Compute};
use hob_files::{ModelFile, TensorInfo};
use hob_gpu::{Gpu, GpuConfig};
use hob_model::config::{DenseShape, ValueSource};
use hob_model::{
    Config, KvLayout, LayerState, Layout, Model, ModelError, ModelInfo, Naming, TensorSource, Values,
};
use hob_quant::Format;
use hob_testkit::rng::Rng;
use hob_testkit::temp::TempDir;
use serde_json::{Value, json};

#[test]
fn layers_that_share_hold_no_pages() {
    let tiny = golden("gemma4_e", true);
    let info = ModelInfo::read(&tiny.file).expect("a model");
    assert_eq!(info.states()[2..5], [kv(16), kv(32), LayerState::Shared { layer: 2 }]);
    assert_eq!(info.states()[7], LayerState::Shared { layer: 3 });
    // Three layers of one head of 16, one of 32, K and V in f16.
    assert_eq!(info.kv_bytes_per_token(&KvLayout::default()), (3 * 16 + 32) * 2 * 2);
    assert!(!info.recurrent());
    // They read what others hold: at position 9 all eight layers see ten positions.
    let bytes = |position| info.bytes_per_token(position, &KvLayout::default());
    assert_eq!(bytes(9) - bytes(0), 9 * 2 * (3 * 16 + 32) * 2 * 2);
    let layout = layout(300, 2, 64);
    let mut dev = cpu(1, false);
    let model = Model::load(tiny.file.clone(), &mut dev, &layout, &mut |_, _| ()).expect("a model");
    assert_eq!(dev.held_bytes().pages, info.footprint(&layout).kv);
    model.unload(&mut dev).expect("unloaded");
}

fn kv(dim: usize) -> LayerState {
    LayerState::Kv { heads: 1, dim, latent: None }
}

#[test]
fn sequences_that_share_fork_and_go_back_are_fresh_runs() {
    let tiny = golden("gemma4_e", true);
    scramble(&tiny, &Layout { cached_tokens: 512, ..layout(700, 2, 100) }, 50, 50);
    for kv in packed_layouts().take(2) {
        scramble(&tiny, &Layout { cached_tokens: 512, kv, ..layout(400, 2, 100) }, 51, 20);
    }
}

#[test]
fn company_does_not_change_a_bit() {
    for name in ["gemma4_dense", "gemma4_e"] {
        let tiny = golden(name, false);
        let prompts: Vec<_> = [50, 3, 31].iter().map(|&n| tokens(n as u64, n, tiny.vocab)).collect();
        let mut bench = Bench::new(&tiny, cpu(2, false), &layout(60, 3, 84));
        let ids = [0, 1, 2].map(|_| bench.open());
        ids.iter().zip(&prompts).for_each(|(&id, prompt)| bench.add(id, prompt));
        let together = bench.step().expect("a step");
        let mut from = 0;
        for prompt in &prompts {
            let alone = logits(&tiny, cpu(2, false), prompt, 7);
            assert_same_bits(&together[from..from + alone.len()], &alone, tiny.vocab, name);
            from += alone.len();
        }
    }
}

/// Seeded tensors of a config.
struct Random {
    tensors: Vec<TensorInfo>,
}

impl Random {
    fn new(config: &Config) -> Random {
        let slots = ModelInfo::slots_of(config, Naming::Gguf).expect("a known architecture");
        let mut tensors: Vec<TensorInfo> = Vec::new();
        for slot in slots.into_iter().filter(|s| s.values != Values::Ones) {
            if !tensors.iter().any(|t| t.name == slot.name) {
                let bytes = 4 * slot.shape.iter().product::<usize>() as u64;
                let (name, shape, format) = (slot.name, slot.shape, Format::F32);
                tensors.push(TensorInfo { name, format, shape, shard: 0, offset: 0, bytes });
            }
        }
        Random { tensors }
    }
}

impl TensorSource for Random {
    fn naming(&self) -> Naming {
        Naming::Gguf
    }
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }
    fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|t| t.name == name)
    }
    fn open(&self, tensor: &TensorInfo) -> Arc<dyn ByteSource> {
        let seed = tensor.name.bytes().fold(7, |seed: u64, b| seed.wrapping_mul(31) + u64::from(b));
        let count = tensor.bytes as usize / 4;
        let deviation = 0.8 / (tensor.shape.last().copied().unwrap_or(1) as f32).sqrt();
        let values = Rng::new(seed).normal_vec(count, if tensor.shape.len() == 1 { 0.2 } else { deviation });
        // Scores are not scaled: the norms of q and k keep them small, as trained ones do.
        let norm = match tensor.name.as_str() {
            name if name.contains("_q_norm") || name.contains("_k_norm") => 0.2,
            name if name.contains("norm") => 1.0,
            _ => 0.0,
        };
        let stored = values.into_iter().map(|v| if norm > 0.0 { norm * (1.0 + v) } else { v });
        Arc::new(stored.flat_map(f32::to_le_bytes).collect::<Vec<u8>>())
    }
}

fn shape() -> DenseShape {
    DenseShape {
        vocab: 64,
        dim: 64,
        layers: 12,
        heads: 4,
        kv_heads: 2,
        head_dim: 512,
        ffn: 64,
        ctx_train: 512,
        rope_base: 1e6,
        tied: true,
        rms_eps: Some(1e-6),
        window: Some(20),
        ..DenseShape::default()
    }
}

/// Heads of 256 where layers slide and of 512 elsewhere, as the real models have; the last layers share.
fn wide() -> Config {
    let mut config = Config::dense("gemma4", &shape()).expect("a shape");
    config.ropes[1].rotary = 256;
    config.layer_input = Some(8);
    for (i, layer) in config.layers.iter_mut().enumerate() {
        if layer.window.is_some() {
            layer.head_dim = 256;
        } else if i == 5 {
            (layer.kv_heads, layer.values) = (1, ValueSource::Keys);
        }
        if i >= 9 {
            layer.values = ValueSource::Layer(if layer.window.is_some() { 8 } else { 5 });
            layer.kv_heads = if layer.window.is_some() { 2 } else { 1 };
        }
        layer.output_scale = 0.9;
    }
    config
}

fn wide_logits(mut dev: impl Compute + 'static, prompt: &[u32], chunk: usize) -> Vec<f32> {
    let source = Random::new(&wide());
    let info = ModelInfo::new(wide(), &source).expect("complete");
    let layout = layout(prompt.len(), 1, chunk);
    let model = Model::load_from(&source, info, &mut dev, &layout, &mut |_, _| ()).expect("a model");
    let mut bench = Bench { dev: Box::new(dev), model, batch: Default::default() };
    let id = bench.open();
    bench.feed(id, prompt, chunk)
}

#[test]
fn wide_heads_are_the_oracles() {
    let prompt = tokens(3, 40, 64);
    let expected = wide_logits(Reference::new(false), &prompt, 40);
    assert!(expected.iter().all(|l| l.is_finite()));
    for chunk in [1, 17] {
        let found = wide_logits(cpu(2, false), &prompt, chunk);
        assert_same_bits(&found, &expected, 64, &format!("chunks of {chunk}"));
    }
}

#[test]
fn wide_heads_run_on_a_gpu() {
    let Some(adapter) = hob_gpu::test_adapter() else {
        return;
    };
    let prompt = tokens(3, 40, 64);
    // Compiling kernels is what takes long on a software adapter.
    for (exact, chunk, most) in [(true, 40, 1e-8), (false, 20, 3e-3)] {
        let config = GpuConfig { adapter, exact, ..GpuConfig::default() };
        let gpu = Gpu::open(&config).expect("the adapter opens");
        let expected = wide_logits(cpu(1, exact), &prompt, 40);
        let apart = nmse(&wide_logits(gpu, &prompt, chunk), &expected);
        assert!(apart < most, "chunks of {chunk}, exact {exact}: {apart:.1e}");
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A fixture whose config.json was changed.
fn changed(name: &str, change: impl FnOnce(&mut Value)) -> (TempDir, ModelFile) {
    let dir = TempDir::new("gemma4");
    std::fs::copy(fixture(name).join("model.safetensors"), dir.join("model.safetensors")).expect("a copy");
    let text = std::fs::read_to_string(fixture(name).join("config.json")).expect("config.json");
    let mut json = serde_json::from_str(&text).expect("json");
    change(&mut json);
    std::fs::write(dir.join("config.json"), json.to_string()).expect("writable");
    let file = ModelFile::open(dir.path()).expect("a folder");
    (dir, file)
}

#[test]
fn older_configs_have_keys_for_layers_that_see_all() {
    for (name, kv) in [("gemma4_dense", Some(1)), ("gemma4_e", None)] {
        let (_dir, file) = changed(name, |json| {
            json["per_layer_config"] = Value::Null;
            json["global_head_dim"] = 32.into();
            json["num_global_key_value_heads"] = kv.into();
            json["use_bidirectional_attention"] = "vision".into();
        });
        let plain = Config::from_file(&ModelFile::open(fixture(name)).expect("a folder"));
        assert_eq!(Config::from_file(&file).expect("a config"), plain.expect("a config"), "{name}");
    }
}

#[test]
fn what_is_wrong_with_a_config_is_named() {
    let refused = |name: &str, key: &str, value: Value| -> String {
        let (_dir, file) = changed(name, |json| json[key] = value);
        ModelInfo::read(&Arc::new(file)).expect_err(key).to_string()
    };
    let layers = json!(["sliding_attention", "linear_attention", "full_attention", "full_attention"]);
    let kinds = [layers.as_array().expect("a list").clone(), vec!["full_attention".into(); 2]].concat();
    for (name, key, value, part) in [
        ("gemma4_dense", "layer_types", json!(kinds), "linear_attention"),
        ("gemma4_dense", "num_attention_heads", json!(3), "kv_heads"),
        ("gemma4_dense", "use_bidirectional_attention", json!("all"), "use_bidirectional_attention"),
        (
            "gemma4_dense",
            "per_layer_config",
            json!({"5": {"head_dim": "wide"}}),
            "per_layer_config.5.head_dim",
        ),
        ("gemma4_dense", "hidden_activation", json!("relu"), "hidden_activation"),
        ("gemma4_e", "num_kv_shared_layers", json!(9), "num_kv_shared_layers"),
        ("gemma4_e", "num_kv_shared_layers", json!(8), "num_kv_shared_layers"),
        ("gemma4_e", "vocab_size_per_layer_input", json!(99), "vocab_size_per_layer_input"),
        ("gemma4_e", "hidden_size_per_layer_input", json!(8), "per_layer_input_gate"),
        ("gemma4_moe", "num_experts", json!(4), "router.proj"),
        ("gemma4_moe", "top_k_experts", json!(9), "9 of 8"),
        ("gemma4_moe", "moe_intermediate_size", Value::Null, "moe_intermediate_size"),
    ] {
        let message = refused(name, key, value);
        assert!(message.contains(part), "{name}, {key}: {message}");
    }
    let mut rope = json!({"rope_type": "spiral", "rope_theta": 1e6});
    let ropes = |full: &Value| json!({"full_attention": full, "sliding_attention": {"rope_type": "default"}});
    assert!(refused("gemma4_e", "rope_parameters", ropes(&rope)).contains("spiral"));
    rope["rope_type"] = "proportional".into();
    rope["factor"] = 4.0.into();
    assert!(refused("gemma4_e", "rope_parameters", ropes(&rope)).contains("full_attention.factor"));
}

#[test]
fn a_layer_can_only_share_with_an_earlier_one_like_it() {
    let with = |i: usize, values| {
        let mut config = wide();
        config.layers[i].values = values;
        ModelInfo::new(config, &Random::new(&wide())).expect_err("refused")
    };
    for (i, from) in [(9, 5), (9, 9), (10, 9), (8, 40), (11, 8)] {
        let error = with(i, ValueSource::Layer(from));
        assert!(
            matches!(&error, ModelError::Config { key, .. } if key.contains(&format!("layer {i}"))),
            "{error}"
        );
    }
}
