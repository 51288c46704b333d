//! From the parts of a vocabulary, whatever file they came from, to a working encoder: the one place that
//! checks tokens, merges, scores and special ids. Knows the `tokenizers` crate; knows no file format.

use std::collections::HashMap;

use tokenizers::models::bpe::{BPE, Vocab as BpeVocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{AddedToken, AddedVocabulary};

use crate::encoder::{Algorithm, Encoder, Lookup};
use crate::error::{Result, TextError};
use crate::index::TextIndex;
use crate::limits::TokenizerLimits;
use crate::normalizer::Normal;
use crate::pretokenizer::shorten;
use crate::splitter::Splitter;
use crate::spm::{Spm, doubled};
use crate::unigram::{Preparation, Unigram};
use crate::vocab::{Kind, Spelling, Vocab};

/// A vocabulary as read, not yet checked.
pub(crate) struct Parts<S> {
    /// Text by id.
    pub(crate) tokens: Vec<S>,
    /// Kind by id, as long as `tokens`.
    pub(crate) kinds: Vec<Kind>,
    pub(crate) joining: Joining,
    /// Matching rules of added tokens where they differ from "exactly this text".
    pub(crate) matching: HashMap<u32, Matching>,
    pub(crate) scheme: Scheme,
    pub(crate) specials: Specials,
    /// See [`sounds_tuned`].
    pub(crate) tuned_for_chat: bool,
}

/// What decides which characters make a token.
pub(crate) enum Joining {
    /// Merge rules, best first.
    Merges {
        rules: Vec<(String, String)>,
        ignore_merges: bool,
        byte_fallback: bool,
        fuse_unk: bool,
        unk: Option<String>,
    },
    /// SentencePiece's BPE: the score of the joined token.
    Scores { scores: Vec<f32>, unk: Option<u32> },
    /// The sum of the scores of all tokens.
    Unigram { scores: Vec<f64>, unk: Option<u32>, byte_fallback: bool },
}

impl Joining {
    fn unknown(&self) -> Option<u32> {
        match self {
            Joining::Merges { .. } => None,
            Joining::Scores { unk, .. } | Joining::Unigram { unk, .. } => *unk,
        }
    }

    fn merges(&self) -> usize {
        match self {
            Joining::Merges { rules, .. } => rules.len(),
            _ => 0,
        }
    }
}

/// How text becomes pieces, and pieces tokens.
pub(crate) struct Scheme {
    pub(crate) normalizer: Option<Normal>,
    pub(crate) pieces: Pieces,
    pub(crate) spelling: Spelling,
    /// The vocabulary writes a space in front of a text's first word, to be dropped again when decoding.
    pub(crate) strip_leading_space: bool,
    /// Something about the file that its user should know.
    pub(crate) warning: Option<String>,
}

/// Words in a model's name by which its publisher says that it converses.
pub(crate) fn sounds_tuned(name: &str) -> bool {
    let words = ["instruct", "chat", "it", "assistant"];
    name.to_ascii_lowercase().split(|c: char| !c.is_ascii_alphanumeric()).any(|word| words.contains(&word))
}

/// How text between added tokens is prepared and cut.
pub(crate) enum Pieces {
    /// By a component of a tokenizer.json that has no faster form here; `None` is one piece.
    Component(Option<PreTokenizerWrapper>),
    /// By our own rules; the pieces are spelled in GPT-2's byte alphabet.
    Bytes(Splitter),
    /// By our own rules; spaces are written as `▁`. Runs of line ends that are a token are that token.
    Lines(Splitter),
    /// In one piece; spaces are written as `▁`, with one in front if asked.
    Escaped { add_space_prefix: bool },
    /// In one piece, prepared for a unigram vocabulary.
    Prepared(Preparation),
}

/// How an added token is found in text; the fields are those of tokenizer.json.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Matching {
    pub(crate) single_word: bool,
    pub(crate) lstrip: bool,
    pub(crate) rstrip: bool,
    pub(crate) normalized: bool,
}

/// Ids with a role, as the file states them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Specials {
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) add_bos: bool,
    /// Further ids that end an answer (`eot`, `eom`, a list in generation_config.json).
    pub(crate) ends: Vec<u32>,
}

/// Texts that end a turn where a file marks them as added tokens.
pub(crate) const END_TEXTS: &[&str] = &[
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot|>",
    "<EOT>",
    "<end_of_utterance>",
    "</s>",
    "<eos>",
    "<turn|>",
    "<|flush|>",
    "<|calls|>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

impl<S: AsRef<str>> Parts<S> {
    /// Checks everything and builds the encoder, the special ids and the list of end tokens.
    pub(crate) fn assemble(self, limits: &TokenizerLimits) -> Result<(Encoder, Specials, Vec<u32>)> {
        self.check_sizes(limits)?;
        let vocab = Vocab::new(self.tokens.iter().map(AsRef::as_ref), self.kinds, self.scheme.spelling);
        check_ids(&self.specials, self.joining.unknown(), vocab.len())?;
        let algorithm = match self.joining {
            Joining::Merges { rules, ignore_merges, byte_fallback, fuse_unk, unk } => {
                let ids = ids_by_text(&vocab)?;
                if let Some(unk) = unk.as_ref().filter(|unk| !ids.contains_key(*unk)) {
                    let unk = shorten(unk);
                    return Err(TextError::Vocabulary(format!("the unknown-token \"{unk}\" is not a token")));
                }
                let mut builder = BPE::builder()
                    .vocab_and_merges(ids, rules)
                    .ignore_merges(ignore_merges)
                    .byte_fallback(byte_fallback)
                    .fuse_unk(fuse_unk);
                if let Some(unk) = unk {
                    builder = builder.unk_token(unk);
                }
                Algorithm::Merges(Box::new(builder.build().map_err(bad_merge)?))
            }
            Joining::Scores { scores, unk } => {
                check_unique(&vocab)?;
                Algorithm::Scores(Spm::new(&vocab, &scores, unk)?)
            }
            Joining::Unigram { scores, unk, byte_fallback } => {
                check_unique(&vocab)?;
                Algorithm::Unigram(Unigram::new(&vocab, &scores, unk, byte_fallback)?)
            }
        };
        let scheme = self.scheme;
        let added = added_vocabulary(&vocab, &self.matching, &algorithm, scheme.normalizer.as_ref())?;
        let mut added_plain = added.clone();
        added_plain.set_encode_special_tokens(true);
        let ends = end_tokens(&vocab, &self.specials);
        let encoder = Encoder {
            vocab,
            algorithm,
            normalizer: scheme.normalizer,
            pieces: scheme.pieces,
            added,
            added_plain,
            strip_leading_space: scheme.strip_leading_space,
            warning: scheme.warning,
            tuned_for_chat: self.tuned_for_chat,
        };
        Ok((encoder, self.specials, ends))
    }

    fn check_sizes(&self, limits: &TokenizerLimits) -> Result<()> {
        let too_large = |what, found: usize, limit: usize, field| {
            Err(TextError::TooLarge { what, found: found as u64, limit: limit as u64, field })
        };
        if self.tokens.len() > limits.tokens {
            return too_large("the number of tokens", self.tokens.len(), limits.tokens, "tokens");
        }
        let merges = self.joining.merges();
        if merges > limits.merges {
            return too_large("the number of merges", merges, limits.merges, "merges");
        }
        if let Some(longest) = self.tokens.iter().map(|text| text.as_ref().len()).max() {
            if longest > limits.token_bytes {
                return too_large("the longest token in bytes", longest, limits.token_bytes, "token_bytes");
            }
        } else {
            return Err(TextError::Vocabulary("it has no tokens".into()));
        }
        if self.kinds.len() != self.tokens.len() {
            let (kinds, tokens) = (self.kinds.len(), self.tokens.len());
            return Err(TextError::Vocabulary(format!(
                "{tokens} tokens, but {kinds} token types; the file is damaged"
            )));
        }
        Ok(())
    }
}

/// The table that the `tokenizers` crate wants, a copy of every text.
fn ids_by_text(vocab: &Vocab) -> Result<BpeVocab> {
    let mut ids = BpeVocab::with_capacity_and_hasher(vocab.len(), Default::default());
    for id in 0..vocab.len() as u32 {
        // Files pad with empty texts; they can never match.
        let Some(text) = vocab.text(id).filter(|text| !text.is_empty()) else { continue };
        if let Some(first) = ids.insert(text.to_owned(), id) {
            return Err(doubled(vocab, first, id));
        }
    }
    Ok(ids)
}

fn check_unique(vocab: &Vocab) -> Result<()> {
    TextIndex::new(vocab, |_| true).map(drop).map_err(|(first, second)| doubled(vocab, first, second))
}

/// A merge that names no token is found by the library; its error shows the text.
fn bad_merge(error: tokenizers::Error) -> TextError {
    let error = shorten(&error.to_string());
    TextError::Vocabulary(format!("a merge rule names what is not a token: {error}"))
}

fn check_ids(specials: &Specials, unknown: Option<u32>, tokens: usize) -> Result<()> {
    let named =
        [("begin-of-sequence", specials.bos), ("end-of-sequence", specials.eos), ("unknown-token", unknown)];
    let ends = specials.ends.iter().map(|&id| ("end-of-turn", Some(id)));
    for (role, id) in named.into_iter().chain(ends) {
        if let Some(id) = id.filter(|&id| id as usize >= tokens) {
            return Err(TextError::Vocabulary(format!(
                "the {role} id is {id}, but there are only {tokens} tokens"
            )));
        }
    }
    Ok(())
}

/// One call with all tokens: the crate rebuilds its automaton after every call.
fn added_vocabulary(
    vocab: &Vocab,
    matching: &HashMap<u32, Matching>,
    algorithm: &Algorithm,
    normalizer: Option<&Normal>,
) -> Result<AddedVocabulary> {
    let tokens = (0..vocab.len() as u32).filter_map(|id| {
        let kind = vocab.kind(id).filter(|kind| kind.is_added())?;
        let text = vocab.text(id).filter(|text| !text.is_empty())?;
        let matching = matching.get(&id).copied().unwrap_or_default();
        Some(
            AddedToken::from(text, kind.is_special())
                .single_word(matching.single_word)
                .lstrip(matching.lstrip)
                .rstrip(matching.rstrip)
                .normalized(matching.normalized),
        )
    });
    let mut added = AddedVocabulary::new();
    added
        .add_tokens(tokens, &Lookup { vocab, algorithm }, normalizer)
        .map_err(|error| TextError::Vocabulary(format!("the added tokens cannot be indexed: {error}")))?;
    Ok(added)
}

/// What the file names, and well-known texts among the added tokens; ascending, without duplicates.
fn end_tokens(vocab: &Vocab, specials: &Specials) -> Vec<u32> {
    let mut ends: Vec<u32> = END_TEXTS.iter().filter_map(|text| vocab.added(text)).collect();
    // Gemma has </s> for HTML's sake.
    ends.retain(|&id| vocab.text(id) != Some("</s>") || vocab.kind(id).is_some_and(Kind::is_special));
    // In the harmony format <|end|> closes a channel, not the answer.
    if let (Some(_), Some(_), Some(end)) =
        (vocab.added("<|return|>"), vocab.added("<|call|>"), vocab.added("<|end|>"))
    {
        ends.retain(|&id| id != end);
    }
    ends.extend(specials.eos);
    ends.extend_from_slice(&specials.ends);
    ends.sort_unstable();
    ends.dedup();
    ends
}
