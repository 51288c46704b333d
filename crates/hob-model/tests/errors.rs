//! What a model refuses, and that the message has the name and the numbers.

mod common;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use common::*;
use hob_compute::reference::Reference;
use hob_compute::{ByteSource, Compute, Token};
use hob_files::TensorInfo;
use hob_model::config::DenseShape;
use hob_model::{Config, KvLayout, Layout, Model, ModelError, ModelInfo, Naming, Row, TensorSource};
use hob_quant::Format;
use hob_testkit::tiny::TinySpec;

/// Tensors of zeros.
struct Zeros {
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    naming: Naming,
    /// The tensor whose bytes cannot be read.
    broken: Option<String>,
}

struct ZeroBytes(u64, bool);

impl ByteSource for ZeroBytes {
    fn len(&self) -> u64 {
        self.0
    }
    fn read_at(&self, _: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.1 {
            return Err(io::Error::other("the disk is on fire"));
        }
        buf.fill(0);
        Ok(())
    }
}

impl Zeros {
    /// What `config` needs, after `change` had its way with it.
    fn new(config: &Config, change: impl FnOnce(&mut Vec<TensorInfo>)) -> Self {
        let slots = ModelInfo::slots_of(config, Naming::Gguf).expect("a known architecture");
        let mut tensors: Vec<TensorInfo> = Vec::new();
        for slot in slots {
            if tensors.iter().any(|t| t.name == slot.name) {
                continue;
            }
            let shape = slot.shape;
            let bytes = shape.iter().product::<usize>() as u64 * 4;
            tensors.push(TensorInfo {
                name: slot.name,
                format: Format::F32,
                shape,
                shard: 0,
                offset: 0,
                bytes,
            });
        }
        change(&mut tensors);
        let by_name = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Zeros { tensors, by_name, naming: Naming::Gguf, broken: None }
    }
}

impl TensorSource for Zeros {
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
        Arc::new(ZeroBytes(tensor.bytes, self.broken.as_ref() == Some(&tensor.name)))
    }
}

fn shape() -> DenseShape {
    DenseShape {
        vocab: 320,
        dim: 64,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        ffn: 96,
        ctx_train: 512,
        rope_base: 10_000.0,
        ..DenseShape::default()
    }
}

fn config() -> Config {
    Config::dense("qwen2", &shape()).expect("a valid shape")
}

/// The message of the error that `change` to the tensors causes.
fn refusal(change: impl FnOnce(&mut Vec<TensorInfo>)) -> String {
    ModelInfo::new(config(), &Zeros::new(&config(), change)).expect_err("refused").to_string()
}

fn find<'a>(tensors: &'a mut [TensorInfo], name: &str) -> &'a mut TensorInfo {
    tensors.iter_mut().find(|t| t.name == name).expect("a needed tensor")
}

#[test]
fn the_unchanged_tensors_are_accepted() {
    let info = ModelInfo::new(config(), &Zeros::new(&config(), |_| ())).expect("complete");
    assert_eq!(info.unexpected, [""; 0]);
}

#[test]
fn every_missing_tensor_is_named() {
    let all = Zeros::new(&config(), |_| ()).tensors;
    assert_eq!(all.len(), 3 + 2 * 12);
    for gone in all {
        let message = refusal(|tensors| tensors.retain(|t| t.name != gone.name));
        assert!(message.contains(&format!("'{}'", gone.name)) && message.contains("missing"), "{message}");
    }
}

#[test]
fn every_wrong_shape_is_named_with_both_shapes() {
    let all = Zeros::new(&config(), |_| ()).tensors;
    for wrong in all {
        let message = refusal(|tensors| find(tensors, &wrong.name).shape[0] += 1);
        let mut found = wrong.shape.clone();
        found[0] += 1;
        let parts = [format!("'{}'", wrong.name), format!("{:?}", wrong.shape), format!("{found:?}")];
        assert!(parts.iter().all(|p| message.contains(p)), "{message}");
    }
    let message = refusal(|tensors| find(tensors, "blk.1.ffn_up.weight").shape.push(1));
    assert!(message.contains("[96, 64, 1]"), "{message}");
}

#[test]
fn tensors_nobody_reads_are_listed() {
    let extra = |tensors: &mut Vec<TensorInfo>| {
        for (name, shape) in
            [("blk.0.attn_q_norm.weight", vec![16]), ("blk.0.ffn_gate_exps.weight", vec![4, 96, 64])]
        {
            let tensor = find(tensors, "output.weight").clone();
            tensors.push(TensorInfo { name: name.into(), shape, ..tensor });
        }
        let freqs = TensorInfo { name: "rope_freqs.weight".into(), shape: vec![8], ..tensors[0].clone() };
        tensors.push(freqs);
    };
    let info = ModelInfo::new(config(), &Zeros::new(&config(), extra)).expect("complete");
    assert_eq!(info.unexpected, ["blk.0.attn_q_norm.weight", "blk.0.ffn_gate_exps.weight"]);
}

#[test]
fn a_read_error_names_the_tensor_and_leaves_nothing_on_the_device() {
    let broken = Zeros { broken: Some("blk.1.ffn_up.weight".into()), ..Zeros::new(&config(), |_| ()) };
    let mut dev = Reference::new(true);
    let info = ModelInfo::new(config(), &broken).expect("complete");
    let mut last = (0, 0);
    let mut progress = |done, total| last = (done, total);
    let loaded = Model::load_from(&broken, info, &mut dev, &Layout::new(64), &mut progress);
    let message = loaded.err().expect("refused").to_string();
    assert!(message.contains("'blk.1.ffn_up.weight'") && message.contains("on fire"), "{message}");
    let held = dev.held_bytes();
    assert_eq!((held.weights, held.buffers, held.pages), (0, 0, 0));
    assert!(last.0 > 0 && last.0 < last.1, "progress stopped on the way: {last:?}");
}

#[test]
fn progress_ends_at_the_total() {
    let source = Zeros::new(&config(), |_| ());
    let info = ModelInfo::new(config(), &source).expect("complete");
    let mut seen = Vec::new();
    let mut progress = |done, total| seen.push((done, total));
    Model::load_from(&source, info, &mut Reference::new(true), &Layout::new(64), &mut progress)
        .expect("a model");
    let total = seen[0].1;
    assert!(seen.windows(2).all(|w| w[0].0 <= w[1].0 && w[1].1 == total));
    assert_eq!(seen.last(), Some(&(total, total)));
    let table = (320 * 64 * 4) as u64;
    assert_eq!(
        total,
        source.tensors.iter().map(|t| t.bytes).sum::<u64>() - table,
        "all but the mapped table"
    );
}

#[test]
fn shapes_that_do_not_fit_together_name_the_field() {
    type Change = fn(&mut DenseShape);
    let changes: [(Change, &str); 9] = [
        (|s| s.heads = 0, "heads"),
        (|s| s.kv_heads = 0, "kv_heads"),
        (|s| s.kv_heads = 3, "divisor of the 4 query heads"),
        (|s| s.head_dim = 15, "even number of rotated dimensions"),
        (|s| s.ffn = 0, "ffn"),
        (|s| s.dim = usize::MAX, "dim"),
        (|s| s.layers = usize::MAX, "layers"),
        (|s| s.vocab = 0, "vocab"),
        (|s| s.rope_base = f64::NAN, "rope base"),
    ];
    for (change, field) in changes {
        let mut wrong = shape();
        change(&mut wrong);
        let message = Config::dense("llama", &wrong).expect_err("refused").to_string();
        assert!(message.contains(field), "{field}: {message}");
    }
    let message = Config::dense("grue", &shape()).expect_err("refused").to_string();
    assert!(message.contains("'grue'") && message.contains("llama, qwen2"), "{message}");
}

#[test]
fn layouts_without_room_are_refused() {
    let tiny = gguf(&TinySpec::llama(), Format::F32);
    let good = layout(64, 1, 8);
    for wrong in [
        Layout { ctx_tokens: 0, ..good.clone() },
        Layout { sequences: 0, ..good.clone() },
        Layout { chunk_rows: 0, ..good.clone() },
        Layout { logit_rows: 0, ..good.clone() },
        Layout { ctx_tokens: usize::MAX, ..good.clone() },
    ] {
        let loaded = Model::load(tiny.file.clone(), &mut Reference::new(true), &wrong, &mut |_, _| ());
        assert!(matches!(loaded.err(), Some(ModelError::Layout { .. })), "{wrong:?}");
    }
}

#[test]
fn parts_of_one_tensor_are_checked_against_the_whole() {
    let mut fused = Config::dense("phi3", &shape()).expect("a valid shape");
    for layer in &mut fused.layers {
        (layer.fused.qkv, layer.fused.gate_up) = (true, true);
    }
    let slots = ModelInfo::slots_of(&fused, Naming::Gguf).expect("a known architecture");
    let of = |name: &str| slots.iter().filter(|s| s.name == name).collect::<Vec<_>>();
    let spans: Vec<_> =
        of("blk.0.attn_qkv.weight").iter().map(|s| (s.first, s.rows, s.shape.clone())).collect();
    assert_eq!(spans, [(0, 64, vec![128, 64]), (64, 32, vec![128, 64]), (96, 32, vec![128, 64])]);
    let spans: Vec<_> = of("blk.1.ffn_up.weight").iter().map(|s| (s.first, s.rows)).collect();
    assert_eq!(spans, [(0, 96), (96, 96)]);
    let source = Zeros::new(&fused, |_| ());
    let info = ModelInfo::new(fused.clone(), &source).expect("complete");
    assert_eq!(info.unexpected, [""; 0]);
    let plain = ModelInfo::new(
        Config::dense("phi3", &shape()).expect("a valid shape"),
        &Zeros::new(&Config::dense("phi3", &shape()).expect("a valid shape"), |_| ()),
    );
    let plain = plain.expect("complete");
    assert_eq!(info.parameters(), plain.parameters());
    assert_eq!(info.footprint(&Layout::new(64)).total, plain.footprint(&Layout::new(64)).total);
    let cut = Zeros::new(&fused, |tensors| find(tensors, "blk.0.attn_qkv.weight").shape[0] = 96);
    let message = ModelInfo::new(fused.clone(), &cut).expect_err("refused").to_string();
    assert!(message.contains("'blk.0.attn_qkv.weight'") && message.contains("[128, 64]"), "{message}");
    let mut dev = Reference::new(true);
    Model::load_from(&source, info, &mut dev, &Layout::new(64), &mut |_, _| ()).expect("a model");
}

#[test]
fn windows_are_no_limit_of_the_context() {
    let tiny = folder(&TinySpec::qwen2(), |config| {
        config["use_sliding_window"] = true.into();
        config["sliding_window"] = 100.into();
        config["max_window_layers"] = 1.into();
    });
    let info = ModelInfo::read(&tiny.file).expect("a model");
    let windows: Vec<_> = info.config.layers.iter().map(|l| l.window).collect();
    assert_eq!(windows, [None, Some(100)]);
    Model::load(tiny.file.clone(), &mut Reference::new(true), &Layout::new(300), &mut |_, _| ())
        .expect("a model with more context than the window");
    // One layer reads and multiplies with all 200 positions, the other with 100.
    let kv = info.kv_bytes_per_token(&KvLayout::default());
    let bytes = |position| info.bytes_per_token(position, &KvLayout::default());
    assert_eq!(bytes(199) - bytes(0), kv / 2 * (199 + 99));
    assert_eq!(info.macs_per_token(199) - info.macs_per_token(0), 2 * 64 * (199 + 99));
}

#[test]
fn a_sequence_that_outgrows_the_context_is_told_both_numbers_and_stays_as_it_was() {
    let tiny = gguf(&TinySpec::llama(), Format::F32);
    let mut bench = Bench::new(&tiny, Reference::new(true), &layout(20, 1, 16));
    let id = bench.model.new_sequence().expect("a free sequence");
    bench.feed(id, &tokens(1, 18, tiny.vocab), 9);
    bench.add(id, &[1, 2, 3]);
    let error = bench.step().expect_err("refused");
    assert!(matches!(error, ModelError::ContextOverflow { needed: 21, ctx_tokens: 20 }));
    let message = error.to_string();
    assert!(message.contains("21") && message.contains("20"), "{message}");
    assert_eq!(bench.model.seq_len(id).expect("it lives"), 18);
    bench.add(id, &[1, 2]);
    bench.step().expect("exactly full");
}

#[test]
fn sequences_run_out_and_stale_ids_are_refused() {
    let tiny = gguf(&TinySpec::llama(), Format::F32);
    let mut bench = Bench::new(&tiny, Reference::new(true), &layout(20, 2, 16));
    let a = bench.model.new_sequence().expect("a free sequence");
    bench.model.new_sequence().expect("a free sequence");
    let message = bench.model.new_sequence().expect_err("refused").to_string();
    assert!(message.contains("all 2 sequences"), "{message}");
    bench.model.free_sequence(a).expect("it lives");
    let again = bench.model.new_sequence().expect("the freed one");
    assert_ne!(a, again);
    assert!(matches!(bench.model.seq_len(a), Err(ModelError::UnknownSequence { .. })));
    assert!(bench.model.truncate(a, 0).is_err() && bench.model.free_sequence(a).is_err());
    bench.batch.rows.push(Row {
        sequence: a,
        position: 0,
        token: Token::Host(1),
        logits: true,
        draft: false,
    });
    assert!(matches!(bench.step(), Err(ModelError::UnknownSequence { .. })));
}

#[test]
fn batches_that_do_not_continue_their_sequences_are_refused() {
    let tiny = gguf(&TinySpec::llama(), Format::F32);
    let layout = Layout { logit_rows: 2, ..layout(40, 2, 4) };
    let mut bench = Bench::new(&tiny, Reference::new(true), &layout);
    let [a, b] = [0, 1].map(|_| bench.model.new_sequence().expect("a free sequence"));
    let row =
        |sequence, position, logits| Row { sequence, position, token: Token::Host(1), logits, draft: false };
    let cases: [(&[Row], &str); 6] = [
        (&[], "1 to 4 rows"),
        (
            &[row(a, 0, false), row(a, 1, false), row(a, 2, false), row(a, 3, false), row(a, 4, false)],
            "1 to 4 rows",
        ),
        (&[row(a, 0, true), row(a, 1, true), row(a, 2, true)], "at most 2 rows with logits"),
        (&[row(a, 1, true)], "position 0 in row 0"),
        (&[row(a, 0, false), row(a, 0, true)], "position 1 in row 1"),
        (&[row(a, 0, false), row(b, 0, false), row(a, 1, true)], "side by side"),
    ];
    for (rows, expected) in cases {
        bench.batch.rows.extend_from_slice(rows);
        let message = bench.step().expect_err("refused").to_string();
        assert!(message.contains(expected), "{message}");
    }
    bench.batch.rows.push(Row { token: Token::Host(320), ..row(a, 0, true) });
    assert!(matches!(bench.step(), Err(ModelError::Compute(_))), "a token outside the vocabulary");
    assert_eq!(bench.model.seq_len(a).expect("it lives"), 0, "no refusal lengthened the sequence");
    assert!(matches!(bench.model.truncate(a, 1), Err(ModelError::Batch { .. })));
}

#[test]
fn rows_without_logits_take_none() {
    let tiny = gguf(&TinySpec::llama(), Format::F32);
    let prompt = tokens(2, 12, tiny.vocab);
    let all = logits(&tiny, Reference::new(true), &prompt, 12);
    let mut bench = Bench::new(&tiny, Reference::new(true), &Layout { logit_rows: 2, ..layout(40, 1, 12) });
    let id = bench.model.new_sequence().expect("a free sequence");
    bench.add(id, &prompt);
    bench.batch.rows.iter_mut().for_each(|r| r.logits = matches!(r.position, 4 | 11));
    let some = bench.step().expect("a step");
    let row = |p: usize| &all[p * tiny.vocab..][..tiny.vocab];
    assert_same_bits(&some, &[row(4), row(11)].concat(), tiny.vocab, "rows 4 and 11");
    bench.add(id, &[7]);
    bench.batch.rows[0].logits = false;
    assert_eq!(bench.step().expect("a step"), [0f32; 0]);
    assert_eq!(bench.model.seq_len(id).expect("it lives"), 13);
}
