//! The table of tokens: text, raw bytes and kind by id, each in one buffer, and the byte-level alphabet that
//! GPT-2 style vocabularies are written in. Knows nothing of files or of how text is split.

use std::collections::HashMap;

/// What a token is for; the numbers are those of `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Normal = 1,
    Unknown = 2,
    /// Marks structure (turns, begin, end); never matched in plain text, never shown.
    Control = 3,
    /// Matched whole wherever its text stands, and shown.
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl Kind {
    pub(crate) fn from_ggml(id: i64) -> Option<Kind> {
        Some(match id {
            1 => Kind::Normal,
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            _ => return None,
        })
    }

    /// Matched as a whole before the text is split.
    pub(crate) fn is_added(self) -> bool {
        matches!(self, Kind::Control | Kind::UserDefined | Kind::Unknown)
    }

    /// Hidden in output and refused in plain text.
    pub(crate) fn is_special(self) -> bool {
        matches!(self, Kind::Control | Kind::Unknown)
    }
}

/// How the text of a normal token spells its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// One character per byte, from GPT-2's alphabet.
    ByteLevel,
    /// `▁` for a space, `<0xNN>` for a byte without a token of its own.
    Metaspace,
}

/// Strings of bytes in one buffer.
#[derive(Debug, Default)]
struct Pieces {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Pieces {
    fn with_capacity(pieces: usize, bytes: usize) -> Pieces {
        Pieces { bytes: Vec::with_capacity(bytes), ends: Vec::with_capacity(pieces) }
    }

    /// Ends the piece whose bytes were just appended. Callers keep the total below 4 GiB
    /// (`TokenizerLimits::tokens` x `token_bytes`).
    fn end(&mut self) {
        self.ends.push(self.bytes.len() as u32);
    }

    fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)? as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        Some(&self.bytes[start..end])
    }
}

/// All tokens of a model by id.
#[derive(Debug)]
pub(crate) struct Vocab {
    texts: Pieces,
    raws: Pieces,
    kinds: Vec<Kind>,
    longest: usize,
    /// Texts of the added tokens (few); the others are found through the encoder's own table.
    added: HashMap<Box<str>, u32>,
}

impl Vocab {
    /// Builds the tables. `texts` yields one text per id, `kinds` has the same length.
    pub(crate) fn new<'a>(
        texts: impl ExactSizeIterator<Item = &'a str> + Clone,
        kinds: Vec<Kind>,
        spelling: Spelling,
    ) -> Vocab {
        debug_assert_eq!(texts.len(), kinds.len());
        let total = texts.clone().map(str::len).sum();
        let mut vocab = Vocab {
            texts: Pieces::with_capacity(kinds.len(), total),
            raws: Pieces::with_capacity(kinds.len(), total),
            kinds,
            longest: 0,
            added: HashMap::new(),
        };
        for (id, text) in texts.enumerate() {
            let kind = vocab.kinds[id];
            let start = vocab.raws.bytes.len();
            vocab.texts.bytes.extend_from_slice(text.as_bytes());
            vocab.texts.end();
            match spelling {
                // The decoder of the original runs over these too.
                Spelling::Metaspace if kind == Kind::UserDefined => {
                    vocab.raws.bytes.extend_from_slice(text.replace('▁', " ").as_bytes());
                }
                _ if kind.is_added() => vocab.raws.bytes.extend_from_slice(text.as_bytes()),
                Spelling::ByteLevel => push_byte_level(text, &mut vocab.raws.bytes),
                Spelling::Metaspace => push_metaspace(text, &mut vocab.raws.bytes),
            }
            vocab.raws.end();
            vocab.longest = vocab.longest.max(vocab.raws.bytes.len() - start);
            if kind.is_added() {
                vocab.added.insert(text.into(), id as u32);
            }
        }
        vocab
    }

    pub(crate) fn len(&self) -> usize {
        self.kinds.len()
    }

    pub(crate) fn kind(&self, id: u32) -> Option<Kind> {
        self.kinds.get(id as usize).copied()
    }

    pub(crate) fn text(&self, id: u32) -> Option<&str> {
        // Every piece was copied from a `&str`.
        self.texts.get(id as usize).and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// As [`Vocab::text`], empty outside the vocabulary.
    pub(crate) fn text_bytes(&self, id: u32) -> &[u8] {
        self.texts.get(id as usize).unwrap_or(&[])
    }

    pub(crate) fn raw(&self, id: u32) -> &[u8] {
        self.raws.get(id as usize).unwrap_or(&[])
    }

    /// Bytes of the longest token.
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    pub(crate) fn added(&self, text: &str) -> Option<u32> {
        self.added.get(text).copied()
    }
}

/// GPT-2's byte alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 upwards in order.
const BYTE_TO_CHAR: [u16; 256] = {
    let mut table = [0u16; 256];
    let (mut byte, mut next) = (0usize, 256u16);
    while byte < 256 {
        let printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        table[byte] = if printable { byte as u16 } else { next };
        next += !printable as u16;
        byte += 1;
    }
    table
};

/// Number of characters of the alphabet's range (U+0000..=U+0143).
const ALPHABET: usize = 256 + 68;
const NOT_IN_ALPHABET: u16 = u16::MAX;

const CHAR_TO_BYTE: [u16; ALPHABET] = {
    let mut table = [NOT_IN_ALPHABET; ALPHABET];
    let mut byte = 0usize;
    while byte < 256 {
        table[BYTE_TO_CHAR[byte] as usize] = byte as u16;
        byte += 1;
    }
    table
};

/// Appends `bytes` in GPT-2's alphabet.
pub(crate) fn spell_bytes(bytes: &[u8], out: &mut String) {
    let spelled = bytes.iter().map(|&byte| BYTE_TO_CHAR[byte as usize]);
    out.extend(spelled.filter_map(|code| char::from_u32(code.into())));
}

/// Appends the bytes that `text` spells; a text with a character outside the alphabet stands for itself, as
/// in the reference decoder.
fn push_byte_level(text: &str, out: &mut Vec<u8>) {
    let start = out.len();
    for c in text.chars() {
        match CHAR_TO_BYTE.get(c as usize) {
            Some(&byte) if byte != NOT_IN_ALPHABET => out.push(byte as u8),
            _ => {
                out.truncate(start);
                out.extend_from_slice(text.as_bytes());
                return;
            }
        }
    }
}

fn push_metaspace(text: &str, out: &mut Vec<u8>) {
    let hex = text
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .filter(|hex| hex.len() == 2 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        out.push(byte);
        return;
    }
    for c in text.chars() {
        match c {
            '▁' => out.push(b' '),
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn byte_char(byte: u8) -> char {
        char::from_u32(BYTE_TO_CHAR[byte as usize].into()).unwrap()
    }

    #[test]
    fn the_alphabet_is_a_bijection_of_all_bytes() {
        let mut seen = std::collections::HashSet::new();
        for byte in 0..=255u8 {
            let c = byte_char(byte);
            assert!(seen.insert(c), "{byte:#x} shares {c:?}");
            let mut raw = Vec::new();
            push_byte_level(&c.to_string(), &mut raw);
            assert_eq!(raw, [byte]);
        }
        // Three values of the published table.
        assert_eq!((byte_char(b' '), byte_char(b'\n'), byte_char(0xAD)), ('Ġ', 'Ċ', 'Ń'));
    }

    #[test]
    fn bytes_of_each_spelling_and_kind() {
        let texts = ["Ġhi", "<|end|>", "日本", "Ċ", ""];
        let kinds = vec![Kind::Normal, Kind::Control, Kind::Normal, Kind::UserDefined, Kind::Unused];
        let vocab = Vocab::new(texts.into_iter(), kinds, Spelling::ByteLevel);
        assert_eq!(vocab.raw(0), b" hi");
        assert_eq!(vocab.raw(1), b"<|end|>");
        assert_eq!(vocab.raw(2), "日本".as_bytes(), "outside the alphabet: the text itself");
        assert_eq!(vocab.raw(3), "Ċ".as_bytes(), "added tokens are literal");
        assert_eq!((vocab.raw(4), vocab.raw(99)), (&b""[..], &b""[..]));
        assert_eq!((vocab.text(0), vocab.text(99)), (Some("Ġhi"), None));
        assert_eq!((vocab.added("<|end|>"), vocab.added("Ġhi")), (Some(1), None));

        let texts = ["▁a▁", "<0xE3>", "<0xZZ>", "▁▁"];
        let kinds = vec![Kind::Normal, Kind::Byte, Kind::Normal, Kind::UserDefined];
        let vocab = Vocab::new(texts.into_iter(), kinds, Spelling::Metaspace);
        assert_eq!(vocab.raw(3), b"  ");
        assert_eq!((vocab.raw(0), vocab.raw(1), vocab.raw(2)), (&b" a "[..], &[0xE3][..], &b"<0xZZ>"[..]));
    }
}
