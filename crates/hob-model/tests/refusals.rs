//! Files that cannot be right, made of every fixture: a tensor too few, a dimension too many, sizes that are nothing, odd or
//! huge, a kind of layer that nobody knows. Each is an error that names it, and none costs memory first. New architectures
//! are walked as soon as their folder is there.

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use common::*;
use hob_compute::reference::Reference;
use hob_compute::{ByteSource, Compute};
use hob_files::gguf_write::Writer;
use hob_files::{ModelFile, TensorInfo};
use hob_model::{Config, Layout, Model, ModelInfo, Naming, TensorSource};
use hob_testkit::alloc::{CountingAllocator, Usage, measure_thread};
use hob_testkit::temp::TempDir;
use serde_json::Value;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// What reading a file of some hundred KiB may take.
const LARGE: u64 = 64 << 20;

/// A fixture's tensors, changed; their bytes are zeros.
struct Changed {
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    naming: Naming,
}

struct Zeros(u64);

impl ByteSource for Zeros {
    fn len(&self) -> u64 {
        self.0
    }
    fn read_at(&self, _: u64, buf: &mut [u8]) -> std::io::Result<()> {
        // Ones, as far as floats go: rotary tables divide by some.
        buf.chunks_mut(4).for_each(|b| b.copy_from_slice(&1f32.to_le_bytes()[..b.len()]));
        Ok(())
    }
}

impl Changed {
    fn new(file: &Arc<ModelFile>, naming: Naming, change: impl FnOnce(&mut Vec<TensorInfo>)) -> Changed {
        let mut tensors: Vec<TensorInfo> = file.tensors().to_vec();
        change(&mut tensors);
        let by_name = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Changed { tensors, by_name, naming }
    }
}

impl TensorSource for Changed {
    fn naming(&self) -> Naming {
        self.naming
    }
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }
    fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }
    fn open(&self, tensor: &TensorInfo) -> Arc<dyn ByteSource> {
        Arc::new(Zeros(tensor.bytes))
    }
}

/// The fixtures' folders, and their GGUFs.
fn fixtures() -> Vec<(String, Naming, Arc<ModelFile>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut all = Vec::new();
    for name in goldens() {
        for (naming, part) in [(Naming::Gguf, "model.f32.gguf"), (Naming::HuggingFace, "")] {
            let path = dir.join(&name).join(part);
            if part.is_empty() && !path.join("model.safetensors").exists() {
                continue;
            }
            let file = Arc::new(ModelFile::open(&path).expect("a fixture"));
            // Tensors behind another prefix are found by the file's own source only; the GGUF has them all.
            let config = Config::from_file(&file).expect("a config");
            let plain = naming == Naming::Gguf
                || ModelInfo::new(config, &Changed::new(&file, naming, |_| ())).is_ok();
            if plain {
                all.push((format!("{name}/{part}"), naming, file));
            }
        }
    }
    all
}

/// The error of a model of these tensors; `None` if there is none. Nothing may stay on the device.
fn refusal(config: &Config, source: &Changed) -> Option<String> {
    let mut dev = Reference::new(true);
    let info = match ModelInfo::new(config.clone(), source) {
        Ok(info) => info,
        Err(e) => return Some(e.to_string()),
    };
    let error = Model::load_from(source, info, &mut dev, &Layout::new(8), &mut |_, _| ()).err()?;
    assert_eq!(dev.held_bytes(), Default::default(), "{error}");
    Some(error.to_string())
}

/// Whether the model reads a tensor at all.
fn is_read(config: &Config, source: &Changed, name: &str) -> bool {
    let info = ModelInfo::new(config.clone(), source).expect("the unchanged fixture");
    let drafting = (0..config.drafting).map(|i| config.layers.len() + i);
    let mut drafting = drafting.flat_map(|i| [format!("blk.{i}."), format!("model.layers.{i}.")]);
    // Read with the config, and 1 where it is not there.
    let scale = name.contains("layer_output_scale") || name.contains("layer_scalar");
    let drafts = scale || name.starts_with("mtp.") || drafting.any(|block| name.starts_with(&block));
    !drafts && info.unexpected.iter().all(|n| n != name)
}

#[test]
fn every_missing_tensor_is_named() {
    for (what, naming, file) in fixtures() {
        let config = Config::from_file(&file).expect("a config");
        let whole = Changed::new(&file, naming, |_| ());
        for gone in whole.tensors.iter().filter(|t| is_read(&config, &whole, &t.name)) {
            let source = Changed::new(&file, naming, |tensors| tensors.retain(|t| t.name != gone.name));
            let (error, usage) = measure_thread(|| refusal(&config, &source));
            let error = error.unwrap_or_else(|| panic!("{what}: nothing misses '{}'", gone.name));
            // Where a file may have a matrix in another form, a tensor of that one is what is missing.
            let block = gone.name.split('.').take(if naming == Naming::Gguf { 2 } else { 3 });
            let block = block.collect::<Vec<_>>().join(".") + ".";
            let other = error.contains(&format!("'{block}")) && error.contains("is missing");
            assert!(error.contains(&gone.name) || other, "{what}, without '{}': {error}", gone.name);
            small(&what, usage);
        }
    }
}

#[test]
fn every_doubled_dimension_is_named() {
    for (what, naming, file) in fixtures() {
        let config = Config::from_file(&file).expect("a config");
        let whole = Changed::new(&file, naming, |_| ());
        for (at, tensor) in whole.tensors.iter().enumerate() {
            if !is_read(&config, &whole, &tensor.name) {
                continue;
            }
            for dimension in 0..tensor.shape.len() {
                let source = Changed::new(&file, naming, |tensors| {
                    tensors[at].shape[dimension] *= 2;
                    tensors[at].bytes *= 2;
                });
                let (error, usage) = measure_thread(|| refusal(&config, &source));
                let error = error
                    .unwrap_or_else(|| panic!("{what}: dimension {dimension} of '{}' is free", tensor.name));
                assert!(error.contains(&tensor.name), "{what}, '{}': {error}", tensor.name);
                small(&what, usage);
            }
        }
    }
}

fn small(what: &str, usage: Usage) {
    assert!(usage.peak_bytes < LARGE, "{what}: {usage:?} before the refusal");
}

/// What reading a file gives.
fn read(file: hob_files::Result<ModelFile>) -> Result<ModelInfo, String> {
    ModelInfo::read(&Arc::new(file.map_err(|e| e.to_string())?)).map_err(|e| e.to_string())
}

/// Sizes that count heads, experts, groups, layers, taps and their widths.
fn counts(key: &str) -> bool {
    let words = [
        "head",
        "kernel",
        "conv",
        "group",
        "rank",
        "expert",
        "state",
        "block_count",
        "size",
        "layers",
        "dim",
    ];
    let others =
        ["vocab", "chunk", "position", "interval", "token", "type", "window", "stream", "predict", "nextn"];
    words.iter().any(|w| key.contains(w)) && others.iter().all(|w| !key.contains(w))
}

fn is_whole(value: &hob_files::Value) -> bool {
    use hob_files::Value::{I32, I64, U16, U32, U64};
    matches!(value, U16(_) | U32(_) | U64(_) | I32(_) | I64(_))
}

/// What is wrong with how a changed size is met: it must be refused with the name of the key, of a tensor that no longer
/// fits, or of what the key means; or mean nothing to the model; or be a size that can be.
fn objection(
    what: &str,
    (key, value): (&str, u64),
    found: (Result<ModelInfo, String>, Usage),
    plain: &Config,
) -> Option<String> {
    small(what, found.1);
    // So many of the experts there are; the width of a block that a mixture does not have.
    let free = ["used_count", "per_tok", "top_k", "topk"].iter().any(|w| key.contains(w));
    // What a GGUF says for nothing.
    let unsaid = ["expert_gating_func", "expert_group_count"].iter().any(|w| key.ends_with(w));
    let possible = (value == 7 && (free || key == "intermediate_size")) || (value == 0 && unsaid);
    let names = [key, "'blk.", "'token_embd", "'output", "'model.", "'lm_head", "config key '"];
    match found.0 {
        Ok(info) if &info.config == plain || possible => None,
        // A file that has more than such a model: whoever opens it is told.
        Ok(info) if !info.unexpected.is_empty() => None,
        Ok(_) => Some(format!("{what}: taken for another model")),
        Err(error) if names.iter().any(|name| error.contains(name)) => None,
        Err(error) => Some(format!("{what}: {error}")),
    }
}

const VALUES: [u64; 3] = [0, 7, 1 << 40];

#[test]
fn impossible_counts_of_a_config_are_named() {
    let mut wrong = Vec::new();
    for name in goldens() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(&name);
        if !golden.join("model.safetensors").exists() {
            continue;
        }
        let dir = TempDir::new("refusals");
        std::fs::copy(golden.join("model.safetensors"), dir.join("model.safetensors")).expect("a copy");
        let text = std::fs::read_to_string(golden.join("config.json")).expect("config.json");
        let json: Value = serde_json::from_str(&text).expect("json");
        let file = ModelFile::open(&golden).expect("a fixture");
        let plain = Config::from_file(&file).expect("a config");
        let keys: Vec<&String> = json
            .as_object()
            .expect("an object")
            .iter()
            .filter(|(k, v)| v.is_u64() && counts(k))
            .map(|(k, _)| k)
            .collect();
        assert!(keys.len() >= 4, "{name}: {keys:?}");
        for (key, value) in keys.iter().flat_map(|key| VALUES.map(|value| (*key, value))) {
            let mut changed = json.clone();
            changed[key] = value.into();
            std::fs::write(dir.join("config.json"), changed.to_string()).expect("writable");
            let found = measure_thread(|| read(ModelFile::open(dir.path())));
            let what = format!("{name}, {key} = {value}");
            wrong.extend(objection(&what, (key, value), found, &plain));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn impossible_counts_of_a_gguf_are_named() {
    let mut wrong = Vec::new();
    for name in goldens() {
        let tiny = golden(&name, true);
        let plain = Config::from_file(&tiny.file).expect("a config");
        let metadata = tiny.file.metadata();
        let keys = metadata.iter().filter(|(k, v)| counts(k) && is_whole(v));
        let keys: Vec<String> = keys.map(|(k, _)| k.to_string()).collect();
        assert!(keys.len() >= 3, "{name}: {keys:?}");
        for (key, value) in keys.iter().flat_map(|key| VALUES.map(|value| (key, value))) {
            let mut writer = Writer::new();
            metadata.copy_to(&mut writer);
            writer.set(key, value);
            let mut data = Vec::new();
            for tensor in tiny.file.tensors() {
                writer.tensor(&tensor.name, tensor.format, &tensor.shape).expect("a tensor");
                data.push(tiny.file.mapped(tensor));
            }
            let path = tiny.dir.join("changed.gguf");
            writer.save(&path, &data).expect("writable");
            let found = measure_thread(|| read(ModelFile::open(&path)));
            let what = format!("{name}, {key} = {value}");
            wrong.extend(objection(&what, (key, value), found, &plain));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Where a config lists its layers, one of another kind is refused by its name.
#[test]
fn an_unknown_kind_of_layer_is_named() {
    let mut walked = 0;
    for name in goldens() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(&name);
        let text = std::fs::read_to_string(golden.join("config.json")).expect("config.json");
        let json: Value = serde_json::from_str(&text).expect("json");
        for key in ["layer_types", "layers_block_type", "mlp_layer_types", "hybrid_override_pattern"] {
            let mut changed = json.clone();
            match &mut changed[key] {
                Value::Array(kinds) if !kinds.is_empty() => kinds[0] = "quantum_attention".into(),
                Value::String(kinds) => kinds.replace_range(0..1, "?"),
                _ => continue,
            }
            let dir = TempDir::new("refusals");
            std::fs::copy(golden.join("model.safetensors"), dir.join("model.safetensors")).expect("a copy");
            std::fs::write(dir.join("config.json"), changed.to_string()).expect("writable");
            let file = Arc::new(ModelFile::open(dir.path()).expect("a folder"));
            let error = Config::from_file(&file).expect_err(&name).to_string();
            let named = error.contains("quantum_attention") || error.contains('?');
            assert!(named && error.contains(key), "{name}, {key}: {error}");
            walked += 1;
        }
    }
    assert!(walked >= 8, "{walked}");
}

#[test]
fn an_unknown_architecture_is_named_with_those_that_are_known() {
    let tiny = golden("qwen3_5", true);
    let file = rewritten(&tiny, |w| _ = w.set("general.architecture", "qwen99"), |_| true);
    let error = Config::from_file(&file).expect_err("nobody knows it").to_string();
    assert!(error.contains("qwen99") && error.contains("qwen35"), "{error}");
}
