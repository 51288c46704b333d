//! From the parts of a vocabulary, whatever file they came from, to a working encoder: the one place that
//! checks tokens, merges and special ids. Knows the `tokenizers` crate; knows no file format.

use std::collections::HashMap;

use tokenizers::models::bpe::{BPE, Vocab as BpeVocab};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{AddedToken, AddedVocabulary, Model};

use crate::error::{Result, TextError};
use crate::limits::TokenizerLimits;
use crate::pretokenizer::shorten;
use crate::vocab::{Kind, Spelling, Vocab};

/// A vocabulary as read, not yet checked.
pub(crate) struct Parts<S> {
    /// Text by id.
    pub(crate) tokens: Vec<S>,
    /// Kind by id, as long as `tokens`.
    pub(crate) kinds: Vec<Kind>,
    /// Merge rules, best first.
    pub(crate) merges: Vec<(String, String)>,
    /// Matching rules of added tokens where they differ from "exactly this text".
    pub(crate) matching: HashMap<u32, Matching>,
    pub(crate) scheme: Scheme,
    pub(crate) specials: Specials,
}

/// How text becomes pieces, and pieces tokens.
pub(crate) struct Scheme {
    pub(crate) normalizer: Option<NormalizerWrapper>,
    pub(crate) pre_tokenizer: Option<PreTokenizerWrapper>,
    pub(crate) ignore_merges: bool,
    pub(crate) byte_fallback: bool,
    pub(crate) fuse_unk: bool,
    pub(crate) unk: Option<String>,
    pub(crate) spelling: Spelling,
    /// The vocabulary writes a space in front of a text's first word, to be dropped again when decoding.
    pub(crate) strip_leading_space: bool,
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

/// The checked result.
pub(crate) struct Encoder {
    pub(crate) vocab: Vocab,
    pub(crate) model: BPE,
    pub(crate) normalizer: Option<NormalizerWrapper>,
    pub(crate) pre_tokenizer: Option<PreTokenizerWrapper>,
    /// Matches every added token.
    pub(crate) added: AddedVocabulary,
    /// Matches only those that are not special.
    pub(crate) added_plain: AddedVocabulary,
    pub(crate) strip_leading_space: bool,
}

/// Texts that end a turn where a file marks them as added tokens.
const END_TEXTS: &[&str] = &[
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
];

impl<S: AsRef<str>> Parts<S> {
    /// Checks everything and builds the encoder, the special ids and the list of end tokens.
    pub(crate) fn assemble(self, limits: &TokenizerLimits) -> Result<(Encoder, Specials, Vec<u32>)> {
        self.check_sizes(limits)?;
        let mut ids = BpeVocab::with_capacity_and_hasher(self.tokens.len(), Default::default());
        for (id, text) in self.tokens.iter().enumerate() {
            let text = text.as_ref();
            // Files pad with empty texts; they can never match.
            if text.is_empty() {
                continue;
            }
            if let Some(first) = ids.insert(text.to_owned(), id as u32) {
                let text = shorten(text);
                return Err(TextError::Vocabulary(format!("tokens {first} and {id} are both \"{text}\"")));
            }
        }
        let vocab = Vocab::new(self.tokens.iter().map(AsRef::as_ref), self.kinds, self.scheme.spelling);
        check_ids(&self.specials, vocab.len())?;
        let scheme = self.scheme;
        if let Some(unk) = scheme.unk.as_ref().filter(|unk| !ids.contains_key(*unk)) {
            let unk = shorten(unk);
            return Err(TextError::Vocabulary(format!("the unknown-token \"{unk}\" is not a token")));
        }
        let mut builder = BPE::builder()
            .vocab_and_merges(ids, self.merges)
            .ignore_merges(scheme.ignore_merges)
            .byte_fallback(scheme.byte_fallback)
            .fuse_unk(scheme.fuse_unk);
        if let Some(unk) = scheme.unk {
            builder = builder.unk_token(unk);
        }
        // A merge that names no token is found here; its error shows the text.
        let model = builder.build().map_err(|error| {
            TextError::Vocabulary(format!(
                "a merge rule names what is not a token: {}",
                shorten(&error.to_string())
            ))
        })?;
        let added = added_vocabulary(&vocab, &self.matching, &model, scheme.normalizer.as_ref())?;
        let mut added_plain = added.clone();
        added_plain.set_encode_special_tokens(true);
        let ends = end_tokens(&vocab, &self.specials);
        let encoder = Encoder {
            vocab,
            model,
            normalizer: scheme.normalizer,
            pre_tokenizer: scheme.pre_tokenizer,
            added,
            added_plain,
            strip_leading_space: scheme.strip_leading_space,
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
        if self.merges.len() > limits.merges {
            return too_large("the number of merges", self.merges.len(), limits.merges, "merges");
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

fn check_ids(specials: &Specials, tokens: usize) -> Result<()> {
    let named = [("begin-of-sequence", specials.bos), ("end-of-sequence", specials.eos)];
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
    model: &BPE,
    normalizer: Option<&NormalizerWrapper>,
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
        .add_tokens(tokens, model, normalizer)
        .map_err(|error| TextError::Vocabulary(format!("the added tokens cannot be indexed: {error}")))?;
    Ok(added)
}

/// What the file names, and well-known texts among the added tokens; ascending, without duplicates.
fn end_tokens(vocab: &Vocab, specials: &Specials) -> Vec<u32> {
    let mut ends: Vec<u32> = END_TEXTS.iter().filter_map(|text| vocab.added(text)).collect();
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

impl Encoder {
    /// The id of a token's text as it stands in the vocabulary.
    pub(crate) fn id_of(&self, text: &str) -> Option<u32> {
        self.vocab.added(text).or_else(|| self.model.token_to_id(text))
    }
}
