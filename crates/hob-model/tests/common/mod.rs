//! Tiny models on disk, and a loaded model with its device in one hand.
#![allow(dead_code)] // each test file uses its part

use std::sync::Arc;

use hob_compute::{Compute, Token};
use hob_cpu::{Cpu, CpuConfig};
use hob_files::ModelFile;
use hob_files::gguf_write::Writer;
use hob_model::{Batch, Layout, Model, Result, Row, SeqId};
use hob_quant::{Format, encode_row};
use hob_testkit::rng::Rng;
use hob_testkit::temp::TempDir;
use hob_testkit::tiny::{Encoded, TinySpec};

/// A model file in its temporary folder.
pub struct Tiny {
    pub dir: TempDir,
    pub file: Arc<ModelFile>,
    pub vocab: usize,
}

/// Matrices of `format`.
pub fn encode(format: Format) -> impl Fn(&str, usize, usize, &[f32]) -> Encoded {
    move |_, rows, cols, weights| {
        let bytes = format.row_bytes(cols).expect("whole blocks");
        let mut packed = vec![0u8; rows * bytes];
        for (row, out) in weights.chunks(cols).zip(packed.chunks_mut(bytes)) {
            encode_row(format, row, out).expect("finite weights");
        }
        (format.ggml_id(), packed)
    }
}

/// `spec` as a GGUF with matrices of `format`.
pub fn gguf(spec: &TinySpec, format: Format) -> Tiny {
    let dir = TempDir::new("model");
    let path = dir.join("tiny.gguf");
    spec.write_gguf(&path, &encode(format)).expect("writable");
    Tiny { file: Arc::new(ModelFile::open(&path).expect("a GGUF")), vocab: spec.vocab, dir }
}

/// `spec` as a folder of config.json and F32 safetensors, after `change` had its way with the config.
pub fn folder(spec: &TinySpec, change: impl FnOnce(&mut serde_json::Value)) -> Tiny {
    let dir = TempDir::new("model");
    spec.write_hf(dir.path()).expect("writable");
    let config = dir.join("config.json");
    let text = std::fs::read_to_string(&config).expect("config.json");
    let mut json = serde_json::from_str(&text).expect("json");
    change(&mut json);
    std::fs::write(&config, json.to_string()).expect("writable");
    Tiny { file: Arc::new(ModelFile::open(dir.path()).expect("a folder")), vocab: spec.vocab, dir }
}

/// `tiny` with other metadata and without the tensors that `keep` refuses.
pub fn rewritten(
    tiny: &Tiny,
    change: impl FnOnce(&mut Writer),
    keep: impl Fn(&str) -> bool,
) -> Arc<ModelFile> {
    let mut writer = Writer::new();
    tiny.file.metadata().copy_to(&mut writer);
    change(&mut writer);
    let mut data = Vec::new();
    for tensor in tiny.file.tensors().iter().filter(|t| keep(&t.name)) {
        writer.tensor(&tensor.name, tensor.format, &tensor.shape).expect("a tensor");
        data.push(tiny.file.mapped(tensor));
    }
    let path = tiny.dir.join("rewritten.gguf");
    writer.save(&path, &data).expect("writable");
    Arc::new(ModelFile::open(&path).expect("a GGUF"))
}

pub fn cpu(threads: usize, exact: bool) -> Cpu {
    Cpu::new(&CpuConfig { threads, exact, isa: None, pin: false }).expect("a CPU device")
}

/// `n` seeded tokens.
pub fn tokens(seed: u64, n: usize, vocab: usize) -> Vec<u32> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| rng.below(vocab) as u32).collect()
}

/// A layout that gives logits for every row.
pub fn layout(ctx_tokens: usize, sequences: usize, chunk_rows: usize) -> Layout {
    Layout { sequences, chunk_rows, logit_rows: chunk_rows, ..Layout::new(ctx_tokens) }
}

/// A loaded model and its device.
pub struct Bench {
    pub dev: Box<dyn Compute>,
    pub model: Model,
    pub batch: Batch,
}

impl Bench {
    pub fn new(tiny: &Tiny, dev: impl Compute + 'static, layout: &Layout) -> Self {
        let mut dev: Box<dyn Compute> = Box::new(dev);
        let model = Model::load(tiny.file.clone(), dev.as_mut(), layout, &mut |_, _| ()).expect("a model");
        Bench { dev, model, batch: Batch::default() }
    }

    /// Adds rows that continue `id`; several calls make one batch.
    pub fn add(&mut self, id: SeqId, tokens: &[u32]) {
        let start = self.model.seq_len(id).expect("a sequence") as u32;
        self.batch.rows.extend(tokens.iter().zip(start..).map(|(&token, position)| Row {
            sequence: id,
            position,
            token: Token::Host(token),
            logits: true,
        }));
    }

    /// Runs and empties the batch; gives the logits, `[rows, vocab]`.
    pub fn step(&mut self) -> Result<Vec<f32>> {
        let result = self.model.step(self.dev.as_mut(), &self.batch);
        self.batch.rows.clear();
        let mut out = vec![0f32; result? * self.model.info().config.vocab];
        self.dev.download(self.model.logits(), 0, &mut out)?;
        Ok(out)
    }

    /// All of `tokens` in steps of `chunk` rows; logits of every position.
    pub fn feed(&mut self, id: SeqId, tokens: &[u32], chunk: usize) -> Vec<f32> {
        let mut all = Vec::new();
        for part in tokens.chunks(chunk) {
            self.add(id, part);
            all.extend(self.step().expect("a step"));
        }
        all
    }
}

/// Loads, feeds one fresh sequence, and gives the logits of every position.
pub fn logits(tiny: &Tiny, dev: impl Compute + 'static, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let mut bench = Bench::new(tiny, dev, &layout(tokens.len(), 1, chunk));
    let id = bench.model.new_sequence().expect("a free sequence");
    bench.feed(id, tokens, chunk)
}

/// Fails with the first place where two runs differ in a bit.
pub fn assert_same_bits(a: &[f32], b: &[f32], vocab: usize, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let differ = a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits());
    if let Some(at) = differ {
        panic!("{what}: position {}, token {}: {} and {}", at / vocab, at % vocab, a[at], b[at]);
    }
}

/// Mean squared error over mean square.
pub fn nmse(a: &[f32], reference: &[f32]) -> f64 {
    let error: f64 = a.iter().zip(reference).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    error / reference.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()
}
