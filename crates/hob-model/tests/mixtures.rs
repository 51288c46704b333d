//! Mixtures of experts and recurrent layers at the level of a model: bits, memory, rollback, and the forms of experts.

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::*;
use hob_compute::reference::Reference;
use hob_compute::{ByteSource, Compute, Token, WeightKind};
use hob_cpu::Isa;
use hob_files::gguf_write::Writer;
use hob_files::{ModelFile, TensorInfo};
use hob_model::config::{DenseShape, ExpertShape};
use hob_model::{
    Config, FileTensors, Group, KvLayout, LayerState, Model, ModelError, ModelInfo, Naming, Row, TensorSource,
};
use hob_quant::Format;
use hob_testkit::temp::TempDir;

const ALL: [&str; 8] =
    ["qwen3_moe", "lfm2", "lfm2_moe", "mixtral", "glm4_moe", "gpt_oss", "gemma4_moe", "deepseek_v3"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Every golden model as its file has it and in two formats.
fn models() -> impl Iterator<Item = (String, Tiny)> {
    ALL.into_iter().flat_map(|name| {
        let whole = opened(&golden(name).join("model.f32.gguf"), TempDir::new("mixture"));
        let formats = [Format::Q8_0, Format::Q4_0].map(|f| (format!("{name} {f}"), quantised(name, f)));
        std::iter::once((name.to_string(), whole)).chain(formats)
    })
}

#[test]
fn chunks_and_threads_do_not_change_a_bit() {
    const PROMPT: usize = 90;
    for (name, tiny) in models() {
        let prompt = tokens(1, PROMPT, tiny.vocab);
        for exact in [false, true] {
            let whole = logits(&tiny, cpu(1, exact), &prompt, PROMPT);
            for (threads, chunk) in [(2, 1), (1, 2), (2, 7), (3, 64), (2, PROMPT)] {
                let cut = logits(&tiny, cpu(threads, exact), &prompt, chunk);
                let what = format!("{name}, exact {exact}, {threads} threads, chunks of {chunk}");
                assert_same_bits(&cut, &whole, tiny.vocab, &what);
            }
        }
    }
}

#[test]
fn company_does_not_change_a_bit() {
    const LENGTHS: [usize; 3] = [70, 5, 41];
    for (name, tiny) in models() {
        let prompts: Vec<_> = (0..3).map(|s| tokens(2 + s as u64, LENGTHS[s], tiny.vocab)).collect();
        let alone: Vec<_> = prompts.iter().map(|p| logits(&tiny, cpu(2, false), p, 64)).collect();
        let mut bench = Bench::new(&tiny, cpu(2, false), &layout(80, 3, 64));
        let ids = [0, 1, 2].map(|_| bench.model.new_sequence().expect("a free sequence"));
        let mut together = vec![Vec::new(); 3];
        let mut done = [0; 3];
        for shares in [[30, 1, 2], [1, 1, 1], [1, 0, 20], [7, 3, 0], [40, 9, 9]].iter().cycle() {
            let parts = [0, 1, 2].map(|s| done[s]..LENGTHS[s].min(done[s] + shares[s]));
            // The order in a batch is not that of the slots.
            let order = if done[0] % 2 == 0 { [2, 0, 1] } else { [1, 0, 2] };
            order.iter().filter(|&&s| !parts[s].is_empty()).for_each(|&s| {
                bench.add(ids[s], &prompts[s][parts[s].clone()]);
            });
            if bench.batch.rows.is_empty() {
                break;
            }
            let rows = bench.step().expect("a step");
            let mut at = 0;
            for s in order {
                let len = parts[s].len() * tiny.vocab;
                together[s].extend_from_slice(&rows[at..at + len]);
                at += len;
            }
            done = [0, 1, 2].map(|s| parts[s].end);
        }
        for (s, alone) in alone.iter().enumerate() {
            assert_same_bits(&together[s], alone, tiny.vocab, &format!("{name}, sequence {s}"));
        }
    }
}

#[test]
fn the_cpu_gives_the_bits_of_the_oracle() {
    for (name, tiny) in models() {
        let prompt = tokens(4, 24, tiny.vocab);
        let oracle = logits(&tiny, Reference::new(false), &prompt, 24);
        let ours = logits(&tiny, cpu(2, false), &prompt, 9);
        assert_same_bits(&ours, &oracle, tiny.vocab, &name);
    }
}

#[test]
fn recurrent_state_is_kept_whole_or_dropped() {
    let tiny = quantised("lfm2", Format::Q8_0);
    let prompt = tokens(5, 30, tiny.vocab);
    let fresh = logits(&tiny, cpu(2, false), &prompt, 64);
    let mut bench = Bench::new(&tiny, cpu(2, false), &layout(64, 2, 64));
    assert!(bench.model.info().recurrent());
    let first = bench.model.new_sequence().expect("a free sequence");
    bench.feed(first, &tokens(6, 20, tiny.vocab), 64);
    let can = |bench: &Bench, len| bench.model.can_truncate(first, len).expect("a sequence");
    assert_eq!([0, 1, 19, 20, 21].map(|len| can(&bench, len)), [true, false, false, true, false]);
    let error = bench.model.truncate(first, 19).expect_err("no way back");
    assert!(matches!(error, ModelError::Rollback { held: 20, wanted: 19 }), "{error}");
    assert!(error.to_string().contains("truncate to 0"), "{error}");
    bench.model.truncate(first, 20).expect("nothing to do");
    bench.model.truncate(first, 0).expect("always possible");
    // What the slot held before does not matter, nor to whom it belonged.
    assert_same_bits(&bench.feed(first, &prompt, 7), &fresh, tiny.vocab, "after truncation");
    bench.model.free_sequence(first).expect("it lives");
    let second = bench.model.new_sequence().expect("a free sequence");
    assert_same_bits(&bench.feed(second, &prompt, 64), &fresh, tiny.vocab, "after reuse");
    // Models of keys and values alone go back to any length.
    let moe = quantised("qwen3_moe", Format::Q8_0);
    let mut bench = Bench::new(&moe, cpu(1, false), &layout(64, 1, 64));
    let id = bench.model.new_sequence().expect("a free sequence");
    bench.feed(id, &tokens(6, 20, moe.vocab), 64);
    assert!(!bench.model.info().recurrent() && bench.model.can_truncate(id, 7).expect("a sequence"));
    bench.model.truncate(id, 7).expect("any length");
}

#[test]
fn a_failed_step_empties_recurrent_sequences() {
    let tiny = quantised("lfm2", Format::Q8_0);
    let mut bench = Bench::new(&tiny, Reference::new(false), &layout(64, 1, 64));
    let id = bench.model.new_sequence().expect("a free sequence");
    bench.feed(id, &[1, 2, 3], 3);
    // A batch that is refused is not begun.
    let row = |position, token| Row { sequence: id, position, token, logits: true, draft: false };
    bench.batch.rows.push(row(7, Token::Host(1)));
    bench.step().expect_err("a gap");
    assert_eq!(bench.model.seq_len(id).expect("a sequence"), 3);
    bench.batch.rows.push(row(3, Token::Host(1 << 30)));
    bench.step().expect_err("no such token");
    assert_eq!(bench.model.seq_len(id).expect("a sequence"), 0);
}

#[test]
fn the_estimate_is_what_the_device_holds() {
    for (name, tiny) in models().filter(|(name, _)| name.contains(' ')) {
        for layout in [layout(64, 1, 8), layout(300, 3, 32)] {
            let info = ModelInfo::read(&tiny.file).expect("a model");
            let bill = info.footprint(&layout);
            let mut dev = cpu(2, false);
            let model = Model::load(tiny.file.clone(), &mut dev, &layout, &mut |_, _| ()).expect("a model");
            let held = dev.held_bytes();
            assert_eq!(held.pages, bill.kv, "{name}");
            assert_eq!(held.buffers, bill.scratch + bill.state, "{name}");
            if Isa::best() > Isa::Scalar {
                assert_eq!(held.weights, bill.weights, "{name}");
            } else {
                assert!(held.weights <= bill.weights, "{name}: weights that are not packed are not padded");
            }
            assert_eq!(bill.lines.iter().map(|l| l.bytes).sum::<u64>(), bill.total);
            assert_eq!(bill.total, bill.weights + bill.kv + bill.state + bill.scratch);
            assert_eq!(bill.lines.iter().any(|l| l.name.contains("experts")), !name.starts_with("lfm2 "));
            assert_eq!(bill.lines.iter().any(|l| l.name.contains("recurrent")), name.contains("lfm2"));
            model.unload(&mut dev).expect("unloaded");
            assert_eq!(dev.held_bytes(), Default::default());
        }
    }
}

#[test]
fn bytes_and_macs_add_up_by_hand() {
    // 4 layers, dim 64, 4 heads and 2 KV heads of 32, 2 of 8 experts of 32, 320 tokens; Q8_0 is 34 bytes per 32.
    let info = ModelInfo::read(&quantised("qwen3_moe", Format::Q8_0).file).expect("a model");
    let (attention, expert, router) = (64 * 128 * 2 + 64 * 64 * 2, 3 * 64 * 32, 64 * 8);
    let head = 320 * 64;
    let read = 4 * (attention + 2 * expert) + head;
    // Packed, the 32 columns of an expert's down projection are padded to 64.
    let padding = 64 * 32;
    let packed = read + 4 * 2 * padding;
    let vectors = (4 * (2 * 64 + 2 * 32) + 64) * 4;
    let kv = 4 * 2 * 2 * 32 * 2;
    let table_row = 64 / 32 * 34;
    assert_eq!(
        info.bytes_per_token(0, &KvLayout::default()),
        packed / 32 * 34 + 4 * router * 4 + vectors + table_row + kv
    );
    assert_eq!(info.macs_per_token(9), read + 4 * router + 4 * 2 * 4 * 32 * 10);
    let bill = info.footprint(&layout(64, 1, 8));
    let of = |group: Group| bill.lines.iter().find(|l| l.name == group.title()).expect("a line").bytes;
    assert_eq!(of(Group::Experts), 4 * 8 * (expert + padding) / 32 * 34);
    // 6 layers, of which 4 remember two rows of 64 instead of K and V.
    let info = ModelInfo::read(&quantised("lfm2", Format::Q8_0).file).expect("a model");
    assert_eq!(info.states()[0], LayerState::Conv { channels: 64, taps: 3 });
    assert_eq!(info.kv_bytes_per_token(&KvLayout::default()), 2 * 2 * 2 * 16 * 2);
    assert_eq!(info.footprint(&layout(64, 5, 8)).state, 5 * 4 * 2 * 64 * 4);
}

/// Tensors in memory.
struct Memory {
    naming: Naming,
    tensors: Vec<TensorInfo>,
    bytes: HashMap<String, Arc<Vec<u8>>>,
}

struct Bytes(Arc<Vec<u8>>);

impl ByteSource for Bytes {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let at = offset as usize;
        buf.copy_from_slice(self.0.get(at..at + buf.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn mapped(&self) -> Option<&[u8]> {
        Some(&self.0)
    }
}

impl TensorSource for Memory {
    fn naming(&self) -> Naming {
        self.naming
    }
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }
    fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|t| t.name == name)
    }
    fn open(&self, tensor: &TensorInfo) -> Arc<dyn ByteSource> {
        Arc::new(Bytes(self.bytes[&tensor.name].clone()))
    }
}

impl Memory {
    fn of(file: &Arc<ModelFile>) -> Memory {
        let bytes =
            file.tensors().iter().map(|t| (t.name.clone(), Arc::new(file.mapped(t).to_vec()))).collect();
        Memory { naming: FileTensors(file.clone()).naming(), tensors: file.tensors().to_vec(), bytes }
    }

    fn take(&mut self, name: &str) -> (TensorInfo, Vec<u8>) {
        let at = self.tensors.iter().position(|t| t.name == name).unwrap_or_else(|| panic!("{name}"));
        (self.tensors.remove(at), self.bytes.remove(name).expect("bytes").to_vec())
    }

    fn put(&mut self, name: String, like: &TensorInfo, shape: Vec<usize>, bytes: Vec<u8>) {
        self.tensors.push(TensorInfo {
            name: name.clone(),
            shape,
            bytes: bytes.len() as u64,
            ..like.clone()
        });
        self.bytes.insert(name, Arc::new(bytes));
    }

    /// Experts as one tensor: gate and up of each side by side, down.
    fn fuse(&mut self, layers: usize) {
        for i in 0..layers {
            let one = |e: usize, m: &str| format!("model.layers.{i}.mlp.experts.{e}.{m}_proj.weight");
            let (mut both, mut downs, mut like) = (Vec::new(), Vec::new(), None);
            for e in 0..8 {
                both.extend(self.take(&one(e, "gate")).1);
                both.extend(self.take(&one(e, "up")).1);
                let (info, down) = self.take(&one(e, "down"));
                downs.extend(down);
                like = Some(info);
            }
            let like = like.expect("experts");
            let name = format!("model.layers.{i}.mlp.experts");
            self.put(format!("{name}.gate_up_proj"), &like, vec![8, 64, 64], both);
            self.put(format!("{name}.down_proj"), &like, vec![8, 64, 32], downs);
        }
    }

    /// Gate and up of stacked experts side by side.
    fn fuse_gguf(&mut self, layers: usize) {
        for i in 0..layers {
            let [(info, gate), (_, up)] =
                ["gate", "up"].map(|m| self.take(&format!("blk.{i}.ffn_{m}_exps.weight")));
            let half = gate.len() / 8;
            let both = gate.chunks(half).zip(up.chunks(half)).flat_map(|(g, u)| [g, u].concat()).collect();
            self.put(format!("blk.{i}.ffn_gate_up_exps.weight"), &info, vec![8, 64, 64], both);
        }
    }

    fn logits(&self, config: Config, prompt: &[u32]) -> Vec<f32> {
        let info = ModelInfo::new(config, self).expect("all tensors");
        assert_eq!(info.unexpected, Vec::<String>::new());
        let mut dev: Box<dyn Compute> = Box::new(cpu(2, true));
        let layout = layout(prompt.len(), 1, prompt.len());
        let model = Model::load_from(self, info, dev.as_mut(), &layout, &mut |_, _| ()).expect("a model");
        let mut bench = Bench { dev, model, batch: Default::default() };
        let id = bench.model.new_sequence().expect("a free sequence");
        bench.feed(id, prompt, prompt.len())
    }
}

#[test]
fn all_forms_of_experts_are_one_model() {
    for (path, fuse) in [
        (golden("qwen3_moe"), Memory::fuse as fn(&mut Memory, usize)),
        (golden("qwen3_moe").join("model.f32.gguf"), Memory::fuse_gguf),
    ] {
        let tiny = opened(&path, TempDir::new("mixture"));
        let prompt = tokens(9, 20, tiny.vocab);
        let config = Config::from_file(&tiny.file).expect("a config");
        let mut memory = Memory::of(&tiny.file);
        let apart = memory.logits(config.clone(), &prompt);
        fuse(&mut memory, 4);
        assert_same_bits(&memory.logits(config, &prompt), &apart, tiny.vocab, "fused");
    }
}

#[test]
fn what_is_wrong_with_experts_is_named() {
    let tiny = opened(&golden("qwen3_moe"), TempDir::new("mixture"));
    let config = Config::from_file(&tiny.file).expect("a config");
    let one = "model.layers.2.mlp.experts.5.up_proj.weight";
    let said = |memory: &Memory| ModelInfo::new(config.clone(), memory).expect_err("broken").to_string();
    let mut memory = Memory::of(&tiny.file);
    let (info, bytes) = memory.take(one);
    assert!(said(&memory).contains(one) && said(&memory).contains("missing"), "{}", said(&memory));
    memory.put(one.into(), &info, vec![64, 32], bytes.clone());
    assert!(said(&memory).contains(one) && said(&memory).contains("[64, 32]"), "{}", said(&memory));
    memory.take(one);
    let as_f16 = TensorInfo { format: Format::F16, ..info };
    memory.put(one.into(), &as_f16, vec![32, 64], bytes);
    assert!(said(&memory).contains(one) && said(&memory).contains("BF16"), "{}", said(&memory));
}

fn shape(experts: Option<ExpertShape>) -> DenseShape {
    DenseShape {
        vocab: 320,
        dim: 64,
        layers: 4,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        ffn: 160,
        ctx_train: 4096,
        rope_base: 1e6,
        experts,
        ..DenseShape::default()
    }
}

#[test]
fn shapes_of_mixtures_for_synthesis() {
    let experts = Some(ExpertShape { count: 8, top_k: 2, ff: 32 });
    let config =
        Config::dense("qwen3moe", &DenseShape { rms_eps: Some(1e-6), ..shape(experts) }).expect("a config");
    let from_file = opened(&golden("qwen3_moe").join("model.f32.gguf"), TempDir::new("mixture"));
    assert_eq!(config, Config::from_file(&from_file.file).expect("a config"));
    let slots = ModelInfo::slots_of(&config, Naming::Gguf).expect("slots");
    let gate = slots.iter().find(|s| s.name == "blk.3.ffn_gate_exps.weight").expect("experts");
    assert_eq!((gate.kind, gate.rows, gate.cols), (WeightKind::Experts { count: 8 }, 8 * 32, 64));
    assert_eq!(gate.shape, [8, 32, 64]);
    let lfm2 = Config::dense("lfm2moe", &shape(experts)).expect("a config");
    assert!(lfm2.layers[3].experts.is_some() && lfm2.layers[0].experts.is_none());
    let refused =
        |arch, experts| Config::dense(arch, &shape(experts)).expect_err("no such shape").to_string();
    assert!(refused("qwen3", experts).contains("no mixtures"));
    let too_many = Some(ExpertShape { count: 8, top_k: 9, ff: 32 });
    assert!(refused("qwen3moe", too_many).contains("9 of 8"));
}

#[test]
fn a_layout_of_a_real_shape_is_counted_and_not_loaded() {
    let experts = Some(ExpertShape { count: 128, top_k: 8, ff: 768 });
    let real = DenseShape {
        vocab: 151_936,
        dim: 2048,
        layers: 48,
        heads: 32,
        kv_heads: 4,
        head_dim: 128,
        ffn: 6144,
        experts,
        ..shape(None)
    };
    let config = Config::dense("qwen3moe", &real).expect("30B-A3B");
    let slots = ModelInfo::slots_of(&config, Naming::Gguf).expect("slots");
    let weights: u64 = slots.iter().map(|s| s.rows as u64 * s.cols as u64).sum();
    assert!((30_000_000_000..31_000_000_000).contains(&weights), "{weights}");
}

/// A golden folder whose config.json was changed.
fn changed(name: &str, change: impl FnOnce(&mut serde_json::Value)) -> Tiny {
    let dir = TempDir::new("mixture");
    std::fs::copy(golden(name).join("model.safetensors"), dir.join("model.safetensors")).expect("a copy");
    let text = std::fs::read_to_string(golden(name).join("config.json")).expect("config.json");
    let mut json = serde_json::from_str(&text).expect("json");
    change(&mut json);
    std::fs::write(dir.join("config.json"), json.to_string()).expect("writable");
    let file = Arc::new(ModelFile::open(dir.path()).expect("a folder"));
    Tiny { dir, file, vocab: 320 }
}

fn config(name: &str, change: impl FnOnce(&mut serde_json::Value)) -> hob_model::Result<Config> {
    Config::from_file(&changed(name, change).file)
}

#[test]
fn lfm2_widths_and_kinds_are_read_in_every_dialect() {
    let plain = config("lfm2", |_| ()).expect("a config");
    // 2/3 of 225 is 150, rounded up to 160.
    let adjusted = config("lfm2", |json| {
        json["block_auto_adjust_ff_dim"] = true.into();
        json["intermediate_size"] = 225.into();
        json["block_multiple_of"] = 32.into();
        json["layer_types"] = serde_json::Value::Null;
        json["full_attn_idxs"] = serde_json::json!([2, 4]);
        json["rope_parameters"] = serde_json::Value::Null;
        json["rope_theta"] = 1e6.into();
    });
    assert_eq!(adjusted.expect("a config"), plain);
    let tied = config("lfm2", |json| {
        json.as_object_mut().expect("an object").remove("tie_word_embeddings");
    });
    assert!(tied.expect("a config").tied, "as the published code assumes");
}

/// The fixture's last block as if it were one that predicts further tokens.
#[test]
fn blocks_that_draft_are_left_out() {
    let tiny = opened(&golden("glm4_moe").join("model.f32.gguf"), TempDir::new("mixture"));
    let with = |blocks: u32| {
        let change = |writer: &mut Writer| {
            writer.set("glm4moe.nextn_predict_layers", blocks);
        };
        ModelInfo::read(&rewritten(&tiny, change, |_| true))
    };
    let info = with(1).expect("a model");
    assert_eq!((info.config.layers.len(), info.config.drafting), (3, 1));
    assert_eq!(info.unexpected, [""; 0]);
    assert!(info.slots().all(|(slot, _)| !slot.name.starts_with("blk.3.")));
    let error = with(4).expect_err("no layer left").to_string();
    assert!(error.contains("glm4moe.nextn_predict_layers"), "{error}");
    // A config.json does not count them: here the last block's tensors are one too many.
    let fewer = |drafting: u32| {
        let changed = changed("glm4_moe", |json| {
            json["num_hidden_layers"] = 3.into();
            json["num_nextn_predict_layers"] = drafting.into();
        });
        ModelInfo::read(&changed.file).expect("a model").unexpected
    };
    assert_eq!(fewer(1), [""; 0]);
    assert!(fewer(0).iter().any(|name| name.starts_with("model.layers.3.")));
}

#[test]
fn keys_of_mixtures_that_cannot_be_computed_are_named() {
    let refused = |name: &str, key: &str, value: serde_json::Value| {
        let error = config(name, |json| json[key] = value).expect_err(key).to_string();
        assert!(error.contains(key), "{error}");
    };
    refused("qwen3_moe", "decoder_sparse_step", 0.into());
    refused("qwen3_moe", "mlp_only_layers", "all".into());
    refused("qwen3_moe", "shared_expert_intermediate_size", 32.into());
    refused("qwen3_moe", "moe_intermediate_size", serde_json::Value::Null);
    refused("glm4_moe", "first_k_dense_replace", serde_json::Value::Null);
    refused("glm4_moe", "n_shared_experts", (1u64 << 40).into());
    refused("glm4_moe", "use_qk_norm", "some".into());
    refused("mixtral", "num_experts_per_tok", serde_json::Value::Null);
    refused("lfm2", "layer_types", serde_json::json!(["conv"]));
    refused("lfm2", "layer_types", serde_json::json!(["conv", "conv", "mamba", "conv", "conv", "conv"]));
    refused("lfm2", "conv_bias", true.into());
    let error = config("qwen3_moe", |json| json["num_experts_per_tok"] = 9.into()).expect_err("9 of 8");
    assert!(error.to_string().contains("9 of 8"), "{error}");
    let error = config("lfm2", |json| json["conv_L_cache"] = 1.into()).expect_err("no memory");
    assert!(error.to_string().contains("taps"), "{error}");
    // Dense layers between mixtures are read, and then miss their tensors.
    let mixed = changed("qwen3_moe", |json| json["mlp_only_layers"] = serde_json::json!([1]));
    let layers = Config::from_file(&mixed.file).expect("a config").layers;
    assert_eq!([0, 1, 2].map(|i: usize| layers[i].experts.is_some()), [true, false, true]);
    let error = ModelInfo::read(&mixed.file).expect_err("no such matrix").to_string();
    assert!(error.contains("model.layers.1.mlp.gate_proj.weight"), "{error}");
}
