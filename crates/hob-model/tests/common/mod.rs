//! Tiny models on disk, and a loaded model with its device in one hand.
#![allow(dead_code)] // each test file uses its part

use std::path::Path;
use std::sync::Arc;

use hob_compute::reference::Reference;
use hob_compute::{Compute, Token};
use hob_cpu::{Cpu, CpuConfig};
use hob_files::ModelFile;
use hob_files::gguf_write::Writer;
use hob_model::{Batch, KvLayout, KvPair, Layout, Model, Result, Row, SeqId};
use hob_quant::{Format, KvFormat, encode_row};
use hob_testkit::rng::Rng;
use hob_testkit::temp::TempDir;
use hob_testkit::tiny::{Encoded, TinySpec};

/// A model file in its temporary folder.
pub struct Tiny {
    pub dir: TempDir,
    pub file: Arc<ModelFile>,
    pub vocab: usize,
}

/// A model that was checked against a reference implementation: the folder, or its GGUF.
pub fn golden(name: &str, gguf: bool) -> Tiny {
    let mut path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if gguf {
        path.push("model.f32.gguf");
    }
    let file = Arc::new(ModelFile::open(&path).expect("a model file"));
    Tiny { dir: TempDir::new("golden"), file, vocab: 320 }
}

/// All that have a GGUF.
pub fn goldens() -> Vec<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let folders = std::fs::read_dir(dir).expect("fixtures").map(|e| e.expect("an entry").path());
    let folders = folders.filter(|folder| folder.join("model.f32.gguf").exists());
    let name = |folder: std::path::PathBuf| folder.file_name().map(|n| n.to_string_lossy().into_owned());
    let mut names: Vec<String> = folders.filter_map(name).collect();
    names.sort();
    names
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

/// A model file that needs a folder of its own or none.
pub fn opened(path: &Path, dir: TempDir) -> Tiny {
    let file = Arc::new(ModelFile::open(path).expect("a model"));
    let vocab = hob_model::Config::from_file(&file).expect("a config").vocab;
    Tiny { dir, file, vocab }
}

/// A golden model with its large matrices in `format`, as far as their rows are whole blocks.
pub fn quantised(name: &str, format: Format) -> Tiny {
    let source = golden(name, true).file;
    let (mut writer, mut data) = (Writer::new(), Vec::new());
    source.metadata().copy_to(&mut writer);
    for tensor in source.tensors() {
        let bytes = source.mapped(tensor);
        let (small, cols) =
            (["_inp", "_norm", "conv.conv", ".bias"], *tensor.shape.last().expect("a dimension"));
        let whole = format.row_bytes(cols).is_some();
        if tensor.shape.len() < 2 || !whole || small.iter().any(|s| tensor.name.contains(s)) {
            writer.tensor(&tensor.name, tensor.format, &tensor.shape).expect("a tensor");
            data.push(bytes.to_vec());
            continue;
        }
        let weights: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let (_, packed) = encode(format)(&tensor.name, weights.len() / cols, cols, &weights);
        writer.tensor(&tensor.name, format, &tensor.shape).expect("a tensor");
        data.push(packed);
    }
    let dir = TempDir::new("mixture");
    let path = dir.join("quantised.gguf");
    writer.save(&path, &data.iter().map(Vec::as_slice).collect::<Vec<_>>()).expect("writable");
    opened(&path, dir)
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
        Self::of(tiny, Box::new(dev), layout)
    }

    pub fn of(tiny: &Tiny, dev: Box<dyn Compute>, layout: &Layout) -> Self {
        let mut dev = dev;
        let model = Model::load(tiny.file.clone(), dev.as_mut(), layout, &mut |_, _| ()).expect("a model");
        Bench { dev, model, batch: Batch::default() }
    }

    /// The device again, with nothing on it.
    pub fn close(self) -> Box<dyn Compute> {
        let Bench { mut dev, model, .. } = self;
        model.unload(dev.as_mut()).expect("unloaded");
        dev
    }

    /// Adds rows that continue `id`; several calls make one batch.
    pub fn add(&mut self, id: SeqId, tokens: &[u32]) {
        let start = self.model.seq_len(id).expect("a sequence") as u32;
        self.batch.rows.extend(tokens.iter().zip(start..).map(|(&token, position)| Row {
            sequence: id,
            position,
            token: Token::Host(token),
            logits: true,
            draft: false,
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

/// What [`hob_model::Model`] remembers, without its device in every call.
impl Bench {
    pub fn open(&mut self) -> SeqId {
        self.model.new_sequence().expect("a free sequence")
    }

    pub fn seal(&mut self, id: SeqId, tokens: &[u32]) {
        self.model.seal(self.dev.as_mut(), id, tokens).expect("its tokens");
    }

    pub fn keep(&mut self, id: SeqId, tokens: &[u32]) {
        self.model.keep(self.dev.as_mut(), id, tokens).expect("its tokens");
    }

    /// Resumes, after checking that the model says beforehand how far.
    pub fn resume(&mut self, id: SeqId, tokens: &[u32], most: usize) -> usize {
        let promised = self.model.resumable(Some(id), tokens, most);
        let len = self.model.resume(self.dev.as_mut(), id, tokens, most).expect("a device that works");
        assert_eq!(len, promised, "resumable and resume disagree");
        assert_eq!(len, self.model.seq_len(id).expect("a sequence"));
        len
    }

    /// As a session does: resumes what there is of `tokens`, feeds the rest, seals, keeps the end. Gives the length
    /// resumed and the logits of the rest.
    pub fn turn(&mut self, id: SeqId, tokens: &[u32], chunk: usize) -> (usize, Vec<f32>) {
        let resumed = self.resume(id, tokens, tokens.len() - 1);
        let mut logits = Vec::new();
        for part in tokens[resumed..].chunks(chunk) {
            logits.extend(self.feed(id, part, chunk));
            self.seal(id, tokens);
        }
        self.keep(id, tokens);
        (resumed, logits)
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

/// Both kinds of devices, by number.
pub fn device(kind: usize) -> Box<dyn Compute> {
    match kind {
        0 => Box::new(Reference::new(true)),
        1 => Box::new(cpu(2, true)),
        _ => Box::new(cpu(2, false)),
    }
}

/// As [`layout`], with a cache of `cached_tokens`.
pub fn cached(ctx_tokens: usize, sequences: usize, cached_tokens: usize) -> Layout {
    Layout { cached_tokens, ..layout(ctx_tokens, sequences, 64) }
}

/// Formats that are not f16.
pub fn packed_layouts() -> impl Iterator<Item = KvLayout> {
    use KvFormat::{Asym4, Bf16, Q4, Q8};
    [(Q8, Q4), (Q4, Q4), (Asym4, Q8), (Bf16, Bf16)]
        .into_iter()
        .map(|(k, v)| KvLayout::uniform(KvPair { k, v }))
}

/// The logits behind `from` must be those of a run without interruptions.
pub fn assert_continues(logits: &[f32], whole: &[f32], from: usize, vocab: usize, what: &str) {
    let expected = &whole[from * vocab..][..logits.len()];
    assert_same_bits(logits, expected, vocab, what);
}

/// Random operations on sequences that share, fork and go back: none fails, every logit is that of a fresh run, and no
/// page is lost.
pub fn scramble(tiny: &Tiny, layout: &Layout, seed: u64, operations: usize) {
    let mut rng = Rng::new(seed);
    let mut bench = Bench::of(tiny, device(2), layout);
    let mut fresh = Bench::of(tiny, device(2), &Layout { sequences: 1, cached_tokens: 0, ..layout.clone() });
    let scratch = fresh.open();
    let total = bench.model.memory().free_pages;
    let mut live: Vec<(SeqId, Vec<u32>)> =
        (0..layout.sequences).map(|_| (bench.open(), Vec::new())).collect();
    for operation in 0..operations {
        let at = rng.below(live.len());
        let (id, mut text) = live[at].clone();
        match rng.below(6) {
            // A prompt that begins like another sequence's, then differs.
            0 => {
                let other = live[rng.below(live.len())].1.clone();
                let shared = rng.below(other.len() + 1);
                text = other[..shared].to_vec();
                text.extend(tokens(rng.u64(), rng.below(300), tiny.vocab));
                text.truncate(layout.ctx_tokens);
                let most = rng.below(text.len() + 2);
                let resumed = bench.resume(id, &text, most);
                text.truncate(resumed);
            }
            1 => {
                let keep = rng.below(text.len() + 1);
                let can = bench.model.can_truncate(id, keep).expect("a sequence");
                let truncated = bench.model.truncate(id, keep);
                assert_eq!(truncated.is_ok(), can, "{truncated:?}");
                text.truncate(if can { keep } else { text.len() });
            }
            2 => bench.keep(id, &text),
            3 => bench.seal(id, &text),
            4 if operation % 5 == 0 => {
                bench.model.free_sequence(id).expect("it lives");
                live[at].0 = bench.open();
                text.clear();
            }
            _ => {
                let room = layout.ctx_tokens - text.len();
                let more = tokens(rng.u64(), rng.below(200).min(room), tiny.vocab);
                if !more.is_empty() {
                    let logits = bench.feed(id, &more, layout.chunk_rows);
                    let from = text.len();
                    text.extend(&more);
                    fresh.model.truncate(scratch, 0).expect("always possible");
                    let whole = fresh.feed(scratch, &text, layout.chunk_rows);
                    let what = format!("seed {seed}, operation {operation}, from {from}");
                    assert_continues(&logits, &whole, from, tiny.vocab, &what);
                }
            }
        }
        live[at].1 = text;
        let memory = bench.model.memory();
        let sum = memory.free_pages + memory.live_pages + memory.cached_pages;
        assert_eq!(sum, total, "seed {seed}, operation {operation}: {memory:?}");
    }
}
