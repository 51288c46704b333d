//! The hub source against a loopback server, by failure mode.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::fake_hub::{COMMIT, FakeHub, Reply, Seen, file};
use super::support::*;
use crate::{Cancel, Entry, Hub, HubError, HubSource, ModelName, Silent, Source, SourceError};

const REPO: &str = "owner/some-model-GGUF";
const FILE: &str = "folder/Some.Q4_1.gguf";

fn model(sha256: Option<&'static str>) -> Entry {
    let source = HubSource { repo: REPO, revision: "main", file: FILE, bytes: 1, sha256 };
    entry("some-model", vec![Source::Hub(source)])
}

fn hub_at(dir: &TempDir, url: &str, token: Option<&str>) -> Hub {
    let mut settings = quiet_settings();
    settings.net.endpoint = Some(url.to_owned());
    settings.net.token = token.map(str::to_owned);
    Hub::with_settings(dir.path().join("home"), settings)
}

/// The only attempt's error.
fn attempt(error: HubError) -> SourceError {
    match error {
        HubError::Fetch { mut attempts, .. } if attempts.len() == 1 => attempts.remove(0).error,
        other => panic!("expected one failed attempt, found {other}"),
    }
}

/// About 1 MiB: many pieces, still quick.
fn big() -> Vec<u8> {
    tiny_gguf(256 << 10)
}

fn part_len(hub: &Hub) -> u64 {
    fs::metadata(hub.home().join("downloads/some-model/hub.part")).map_or(0, |m| m.len())
}

#[test]
fn a_file_is_fetched_at_its_commit_and_verified() {
    let dir = TempDir::new();
    let bytes = big();
    let served = bytes.clone();
    let server = FakeHub::serve(move |seen| file(&served, seen));
    let hub = hub_at(&dir, &server.url, None);
    let mut progress = Recorder::default();
    let path = hub.pull(&model(None), &mut progress, &go_on()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert!(path.ends_with("models/some-model/Some.Q4_1.gguf"));
    assert_eq!(progress.last, (bytes.len() as u64, Some(bytes.len() as u64)));
    assert!(progress.phases.iter().any(|p| p == &format!("downloading {FILE}")), "{:?}", progress.phases);
    let seen = server.seen();
    assert_eq!(seen[0].target, format!("/{REPO}/resolve/main/{FILE}"));
    assert!(seen.iter().all(|r| r.header("authorization").is_none()));
    let get = seen.iter().find(|r| r.method == "GET").unwrap();
    assert_eq!(
        get.target,
        format!("/{REPO}/resolve/{COMMIT}/{FILE}"),
        "the bytes come from the announced commit"
    );
    let manifest = hub.manifest(&ModelName::parse("some-model").unwrap()).unwrap();
    assert_eq!(manifest.sha256, sha256(&bytes));
    // Here now: nothing is asked any more.
    let before = server.seen().len();
    hub.pull(&model(None), &mut Silent, &go_on()).unwrap();
    assert_eq!(server.seen().len(), before);
}

/// As the real hub: the announcement stands on a redirect to another host, which must not get the token.
#[test]
fn behind_a_redirect_the_announcement_counts_and_the_token_stays_home() {
    let dir = TempDir::new();
    let bytes = big();
    let served = bytes.clone();
    let network = FakeHub::serve(move |seen| match seen.method.as_str() {
        "HEAD" => Reply { declared: Some(served.len()), ..Reply::status(200) }.with("ETag", "\"foreign\""),
        _ => file(&served, seen),
    });
    let (served, target) = (bytes.clone(), format!("{}/blob?signed=1", network.url));
    let server = FakeHub::serve(move |seen| {
        let head = Seen { method: "HEAD".to_owned(), ..seen.clone() };
        Reply { status: 302, declared: Some(0), ..file(&served, &head) }.with("Location", target.clone())
    });
    let hub = hub_at(&dir, &server.url, Some("hf_secret"));
    let path = hub.pull(&model(None), &mut Silent, &go_on()).unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes);
    assert!(server.seen().iter().all(|r| r.header("authorization") == Some("Bearer hf_secret")));
    assert!(network.count("GET") == 1 && network.seen().iter().all(|r| r.header("authorization").is_none()));
}

/// A mirror or a renamed repository redirects without any announcement.
#[test]
fn a_redirect_without_announcement_is_followed_but_not_forever() {
    let dir = TempDir::new();
    let bytes = tiny_gguf(64);
    let served = bytes.clone();
    let server = FakeHub::serve(move |seen| match seen.target.strip_prefix("/renamed") {
        Some(_) => file(&served, seen),
        None => Reply::status(307).with("Location", format!("/renamed{}", seen.target)),
    });
    let hub = hub_at(&dir, &server.url, None);
    assert_eq!(fs::read(hub.pull(&model(None), &mut Silent, &go_on()).unwrap()).unwrap(), bytes);

    // To another host without the token.
    let dir = TempDir::new();
    let served = bytes.clone();
    let other = FakeHub::serve(move |seen| file(&served, seen));
    let base = other.url.clone();
    let mirror =
        FakeHub::serve(move |seen| Reply::status(308).with("Location", format!("{base}{}", seen.target)));
    let path =
        hub_at(&dir, &mirror.url, Some("hf_secret")).pull(&model(None), &mut Silent, &go_on()).unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes);
    assert!(mirror.seen().iter().all(|r| r.header("authorization") == Some("Bearer hf_secret")));
    assert!(other.seen().len() >= 2 && other.seen().iter().all(|r| r.header("authorization").is_none()));

    let endless = FakeHub::serve(|seen| Reply::status(302).with("Location", seen.target.clone()));
    let dir = TempDir::new();
    let error = hub_at(&dir, &endless.url, None).pull(&model(None), &mut Silent, &go_on()).unwrap_err();
    assert!(error.to_string().contains("redirects more than 5 times"), "{error}");
    assert_eq!(endless.count("HEAD"), 6);
}

#[test]
fn a_cut_connection_is_taken_up_where_it_broke() {
    let dir = TempDir::new();
    let bytes = big();
    let served = bytes.clone();
    let cuts = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&cuts);
    let server = FakeHub::serve(move |seen| {
        let mut reply = file(&served, seen);
        // Every answer but a short one breaks off after 300,000 bytes.
        if seen.method == "GET" && reply.body.len() > 300_000 {
            counter.fetch_add(1, Ordering::SeqCst);
            reply.declared = Some(reply.body.len());
            reply.body.truncate(300_000);
        }
        reply
    });
    let hub = hub_at(&dir, &server.url, None);
    let path = hub.pull(&model(None), &mut Silent, &go_on()).unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes);
    assert_eq!(cuts.load(Ordering::SeqCst), 3);
    let starts: Vec<_> =
        server.seen().iter().filter(|r| r.method == "GET").map(|r| r.range_start().unwrap_or(0)).collect();
    assert_eq!(starts, [0, 300_000, 600_000, 900_000], "no byte is asked for twice");
}

#[test]
fn a_truncated_download_is_kept_and_the_next_pull_resumes() {
    let dir = TempDir::new();
    let bytes = big();
    let half = bytes.len() / 2;
    let served = bytes.clone();
    let broken = FakeHub::serve(move |seen| {
        let mut reply = file(&served, seen);
        if seen.method == "GET" {
            reply.declared = Some(reply.body.len());
            let start = seen.range_start().unwrap_or(0);
            reply.body.truncate(half.saturating_sub(start));
        }
        reply
    });
    let error = hub_at(&dir, &broken.url, None).pull(&model(None), &mut Silent, &go_on()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("after {half} of {} bytes", bytes.len())), "{text}");
    assert!(text.contains("it resumes"), "{text}");
    assert!(matches!(attempt(error), SourceError::Truncated { .. }));
    assert_eq!(
        broken.count("GET"),
        4,
        "the first request, one with progress, and the configured retries without"
    );
    drop(broken);

    let served = bytes.clone();
    let server = FakeHub::serve(move |seen| file(&served, seen));
    let hub = hub_at(&dir, &server.url, None);
    assert_eq!(part_len(&hub), half as u64);
    assert!(hub.list().is_empty(), "half a model is no model");
    let mut progress = Recorder::default();
    assert_eq!(fs::read(hub.pull(&model(None), &mut progress, &go_on()).unwrap()).unwrap(), bytes);
    assert!(progress.phases.iter().any(|p| p.contains("earlier pull")), "{:?}", progress.phases);
    let gets: Vec<_> = server.seen().into_iter().filter(|r| r.method == "GET").collect();
    assert_eq!(gets.len(), 1);
    assert_eq!(gets[0].range_start(), Some(half));
}

#[test]
fn a_complete_part_needs_no_bytes() {
    let dir = TempDir::new();
    let bytes = tiny_gguf(64);
    let served = bytes.clone();
    let server = FakeHub::serve(move |seen| file(&served, seen));
    let hub = hub_at(&dir, &server.url, None);
    dir.put("home/downloads/some-model/hub.part", &bytes);
    let goal = format!(r#"{{"sha256":"{}","bytes":{},"source":"x"}}"#, sha256(&bytes), bytes.len());
    dir.put("home/downloads/some-model/hub.part.json", goal.as_bytes());
    assert_eq!(fs::read(hub.pull(&model(None), &mut Silent, &go_on()).unwrap()).unwrap(), bytes);
    assert_eq!(server.count("GET"), 0);
}

/// The part belongs to an older file of the same name, or its bytes rotted, or its note is gone.
#[test]
fn a_part_that_does_not_fit_is_not_mixed_in() {
    let bytes = big();
    let notes = [
        Some(format!(r#"{{"sha256":"{}","bytes":{},"source":"x"}}"#, sha256(b"older"), bytes.len())),
        Some(format!(r#"{{"sha256":"{}","bytes":{},"source":"x"}}"#, sha256(&bytes), bytes.len() + 1)),
        Some("{torn".to_owned()),
        None,
    ];
    for note in notes {
        let dir = TempDir::new();
        let served = bytes.clone();
        let server = FakeHub::serve(move |seen| file(&served, seen));
        let hub = hub_at(&dir, &server.url, None);
        dir.put("home/downloads/some-model/hub.part", &[7; 1000]);
        if let Some(note) = &note {
            dir.put("home/downloads/some-model/hub.part.json", note.as_bytes());
        }
        assert_eq!(
            fs::read(hub.pull(&model(None), &mut Silent, &go_on()).unwrap()).unwrap(),
            bytes,
            "{note:?}"
        );
    }
}

#[test]
fn rotten_bytes_in_a_part_are_found_by_the_hash_and_thrown_away() {
    let dir = TempDir::new();
    let bytes = big();
    let served = bytes.clone();
    let server = FakeHub::serve(move |seen| file(&served, seen));
    let hub = hub_at(&dir, &server.url, None);
    dir.put("home/downloads/some-model/hub.part", &[7; 1000]);
    let goal = format!(r#"{{"sha256":"{}","bytes":{},"source":"x"}}"#, sha256(&bytes), bytes.len());
    dir.put("home/downloads/some-model/hub.part.json", goal.as_bytes());
    let error = hub.pull(&model(None), &mut Silent, &go_on()).unwrap_err();
    assert!(matches!(attempt(error), SourceError::WrongHash { .. }));
    assert_eq!(part_len(&hub), 0);
    assert_eq!(fs::read(hub.pull(&model(None), &mut Silent, &go_on()).unwrap()).unwrap(), bytes);
}

#[test]
fn wrong_bytes_do_not_land() {
    let dir = TempDir::new();
    let bytes = big();
    let served = bytes.clone();
    let server = FakeHub::serve(move |seen| {
        let mut reply = file(&served, seen);
        if let Some(byte) = reply.body.last_mut() {
            *byte ^= 1;
        }
        reply
    });
    let hub = hub_at(&dir, &server.url, None);
    let error = hub.pull(&model(None), &mut Silent, &go_on()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&sha256(&bytes)) && text.contains("served other bytes"), "{text}");
    assert!(matches!(attempt(error), SourceError::WrongHash { .. }));
    assert!(hub.list().is_empty());
    assert_eq!(part_len(&hub), 0);
}

#[test]
fn another_file_than_the_pinned_one_is_not_downloaded() {
    let dir = TempDir::new();
    let server = FakeHub::serve(|seen| file(&tiny_gguf(32), seen));
    let hub = hub_at(&dir, &server.url, None);
    let pin = leak(sha256(b"another"));
    let error = hub.pull(&model(Some(pin)), &mut Silent, &go_on()).unwrap_err();
    assert!(matches!(attempt(error), SourceError::OtherFile { .. }));
    assert_eq!(server.count("GET"), 0);
    let pin = leak(sha256(&tiny_gguf(32)));
    hub.pull(&model(Some(pin)), &mut Silent, &go_on()).unwrap();
}

#[test]
fn without_an_announced_hash_nothing_is_downloaded() {
    let dir = TempDir::new();
    let server =
        FakeHub::serve(|_| Reply { declared: Some(100), ..Reply::status(200) }.with("ETag", "\"abc\""));
    let error = hub_at(&dir, &server.url, None).pull(&model(None), &mut Silent, &go_on()).unwrap_err();
    assert!(matches!(attempt(error), SourceError::NoHash { .. }));
    assert_eq!(server.count("GET"), 0);
}

#[test]
fn a_server_that_ignores_the_range_does_not_spoil_the_file() {
    let dir = TempDir::new();
    let bytes = big();
    let served = bytes.clone();
    let first = Arc::new(AtomicUsize::new(0));
    let server = FakeHub::serve(move |seen| {
        if seen.method == "HEAD" {
            return file(&served, seen);
        }
        let cut = first.fetch_add(1, Ordering::SeqCst) == 0;
        let body = if cut { served[..200_000].to_vec() } else { served.clone() };
        Reply { body, declared: Some(served.len()), ..Reply::status(200) }
    });
    let hub = hub_at(&dir, &server.url, None);
    assert_eq!(fs::read(hub.pull(&model(None), &mut Silent, &go_on()).unwrap()).unwrap(), bytes);
}

#[test]
fn more_bytes_than_announced_are_refused() {
    let dir = TempDir::new();
    let bytes = big();
    let server = FakeHub::serve(move |seen| {
        let mut reply = file(&bytes, seen);
        if seen.method == "GET" {
            reply.body.extend([0; 100_000]);
        }
        reply
    });
    let hub = hub_at(&dir, &server.url, None);
    let error = hub.pull(&model(None), &mut Silent, &go_on()).unwrap_err();
    assert!(matches!(attempt(error), SourceError::WrongSize { .. }));
    assert!(part_len(&hub) <= 1 << 20);
}

#[test]
fn refusals_say_what_to_do_about_the_token() {
    for (status, token, advice) in [
        (401, None, "set HF_TOKEN"),
        (401, Some("hf_old"), "renew it"),
        (403, None, "set HF_TOKEN"),
        (404, None, "no such file"),
    ] {
        let dir = TempDir::new();
        let server = FakeHub::serve(move |_| Reply::status(status));
        let error = hub_at(&dir, &server.url, token).pull(&model(None), &mut Silent, &go_on()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&status.to_string()) && text.contains(advice), "{text}");
        assert!(!text.contains("hf_old"), "the token is in the message: {text}");
        assert_eq!(server.seen().len(), 1, "{status} is final");
        assert_eq!(tree(&dir.path().join("home")), ["locks/some-model"]);
    }
}

#[test]
fn a_refusal_amid_the_download_is_final() {
    for status in [401, 404] {
        let dir = TempDir::new();
        let bytes = tiny_gguf(64);
        let server =
            FakeHub::serve(
                move |seen| {
                    if seen.method == "GET" { Reply::status(status) } else { file(&bytes, seen) }
                },
            );
        let error = hub_at(&dir, &server.url, None).pull(&model(None), &mut Silent, &go_on()).unwrap_err();
        assert!(error.to_string().contains(&status.to_string()), "{error}");
        assert_eq!(server.count("GET"), 1);
    }
}

#[test]
fn an_unreachable_hub_says_so() {
    let dir = TempDir::new();
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let error = hub_at(&dir, &url, None).pull(&model(None), &mut Silent, &go_on()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&url) && text.contains("check the network"), "{text}");
    assert!(matches!(attempt(error), SourceError::Unreachable { .. }));
}

#[test]
fn a_hub_that_never_answers_is_given_up() {
    let dir = TempDir::new();
    let server = FakeHub::serve(|_| Reply { hang: true, ..Reply::default() });
    let mut settings = quiet_settings();
    settings.net.endpoint = Some(server.url.clone());
    settings.net.answer_timeout = Duration::from_millis(200);
    let hub = Hub::with_settings(dir.path().join("home"), settings);
    let error = hub.pull(&model(None), &mut Silent, &go_on()).unwrap_err();
    assert!(error.to_string().contains("no answer in time"), "{error}");
}

#[test]
fn a_download_that_stands_still_is_given_up_and_kept() {
    let dir = TempDir::new();
    let bytes = big();
    let server = FakeHub::serve(move |seen| {
        let stalled = seen.method == "GET";
        Reply {
            stall_after: stalled.then_some(if seen.range_start().is_none() { 50_000 } else { 0 }),
            ..file(&bytes, seen)
        }
    });
    let mut settings = quiet_settings();
    settings.net.endpoint = Some(server.url.clone());
    settings.net.stall_timeout = Duration::from_secs(1);
    settings.net.retries = 0;
    let hub = Hub::with_settings(dir.path().join("home"), settings);
    let error = hub.pull(&model(None), &mut Silent, &go_on()).unwrap_err();
    assert!(matches!(attempt(error), SourceError::Truncated { .. }));
    assert_eq!(part_len(&hub), 50_000);
}

#[test]
fn a_cancel_stops_and_keeps_what_is_there() {
    let dir = TempDir::new();
    let bytes = big();
    let served = bytes.clone();
    let server =
        FakeHub::serve(move |seen| Reply { drip: Some(Duration::from_millis(5)), ..file(&served, seen) });
    let hub = hub_at(&dir, &server.url, None);
    let cancel = Arc::new(Cancel::new(false));
    let mut progress = Recorder { cancel_at: Some((100_000, Arc::clone(&cancel))), ..Recorder::default() };
    let error = hub.pull(&model(None), &mut progress, &cancel).unwrap_err();
    let HubError::Cancelled { kept_bytes, .. } = error else { panic!("{error}") };
    assert!((100_000..bytes.len() as u64).contains(&kept_bytes));
    assert_eq!(part_len(&hub), kept_bytes);
    cancel.store(false, Ordering::Relaxed);
    assert_eq!(fs::read(hub.pull(&model(None), &mut Silent, &cancel).unwrap()).unwrap(), bytes);
}

#[test]
fn offline_means_that_nobody_is_asked() {
    let dir = TempDir::new();
    let server = FakeHub::serve(|_| Reply::status(500));
    let mut settings = quiet_settings();
    settings.net.endpoint = Some(server.url.clone());
    settings.net.offline = true;
    let hub = Hub::with_settings(dir.path().join("home"), settings);
    let error = hub.pull(&model(None), &mut Silent, &go_on()).unwrap_err();
    assert!(matches!(attempt(error), SourceError::Offline));
    assert_eq!(server.seen().len(), 0);
}

#[test]
fn too_little_space_is_seen_before_the_download() {
    let dir = TempDir::new();
    let server = FakeHub::serve(|seen| file(&big(), seen));
    let mut hub = hub_at(&dir, &server.url, None);
    hub.disk = Arc::new(SmallDisk::new(3 << 20, u64::MAX));
    let error = hub.pull(&model(None), &mut Silent, &go_on()).unwrap_err();
    let HubError::DiskFull { needed_bytes, free_bytes, .. } = error else { panic!("{error}") };
    assert_eq!(free_bytes, 3 << 20);
    assert_eq!(needed_bytes, big().len() as u64 + crate::disk::MARGIN_BYTES);
    assert_eq!(server.count("GET"), 0);
}

#[test]
fn a_disk_that_fills_up_amid_the_download_keeps_a_part_that_fits() {
    let dir = TempDir::new();
    let bytes = big();
    let served = bytes.clone();
    let server = FakeHub::serve(move |seen| file(&served, seen));
    let mut hub = hub_at(&dir, &server.url, None);
    hub.disk = Arc::new(SmallDisk::new(1 << 40, 345_678));
    let error = hub.pull(&model(None), &mut Silent, &go_on()).unwrap_err();
    let HubError::DiskFull { kept_bytes, needed_bytes, .. } = error else { panic!("{error}") };
    assert!(kept_bytes <= 345_678);
    assert_eq!(needed_bytes, bytes.len() as u64 - kept_bytes + crate::disk::MARGIN_BYTES);
    assert_eq!(part_len(&hub), kept_bytes, "only bytes that the hash covers stay");
    hub.disk = Arc::new(crate::disk::RealDisk);
    assert_eq!(fs::read(hub.pull(&model(None), &mut Silent, &go_on()).unwrap()).unwrap(), bytes);
}

#[test]
fn an_endpoint_that_is_no_url_is_named() {
    for endpoint in ["nonsense", "ftp://x", "file:///etc"] {
        let dir = TempDir::new();
        let error = hub_at(&dir, endpoint, None).pull(&model(None), &mut Silent, &go_on()).unwrap_err();
        assert!(error.to_string().contains("HF_ENDPOINT"), "{error}");
    }
}
