//! Models of state spaces (Mamba-2, Nemotron-H): any batches give the same text, state comes back bit by bit, memory is
//! what was said, and what a file may say otherwise is read or refused.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::*;
use hob_compute::reference::Reference;
use hob_compute::{Compute, SsmShape};
use hob_files::ModelFile;
use hob_files::gguf_write::Writer;
use hob_model::config::{DenseShape, ExpertShape};
use hob_model::{Config, KvLayout, LayerState, Mixer, Model, ModelInfo, Naming};
use hob_quant::Format;
use hob_testkit::temp::TempDir;

const ALL: [&str; 3] = ["mamba2", "nemotron_h", "nemotron_h_moe"];

/// Largest difference, over the largest logit.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let most = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / most
}

fn best(row: &[f32]) -> usize {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("a vocabulary")
}

/// Within 1e-5 of the largest logit, and the same token wherever it leads.
fn assert_near(found: &[f32], expected: &[f32], vocab: usize, what: &str) {
    let apart = apart(found, expected);
    println!("{what}: {apart:.2e} of the largest logit");
    assert!(apart < 1e-5, "{what}: {apart}");
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
    const LENGTHS: [usize; 2] = [90, 70];
    for name in ALL {
        let tiny = golden(name, false);
        let prompts = [0, 1].map(|s| tokens(2 + s as u64, LENGTHS[s], tiny.vocab));
        let shares = [[64, 2], [1, 62], [20, 1], [1, 1], [4, 4]];
        // Alone in the same pieces: which form computes a piece depends on nothing else.
        let run = |only: Option<usize>| {
            let mut bench = Bench::new(&tiny, cpu(2, false), &layout(96, 2, 128));
            let ids = [0, 1].map(|_| bench.open());
            let (mut out, mut done) = (vec![Vec::new(); 2], [0; 2]);
            for shares in shares {
                let parts = [0, 1].map(|s| done[s]..LENGTHS[s].min(done[s] + shares[s]));
                let takes = |s: &usize| !parts[*s].is_empty() && only.is_none_or(|only| only == *s);
                let order: Vec<usize> = [1, 0].into_iter().filter(takes).collect();
                order.iter().for_each(|&s| bench.add(ids[s], &prompts[s][parts[s].clone()]));
                let rows = if order.is_empty() { Vec::new() } else { bench.step().expect("a step") };
                let mut rest = rows.as_slice();
                for &s in &order {
                    let (mine, others) = rest.split_at(parts[s].len() * tiny.vocab);
                    out[s].extend_from_slice(mine);
                    rest = others;
                }
                done = [0, 1].map(|s| parts[s].end);
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
        for tiny in [golden(name, true), quantised(name, Format::Q8_0)] {
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
        assert_near(&a, &b, 320, name);
    }
}

/// What was saved goes on bit by bit: in the same slot, in another, and beside one that went on meanwhile. A model without
/// attention has no positions to save.
#[test]
fn a_snapshot_continues_bit_by_bit() {
    for name in ALL {
        let tiny = golden(name, true);
        let text = tokens(6, 150, tiny.vocab);
        let mut bench = Bench::new(&tiny, cpu(2, false), &layout(160, 2, 64));
        let first = bench.open();
        bench.feed(first, &text[..100], 64);
        let snapshot = bench.model.snapshot(bench.dev.as_mut(), first).expect("a state");
        assert_eq!(snapshot.len(), bench.model.info().snapshot_bytes(0));
        let image = bench.model.export(bench.dev.as_mut(), first, 0..100).expect("positions");
        assert_eq!(image.is_empty(), name == "mamba2");
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
    for name in ["mamba2", "nemotron_h_moe"] {
        let tiny = golden(name, true);
        let text = tokens(8, 300, tiny.vocab);
        let mut bench = Bench::new(&tiny, cpu(2, false), &cached(320, 2, 1024));
        let (first, second) = (bench.open(), bench.open());
        bench.turn(first, &text[..128], 64);
        bench.turn(first, &text[..192], 64);
        let (_, expected) = bench.turn(first, &text, 64);
        assert_eq!(bench.resume(second, &text, 299), 192, "{name}: the last end before the rest");
        let found = bench.feed(second, &text[192..], 64);
        assert_same_bits(&found, &expected[expected.len() - found.len()..], tiny.vocab, name);
        let edited: Vec<u32> = text[..150].iter().chain(&tokens(9, 50, tiny.vocab)).copied().collect();
        assert_eq!(bench.resume(first, &edited, 199), 128, "{name}: the end before the edit");
    }
}

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
            // A state of 32 x 16 for each of 8 heads, and 3 rows of 256 before the convolution.
            let layers = if name == "mamba2" { 4 } else { 3 };
            assert_eq!(bill.state, layout.sequences as u64 * layers * 4 * (8 * 32 * 16 + 3 * 256));
            assert_eq!(bill.kv == 0, name == "mamba2");
            model.unload(&mut dev).expect("unloaded");
            assert_eq!(dev.held_bytes(), Default::default());
        }
    }
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
    assert_near(&a, &b, 320, "latent");
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
