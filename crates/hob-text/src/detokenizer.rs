//! From tokens to text while they arrive: never half a character. Knows the vocabulary and nothing else.

use crate::tokenizer::Tokenizer;

/// Turns a stream of token ids into text.
///
/// Characters may be spread over several tokens; their bytes are held back until the character is complete.
/// A byte sequence that can no longer become valid UTF-8 is shown as U+FFFD, one per maximal invalid piece, so
/// that the whole output equals [`String::from_utf8_lossy`] of all bytes. Control tokens give nothing.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    /// The bytes of an unfinished character, at most three between calls.
    pending: Vec<u8>,
    /// The vocabulary writes a space in front of the first word of a text.
    strip_space: bool,
}

impl Detokenizer {
    pub(crate) fn new(tokenizer: Tokenizer) -> Detokenizer {
        let strip_space = tokenizer.strips_leading_space();
        // At most three bytes wait for the longest token: no later growth.
        let pending = Vec::with_capacity(tokenizer.longest_token_bytes() + 3);
        Detokenizer { tokenizer, pending, strip_space }
    }

    /// The text that has become certain with this token; often empty. Ids outside the vocabulary (padding rows
    /// of a model) give nothing.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        self.push_into(id, &mut text);
        text
    }

    /// As [`Detokenizer::push`], appending to `out`; allocates nothing but what `out` needs.
    pub fn push_into(&mut self, id: u32, out: &mut String) {
        if self.tokenizer.is_special(id) {
            return;
        }
        let mut raw = self.tokenizer.token_bytes(id);
        if self.strip_space && !raw.is_empty() {
            self.strip_space = false;
            raw = raw.strip_prefix(b" ").unwrap_or(raw);
        }
        if self.pending.is_empty() {
            let rest = take_text(raw, out);
            self.pending.extend_from_slice(rest);
        } else {
            self.pending.extend_from_slice(raw);
            let rest = take_text(&self.pending, out).len();
            self.pending.drain(..self.pending.len() - rest);
        }
    }

    /// What is left at the end of the stream: U+FFFD if a character stayed unfinished, else nothing. The
    /// detokenizer may be used again afterwards.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        self.strip_space = self.tokenizer.strips_leading_space();
        rest
    }
}

/// Appends all that is certain of `bytes` to `out` and returns the unfinished rest (at most three bytes).
fn take_text<'a>(mut bytes: &'a [u8], out: &mut String) -> &'a [u8] {
    loop {
        match std::str::from_utf8(bytes) {
            Ok(text) => {
                out.push_str(text);
                return &[];
            }
            Err(error) => {
                let (good, rest) = bytes.split_at(error.valid_up_to());
                out.push_str(std::str::from_utf8(good).unwrap_or_default());
                match error.error_len() {
                    // The bytes end inside a character that may still be completed.
                    None => return rest,
                    Some(bad) => {
                        out.push('\u{FFFD}');
                        bytes = &rest[bad..];
                    }
                }
            }
        }
    }
}
