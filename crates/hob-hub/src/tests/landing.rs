//! The pull itself: order of sources, atomic landing, locks, offline use, what an error tells.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::support::*;
use crate::pull::Fetch;
use crate::{Hub, HubError, Manifest, ModelName, Resolved, Silent, SourceError};

fn boxed(source: impl Fetch + 'static) -> Vec<Box<dyn Fetch>> {
    vec![Box::new(source)]
}

#[test]
fn a_model_lands_with_its_manifest_and_nothing_else() {
    let dir = TempDir::new();
    let hub = hub_in(&dir);
    let bytes = tiny_gguf(64);
    let model = entry("tiny", Vec::new());
    let path = hub.pull_from(&model, &boxed(BytesFetch::new(bytes.clone())), &mut Silent, &go_on()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(
        tree(hub.home()),
        ["locks/tiny", "models/tiny/manifest.json", "models/tiny/model.gguf"],
        "no download is left over"
    );
    let manifest = hub.manifest(&ModelName::parse("tiny").unwrap()).unwrap();
    assert_eq!(manifest.sha256, sha256(&bytes));
    assert_eq!((manifest.bytes, manifest.source.as_str()), (bytes.len() as u64, "bytes of the test"));
    assert_eq!(hub.list().len(), 1);
}

#[test]
fn a_model_that_is_here_asks_nobody() {
    let dir = TempDir::new();
    let hub = hub_in(&dir);
    let model = entry("tiny", Vec::new());
    let first = hub.pull_from(&model, &boxed(BytesFetch::new(tiny_gguf(32))), &mut Silent, &go_on()).unwrap();
    let again = hub.pull_from(&model, &boxed(PanicFetch), &mut Silent, &go_on()).unwrap();
    assert_eq!(first, again);
    match hub.resolve("tiny").unwrap() {
        Resolved::Local(local) => assert_eq!(local.path, first),
        _ => panic!("an installed model wants to be downloaded"),
    }
}

#[test]
fn the_first_source_that_delivers_wins() {
    let dir = TempDir::new();
    let hub = hub_in(&dir);
    let sources: Vec<Box<dyn Fetch>> = vec![
        Box::new(FailFetch(|| SourceError::NoPip { tried: vec!["`python3`".to_owned()] })),
        Box::new(BytesFetch::new(tiny_gguf(32))),
        Box::new(PanicFetch),
    ];
    hub.pull_from(&entry("tiny", Vec::new()), &sources, &mut Silent, &go_on()).unwrap();
    assert_eq!(hub.manifest(&ModelName::parse("tiny").unwrap()).unwrap().source, "bytes of the test");
}

#[test]
fn when_all_fail_the_error_says_what_each_said_and_what_helps() {
    let dir = TempDir::new();
    let hub = hub_in(&dir);
    let sources: Vec<Box<dyn Fetch>> = vec![
        Box::new(FailFetch(|| SourceError::NoPip { tried: vec!["`python3` (not found)".to_owned()] })),
        Box::new(FailFetch(|| SourceError::Unreachable {
            endpoint: "http://nowhere".to_owned(),
            why: "connection refused".to_owned(),
        })),
    ];
    let error = hub.pull_from(&entry("tiny", Vec::new()), &sources, &mut Silent, &go_on()).unwrap_err();
    let text = error.to_string();
    for part in [
        "tiny",
        "1. a source that fails",
        "2. ",
        "`python3` (not found)",
        "http://nowhere",
        "install pip",
        "HF_ENDPOINT",
    ] {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
    assert_eq!(tree(hub.home()), ["locks/tiny"]);
    assert!(hub.list().is_empty());
}

#[test]
fn a_full_disk_tells_the_smallest_need() {
    let dir = TempDir::new();
    let hub = hub_in(&dir);
    let sources: Vec<Box<dyn Fetch>> = vec![
        Box::new(FailFetch(|| SourceError::DiskFull {
            needed_bytes: 300 << 20,
            free_bytes: 5 << 20,
            path: "/full".into(),
            kept_bytes: 0,
        })),
        Box::new(FailFetch(|| SourceError::DiskFull {
            needed_bytes: 100 << 20,
            free_bytes: 5 << 20,
            path: "/full".into(),
            kept_bytes: 1 << 20,
        })),
    ];
    let error = hub.pull_from(&entry("tiny", Vec::new()), &sources, &mut Silent, &go_on()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, HubError::DiskFull { .. }), "{text}");
    for part in ["100.0 MiB needed", "5.0 MiB free", "HOB_HOME", "1.0 MiB are kept"] {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

#[test]
fn what_is_no_model_does_not_land() {
    let dir = TempDir::new();
    let hub = hub_in(&dir);
    let mut broken = tiny_gguf(64);
    broken.truncate(40);
    let error = hub
        .pull_from(&entry("tiny", Vec::new()), &boxed(BytesFetch::new(broken)), &mut Silent, &go_on())
        .unwrap_err();
    assert!(matches!(error, HubError::Unreadable { .. }), "{error}");
    assert_eq!(tree(hub.home()), ["locks/tiny"]);
}

#[test]
fn a_damaged_model_is_fetched_again() {
    let dir = TempDir::new();
    let hub = hub_in(&dir);
    let model = entry("tiny", Vec::new());
    let bytes = tiny_gguf(64);
    let path = hub.pull_from(&model, &boxed(BytesFetch::new(bytes.clone())), &mut Silent, &go_on()).unwrap();
    let manifest = hub.home().join("models/tiny/manifest.json");
    let good = fs::read(&manifest).unwrap();
    let damages: [&dyn Fn(); 5] = [
        &|| fs::write(&path, &bytes[..100]).unwrap(),
        &|| fs::remove_file(&path).unwrap(),
        &|| fs::remove_file(&manifest).unwrap(),
        &|| fs::write(&manifest, &good[..good.len() / 2]).unwrap(),
        &|| {
            fs::write(&manifest, String::from_utf8_lossy(&good).replace("model.gguf", "../../x.gguf"))
                .unwrap()
        },
    ];
    for (i, damage) in damages.iter().enumerate() {
        damage();
        assert!(hub.list().is_empty(), "damage {i} went unseen");
        let again =
            hub.pull_from(&model, &boxed(BytesFetch::new(bytes.clone())), &mut Silent, &go_on()).unwrap();
        assert_eq!(fs::read(again).unwrap(), bytes, "damage {i}");
        assert_eq!(fs::read(&manifest).unwrap().len(), good.len());
    }
}

#[test]
fn two_pulls_at_once_download_once() {
    let dir = TempDir::new();
    let hub = Arc::new(hub_in(&dir));
    let source = Arc::new(BytesFetch { pause: Duration::from_millis(150), ..BytesFetch::new(tiny_gguf(32)) });
    struct Shared(Arc<BytesFetch>);
    impl Fetch for Shared {
        fn label(&self) -> String {
            self.0.label()
        }
        fn fetch(&self, job: &mut crate::pull::Job<'_>) -> Result<crate::pull::Fetched, SourceError> {
            self.0.fetch(job)
        }
    }
    let pull = |hub: Arc<Hub>, source: Arc<BytesFetch>| {
        std::thread::spawn(move || {
            let model = entry("tiny", Vec::new());
            hub.pull_from(&model, &boxed(Shared(source)), &mut Silent, &go_on()).unwrap()
        })
    };
    let threads: Vec<_> = (0..4).map(|_| pull(Arc::clone(&hub), Arc::clone(&source))).collect();
    let paths: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    assert!(paths.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(source.asked.load(Ordering::SeqCst), 1);
}

#[test]
fn waiting_for_the_lock_can_be_cancelled() {
    let dir = TempDir::new();
    let hub = hub_in(&dir);
    let name = ModelName::parse("tiny").unwrap();
    let held = hub.lock(&name, &mut Silent, &go_on()).unwrap();
    assert!(held.is_some(), "the temporary folder's file system has locks");
    let cancel = crate::Cancel::new(true);
    let mut seen = Recorder::default();
    let error =
        hub.pull_from(&entry("tiny", Vec::new()), &boxed(PanicFetch), &mut seen, &cancel).unwrap_err();
    assert!(matches!(error, HubError::Cancelled { .. }), "{error}");
    drop(held);
    hub.pull_from(&entry("tiny", Vec::new()), &boxed(BytesFetch::new(tiny_gguf(32))), &mut seen, &go_on())
        .unwrap();
}

#[test]
fn dates_are_right() {
    use crate::installed::utc_text;
    assert_eq!(utc_text(0), "1970-01-01T00:00:00Z");
    assert_eq!(utc_text(951_782_399), "2000-02-28T23:59:59Z");
    assert_eq!(utc_text(951_782_400), "2000-02-29T00:00:00Z");
    assert_eq!(utc_text(1_709_251_200), "2024-03-01T00:00:00Z");
    assert_eq!(utc_text(4_102_444_800), "2100-01-01T00:00:00Z");
    assert_eq!(utc_text(4_107_542_400), "2100-03-01T00:00:00Z");
}

#[test]
fn a_manifest_keeps_its_fields() {
    let text = r#"{"format":1,"name":"x","file":"x.gguf","bytes":3,"sha256":"00","source":"s","license":"MIT","date":"d"}"#;
    let manifest: Manifest = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&manifest).unwrap(), text);
}
