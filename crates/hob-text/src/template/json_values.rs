//! JSON to template values and back, the latter as Python's `json.dumps` writes it (Hugging Face's `tojson`).

use std::fmt::Write as _;

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::meter;
use super::values::{Number, Text, VISIT_BYTES, elements, float_text, invalid, map, pairs};

/// JSON as a template value; the order of keys is kept.
pub(super) fn from_json(json: &serde_json::Value, depth: usize) -> Result<Value, Error> {
    use serde_json::Value as Json;
    let depth = depth.checked_sub(1).ok_or_else(meter::too_deep)?;
    Ok(match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => Value::from(int),
            (_, Some(int)) => Value::from(int),
            _ => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(elements) => {
            let convert = |element| from_json(element, depth);
            Value::from(elements.iter().map(convert).collect::<Result<Vec<_>, _>>()?)
        }
        Json::Object(entries) => {
            let convert =
                |(key, value): (&String, _)| Ok((Value::from(key.as_str()), from_json(value, depth)?));
            Value::from_pairs(entries.iter().map(convert).collect::<Result<Vec<_>, Error>>()?)
        }
    })
}

/// Rough size of JSON in bytes of text, to scale the budget with the conversation.
pub(super) fn json_bytes(json: &serde_json::Value) -> u64 {
    use serde_json::Value as Json;
    match json {
        Json::Null | Json::Bool(_) => 4,
        Json::Number(_) => 8,
        Json::String(text) => text.len() as u64 + 2,
        Json::Array(elements) => 2 + elements.iter().map(json_bytes).sum::<u64>(),
        Json::Object(entries) => {
            2 + entries.iter().map(|(key, value)| key.len() as u64 + 4 + json_bytes(value)).sum::<u64>()
        }
    }
}

/// How `json.dumps` is asked to write.
pub(super) struct JsonStyle {
    /// Spaces per level, or none for one line.
    pub(super) indent: Option<String>,
    pub(super) item_separator: String,
    pub(super) key_separator: String,
    pub(super) sort_keys: bool,
    pub(super) ensure_ascii: bool,
}

/// `json.dumps(value)`.
pub(super) fn push_json(out: &mut Text, value: &Value, style: &JsonStyle, level: usize) -> Result<(), Error> {
    if level >= meter::depth() {
        return Err(meter::too_deep());
    }
    meter::charge(VISIT_BYTES)?;
    if let Some(text) = value.as_str() {
        return push_json_text(out, text, style.ensure_ascii);
    }
    if let Some(elements) = elements(value) {
        if elements.is_empty() {
            return out.push("[]");
        }
        out.push("[")?;
        for (index, element) in elements.iter().enumerate() {
            json_break(out, style, index, level + 1)?;
            push_json(out, element, style, level + 1)?;
        }
        json_end(out, style, level)?;
        return out.push("]");
    }
    if let Some(object) = map(value) {
        let mut pairs = pairs(object)?;
        if pairs.is_empty() {
            return out.push("{}");
        }
        if style.sort_keys {
            meter::charge(pairs.len() * 64)?;
            pairs.sort_by(|(a, _), (b, _)| a.as_str().cmp(&b.as_str()));
        }
        out.push("{")?;
        for (index, (key, value)) in pairs.iter().enumerate() {
            json_break(out, style, index, level + 1)?;
            let mut text = Text::default();
            match key.as_str() {
                Some(key) => text.push(key)?,
                None => push_json(&mut text, key, style, level + 1)?,
            }
            push_json_text(out, &text.into_string(), style.ensure_ascii)?;
            out.push(&style.key_separator)?;
            push_json(out, value, style, level + 1)?;
        }
        json_end(out, style, level)?;
        return out.push("}");
    }
    match (value.kind(), Number::of(value)) {
        (ValueKind::None, _) => out.push("null"),
        (ValueKind::Bool, _) => out.push(if value.is_true() { "true" } else { "false" }),
        (_, Some(Number::Int(int))) => out.push(&int.to_string()),
        (_, Some(Number::Float(float))) if float.is_nan() => out.push("NaN"),
        (_, Some(Number::Float(float))) if float.is_infinite() => {
            out.push(if float > 0.0 { "Infinity" } else { "-Infinity" })
        }
        (_, Some(Number::Float(float))) => out.push(&float_text(float)),
        (kind, None) => Err(invalid(format!("a value of type {kind} cannot be written as JSON"))),
    }
}

fn json_break(out: &mut Text, style: &JsonStyle, index: usize, level: usize) -> Result<(), Error> {
    if index > 0 {
        out.push(&style.item_separator)?;
    }
    json_newline(out, style, level)
}

fn json_end(out: &mut Text, style: &JsonStyle, level: usize) -> Result<(), Error> {
    json_newline(out, style, level)
}

fn json_newline(out: &mut Text, style: &JsonStyle, level: usize) -> Result<(), Error> {
    let Some(indent) = &style.indent else { return Ok(()) };
    out.push("\n")?;
    (0..level).try_for_each(|_| out.push(indent))
}

fn push_json_text(out: &mut Text, text: &str, ensure_ascii: bool) -> Result<(), Error> {
    out.push("\"")?;
    let mut rest = text;
    let special = |c: char| (c as u32) < 0x20 || matches!(c, '"' | '\\') || (ensure_ascii && !c.is_ascii());
    while let Some((at, c)) = rest.char_indices().find(|&(_, c)| special(c)) {
        out.push(&rest[..at])?;
        rest = &rest[at + c.len_utf8()..];
        match c {
            '"' => out.push("\\\"")?,
            '\\' => out.push("\\\\")?,
            '\n' => out.push("\\n")?,
            '\r' => out.push("\\r")?,
            '\t' => out.push("\\t")?,
            '\u{8}' => out.push("\\b")?,
            '\u{c}' => out.push("\\f")?,
            c => {
                let mut escaped = String::new();
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a String cannot fail.
                    let _ = write!(escaped, "\\u{unit:04x}");
                }
                out.push(&escaped)?;
            }
        }
    }
    out.push(rest)?;
    out.push("\"")
}
