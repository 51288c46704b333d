//! Names never become paths.

use super::support::*;
use crate::name::{Sha256Hex, is_file_name};
use crate::{CATALOGUE, HubError, ModelName, Source, find};

/// Names that once escaped from somebody's model folder, or could.
const BAD: &[&str] = &[
    "",
    ".",
    "..",
    "../x",
    "..\\x",
    "x/../../etc",
    "/etc/passwd",
    "C:\\x",
    "\\\\host\\share",
    "a/b",
    "a\\b",
    "a\0b",
    "a\nb",
    "%2e%2e%2fx",
    "a..b",
    "a.",
    ".hidden",
    "-rf",
    "con",
    "NUL.gguf",
    "com1",
    "lpt9.x",
    "a b",
    "a:b",
    "~x",
    "$HOME",
    "ä",
    "a\u{202e}b",
    "a*",
];

#[test]
fn bad_names_are_refused_with_a_reason() {
    for name in BAD {
        match ModelName::parse(name) {
            Err(HubError::BadName { why, .. }) => assert!(!why.is_empty()),
            other => panic!("{name:?} gave {other:?}"),
        }
        assert!(!is_file_name(name), "{name:?} as a file name");
    }
    assert!(ModelName::parse(&"a".repeat(96)).is_ok());
    assert!(ModelName::parse(&"a".repeat(97)).is_err());
}

#[test]
fn an_error_shows_no_control_characters() {
    let error = ModelName::parse("a\u{1b}[31m\nb").unwrap_err().to_string();
    assert!(!error.chars().any(char::is_control), "{error:?}");
}

#[test]
fn good_names_fold_case_and_files_keep_it() {
    assert_eq!(ModelName::parse("SmolLM2-135M_x.y").unwrap().as_str(), "smollm2-135m_x.y");
    assert!(is_file_name("SmolLM2-135M-Instruct.Q4_1.gguf"));
    assert!(is_file_name("model+lora-00001-of-00002.gguf"));
}

#[test]
fn bad_names_touch_nothing_outside_the_home() {
    let dir = TempDir::new();
    let hub = hub_in(&dir);
    let outside = dir.put("outside/manifest.json", b"{}");
    for name in BAD.iter().chain(&["../outside", "../../outside", "models/../outside"]) {
        assert!(hub.resolve_name(name).is_err(), "{name:?} resolved");
        assert!(hub.remove(name).is_err(), "{name:?} removed");
    }
    assert!(outside.exists());
    assert_eq!(tree(dir.path()), ["outside/manifest.json"]);
}

#[test]
fn sha256_is_64_hex_digits_and_nothing_else() {
    let good = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
    assert_eq!(Sha256Hex::parse(&good.to_uppercase()).unwrap().as_str(), good);
    for bad in ["", "b179", &good[1..], &format!("{good}0"), &good.replace('b', "g"), &good.replace('b', "/")]
    {
        assert!(Sha256Hex::parse(bad).is_none(), "{bad:?}");
    }
}

#[test]
fn the_catalogue_is_sound() {
    let mut seen = std::collections::HashSet::new();
    for entry in CATALOGUE {
        assert_eq!(ModelName::parse(entry.name).unwrap().as_str(), entry.name);
        for name in entry.aliases.iter().chain([&entry.name]) {
            assert!(seen.insert(name.to_lowercase()), "{name} means two entries");
            assert_eq!(find(name).unwrap().name, entry.name);
        }
        assert!(!entry.sources.is_empty() && entry.bytes() > 0 && !entry.license.is_empty());
        for source in entry.sources {
            assert!(is_file_name(source.file_name()), "{}", source.file_name());
            match source {
                Source::Wheel(wheel) => {
                    assert!(Sha256Hex::parse(wheel.sha256).is_some_and(|h| h.as_str() == wheel.sha256));
                    assert!(
                        Sha256Hex::parse(wheel.wheel_sha256)
                            .is_some_and(|h| h.as_str() == wheel.wheel_sha256)
                    );
                }
                Source::Hub(hub) => {
                    assert_eq!(hub.repo.split('/').filter(|part| !part.is_empty()).count(), 2);
                    assert!(hub.sha256.is_none_or(|h| Sha256Hex::parse(h).is_some()));
                }
            }
        }
    }
    assert_eq!(find("default").unwrap().name, "smollm2-135m-instruct");
    assert_eq!(find("SmolLM2").unwrap().name, "smollm2-135m-instruct");
    assert!(find("smollm3").is_none());
}
