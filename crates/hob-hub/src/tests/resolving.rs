//! What a typed text means.

use super::support::*;
use crate::{HubError, Origin, Resolved};

#[test]
fn catalogue_names_and_aliases_want_a_download_until_installed() {
    let dir = TempDir::new();
    let hub = hub_in(&dir);
    for name in ["default", "smollm2", "SmolLM2:135M", "smollm2-135m-instruct"] {
        match hub.resolve(name).unwrap() {
            Resolved::Download(entry) => assert_eq!(entry.name, "smollm2-135m-instruct"),
            other => panic!("{name} is {other:?}"),
        }
    }
}

#[test]
fn unknown_names_get_suggestions_and_the_way_out() {
    let dir = TempDir::new();
    let hub = hub_in(&dir);
    dir.put("home/models/my-own/x.gguf", b"no manifest");
    for (typed, hint) in [
        ("smolm2", "smollm2"),
        ("smollm2-135m-instrukt", "smollm2-135m-instruct"),
        ("qwen2.5-0.5", "qwen2.5-0.5b"),
        ("defualt", "default"),
        ("ollama:nothing", "hob list"),
        ("zzzzzz", "hob list"),
        ("my-own", "hob list"),
    ] {
        match hub.resolve(typed) {
            Err(error @ HubError::Unknown { .. }) => {
                assert!(error.to_string().contains(hint), "{typed}: {error}");
                assert!(error.to_string().contains("hob list"), "{typed}: {error}");
            }
            other => panic!("{typed}: {other:?}"),
        }
    }
}

#[test]
fn paths_are_judged_by_what_lies_there() {
    let dir = TempDir::new();
    let hub = hub_in(&dir);
    let at = |path: &str| dir.path().join(path).to_str().unwrap().to_owned();
    dir.put("a/model.gguf", &tiny_gguf(32));
    dir.put("b/sha256-00", &tiny_gguf(32));
    dir.put("c/model.safetensors", &[0; 8]);
    dir.put("d/config.json", b"{}");
    dir.put("d/m-1.safetensors", &[0; 3]);
    dir.put("d/m-2.safetensors", &[0; 4]);
    dir.put("e/x-00001-of-00002.gguf", &[0; 3]);
    dir.put("e/x-00002-of-00002.gguf", &[0; 4]);
    for (path, lies_at, bytes) in [
        ("a/model.gguf", "a/model.gguf", tiny_gguf(32).len() as u64),
        ("a", "a/model.gguf", tiny_gguf(32).len() as u64),
        ("b/sha256-00", "b/sha256-00", tiny_gguf(32).len() as u64),
        ("c/model.safetensors", "c/model.safetensors", 8),
        ("d", "d", 7),
        ("e", "e/x-00001-of-00002.gguf", 7),
    ] {
        match hub.resolve(&at(path)) {
            Ok(Resolved::Local(local)) => {
                assert_eq!(
                    (local.path, local.bytes, local.origin),
                    (dir.path().join(lies_at), bytes, Origin::Path)
                );
            }
            other => panic!("{path}: {other:?}"),
        }
    }
}

#[test]
fn paths_that_are_no_models_say_what_was_found() {
    let dir = TempDir::new();
    let hub = hub_in(&dir);
    let at = |path: &str| dir.path().join(path).to_str().unwrap().to_owned();
    dir.put("text.gguf", b"hello world");
    dir.put("empty.gguf", b"");
    dir.put("notes.txt", b"x");
    dir.put("none/readme.md", b"x");
    dir.put("many/a.gguf", &tiny_gguf(32));
    dir.put("many/b.gguf", &tiny_gguf(32));
    dir.put("bare/model.safetensors", b"x");
    for (path, found) in [
        ("text.gguf", "another kind of file"),
        ("empty.gguf", "an empty file"),
        ("notes.txt", "another kind of file"),
        ("none", "without model files"),
        ("many", "2 GGUF files"),
        ("bare", "without config.json"),
    ] {
        match hub.resolve(&at(path)) {
            Err(error @ HubError::NotAModel { .. }) => assert!(error.to_string().contains(found), "{error}"),
            other => panic!("{path}: {other:?}"),
        }
    }
    for path in ["absent.gguf", "./absent", "no/such/folder", "../absent.safetensors"] {
        assert!(matches!(hub.resolve(path), Err(HubError::NoSuchPath { .. })), "{path}");
    }
}

/// What a program passes on must never open a file of its caller's choice.
#[test]
fn resolve_name_never_looks_at_paths() {
    let dir = TempDir::new();
    let hub = hub_in(&dir);
    let file = dir.put("model.gguf", &tiny_gguf(32));
    assert!(hub.resolve(file.to_str().unwrap()).is_ok());
    for name in
        [file.to_str().unwrap(), "./model.gguf", "../model.gguf", "model.gguf", ".", "hf:../model.gguf"]
    {
        assert!(hub.resolve_name(name).is_err(), "{name}");
    }
}
