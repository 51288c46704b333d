//! The environment: HOB_HOME, the hub's variables, proxies.

use std::path::Path;
use std::process::Command;

use super::fake_hub::{FakeHub, file};
use super::support::*;
use crate::home::from_lookup;
use crate::{Hub, HubSource, NetSettings, Silent, Source};

#[cfg(unix)]
#[test]
fn the_home_follows_the_platforms_rules() {
    let home = |vars: &'static [(&str, &str)]| {
        from_lookup(&move |name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).into()))
    };
    assert_eq!(
        home(&[("HOB_HOME", "/a"), ("XDG_DATA_HOME", "/b"), ("HOME", "/c")]).unwrap(),
        Path::new("/a")
    );
    assert_eq!(
        home(&[("HOB_HOME", ""), ("XDG_DATA_HOME", "/b"), ("HOME", "/c")]).unwrap(),
        Path::new("/b/hob")
    );
    let own =
        if cfg!(target_os = "macos") { "/c/Library/Application Support/hob" } else { "/c/.local/share/hob" };
    assert_eq!(home(&[("XDG_DATA_HOME", "relative"), ("HOME", "/c")]).unwrap(), Path::new(own));
    assert!(home(&[]).is_none());
}

#[test]
fn the_token_is_found_by_the_hubs_rules_and_never_shown() {
    let dir = TempDir::new();
    let file = dir.put("token", b"hf_from_file\n");
    let hub_home = dir.path().to_str().unwrap().to_owned();
    let other = dir.put("other", b"hf_other").to_str().unwrap().to_owned();
    let net = |vars: Vec<(&'static str, String)>| {
        NetSettings::from_lookup(&|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()))
    };
    let s = String::from;
    assert_eq!(net(vec![]).token, None);
    assert_eq!(net(vec![("HF_HOME", hub_home.clone())]).token.as_deref(), Some("hf_from_file"));
    assert_eq!(
        net(vec![("HF_HOME", hub_home.clone()), ("HF_TOKEN_PATH", other)]).token.as_deref(),
        Some("hf_other")
    );
    let all = vec![("HF_HOME", hub_home), ("HF_TOKEN", s(" hf_env "))];
    assert_eq!(net(all.clone()).token.as_deref(), Some("hf_env"));
    assert!(!format!("{:?}", net(all.clone())).contains("hf_env"));
    let disabled = all.into_iter().chain([("HF_HUB_DISABLE_IMPLICIT_TOKEN", s("1"))]).collect();
    assert_eq!(net(disabled).token, None);
    assert!(file.exists());
    assert_eq!(
        net(vec![("HF_ENDPOINT", s("https://mirror.example/"))]).endpoint.unwrap(),
        "https://mirror.example"
    );
    assert!(net(vec![("HF_HUB_OFFLINE", s("1"))]).offline && !net(vec![("HF_HUB_OFFLINE", s("0"))]).offline);
}

/// The variables reach the wire. A child process has them, because changing this one's would disturb other
/// tests; in the child this same test pulls with `Hub::new`. The endpoint's host exists nowhere: only the
/// proxy can have answered.
#[test]
fn endpoint_token_and_proxy_reach_the_wire() {
    const ROLE: &str = "HOB_HUB_TEST_CHILD_HOME";
    let source = HubSource { repo: "o/m", revision: "main", file: "m.gguf", bytes: 1, sha256: None };
    if let Some(home) = std::env::var_os(ROLE) {
        Hub::new(home).pull(&entry("m", vec![Source::Hub(source)]), &mut Silent, &go_on()).unwrap();
        return;
    }
    let dir = TempDir::new();
    let proxy = FakeHub::serve(|seen| file(&tiny_gguf(64), seen));
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "tests::settings::endpoint_token_and_proxy_reach_the_wire"]);
    child
        .env(ROLE, dir.path().join("home"))
        .env("HF_ENDPOINT", "http://hub.invalid")
        .env("HF_TOKEN", "hf_child");
    for name in ["http_proxy", "HTTP_PROXY"] {
        child.env(name, &proxy.url);
    }
    for name in ["no_proxy", "NO_PROXY", "ALL_PROXY", "all_proxy", "REQUEST_METHOD", "HF_HUB_OFFLINE"] {
        child.env_remove(name);
    }
    let output = child.env_remove("HF_HUB_DISABLE_IMPLICIT_TOKEN").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let seen = proxy.seen();
    assert!(
        seen.len() >= 2 && seen.iter().all(|r| r.target.starts_with("http://hub.invalid/o/m/resolve/")),
        "{seen:?}"
    );
    assert!(seen.iter().all(|r| r.header("authorization") == Some("Bearer hf_child")));
    assert_eq!(std::fs::read(dir.path().join("home/models/m/m.gguf")).unwrap(), tiny_gguf(64));
}
