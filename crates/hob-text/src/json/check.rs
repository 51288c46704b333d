//! What a tokenizer.json may use: component types and expressions are checked here, before any library
//! builds them. Knows names and limits only.

use serde_json::Value;

use crate::error::{Result, TextError};
use crate::limits::TokenizerLimits;
use crate::pretokenizer::shorten;
use crate::vocab::Spelling;

/// Longest text that a normalizer may insert per match: it multiplies the size of the input.
const INSERT_BYTES: usize = 32;

fn kind<'a>(value: &'a Value, place: &str) -> Result<&'a str> {
    value
        .get("type")
        .and_then(Value::as_str)
        .ok_or_else(|| TextError::Json(format!("{place} has no \"type\"")))
}

fn unsupported(place: &str, found: &str, supported: &str) -> TextError {
    TextError::Json(format!("{place} \"{}\" is not supported; hob knows {supported}", shorten(found)))
}

fn each<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

/// Accepts the normalizers of published BPE vocabularies.
pub(super) fn normalizer(value: &Value, limits: &TokenizerLimits) -> Result<()> {
    if value.is_null() {
        return Ok(());
    }
    match kind(value, "normalizer")? {
        "Sequence" => each(value, "normalizers").try_for_each(|inner| normalizer(inner, limits)),
        "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase" | "Strip" => Ok(()),
        // Its bytes are checked where they are read.
        "Precompiled" => Ok(()),
        "Prepend" => short(value, "prepend"),
        "Replace" => short(value, "content").and_then(|()| pattern(value, limits)),
        other => Err(unsupported(
            "normalizer",
            other,
            "Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Strip, Precompiled, Prepend, Replace",
        )),
    }
}

fn short(value: &Value, field: &str) -> Result<()> {
    match value.get(field).and_then(Value::as_str) {
        Some(text) if text.len() > INSERT_BYTES => Err(TextError::Json(format!(
            "normalizer: {field} has {} bytes; the limit is {INSERT_BYTES}, it would blow up every text",
            text.len()
        ))),
        _ => Ok(()),
    }
}

/// Accepts the pre-tokenizers of published BPE vocabularies.
pub(super) fn pre_tokenizer(value: &Value, limits: &TokenizerLimits) -> Result<()> {
    if value.is_null() {
        return Ok(());
    }
    match kind(value, "pre_tokenizer")? {
        "Sequence" => each(value, "pretokenizers").try_for_each(|inner| pre_tokenizer(inner, limits)),
        "ByteLevel" | "Digits" | "Metaspace" | "Punctuation" | "Whitespace" | "WhitespaceSplit" => Ok(()),
        "Split" => pattern(value, limits),
        other => Err(unsupported(
            "pre_tokenizer",
            other,
            "Sequence, ByteLevel, Split, Digits, Metaspace, Punctuation, Whitespace, WhitespaceSplit",
        )),
    }
}

/// Checks a `pattern`: `{"String": ..}` or `{"Regex": ..}`.
fn pattern(value: &Value, limits: &TokenizerLimits) -> Result<()> {
    let Some(pattern) = value.get("pattern") else { return Ok(()) };
    let text = pattern.get("Regex").or(pattern.get("String")).and_then(Value::as_str).unwrap_or("");
    if text.len() > limits.regex_bytes {
        let (found, limit) = (text.len() as u64, limits.regex_bytes as u64);
        let what = "the longest expression of tokenizer.json in bytes";
        return Err(TextError::TooLarge { what, found, limit, field: "regex_bytes" });
    }
    match pattern.get("Regex") {
        Some(_) => expression(text, limits),
        None => Ok(()),
    }
}

/// Refuses expressions whose compiled form or running time explodes: large counted repetitions, and an
/// unbounded repetition inside another (`(a+)+`).
fn expression(text: &str, limits: &TokenizerLimits) -> Result<()> {
    let mut repeats = 1u64;
    // Per open group: whether it holds an unbounded repetition.
    let mut groups = vec![false];
    // Whether the item just read is a group that holds one.
    let mut item_unbounded = false;
    let mut chars = text.char_indices().peekable();
    let mut class_depth = 0usize;
    while let Some((at, c)) = chars.next() {
        let mut unbounded = false;
        match c {
            '\\' => {
                chars.next();
                item_unbounded = false;
                continue;
            }
            '[' => class_depth += 1,
            ']' => class_depth = class_depth.saturating_sub(1),
            _ if class_depth > 0 => continue,
            '(' => {
                groups.push(false);
                continue;
            }
            ')' => {
                item_unbounded = groups.pop().unwrap_or(false);
                if groups.is_empty() {
                    groups.push(false);
                }
                if item_unbounded && let Some(outer) = groups.last_mut() {
                    *outer = true;
                }
                continue;
            }
            '*' | '+' => unbounded = true,
            '{' => {
                if let Some((max, open)) = counted(&text[at..]) {
                    repeats = repeats.saturating_mul(max.max(1));
                    unbounded = open;
                }
            }
            _ => {}
        }
        if unbounded {
            if item_unbounded {
                return Err(TextError::Json(format!(
                    "the expression \"{}\" repeats a repetition without bound; it could take for ever",
                    shorten(text)
                )));
            }
            if let Some(group) = groups.last_mut() {
                *group = true;
            }
        }
        if !matches!(c, '?' | '*' | '+' | '{') {
            item_unbounded = false;
        }
    }
    if repeats > limits.regex_repeats {
        let (what, limit) = ("the product of an expression's repetitions", limits.regex_repeats);
        return Err(TextError::TooLarge { what, found: repeats, limit, field: "regex_repeats" });
    }
    Ok(())
}

/// Reads `{m}`, `{m,}` or `{m,n}` at the start of `text`: the larger number, and whether there is no upper end.
fn counted(text: &str) -> Option<(u64, bool)> {
    let inner = text[1..].split_once('}')?.0;
    let (low, high) = inner.split_once(',').unwrap_or((inner, inner));
    let number = |digits: &str| match digits.bytes().all(|byte| byte.is_ascii_digit()) {
        true if digits.is_empty() => Some(0),
        true => Some(digits.parse().unwrap_or(u64::MAX)),
        false => None,
    };
    let (low, high_number) = (number(low)?, number(high)?);
    Some((low.max(high_number), inner.ends_with(',')))
}

/// How token texts spell bytes, from the decoder (or, without one, from the pre-tokenizer), and whether the
/// decoder drops a space at the start.
pub(super) fn spelling(decoder: &Value, pre_tokenizer: &Value) -> Result<(Spelling, bool)> {
    let mut kinds = Vec::new();
    collect(decoder, "decoders", &mut kinds);
    if decoder.is_null() {
        collect(pre_tokenizer, "pretokenizers", &mut kinds);
    }
    let has = |name: &str| kinds.iter().any(|(kind, _)| *kind == name);
    if has("ByteLevel") {
        return Ok((Spelling::ByteLevel, false));
    }
    if has("Metaspace") || has("ByteFallback") {
        let strips = kinds.iter().any(|(kind, value)| match *kind {
            "Strip" => value.get("start").and_then(Value::as_u64).is_some_and(|start| start > 0),
            "Metaspace" => {
                value.get("prepend_scheme").and_then(Value::as_str) != Some("never")
                    && value.get("add_prefix_space").and_then(Value::as_bool) != Some(false)
            }
            _ => false,
        });
        return Ok((Spelling::Metaspace, strips));
    }
    let found = kinds.first().map_or("none", |(kind, _)| kind);
    Err(unsupported("decoder", found, "ByteLevel, Metaspace, and sequences with ByteFallback"))
}

fn collect<'a>(value: &'a Value, field: &str, kinds: &mut Vec<(&'a str, &'a Value)>) {
    if let Some(kind) = value.get("type").and_then(Value::as_str) {
        match kind {
            "Sequence" => each(value, field).for_each(|inner| collect(inner, field, kinds)),
            kind => kinds.push((kind, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_of_published_vocabularies_pass_and_bombs_do_not() {
        let limits = TokenizerLimits::default();
        for good in [
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+|\p{N}|\s+(?!\S)|\s+",
            r"\d{1,3}(?=(?:\d{3})*\b)",
            r"[!-/:-~！-／：-～‘-‟　-。]+",
            r"[(+*)]+",
        ] {
            expression(good, &limits).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        for bad in
            ["(a+)+", "(?:(a*)b)*", r"((\s+)?)+", "(a{2,})*", "(?:a{300}){300}", "a{99999999999999999999}"]
        {
            assert!(expression(bad, &limits).is_err(), "{bad}");
        }
    }
}
