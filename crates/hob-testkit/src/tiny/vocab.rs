//! The toy vocabulary: 256 byte tokens in GPT-2's printable spelling, a few merges, four special tokens, and padding up
//! to the wanted size. It must not know file formats.

/// Ids of the special tokens.
pub const BOS: u32 = 0;
pub const EOS: u32 = 1;
pub const IM_START: u32 = 2;
pub const IM_END: u32 = 3;

/// Spellings of the special tokens, by id.
pub const SPECIAL: [&str; 4] = ["<|begin|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// The smallest vocabulary: special tokens, bytes and merges.
pub const MIN_SIZE: usize = SPECIAL.len() + 256 + MERGES.len();

/// Pairs that merge, best first, in GPT-2's spelling of bytes (`Ġ` is a space).
pub const MERGES: [(&str, &str); 24] = [
    ("Ġ", "t"),
    ("h", "e"),
    ("Ġ", "a"),
    ("i", "n"),
    ("r", "e"),
    ("o", "n"),
    ("Ġt", "he"),
    ("e", "r"),
    ("Ġ", "s"),
    ("a", "t"),
    ("Ġ", "w"),
    ("Ġ", "o"),
    ("e", "n"),
    ("Ġ", "c"),
    ("i", "t"),
    ("i", "s"),
    ("a", "n"),
    ("o", "r"),
    ("e", "s"),
    ("Ġ", "b"),
    ("e", "d"),
    ("Ġ", "f"),
    ("in", "g"),
    ("Ã", "¤"),
];

/// A small ChatML template.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' \
    + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// What a token is, with GGUF's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    Normal = 1,
    Control = 3,
    Unused = 5,
}

/// GPT-2's printable spelling of a byte: itself where it is printable Latin-1, else the next free character from U+0100.
pub fn spell_byte(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&b| !printable(b)).count();
    char::from_u32(0x100 + rank as u32).expect("U+0100 to U+0143 are characters")
}

/// All tokens by id: special, the 256 bytes in order, the merges' results, then `<|unused_N|>`.
///
/// # Panics
/// If `size` is below [`MIN_SIZE`].
pub fn tokens(size: usize) -> Vec<(String, TokenKind)> {
    assert!(size >= MIN_SIZE, "a toy vocabulary has at least {MIN_SIZE} tokens, not {size}");
    let special = SPECIAL.iter().map(|s| ((*s).to_owned(), TokenKind::Control));
    let bytes = (0..=255).map(|b| (spell_byte(b).to_string(), TokenKind::Normal));
    let merged = MERGES.iter().map(|(a, b)| (format!("{a}{b}"), TokenKind::Normal));
    let unused = (MIN_SIZE..size).map(|i| (format!("<|unused_{i}|>"), TokenKind::Unused));
    special.chain(bytes).chain(merged).chain(unused).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{MERGES, MIN_SIZE, SPECIAL, TokenKind, spell_byte, tokens};

    #[test]
    fn bytes_are_spelled_as_gpt2_does() {
        for (byte, spelled) in
            [(b' ', 'Ġ'), (b'\n', 'Ċ'), (b'A', 'A'), (0, 'Ā'), (0x7F, 'ġ'), (0xAD, 'Ń'), (0xC3, 'Ã')]
        {
            assert_eq!(spell_byte(byte), spelled, "byte {byte:#x}");
        }
        assert_eq!((0..=255).map(spell_byte).collect::<HashSet<_>>().len(), 256);
    }

    #[test]
    fn every_token_is_spelled_once_and_every_merge_has_its_parts() {
        let tokens = tokens(320);
        assert_eq!(tokens.len(), 320);
        let spelled: HashSet<_> = tokens.iter().map(|t| t.0.as_str()).collect();
        assert_eq!(spelled.len(), 320);
        for (left, right) in MERGES {
            assert!(spelled.contains(left) && spelled.contains(right), "{left} + {right}");
        }
        assert_eq!(tokens[3], (SPECIAL[3].to_owned(), TokenKind::Control));
        assert_eq!(tokens[4 + 65], ("A".to_owned(), TokenKind::Normal));
        assert_eq!(tokens[MIN_SIZE].1, TokenKind::Unused);
    }

    #[test]
    #[should_panic(expected = "at least")]
    fn too_small_a_vocabulary_is_refused() {
        tokens(MIN_SIZE - 1);
    }
}
