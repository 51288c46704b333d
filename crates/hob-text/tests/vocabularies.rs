//! Real vocabularies against recorded ids; nothing here is committed but the test. `HOB_TEST_VOCABS` names a folder
//! with llama.cpp's `ggml-vocab-*.gguf`, `.inp` and `.out`, and with files `*.ids.json` that fixtures/record.py
//! wrote: `{"model": path, "cases": [{"text", "parse": ids, "plain": ids}, ..]}`.

use std::path::{Path, PathBuf};

use hob_files::ModelFile;
use hob_text::{Special, Tokenizer};
use serde_json::Value;

fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("HOB_TEST_VOCABS").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("skipped: HOB_TEST_VOCABS is not set");
    }
    folder
}

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.to_str().is_some_and(|path| path.ends_with(ending))).collect();
    files.sort();
    files
}

fn open(path: &Path) -> Result<Tokenizer, String> {
    if path.extension().is_some_and(|extension| extension == "json") {
        return Tokenizer::from_json(path).map_err(|error| error.to_string());
    }
    let file = ModelFile::open(path).map_err(|error| error.to_string())?;
    Tokenizer::from_model(&file).map_err(|error| error.to_string())
}

#[test]
fn llama_cpp_s_own_vocabulary_tests() {
    let Some(folder) = folder() else { return };
    let mut faults = Vec::new();
    for path in files(&folder, ".gguf") {
        let (inputs, outputs) = (path.with_extension("gguf.inp"), path.with_extension("gguf.out"));
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let tokenizer = match open(&path) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                println!("{name}: {error}");
                continue;
            }
        };
        let (Ok(inputs), Ok(outputs)) = (std::fs::read_to_string(inputs), std::fs::read_to_string(outputs))
        else {
            continue;
        };
        let texts: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
        let mut right = 0;
        for (text, line) in texts.iter().zip(outputs.lines()) {
            let expected: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let found = tokenizer.encode(text, Special::Plain).unwrap();
            match found == expected {
                true => right += 1,
                false => {
                    faults.push(format!("{name} {text:?}\n  expected {expected:?}\n  found    {found:?}"))
                }
            }
        }
        println!("{name}: {right} of {}", texts.len());
    }
    assert!(faults.is_empty(), "{} differ:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn recorded_ids() {
    let Some(folder) = folder() else { return };
    let mut faults = Vec::new();
    for path in files(&folder, ".ids.json") {
        let record: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let start = std::time::Instant::now();
        let tokenizer = open(Path::new(record["model"].as_str().unwrap())).unwrap();
        println!("{}: loaded in {:?}", path.display(), start.elapsed());
        let cases = record["cases"].as_array().unwrap();
        let (mut right, mut round) = (0, 0);
        for case in cases {
            let text = case["text"].as_str().unwrap();
            // Known differences: llama.cpp makes every </s> a control token, and does not compose characters
            // where the original tokenizer does.
            if text.contains("</s>") || case["composed"].as_bool() == Some(false) {
                continue;
            }
            for (mode, special) in [("parse", Special::Parse), ("plain", Special::Plain)] {
                let expected: Vec<u32> = serde_json::from_value(case[mode].clone()).unwrap();
                let found = tokenizer.encode(text, special).unwrap();
                match found == expected {
                    true => right += 1,
                    false => {
                        faults.push(format!("{mode} {text:?}\n  expected {expected:?}\n  found    {found:?}"))
                    }
                }
                if special == Special::Plain {
                    round += usize::from(tokenizer.decode(&found) == text);
                }
            }
        }
        println!(
            "{}: {right} of {} equal, {round} of {} come back",
            path.display(),
            cases.len() * 2,
            cases.len()
        );
    }
    assert!(faults.is_empty(), "{} differ:\n{}", faults.len(), faults.join("\n"));
}
