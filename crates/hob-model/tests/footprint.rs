//! The estimator against what a device really holds, and its arithmetic against sums done by hand.

mod common;

use common::*;
use hob_compute::reference::Reference;
use hob_compute::{Compute, WeightKind};
use hob_cpu::Isa;
use hob_model::{KvLayout, KvPair, Layout, Model, ModelInfo};
use hob_quant::{Format, KvFormat};
use hob_testkit::tiny::TinySpec;

#[test]
fn the_estimate_is_what_the_device_holds() {
    let layouts = [layout(64, 1, 8), layout(600, 3, 32), Layout::new(4096)];
    for (spec, format) in [(TinySpec::llama(), Format::Q4_1), (TinySpec::qwen2(), Format::F16)] {
        let tiny = gguf(&spec, format);
        for layout in &layouts {
            let info = ModelInfo::read(&tiny.file).expect("a model");
            let bill = info.footprint(layout);
            // Not exact: exact devices keep K and V in f32, twice the plan's f16.
            let mut dev = cpu(2, false);
            let model = Model::load(tiny.file.clone(), &mut dev, layout, &mut |_, _| ()).expect("a model");
            let held = dev.held_bytes();
            assert_eq!(held.pages, bill.kv);
            assert_eq!(held.buffers, bill.scratch);
            if Isa::best() > Isa::Scalar {
                assert_eq!(held.weights, bill.weights);
            } else {
                // Weights that are not packed are not padded.
                assert!(held.weights <= bill.weights);
            }
            assert_eq!(bill.lines.iter().map(|l| l.bytes).sum::<u64>(), bill.total);
            assert_eq!(bill.total, bill.weights + bill.kv + bill.scratch);
            model.unload(&mut dev).expect("unloaded");
            assert_eq!(dev.held_bytes(), Default::default());
        }
    }
}

#[test]
fn bytes_and_macs_add_up_by_hand() {
    // dim 64, 4 heads and 2 KV heads of 16, ffn 96, 320 tokens, 2 layers, tied; Q8_0 is 34 bytes per 32 weights.
    let tiny = gguf(&TinySpec::llama(), Format::Q8_0);
    let info = ModelInfo::read(&tiny.file).expect("a model");
    let layer = 64 * 64 * 2 + 32 * 64 * 2 + 96 * 64 * 3;
    let matrices = 2 * layer + 320 * 64;
    // Packed, the 96 columns of the down projection are padded to 128.
    let packed = matrices + 2 * 64 * 32;
    let vectors = 5 * 64 * 4;
    let (kv, f16) = (2 * 2 * 2 * 16 * 2, KvLayout::default());
    assert_eq!(info.kv_bytes_per_token(&f16), kv);
    assert_eq!(info.bytes_per_token(0, &f16), packed / 32 * 34 + vectors + 64 / 32 * 34 + kv);
    assert_eq!(info.bytes_per_token(99, &f16) - info.bytes_per_token(0, &f16), 99 * kv);
    assert_eq!(info.macs_per_token(9), matrices + 2 * 2 * 64 * 10);
    assert_eq!(info.parameters(), matrices + 5 * 64);
    let bill = info.footprint(&layout(257, 2, 8));
    assert_eq!(bill.weights, packed / 32 * 34 + vectors);
    assert_eq!(bill.kv, 2 * 2 * 256 * kv, "two sequences of two pages");
    assert_eq!(bill.mapped, 320 * 64 / 32 * 34);
}

#[test]
fn a_tied_head_reads_the_embedding_twice() {
    let tiny = gguf(&TinySpec::llama(), Format::Q8_0);
    let info = ModelInfo::read(&tiny.file).expect("a model");
    let kinds: Vec<_> =
        info.slots().filter(|(s, _)| s.name == "token_embd.weight").map(|(s, _)| s.kind).collect();
    assert_eq!(kinds, [WeightKind::Table, WeightKind::Matrix]);
}

#[test]
fn given_kv_rows_lengthen_a_sequence_like_computed_ones() {
    let tiny = gguf(&TinySpec::llama(), Format::F32);
    let mut bench = Bench::new(&tiny, Reference::new(true), &layout(600, 1, 8));
    let id = bench.model.new_sequence().expect("a free sequence");
    let (k, v) = (bench.dev.alloc(300, 32).expect("k"), bench.dev.alloc(300, 32).expect("v"));
    bench.dev.upload(v, 0, &[0.5; 300 * 32]).expect("v");
    bench.model.extend_synthetic(bench.dev.as_mut(), id, 300, &[(32, [k, v])]).expect("room for 300");
    assert_eq!(bench.model.seq_len(id).expect("it lives"), 300);
    bench.feed(id, &[1, 2, 3], 3);
    let error = bench
        .model
        .extend_synthetic(bench.dev.as_mut(), id, 298, &[(32, [k, v])])
        .expect_err("no room")
        .to_string();
    assert!(error.contains("601") && error.contains("600"), "{error}");
    assert_eq!(bench.model.seq_len(id).expect("it lives"), 303);
}

/// The heads of Llama 3.1 70B (8 KV heads of 128 in 80 layers) on a model that is otherwise tiny: K and V of 131,072
/// positions in 4 bits, by the estimate and by what is really reserved (address space; nothing is touched).
#[test]
fn llama_70b_keeps_131072_positions_in_11_3_gib() {
    let spec =
        TinySpec { layers: 80, dim: 32, heads: 8, kv_heads: 8, head_dim: 128, ffn: 32, ..TinySpec::llama() };
    let tiny = gguf(&spec, Format::Q8_0);
    for (format, least, most) in [(KvFormat::Q4, 11.25, 11.3), (KvFormat::F16, 40.0, 40.0)] {
        let kv = KvLayout::uniform(KvPair::both(format));
        let layout = Layout { kv: kv.clone(), chunk_rows: 8, ..Layout::new(131_072) };
        let info = ModelInfo::read(&tiny.file).expect("a model");
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        let bill = info.footprint(&layout);
        assert!((least..=most).contains(&gib(bill.kv)), "{format}: {} GiB", gib(bill.kv));
        assert_eq!(gib(info.kv_bytes_per_token(&kv) * 131_072), least);
        println!("{format}: {:.3} GiB", gib(bill.kv));
        if format == KvFormat::Q4 {
            let mut dev = cpu(1, false);
            let model = Model::load(tiny.file.clone(), &mut dev, &layout, &mut |_, _| ()).expect("a model");
            assert_eq!(dev.held_bytes().pages, bill.kv);
            model.unload(&mut dev).expect("unloaded");
        }
    }
}
