//! tokenizer.json and the files beside it. The document is read once into plain parts; every component is
//! checked against a list before the `tokenizers` crate sees it, so that a hostile file meets neither unbounded
//! expressions nor models that hob does not run. What the parts mean together is checked in `assemble.rs`.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use crate::assemble::{Joining, Matching, Parts, Scheme, Specials};
use crate::error::{Result, TextError};
use crate::limits::TokenizerLimits;
use crate::pretokenizer::shorten;
use crate::tokenizer::Tokenizer;
use crate::vocab::Kind;

mod check;
mod component;
mod document;

use document::{Document, Model, Vocabulary};

/// Stack of the loading thread: the expression compilers recurse.
const STACK_BYTES: usize = 32 << 20;

/// The files that accompany a tokenizer.json in a model folder.
#[derive(Default, Clone, Copy)]
pub(crate) struct SideFiles<'a> {
    pub(crate) tokenizer_config: Option<&'a Value>,
    pub(crate) generation_config: Option<&'a Value>,
    /// Source of chat_template.jinja.
    pub(crate) chat_template: Option<&'a str>,
}

/// Reads a tokenizer.json of at most `limits.json_bytes`.
pub(crate) fn read(path: &Path, limits: &TokenizerLimits) -> Result<Vec<u8>> {
    use std::io::Read;
    let failed = |source| TextError::Io { path: path.display().to_string(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(limits.json_bytes + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Builds the tokenizer on a thread with a big stack; a panic of a library becomes an error.
pub(crate) fn load(bytes: &[u8], side: &SideFiles, limits: &TokenizerLimits) -> Result<Tokenizer> {
    if bytes.len() as u64 > limits.json_bytes {
        let (what, found, limit) =
            ("the size of tokenizer.json in bytes", bytes.len() as u64, limits.json_bytes);
        return Err(TextError::TooLarge { what, found, limit, field: "json_bytes" });
    }
    let work = || load_here(bytes, side, limits);
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("tokenizer".into()).stack_size(STACK_BYTES);
        let failed = |source| TextError::Io { path: "a thread to load the tokenizer".into(), source };
        let thread = builder.spawn_scoped(scope, work).map_err(failed)?;
        thread.join().unwrap_or_else(|_| {
            Err(TextError::Json("loading it made a library panic; the file is damaged or hostile".into()))
        })
    })
}

fn load_here(bytes: &[u8], side: &SideFiles, limits: &TokenizerLimits) -> Result<Tokenizer> {
    let document: Document =
        serde_json::from_slice(bytes).map_err(|error| TextError::Json(error.to_string()))?;
    let Document { added_tokens, normalizer, pre_tokenizer, post_processor, decoder, model } = document;
    model.check()?;
    check::normalizer(&normalizer, limits)?;
    check::pre_tokenizer(&pre_tokenizer, limits)?;
    let (spelling, strip_leading_space) = check::spelling(&decoder, &pre_tokenizer)?;
    let scheme = Scheme {
        normalizer: component::normalizer(normalizer)?,
        pieces: component::pieces(pre_tokenizer)?,
        spelling,
        strip_leading_space,
        warning: None,
    };
    let mut table = Table::default();
    let joining = joining(model, &mut table, limits)?;
    let mut matching = HashMap::new();
    for added in added_tokens {
        let kind = if added.special { Kind::Control } else { Kind::UserDefined };
        let rules = Matching {
            single_word: added.single_word,
            lstrip: added.lstrip,
            rstrip: added.rstrip,
            normalized: added.normalized,
        };
        matching.insert(added.id, rules);
        table.put(added.id, added.content, kind, limits)?;
    }
    let unknown = match &joining {
        Joining::Merges { unk, .. } => unk.as_ref().and_then(|unk| table.find(unk)),
        Joining::Scores { unk, .. } | Joining::Unigram { unk, .. } => *unk,
    };
    if let Some(kind) = unknown.and_then(|id| table.kinds.get_mut(id as usize)) {
        *kind = Kind::Unknown;
    }
    let joining = match joining {
        Joining::Unigram { mut scores, unk, byte_fallback } => {
            // Added tokens beyond the model's own have no score.
            scores.resize(table.texts.len(), 0.0);
            Joining::Unigram { scores, unk, byte_fallback }
        }
        other => other,
    };
    let specials = specials(&table, &post_processor, side)?;
    let parts = Parts {
        tokens: table.texts,
        kinds: table.kinds,
        joining,
        matching,
        specials,
        scheme,
        tuned_for_chat: false,
    };
    Tokenizer::build(parts, chat_template(side), limits)
}

/// Puts the model's tokens into the table and keeps what joins characters.
fn joining(model: Model, table: &mut Table, limits: &TokenizerLimits) -> Result<Joining> {
    let Model { vocab, merges, ignore_merges, byte_fallback, fuse_unk, unk_token, unk_id, .. } = model;
    match vocab {
        Vocabulary::Ids(vocab) => {
            for (text, id) in vocab {
                table.put(id, text, Kind::Normal, limits)?;
            }
            Ok(Joining::Merges { rules: merges, ignore_merges, byte_fallback, fuse_unk, unk: unk_token })
        }
        Vocabulary::Scores(vocab) => {
            let mut scores = Vec::with_capacity(vocab.len());
            for (id, (text, score)) in vocab.into_iter().enumerate() {
                table.put(id as u32, text, Kind::Normal, limits)?;
                scores.push(score);
            }
            Ok(Joining::Unigram { scores, unk: unk_id, byte_fallback })
        }
    }
}

/// Tokens by id while they are collected; ids may come in any order and leave holes.
#[derive(Default)]
struct Table {
    texts: Vec<String>,
    kinds: Vec<Kind>,
}

impl Table {
    fn put(&mut self, id: u32, text: String, kind: Kind, limits: &TokenizerLimits) -> Result<()> {
        let index = id as usize;
        if index >= limits.tokens {
            let (what, found, limit) = ("a token id", id as u64, limits.tokens as u64);
            return Err(TextError::TooLarge { what, found, limit, field: "tokens" });
        }
        if index >= self.texts.len() {
            self.texts.resize(index + 1, String::new());
            self.kinds.resize(index + 1, Kind::Unused);
        }
        let place = &mut self.texts[index];
        if !place.is_empty() && *place != text {
            let (first, second) = (shorten(place), shorten(&text));
            return Err(TextError::Json(format!("id {id} is both \"{first}\" and \"{second}\"")));
        }
        *place = text;
        self.kinds[index] = kind;
        Ok(())
    }

    fn find(&self, text: &str) -> Option<u32> {
        self.texts.iter().position(|candidate| candidate == text).map(|id| id as u32)
    }
}

/// Roles of tokens: from tokenizer_config.json by text, from generation_config.json by id, and the prefix that
/// the post-processor puts in front of a text.
fn specials(table: &Table, post_processor: &Value, side: &SideFiles) -> Result<Specials> {
    let named = |key: &str| -> Option<u32> {
        let value = side.tokenizer_config?.get(key)?;
        table.find(value.as_str().or_else(|| value.get("content")?.as_str())?)
    };
    let listed = |key: &str| -> Result<Vec<u32>> {
        let Some(value) = side.generation_config.and_then(|config| config.get(key)) else {
            return Ok(Vec::new());
        };
        let id = |value: &Value| {
            value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                TextError::Json(format!(
                    "generation_config.json: {key} is {value}; expected a token id or a list of them"
                ))
            })
        };
        match value {
            Value::Null => Ok(Vec::new()),
            Value::Array(ids) => ids.iter().map(id).collect(),
            single => Ok(vec![id(single)?]),
        }
    };
    let prefix = template_prefix(post_processor);
    let ends = listed("eos_token_id")?;
    let bos = named("bos_token").or(prefix).or(listed("bos_token_id")?.first().copied());
    let wanted = side.tokenizer_config.and_then(|config| config.get("add_bos_token")?.as_bool());
    Ok(Specials {
        bos,
        eos: named("eos_token").or(ends.first().copied()),
        add_bos: wanted.unwrap_or(prefix.is_some() && prefix == bos),
        ends,
    })
}

/// The special token that a `TemplateProcessing` puts in front of a single sequence.
fn template_prefix(post_processor: &Value) -> Option<u32> {
    match post_processor.get("type")?.as_str()? {
        "Sequence" => post_processor.get("processors")?.as_array()?.iter().find_map(template_prefix),
        "TemplateProcessing" => {
            let name = post_processor.get("single")?.get(0)?.get("SpecialToken")?.get("id")?.as_str()?;
            let ids = post_processor.get("special_tokens")?.get(name)?.get("ids")?;
            ids.get(0)?.as_u64()?.try_into().ok()
        }
        _ => None,
    }
}

/// The separate file wins; in tokenizer_config.json the template is a string or a list of named ones.
fn chat_template(side: &SideFiles) -> Option<String> {
    if let Some(source) = side.chat_template {
        return Some(source.to_owned());
    }
    let value = side.tokenizer_config?.get("chat_template")?;
    let named = || {
        let templates = value.as_array()?;
        let default = templates.iter().find(|entry| entry.get("name").is_some_and(|name| name == "default"));
        default.or(templates.first())?.get("template")?.as_str()
    };
    value.as_str().or_else(named).map(str::to_owned)
}
