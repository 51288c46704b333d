//! DeepSeek V4: one text in any batches and on any device, its state saved, brought back and taken back, and what its files
//! may not say.

mod common;

use std::sync::Arc;

use common::*;
use hob_compute::reference::Reference;
use hob_compute::{Compute, Placed};
use hob_files::ModelFile;
use hob_files::gguf_write::Writer;
use hob_model::{
    CompressedConfig, Config, EntryConfig, LayerState, Layout, Mixer, Model, ModelInfo, Placement,
};
use hob_quant::Format;

const NAME: &str = "deepseek_v4";

#[test]
fn any_batches_and_devices_give_the_same_bits() {
    for (gguf, exact) in [(false, false), (true, true)] {
        let tiny = golden(NAME, gguf);
        let prompt = tokens(1, 300, tiny.vocab);
        let whole = logits(&tiny, Reference::new(exact), &prompt, 300);
        for (threads, chunk) in [(1, 1), (2, 7), (2, 64), (3, 300)] {
            let cut = logits(&tiny, cpu(threads, exact), &prompt, chunk);
            let what = format!("{threads} threads, chunks of {chunk}, exact {exact}, GGUF {gguf}");
            assert_same_bits(&cut, &whole, tiny.vocab, &what);
        }
    }
}

#[test]
fn both_formats_are_one_model() {
    let [a, b] = [false, true].map(|gguf| {
        let tiny = golden(NAME, gguf);
        logits(&tiny, cpu(2, true), &tokens(5, 200, tiny.vocab), 64)
    });
    assert!(nmse(&a, &b) < 1e-10, "{}", nmse(&a, &b));
}

#[test]
fn quantised_matrices_are_the_oracles() {
    // Dimensions of 64, 32, 24 and 16: only some are whole blocks.
    let tiny = quantised(NAME, Format::Q8_0);
    let prompt = tokens(4, 150, tiny.vocab);
    let oracle = logits(&tiny, Reference::new(false), &prompt, 64);
    assert_same_bits(&logits(&tiny, cpu(2, false), &prompt, 50), &oracle, tiny.vocab, "Q8_0");
}

#[test]
fn company_does_not_change_a_bit() {
    const LENGTHS: [usize; 3] = [290, 5, 140];
    let tiny = golden(NAME, true);
    let prompts: Vec<_> = (0..3).map(|s| tokens(2 + s as u64, LENGTHS[s], tiny.vocab)).collect();
    let mut bench = Bench::new(&tiny, cpu(2, false), &layout(300, 3, 200));
    let ids = [0, 1, 2].map(|_| bench.open());
    let (mut done, mut found) = ([0; 3], vec![Vec::new(); 3]);
    for share in [[100, 1, 2], [1, 1, 62], [20, 0, 1], [60, 3, 1], [4, 0, 4], [105, 0, 70]] {
        let mut taken = Vec::new();
        for s in 0..3 {
            let end = LENGTHS[s].min(done[s] + share[s]);
            bench.add(ids[s], &prompts[s][done[s]..end]);
            taken.push(end - done[s]);
            done[s] = end;
        }
        let mut rows = bench.step().expect("a step").into_iter();
        for (found, taken) in found.iter_mut().zip(taken) {
            found.extend(rows.by_ref().take(taken * tiny.vocab));
        }
    }
    assert_eq!(done, LENGTHS);
    for (prompt, found) in prompts.iter().zip(&found) {
        let alone = logits(&tiny, cpu(1, false), prompt, prompt.len());
        assert_same_bits(found, &alone, tiny.vocab, "in company");
    }
}

/// Layers on another device, and experts apart from their layers: rows and streams cross.
#[test]
fn placed_layers_give_the_same_bits() {
    let tiny = golden(NAME, true);
    let prompt = tokens(3, 140, tiny.vocab);
    let expected = logits(&tiny, cpu(1, false), &prompt, 64);
    for placement in [
        Placement { layers: vec![0, 1, 1, 0], head: 1, ..Placement::default() },
        Placement { layers: vec![1; 4], experts: vec![0, 1, 0, 1], embed: 1, head: 0 },
    ] {
        let two: Vec<Box<dyn Compute>> = vec![Box::new(cpu(1, false)), Box::new(cpu(1, false))];
        let layout = Layout { placement, ..layout(150, 1, 64) };
        let mut bench = Bench::new(&tiny, Placed::new(two).expect("two devices"), &layout);
        let id = bench.open();
        let found = bench.feed(id, &prompt, 64);
        assert_same_bits(&found, &expected, tiny.vocab, "placed");
    }
}

#[test]
fn a_snapshot_continues_bit_by_bit() {
    let tiny = golden(NAME, true);
    let text = tokens(6, 290, tiny.vocab);
    for kept in [3, 130, 257] {
        let mut bench = Bench::new(&tiny, cpu(2, false), &layout(300, 2, 64));
        let first = bench.open();
        bench.feed(first, &text[..kept], 64);
        let snapshot = bench.model.snapshot(bench.dev.as_mut(), first).expect("a state");
        assert_eq!(snapshot.len(), bench.model.info().snapshot_bytes(kept));
        assert_eq!(bench.model.image_bytes(0..kept), 0, "there is nothing else");
        let expected = bench.feed(first, &text[kept..], 64);
        bench.model.truncate(first, 0).expect("always possible");
        let second = bench.open();
        bench.feed(first, &tokens(7, 33, tiny.vocab), 64);
        for id in [second, first] {
            bench.model.truncate(id, 0).expect("always possible");
            for from in (0..kept).step_by(256) {
                let range = from..kept.min(from + 256);
                let take = range.len();
                let image = hob_model::Image { tokens: &text, range, take, bytes: &[] };
                bench.model.import(bench.dev.as_mut(), id, &image).expect("an image");
            }
            bench.model.restore(bench.dev.as_mut(), id, kept, &snapshot).expect("a state of that size");
            assert_same_bits(&bench.feed(id, &text[kept..], 64), &expected, tiny.vocab, "restored");
        }
        let error = bench.model.restore(bench.dev.as_mut(), second, 290, &snapshot[4..]).expect_err("short");
        assert!(error.to_string().contains("bytes of recurrent state"), "{error}");
    }
}

/// Back by as much as rings keep, at any place of a block, is as never having been there; further back is refused.
#[test]
fn going_back_a_little_is_as_never_having_been_there() {
    let tiny = golden(NAME, true);
    let text = tokens(8, 280, tiny.vocab);
    let whole = logits(&tiny, cpu(1, false), &text, 280);
    let mut bench = Bench::new(&tiny, cpu(2, false), &layout(300, 1, 64));
    let id = bench.open();
    let mut len = 0;
    for (rows, back) in
        [(20, 3), (1, 1), (60, 16), (16, 0), (4, 2), (30, 5), (3, 3), (40, 1), (64, 8), (50, 0)]
    {
        let rows = rows.min(280 - len);
        let found = bench.feed(id, &text[len..len + rows], 64);
        assert_continues(&found, &whole, len, tiny.vocab, &format!("{rows} rows at {len}"));
        // Drafts that nobody accepts.
        if back > 0 && len + rows + back <= 300 {
            bench.feed(id, &tokens(9 + len as u64, back, tiny.vocab), 64);
            assert!(!bench.model.can_truncate(id, len + rows + back - 17).expect("a sequence"));
            bench.model.truncate(id, len + rows).expect("not far");
        }
        len += rows;
    }
    assert_eq!(len, 280);
    let refused = bench.model.truncate(id, 200).expect_err("too far").to_string();
    assert!(refused.contains("200"), "{refused}");
    // What was kept of a sequence that went back goes on as it should.
    bench.feed(id, &[1, 2, 3], 3);
    bench.model.truncate(id, 280).expect("not far");
    let snapshot = bench.model.snapshot(bench.dev.as_mut(), id).expect("a state");
    let expected = bench.feed(id, &[4, 5], 2);
    bench.model.truncate(id, 280).expect("not far");
    bench.model.restore(bench.dev.as_mut(), id, 280, &snapshot).expect("its own");
    assert!(!bench.model.can_truncate(id, 279).expect("a sequence"), "nobody knows what came before");
    assert_same_bits(&bench.feed(id, &[4, 5], 1), &expected, tiny.vocab, "after its own snapshot");
}

#[test]
fn kept_ends_are_resumed_bit_by_bit() {
    let tiny = golden(NAME, true);
    let text = tokens(8, 700, tiny.vocab);
    let whole = logits(&tiny, cpu(1, false), &text, 64);
    let mut bench = Bench::new(&tiny, cpu(2, false), &cached(720, 2, 1024));
    let (first, second) = (bench.open(), bench.open());
    for end in [130, 300, 520, 700] {
        let (resumed, rest) = bench.turn(first, &text[..end], 64);
        assert_continues(&rest, &whole, resumed, tiny.vocab, &format!("a turn of {end}"));
    }
    assert_eq!(bench.resume(second, &text, 699), 520, "the last end before the rest");
    let found = bench.feed(second, &text[520..], 64);
    assert_continues(&found, &whole, 520, tiny.vocab, "another sequence");
}

#[test]
fn the_estimate_is_what_the_device_holds() {
    let tiny = golden(NAME, true);
    for layout in [layout(64, 1, 8), layout(300, 3, 32), cached(1000, 2, 512)] {
        let info = ModelInfo::read(&tiny.file).expect("a model");
        let bill = info.footprint(&layout);
        let mut dev = cpu(2, false);
        let model = Model::load(tiny.file.clone(), &mut dev, &layout, &mut |_, _| ()).expect("a model");
        let held = dev.held_bytes();
        // Snapshots are taken when they are made.
        let bare = info.footprint(&Layout { cached_tokens: 0, ..layout.clone() });
        assert_eq!((held.pages, held.buffers), (0, bare.scratch + bare.state));
        assert!(held.weights <= bill.weights);
        // Windows of 16 and rings of 8 and of 128, each 16 longer; entries of 32 and 64 values every 4 positions, of 32
        // every 128.
        let ctx = layout.ctx_tokens;
        let sparse = (16 + 16) * 32 + (8 + 16) * 2 * (64 + 128) + ctx / 4 * (32 + 64);
        let heavy = (16 + 16) * 32 + (128 + 16) * 2 * 32 + (ctx / 128).max(1) * 32;
        let floats = 32 * 32 + 2 * sparse + heavy;
        assert_eq!(bare.state, (layout.sequences * floats * 4) as u64);
        model.unload(&mut dev).expect("unloaded");
        assert_eq!(dev.held_bytes(), Default::default());
    }
    let info = ModelInfo::read(&tiny.file).expect("a model");
    assert!(info.unexpected.is_empty(), "{:?}", info.unexpected);
    assert!(info.bytes_per_token(4000, &Default::default()) > info.bytes_per_token(0, &Default::default()));
}

/// The fixture's folder with its config changed.
fn changed(from: &str, to: &str) -> Result<ModelInfo, hob_model::ModelError> {
    let dir = hob_testkit::temp::TempDir::new("deepseek4");
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(NAME);
    std::fs::copy(golden.join("model.safetensors"), dir.join("model.safetensors")).expect("a copy");
    let text = std::fs::read_to_string(golden.join("config.json")).expect("config.json");
    assert!(text.contains(from), "{from}");
    std::fs::write(dir.join("config.json"), text.replace(from, to)).expect("writable");
    ModelInfo::read(&Arc::new(ModelFile::open(dir.path()).expect("a folder")))
}

#[test]
fn the_config_says_what_every_layer_is() {
    let info = changed("deepseek_v4", "deepseek_v4").expect("as it is");
    let of = |config: &Config, i: usize| match config.layers[i].mixer {
        Mixer::Compressed(CompressedConfig { entries, .. }) => entries,
        other => panic!("{other:?}"),
    };
    let config = &info.config;
    assert_eq!(of(config, 0), None);
    assert!(matches!(of(config, 1), Some(EntryConfig { ratio: 4, index: Some(i) }) if i.top_k == 8));
    assert_eq!(of(config, 2), Some(EntryConfig { ratio: 128, index: None }));
    assert_eq!((config.layers[0].rope, config.layers[2].rope), (Some(0), Some(1)));
    let state = LayerState::Compressed { window: 16, dim: 32, ratio: Some(4), index_dim: 64 };
    assert_eq!((info.states()[3], info.rolls_back()), (state, Some(16)));
    let hashed: Vec<bool> =
        config.layers.iter().map(|l| l.experts.as_ref().is_some_and(|e| e.hashed)).collect();
    assert_eq!(hashed, [true, false, false, false]);
    let both = Config::from_file(&golden(NAME, true).file).expect("a config");
    assert_eq!(both, *config, "a GGUF says the same");
    // Without the list of ratios, kinds of layers say as much.
    let kinds = changed("\"compress_ratios\"", "\"compress_ratios_\"").expect("kinds are enough");
    assert_eq!(kinds.config, *config);
    for (from, to, named) in [
        ("  4\n ],\n \"topk", "  8\n ],\n \"topk", "compress_ratios"),
        ("\"num_attention_heads\": 4", "\"num_attention_heads\": 5", "o_groups"),
        ("\"num_key_value_heads\": 1", "\"num_key_value_heads\": 2", "kv_heads"),
        ("\"hc_mult\": 4", "\"hc_mult\": 9", "streams"),
        ("\"index_head_dim\": 64", "\"index_head_dim\": 8", "index_head_dim"),
        ("\"sqrtsoftplus\"", "\"sigmoid\"", "scoring_func"),
        ("\"use_cache\"", "\"quantization_config\": {\"quant_method\": \"fp8\"}, \"use_cache\"", "FP8"),
        ("\"sliding_window\": 16,", "", "sliding_window"),
        ("\"q_lora_rank\": 24", "\"q_lora_rank\": 25", "wq_a"),
        ("\"num_hash_layers\": 1", "\"num_hash_layers\": 2", "mlp_layer_types"),
        ("\"compressed_sparse_attention\"", "\"sparse_attention\"", "layer_types"),
    ] {
        let error = changed(from, to).map(|_| ()).expect_err(to).to_string();
        assert!(error.contains(named), "{to}: {error}");
    }
}

#[test]
fn missing_tensors_are_named() {
    let tiny = golden(NAME, true);
    for name in ["blk.1.indexer.proj.weight", "blk.0.ffn_gate_tid2eid.weight", "output_hc_fn.weight"] {
        let file = rewritten(&tiny, |_| (), |n| n != name);
        let error = ModelInfo::read(&file).map(|_| ()).expect_err(name).to_string();
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn ids_that_no_expert_has_are_refused() {
    const TABLE: &str = "blk.0.ffn_gate_tid2eid.weight";
    let tiny = golden(NAME, true);
    let (mut writer, mut data) = (Writer::new(), Vec::new());
    tiny.file.metadata().copy_to(&mut writer);
    for tensor in tiny.file.tensors() {
        writer.tensor(&tensor.name, tensor.format, &tensor.shape).expect("a tensor");
        let mut bytes = tiny.file.mapped(tensor).to_vec();
        if tensor.name == TABLE {
            bytes[..4].copy_from_slice(&8i32.to_le_bytes());
        }
        data.push(bytes);
    }
    let path = tiny.dir.join("ids.gguf");
    writer.save(&path, &data.iter().map(Vec::as_slice).collect::<Vec<_>>()).expect("writable");
    let file = Arc::new(ModelFile::open(&path).expect("a GGUF"));
    let mut dev = cpu(1, true);
    let loaded = Model::load(file, &mut dev, &layout(16, 1, 4), &mut |_, _| ());
    let error = loaded.map(|_| ()).expect_err("8 is no expert of 8").to_string();
    assert!(error.contains(TABLE) && error.contains("below 8"), "{error}");
    assert_eq!(dev.held_bytes(), Default::default());
}
