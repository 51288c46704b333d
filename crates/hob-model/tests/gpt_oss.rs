//! gpt-oss's own forms of experts: MXFP4 in two tensors, gate and up in turns, and what is wrong with them by name.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::*;
use hob_files::ModelFile;
use hob_files::gguf_write::Writer;
use hob_model::{Config, ModelInfo};
use hob_quant::Format;
use hob_testkit::rng::Rng;
use hob_testkit::temp::TempDir;
use serde_json::{Value, json};

const LAYERS: usize = 4;
const EXPERTS: usize = 8;
/// Widths of the residual stream and of an expert, both.
const DIM: usize = 64;
const BLOCKS: usize = DIM / 32;

/// A tensor of a safetensors file: name, type, shape, bytes.
type Tensor = (String, &'static str, Vec<usize>, Vec<u8>);

fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend(bytes);
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    let text = Value::Object(header).to_string();
    [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &data].concat()
}

/// Codes and scales of one matrix of all experts, `[EXPERTS, rows, DIM]`.
struct Packed {
    rows: usize,
    codes: Vec<u8>,
    scales: Vec<u8>,
}

impl Packed {
    fn random(rng: &mut Rng, rows: usize) -> Packed {
        let blocks = EXPERTS * rows * BLOCKS;
        Packed {
            rows,
            codes: (0..16 * blocks).map(|_| rng.below(256) as u8).collect(),
            // Scales of 2^-7 to 2^-5.
            scales: (0..blocks).map(|_| 120 + rng.below(3) as u8).collect(),
        }
    }

    /// As a GGUF has it: every `step`-th row from `first` on.
    fn blocks(&self, first: usize, step: usize) -> Vec<u8> {
        let rows =
            (0..EXPERTS).flat_map(|e| (first..self.rows).step_by(step).map(move |r| e * self.rows + r));
        let at = rows.flat_map(|row| (0..BLOCKS).map(move |b| row * BLOCKS + b));
        let weight = |block: usize, i: usize| self.codes[16 * block + i / 2] >> (4 * (i % 2)) & 15;
        at.flat_map(|block| {
            let byte = move |i| weight(block, i) | weight(block, i + 16) << 4;
            std::iter::once(self.scales[block]).chain((0..16).map(byte))
        })
        .collect()
    }

    fn tensors(&self, name: &str) -> [Tensor; 2] {
        let shape = vec![EXPERTS, self.rows, BLOCKS];
        let codes = [&shape[..], &[16]].concat();
        [
            (format!("{name}_blocks"), "U8", codes, self.codes.clone()),
            (format!("{name}_scales"), "U8", shape, self.scales.clone()),
        ]
    }
}

fn fixture() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gpt_oss")
}

/// A checkpoint whose tensors and config.json were changed.
fn checkpoint(
    packed: &[[Packed; 2]],
    change: impl FnOnce(&mut Vec<Tensor>, &mut Value),
) -> (TempDir, ModelFile) {
    let source = ModelFile::open(fixture()).expect("a folder");
    let mut tensors: Vec<Tensor> = source
        .tensors()
        .iter()
        .filter(|t| !t.name.ends_with("up_proj") && !t.name.ends_with("down_proj"))
        .map(|t| (t.name.clone(), "BF16", t.shape.clone(), source.mapped(t).to_vec()))
        .collect();
    for (i, [gate_up, down]) in packed.iter().enumerate() {
        let name = |part: &str| format!("model.layers.{i}.mlp.experts.{part}_proj");
        tensors.extend(gate_up.tensors(&name("gate_up")));
        tensors.extend(down.tensors(&name("down")));
    }
    let text = std::fs::read_to_string(fixture().join("config.json")).expect("config.json");
    let mut config: Value = serde_json::from_str(&text).expect("json");
    config["quantization_config"] = json!({"quant_method": "mxfp4"});
    change(&mut tensors, &mut config);
    let dir = TempDir::new("gpt-oss");
    std::fs::write(dir.join("model.safetensors"), safetensors(&tensors)).expect("writable");
    std::fs::write(dir.join("config.json"), config.to_string()).expect("writable");
    let file = ModelFile::open(dir.path()).expect("a folder");
    (dir, file)
}

fn packed() -> Vec<[Packed; 2]> {
    let mut rng = Rng::new(7);
    (0..LAYERS).map(|_| [2 * DIM, DIM].map(|rows| Packed::random(&mut rng, rows))).collect()
}

/// The same weights as a GGUF.
fn gguf_of(packed: &[[Packed; 2]], dir: &TempDir) -> ModelFile {
    let source = ModelFile::open(fixture().join("model.f32.gguf")).expect("a GGUF");
    let (mut writer, mut data) = (Writer::new(), Vec::new());
    source.metadata().copy_to(&mut writer);
    for tensor in source.tensors() {
        let layer = tensor.name.split('.').nth(1).and_then(|n| n.parse::<usize>().ok());
        let experts = layer.and_then(|i| match tensor.name.split_once("ffn_")?.1 {
            "gate_exps.weight" => Some(packed[i][0].blocks(0, 2)),
            "up_exps.weight" => Some(packed[i][0].blocks(1, 2)),
            "down_exps.weight" => Some(packed[i][1].blocks(0, 1)),
            _ => None,
        });
        let format = if experts.is_some() { Format::MXFP4 } else { tensor.format };
        writer.tensor(&tensor.name, format, &tensor.shape).expect("a tensor");
        data.push(experts.unwrap_or_else(|| source.mapped(tensor).to_vec()));
    }
    let path = dir.join("mxfp4.gguf");
    writer.save(&path, &data.iter().map(Vec::as_slice).collect::<Vec<_>>()).expect("writable");
    ModelFile::open(&path).expect("a GGUF")
}

#[test]
fn a_checkpoint_in_mxfp4_is_its_gguf() {
    let packed = packed();
    let (dir, folder) = checkpoint(&packed, |_, _| ());
    let gguf = gguf_of(&packed, &dir);
    let prompt = tokens(1, 60, 320);
    let run = |file: ModelFile, exact| {
        let tiny = Tiny { dir: TempDir::new("gpt-oss"), file: Arc::new(file), vocab: 320 };
        let info = ModelInfo::read(&tiny.file).expect("a model");
        assert_eq!(info.unexpected, [""; 0]);
        assert!(info.slots().any(|(_, format)| format == Format::MXFP4));
        logits(&tiny, cpu(2, exact), &prompt, 25)
    };
    let expected = run(gguf, true);
    assert_same_bits(&run(folder, true), &expected, 320, "safetensors and GGUF");
    assert!(expected.iter().all(|l| l.is_finite()));
}

#[test]
fn what_is_wrong_with_a_checkpoint_is_named() {
    let packed = packed();
    let refused = |change: &dyn Fn(&mut Vec<Tensor>, &mut Value)| {
        let (_dir, file) = checkpoint(&packed, change);
        ModelInfo::read(&Arc::new(file)).expect_err("refused").to_string()
    };
    const SCALES: &str = "model.layers.2.mlp.experts.down_proj_scales";
    let message = refused(&|tensors, _| tensors.retain(|t| t.0 != SCALES));
    assert!(message.contains(SCALES) && message.contains("missing"), "{message}");
    let message = refused(&|tensors, _| {
        let tensor = tensors.iter_mut().find(|t| t.0 == SCALES).expect("scales");
        tensor.2 = vec![EXPERTS, BLOCKS, DIM];
    });
    assert!(message.contains(SCALES) && message.contains("[8, 64, 2]"), "{message}");
    const BIAS: &str = "model.layers.1.mlp.experts.gate_up_proj_bias";
    let message = refused(&|tensors, _| tensors.retain(|t| t.0 != BIAS));
    assert!(message.contains(BIAS) && message.contains("missing"), "{message}");
    for (key, value) in [
        ("quantization_config", json!({"quant_method": "awq"})),
        ("swiglu_limit", json!(-1.0)),
        ("swiglu_alpha", json!("steep")),
        ("hidden_act", json!("gelu")),
        (
            "layer_types",
            json!(["sliding_attention", "chunked_attention", "full_attention", "full_attention"]),
        ),
        ("num_attention_heads", json!(3)),
    ] {
        let message = refused(&|_, config| config[key] = value.clone());
        let named = if key == "num_attention_heads" { "kv_heads" } else { key };
        assert!(message.contains(named), "{key}: {message}");
    }
}

#[test]
fn both_forms_have_one_config_and_corners_are_not_rounded() {
    let read = |path: &Path| Config::from_file(&ModelFile::open(path).expect("a model")).expect("a config");
    let [folder, gguf] = [fixture(), fixture().join("model.f32.gguf")].map(|path| read(&path));
    assert_eq!(folder, gguf);
    let hob_model::RopeScaling::Yarn(yarn) = &gguf.ropes[0].scaling else { panic!("{:?}", gguf.ropes) };
    assert!(!yarn.truncate);
    assert_eq!([0, 1, 2].map(|i: usize| gguf.layers[i].window), [Some(16), None, Some(16)]);
}
