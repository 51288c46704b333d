//! The default model for real. Wants `HOB_TEST_NETWORK=1` and a way to a package index or the hub.

use super::support::*;
use crate::{CATALOGUE, Hub, ModelName, Places, Resolved, Settings, Source};

#[test]
fn the_default_model_can_be_had() {
    if std::env::var_os("HOB_TEST_NETWORK").is_none_or(|v| v != "1") {
        println!("skipped: HOB_TEST_NETWORK is not 1");
        return;
    }
    let dir = TempDir::new();
    let settings = Settings { places: Places::default(), ..Settings::from_env() };
    let hub = Hub::with_settings(dir.path().join("home"), settings);
    let model = &CATALOGUE[0];
    let mut progress = Recorder::default();
    let path = hub.pull(model, &mut progress, &go_on()).unwrap();
    println!("{:?}", progress.phases);
    let manifest = hub.manifest(&ModelName::parse(model.name).unwrap()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), manifest.bytes);
    let Source::Wheel(wheel) = model.sources[0] else {
        panic!("the default model's first source is the wheel")
    };
    if manifest.source.starts_with("Python") {
        assert_eq!((manifest.sha256.as_str(), manifest.bytes), (wheel.sha256, wheel.bytes));
    }
    assert!(matches!(hub.resolve("default").unwrap(), Resolved::Local(local) if local.path == path));
    assert_eq!(hub.remove("default").unwrap(), manifest.bytes);
    assert!(hub.list().is_empty());
}
