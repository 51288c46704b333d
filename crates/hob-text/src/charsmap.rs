//! SentencePiece's precompiled character map: a double-array trie from texts to their replacements (NFKC and the
//! like). Layout as in sentencepiece's `normalizer.cc`: u32 size of the trie in bytes, the trie in u32 units
//! (XOR-compressed), then replacement texts that end in NUL. The bytes are untrusted: every index is checked when it
//! is followed, and what points outside matches nothing.

use unicode_segmentation::UnicodeSegmentation;

use crate::error::{Result, TextError};

/// Replacements longer than this would blow up every text.
const MAX_REPLACEMENT_BYTES: usize = 256;

#[derive(Debug, Clone)]
pub(crate) struct Charsmap {
    units: Box<[u32]>,
    replacements: Box<str>,
}

impl Charsmap {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Charsmap> {
        let damaged = |what: &str| TextError::Vocabulary(format!("the precompiled character map {what}"));
        let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| damaged("is too short"))?;
        let size = u32::from_le_bytes(*size) as usize;
        if size > rest.len() || size == 0 || !size.is_multiple_of(4) {
            return Err(damaged(&format!("states a trie of {size} bytes, but has {}", rest.len())));
        }
        let (trie, texts) = rest.split_at(size);
        let units = trie.chunks_exact(4).map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]]));
        let texts =
            std::str::from_utf8(texts).map_err(|_| damaged("holds replacements that are not UTF-8"))?;
        if texts.split('\0').any(|text| text.len() > MAX_REPLACEMENT_BYTES) {
            return Err(damaged(&format!("holds a replacement of more than {MAX_REPLACEMENT_BYTES} bytes")));
        }
        Ok(Charsmap { units: units.collect(), replacements: texts.into() })
    }

    /// The matches of prefixes of `text`, shortest first: bytes matched, and what replaces them.
    fn prefixes<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
        let base = |unit: u32| (unit >> 10) << ((unit & (1 << 9)) >> 6);
        let mut node = base(self.units.first().copied().unwrap_or(0));
        let mut bytes = text.bytes().enumerate();
        std::iter::from_fn(move || {
            for (at, byte) in bytes.by_ref() {
                node ^= u32::from(byte);
                let unit = *self.units.get(node as usize)?;
                if byte == 0 || unit & (1 << 31 | 0xFF) != u32::from(byte) {
                    return None;
                }
                node ^= base(unit);
                if unit >> 8 & 1 == 1 {
                    let value = *self.units.get(node as usize)? & ((1 << 31) - 1);
                    return Some((at + 1, self.replacement(value as usize)?));
                }
            }
            None
        })
    }

    fn replacement(&self, at: usize) -> Option<&str> {
        self.replacements.get(at..)?.split_once('\0').map(|(text, _)| text)
    }

    /// As sentencepiece does it: the longest match at every place. Returns the replacement and the bytes it
    /// replaces; a character that is in no match stays.
    pub(crate) fn longest<'a>(&'a self, text: &'a str) -> (&'a str, usize) {
        let first = text.chars().next().map_or(0, char::len_utf8);
        let found = self.prefixes(text).filter(|(len, _)| text.is_char_boundary(*len)).last();
        found.map_or((&text[..first], first), |(len, replacement)| (replacement, len))
    }

    /// As the `tokenizers` crate does it, which defines what a tokenizer.json means: the shortest match of each
    /// grapheme of fewer than six bytes, else of each character.
    pub(crate) fn by_graphemes(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for grapheme in text.graphemes(true) {
            let whole = (grapheme.len() < 6).then(|| self.prefixes(grapheme).next()).flatten();
            if let Some((_, replacement)) = whole {
                out.push_str(replacement);
                continue;
            }
            for (at, c) in grapheme.char_indices() {
                match self.prefixes(&grapheme[at..at + c.len_utf8()]).next() {
                    Some((_, replacement)) => out.push_str(replacement),
                    None => out.push(c),
                }
            }
        }
        out
    }
}

/// The bytes of standard base64 with padding; `None` if it is none.
pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let text = text.trim_end_matches('=').as_bytes();
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.chunks(4) {
        let mut bits = 0u32;
        for &byte in group {
            bits = bits << 6 | u32::from(digit(byte)?);
        }
        bits <<= 6 * (4 - group.len());
        out.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(out)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A map of single bytes: unit 0 is the root, whose children lie at its base XOR the byte.
    pub(crate) fn single_bytes(map: &[(u8, &str)]) -> Vec<u8> {
        let (mut units, mut texts) = (vec![0u32; 1024], Vec::new());
        // The root's children at 256 ^ byte; each leads to a leaf at 512 + its number.
        units[0] = 256 << 10;
        for (index, (byte, text)) in map.iter().enumerate() {
            let child = 256 ^ u32::from(*byte);
            let leaf = 512 + index as u32;
            units[child as usize] = (child ^ leaf) << 10 | 1 << 8 | u32::from(*byte);
            units[leaf as usize] = 1 << 31 | texts.len() as u32;
            texts.extend_from_slice(text.as_bytes());
            texts.push(0);
        }
        let mut bytes = (units.len() as u32 * 4).to_le_bytes().to_vec();
        bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        bytes.extend(texts);
        bytes
    }

    #[test]
    fn matches_are_replaced_and_the_rest_stays() {
        let map = Charsmap::parse(&single_bytes(&[(b'A', "a"), (b'\t', " "), (b'#', "")])).unwrap();
        assert_eq!(map.by_graphemes("ABé#\t日"), "aBé 日");
        assert_eq!(map.longest("AB"), ("a", 1));
        assert_eq!(map.longest("éA"), ("é", 2));
        assert_eq!(map.longest("#x"), ("", 1));
    }

    #[test]
    fn damaged_maps_are_errors_or_match_nothing() {
        for bytes in
            [&[][..], &[1, 0, 0], &[8, 0, 0, 0, 1, 1, 1, 1], &[0, 0, 0, 0], &[3, 0, 0, 0, 1, 2, 3, 4]]
        {
            assert!(Charsmap::parse(bytes).is_err(), "{bytes:?}");
        }
        let good = single_bytes(&[(b'A', "a")]);
        let mut rng = hob_testkit::rng::Rng::new(5);
        for _ in 0..2000 {
            let mut bad = good.clone();
            for _ in 0..1 + rng.below(40) {
                let at = 4 + rng.below(bad.len() - 4);
                bad[at] = rng.below(256) as u8;
            }
            if let Ok(map) = Charsmap::parse(&bad) {
                map.by_graphemes("ABC é日本 \t xyz");
                map.longest("ABC");
            }
        }
        let long = single_bytes(&[(b'A', &"x".repeat(300))]);
        assert!(Charsmap::parse(&long).unwrap_err().to_string().contains("256 bytes"));
    }

    #[test]
    fn base64_is_read_as_published() {
        assert_eq!(from_base64("aG9i").unwrap(), b"hob");
        assert_eq!(from_base64("aG8=").unwrap(), b"ho");
        assert_eq!(from_base64("aA==").unwrap(), b"h");
        assert_eq!(from_base64("").unwrap(), b"");
        assert!(from_base64("a*==").is_none());
    }
}
