//! Quantized files: what becomes of every tensor, that the models run, that budgets are kept, and that nothing is left
//! behind when something is wrong.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hob_compute::{Compute, Token};
use hob_cpu::{Cpu, CpuConfig};
use hob_files::gguf_write::Writer;
use hob_files::{ModelFile, TensorInfo, Value};
use hob_lab::quantize::{self, Goal, Job, Options, QuantizeError, Report, Watch};
use hob_lab::synth::{Experts, Mix, Shape, Synth, find, mixes};
use hob_model::{Batch, FileTensors, Layout, Model, ModelInfo, Row};
use hob_quant::{Format, decode_row};
use hob_testkit::temp::TempDir;
use hob_testkit::tiny::{TinySpec, f32_encode};

const PLAIN: Options = Options { head: None, threads: 2 };

fn shape(name: &str, dim: usize) -> Shape {
    let shape = find(name).expect(name).clone();
    let experts = shape.experts.map(|e| Experts { count: 4, top_k: 2, ffn: dim, shared_ffn: 0, ..e });
    let heads = Shape { heads: 4, kv_heads: 2, head_dim: 64, ..shape };
    Shape { dim, layers: 2, ffn: 2 * dim, vocab: 400, ctx_train: 512, experts, ..heads }
}

/// A model of random F16 weights.
fn source(dir: &TempDir, shape: Shape) -> ModelFile {
    let path = dir.join("source.gguf");
    let synth = Synth::new(shape, Mix::Plain(Format::F16), None).expect("tiny");
    synth.write(&path, &mut |_, _| {}, &AtomicBool::new(false)).expect("written");
    ModelFile::open(&path).expect("opens")
}

fn run(file: &ModelFile, goal: Goal, options: Options, out: &Path) -> Result<Report, QuantizeError> {
    let cancel = AtomicBool::new(false);
    let job = Job::new(file, goal, options, &mut Watch { progress: &mut |_, _| {}, cancel: &cancel })?;
    let outline = job.outline()?;
    let report = job.write(out, &mut Watch { progress: &mut |_, _| {}, cancel: &cancel })?;
    assert_eq!(std::fs::metadata(out).expect("there").len(), outline.file_bytes);
    assert_eq!(report.file_bytes, outline.file_bytes);
    Ok(report)
}

/// As [`run`], and opened.
fn made(file: &ModelFile, goal: Goal, dir: &TempDir) -> (ModelFile, Report) {
    let out = dir.join("out.gguf");
    let report = run(file, goal, PLAIN, &out).expect("quantizes");
    (ModelFile::open(&out).expect("opens"), report)
}

fn weights(file: &ModelFile, tensor: &TensorInfo) -> Vec<f32> {
    let mut x = vec![0.0; tensor.shape.iter().product()];
    decode_row(tensor.format, file.mapped(tensor), &mut x).expect("decodes");
    x
}

/// Logits of a few positions.
fn logits(file: &ModelFile) -> Vec<f32> {
    let file = Arc::new(ModelFile::open(file.path()).expect("opens"));
    let info = ModelInfo::read(&file).expect("a model");
    let mut dev = Cpu::new(&CpuConfig { threads: 1, ..CpuConfig::default() }).expect("cpu");
    let layout = Layout { logit_rows: 4, ..Layout::new(64) };
    let mut model =
        Model::load_from(&FileTensors(file), info, &mut dev, &layout, &mut |_, _| {}).expect("loads");
    let sequence = model.new_sequence().expect("a sequence");
    let row =
        |position| Row { sequence, position, token: Token::Host(position * 50), logits: true, draft: false };
    model.step(&mut dev, &Batch { rows: (0..4).map(row).collect() }).expect("a step");
    let mut all = vec![0.0; 4 * model.info().config.vocab];
    dev.download(model.logits(), 0, &mut all).expect("logits");
    all
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn names_in(dir: &TempDir) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir.path())
        .expect("a folder")
        .map(|e| e.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

#[test]
fn every_type_makes_a_model_that_runs() {
    let dir = TempDir::new("quantize-types");
    let file = source(&dir, shape("llama3.2-1b", 256));
    let reference = logits(&file);
    for format in quantize::formats() {
        let (out, report) = made(&file, Goal::Uniform(format), &dir);
        let tensor = out.tensor("blk.1.ffn_down.weight").expect("there");
        assert_eq!(tensor.format, format);
        let alike = cosine(&reference, &logits(&out));
        let least = if format.bits_per_weight() < 3.0 { 0.8 } else { 0.93 };
        assert!(alike > least, "{format}: cosine {alike}");
        assert!(report.bits_per_weight >= format.bits_per_weight() * 0.99, "{format}");
        let kind = report.types.iter().find(|k| k.format == format.name()).expect("in the table");
        assert_eq!(kind.error.is_some(), format != Format::F16, "{format}");
        let all: usize = out.tensors().iter().map(|t| t.shape.iter().product::<usize>()).sum();
        assert_eq!(report.weights, all as u64);
    }
}

#[test]
fn keys_stay_and_the_type_is_named() {
    let dir = TempDir::new("quantize-keys");
    let file = source(&dir, shape("llama3.2-1b", 256));
    let (out, _) = made(&file, Goal::Uniform(Format::Q5K), &dir);
    for (key, value) in file.metadata().iter() {
        match key {
            "general.file_type" => assert_eq!(out.metadata().get(key), Some(&Value::U32(16))),
            _ => assert_eq!(out.metadata().get(key), Some(value), "{key}"),
        }
    }
    assert_eq!(out.metadata().u64("general.quantization_version").expect("a number"), Some(2));
}

#[test]
fn vectors_routers_and_convolutions_are_copied() {
    let dir = TempDir::new("quantize-kept");
    for (name, kept) in [("qwen3-30b-a3b", ".ffn_gate_inp.weight"), ("lfm2-350m", ".shortconv.conv.weight")] {
        let file = source(&dir, shape(name, 256));
        let (out, report) = made(&file, Goal::Uniform(Format::Q4K), &dir);
        let mut copied = 0;
        for tensor in out.tensors() {
            let old = file.tensor(&tensor.name).expect("the same names");
            assert_eq!(old.shape, tensor.shape);
            if tensor.shape.len() == 1 || tensor.name.ends_with(kept) {
                assert_eq!(tensor.format, old.format, "{}", tensor.name);
                assert!(file.mapped(old) == out.mapped(tensor), "{}", tensor.name);
                copied += 1;
            }
        }
        assert!(out.tensors().iter().any(|t| t.name.ends_with(kept)) && copied > 3);
        assert_eq!(
            report.types.iter().map(|k| k.copied).sum::<u64>(),
            copied,
            "{name}: all others were encoded"
        );
    }
}

#[test]
fn recipes_are_the_rules_that_synthesis_knows() {
    let dir = TempDir::new("quantize-recipes");
    for name in ["llama3.2-1b", "qwen3-30b-a3b"] {
        let shape = shape(name, 256);
        let file = source(&dir, shape.clone());
        for recipe in mixes() {
            let mix = Mix::parse(recipe).expect(recipe);
            let out = dir.join("out.gguf");
            match run(&file, Goal::Mix(mix), PLAIN, &out) {
                Ok(_) => {}
                Err(QuantizeError::Recipe { format, .. }) => {
                    assert_eq!((recipe, format), ("moe_iq3_xxs", Format::IQ3XXS));
                    continue;
                }
                Err(other) => panic!("{recipe}: {other}"),
            }
            let out = ModelFile::open(&out).expect("opens");
            let table = Synth::new(shape.clone(), mix, None).expect("tiny");
            for tensor in hob_model::TensorSource::tensors(&table) {
                let found = out.tensor(&tensor.name).expect("the same names").format;
                assert_eq!(found, tensor.format, "{name} {recipe} {}", tensor.name);
            }
        }
    }
}

#[test]
fn rows_that_are_no_whole_blocks_take_the_next_type() {
    let dir = TempDir::new("quantize-narrow");
    for (dim, expected) in [(96, Format::IQ4NL), (72, Format::F16)] {
        let narrow = Shape { ffn: 512, ..shape("llama3.2-1b", dim) };
        let file = source(&dir, narrow);
        let (out, report) = made(&file, Goal::Uniform(Format::Q3K), &dir);
        assert_eq!(out.tensor("blk.0.ffn_up.weight").expect("there").format, expected, "{dim}");
        assert_eq!(out.tensor("blk.0.ffn_down.weight").expect("there").format, Format::Q3K);
        assert!(report.types.len() >= 3);
        let cancel = AtomicBool::new(false);
        let mut watch = Watch { progress: &mut |_, _| {}, cancel: &cancel };
        let job = Job::new(&file, Goal::Uniform(Format::Q3K), PLAIN, &mut watch).expect("a job");
        assert!(job.outline().expect("sizes").fell_back > 3);
        logits(&out);
    }
}

#[test]
fn the_head_is_kept_well_unless_asked() {
    let dir = TempDir::new("quantize-head");
    let file = source(&dir, shape("llama3.2-1b", 256));
    let of = |head: Option<Format>, goal: Goal| {
        let out = dir.join("out.gguf");
        run(&file, goal, Options { head, ..PLAIN }, &out).expect("quantizes");
        ModelFile::open(&out).expect("opens").tensor("token_embd.weight").expect("a tied head").format
    };
    assert_eq!(of(None, Goal::Uniform(Format::Q3K)), Format::Q6K);
    assert_eq!(of(None, Goal::Uniform(Format::Q8_0)), Format::Q8_0);
    assert_eq!(of(Some(Format::Q3K), Goal::Uniform(Format::Q3K)), Format::Q3K);
    assert_eq!(of(Some(Format::Q5K), Goal::Bits(5.0)), Format::Q5K);
}

#[test]
fn budgets_are_kept_and_used() {
    let dir = TempDir::new("quantize-budget");
    let file = source(&dir, shape("qwen2.5-0.5b", 256));
    let mut last = f64::INFINITY;
    for bits in [3.25, 4.0, 5.0, 7.0] {
        let (_, report) = made(&file, Goal::Bits(bits), &dir);
        assert!(report.bits_per_weight <= bits, "{} for {bits}", report.bits_per_weight);
        assert!(report.bits_per_weight > bits - 0.25, "{} for {bits}", report.bits_per_weight);
        assert!(report.error < last, "{} at {bits}, {last} before", report.error);
        last = report.error;
    }
    for share in [22, 40] {
        let bytes = file.total_bytes() * share / 100;
        let (out, report) = made(&file, Goal::Bytes(bytes), &dir);
        assert!(
            out.total_bytes() <= bytes && report.file_bytes > bytes * 9 / 10,
            "{} of {bytes}",
            report.file_bytes
        );
    }
    // All of it fits: nothing changes.
    let (_, report) = made(&file, Goal::Bytes(1 << 30), &dir);
    assert!(report.types.iter().all(|k| k.copied == k.tensors), "{report}");
}

#[test]
fn goals_out_of_reach_are_refused_with_what_could_be() {
    let dir = TempDir::new("quantize-reach");
    let file = source(&dir, shape("qwen2.5-0.5b", 256));
    let out = dir.join("out.gguf");
    let error = run(&file, Goal::Bits(2.0), PLAIN, &out).expect_err("too few").to_string();
    assert!(error.contains("2.00 bits") && error.contains("the least is 2."), "{error}");
    let error = run(&file, Goal::Bytes(1000), PLAIN, &out).expect_err("too few").to_string();
    assert!(error.contains("1000 bytes"), "{error}");
    let least: u64 = error
        .rsplit_once("the least is ")
        .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
        .expect("a number");
    let report = run(&file, Goal::Bytes(least), PLAIN, &out).expect("what is said to be possible is");
    assert!(report.file_bytes <= least);
    for bits in [0.0, -1.0, 33.0, f64::NAN, f64::INFINITY] {
        assert!(
            matches!(run(&file, Goal::Bits(bits), PLAIN, &out), Err(QuantizeError::Bits { .. })),
            "{bits}"
        );
    }
    let narrow = source(&dir, shape("qwen2.5-0.5b", 96));
    let error = run(&narrow, Goal::Bits(3.0), PLAIN, &out).expect_err("too few").to_string();
    assert!(error.contains("multiple of 256"), "{error}");
}

#[test]
fn small_matrices_get_more_bits_than_large_ones() {
    let dir = TempDir::new("quantize-spend");
    let file = source(&dir, Shape { ffn: 2048, ..shape("qwen2.5-0.5b", 256) });
    let (out, _) = made(&file, Goal::Bits(4.0), &dir);
    let bits = |name: &str| out.tensor(name).expect(name).format.bits_per_weight();
    assert!(bits("blk.1.attn_v.weight") > bits("blk.1.ffn_up.weight"));
    assert!(bits("blk.1.attn_k.weight") > bits("blk.1.ffn_gate.weight"));
}

#[test]
fn threads_do_not_change_a_byte() {
    let dir = TempDir::new("quantize-threads");
    let file = source(&dir, shape("llama3.2-1b", 256));
    let bytes = |threads: usize, goal: Goal| {
        let out = dir.join("out.gguf");
        run(&file, goal, Options { threads, ..PLAIN }, &out).expect("quantizes");
        std::fs::read(out).expect("there")
    };
    for goal in [Goal::Uniform(Format::Q4K), Goal::Bits(4.0)] {
        assert!(bytes(1, goal) == bytes(3, goal), "{goal:?}");
    }
}

/// A model of one matrix and a norm.
fn small(dir: &TempDir, x: &[f32], cols: usize) -> ModelFile {
    let path = dir.join("small.gguf");
    let mut writer = Writer::new();
    writer.set("general.architecture", "llama");
    writer.tensor("blk.0.ffn_up.weight", Format::F32, &[x.len() / cols, cols]).expect("a tensor");
    writer.tensor("blk.0.ffn_norm.weight", Format::F32, &[4]).expect("a tensor");
    let bytes = |x: &[f32]| x.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    writer.save(&path, &[&bytes(x), &bytes(&[1.0; 4])]).expect("written");
    ModelFile::open(&path).expect("opens")
}

#[test]
fn weights_that_are_no_numbers_are_named_and_nothing_is_left() {
    let dir = TempDir::new("quantize-nan");
    let out = dir.join("out.gguf");
    std::fs::write(&out, "the file of that name").expect("written");
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = vec![0.25; 8 * 256];
        x[5 * 256 + 7] = bad;
        let file = small(&dir, &x, 256);
        for goal in [Goal::Uniform(Format::Q4K), Goal::Uniform(Format::F16), Goal::Bits(5.0)] {
            let error = run(&file, goal, PLAIN, &out).expect_err("no number").to_string();
            assert!(error.contains("blk.0.ffn_up.weight, row 5"), "{error}");
        }
        assert_eq!(names_in(&dir), ["out.gguf", "small.gguf"]);
        assert_eq!(std::fs::read(&out).expect("still there"), b"the file of that name");
    }
    let file = small(&dir, &[1e6; 512], 256);
    let error = run(&file, Goal::Uniform(Format::F16), PLAIN, &out).expect_err("beyond f16").to_string();
    assert!(error.contains("F16") && error.contains("range"), "{error}");
}

#[test]
fn rows_of_zeros_stay_zeros() {
    let dir = TempDir::new("quantize-zero");
    let mut x: Vec<f32> = (0..8 * 256).map(|i| ((i * 37 % 101) as f32 - 50.0) / 100.0).collect();
    x[256..512].fill(0.0);
    let file = small(&dir, &x, 256);
    for format in quantize::formats() {
        let (out, _) = made(&file, Goal::Uniform(format), &dir);
        let back = weights(&out, out.tensor("blk.0.ffn_up.weight").expect("there"));
        assert!(back[256..512].iter().all(|v| *v == 0.0) && back[0] != 0.0, "{format}");
    }
    // A matrix of nothing but zeros loses nothing, whatever it gets.
    let (_, report) = made(&small(&dir, &[0.0; 512], 256), Goal::Bits(5.0), &dir);
    assert_eq!(report.error, 0.0);
}

#[test]
fn a_stopped_or_failed_run_leaves_nothing() {
    let dir = TempDir::new("quantize-stop");
    let file = source(&dir, shape("llama3.2-1b", 256));
    let out = dir.join("out.gguf");
    for goal in [Goal::Uniform(Format::Q4_0), Goal::Bits(5.0)] {
        let cancel = AtomicBool::new(false);
        let job = Job::new(&file, goal, PLAIN, &mut Watch { progress: &mut |_, _| {}, cancel: &cancel });
        let job = job.expect("a job");
        let mut progress = |done, total| cancel.store(done > total / 2, Ordering::Relaxed);
        let stopped = job.write(&out, &mut Watch { progress: &mut progress, cancel: &cancel });
        assert!(matches!(stopped, Err(QuantizeError::Cancelled)), "{stopped:?}");
        assert_eq!(names_in(&dir), ["source.gguf"]);
        let nowhere = job.write(
            &dir.join("no/such/out.gguf"),
            &mut Watch { progress: &mut |_, _| {}, cancel: &AtomicBool::new(false) },
        );
        assert!(nowhere.expect_err("no folder").to_string().contains("out.gguf"));
    }
    let cancel = AtomicBool::new(true);
    let mut watch = Watch { progress: &mut |_, _| {}, cancel: &cancel };
    let stopped = Job::new(&file, Goal::Bits(5.0), PLAIN, &mut watch);
    assert!(matches!(stopped, Err(QuantizeError::Cancelled)));
}

#[test]
fn the_model_itself_is_never_written_to() {
    let dir = TempDir::new("quantize-itself");
    let file = source(&dir, shape("llama3.2-1b", 256));
    let before = std::fs::read(file.path()).expect("there");
    let error =
        run(&file, Goal::Uniform(Format::Q4_0), PLAIN, &dir.join("./source.gguf")).expect_err("itself");
    assert!(matches!(error, QuantizeError::Itself { .. }), "{error}");
    assert!(std::fs::read(file.path()).expect("there") == before);
}

#[test]
fn folders_of_safetensors_and_files_without_matrices_are_refused() {
    let dir = TempDir::new("quantize-refused");
    let folder = dir.join("hf");
    std::fs::create_dir(&folder).expect("a folder");
    TinySpec::llama().write_hf(&folder).expect("a model");
    let file = ModelFile::open(&folder).expect("opens");
    let error = run(&file, Goal::Uniform(Format::Q4_0), PLAIN, &dir.join("out.gguf")).expect_err("no GGUF");
    assert!(error.to_string().contains("GGUF files only"), "{error}");
    let path = dir.join("norms.gguf");
    let mut writer = Writer::new();
    writer.tensor("output_norm.weight", Format::F32, &[4]).expect("a tensor");
    writer.save(&path, &[&[0; 16]]).expect("written");
    let file = ModelFile::open(&path).expect("opens");
    let error = run(&file, Goal::Uniform(Format::Q4_0), PLAIN, &dir.join("out.gguf")).expect_err("nothing");
    assert!(matches!(error, QuantizeError::NothingToDo { .. }), "{error}");
    let tiny = dir.join("tiny.gguf");
    TinySpec::llama().write_gguf(&tiny, &f32_encode).expect("a model");
    let file = ModelFile::open(&tiny).expect("opens");
    run(&file, Goal::Uniform(Format::Q8_0), PLAIN, &dir.join("out.gguf")).expect("a model of F32");
}

#[test]
fn dither_moves_weights_by_up_to_half_a_step_and_is_drawn_from_its_seed() {
    let dir = TempDir::new("quantize-dither");
    let file = source(&dir, shape("llama3.2-1b", 256));
    for format in [Format::Q4_1, Format::Q3K, Format::Q6K, Format::Q8_0] {
        run(&file, Goal::Uniform(format), PLAIN, &dir.join("quantized.gguf")).expect("quantizes");
        let quantized = ModelFile::open(dir.join("quantized.gguf")).expect("opens");
        let (reference, report) = made(&quantized, Goal::Dither(1), &dir);
        assert!(
            reference.tensors().iter().all(|t| matches!(t.format, Format::F16 | Format::F32)),
            "{report}"
        );
        let name = "blk.1.ffn_up.weight";
        let tensor = quantized.tensor(name).expect("there");
        let old = weights(&quantized, tensor);
        let new = weights(&reference, reference.tensor(name).expect("there"));
        let (mut moved, mut widest) = (0.0f64, 0.0f64);
        for (i, (old, new)) in old.iter().zip(&new).enumerate() {
            let block = hob_quant::int_block(format, quantized.mapped(tensor), i / 32).expect("a block");
            let step = f64::from((block.d * f32::from(block.scales[i % 32 / 16])).abs()).max(1e-9);
            // F16 rounds by up to 2^-11 of the weight.
            let by = (f64::from(new - old).abs() - f64::from(old.abs()) * 2f64.powi(-10)).max(0.0) / step;
            assert!(by <= 0.5 + 1e-3, "{format} weight {i} moved by {by} steps");
            moved += by * by;
            widest = widest.max(by);
        }
        // A uniform distribution of width 1 has a mean square of 1/12, less what was taken off for F16.
        let mean = moved / old.len() as f64;
        assert!(
            (0.05..0.09).contains(&mean) && widest > 0.45,
            "{format}: mean square {mean}, widest {widest}"
        );
        let first = std::fs::read(reference.path()).expect("there");
        made(&quantized, Goal::Dither(1), &dir);
        assert!(std::fs::read(reference.path()).expect("there") == first, "the same seed is the same file");
        made(&quantized, Goal::Dither(2), &dir);
        assert!(std::fs::read(reference.path()).expect("there") != first, "another seed is another file");
    }
    run(&file, Goal::Uniform(Format::IQ4NL), PLAIN, &dir.join("quantized.gguf")).expect("quantizes");
    let quantized = ModelFile::open(dir.join("quantized.gguf")).expect("opens");
    let error = run(&quantized, Goal::Dither(1), PLAIN, &dir.join("out.gguf")).expect_err("uneven");
    assert!(matches!(error, QuantizeError::Uneven { format: Format::IQ4NL, .. }), "{error}");
}
