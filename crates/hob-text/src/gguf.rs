//! The vocabulary in GGUF metadata (`tokenizer.ggml.*`, `tokenizer.chat_template`). Reads keys and values;
//! what they mean together is checked in `assemble.rs`.

use std::collections::HashMap;

use hob_files::{Array, Metadata, Value};

use crate::assemble::{END_TEXTS, Joining, Matching, Parts, Pieces, Scheme, Specials, sounds_tuned};
use crate::charsmap::Charsmap;
use crate::error::{Result, TextError};
use crate::limits::TokenizerLimits;
use crate::normalizer::Normal;
use crate::pretokenizer::{rules, shorten};
use crate::unigram::Preparation;
use crate::vocab::{Kind, Spelling};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";
const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
const MERGE_SPACES: &str = "tokenizer.ggml.remove_extra_whitespaces";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const UNK: &str = "tokenizer.ggml.unknown_token_id";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ENDS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// What a family of vocabularies takes for granted where the file is silent; as in llama.cpp.
struct Family {
    joining: Joining,
    scheme: Scheme,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
}

fn missing(key: &'static str, hint: &'static str) -> TextError {
    TextError::MissingKey { key, hint }
}

/// The parts of the file's vocabulary.
pub(crate) fn parts<'a>(metadata: &'a Metadata, limits: &TokenizerLimits) -> Result<Parts<&'a str>> {
    let model = metadata.str(MODEL)?.ok_or_else(|| {
        missing(MODEL, "the file holds no vocabulary; use a GGUF that was converted with its tokenizer")
    })?;
    let tokens = metadata
        .str_array(TOKENS)?
        .ok_or_else(|| missing(TOKENS, "the file holds no vocabulary; download or convert it again"))?;
    // Before anything is copied; the same limits hold for every source and are checked again in `assemble`.
    check_count("the number of tokens", tokens.len(), limits.tokens, "tokens")?;
    let family = match model {
        "gpt2" => merges(metadata, metadata.str(PRE)?, limits)?,
        "gemma4" => merges(metadata, Some("gemma4"), limits)?,
        "llama" => scores(metadata)?,
        "t5" => unigram(metadata)?,
        _ => return Err(TextError::UnsupportedModel { found: shorten(model) }),
    };
    let mut kinds = kinds(metadata, tokens.len())?;
    let tokens: Vec<&str> = tokens.iter().collect();
    correct_kinds(&tokens, &mut kinds);
    Ok(Parts {
        matching: matching(metadata, &tokens, &kinds)?,
        tokens,
        kinds,
        specials: specials(metadata, &family)?,
        tuned_for_chat: tuned_for_chat(metadata)?,
        joining: family.joining,
        scheme: family.scheme,
    })
}

fn tuned_for_chat(metadata: &Metadata) -> Result<bool> {
    for key in ["general.finetune", "general.name", "general.basename"] {
        if metadata.str(key)?.is_some_and(sounds_tuned) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn check_count(what: &'static str, found: usize, limit: usize, field: &'static str) -> Result<()> {
    match found > limit {
        true => Err(TextError::TooLarge { what, found: found as u64, limit: limit as u64, field }),
        false => Ok(()),
    }
}

/// `gpt2`: byte-level BPE with merge rules.
fn merges(metadata: &Metadata, pre: Option<&str>, limits: &TokenizerLimits) -> Result<Family> {
    let rules = rules(pre.unwrap_or("default"))?;
    let merges = metadata
        .str_array(MERGES)?
        .ok_or_else(|| missing(MERGES, "a gpt2 vocabulary needs its merge rules; convert the model again"))?;
    check_count("the number of merges", merges.len(), limits.merges, "merges")?;
    let merges = merges.iter().enumerate().map(|(rank, rule)| split_rule(rank, rule));
    let warning = pre.is_none().then(|| {
        format!(
            "the file does not say how its text is split ({PRE} is missing), so the rules \"default\" are used; \
             answers may be worse than they should be: convert the model again with a newer converter"
        )
    });
    let (pieces, spelling) = match rules.metaspace {
        true => (Pieces::Lines(rules.splitter), Spelling::Metaspace),
        false => (Pieces::Bytes(rules.splitter), Spelling::ByteLevel),
    };
    Ok(Family {
        joining: Joining::Merges {
            rules: merges.collect::<Result<_>>()?,
            ignore_merges: rules.ignore_merges,
            byte_fallback: rules.metaspace,
            fuse_unk: false,
            unk: None,
        },
        scheme: Scheme {
            normalizer: rules.normalizer.map(Normal::Component),
            pieces,
            spelling,
            strip_leading_space: false,
            warning,
        },
        bos: None,
        eos: None,
        add_bos: rules.add_bos,
    })
}

/// `llama`: SentencePiece's BPE, a score per token.
fn scores(metadata: &Metadata) -> Result<Family> {
    let add_space_prefix = metadata.bool(ADD_SPACE_PREFIX)?.unwrap_or(true);
    Ok(Family {
        joining: Joining::Scores {
            scores: read_scores(metadata)?,
            unk: Some(id(metadata, UNK)?.unwrap_or(0)),
        },
        scheme: Scheme {
            normalizer: None,
            pieces: Pieces::Escaped { add_space_prefix },
            spelling: Spelling::Metaspace,
            strip_leading_space: add_space_prefix,
            warning: None,
        },
        bos: Some(1),
        eos: Some(2),
        add_bos: true,
    })
}

/// `t5`: SentencePiece's unigram model.
fn unigram(metadata: &Metadata) -> Result<Family> {
    let add_space_prefix = metadata.bool(ADD_SPACE_PREFIX)?.unwrap_or(false);
    let preparation = Preparation {
        charsmap: charsmap(metadata)?,
        add_space_prefix,
        merge_spaces: metadata.bool(MERGE_SPACES)?.unwrap_or(false),
    };
    let scores = read_scores(metadata)?.into_iter().map(f64::from).collect();
    Ok(Family {
        joining: Joining::Unigram {
            scores,
            unk: Some(id(metadata, UNK)?.unwrap_or(2)),
            byte_fallback: false,
        },
        scheme: Scheme {
            normalizer: None,
            pieces: Pieces::Prepared(preparation),
            spelling: Spelling::Metaspace,
            strip_leading_space: add_space_prefix,
            warning: None,
        },
        bos: None,
        eos: Some(1),
        add_bos: false,
    })
}

fn read_scores(metadata: &Metadata) -> Result<Vec<f32>> {
    let needed =
        || missing(SCORES, "SentencePiece vocabularies are encoded by score; convert the model again");
    Ok(metadata.f32_array(SCORES)?.ok_or_else(needed)?.to_vec())
}

fn charsmap(metadata: &Metadata) -> Result<Option<Charsmap>> {
    match metadata.get(CHARSMAP) {
        None => Ok(None),
        Some(Value::Array(Array::U8(bytes))) => Charsmap::parse(bytes).map(Some),
        Some(Value::Array(Array::I8(bytes))) => {
            Charsmap::parse(&bytes.iter().map(|&byte| byte as u8).collect::<Vec<_>>()).map(Some)
        }
        Some(_) => Err(TextError::Vocabulary(format!("{CHARSMAP} is no array of bytes"))),
    }
}

/// Tokens that swallow the white space behind them. GGUF has no key for it; as in llama.cpp, the model's name decides.
fn matching(metadata: &Metadata, tokens: &[&str], kinds: &[Kind]) -> Result<HashMap<u32, Matching>> {
    let name = metadata.str("general.name")?.unwrap_or_default().to_ascii_lowercase();
    if !name.contains("phi-3") && !name.contains("phi3") {
        return Ok(HashMap::new());
    }
    let swallows =
        |(text, kind): (&&str, &Kind)| kind.is_added() && !["<unk>", "<s>", "<|endoftext|>"].contains(text);
    let rules = Matching { rstrip: true, ..Matching::default() };
    let ids = tokens.iter().zip(kinds).enumerate().filter(|(_, token)| swallows(*token));
    Ok(ids.map(|(id, _)| (id as u32, rules)).collect())
}

/// The file's default chat template.
pub(crate) fn chat_template(metadata: &Metadata) -> Result<Option<String>> {
    Ok(metadata.str("tokenizer.chat_template")?.map(str::to_owned))
}

/// Absent types mean normal tokens, as in llama.cpp.
fn kinds(metadata: &Metadata, tokens: usize) -> Result<Vec<Kind>> {
    let Some(types) = metadata.i64_array(TOKEN_TYPE)? else { return Ok(vec![Kind::Normal; tokens]) };
    let kind = |(id, found): (usize, i64)| {
        Kind::from_ggml(found).ok_or_else(|| {
            TextError::Vocabulary(format!(
                "{TOKEN_TYPE}[{id}] is {found}; expected 1 to 6 (normal, unknown, control, user-defined, unused, byte)"
            ))
        })
    };
    types.into_iter().enumerate().map(kind).collect()
}

/// Converters have marked ends of turns as ordinary tokens; nothing else is spelled so. (`</s>` may be HTML.)
fn correct_kinds(tokens: &[&str], kinds: &mut [Kind]) {
    for (text, kind) in tokens.iter().zip(kinds) {
        if text.starts_with("<|") && *kind != Kind::Control && END_TEXTS.contains(text) {
            *kind = Kind::Control;
        }
    }
}

/// A rule is two texts with one space between; the first may itself be a space.
fn split_rule(rank: usize, rule: &str) -> Result<(String, String)> {
    let first = rule.chars().next().map_or(0, char::len_utf8);
    match rule[first..].find(' ').map(|at| rule.split_at(first + at)) {
        Some((left, right)) if right.len() > 1 => Ok((left.to_owned(), right[1..].to_owned())),
        _ => Err(TextError::Vocabulary(format!(
            "{MERGES}[{rank}] is \"{}\"; expected two texts with a space between",
            shorten(rule)
        ))),
    }
}

fn id(metadata: &Metadata, key: &'static str) -> Result<Option<u32>> {
    let too_large = |id| TextError::Vocabulary(format!("{key} is {id}, which no token can have"));
    metadata.u64(key)?.map(|id| u32::try_from(id).map_err(|_| too_large(id))).transpose()
}

fn specials(metadata: &Metadata, family: &Family) -> Result<Specials> {
    let mut ends = Vec::new();
    for key in ENDS {
        ends.extend(id(metadata, key)?);
    }
    Ok(Specials {
        bos: id(metadata, BOS)?.or(family.bos),
        eos: id(metadata, EOS)?.or(family.eos),
        add_bos: metadata.bool(ADD_BOS)?.unwrap_or(family.add_bos),
        ends,
    })
}
