//! Models that remember a latent: shared and forked prefixes, images, memory by hand, configs in every dialect, and older
//! files; in formats that their widths allow.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::*;
use hob_compute::Compute;
use hob_files::ModelFile;
use hob_files::gguf_write::Writer;
use hob_model::config::{DenseShape, ExpertShape};
use hob_model::{
    Config, Image, KvLayout, KvPair, LatentConfig, LayerState, Layout, Mixer, Model, ModelInfo, Naming,
};
use hob_quant::{Format, KvFormat, encode_row};
use hob_testkit::rng::Rng;
use hob_testkit::temp::TempDir;

const ALL: [&str; 2] = ["deepseek_v2_lite", "deepseek_v3"];

/// A small V3 in form whose latent and rotated dimensions are whole groups of packed formats.
fn wide() -> Tiny {
    let latent = LatentConfig { q_rank: Some(48), rank: 64, nope: 16, rotary: 32, value: 24 };
    let shape = DenseShape {
        vocab: 320,
        dim: 64,
        layers: 2,
        heads: 5,
        ffn: 96,
        ctx_train: 4096,
        rope_base: 1e4,
        experts: Some(ExpertShape { count: 4, top_k: 2, ff: 32 }),
        latent: Some(latent),
        ..DenseShape::default()
    };
    let config = Config::dense("deepseek2", &shape).expect("a config");
    let mut writer = Writer::new();
    writer.set("general.architecture", "deepseek2");
    for (key, value) in [
        ("block_count", 2u32),
        ("context_length", 4096),
        ("embedding_length", 64),
        ("feed_forward_length", 96),
        ("attention.head_count", 5),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 96),
        ("attention.value_length", 64),
        ("attention.key_length_mla", 48),
        ("attention.value_length_mla", 24),
        ("attention.q_lora_rank", 48),
        ("attention.kv_lora_rank", 64),
        ("rope.dimension_count", 32),
        ("expert_count", 4),
        ("expert_used_count", 2),
        ("expert_shared_count", 2),
        ("expert_feed_forward_length", 32),
        ("leading_dense_block_count", 1),
    ] {
        writer.set(&format!("deepseek2.{key}"), value);
    }
    writer.set("deepseek2.attention.layer_norm_rms_epsilon", 1e-5f32);
    writer.set("deepseek2.rope.freq_base", 1e4f32);
    let (mut rng, mut data, mut names) = (Rng::new(1), Vec::new(), Vec::new());
    for slot in ModelInfo::slots_of(&config, Naming::Gguf).expect("slots") {
        let part = slot.stacked.as_ref().map(|s| s.forms[0][0].clone());
        let (name, shape) = part.map_or((slot.name, slot.shape), |part| (part.name, part.shape));
        if names.contains(&name) {
            continue;
        }
        writer.tensor(&name, Format::F32, &shape).expect("a tensor");
        let cols = *shape.last().expect("a dimension") as f32;
        let norm = shape.len() == 1;
        let mut values = rng.normal_vec(shape.iter().product(), if norm { 0.2 } else { 1.2 / cols.sqrt() });
        values.iter_mut().filter(|_| norm).for_each(|v| *v += 1.0);
        data.push(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
        names.push(name);
    }
    let dir = TempDir::new("latent");
    let path = dir.join("wide.gguf");
    writer.save(&path, &data.iter().map(Vec::as_slice).collect::<Vec<_>>()).expect("writable");
    let tiny = opened(&path, dir);
    assert_eq!(Config::from_file(&tiny.file).expect("a config").layers, config.layers);
    tiny
}

fn formats() -> [KvLayout; 3] {
    [KvFormat::F16, KvFormat::Q8, KvFormat::Q4].map(|f| KvLayout::uniform(KvPair::both(f)))
}

#[test]
fn one_prompt_has_one_set_of_bits_in_every_format() {
    let tiny = wide();
    let prompt = tokens(1, 300, tiny.vocab);
    for kv in formats() {
        let run = |kind: usize, chunk: usize| {
            let mut bench =
                Bench::of(&tiny, device(kind), &Layout { kv: kv.clone(), ..layout(300, 1, chunk) });
            let id = bench.open();
            bench.feed(id, &prompt, chunk)
        };
        let whole = run(2, 300);
        for chunk in [1, 7, 64] {
            assert_same_bits(&run(2, chunk), &whole, tiny.vocab, &format!("{kv:?}, chunks of {chunk}"));
        }
        let mut oracle = Bench::of(
            &tiny,
            Box::new(hob_compute::reference::Reference::new(false)),
            &Layout { kv: kv.clone(), ..layout(300, 1, 64) },
        );
        let id = oracle.open();
        let expected = oracle.feed(id, &prompt[..90], 64);
        assert_same_bits(&whole[..expected.len()], &expected, tiny.vocab, &format!("{kv:?}, the oracle"));
    }
}

#[test]
fn shared_prefixes_and_forks_continue_bit_by_bit() {
    let tiny = wide();
    let prompt = tokens(2, 600, tiny.vocab);
    for kv in formats() {
        let of =
            |sequences, cached_tokens| Layout { kv: kv.clone(), ..cached(640, sequences, cached_tokens) };
        let whole = {
            let mut bench = Bench::of(&tiny, device(2), &of(1, 0));
            let id = bench.open();
            bench.feed(id, &prompt, 64)
        };
        let mut bench = Bench::of(&tiny, device(2), &of(2, 2048));
        let first = bench.open();
        bench.turn(first, &prompt, 64);
        bench.model.free_sequence(first).expect("it lives");
        for split in [1, 63, 256, 300, 513, 599] {
            let id = bench.open();
            assert_eq!(bench.resume(id, &prompt, split), split, "KV of any length can be shared");
            let rest = bench.feed(id, &prompt[split..], 61);
            assert_continues(&rest, &whole, split, tiny.vocab, &format!("{kv:?}, split {split}"));
            bench.model.free_sequence(id).expect("it lives");
        }
    }
    scramble(&tiny, &Layout { kv: formats()[2].clone(), ..cached(640, 3, 1024) }, 3, 40);
}

/// What is saved and brought back into another load of the model, as after a restart, continues as if it had stayed.
#[test]
fn images_continue_bit_by_bit_in_another_process_of_the_model() {
    for (tiny, kinds) in [(wide(), vec![1, 2]), (golden("deepseek_v3", false), vec![0, 1, 2])] {
        let prompt = tokens(3, 330, tiny.vocab);
        for (kind, kv) in kinds.into_iter().flat_map(|kind| formats().map(|kv| (kind, kv))) {
            let of = Layout { kv: kv.clone(), ..cached(400, 1, 0) };
            let mut first = Bench::of(&tiny, device(kind), &of);
            let id = first.open();
            first.feed(id, &prompt[..300], 64);
            let mut second = Bench::of(&tiny, device(kind), &of);
            let twin = second.open();
            for range in [0..256, 256..300] {
                let bytes = first.model.export(first.dev.as_mut(), id, range.clone()).expect("positions");
                let image = Image { tokens: &prompt, take: range.len(), range, bytes: &bytes };
                second.model.import(second.dev.as_mut(), twin, &image).expect("an image");
            }
            let (a, b) = (first.feed(id, &prompt[300..], 7), second.feed(twin, &prompt[300..], 7));
            assert_same_bits(&a, &b, tiny.vocab, &format!("device {kind}, {kv:?}"));
        }
    }
}

#[test]
fn the_device_holds_what_the_estimate_says_and_figures_are_those_by_hand() {
    let tiny = wide();
    let info = ModelInfo::read(&tiny.file).expect("a model");
    assert!(info.unexpected.is_empty(), "{:?}", info.unexpected);
    assert_eq!(info.states(), [LayerState::Kv { heads: 1, dim: 96, latent: Some(64) }; 2]);
    let both = |k, v| KvLayout::uniform(KvPair { k, v });
    // One row of 96 values per layer: f16; three groups of 34 bytes; of 18. The finer of two formats is the row's.
    let bytes = |k, v| info.kv_bytes_per_token(&both(k, v));
    assert_eq!(bytes(KvFormat::F16, KvFormat::Q4), 2 * 96 * 2);
    assert_eq!(bytes(KvFormat::Q8, KvFormat::Q4), 2 * 3 * 34);
    assert_eq!(bytes(KvFormat::Q4, KvFormat::F16), 2 * 96 * 2);
    assert_eq!(bytes(KvFormat::Q4, KvFormat::Q4), 2 * 3 * 18);
    for kv in formats() {
        let layout = Layout { kv, ..cached(1000, 2, 1024) };
        let bill = info.footprint(&layout);
        assert!(bill.lines.iter().any(|l| l.name.contains("latent")), "{:?}", bill.lines);
        let mut dev = cpu(1, false);
        let model = Model::load(tiny.file.clone(), &mut dev, &layout, &mut |_, _| ()).expect("a model");
        let held = dev.held_bytes();
        assert_eq!((held.pages, held.weights), (bill.kv, bill.weights), "{:?}", layout.kv);
        assert_eq!(held.buffers, bill.scratch);
        model.unload(&mut dev).expect("it was loaded");
    }
    // The golden latents are 24 and 40 wide: no whole groups, so that packed formats become f16.
    for name in ALL {
        let info = ModelInfo::read(&golden(name, true).file).expect("a model");
        assert!(info.unexpected.is_empty(), "{:?}", info.unexpected);
        let given = info.kv_pair(&both(KvFormat::Q4, KvFormat::Q4), 1);
        assert_eq!(given, KvPair::both(KvFormat::F16));
    }
    let v2 = ModelInfo::read(&golden("deepseek_v2_lite", true).file).expect("a model");
    assert_eq!(v2.kv_bytes_per_token(&KvLayout::default()), 27 * 24 * 2);
    // Of 4 heads, scores over 24 dimensions and sums over 16.
    let at = |position| v2.macs_per_token(position);
    assert_eq!(at(10) - at(9), 27 * 4 * (24 + 16));
}

#[test]
fn both_files_are_one_model() {
    for name in ALL {
        let [a, b] = [false, true].map(|gguf| {
            let tiny = golden(name, gguf);
            logits(&tiny, cpu(2, true), &tokens(5, 60, tiny.vocab), 60)
        });
        assert!(nmse(&a, &b) < 1e-11, "{name}: {}", nmse(&a, &b));
    }
}

/// `name` as converters wrote it before there was an absorbed form: one matrix, and the heads' own dimensions.
fn older(name: &str, format: Format) -> Tiny {
    let source = golden(name, true).file;
    let (mut writer, mut data) = (Writer::new(), Vec::new());
    source.metadata().copy_to(&mut writer);
    let number = |key: &str| {
        let value = source.metadata().u64(&format!("deepseek2.{key}")).expect("readable").expect("a number");
        u32::try_from(value).expect("small")
    };
    let (heads, key, value) = (
        number("attention.head_count"),
        number("attention.key_length_mla"),
        number("attention.value_length_mla"),
    );
    let (rank, nope) = (number("attention.kv_lora_rank"), key - number("rope.dimension_count"));
    for (name, number) in
        [("attention.head_count_kv", heads), ("attention.key_length", key), ("attention.value_length", value)]
    {
        writer.set(&format!("deepseek2.{name}"), number);
    }
    // As good as absent.
    for name in ["attention.key_length_mla", "attention.value_length_mla"] {
        writer.set(&format!("deepseek2.{name}"), 0u32);
    }
    let floats = |name: &str| -> Vec<f32> {
        let bytes = source.mapped(source.tensor(name).expect("a tensor"));
        bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    };
    let [heads, rank, nope, value] = [heads, rank, nope, value].map(|n| n as usize);
    for tensor in source.tensors() {
        if tensor.name.contains("attn_v_b") {
            continue;
        }
        let Some(layer) = tensor.name.strip_suffix(".attn_k_b.weight") else {
            writer.tensor(&tensor.name, tensor.format, &tensor.shape).expect("a tensor");
            data.push(source.mapped(tensor).to_vec());
            continue;
        };
        let (k, v) = (floats(&tensor.name), floats(&format!("{layer}.attn_v_b.weight")));
        let mut rows = Vec::new();
        for head in 0..heads {
            for n in 0..nope {
                rows.push((0..rank).map(|r| k[(head * rank + r) * nope + n]).collect::<Vec<f32>>());
            }
            rows.extend((0..value).map(|n| v[(head * value + n) * rank..][..rank].to_vec()));
        }
        writer.tensor(&format!("{layer}.attn_kv_b.weight"), format, &[rows.len(), rank]).expect("a tensor");
        let mut bytes = vec![0u8; rows.len() * format.row_bytes(rank).expect("whole blocks")];
        let each = bytes.len() / rows.len();
        for (row, out) in rows.iter().zip(bytes.chunks_mut(each)) {
            encode_row(format, row, out).expect("finite");
        }
        data.push(bytes);
    }
    let dir = TempDir::new("older");
    let path = dir.join("older.gguf");
    writer.save(&path, &data.iter().map(Vec::as_slice).collect::<Vec<_>>()).expect("writable");
    opened(&path, dir)
}

#[test]
fn older_files_without_the_absorbed_matrices_are_read() {
    for name in ALL {
        let (old, new) = (older(name, Format::F32), golden(name, true));
        assert_eq!(
            Config::from_file(&old.file).expect("a config"),
            Config::from_file(&new.file).expect("one")
        );
        let prompt = tokens(6, 40, 320);
        let [a, b] = [old, new].map(|tiny| logits(&tiny, cpu(1, true), &prompt, 40));
        assert_same_bits(&a, &b, 320, name);
    }
    // Turned, blocks along rows are no blocks any more: the matrix is kept in f16, which is finer.
    let (packed, plain) = (older("deepseek_v3", Format::Q8_0), golden("deepseek_v3", true));
    let info = ModelInfo::read(&packed.file).expect("a model");
    let of = |name: &str| info.slots().find(|(s, _)| s.name.contains(name)).expect(name).1;
    assert_eq!(of("blk.1.attn_k_b"), Format::F16);
    let prompt = tokens(7, 40, 320);
    let [a, b] = [packed, plain].map(|tiny| logits(&tiny, cpu(1, true), &prompt, 40));
    let apart = nmse(&a, &b);
    assert!((1e-9..1e-3).contains(&apart), "{apart}");
}

/// A golden folder with another config.
fn changed(name: &str, change: impl FnOnce(&mut serde_json::Value)) -> hob_model::Result<ModelInfo> {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let dir = TempDir::new("latent");
    std::fs::copy(from.join("model.safetensors"), dir.join("model.safetensors")).expect("a copy");
    let text = std::fs::read_to_string(from.join("config.json")).expect("config.json");
    let mut json = serde_json::from_str(&text).expect("json");
    change(&mut json);
    std::fs::write(dir.join("config.json"), json.to_string()).expect("writable");
    ModelInfo::read(&Arc::new(ModelFile::open(dir.path()).expect("a folder")))
}

#[test]
fn configs_are_read_in_every_dialect() {
    let v3 = changed("deepseek_v3", |_| ()).expect("a model").config;
    // As files of the hub: no head_dim, the scaling beside the base, and functions that the newer dialect leaves out.
    let older = changed("deepseek_v3", |json| {
        let fields = json.as_object_mut().expect("an object");
        let mut ropes = fields.remove("rope_parameters").expect("it has them");
        let of = ropes.as_object_mut().expect("an object");
        fields.insert("rope_theta".into(), of.remove("rope_theta").expect("a base"));
        let kind = of.remove("rope_type").expect("a kind");
        of.insert("type".into(), kind);
        fields.insert("rope_scaling".into(), ropes);
        for key in ["head_dim", "qk_head_dim", "rope_interleave", "scoring_func", "topk_method"] {
            fields.remove(key);
        }
    });
    assert_eq!(older.expect("a model").config, v3);
    // GLM-4.7-Flash goes by another name and has as many heads as do not divide its width.
    let glm = changed("deepseek_v3", |json| {
        json["model_type"] = "glm4_moe_lite".into();
        json["scoring_func"] = serde_json::Value::Null;
    });
    assert_eq!(glm.expect("a model").config.layers, v3.layers);
    let latent = LatentConfig { q_rank: Some(24), rank: 32, nope: 16, rotary: 8, value: 16 };
    assert_eq!(v3.layers[2].mixer, Mixer::Latent(latent));
    let stretch = 0.1f64 * 4f64.ln() + 1.0;
    assert!((f64::from(v3.layers[0].scale) - stretch * stretch / 24f64.sqrt()).abs() < 1e-7);
    assert_eq!((v3.ropes[0].magnitude, v3.ropes[0].rotary), (1.0, 8));
    // V2 limits groups by their best expert, V3 by their two best.
    let v2 = changed("deepseek_v2_lite", |json| {
        json["topk_method"] = "group_limited_greedy".into();
        json["n_group"] = 4.into();
        json["topk_group"] = 2.into();
    });
    let groups = |config: &Config| config.layers[1].experts.as_ref().expect("experts").routing.groups;
    let v2 = v2.expect("a model").config;
    assert_eq!(groups(&v2).expect("groups").score, hob_compute::GroupScore::Best);
    assert_eq!(groups(&v3).expect("groups").score, hob_compute::GroupScore::BestTwo);
    let (v2, v3) = (v2.layers[1].experts.as_ref(), v3.layers[1].experts.as_ref());
    assert!(v2.is_some_and(|e| !e.bias && e.routing.normalize.is_none() && e.shared == Some(32)));
    assert!(v3.is_some_and(|e| e.bias && e.routing.normalize.is_some() && e.shared == Some(32)));
}

#[test]
fn what_cannot_be_computed_is_named() {
    let refused = |change: &dyn Fn(&mut serde_json::Value), part: &str| {
        let message = changed("deepseek_v3", change).expect_err("refused").to_string();
        assert!(message.contains(part), "expected '{part}' in: {message}");
    };
    for key in ["kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "first_k_dense_replace"]
    {
        refused(&|json| json[key] = serde_json::Value::Null, key);
    }
    refused(&|json| json["scoring_func"] = "tanh".into(), "scoring_func");
    refused(&|json| json["topk_method"] = "lottery".into(), "topk_method");
    refused(&|json| json["attention_bias"] = true.into(), "attention_bias");
    refused(&|json| json["moe_layer_freq"] = 2.into(), "moe_layer_freq");
    refused(&|json| json["first_k_dense_replace"] = 5.into(), "first_k_dense_replace");
    refused(&|json| json["kv_lora_rank"] = 0.into(), "kv_lora_rank");
    refused(&|json| json["kv_lora_rank"] = 31.into(), "kv_a_proj_with_mqa");
    refused(&|json| json["qk_rope_head_dim"] = 7.into(), "rotary");
    refused(&|json| json["v_head_dim"] = 15.into(), "o_proj");
    refused(&|json| json["n_shared_experts"] = (1u64 << 40).into(), "n_shared_experts");
    refused(&|json| json["topk_group"] = 9.into(), "groups");
    refused(&|json| json["num_attention_heads"] = (1u64 << 23).into(), "heads");
    let tiny = golden("deepseek_v3", true);
    let error = |change: &dyn Fn(&mut Writer), keep: &dyn Fn(&str) -> bool| {
        let file = rewritten(&golden("deepseek_v3", true), change, keep);
        ModelInfo::read(&file).expect_err("refused").to_string()
    };
    let message = error(&|_| (), &|name| name != "blk.2.attn_v_b.weight");
    assert!(
        message.contains("blk.2.attn_v_b.weight") || message.contains("blk.2.attn_kv_b.weight"),
        "{message}"
    );
    let message = error(&|w| _ = w.set("deepseek2.attention.key_length_mla", 8u32), &|_| true);
    assert!(message.contains("deepseek2.attention.key_length_mla"), "{message}");
    let message = error(&|w| _ = w.set("deepseek2.attention.kv_lora_rank", 16u32), &|_| true);
    assert!(message.contains("attn_kv_a_mqa"), "{message}");
    // A sigmoid router that names no bias has none.
    let file = rewritten(&tiny, |_| (), |name| !name.contains("exp_probs_b"));
    let config = ModelInfo::read(&file).expect("a model").config;
    assert!(config.layers[1].experts.as_ref().is_some_and(|e| !e.bias));
}

#[test]
fn shapes_for_synthesis() {
    let real = DenseShape {
        vocab: 102_400,
        dim: 2048,
        layers: 27,
        heads: 16,
        kv_heads: 1,
        head_dim: 128,
        ffn: 10_944,
        ctx_train: 163_840,
        rope_base: 1e4,
        experts: Some(ExpertShape { count: 64, top_k: 6, ff: 1408 }),
        latent: Some(LatentConfig { q_rank: None, rank: 512, nope: 128, rotary: 64, value: 128 }),
        ..DenseShape::default()
    };
    let config = Config::dense("deepseek2", &real).expect("V2-Lite");
    let slots = ModelInfo::slots_of(&config, Naming::Gguf).expect("slots");
    let weights: u64 = slots.iter().map(|s| s.rows as u64 * s.cols as u64).sum();
    assert!((15_600_000_000..15_800_000_000).contains(&weights), "{weights}");
    let refused = |shape: &DenseShape, arch| Config::dense(arch, shape).expect_err("refused").to_string();
    assert!(refused(&real, "qwen3moe").contains("latent"));
    let without = DenseShape { latent: None, experts: None, ..real.clone() };
    Config::dense("deepseek2", &without).expect("ordinary heads where no latent is given");
}
