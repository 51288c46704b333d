//! From checked components of a tokenizer.json to what runs them: our own linear-time splitter and character maps
//! where they mean the same, else the `tokenizers` crate's.

use serde_json::Value;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;

use crate::assemble::Pieces;
use crate::charsmap::{Charsmap, from_base64};
use crate::error::{Result, TextError};
use crate::normalizer::Normal;
use crate::pretokenizer::gpt2_step;
use crate::splitter::{Splitter, Step, Tail};

/// The normalizer; JSON `null` is none.
pub(super) fn normalizer(value: Value) -> Result<Option<Normal>> {
    if value.is_null() { Ok(None) } else { one_normalizer(value).map(Some) }
}

fn one_normalizer(value: Value) -> Result<Normal> {
    match kind(&value) {
        "Sequence" => {
            let inner = value.get("normalizers").and_then(Value::as_array).into_iter().flatten();
            inner.map(|one| one_normalizer(one.clone())).collect::<Result<_>>().map(Normal::Sequence)
        }
        "Precompiled" => {
            let text = value.get("precompiled_charsmap").and_then(Value::as_str);
            let bytes = text.and_then(from_base64).ok_or_else(|| {
                TextError::Json("normalizer \"Precompiled\": precompiled_charsmap is not base64 text".into())
            })?;
            // An empty map maps nothing.
            if bytes.is_empty() {
                return Ok(Normal::Sequence(Vec::new()));
            }
            Charsmap::parse(&bytes).map(Normal::Charsmap)
        }
        _ => component::<NormalizerWrapper>(value, "normalizer").map(Normal::Component),
    }
}

/// How text is cut.
pub(super) fn pieces(value: Value) -> Result<Pieces> {
    let mut steps = Vec::new();
    match own_steps(&value, &mut steps) {
        Some(true) => Ok(Pieces::Bytes(Splitter::new(steps))),
        _ if value.is_null() => Ok(Pieces::Component(None)),
        _ => component::<PreTokenizerWrapper>(value, "pre_tokenizer").map(|one| Pieces::Component(Some(one))),
    }
}

/// Our steps for a pre-tokenizer, if it has some: `Some(true)` once a `ByteLevel` has ended them.
fn own_steps(value: &Value, steps: &mut Vec<Step>) -> Option<bool> {
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    match kind(value) {
        "Sequence" => {
            let mut ended = false;
            for inner in value.get("pretokenizers")?.as_array()? {
                if ended {
                    return None;
                }
                ended = own_steps(inner, steps)?;
            }
            Some(ended)
        }
        "ByteLevel" if flag("add_prefix_space") == Some(false) => {
            if flag("use_regex") != Some(false) {
                steps.push(gpt2_step().ok()?);
            }
            Some(true)
        }
        "Digits" => {
            let expression = if flag("individual_digits") == Some(true) { r"\p{N}" } else { r"\p{N}+" };
            steps.push(Step::new(&[expression], Tail::Whole).ok()?);
            Some(false)
        }
        "Split" if flag("invert") == Some(false) && value.get("behavior")?.as_str()? == "Isolated" => {
            steps.push(Step::from_source(value.get("pattern")?.get("Regex")?.as_str()?)?);
            Some(false)
        }
        _ => None,
    }
}

fn kind(value: &Value) -> &str {
    value.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// A component that `check` has accepted.
fn component<T: serde::de::DeserializeOwned>(value: Value, name: &str) -> Result<T> {
    serde_json::from_value(value).map_err(|error| TextError::Json(format!("{name}: {error}")))
}
