//! Budgets for JSON, applied before a parser sees it: bytes, nesting, number of values. Also the bounded reading of
//! small companion files. It must not know what a document means.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{FileError, io_error};
use crate::{Limits, Result};

/// Upper bounds of what a document holds.
pub(crate) struct Census {
    /// Values of all kinds, keys included.
    pub values: u64,
    /// Objects directly inside the outermost one.
    pub inner_objects: usize,
    /// Pairs of key and value in all objects.
    pub pairs: usize,
}

/// Refuses documents nested deeper than `limits.json_depth` and counts what the rest can hold. One pass over the
/// bytes, no allocation; it does not check that the document is valid.
pub(crate) fn census(bytes: &[u8], what: &str, limits: &Limits) -> Result<Census> {
    let (mut depth, mut deepest) = (0u32, 0u32);
    let mut census = Census { values: 1, inner_objects: 0, pairs: 0 };
    let (mut in_string, mut escaped) = (false, false);
    for &byte in bytes {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth = depth.saturating_add(1);
                deepest = deepest.max(depth);
                census.values += 1;
                census.inner_objects += usize::from(byte == b'{' && depth == 2);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' | b':' => {
                census.values += 1;
                census.pairs += usize::from(byte == b':');
            }
            _ => {}
        }
    }
    if deepest > limits.json_depth {
        return Err(FileError::Limit {
            what: format!("the nesting of {what}"),
            found: deepest.into(),
            limit: limits.json_depth.into(),
            field: "json_depth",
        });
    }
    Ok(census)
}

/// Reads and parses a JSON companion file within its budgets; `None` if it does not exist.
pub(crate) fn read_document(path: &Path, limits: &Limits) -> Result<Option<serde_json::Value>> {
    let Some(bytes) = read_small(path, limits.json_bytes, "json_bytes")? else { return Ok(None) };
    parse_document(&bytes, limits).map(Some).map_err(|e| e.at(path))
}

fn parse_document(bytes: &[u8], limits: &Limits) -> Result<serde_json::Value> {
    let values = census(bytes, "the JSON document", limits)?.values;
    if values > limits.json_values {
        return Err(FileError::Limit {
            what: "the number of JSON values".into(),
            found: values,
            limit: limits.json_values,
            field: "json_values",
        });
    }
    let bytes = without_bare_numbers(bytes);
    serde_json::from_slice(&bytes).map_err(|e| invalid("the JSON document", &e))
}

/// Python writes numbers that JSON does not have as bare words; they become strings.
fn without_bare_numbers(bytes: &[u8]) -> Cow<'_, [u8]> {
    const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    let mut out: Option<Vec<u8>> = None;
    let (mut at, mut copied) = (0, 0);
    let (mut in_string, mut escaped) = (false, false);
    while at < bytes.len() {
        let byte = bytes[at];
        let word = || WORDS.into_iter().find(|word| bytes[at..].starts_with(word.as_bytes()));
        if in_string {
            (escaped, in_string) = (!escaped && byte == b'\\', escaped || byte != b'"');
        } else if byte == b'"' {
            in_string = true;
        } else if matches!(byte, b'-' | b'I' | b'N')
            && let Some(word) = word()
        {
            let out = out.get_or_insert_default();
            out.extend_from_slice(&bytes[copied..at]);
            out.extend_from_slice(format!("\"{word}\"").as_bytes());
            copied = at + word.len();
            at = copied;
            continue;
        }
        at += 1;
    }
    match out {
        Some(mut out) => {
            out.extend_from_slice(&bytes[copied..]);
            Cow::Owned(out)
        }
        None => Cow::Borrowed(bytes),
    }
}

/// Reads a text companion file within its budget; `None` if it does not exist.
pub(crate) fn read_text(path: &Path, limits: &Limits) -> Result<Option<String>> {
    let Some(bytes) = read_small(path, limits.text_bytes, "text_bytes")? else { return Ok(None) };
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(FileError::NotUtf8 { what: "the text".into() }.at(path)),
    }
}

/// Reads a whole regular file of at most `limit` bytes; `None` if it does not exist.
pub(crate) fn read_small(path: &Path, limit: u64, field: &'static str) -> Result<Option<Vec<u8>>> {
    let read = || -> Result<Option<Vec<u8>>> {
        let Some(size) = regular_size(path)? else { return Ok(None) };
        let over = |found| FileError::Limit { what: "the file size".into(), found, limit, field };
        if size > limit {
            return Err(over(size));
        }
        let file = File::open(path).map_err(io_error("open it"))?;
        let mut bytes = Vec::with_capacity(size as usize + 1);
        // One byte more than allowed shows a file that grew since its size was asked for.
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(io_error("read it"))?;
        if bytes.len() as u64 > limit {
            return Err(over(bytes.len() as u64));
        }
        Ok(Some(bytes))
    };
    read().map_err(|e| e.at(path))
}

/// Size of a regular file (links followed), `None` if there is nothing; pipes and devices are refused, since opening
/// them can block for ever.
pub(crate) fn regular_size(path: &Path) -> Result<Option<u64>> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() => Ok(Some(meta.len())),
        Ok(meta) if meta.is_dir() => Err(FileError::NotAFile { found: "a folder" }),
        Ok(_) => Err(FileError::NotAFile { found: "a device or pipe" }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(FileError::Io { action: "look at it", source: e }),
    }
}

/// A serde_json error as ours; long details (they quote the input) are cut.
pub(crate) fn invalid(what: &str, error: &serde_json::Error) -> FileError {
    const MAX_CHARS: usize = 300;
    let detail: String = error.to_string().chars().filter(|c| !c.is_control()).take(MAX_CHARS).collect();
    FileError::Json { what: what.to_string(), detail }
}
