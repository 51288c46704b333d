//! Names as types: a model's name and a SHA-256. Whatever becomes part of a path of ours passes through here.

use std::fmt;

use crate::HubError;

/// A model's name: 1 to 96 of `a-z 0-9 . _ -`, starting with a letter or digit, without `..`, without a
/// trailing dot and not one of the device names of Windows. Such a string is one path component on every
/// platform and means no other.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelName(String);

impl ModelName {
    /// Longest name, in bytes: leaves room for suffixes below the 255 bytes that file systems allow.
    pub const MAX_BYTES: usize = 96;

    /// Upper-case letters are folded; anything else that the rule does not allow is [`HubError::BadName`].
    pub fn parse(text: &str) -> Result<Self, HubError> {
        match component_fault(text, Self::MAX_BYTES, b"._-") {
            Some(why) => Err(HubError::BadName { name: shown(text, 80), why }),
            None => Ok(Self(text.to_ascii_lowercase())),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `con`, `nul.gguf`, `com1`, ...: the part before the first dot decides.
fn is_device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or(name);
    let numbered = |prefix: &str| {
        stem.strip_prefix(prefix).is_some_and(|rest| rest.len() == 1 && rest.as_bytes()[0].is_ascii_digit())
    };
    matches!(stem, "con" | "prn" | "aux" | "nul") || numbered("com") || numbered("lpt")
}

/// May a model file of ours be called `name`? As for [`ModelName`], but case is kept (a file keeps the name
/// that its publisher gave it), `+` is allowed and 200 bytes are.
pub(crate) fn is_file_name(name: &str) -> bool {
    component_fault(name, 200, b"._-+").is_none()
}

/// What keeps `text` from being one harmless path component on every platform.
fn component_fault(text: &str, max_bytes: usize, signs: &[u8]) -> Option<&'static str> {
    let Some(first) = text.bytes().next() else { return Some("it is empty") };
    if text.len() > max_bytes {
        Some("it is too long")
    } else if !text.bytes().all(|b| b.is_ascii_alphanumeric() || signs.contains(&b)) {
        Some("it holds a character other than a-z 0-9 . _ -")
    } else if !first.is_ascii_alphanumeric() {
        Some("it does not start with a letter or a digit")
    } else if text.contains("..") || text.ends_with('.') {
        Some("it holds `..` or ends in a dot")
    } else if is_device(&text.to_ascii_lowercase()) {
        Some("it is a device name on Windows")
    } else {
        None
    }
}

/// A SHA-256 in 64 lower-case hex digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sha256Hex(String);

impl Sha256Hex {
    /// `None` unless `text` is exactly 64 hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        hex.then(|| Self(text.to_ascii_lowercase()))
    }

    /// From a finished hash.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        use fmt::Write as _;
        let mut hex = String::with_capacity(bytes.len() * 2);
        for byte in bytes {
            // Writing into a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
        }
        Self(hex)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Sha256Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Somebody else's words, fit for a message on a terminal: control characters replaced, cut at `max`
/// characters.
pub(crate) fn shown(text: &str, max: usize) -> String {
    let mut out: String =
        text.chars().take(max).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(max).is_some() {
        out.push('…');
    }
    out
}
