//! Synthesised files: what is in them, that they are the bytes of the in-memory model, and that nothing is left behind
//! when writing them fails.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hob_compute::{Compute, Token};
use hob_cpu::{Cpu, CpuConfig};
use hob_files::ModelFile;
use hob_lab::synth::{Experts, Mix, SHAPES, Shape, Synth, SynthError};
use hob_model::{Batch, FileTensors, Layout, Model, ModelInfo, Row, TensorSource, known_architectures};
use hob_quant::Format;
use hob_testkit::temp::TempDir;
use hob_text::{ChatInput, ChatTemplate, Message, Special, TemplateLimits, Tokenizer};

fn tiny(name: &str) -> Shape {
    let shape = SHAPES.iter().find(|s| s.name == name).expect(name).clone();
    let experts =
        shape.experts.map(|e| Experts { count: 8, top_k: 2, ffn: 64, shared_ffn: e.shared_ffn.min(64), ..e });
    Shape {
        dim: 128,
        layers: 3,
        ffn: 256,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        vocab: 400,
        ctx_train: 512,
        experts,
        ..shape
    }
}

fn write(synth: &Synth, path: &Path) -> u64 {
    synth.write(path, &mut |_, _| {}, &AtomicBool::new(false)).expect("written")
}

/// Logits of a few positions.
fn logits(source: &dyn TensorSource, info: ModelInfo) -> Vec<f32> {
    let mut dev = Cpu::new(&CpuConfig { threads: 1, ..CpuConfig::default() }).expect("cpu");
    let layout = Layout { logit_rows: 4, ..Layout::new(64) };
    let mut model = Model::load_from(source, info, &mut dev, &layout, &mut |_, _| {}).expect("loads");
    let sequence = model.new_sequence().expect("a sequence");
    let row =
        |position| Row { sequence, position, token: Token::Host(position * 50), logits: true, draft: false };
    model.step(&mut dev, &Batch { rows: (0..4).map(row).collect() }).expect("a step");
    let mut all = vec![0.0; 4 * model.info().config.vocab];
    dev.download(model.logits(), 0, &mut all).expect("logits");
    model.unload(&mut dev).expect("unloads");
    all
}

#[test]
fn a_file_is_the_model_in_memory() {
    let dir = TempDir::new("synth-file");
    let mut ran = 0;
    for shape in [
        "smollm2-135m",
        "llama3.2-1b",
        "qwen2.5-0.5b",
        "qwen3-1.7b",
        "qwen3-30b-a3b",
        "gemma3-270m",
        "lfm2-350m",
        "smollm3-3b",
        "gemma4-26b-a4b",
        "gpt-oss-20b",
        "glm-4.5-air",
        "mamba2-130m",
        "nemotron-3-nano-30b-a3b",
        "deepseek-v2-lite",
        "glm-4.7-flash",
    ] {
        let synth = Synth::new(tiny(shape), Mix::Plain(Format::Q4_1), Some(Format::Q8_0)).expect(shape);
        let path = dir.join("model.gguf");
        let bytes = write(&synth, &path);
        assert_eq!(std::fs::metadata(&path).expect("there").len(), bytes);
        let file = Arc::new(ModelFile::open(&path).expect("opens"));
        let source = FileTensors(Arc::clone(&file));
        assert_eq!(file.tensors().len(), synth.tensors().len());
        for tensor in synth.tensors() {
            let stored = file.tensor(&tensor.name).expect("a tensor of the table");
            assert_eq!((stored.format, &stored.shape), (tensor.format, &tensor.shape), "{}", tensor.name);
            let mut made = vec![0; tensor.bytes as usize];
            synth.open(tensor).read_at(0, &mut made).expect("made");
            assert!(file.mapped(stored) == made, "{shape} {}", tensor.name);
        }
        if known_architectures().any(|arch| arch == synth.shape().arch) {
            let info = ModelInfo::read(&file).expect("a model");
            let from_file = logits(&source, info);
            assert!(from_file.iter().all(|l| l.is_finite()));
            assert_eq!(from_file, logits(&synth, synth.info().expect("info")), "{shape}");
            ran += 1;
        }
    }
    assert!(ran >= 3);
}

#[test]
fn every_type_and_mix_can_be_written_and_read() {
    let dir = TempDir::new("synth-types");
    let shape = Shape { dim: 256, ffn: 512, heads: 8, layers: 1, ..tiny("llama3.2-1b") };
    let types = hob_lab::synth::formats().map(|f| f.name().to_string());
    for name in types.chain(hob_lab::synth::mixes().map(str::to_string)) {
        let synth = Synth::new(shape.clone(), Mix::parse(&name).expect("known"), None).expect("fits");
        let path = dir.join("model.gguf");
        write(&synth, &path);
        let file = Arc::new(ModelFile::open(&path).expect("opens"));
        let all = logits(&FileTensors(Arc::clone(&file)), ModelInfo::read(&file).expect("a model"));
        assert!(all.iter().all(|l| l.is_finite() && l.abs() < 100.0), "{name}");
    }
}

#[test]
fn the_vocabulary_reads_any_text() {
    let dir = TempDir::new("synth-text");
    let path = dir.join("model.gguf");
    write(&Synth::new(tiny("qwen2.5-0.5b"), Mix::Plain(Format::F16), None).expect("tiny"), &path);
    let tokenizer = Tokenizer::from_model(&ModelFile::open(&path).expect("opens")).expect("a vocabulary");
    assert_eq!(tokenizer.vocab_size(), 400);
    for text in ["the rain in Spain", "Grüße, 世界! \n\t\0", "<|im_start|>"] {
        let ids = tokenizer.encode(text, Special::Plain).expect("encodes");
        assert_eq!(tokenizer.decode(&ids), text);
    }
    assert!(tokenizer.encode("the there", Special::Plain).expect("encodes").len() < 9, "it merges");
    let template = ChatTemplate::for_tokenizer(&tokenizer, &TemplateLimits::default()).expect("a template");
    let messages = [Message::user("hi")];
    let input = ChatInput { messages: &messages, add_generation_prompt: true, ..ChatInput::default() };
    let text = template.render(&input).expect("renders");
    assert_eq!(text, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    let ids = tokenizer.encode_prompt(&text).expect("encodes");
    assert_eq!(ids[0], 398);
    assert!(tokenizer.end_tokens().contains(&399));
}

#[test]
fn a_cancelled_or_failed_write_leaves_nothing() {
    let dir = TempDir::new("synth-cancel");
    let path = dir.join("model.gguf");
    std::fs::write(&path, "the file of that name").expect("written");
    let synth = Synth::new(tiny("smollm2-135m"), Mix::Plain(Format::F32), None).expect("tiny");
    let cancel = AtomicBool::new(false);
    let mut seen = 0;
    let stopped = synth.write(
        &path,
        &mut |done, total| {
            seen += 1;
            cancel.store(done > total / 2, Ordering::Relaxed);
        },
        &cancel,
    );
    assert!(matches!(stopped, Err(SynthError::Cancelled)), "{stopped:?}");
    assert!(seen > 2);
    let left: Vec<_> = std::fs::read_dir(dir.path()).expect("a folder").collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(std::fs::read(&path).expect("still there"), b"the file of that name");
    let nowhere = synth.write(&dir.join("no/such/model.gguf"), &mut |_, _| {}, &AtomicBool::new(false));
    assert!(nowhere.expect_err("no folder").to_string().contains("model.gguf"));
}

#[test]
fn a_vocabulary_without_room_for_bytes_is_refused() {
    let dir = TempDir::new("synth-vocab");
    let shape = Shape { vocab: 100, ..tiny("smollm2-135m") };
    let synth = Synth::new(shape, Mix::Plain(Format::Q8_0), None).expect("a table");
    let error = synth.write(&dir.join("model.gguf"), &mut |_, _| {}, &AtomicBool::new(false));
    assert!(error.expect_err("refused").to_string().contains("259"));
}

#[test]
fn the_space_is_asked_for_first() {
    // 70B in F32 is 282 GB: more than test machines have free. Where one has, writing is stopped at once.
    let dir = TempDir::new("synth-space");
    let synth = Synth::parse("qwen2.5-72b:f32").expect("parses");
    let error =
        synth.write(&dir.join("model.gguf"), &mut |_, _| {}, &AtomicBool::new(true)).expect_err("refused");
    let text = error.to_string();
    assert!(matches!(error, SynthError::Cancelled) || text.contains("free"), "{text}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 0);
}

#[test]
fn norms_of_q_and_k_take_a_gain_and_nothing_else_does() {
    let of = |shape: &str| Synth::new(tiny(shape), Mix::Plain(Format::Q8_0), None).expect("tiny");
    let synth = of("qwen3-1.7b").with_qk_gain(2.5).expect("it has them");
    assert!(synth.name().contains("2.5"), "{}", synth.name());
    let plain = of("qwen3-1.7b");
    let bytes = |synth: &Synth, name: &str| {
        let tensor = synth.tensor(name).expect(name);
        let mut bytes = vec![0; tensor.bytes as usize];
        synth.open(tensor).read_at(0, &mut bytes).expect("bytes");
        bytes
    };
    for tensor in plain.tensors() {
        let (a, b) = (bytes(&plain, &tensor.name), bytes(&synth, &tensor.name));
        if tensor.name.contains("q_norm") || tensor.name.contains("k_norm") {
            assert!(b.as_chunks::<4>().0.iter().all(|&v| f32::from_le_bytes(v) == 2.5), "{}", tensor.name);
            assert!(a.as_chunks::<4>().0.iter().all(|&v| f32::from_le_bytes(v) == 1.0), "{}", tensor.name);
        } else {
            assert!(a == b, "{}", tensor.name);
        }
    }
    let refused = |synth: Synth, gain: f32| match synth.with_qk_gain(gain) {
        Err(error) => error.to_string(),
        Ok(synth) => panic!("{}", synth.name()),
    };
    let error = refused(of("smollm2-135m"), 2.0);
    assert!(error.contains("smollm2-135m") && error.contains("qwen3"), "{error}");
    for gain in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(refused(of("qwen3-1.7b"), gain).contains("--qk-gain"), "{gain}");
    }
}
