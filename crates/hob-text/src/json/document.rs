//! The shape of a tokenizer.json, read in one pass: the vocabulary as pairs, merges in either of their two
//! spellings, components as JSON to be checked. No meaning, only shape.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::error::{Result, TextError};
use crate::pretokenizer::shorten;

#[derive(serde::Deserialize)]
pub(super) struct Document {
    #[serde(default)]
    pub(super) added_tokens: Vec<Added>,
    #[serde(default)]
    pub(super) normalizer: Value,
    #[serde(default)]
    pub(super) pre_tokenizer: Value,
    #[serde(default)]
    pub(super) post_processor: Value,
    #[serde(default)]
    pub(super) decoder: Value,
    pub(super) model: Model,
}

#[derive(serde::Deserialize)]
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) content: String,
    #[serde(default)]
    pub(super) single_word: bool,
    #[serde(default)]
    pub(super) lstrip: bool,
    #[serde(default)]
    pub(super) rstrip: bool,
    #[serde(default)]
    pub(super) normalized: bool,
    #[serde(default)]
    pub(super) special: bool,
}

#[derive(serde::Deserialize)]
pub(super) struct Model {
    /// Old files leave it out for BPE.
    #[serde(rename = "type")]
    kind: Option<String>,
    dropout: Option<f32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    pub(super) unk_token: Option<String>,
    #[serde(default)]
    pub(super) fuse_unk: bool,
    #[serde(default)]
    pub(super) byte_fallback: bool,
    #[serde(default)]
    pub(super) ignore_merges: bool,
    /// Only for Unigram.
    pub(super) unk_id: Option<u32>,
    #[serde(default, deserialize_with = "vocab")]
    pub(super) vocab: Vocabulary,
    #[serde(default, deserialize_with = "merges")]
    pub(super) merges: Vec<(String, String)>,
}

/// Tokens in file order, so that a doubled text can be reported.
pub(super) enum Vocabulary {
    /// BPE: text and id.
    Ids(Vec<(String, u32)>),
    /// Unigram: text and score, the position is the id.
    Scores(Vec<(String, f64)>),
}

impl Default for Vocabulary {
    fn default() -> Vocabulary {
        Vocabulary::Ids(Vec::new())
    }
}

impl Model {
    /// Only plain BPE and Unigram are run.
    pub(super) fn check(&self) -> Result<()> {
        let kind = self.kind.as_deref().unwrap_or("BPE");
        match (kind, &self.vocab) {
            ("BPE", Vocabulary::Ids(_)) | ("Unigram", Vocabulary::Scores(_)) => {}
            ("BPE", _) => {
                return Err(TextError::Json("model.vocab of a BPE is not a map from text to id".into()));
            }
            ("Unigram", _) => {
                return Err(TextError::Json(
                    "model.vocab of a Unigram is not a list of texts and scores".into(),
                ));
            }
            _ => {
                let kind = shorten(kind);
                return Err(TextError::Json(format!(
                    "model.type is \"{kind}\", but hob runs only \"BPE\" and \"Unigram\""
                )));
            }
        }
        if self.dropout.is_some_and(|dropout| dropout != 0.0) {
            return Err(TextError::Json("model.dropout is set: every encoding would be random".into()));
        }
        let affix = |affix: &Option<String>| affix.as_ref().is_some_and(|affix| !affix.is_empty());
        if affix(&self.continuing_subword_prefix) || affix(&self.end_of_word_suffix) {
            return Err(TextError::Json(
                "model.continuing_subword_prefix and model.end_of_word_suffix are not supported; \
                 expected a byte-level or metaspace vocabulary"
                    .into(),
            ));
        }
        Ok(())
    }
}

/// A map from text to id, or a list of pairs of text and score.
fn vocab<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vocabulary, D::Error> {
    struct Pairs;
    impl<'de> Visitor<'de> for Pairs {
        type Value = Vocabulary;
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a map from token text to id, or a list of texts and scores")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
            let mut pairs = Vec::new();
            while let Some(pair) = map.next_entry()? {
                pairs.push(pair);
            }
            Ok(Vocabulary::Ids(pairs))
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Self::Value, A::Error> {
            let mut pairs = Vec::new();
            while let Some(pair) = seq.next_element()? {
                pairs.push(pair);
            }
            Ok(Vocabulary::Scores(pairs))
        }
    }
    deserializer.deserialize_any(Pairs)
}

/// `["a b", ...]` or `[["a", "b"], ...]`.
fn merges<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Vec<(String, String)>, D::Error> {
    Ok(Vec::<Merge>::deserialize(deserializer)?.into_iter().map(|Merge(left, right)| (left, right)).collect())
}

struct Merge(String, String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Rule;
        impl<'de> Visitor<'de> for Rule {
            type Value = Merge;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a merge: two texts, as a pair or with one space between")
            }
            fn visit_str<E: serde::de::Error>(self, rule: &str) -> std::result::Result<Merge, E> {
                match rule.split_once(' ') {
                    Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
                        Ok(Merge(left.to_owned(), right.to_owned()))
                    }
                    _ => Err(E::custom(format!(
                        "merge \"{}\" is not two texts with one space between",
                        shorten(rule)
                    ))),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Merge, A::Error> {
                let short = || A::Error::custom("a merge has fewer than two texts");
                let left = seq.next_element()?.ok_or_else(short)?;
                let right = seq.next_element()?.ok_or_else(short)?;
                match seq.next_element::<IgnoredAny>()? {
                    None => Ok(Merge(left, right)),
                    Some(_) => Err(A::Error::custom("a merge has more than two texts")),
                }
            }
        }
        deserializer.deserialize_any(Rule)
    }
}
