//! SentencePiece's BPE as GGUF files carry it: no merge rules, only a score per token. The neighbours whose
//! joined text is the token of the highest score are joined first; what stays outside the vocabulary is spelled in
//! byte tokens. O(n log n) in the text through a queue of neighbours. Knows nothing of files or of special tokens.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::error::{Result, TextError};
use crate::index::TextIndex;
use crate::vocab::{Kind, Vocab};

/// The encoder; the texts stay in the [`Vocab`] that is passed along.
#[derive(Debug)]
pub(crate) struct Spm {
    /// Everything that text may become: no control tokens, no byte tokens.
    index: TextIndex,
    /// Score by id, as an integer of the same order.
    ranks: Box<[i32]>,
    bytes: Box<[Option<u32>; 256]>,
    unknown: Option<u32>,
}

/// A stretch of the text: a character or what it was joined to.
struct Symbol {
    start: u32,
    /// Zero once it has been joined to its left neighbour.
    len: u32,
    prev: u32,
    next: u32,
    token: Option<u32>,
}

const NONE: u32 = u32::MAX;

/// Two neighbours that may be joined.
#[derive(PartialEq, Eq)]
struct Pair {
    rank: i32,
    left: u32,
    right: u32,
    len: u32,
    token: u32,
}

impl Ord for Pair {
    /// Higher score first, then the one further left.
    fn cmp(&self, other: &Pair) -> Ordering {
        self.rank.cmp(&other.rank).then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Pair) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Texts of 2 GiB and more are refused: symbols count in 32 bits.
const MAX_BYTES: usize = i32::MAX as usize;

impl Spm {
    /// `scores` has one number per token.
    pub(crate) fn new(vocab: &Vocab, scores: &[f32], unknown: Option<u32>) -> Result<Spm> {
        if scores.len() != vocab.len() {
            let (found, tokens) = (scores.len(), vocab.len());
            return Err(TextError::Vocabulary(format!(
                "{tokens} tokens, but {found} scores; the file is damaged"
            )));
        }
        if let Some(id) = scores.iter().position(|score| score.is_nan()) {
            return Err(TextError::Vocabulary(format!("the score of token {id} is not a number")));
        }
        let text = |id| !matches!(vocab.kind(id), Some(Kind::Control | Kind::Byte)) && Some(id) != unknown;
        let index = TextIndex::new(vocab, text).map_err(|(first, second)| doubled(vocab, first, second))?;
        let mut bytes = Box::new([None; 256]);
        for id in 0..vocab.len() as u32 {
            if vocab.kind(id) == Some(Kind::Byte)
                && let [byte] = vocab.raw(id)
            {
                bytes[*byte as usize] = Some(id);
            }
        }
        let ranks = scores.iter().map(|&score| order(score)).collect();
        Ok(Spm { index, ranks, bytes, unknown })
    }

    /// Appends the tokens of `text`, in which spaces are already written as `▁`.
    pub(crate) fn encode(&self, vocab: &Vocab, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        if text.len() > MAX_BYTES {
            return Err(TextError::Encode(format!("{} bytes at once; the limit is {MAX_BYTES}", text.len())));
        }
        let (mut symbols, mut queue) = self.symbols(vocab, text);
        while let Some(pair) = queue.pop() {
            let (left, right) = (&symbols[pair.left as usize], &symbols[pair.right as usize]);
            // One of the two has been joined to something else meanwhile.
            if left.len == 0 || right.len == 0 || left.len + right.len != pair.len {
                continue;
            }
            let next = right.next;
            symbols[pair.right as usize].len = 0;
            let left = &mut symbols[pair.left as usize];
            (left.len, left.next, left.token) = (pair.len, next, Some(pair.token));
            let prev = left.prev;
            if next != NONE {
                symbols[next as usize].prev = pair.left;
                queue.extend(self.pair(vocab, text, &symbols, pair.left, next));
            }
            if prev != NONE {
                queue.extend(self.pair(vocab, text, &symbols, prev, pair.left));
            }
        }
        let mut at = if symbols.is_empty() { NONE } else { 0 };
        while let Some(symbol) = symbols.get(at as usize) {
            match symbol.token {
                Some(token) => ids.push(token),
                None => self.spell(&text[symbol.start as usize..][..symbol.len as usize], ids)?,
            }
            at = symbol.next;
        }
        Ok(())
    }

    /// One symbol per character, and all pairs of neighbours.
    fn symbols(&self, vocab: &Vocab, text: &str) -> (Vec<Symbol>, BinaryHeap<Pair>) {
        let mut symbols = Vec::with_capacity(text.len());
        for (start, c) in text.char_indices() {
            let (index, len) = (symbols.len() as u32, c.len_utf8());
            let last = start + len == text.len();
            symbols.push(Symbol {
                start: start as u32,
                len: len as u32,
                prev: index.wrapping_sub(1),
                next: if last { NONE } else { index + 1 },
                token: self.index.get(vocab, &text.as_bytes()[start..start + len]),
            });
        }
        let pairs =
            (1..symbols.len() as u32).filter_map(|right| self.pair(vocab, text, &symbols, right - 1, right));
        let queue = BinaryHeap::from(pairs.collect::<Vec<_>>());
        (symbols, queue)
    }

    fn pair(&self, vocab: &Vocab, text: &str, symbols: &[Symbol], left: u32, right: u32) -> Option<Pair> {
        let (a, b) = (&symbols[left as usize], &symbols[right as usize]);
        let len = a.len + b.len;
        let token = self.index.get(vocab, &text.as_bytes()[a.start as usize..][..len as usize])?;
        Some(Pair { rank: self.ranks[token as usize], left, right, len, token })
    }

    /// Byte tokens, or tokens of single characters in their place, or the unknown token.
    fn spell(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        for byte in text.bytes() {
            let id = self.bytes[byte as usize].or(self.unknown).ok_or_else(|| {
                TextError::Encode(format!(
                    "the vocabulary has no token for {text:?}, no byte tokens and no unknown-token"
                ))
            })?;
            ids.push(id);
        }
        Ok(())
    }

    /// The id of a token's text, for those that text may become.
    pub(crate) fn id_of(&self, vocab: &Vocab, text: &str) -> Option<u32> {
        self.index.get(vocab, text.as_bytes())
    }
}

/// The error about a text that two tokens share.
pub(crate) fn doubled(vocab: &Vocab, first: u32, second: u32) -> TextError {
    let text = crate::pretokenizer::shorten(vocab.text(first).unwrap_or_default());
    TextError::Vocabulary(format!("tokens {first} and {second} are both \"{text}\""))
}

/// An integer that orders as the number does; minus zero equals zero.
fn order(score: f32) -> i32 {
    let bits = (score + 0.0).to_bits() as i32;
    bits ^ (((bits >> 31) as u32) >> 1) as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::Spelling;

    fn encoder(tokens: &[(&str, f32)]) -> (Vocab, Spm) {
        let kinds = tokens.iter().map(|(text, _)| match *text {
            "<unk>" => Kind::Unknown,
            "<s>" => Kind::Control,
            byte if byte.len() == 6 && byte.starts_with("<0x") => Kind::Byte,
            _ => Kind::Normal,
        });
        let vocab = Vocab::new(tokens.iter().map(|t| t.0), kinds.collect(), Spelling::Metaspace);
        let scores: Vec<f32> = tokens.iter().map(|t| t.1).collect();
        let spm = Spm::new(&vocab, &scores, Some(0)).unwrap();
        (vocab, spm)
    }

    fn encode(tokens: &[(&str, f32)], text: &str) -> Vec<String> {
        let (vocab, spm) = encoder(tokens);
        let mut ids = Vec::new();
        spm.encode(&vocab, text, &mut ids).unwrap();
        ids.iter().map(|&id| vocab.text(id).unwrap().to_owned()).collect()
    }

    #[test]
    fn the_highest_score_is_joined_first_and_of_equals_the_leftmost() {
        let tokens = &[
            ("<unk>", 0.0),
            ("a", -9.0),
            ("b", -9.0),
            ("c", -9.0),
            ("ab", -2.0),
            ("bc", -1.0),
            ("aa", -3.0),
        ];
        assert_eq!(encode(tokens, "abc"), ["a", "bc"]);
        assert_eq!(encode(tokens, "aaa"), ["aa", "a"]);
        assert_eq!(encode(tokens, "abab"), ["ab", "ab"]);
        assert_eq!(encode(tokens, ""), [""; 0]);
        // Tokens whose parts are no tokens are never reached: "xy" needs no "x", but a neighbour pair.
        let tokens = &[("<unk>", 0.0), ("xy", -1.0), ("xyz", -0.5)];
        assert_eq!(encode(tokens, "xyz"), ["xyz"]);
    }

    #[test]
    fn bytes_stand_in_for_what_is_missing_and_the_unknown_token_for_missing_bytes() {
        let tokens = &[("<unk>", 0.0), ("<0xC3>", 0.0), ("<0xA9>", 0.0), ("e", 0.0)];
        assert_eq!(encode(tokens, "eé"), ["e", "<0xC3>", "<0xA9>"]);
        assert_eq!(encode(tokens, "éx"), ["<0xC3>", "<0xA9>", "<unk>"]);
        let (vocab, _) = encoder(tokens);
        let spm = Spm::new(&vocab, &[0.0; 4], None).unwrap();
        let error = spm.encode(&vocab, "x", &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("no byte tokens"), "{error}");
    }

    #[test]
    fn text_never_becomes_a_control_or_byte_token() {
        let tokens = &[
            ("<unk>", 0.0),
            ("<s>", 9.0),
            ("<0x41>", 9.0),
            ("<", 0.0),
            ("s", 0.0),
            (">", 0.0),
            ("<s", 1.0),
            ("0", 0.0),
            ("x", 0.0),
            ("4", 0.0),
            ("1", 0.0),
            ("<0x41", 1.0),
            ("<0", 1.0),
            ("<0x", 1.0),
            ("<0x4", 1.0),
            ("<unk", 5.0),
            ("u", 0.0),
            ("n", 0.0),
            ("k", 0.0),
            ("<u", 1.0),
            ("<un", 1.0),
        ];
        assert_eq!(encode(tokens, "<s>"), ["<s", ">"]);
        assert_eq!(encode(tokens, "<0x41>"), ["<0x41", ">"]);
        assert_eq!(encode(tokens, "<unk>"), ["<unk", ">"]);
    }

    #[test]
    fn damaged_scores_are_errors() {
        let (vocab, _) = encoder(&[("<unk>", 0.0), ("a", 0.0)]);
        let error = |scores: &[f32]| Spm::new(&vocab, scores, None).unwrap_err().to_string();
        assert!(error(&[0.0]).contains("1 scores"));
        assert!(error(&[0.0, f32::NAN]).contains("token 1"));
    }

    #[test]
    fn scores_order_as_numbers_do() {
        let scores = [f32::NEG_INFINITY, -1e30, -2.0, -1e-40, 0.0, 1e-40, 3.5, f32::INFINITY];
        assert!(scores.windows(2).all(|pair| order(pair[0]) < order(pair[1])));
        assert_eq!(order(-0.0), order(0.0));
    }

    /// The rule itself, without a queue: join the best pair until none is left.
    fn slowly(tokens: &[(&str, f32)], text: &str) -> Vec<String> {
        let score = |text: &str| tokens.iter().find(|t| t.0 == text).map(|t| t.1);
        let mut parts: Vec<String> = text.chars().map(String::from).collect();
        loop {
            let mut best: Option<(usize, f32)> = None;
            for at in 1..parts.len() {
                if let Some(s) = score(&format!("{}{}", parts[at - 1], parts[at]))
                    && best.is_none_or(|(_, top)| s > top)
                {
                    best = Some((at, s));
                }
            }
            let Some((at, _)) = best else { return parts };
            let right = parts.remove(at);
            parts[at - 1].push_str(&right);
        }
    }

    #[test]
    fn the_queue_gives_what_the_rule_says() {
        let mut rng = hob_testkit::rng::Rng::new(3);
        for _ in 0..400 {
            let mut texts: Vec<String> = ["a", "b", "c"].map(String::from).to_vec();
            for _ in 0..rng.below(14) {
                let mut pick = || texts[rng.below(texts.len())].clone();
                let joined = pick() + &pick();
                if joined.len() < 8 && !texts.contains(&joined) {
                    texts.push(joined);
                }
            }
            let scores: Vec<f32> = texts.iter().map(|_| -(rng.below(6) as f32)).collect();
            let mut tokens = vec![("<unk>", 0.0)];
            tokens.extend(texts.iter().map(String::as_str).zip(scores));
            let text: String = (0..rng.below(40)).map(|_| ['a', 'b', 'c'][rng.below(3)]).collect();
            assert_eq!(encode(&tokens, &text), slowly(&tokens, &text), "{tokens:?} {text}");
        }
    }
}
