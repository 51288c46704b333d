//! The named rules by which vocabularies of GGUF files split text before merging, and what else depends on the
//! name. Facts from the tokenizer.json of the original models (Qwen2, Llama 3, SmolLM2, GPT-2) and, for
//! `default`, from llama.cpp's `llama-vocab.cpp`. Knows nothing of files.

use tokenizers::normalizers::{NFC, NormalizerWrapper};
use tokenizers::pre_tokenizers::{
    PreTokenizerWrapper, byte_level::ByteLevel, digits::Digits, sequence::Sequence, split::Split,
    split::SplitPattern,
};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use crate::error::{Result, TextError};

/// Splits letters, single digits (Qwen2) or groups of up to three (Llama 3), runs of symbols, and spaces so that
/// the last one stays with the next word.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// llama.cpp applies these one after the other, then GPT-2's own pattern.
const DEFAULT_PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|]+";
const DEFAULT_NUMBERS: [&str; 2] = [r"\p{N}+", "[0-9][0-9][0-9]"];

/// Everything that a pre-tokenizer's name decides.
pub(crate) struct Rules {
    pub(crate) normalizer: Option<NormalizerWrapper>,
    pub(crate) pre_tokenizer: PreTokenizerWrapper,
    /// A piece that is a token as it stands is not merged.
    pub(crate) ignore_merges: bool,
    /// Begin-of-sequence is added where the file does not say.
    pub(crate) add_bos: bool,
}

/// The accepted values of `tokenizer.ggml.pre`.
const NAMES: &[(&str, Family)] = &[
    ("smollm", Family::Smollm),
    ("qwen2", Family::Qwen2),
    ("deepseek-r1-qwen", Family::Qwen2),
    ("llama-bpe", Family::Llama3),
    ("llama3", Family::Llama3),
    ("llama-v3", Family::Llama3),
    ("gpt-2", Family::Gpt2),
    ("default", Family::Default),
];

#[derive(Clone, Copy)]
enum Family {
    Smollm,
    Qwen2,
    Llama3,
    Gpt2,
    Default,
}

/// The rules named `pre`, or an error that lists the names hob knows.
pub(crate) fn rules(pre: &str) -> Result<Rules> {
    let Some(&(_, family)) = NAMES.iter().find(|(name, _)| *name == pre) else {
        let supported: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
        return Err(TextError::UnsupportedPre { found: shorten(pre), supported: supported.join(", ") });
    };
    let parts = match family {
        Family::Smollm => vec![Digits::new(true).into(), byte_level(true)],
        Family::Qwen2 => vec![split(QWEN2)?, byte_level(false)],
        Family::Llama3 => vec![split(LLAMA3)?, byte_level(false)],
        Family::Gpt2 => vec![byte_level(true)],
        Family::Default => {
            let gpt2 = split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)")?;
            let [runs, triples] = DEFAULT_NUMBERS;
            vec![split(DEFAULT_PUNCTUATION)?, gpt2, split(runs)?, split(triples)?, byte_level(false)]
        }
    };
    Ok(Rules {
        // The original tokenizer composes characters; GGUF has no key for it, so the name decides.
        normalizer: matches!(family, Family::Qwen2).then(|| NFC.into()),
        pre_tokenizer: Sequence::new(parts).into(),
        ignore_merges: matches!(family, Family::Llama3),
        add_bos: matches!(family, Family::Llama3),
    })
}

/// Spells bytes with GPT-2's alphabet, after splitting by GPT-2's pattern if asked.
fn byte_level(split: bool) -> PreTokenizerWrapper {
    ByteLevel::new(false, false, split).into()
}

fn split(pattern: &str) -> Result<PreTokenizerWrapper> {
    Split::new(SplitPattern::Regex(pattern.into()), SplitDelimiterBehavior::Isolated, false)
        .map(Into::into)
        .map_err(|error| TextError::Encode(format!("a built-in splitting pattern does not compile: {error}")))
}

/// At most 40 characters of an untrusted name, without control characters.
pub(crate) fn shorten(name: &str) -> String {
    let mut short: String = name.chars().filter(|c| !c.is_control()).take(40).collect();
    if short.len() < name.len() {
        short.push('…');
    }
    short
}
