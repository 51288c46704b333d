//! Removing installed models.

use super::support::*;
use crate::pull::Fetch;
use crate::{HubError, Silent};

fn install(hub: &crate::Hub, name: &str) {
    let sources: Vec<Box<dyn Fetch>> = vec![Box::new(BytesFetch::new(tiny_gguf(32)))];
    hub.pull_from(&entry(name, Vec::new()), &sources, &mut Silent, &go_on()).unwrap();
}

#[test]
fn a_removed_model_is_gone_with_its_folder() {
    let dir = TempDir::new();
    let hub = hub_in(&dir);
    install(&hub, "one");
    install(&hub, "two");
    dir.put("home/downloads/one/hub.part", &[0; 100]);
    assert_eq!(hub.remove("one").unwrap(), tiny_gguf(32).len() as u64);
    assert_eq!(
        tree(hub.home()),
        ["locks/one", "locks/two", "models/two/manifest.json", "models/two/model.gguf"]
    );
    assert!(matches!(hub.remove("one"), Err(HubError::NotInstalled { .. })));
}

#[test]
fn an_alias_removes_its_entry() {
    let dir = TempDir::new();
    let hub = hub_in(&dir);
    install(&hub, "smollm2-135m-instruct");
    assert!(hub.remove("default").unwrap() > 0);
    assert!(hub.list().is_empty());
}

#[test]
fn an_unfinished_download_can_be_removed() {
    let dir = TempDir::new();
    let hub = hub_in(&dir);
    dir.put("home/downloads/one/hub.part", &[0; 100]);
    assert_eq!(hub.remove("one").unwrap(), 0);
    assert_eq!(tree(hub.home()), ["locks/one"]);
}

/// A model's folder that is a link, or holds one, takes away the link and never what it points to.
#[cfg(unix)]
#[test]
fn links_are_not_followed() {
    use std::os::unix::fs::symlink;
    let dir = TempDir::new();
    let hub = hub_in(&dir);
    let kept = dir.put("outside/precious", b"x");
    install(&hub, "one");
    symlink(dir.path().join("outside"), hub.home().join("models/one/link")).unwrap();
    symlink(dir.path().join("outside"), hub.home().join("models/two")).unwrap();
    hub.remove("one").unwrap();
    hub.remove("two").unwrap();
    assert!(kept.exists());
    assert_eq!(tree(hub.home()), ["locks/one", "locks/two"]);
}
