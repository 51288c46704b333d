//! Models of other programs: found, named, bounded, never touched.

use std::path::Path;

use super::support::*;
use crate::{Hub, HubError, Local, Origin, Places, Resolved, Settings};

fn hub_with_places(dir: &TempDir) -> Hub {
    let root = dir.path();
    let places = Places {
        hub_cache: vec![root.join("hf")],
        ollama: vec![root.join("ollama"), root.join("ollama-system")],
        lm_studio: vec![root.join("lm")],
    };
    Hub::with_settings(root.join("home"), Settings { places, ..quiet_settings() })
}

fn names(hub: &Hub) -> Vec<String> {
    hub.list().into_iter().map(|local| local.name).collect()
}

fn resolved(hub: &Hub, name: &str) -> Local {
    match hub.resolve(name) {
        Ok(Resolved::Local(local)) => local,
        other => panic!("{name}: {other:?}"),
    }
}

fn ollama_model(dir: &TempDir, manifest: &str, bytes: &[u8]) -> String {
    let digest = sha256(bytes);
    dir.put(&format!("ollama/blobs/sha256-{digest}"), bytes);
    let json = format!(
        r#"{{"schemaVersion":2,"config":{{"digest":"sha256:00"}},"layers":[
            {{"mediaType":"application/vnd.ollama.image.template","digest":"sha256:{}","size":1}},
            {{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:{digest}","size":{}}}]}}"#,
        sha256(b"template"),
        bytes.len()
    );
    dir.put(&format!("ollama/manifests/{manifest}"), json.as_bytes());
    digest
}

#[test]
fn ollamas_models_have_ollamas_names() {
    let dir = TempDir::new();
    let hub = hub_with_places(&dir);
    let digest = ollama_model(&dir, "registry.ollama.ai/library/llama3.2/1b", &tiny_gguf(32));
    ollama_model(&dir, "registry.ollama.ai/somebody/tuned/latest", &tiny_gguf(64));
    ollama_model(&dir, "example.org/ns/model/q4", &tiny_gguf(96));
    assert_eq!(
        names(&hub),
        ["ollama:example.org/ns/model:q4", "ollama:llama3.2:1b", "ollama:somebody/tuned:latest"]
    );
    let local = resolved(&hub, "ollama:llama3.2:1b");
    assert_eq!(local.path, dir.path().join(format!("ollama/blobs/sha256-{digest}")));
    assert_eq!((local.origin, local.bytes), (Origin::Ollama, tiny_gguf(32).len() as u64));
    assert_eq!(resolved(&hub, "llama3.2:1b"), local, "the program's prefix may be left out");
}

#[test]
fn ollama_manifests_that_make_no_sense_are_skipped() {
    let dir = TempDir::new();
    let hub = hub_with_places(&dir);
    dir.put("secret.gguf", &tiny_gguf(32));
    let model = "application/vnd.ollama.image.model";
    for (i, json) in [
        "{".to_owned(),
        "[]".to_owned(),
        r#"{"layers":[]}"#.to_owned(),
        format!(r#"{{"layers":[{{"mediaType":"{model}","digest":"sha256:../../secret.gguf"}}]}}"#),
        format!(r#"{{"layers":[{{"mediaType":"{model}","digest":"sha256:{}"}}]}}"#, sha256(b"no such blob")),
        format!(r#"{{"layers":[{{"mediaType":"{model}","digest":"md5:{}"}}]}}"#, sha256(b"x")),
        format!("{}{}", r#"{"layers":[]}"#, " ".repeat(2 << 20)),
    ]
    .iter()
    .enumerate()
    {
        dir.put(&format!("ollama/manifests/h/n/m/tag{i}"), json.as_bytes());
    }
    dir.put("ollama/manifests/too-shallow", b"{}");
    assert_eq!(names(&hub), Vec::<String>::new());
}

fn snapshot(dir: &TempDir, repo: &str, commit: &str, file: &str, bytes: &[u8]) {
    let blob = dir.put(&format!("hf/{repo}/blobs/{}", sha256(bytes)), bytes);
    let link = dir.path().join(format!("hf/{repo}/snapshots/{commit}/{file}"));
    std::fs::create_dir_all(link.parent().unwrap()).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(blob, link).unwrap();
    #[cfg(not(unix))]
    std::fs::copy(blob, link).map(|_| ()).unwrap();
}

#[test]
fn the_hub_cache_gives_gguf_files_and_safetensors_folders() {
    let dir = TempDir::new();
    let hub = hub_with_places(&dir);
    snapshot(&dir, "models--owner--some-GGUF", "aaa", "some.Q4_0.gguf", &tiny_gguf(32));
    snapshot(&dir, "models--owner--some-GGUF", "aaa", "sub/other.gguf", &tiny_gguf(64));
    snapshot(&dir, "models--owner--full", "bbb", "config.json", b"{}");
    snapshot(&dir, "models--owner--full", "bbb", "model-00001-of-00002.safetensors", b"12345");
    snapshot(&dir, "models--owner--full", "bbb", "model-00002-of-00002.safetensors", b"678");
    snapshot(&dir, "models--owner--half", "ccc", "model.safetensors", b"no config");
    snapshot(&dir, "datasets--owner--data", "ddd", "data.gguf", &tiny_gguf(32));
    dir.put("hf/models--owner--some-GGUF/blobs/loose.gguf", &tiny_gguf(32));
    assert_eq!(
        names(&hub),
        ["hf:owner/full", "hf:owner/some-GGUF/some.Q4_0.gguf", "hf:owner/some-GGUF/sub/other.gguf"]
    );
    let full = resolved(&hub, "hf:owner/full");
    assert_eq!((full.bytes, full.path), (8, dir.path().join("hf/models--owner--full/snapshots/bbb")));
    let file = resolved(&hub, "owner/some-GGUF/sub/other.gguf");
    assert_eq!(file.name, "hf:owner/some-GGUF/sub/other.gguf");
}

#[test]
fn of_two_snapshots_the_one_that_main_names_counts() {
    let dir = TempDir::new();
    let hub = hub_with_places(&dir);
    for (commit, weights) in [("aaa", 32), ("bbb", 64), ("ccc", 96)] {
        snapshot(&dir, "models--o--m", commit, "m.gguf", &tiny_gguf(weights));
    }
    dir.put("hf/models--o--m/refs/main", b"bbb\n");
    assert_eq!(names(&hub), ["hf:o/m/m.gguf"]);
    assert!(resolved(&hub, "hf:o/m/m.gguf").path.ends_with(Path::new("bbb/m.gguf")));
}

#[test]
fn lm_studio_models_and_split_ones() {
    let dir = TempDir::new();
    let hub = hub_with_places(&dir);
    dir.put("lm/pub/repo/one.GGUF", &[0; 10]);
    dir.put("lm/pub/repo/big-00002-of-00003.gguf", &[0; 2]);
    dir.put("lm/pub/repo/big-00001-of-00003.gguf", &[0; 1]);
    dir.put("lm/pub/repo/big-00003-of-00003.gguf", &[0; 4]);
    dir.put("lm/pub/repo/readme.md", b"x");
    dir.put("lm/pub/repo/.gguf", b"x");
    assert_eq!(names(&hub), ["lmstudio:pub/repo/big-00001-of-00003.gguf", "lmstudio:pub/repo/one.GGUF"]);
    assert_eq!(resolved(&hub, "lmstudio:pub/repo/big-00001-of-00003.gguf").bytes, 7);
}

#[test]
fn a_short_name_that_fits_two_is_not_guessed() {
    let dir = TempDir::new();
    let hub = hub_with_places(&dir);
    dir.put("lm/o/m/m.gguf", &tiny_gguf(32));
    snapshot(&dir, "models--o--m", "aaa", "m.gguf", &tiny_gguf(32));
    match hub.resolve("o/m/m.gguf") {
        Err(HubError::Ambiguous { choices, .. }) => {
            assert_eq!(choices, ["hf:o/m/m.gguf", "lmstudio:o/m/m.gguf"])
        }
        other => panic!("{other:?}"),
    }
    resolved(&hub, "lmstudio:o/m/m.gguf");
}

#[test]
fn foreign_models_are_not_removed() {
    let dir = TempDir::new();
    let hub = hub_with_places(&dir);
    let file = dir.put("lm/pub/repo/one.gguf", &tiny_gguf(32));
    match hub.remove("lmstudio:pub/repo/one.gguf") {
        Err(error @ HubError::Foreign { .. }) => assert!(error.to_string().contains("LM Studio"), "{error}"),
        other => panic!("{other:?}"),
    }
    assert!(file.exists());
}

#[cfg(unix)]
#[test]
fn walks_end_and_skip_what_they_cannot_read() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let dir = TempDir::new();
    let hub = hub_with_places(&dir);
    dir.put("lm/pub/repo/one.gguf", &tiny_gguf(32));
    let deep = format!("lm/{}/deep.gguf", ["d"; 40].join("/"));
    dir.put(&deep, &tiny_gguf(32));
    symlink(dir.path().join("lm"), dir.path().join("lm/pub/loop")).unwrap();
    symlink("/nonexistent", dir.path().join("lm/pub/dangling.gguf")).unwrap();
    dir.put("lm/locked/repo/two.gguf", &tiny_gguf(32));
    let locked = dir.path().join("lm/locked");
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o000)).unwrap();
    let readable_anyway = std::fs::read_dir(&locked).is_ok();
    let found = names(&hub);
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert!(found.contains(&"lmstudio:pub/repo/one.gguf".to_owned()));
    assert!(
        !found.iter().any(|n| n.contains("deep") || n.contains("loop") || n.contains("dangling")),
        "{found:?}"
    );
    // The superuser reads everything.
    assert_eq!(found.iter().any(|n| n.contains("two")), readable_anyway);
}

#[test]
fn places_follow_each_programs_own_variables() {
    let at = |vars: &'static [(&str, &str)]| {
        Places::from_lookup(&move |name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).into()))
    };
    #[cfg(unix)]
    {
        let plain = at(&[("HOME", "/h")]);
        assert_eq!(plain.hub_cache, [Path::new("/h/.cache/huggingface/hub")]);
        assert_eq!(plain.ollama[0], Path::new("/h/.ollama/models"));
        assert_eq!(
            plain.lm_studio,
            [Path::new("/h/.lmstudio/models"), Path::new("/h/.cache/lm-studio/models")]
        );
    }
    assert_eq!(at(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/f")]).hub_cache, [Path::new("/c")]);
    assert_eq!(at(&[("HF_HOME", "/f")]).hub_cache, [Path::new("/f/hub")]);
    assert_eq!(at(&[("XDG_CACHE_HOME", "/x")]).hub_cache, [Path::new("/x/huggingface/hub")]);
    assert_eq!(at(&[("OLLAMA_MODELS", "/o")]).ollama[0], Path::new("/o"));
    assert!(at(&[]).hub_cache.is_empty());
}
