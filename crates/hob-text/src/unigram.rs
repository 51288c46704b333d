//! The unigram model of SentencePiece (T5, XLM-R, llm-jp): of all ways to cut a text into tokens the one whose
//! scores sum to the most (Viterbi; Kudo 2018, <https://arxiv.org/abs/1804.10959>). O(n x longest token). Knows
//! nothing of files.

use crate::charsmap::Charsmap;
use crate::error::{Result, TextError};
use crate::vocab::{Kind, Vocab};

/// What an unknown character costs beyond the worst token; sentencepiece's constant.
const UNKNOWN_PENALTY: f64 = 10.0;
/// Longest token in bytes: the time for a text grows with it. Published ones stay below 100.
const MAX_TOKEN_BYTES: usize = 256;

#[derive(Debug)]
pub(crate) struct Unigram {
    /// The tokens that text may become, by their bytes.
    sorted: Box<[u32]>,
    /// Where the tokens of each first byte begin in `sorted`.
    firsts: Box<[u32; 257]>,
    /// By id.
    scores: Box<[f64]>,
    unknown: Option<u32>,
    unknown_score: f64,
    /// Unknown characters are spelled in these, where all of a character's are there.
    bytes: Option<Box<[Option<u32>; 256]>>,
}

/// The best way to reach a place in the text.
#[derive(Clone, Copy)]
struct Step {
    score: f64,
    from: u32,
    /// `u32::MAX` for an unknown character.
    token: u32,
}

const UNKNOWN: u32 = u32::MAX;

impl Unigram {
    /// `scores` has one number per token; user-defined tokens count as 0.
    pub(crate) fn new(
        vocab: &Vocab,
        scores: &[f64],
        unknown: Option<u32>,
        byte_fallback: bool,
    ) -> Result<Unigram> {
        if scores.len() != vocab.len() {
            let (found, tokens) = (scores.len(), vocab.len());
            return Err(TextError::Vocabulary(format!(
                "{tokens} tokens, but {found} scores; the file is damaged"
            )));
        }
        if let Some(id) = scores.iter().position(|score| !score.is_finite()) {
            return Err(TextError::Vocabulary(format!("the score of token {id} is not a finite number")));
        }
        let is_text = |id: &u32| {
            !matches!(vocab.kind(*id), Some(Kind::Control | Kind::Unknown | Kind::Byte))
                && Some(*id) != unknown
                && !vocab.text_bytes(*id).is_empty()
        };
        let mut sorted: Vec<u32> = (0..vocab.len() as u32).filter(is_text).collect();
        sorted.sort_unstable_by_key(|&id| vocab.text_bytes(id));
        if let Some(pair) =
            sorted.windows(2).find(|pair| vocab.text_bytes(pair[0]) == vocab.text_bytes(pair[1]))
        {
            return Err(crate::spm::doubled(vocab, pair[0].min(pair[1]), pair[0].max(pair[1])));
        }
        if let Some(long) =
            sorted.iter().map(|&id| vocab.text_bytes(id).len()).max().filter(|&n| n > MAX_TOKEN_BYTES)
        {
            return Err(TextError::Vocabulary(format!(
                "a token has {long} bytes; a unigram vocabulary may have {MAX_TOKEN_BYTES}, encoding would take for ever"
            )));
        }
        let mut firsts = Box::new([0u32; 257]);
        for (byte, first) in firsts.iter_mut().enumerate() {
            *first = sorted.partition_point(|&id| usize::from(vocab.text_bytes(id)[0]) < byte) as u32;
        }
        let mut scores: Box<[f64]> = scores.into();
        let mut lowest = f64::INFINITY;
        for &id in &sorted {
            match vocab.kind(id) {
                Some(Kind::UserDefined) => scores[id as usize] = 0.0,
                _ => lowest = lowest.min(scores[id as usize]),
            }
        }
        let bytes = byte_fallback.then(|| byte_tokens(vocab));
        Ok(Unigram {
            sorted: sorted.into(),
            firsts,
            scores,
            unknown,
            unknown_score: if lowest.is_finite() { lowest } else { 0.0 } - UNKNOWN_PENALTY,
            bytes,
        })
    }

    /// Appends the tokens of a normalized text.
    pub(crate) fn encode(&self, vocab: &Vocab, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        if text.len() >= UNKNOWN as usize {
            return Err(TextError::Encode(format!("{} bytes at once are too many", text.len())));
        }
        let never = Step { score: f64::NEG_INFINITY, from: 0, token: UNKNOWN };
        let mut best = vec![never; text.len() + 1];
        best[0].score = 0.0;
        for (at, c) in text.char_indices() {
            let here = best[at].score;
            let mut offer = |end: usize, score: f64, token: u32| {
                if here + score > best[end].score {
                    best[end] = Step { score: here + score, from: at as u32, token };
                }
            };
            let mut whole_character = false;
            self.each_prefix(vocab, &text.as_bytes()[at..], |len, id| {
                whole_character |= len == c.len_utf8();
                offer(at + len, self.scores[id as usize], id);
            });
            if !whole_character {
                offer(at + c.len_utf8(), self.unknown_score, UNKNOWN);
            }
        }
        self.collect(text, &best, ids)
    }

    /// Calls `found` with the length and id of every token that `text` begins with, shortest first.
    fn each_prefix(&self, vocab: &Vocab, text: &[u8], mut found: impl FnMut(usize, u32)) {
        let Some(&first) = text.first() else { return };
        let (low, high) = (self.firsts[usize::from(first)], self.firsts[usize::from(first) + 1]);
        let mut range = &self.sorted[low as usize..high as usize];
        for depth in 1.. {
            // All in `range` agree with the text up to `depth`; one that ends here comes first.
            let Some(&id) = range.first() else { return };
            if vocab.text_bytes(id).len() == depth {
                found(depth, id);
                range = &range[1..];
            }
            let Some(&next) = text.get(depth) else { return };
            let byte = |id: &u32| vocab.text_bytes(*id)[depth];
            range = &range[range.partition_point(|id| byte(id) < next)..];
            range = &range[..range.partition_point(|id| byte(id) == next)];
        }
    }

    /// Walks back from the end; neighbouring unknown characters become one unknown token.
    fn collect(&self, text: &str, best: &[Step], ids: &mut Vec<u32>) -> Result<()> {
        let start = ids.len();
        let mut at = text.len();
        let mut fused = false;
        while at > 0 {
            let Step { from, token, .. } = best[at];
            let piece = &text[from as usize..at];
            at = from as usize;
            if token != UNKNOWN {
                ids.push(token);
            } else if let Some(bytes) = self.spelled(piece) {
                ids.extend(bytes);
            } else if !fused {
                ids.push(self.unknown.ok_or_else(|| {
                    TextError::Encode(format!(
                        "the vocabulary has no token for {piece:?} and no unknown-token"
                    ))
                })?);
                fused = true;
                continue;
            } else {
                continue;
            }
            fused = false;
        }
        ids[start..].reverse();
        Ok(())
    }

    /// Byte tokens of an unknown character, last byte first.
    fn spelled(&self, piece: &str) -> Option<Vec<u32>> {
        let bytes = self.bytes.as_ref()?;
        piece.bytes().rev().map(|byte| bytes[usize::from(byte)]).collect()
    }

    /// The id of a token's text, for those that text may become.
    pub(crate) fn id_of(&self, vocab: &Vocab, text: &str) -> Option<u32> {
        let at = self.sorted.binary_search_by_key(&text.as_bytes(), |&id| vocab.text_bytes(id)).ok()?;
        Some(self.sorted[at])
    }
}

fn byte_tokens(vocab: &Vocab) -> Box<[Option<u32>; 256]> {
    let mut bytes = Box::new([None; 256]);
    for id in 0..vocab.len() as u32 {
        if let [byte] = vocab.raw(id)
            && vocab.text(id).is_some_and(|text| text == format!("<0x{byte:02X}>"))
        {
            bytes[usize::from(*byte)] = Some(id);
        }
    }
    bytes
}

/// How a GGUF file says that text is prepared for a unigram vocabulary.
#[derive(Debug, Default)]
pub(crate) struct Preparation {
    pub(crate) charsmap: Option<Charsmap>,
    pub(crate) add_space_prefix: bool,
    pub(crate) merge_spaces: bool,
}

impl Preparation {
    /// Character by character as llama.cpp's `llm_tokenizer_ugm` does it: spaces become `▁`, runs of them one where
    /// the file says so, and the first word gets one in front.
    pub(crate) fn apply(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len() + text.len() / 4 + 3);
        let (mut at, mut in_word, mut prefixed) = (0, false, false);
        while at < text.len() {
            let rest = &text[at..];
            let first = rest.chars().next().map_or(1, char::len_utf8);
            let (piece, len) =
                self.charsmap.as_ref().map_or((&rest[..first], first), |map| map.longest(rest));
            for c in piece.chars() {
                if c == ' ' {
                    in_word = false;
                    if !self.merge_spaces {
                        out.push('▁');
                    }
                    continue;
                }
                if !in_word && ((self.add_space_prefix && !prefixed) || self.merge_spaces) {
                    out.push('▁');
                    prefixed = true;
                }
                in_word = true;
                out.push(c);
            }
            at += len.max(1);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::Spelling;

    fn vocab(tokens: &[(&str, f64, Kind)]) -> Vocab {
        let kinds = tokens.iter().map(|token| token.2).collect();
        Vocab::new(tokens.iter().map(|token| token.0), kinds, Spelling::Metaspace)
    }

    fn encode(tokens: &[(&str, f64, Kind)], bytes: bool, text: &str) -> Vec<String> {
        let vocab = vocab(tokens);
        let scores: Vec<f64> = tokens.iter().map(|token| token.1).collect();
        let unigram = Unigram::new(&vocab, &scores, Some(0), bytes).unwrap();
        let mut ids = Vec::new();
        unigram.encode(&vocab, text, &mut ids).unwrap();
        ids.iter().map(|&id| vocab.text(id).unwrap().to_owned()).collect()
    }

    #[test]
    fn the_best_sum_wins_and_unknowns_are_fused() {
        use Kind::{Byte, Control, Normal, Unknown, UserDefined};
        let tokens = &[
            ("<unk>", 0.0, Unknown),
            ("a", -1.0, Normal),
            ("b", -1.0, Normal),
            ("ab", -2.5, Normal),
            ("abc", -2.9, Normal),
            ("c", -3.0, Normal),
            ("</s>", 0.0, Control),
            ("x-y", -99.0, UserDefined),
            ("x", -1.0, Normal),
            ("<0xC3>", 0.0, Byte),
            ("<0xA9>", 0.0, Byte),
        ];
        assert_eq!(encode(tokens, false, "ab"), ["a", "b"]);
        assert_eq!(encode(tokens, false, "abc"), ["abc"]);
        assert_eq!(encode(tokens, false, "aéüa"), ["a", "<unk>", "a"]);
        assert_eq!(encode(tokens, true, "aéüa"), ["a", "<0xC3>", "<0xA9>", "<unk>", "a"]);
        assert_eq!(encode(tokens, false, "a</s>"), ["a", "<unk>"], "no control token from text");
        assert_eq!(encode(tokens, false, "x-y"), ["x-y"], "user-defined tokens cost nothing");
        assert_eq!(encode(tokens, false, ""), [""; 0]);
    }

    /// Every way to cut a text, to find the best.
    fn slowly(tokens: &[(&str, f64, Kind)], text: &str) -> f64 {
        let mut best = vec![f64::NEG_INFINITY; text.len() + 1];
        best[0] = 0.0;
        for end in 1..=text.len() {
            for (token, score, _) in tokens {
                if text[..end].ends_with(token) {
                    best[end] = best[end].max(best[end - token.len()] + score);
                }
            }
        }
        best[text.len()]
    }

    #[test]
    fn the_score_is_the_highest_possible() {
        let mut rng = hob_testkit::rng::Rng::new(8);
        for _ in 0..300 {
            let mut texts = vec!["a".to_owned(), "b".to_owned()];
            for _ in 0..rng.below(20) {
                let text: String = (0..1 + rng.below(5)).map(|_| ['a', 'b'][rng.below(2)]).collect();
                if !texts.contains(&text) {
                    texts.push(text);
                }
            }
            let mut tokens: Vec<_> = vec![("<unk>", 0.0, Kind::Unknown)];
            tokens
                .extend(texts.iter().map(|text| (text.as_str(), -f64::from(rng.f32()) * 9.0, Kind::Normal)));
            let text: String = (0..rng.below(30)).map(|_| ['a', 'b'][rng.below(2)]).collect();
            let found = encode(&tokens, false, &text);
            let score: f64 =
                found.iter().map(|token| tokens.iter().find(|t| t.0 == token).map_or(0.0, |t| t.1)).sum();
            assert_eq!(found.concat(), text);
            assert!((score - slowly(&tokens, &text)).abs() < 1e-9, "{text}");
        }
    }

    #[test]
    fn text_is_prepared_as_the_file_says() {
        let map =
            || Charsmap::parse(&crate::charsmap::tests::single_bytes(&[(b'A', "a"), (b'\n', " ")])).ok();
        let apply = |charsmap, add_space_prefix, merge_spaces, text: &str| {
            Preparation { charsmap, add_space_prefix, merge_spaces }.apply(text)
        };
        assert_eq!(apply(None, false, false, " a  b"), "▁a▁▁b");
        assert_eq!(apply(None, true, false, "a b"), "▁a▁b");
        assert_eq!(apply(None, true, true, "  a   b  "), "▁a▁b");
        assert_eq!(apply(map(), true, true, "A\nB"), "▁a▁B");
    }
}
