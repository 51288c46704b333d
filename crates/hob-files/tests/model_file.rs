//! `ModelFile` against files made by other writers (the safetensors crate, hob-testkit): contents, both ways of
//! reading, shards, companions, limits, and what happens when a file changes underneath.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use hob_files::gguf_write::Writer;
use hob_files::{Array, FileError, FileKind, Limits, ModelFile, TensorInfo, Value};
use hob_quant::Format;
use hob_testkit::rng::Rng;
use hob_testkit::temp::TempDir;
use hob_testkit::tiny::{TinySpec, f32_encode};
use safetensors::tensor::{Dtype, TensorView};

fn control(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../attacks/control").join(name)
}

fn read(model: &ModelFile, t: &TensorInfo) -> Vec<u8> {
    let mut bytes = vec![0; t.bytes as usize];
    model.read_at(t, 0, &mut bytes).unwrap();
    bytes
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn files_of_the_safetensors_crate_read_back_equal() {
    let folder = TempDir::new("st");
    let path = folder.join("x.safetensors");
    let mut rng = Rng::new(3);
    let specs = [
        ("f32", Dtype::F32, vec![3, 5], 60),
        ("bf16", Dtype::BF16, vec![4], 8),
        ("i64", Dtype::I64, vec![2, 1, 2], 32),
        ("f8", Dtype::F8_E4M3, vec![2, 8], 16),
        ("bool", Dtype::BOOL, vec![3], 3),
        ("scalar", Dtype::F16, vec![], 2),
    ];
    let data: Vec<Vec<u8>> = specs.iter().map(|s| rng.bytes(s.3)).collect();
    let views = specs.iter().zip(&data).map(|((name, dtype, shape, _), bytes)| {
        (name.to_string(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    let model = ModelFile::open(&path).unwrap();
    assert_eq!(model.kind(), FileKind::Safetensors);
    assert_eq!((model.tensors().len(), model.opaque_tensors().len()), (4, 2));
    assert!(model.metadata().is_empty() && model.json("config.json").is_none());
    for ((name, _, shape, _), bytes) in specs.iter().zip(&data) {
        let Some(t) = model.tensor(name) else {
            let t = model.opaque_tensors().iter().find(|t| t.name == *name).unwrap();
            assert_eq!((&t.shape, t.bytes), (shape, bytes.len() as u64));
            assert!(["F8_E4M3", "BOOL"].contains(&t.dtype));
            continue;
        };
        assert_eq!(&t.shape, shape);
        assert_eq!((model.mapped(t), &read(&model, t)), (bytes.as_slice(), bytes));
    }
}

#[test]
fn a_model_written_twice_by_the_testkit_reads_back_equal() {
    let folder = TempDir::new("tiny");
    for spec in [TinySpec::llama(), TinySpec::qwen2()] {
        spec.write_gguf(&folder.join("m.gguf"), &f32_encode).unwrap();
        let hf_folder = folder.join(spec.arch.name());
        fs::create_dir(&hf_folder).unwrap();
        spec.write_hf(&hf_folder).unwrap();
        let gguf = ModelFile::open(folder.join("m.gguf")).unwrap();
        let hf = ModelFile::open(&hf_folder).unwrap();
        assert_eq!((gguf.kind(), hf.kind()), (FileKind::Gguf, FileKind::Safetensors));
        assert_eq!(gguf.metadata().str("general.architecture").unwrap(), Some(spec.arch.name()));
        assert_eq!(gguf.metadata().str_array("tokenizer.ggml.tokens").unwrap().unwrap().len(), spec.vocab);
        assert_eq!(hf.json("config.json").unwrap()["model_type"], spec.arch.name());
        assert!(hf.tokenizer_json().is_some_and(|p| p.is_file()));
        for t in spec.tensors() {
            let shape = if t.vector { vec![t.cols] } else { vec![t.rows, t.cols] };
            let g = gguf.tensor(&t.gguf_name).unwrap();
            let h = hf.tensor(&t.hf_name).unwrap();
            assert_eq!((&g.shape, &h.shape), (&shape, &shape), "{}", t.gguf_name);
            assert_eq!(read(&gguf, g), f32_bytes(&spec.gguf_weights(&t)), "{}", t.gguf_name);
            assert_eq!(gguf.mapped(g), f32_bytes(&spec.gguf_weights(&t)));
            assert_eq!(hf.mapped(h), read(&hf, h), "{}", t.hf_name);
        }
        let files: u64 = [&gguf, &hf].iter().map(|m| m.total_bytes()).sum();
        let paths = gguf.shard_paths().chain(hf.shard_paths());
        assert_eq!(files, paths.map(|p| fs::metadata(p).unwrap().len()).sum::<u64>());
    }
}

#[test]
fn reads_stay_inside_the_tensor() {
    let model = ModelFile::open(control("types.gguf")).unwrap();
    let w = model.tensor("w").unwrap();
    let mut buf = [0; 8];
    model.read_at(w, 24, &mut buf).unwrap();
    for offset in [25, 32, u64::MAX] {
        let error = model.read_at(w, offset, &mut buf).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains("32 bytes"), "{error}");
    }
    // Handles of another model can only be wrong, never out of bounds.
    let foreign = TensorInfo { shard: 7, ..w.clone() };
    assert!(model.read_at(&foreign, 0, &mut buf).is_err() && model.mapped(&foreign).is_empty());
    let foreign = TensorInfo { offset: u64::MAX - 3, ..w.clone() };
    assert!(model.mapped(&foreign).is_empty());
    model.drop_tensor_cache(w);
    model.drop_cache();
    model.read_at(w, 0, &mut buf).unwrap();
}

#[test]
fn a_file_that_shrinks_after_opening_is_an_error_of_the_read() {
    let folder = TempDir::new("shrink");
    let path = folder.join("m.gguf");
    let mut writer = Writer::new();
    writer.tensor("w", Format::F32, &[4096]).unwrap();
    writer.save(&path, &[&[1; 16384]]).unwrap();
    let model = ModelFile::open(&path).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(8192).unwrap();
    let error = model.read_at(&model.tensors()[0], 0, &mut [0; 16384]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn many_threads_read_one_model() {
    fn shared<T: Send + Sync>(value: &T) -> &T {
        value
    }
    let folder = TempDir::new("threads");
    let path = folder.join("m.gguf");
    let data = Rng::new(9).bytes(1 << 16);
    let mut writer = Writer::new();
    writer.tensor("w", Format::I8, &[1 << 16]).unwrap();
    writer.save(&path, &[&data]).unwrap();
    let model = ModelFile::open(&path).unwrap();
    let (model, data) = (shared(&model), &data);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let mut rng = Rng::new(thread);
                let mut buf = [0; 100];
                for _ in 0..500 {
                    let at = rng.below(data.len() - buf.len());
                    model.read_at(&model.tensors()[0], at as u64, &mut buf).unwrap();
                    assert_eq!(buf, data[at..at + buf.len()]);
                }
            });
        }
    });
}

#[test]
fn any_shard_of_a_split_model_opens_the_whole() {
    for number in [1, 2] {
        let model = ModelFile::open(control(&format!("split/m-0000{number}-of-00002.gguf"))).unwrap();
        let shards: Vec<usize> = model.tensors().iter().map(|t| t.shard).collect();
        assert_eq!(shards, [0, 1]);
        assert_eq!(model.metadata().u64("split.no").unwrap(), Some(0), "metadata is the first shard's");
        assert_eq!(model.shard_paths().len(), 2);
        assert!(model.tensors().iter().all(|t| read(&model, t) == [0; 32]));
    }
}

#[test]
fn a_sharded_folder_opens_by_folder_index_or_shard() {
    let shard = "hf/model-00002-of-00002.safetensors";
    for name in ["hf", "hf/model.safetensors.index.json", shard] {
        let model = ModelFile::open(control(name)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(model.tensors().len(), 2, "{name}");
        assert_eq!(model.tensor("v").unwrap().shard, 1);
        assert_eq!(model.json("config.json").unwrap()["model_type"], "llama");
    }
}

#[test]
fn companions_of_a_folder_are_read_within_their_budgets() {
    let folder = TempDir::new("companions");
    fs::copy(control("tiny.safetensors"), folder.join("model.safetensors")).unwrap();
    fs::write(folder.join("config.json"), r#"{"a":[1,2,3]}"#).unwrap();
    fs::write(folder.join("generation_config.json"), r#"{"eos_token_id":2}"#).unwrap();
    fs::write(folder.join("chat_template.jinja"), "{{ messages }}").unwrap();
    fs::write(folder.join("unrelated.json"), "{").unwrap();
    for path in [folder.path().to_path_buf(), folder.join("model.safetensors")] {
        let model = ModelFile::open(&path).unwrap();
        assert_eq!(model.json("generation_config.json").unwrap()["eos_token_id"], 2);
        assert_eq!(model.text("chat_template.jinja"), Some("{{ messages }}"));
        assert!(model.json("tokenizer_config.json").is_none() && model.json("unrelated.json").is_none());
        assert!(model.text("config.json").is_none() && model.tokenizer_json().is_none());
    }
    let refused = |limits: Limits, phrase: &str| {
        let message = ModelFile::open_with(folder.path(), &limits).unwrap_err().to_string();
        assert!(message.contains(phrase), "{message}");
    };
    refused(Limits { json_bytes: 12, ..Limits::default() }, "json_bytes");
    refused(Limits { json_values: 3, ..Limits::default() }, "json_values");
    refused(Limits { json_depth: 1, ..Limits::default() }, "json_depth");
    refused(Limits { text_bytes: 3, ..Limits::default() }, "text_bytes");
    let many = format!("[{}0]", "0,".repeat(300_000));
    fs::write(folder.join("tokenizer_config.json"), many).unwrap();
    refused(Limits::default(), "json_values");
    fs::write(folder.join("tokenizer_config.json"), r#"{"chat_template": "#).unwrap();
    refused(Limits::default(), "tokenizer_config.json");
}

#[test]
fn every_limit_is_enforced_and_named() {
    let refused = |name: &str, limits: Limits, field: &str| {
        let error = ModelFile::open_with(control(name), &limits).expect_err(field);
        assert!(error.to_string().contains(field), "expected {field}: {error}");
    };
    let full = Limits::default;
    let types = "types.gguf";
    refused(types, Limits { gguf_header_bytes: 100, ..full() }, "gguf_header_bytes");
    refused(types, Limits { tensors: 2, ..full() }, "Limits::tensors");
    refused(types, Limits { metadata_keys: 3, ..full() }, "metadata_keys");
    refused(types, Limits { key_bytes: 5, ..full() }, "key_bytes");
    refused(types, Limits { name_bytes: 0, ..full() }, "name_bytes");
    refused(types, Limits { string_bytes: 4, ..full() }, "string_bytes");
    refused(types, Limits { array_len: 1, ..full() }, "array_len");
    refused(types, Limits { array_depth: 1, ..full() }, "array_depth");
    refused(types, Limits { alignment_bytes: 32, ..full() }, "general.alignment");
    refused(types, Limits { gguf_dims: 1, ..full() }, "gguf_dims");
    let split = "split/m-00001-of-00002.gguf";
    refused(split, Limits { shards: 1, ..full() }, "Limits::shards");
    refused(split, Limits { tensors: 1, ..full() }, "Limits::tensors");
    let flat = "tiny.safetensors";
    refused(flat, Limits { safetensors_header_bytes: 10, ..full() }, "safetensors_header_bytes");
    refused(flat, Limits { safetensors_dims: 1, ..full() }, "safetensors_dims");
    refused(flat, Limits { name_bytes: 0, ..full() }, "name_bytes");
    refused(flat, Limits { json_depth: 2, ..full() }, "json_depth");
    refused("dtypes.safetensors", Limits { tensors: 2, ..full() }, "Limits::tensors");
    refused("hf", Limits { shards: 1, ..full() }, "Limits::shards");
    refused("hf", Limits { tensors: 1, ..full() }, "Limits::tensors");
}

#[test]
fn typed_access_converts_without_loss_or_refuses() {
    let model = ModelFile::open(control("types.gguf")).unwrap();
    let m = model.metadata();
    assert_eq!(m.u64("u8").unwrap(), Some(1));
    assert_eq!(
        m.u64("i32").map_err(|e| e.to_string().contains("\"i32\"") && e.to_string().contains("-1")),
        Err(true)
    );
    assert_eq!(m.i64("i32").unwrap(), Some(-1));
    assert_eq!(m.u64("u64").unwrap(), Some(u64::MAX));
    assert!(m.i64("u64").is_err() && m.f64("u64").is_err(), "u64::MAX has no exact i64 or f64");
    assert_eq!(m.f64("f32").unwrap(), Some(0.5));
    assert_eq!(m.f64("u32").unwrap(), Some(7.0));
    assert_eq!((m.bool("bool").unwrap(), m.bool("absent").unwrap()), (Some(true), None));
    assert!(m.bool("u8").is_err() && m.str("u8").is_err() && m.u64("bool").is_err());
    assert_eq!(m.f32_array("floats").unwrap(), Some([1.0, 2.0].as_slice()));
    assert_eq!(m.bool_array("bools").unwrap(), Some([false, true].as_slice()));
    assert!(
        m.f32_array("bools").is_err() && m.u64_array("floats").is_err() && m.str_array("matrix").is_err()
    );
    let strings = m.str_array("strings").unwrap().unwrap();
    assert_eq!(strings.iter().collect::<Vec<_>>(), ["a", "", "\u{e9}"]);
    assert_eq!((strings.get(2), strings.get(3)), (Some("\u{e9}"), None));
    let rows = vec![Array::U8(vec![1, 2]), Array::U8(vec![])];
    assert_eq!(m.get("matrix"), Some(&Value::Array(Array::Nested(rows))));
}

#[test]
fn the_model_id_depends_on_content_and_not_on_the_name() {
    let folder = TempDir::new("id");
    let mut writer = Writer::new();
    writer.set("general.name", "a").tensor("w", Format::I8, &[1 << 20]).unwrap();
    let mut data = Rng::new(5).bytes(1 << 20);
    let id = |writer: &Writer, data: &[u8], name: &str| {
        writer.save(&folder.join(name), &[data]).unwrap();
        ModelFile::open(folder.join(name)).unwrap().model_id()
    };
    let first = id(&writer, &data, "a.gguf");
    assert!(first.len() == 32 && first.bytes().all(|b| b.is_ascii_hexdigit()));
    assert_eq!(id(&writer, &data, "b.gguf"), first);
    for at in [0, (1 << 20) - 1] {
        data[at] ^= 1;
        assert_ne!(id(&writer, &data, "c.gguf"), first, "byte {at}");
        data[at] ^= 1;
    }
    writer.set("general.name", "b");
    assert_ne!(id(&writer, &data, "d.gguf"), first);
    let hf = |config: &str| {
        fs::copy(control("tiny.safetensors"), folder.join("model.safetensors")).unwrap();
        fs::write(folder.join("config.json"), config).unwrap();
        ModelFile::open(folder.path()).unwrap().model_id()
    };
    assert_ne!(hf(r#"{"rope_theta":1}"#), hf(r#"{"rope_theta":2}"#));
}

#[test]
fn paths_that_are_no_model_say_what_to_do() {
    let folder = TempDir::new("paths");
    let refused = |path: &Path, phrase: &str| {
        let message = ModelFile::open(path).unwrap_err().to_string();
        assert!(message.contains(phrase), "expected {phrase:?}: {message}");
    };
    refused(&folder.join("absent.gguf"), "absent.gguf: cannot open it");
    refused(folder.path(), "config.json");
    fs::copy(control("tiny.gguf"), folder.join("m.gguf")).unwrap();
    refused(folder.path(), "give the path of that file");
    fs::write(folder.join("notes.txt"), "hello world").unwrap();
    refused(&folder.join("notes.txt"), "not a model file");
    fs::copy(control("tiny.safetensors"), folder.join("weights")).unwrap();
    assert_eq!(ModelFile::open(folder.join("weights")).unwrap().kind(), FileKind::Safetensors);
    #[cfg(unix)]
    refused(Path::new("/dev/zero"), "a device or pipe");
}

#[test]
fn a_truncated_download_says_how_much_is_missing() {
    let folder = TempDir::new("cut");
    let path = folder.join("m.gguf");
    let mut writer = Writer::new();
    writer.tensor("w", Format::F32, &[1024]).unwrap();
    let whole = writer.to_bytes(&[&[0; 4096]]).unwrap();
    fs::write(&path, &whole[..whole.len() - 1234]).unwrap();
    let error = ModelFile::open(&path).unwrap_err();
    assert!(matches!(error.rule(), FileError::Truncated { .. }), "{error}");
    let message = error.to_string();
    assert!(
        message.contains("1234 bytes are missing") && message.contains("download the file again"),
        "{message}"
    );
}
