//! The vocabulary in GGUF metadata (`tokenizer.ggml.*`, `tokenizer.chat_template`). Reads keys and values;
//! what they mean together is checked in `assemble.rs`.

use std::collections::HashMap;

use hob_files::Metadata;

use crate::assemble::{Parts, Scheme, Specials};
use crate::error::{Result, TextError};
use crate::limits::TokenizerLimits;
use crate::pretokenizer::{rules, shorten};
use crate::vocab::{Kind, Spelling};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ENDS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// The parts of the file's vocabulary.
pub(crate) fn parts<'a>(metadata: &'a Metadata, limits: &TokenizerLimits) -> Result<Parts<&'a str>> {
    let missing = |key, hint| TextError::MissingKey { key, hint };
    let model = metadata.str(MODEL)?.ok_or_else(|| {
        missing(MODEL, "the file holds no vocabulary; use a GGUF that was converted with its tokenizer")
    })?;
    if model != "gpt2" {
        return Err(TextError::UnsupportedModel { found: shorten(model) });
    }
    let rules = rules(metadata.str(PRE)?.ok_or_else(|| {
        missing(
            PRE,
            "it says how text is split before merging; convert the model again with a newer converter",
        )
    })?)?;
    let tokens = metadata
        .str_array(TOKENS)?
        .ok_or_else(|| missing(TOKENS, "the file holds no vocabulary; download or convert it again"))?;
    let merges = metadata
        .str_array(MERGES)?
        .ok_or_else(|| missing(MERGES, "a gpt2 vocabulary needs its merge rules; convert the model again"))?;
    // Before anything is copied; the same limits hold for every source and are checked again in `assemble`.
    if tokens.len() > limits.tokens || merges.len() > limits.merges {
        let (what, found, limit, field) = match tokens.len() > limits.tokens {
            true => ("the number of tokens", tokens.len(), limits.tokens, "tokens"),
            false => ("the number of merges", merges.len(), limits.merges, "merges"),
        };
        return Err(TextError::TooLarge { what, found: found as u64, limit: limit as u64, field });
    }
    Ok(Parts {
        tokens: tokens.iter().collect(),
        kinds: kinds(metadata, tokens.len())?,
        merges: merges
            .iter()
            .enumerate()
            .map(|(rank, rule)| split_rule(rank, rule))
            .collect::<Result<_>>()?,
        matching: HashMap::new(),
        specials: specials(metadata, rules.add_bos)?,
        scheme: Scheme {
            normalizer: rules.normalizer,
            pre_tokenizer: Some(rules.pre_tokenizer),
            ignore_merges: rules.ignore_merges,
            byte_fallback: false,
            fuse_unk: false,
            unk: None,
            spelling: Spelling::ByteLevel,
            strip_leading_space: false,
        },
    })
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

fn specials(metadata: &Metadata, add_bos: bool) -> Result<Specials> {
    let id = |key: &'static str| -> Result<Option<u32>> {
        let too_large = |id| TextError::Vocabulary(format!("{key} is {id}, which no token can have"));
        metadata.u64(key)?.map(|id| u32::try_from(id).map_err(|_| too_large(id))).transpose()
    };
    let mut ends = Vec::new();
    for key in ENDS {
        ends.extend(id(key)?);
    }
    Ok(Specials { bos: id(BOS)?, eos: id(EOS)?, add_bos: metadata.bool(ADD_BOS)?.unwrap_or(add_bos), ends })
}
