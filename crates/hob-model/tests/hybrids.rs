//! Models whose layers are mostly delta rules: any batches give the same text, state comes back bit by bit, and what a file
//! may say otherwise is read or refused.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::*;
use hob_compute::reference::Reference;
use hob_compute::{Compute, DeltaShape, KeyHeads, WeightKind};
use hob_files::ModelFile;
use hob_files::gguf_write::Writer;
use hob_model::config::{DenseShape, ExpertShape};
use hob_model::{
    Config, DeltaConfig, DeltaStored, KvLayout, LayerState, Mixer, Model, ModelInfo, Naming, OutputGate,
};
use hob_quant::Format;
use hob_testkit::temp::TempDir;

const ALL: [&str; 3] = ["qwen3_5", "qwen3_5_moe", "qwen3_next"];

/// Largest difference, over the largest logit.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let most = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / most
}

fn best(row: &[f32]) -> usize {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("a vocabulary")
}

/// Within rounding (the reference's own f32 is up to 1e-4 from its f64 here), and the same token wherever it leads.
fn assert_near(found: &[f32], expected: &[f32], vocab: usize, what: &str) {
    let apart = apart(found, expected);
    assert!(apart < 3e-5, "{what}: {apart}");
    for (at, (f, e)) in found.chunks(vocab).zip(expected.chunks(vocab)).enumerate() {
        let (first, mine) = (best(e), best(f));
        assert!(first == mine || e[first] - e[mine] < 1e-4, "{what}: token at {at}");
    }
}

#[test]
fn any_batches_give_the_same_text_and_cuts_at_chunks_the_same_bits() {
    for name in ALL {
        let tiny = golden(name, true);
        let prompt = tokens(1, 200, tiny.vocab);
        let whole = logits(&tiny, cpu(1, true), &prompt, 200);
        for (threads, chunk) in [(2, 1), (1, 7), (2, 64), (3, 128), (2, 200)] {
            let cut = logits(&tiny, cpu(threads, true), &prompt, chunk);
            let what = format!("{name}, {threads} threads, chunks of {chunk}");
            match chunk {
                1 | 7 => assert_near(&cut, &whole, tiny.vocab, &what),
                _ => assert_same_bits(&cut, &whole, tiny.vocab, &what),
            }
        }
    }
}

#[test]
fn company_does_not_change_a_bit() {
    const LENGTHS: [usize; 3] = [90, 5, 70];
    for name in ALL {
        let tiny = golden(name, false);
        let prompts: Vec<_> = (0..3).map(|s| tokens(2 + s as u64, LENGTHS[s], tiny.vocab)).collect();
        let shares = [[64, 1, 2], [1, 1, 62], [20, 0, 1], [1, 3, 1], [4, 0, 4]];
        // Alone in the same pieces: which form computes a piece depends on nothing else.
        let run = |only: Option<usize>| {
            let mut bench = Bench::new(&tiny, cpu(2, false), &layout(96, 3, 128));
            let ids = [0, 1, 2].map(|_| bench.open());
            let mut out = vec![Vec::new(); 3];
            let mut done = [0; 3];
            for (turn, shares) in shares.iter().enumerate() {
                let order = if turn % 2 == 0 { [2, 0, 1] } else { [1, 0, 2] };
                let parts = [0, 1, 2].map(|s| done[s]..LENGTHS[s].min(done[s] + shares[s]));
                let takes = |s: &usize| !parts[*s].is_empty() && only.is_none_or(|only| only == *s);
                let order: Vec<usize> = order.into_iter().filter(takes).collect();
                order.iter().for_each(|&s| bench.add(ids[s], &prompts[s][parts[s].clone()]));
                if !order.is_empty() {
                    let rows = bench.step().expect("a step");
                    let mut rest = rows.as_slice();
                    for &s in &order {
                        let (mine, others) = rest.split_at(parts[s].len() * tiny.vocab);
                        out[s].extend_from_slice(mine);
                        rest = others;
                    }
                }
                done = [0, 1, 2].map(|s| parts[s].end);
            }
            out
        };
        let together = run(None);
        for (s, together) in together.iter().enumerate() {
            assert_same_bits(together, &run(Some(s))[s], tiny.vocab, &format!("{name}, sequence {s}"));
        }
    }
}

#[test]
fn the_cpu_gives_the_bits_of_the_oracle() {
    for name in ALL {
        for tiny in [golden(name, true), quantised(name, Format::Q8_0), quantised(name, Format::Q4_0)] {
            let prompt = tokens(4, 70, tiny.vocab);
            let oracle = logits(&tiny, Reference::new(false), &prompt, 64);
            let ours = logits(&tiny, cpu(2, false), &prompt, 64);
            assert_same_bits(&ours, &oracle, tiny.vocab, name);
        }
    }
}

#[test]
fn both_formats_are_one_model() {
    for name in ALL {
        let [a, b] = [false, true].map(|gguf| {
            let tiny = golden(name, gguf);
            logits(&tiny, cpu(2, true), &tokens(5, 60, tiny.vocab), 60)
        });
        // The converter rounds rates and norms once more.
        assert_near(&a, &b, 320, name);
    }
}

/// What was saved goes on bit by bit: in the same slot, in another, and beside one that went on meanwhile.
#[test]
fn a_snapshot_continues_bit_by_bit() {
    for name in ALL {
        let tiny = golden(name, true);
        let text = tokens(6, 150, tiny.vocab);
        let mut bench = Bench::new(&tiny, cpu(2, false), &layout(160, 2, 64));
        let first = bench.open();
        bench.feed(first, &text[..100], 64);
        let snapshot = bench.model.snapshot(bench.dev.as_mut(), first).expect("a state");
        assert_eq!(snapshot.len(), bench.model.info().snapshot_bytes(100));
        let image = bench.model.export(bench.dev.as_mut(), first, 0..100).expect("positions");
        let expected = bench.feed(first, &text[100..], 64);
        bench.model.truncate(first, 0).expect("always possible");
        let second = bench.open();
        // The first slot holds something else by then.
        bench.feed(first, &tokens(7, 33, tiny.vocab), 64);
        for id in [second, first] {
            bench.model.truncate(id, 0).expect("always possible");
            let image = hob_model::Image { tokens: &text, range: 0..100, take: 100, bytes: &image };
            bench.model.import(bench.dev.as_mut(), id, &image).expect("an image");
            bench.model.restore(bench.dev.as_mut(), id, 100, &snapshot).expect("a state of that size");
            let found = bench.feed(id, &text[100..], 64);
            assert_same_bits(&found, &expected, tiny.vocab, name);
        }
    }
}

/// Turns of a conversation, edited and taken up again: what was kept at their ends is found and goes on.
#[test]
fn kept_ends_are_resumed_bit_by_bit() {
    let tiny = golden("qwen3_5_moe", true);
    let text = tokens(8, 300, tiny.vocab);
    let mut bench = Bench::new(&tiny, cpu(2, false), &cached(320, 2, 1024));
    let (first, second) = (bench.open(), bench.open());
    bench.turn(first, &text[..128], 64);
    bench.turn(first, &text[..192], 64);
    let (_, expected) = bench.turn(first, &text, 64);
    assert_eq!(bench.resume(second, &text, 299), 192, "the last end before the rest");
    let found = bench.feed(second, &text[192..], 64);
    assert_same_bits(&found, &expected[expected.len() - found.len()..], tiny.vocab, "another sequence");
    let edited: Vec<u32> = text[..150].iter().chain(&tokens(9, 50, tiny.vocab)).copied().collect();
    assert_eq!(bench.resume(first, &edited, 199), 128, "the end before the edit");
}

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
fn the_estimate_is_what_the_device_holds() {
    for name in ALL {
        let tiny = golden(name, true);
        for layout in [layout(64, 1, 8), layout(300, 3, 32)] {
            let bill = ModelInfo::read(&tiny.file).expect("a model").footprint(&layout);
            let mut dev = cpu(2, false);
            let model = Model::load(tiny.file.clone(), &mut dev, &layout, &mut |_, _| ()).expect("a model");
            let held = dev.held_bytes();
            assert_eq!((held.pages, held.buffers), (bill.kv, bill.scratch + bill.state), "{name}");
            assert!(held.weights <= bill.weights, "{name}");
            // Three layers: a state of 16 x 16 for each of 4 heads, and 3 rows of 128 before the convolution.
            assert_eq!(bill.state, layout.sequences as u64 * 3 * 4 * (4 * 16 * 16 + 3 * 128));
            model.unload(&mut dev).expect("unloaded");
            assert_eq!(dev.held_bytes(), Default::default());
        }
    }
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
