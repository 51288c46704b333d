//! Models named by their place on the hub, against a loopback server, by failure mode.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::fake_hub::{COMMIT, FakeHub, Reply, Seen, file};
use super::support::*;
use crate::{Hub, HubError, HubName, Resolved, Silent, SourceError, git_blob};

const PART_1: &[u8] = include_bytes!("../../../../attacks/control/split/m-00001-of-00002.gguf");
const PART_2: &[u8] = include_bytes!("../../../../attacks/control/split/m-00002-of-00002.gguf");
const CONFIG: &[u8] = br#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}"#;
const TENSORS: &[u8] = include_bytes!("../../../../attacks/control/tiny.safetensors");

fn name(text: &str) -> HubName {
    HubName::parse(text).unwrap().unwrap()
}

fn hub_at(dir: &TempDir, url: &str, change: impl FnOnce(&mut crate::NetSettings)) -> Hub {
    let mut settings = quiet_settings();
    settings.net.endpoint = Some(url.to_owned());
    change(&mut settings.net);
    Hub::with_settings(dir.path().join("home"), settings)
}

/// A repository of these files; those of `.json` are small ones that live in git.
fn repository(files: Vec<(&'static str, Vec<u8>)>) -> impl Fn(&Seen) -> Reply + Send + Sync + 'static {
    move |seen: &Seen| {
        if seen.target.starts_with("/api/models/o/r/revision/") {
            let sibling = |(path, bytes): &(&str, Vec<u8>)| match path.ends_with(".json") {
                true => json!({"rfilename": path, "size": bytes.len(), "blobId": git_blob::id(bytes)}),
                false => json!({"rfilename": path, "size": bytes.len(), "blobId": "of the pointer",
                                "lfs": {"sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 130}}),
            };
            let all: Vec<Value> = files.iter().map(sibling).collect();
            let body =
                json!({"sha": COMMIT, "siblings": all, "cardData": {"license": "mit"}, "private": false});
            return Reply { body: body.to_string().into_bytes(), ..Reply::status(200) };
        }
        let path = seen.target.strip_prefix(&format!("/o/r/resolve/{COMMIT}/"));
        match files.iter().find(|(name, _)| Some(*name) == path) {
            Some((name, bytes)) if name.ends_with(".json") => {
                Reply { body: bytes.clone(), ..Reply::status(200) }
            }
            Some((_, bytes)) => file(bytes, seen),
            None => Reply::status(404),
        }
    }
}

fn ggufs() -> Vec<(&'static str, Vec<u8>)> {
    vec![("README.md", b"hello".to_vec()), ("m.Q8_0.gguf", tiny_gguf(64)), ("m.Q4_K_M.gguf", tiny_gguf(32))]
}

fn error_of(hub: &Hub, wanted: &str) -> SourceError {
    match hub.pull_from_hub(&name(wanted), &mut Silent, &go_on()) {
        Err(HubError::Fetch { mut attempts, .. }) => attempts.remove(0).error,
        other => panic!("expected a failed fetch, found {other:?}"),
    }
}

#[test]
fn the_default_type_is_fetched_and_used_again_without_asking_anybody() {
    let dir = TempDir::new();
    let server = FakeHub::serve(repository(ggufs()));
    let hub = hub_at(&dir, &server.url, |_| {});
    assert!(matches!(hub.resolve("hf:o/r"), Ok(Resolved::Hub(place)) if place == name("hf:o/r")));
    let path = hub.pull_from_hub(&name("hf:o/r"), &mut Silent, &go_on()).unwrap();
    assert!(path.ends_with("m.Q4_K_M.gguf"));
    assert_eq!(fs::read(&path).unwrap(), tiny_gguf(32));
    drop(server);
    let offline = hub_at(&dir, "http://127.0.0.1:9", |net| net.offline = true);
    for again in ["hf:o/r", "hf:O/R:q4_k_m", "hf:o/r:m.Q4_K_M.gguf", "hf:o/r/m.Q4_K_M.gguf"] {
        match offline.resolve(again).unwrap() {
            Resolved::Local(local) => assert_eq!(local.path, path, "{again}"),
            other => panic!("{again}: {other:?}"),
        }
        assert_eq!(offline.pull_from_hub(&name(again), &mut Silent, &go_on()).unwrap(), path);
    }
    assert!(matches!(offline.resolve("hf:o/r:Q8_0"), Ok(Resolved::Hub(_))), "another type is another model");
    assert!(matches!(offline.resolve("hf:o/r@v2"), Ok(Resolved::Hub(_))), "another revision, too");
    assert!(matches!(error_of(&offline, "hf:o/r:Q8_0"), SourceError::Offline));
    let listed = offline.list();
    assert_eq!(listed[0].name, "hf:o/r:m.Q4_K_M.gguf");
    assert_eq!(offline.remove(&listed[0].name).unwrap(), tiny_gguf(32).len() as u64);
    assert!(offline.list().is_empty() && !path.exists());
    assert!(matches!(offline.remove("hf:o/r"), Err(HubError::NotInstalled { .. })));
}

#[test]
fn the_manifest_says_where_it_came_from() {
    let dir = TempDir::new();
    let server = FakeHub::serve(repository(ggufs()));
    let hub = hub_at(&dir, &server.url, |net| net.token = Some("hf_secret".to_owned()));
    let path = hub.pull_from_hub(&name("hf:o/r@v1:Q8_0"), &mut Silent, &go_on()).unwrap();
    let manifest: Value =
        serde_json::from_slice(&fs::read(path.with_file_name("manifest.json")).unwrap()).unwrap();
    assert_eq!(
        manifest["hub"],
        json!({"repo": "o/r", "revision": "v1", "commit": COMMIT, "path": "m.Q8_0.gguf"})
    );
    assert_eq!((&manifest["license"], &manifest["sha256"]), (&json!("mit"), &json!(sha256(&tiny_gguf(64)))));
    let seen = server.seen();
    assert_eq!(seen[0].target, "/api/models/o/r/revision/v1?blobs=true");
    assert!(seen.iter().all(|request| request.header("authorization") == Some("Bearer hf_secret")));
    assert!(seen[1..].iter().all(|request| request.target.starts_with(&format!("/o/r/resolve/{COMMIT}/"))));
}

#[test]
fn all_parts_of_a_split_model_land_together() {
    let dir = TempDir::new();
    let files =
        vec![("q/m-00002-of-00002.gguf", PART_2.to_vec()), ("q/m-00001-of-00002.gguf", PART_1.to_vec())];
    let server = FakeHub::serve(repository(files));
    let hub = hub_at(&dir, &server.url, |_| {});
    let path = hub.pull_from_hub(&name("hf:o/r"), &mut Silent, &go_on()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), PART_1);
    let second = path.with_file_name("m-00002-of-00002.gguf");
    assert_eq!(fs::read(&second).unwrap(), PART_2);
    assert_eq!(hub.list()[0].bytes, (PART_1.len() + PART_2.len()) as u64);
    fs::remove_file(second).unwrap();
    assert!(hub.list().is_empty(), "a model that lacks a part is not installed");
}

#[test]
fn a_folder_of_safetensors_comes_with_its_side_files_and_resumes_where_it_broke() {
    let dir = TempDir::new();
    let files = || {
        vec![
            ("config.json", CONFIG.to_vec()),
            ("tokenizer.json", b"{}".to_vec()),
            ("model.safetensors", TENSORS.to_vec()),
            ("x/other.safetensors", TENSORS.to_vec()),
        ]
    };
    let broken = Arc::new(AtomicBool::new(true));
    let (answer, flag) = (repository(files()), Arc::clone(&broken));
    let server = FakeHub::serve(move |seen| match seen.target.ends_with("model.safetensors") {
        true if flag.load(Ordering::SeqCst) && seen.method == "GET" => {
            Reply { declared: Some(TENSORS.len()), ..Reply::status(200) }
        }
        _ => answer(seen),
    });
    let hub = hub_at(&dir, &server.url, |_| {});
    assert!(matches!(error_of(&hub, "hf:o/r"), SourceError::Truncated { .. }));
    assert!(hub.list().is_empty());
    broken.store(false, Ordering::SeqCst);
    let before = server.seen().len();
    let path = hub.pull_from_hub(&name("hf:o/r"), &mut Silent, &go_on()).unwrap();
    assert!(path.is_dir());
    assert_eq!(fs::read(path.join("config.json")).unwrap(), CONFIG);
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), TENSORS);
    assert!(path.join("tokenizer.json").exists() && !path.join("other.safetensors").exists());
    let again: Vec<String> = server.seen()[before..].iter().map(|request| request.target.clone()).collect();
    assert!(!again.iter().any(|target| target.ends_with("config.json")), "{again:?}");
    match hub.resolve("hf:o/r:model.safetensors").unwrap() {
        Resolved::Local(local) => assert_eq!((local.path, local.name), (path, "hf:o/r".to_owned())),
        other => panic!("{other:?}"),
    }
}

#[test]
fn refusals_name_the_way_out() {
    let dir = TempDir::new();
    for (status, token, phrase) in [
        (404, None, "no such file, revision or repository"),
        (401, None, "set HF_TOKEN"),
        (403, Some("hf_x"), "refuses the token"),
    ] {
        let server = FakeHub::serve(move |_| Reply::status(status));
        let hub = hub_at(&dir, &server.url, |net| net.token = token.map(str::to_owned));
        let error = error_of(&hub, "hf:o/r").to_string();
        assert!(error.contains(phrase) && error.contains("/api/models/o/r/"), "{error}");
    }
    let dead = hub_at(&dir, "http://127.0.0.1:9", |_| {});
    assert!(matches!(error_of(&dead, "hf:o/r"), SourceError::Unreachable { .. }));
    let silent = FakeHub::serve(|_| Reply { hang: true, ..Reply::default() });
    let hub = hub_at(&dir, &silent.url, |net| net.stall_timeout = std::time::Duration::from_millis(200));
    assert!(matches!(error_of(&hub, "hf:o/r"), SourceError::Unreachable { .. }));
    let cancel = crate::Cancel::new(true);
    let cancelled = hub.pull_from_hub(&name("hf:o/r"), &mut Silent, &cancel);
    assert!(matches!(cancelled, Err(HubError::Cancelled { .. })));
    for body in ["", "[]", "{}", r#"{"sha": "../..", "siblings": []}"#, "{\"sha\": 1}"] {
        let server = FakeHub::serve(move |_| Reply { body: body.as_bytes().to_vec(), ..Reply::status(200) });
        let hub = hub_at(&dir, &server.url, |_| {});
        assert!(matches!(error_of(&hub, "hf:o/r"), SourceError::Client { .. }), "{body}");
    }
}

#[test]
fn a_type_that_is_not_there_lists_those_that_are() {
    let dir = TempDir::new();
    let server = FakeHub::serve(repository(ggufs()));
    let error = error_of(&hub_at(&dir, &server.url, |_| {}), "hf:o/r:Q2_K").to_string();
    assert!(error.contains("Q2_K") && error.contains("m.Q4_K_M.gguf, m.Q8_0.gguf"), "{error}");
    let server = FakeHub::serve(repository(vec![("README.md", Vec::new())]));
    assert!(matches!(error_of(&hub_at(&dir, &server.url, |_| {}), "hf:o/r"), SourceError::NoModel { .. }));
}

#[test]
fn other_bytes_than_the_hub_announced_do_not_land() {
    let dir = TempDir::new();
    let answer = repository(vec![("config.json", CONFIG.to_vec()), ("model.safetensors", TENSORS.to_vec())]);
    let server = FakeHub::serve(move |seen| match seen.target.ends_with("config.json") {
        true => Reply { body: b"{\"evil\": 1}".to_vec(), ..Reply::status(200) },
        false => answer(seen),
    });
    let hub = hub_at(&dir, &server.url, |_| {});
    assert!(matches!(error_of(&hub, "hf:o/r"), SourceError::WrongBlob { .. }));
    let answer = repository(ggufs());
    let server = FakeHub::serve(move |seen| match seen.target.ends_with("m.Q4_K_M.gguf") {
        true => file(&tiny_gguf(96), seen),
        false => answer(seen),
    });
    let hub = hub_at(&dir, &server.url, |_| {});
    assert!(matches!(error_of(&hub, "hf:o/r"), SourceError::OtherFile { .. }));
    assert!(hub.list().is_empty());
}

#[test]
fn too_little_space_for_all_parts_is_seen_before_the_first() {
    let dir = TempDir::new();
    let files = vec![("m-00001-of-00002.gguf", PART_1.to_vec()), ("m-00002-of-00002.gguf", PART_2.to_vec())];
    let server = FakeHub::serve(repository(files));
    let mut hub = hub_at(&dir, &server.url, |_| {});
    hub.disk = Arc::new(SmallDisk::new(crate::disk::MARGIN_BYTES + PART_1.len() as u64, u64::MAX));
    let full = hub.pull_from_hub(&name("hf:o/r"), &mut Silent, &go_on());
    assert!(matches!(full, Err(HubError::DiskFull { .. })), "{full:?}");
    assert_eq!(server.count("HEAD"), 0);
}
